"""Start-up, identity, discovery, waking, and the end of every background task."""

import asyncio
import itertools
import socket

import pytest

from haclient.config import Health, Timeouts
from haclient.errors import ConfigError, WriteRefused
from haclient.events import ClusterRecognised, ConfigRejected
from haclient.fleet.breaker import CLOSED, OPEN
from haclient.fleet.identity import compare
from tests.unit.fleet.fleet_fakes import DELETE, REAL_ID, Server, World, ask, cluster, until
from tests.virtual_time import run

# Start-up.


@pytest.mark.parametrize("dead", ["refused", "hang", "reset"])
@pytest.mark.parametrize("live", [0, 3, 7])
def test_one_live_endpoint_of_many_is_enough(dead, live):
    async def scenario():
        servers = [Server(state=dead) for _ in range(8)]
        servers[live].state = "up"
        world = World(*servers)
        async with world:
            core = world.core()
            began = world.loop.time()
            assert (await ask(core)).code == 0
            assert world.loop.time() - began < 0.25 + 0.1
            assert [len(s.calls()) for s in servers].index(1) == live or dead != "refused"

    run(scenario())


def test_when_all_are_dead_the_first_call_fails_soon_and_names_each():
    async def scenario():
        world = World(Server(state="refused"), Server(state="refused"))
        async with world:
            core = world.core()
            with pytest.raises(Exception, match="no endpoint could answer") as caught:
                await ask(core, timeout_s=2)
            assert world.loop.time() < 2
            assert {a.endpoint for a in caught.value.attempts} == {"s0", "s1"}
            world.by_address["s1:19530"].state = "up"
            assert (await ask(core)).code == 0

    run(scenario())


def test_when_all_hang_start_up_waits_for_the_connect_time_at_most():
    async def scenario():
        world = World(Server(state="hang"), Server(state="hang"), timeouts=Timeouts(connect_s=0.7))
        async with world:
            core = world.core()
            await core.start()
            assert world.loop.time() < 0.7 + 0.25 + 0.01

    run(scenario())


def test_start_is_shared_by_concurrent_callers():
    async def scenario():
        world = World(Server(), Server())
        async with world:
            core = world.core()
            await asyncio.gather(*(ask(core) for _ in range(50)))
            for server in world.by_address.values():
                assert sum(r.name == "Connect" for r in server.requests) == 1

    run(scenario())


def test_a_caller_that_gives_up_does_not_stop_the_start():
    async def scenario():
        world = World(Server(delay_s=0.2))
        async with world:
            core = world.core()
            first, second = asyncio.ensure_future(ask(core)), asyncio.ensure_future(ask(core))
            await asyncio.sleep(0.1)
            first.cancel()
            assert (await second).code == 0
            with pytest.raises(asyncio.CancelledError):
                await first

    run(scenario())


def test_closing_in_the_middle_of_the_start_leaves_nothing():
    async def scenario(after_s):
        world = World(Server(state="hang"), Server(delay_s=0.3))
        async with world:
            core = world.core()
            task = asyncio.ensure_future(ask(core))
            await asyncio.sleep(after_s)
            await core.aclose()
            await asyncio.gather(task, return_exceptions=True)
            assert all(t.closed for s in world.by_address.values() for t in s.transports)

    for after_s in (0.0, 0.01, 0.35, 0.65, 1.5):
        run(scenario(after_s))


def test_closing_ends_every_task_and_transport():
    async def scenario():
        world = World(*(Server() for _ in range(5)))
        async with world:
            core = world.core()
            await ask(core)
            await asyncio.sleep(3)
            await core.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert all(t.closed for s in world.by_address.values() for t in s.transports)

    run(scenario())


# The rhythm.


def test_a_wake_up_in_the_same_moment_does_not_outlive_the_close():
    """`asyncio.wait_for` of Python 3.11 returns normally if it is cancelled together with its event."""

    async def scenario():
        world = World(Server(), Server())
        async with world:
            core = world.core()
            await ask(core)
            await asyncio.sleep(0.3)
            for node in core.fleet.nodes():
                node.wake()
            await asyncio.sleep(0)  # what waits for the event has it, and the prober has not run yet
            async with asyncio.timeout(60):
                await core.keeper.aclose()

    run(scenario())


def test_a_dead_server_delays_no_others_probes():
    async def scenario():
        world = World(Server(state="hang"), Server(), health=Health(interval_s=1.0, timeout_s=30.0))
        async with world:
            core = world.core()
            await core.start()
            await asyncio.sleep(10)
            looks = [r.at for r in world.by_address["s1:19530"].requests if r.name == "Connect"]
            assert 9 <= len(looks) <= 13

    run(scenario())


def test_looks_are_jittered():
    async def scenario():
        world = World(*(Server() for _ in range(3)), health=Health(interval_s=1.0))
        async with world:
            await world.core().start()
            await asyncio.sleep(20)
            gaps = set()
            for server in world.by_address.values():
                looks = [r.at for r in server.requests if r.name == "Connect"]
                gaps |= {round(b - a, 3) for a, b in itertools.pairwise(looks)}
            assert len(gaps) > 20
            assert min(gaps) >= 0.9
            assert max(gaps) <= 1.2

    run(scenario())


def test_traffic_wakes_the_prober_early_but_not_more_often_than_allowed():
    async def scenario():
        world = World(Server(), Server(), health=Health(interval_s=100.0, deep_interval_s=100.0))
        async with world:
            core = world.core()
            await core.start()
            node = next(core.fleet.nodes())
            server = world.by_address["s0:19530"]
            await asyncio.sleep(1)
            before = sum(r.name == "Connect" for r in server.requests)
            node.wake()
            await asyncio.sleep(0.05)
            assert sum(r.name == "Connect" for r in server.requests) == before + 1
            for _ in range(200):
                node.wake()
                await asyncio.sleep(0.005)
            assert sum(r.name == "Connect" for r in server.requests) <= before + 12

    run(scenario())


def test_a_bug_in_a_probe_does_not_end_probing(caplog):
    async def scenario():
        world = World(Server(), health=Health(interval_s=0.5))
        async with world:
            core = world.core()
            await core.start()

            def broken(_):
                raise RuntimeError("bug")

            world.by_address["s0:19530"].script["Connect"] = broken
            await asyncio.sleep(2)
            world.by_address["s0:19530"].script.clear()
            before = len(world.by_address["s0:19530"].requests)
            await asyncio.sleep(2)
            assert len(world.by_address["s0:19530"].requests) > before

    run(scenario())
    assert "nobody thought of" in caplog.text


# Identity.


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({("", "a"): REAL_ID}, {("", "a"): REAL_ID}, True),
        ({("", "a"): REAL_ID}, {("", "a"): REAL_ID + 1}, False),
        # One was dropped and created anew between the two looks.
        ({("", "a"): REAL_ID, ("", "b"): REAL_ID + 1}, {("", "a"): REAL_ID, ("", "b"): REAL_ID + 9}, True),
        ({("", "a"): REAL_ID}, {("", "b"): REAL_ID}, None),
        ({("", "a"): REAL_ID}, {("x", "a"): REAL_ID}, None),
        ({("", "a"): 1}, {("", "a"): 1}, None),
        ({("", "a"): 1}, {("", "a"): 2}, None),
        ({}, {("", "a"): REAL_ID}, None),
    ],
)
def test_ids_tell_clusters_apart_names_do_not(one, other, same):
    assert compare(one, other) is same
    assert compare(other, one) is same


def test_endpoints_declared_as_one_cluster_that_are_not_are_refused():
    async def scenario():
        servers = Server(), Server(catalogue={"docs": REAL_ID + 1})
        world = World(*servers, clusters=[cluster("c", "s0", "s1")])
        async with world:
            core = world.core()
            with pytest.raises(ConfigError, match=r"same names, different ids.*give it a ..cluster.. of its own"):
                await ask(core)
            stranger = core.fleet.view().endpoints[1]
            assert stranger.state == "drained"
            assert "it belongs to another cluster" in stranger.last_error
            assert not servers[1].calls()

    run(scenario())


def test_a_stranger_that_turns_up_later_is_refused_without_stopping_the_others():
    async def scenario():
        servers = Server(), Server(state="refused", catalogue={"docs": REAL_ID + 1})
        world = World(*servers, clusters=[cluster("c", "s0", "s1")])
        async with world:
            core = world.core()
            await ask(core)
            servers[1].state = "up"
            await until(lambda: bool(world.of(ConfigRejected)), 60)
            for _ in range(30):
                await ask(core)
            assert not servers[1].calls()

    run(scenario())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_uris_of_one_cluster_are_recognised(count):
    async def scenario():
        world = World(*(Server() for _ in range(count)))
        async with world:
            core = world.core()
            await core.start()
            assert len(core.fleet.clusters) == 1
            assert len(core.fleet.view().endpoints) == count
            assert len(world.of(ClusterRecognised)) == count - 1

    run(scenario())


def test_one_that_comes_up_later_is_recognised_then():
    async def scenario():
        servers = Server(), Server(), Server(state="refused")
        world = World(*servers)
        async with world:
            core = world.core()
            await core.start()
            assert len(core.fleet.clusters) == 2
            servers[2].state = "up"
            await until(lambda: len(core.fleet.clusters) == 1, 60)

    run(scenario())


def test_a_write_waits_until_all_have_been_looked_at_once():
    """One that takes longer to answer than reads wait for it is recognised all the same."""

    async def scenario():
        world = World(Server(), Server(delay_s=0.3))
        async with world:
            core = world.core()
            await core.start()
            assert len(core.fleet.clusters) == 2, "not known yet"
            assert (await ask(core, method=DELETE)).code == 0
            assert len(core.fleet.clusters) == 1

    run(scenario())


def test_a_write_does_not_wait_for_one_that_is_silent():
    async def scenario():
        world = World(Server(), Server(state="hang"))
        async with world:
            core = world.core()
            began = world.loop.time()
            with pytest.raises(WriteRefused):
                await ask(core, method=DELETE)
            assert world.loop.time() - began <= core.fleet.config.timeouts.connect_s + 0.3

    run(scenario())


def test_different_clusters_stay_apart():
    async def scenario():
        world = World(
            Server(), Server(catalogue={"docs": REAL_ID + 1}), Server(catalogue={"docs": 7}, build="milvus_lite-3.2.2")
        )
        async with world:
            core = world.core()
            await core.start()
            assert [c.name for c in core.fleet.clusters] == ["s0", "s1", "s2"]

    run(scenario())


def test_what_was_recognised_stays_so_when_the_configuration_changes():
    async def scenario():
        world = World(Server(), Server(), Server())
        async with world:
            core = world.core()
            await core.start()
            assert len(core.fleet.clusters) == 1
            core.reconfigure(world.config.model_copy(update={"clusters": world.config.clusters[:2]}))
            await asyncio.sleep(2)
            assert len(core.fleet.clusters) == 1
            assert len(core.fleet.view().endpoints) == 2

    run(scenario())


# Discovery.


class Names:
    """A resolver with a script."""

    def __init__(self, loop, **names):
        self.names, self.asked = names, 0
        loop.getaddrinfo = self

    async def __call__(self, host, port, **_):
        self.asked += 1
        answer = self.names[host]
        if isinstance(answer, Exception):
            raise answer
        return [(2, 1, 6, "", (address, port)) for address in answer]


def addresses(core):
    return sorted(e.address for e in core.fleet.view().endpoints)


def test_every_address_behind_a_name_is_an_endpoint_and_changes_are_followed():
    async def scenario():
        world = World(clusters=[cluster("c", "milvus", discovery="dns")])
        async with world:
            names = Names(world.loop, milvus=["10.0.0.1", "10.0.0.2"])
            core = world.core()
            await core.start()
            assert addresses(core) == ["10.0.0.1:19530", "10.0.0.2:19530"]
            first = {n.address: n for n in core.fleet.nodes()}
            names.names["milvus"] = ["10.0.0.2", "10.0.0.3"]
            await until(lambda: addresses(core) == ["10.0.0.2:19530", "10.0.0.3:19530"], 60)
            now = {n.address: n for n in core.fleet.nodes()}
            assert now["10.0.0.2:19530"] is first["10.0.0.2:19530"]
            await asyncio.sleep(1)
            assert first["10.0.0.1:19530"].data.closed
            assert (await ask(core)).code == 0
            asked = len(world.by_address["10.0.0.1:19530"].requests)
            await asyncio.sleep(10)
            assert len(world.by_address["10.0.0.1:19530"].requests) == asked

    run(scenario())


def test_a_name_that_does_not_resolve_keeps_what_it_had():
    async def scenario():
        world = World(clusters=[cluster("c", "milvus", discovery="dns")])
        async with world:
            names = Names(world.loop, milvus=["10.0.0.1"])
            core = world.core()
            await core.start()
            names.names["milvus"] = socket.gaierror(-2, "Name or service not known")
            await asyncio.sleep(40)
            assert addresses(core) == ["10.0.0.1:19530"]
            assert (await ask(core)).code == 0
            assert "does not resolve" in core.fleet.view().endpoints[0].last_error

    run(scenario())


def test_discovery_goes_on_after_the_configuration_changed():
    async def scenario():
        world = World(clusters=[cluster("c", "milvus", discovery="dns")])
        async with world:
            names = Names(world.loop, milvus=["10.0.0.1"])
            core = world.core()
            await core.start()
            core.reconfigure(world.config.model_copy(update={"health": Health(interval_s=0.7)}))
            names.names["milvus"] = ["10.0.0.1", "10.0.0.2"]
            await until(lambda: addresses(core) == ["10.0.0.1:19530", "10.0.0.2:19530"], 60)
            assert all(n.gate.state == CLOSED for n in core.fleet.nodes())
            assert OPEN not in {n.gate.state for n in core.fleet.nodes()}

    run(scenario())
