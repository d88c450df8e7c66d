"""The whole stack on scripted servers: what the application sees of every kind of trouble."""

import asyncio
import random

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Reply
from haclient.config import Breaker, Config, Health, Timeouts
from haclient.errors import CallError, ConfigError, DeadlineExceeded, Unavailable, WriteNotConfirmed
from haclient.events import CallFinished, ConfigRejected, FailedOver, FleetReconfigured
from tests.unit.fleet.fleet_fakes import (
    CREATE,
    FLUSH,
    INSERT,
    REAL_ID,
    Server,
    World,
    ask,
    cluster,
    failure,
    insert,
    search,
    until,
)
from tests.virtual_time import run

FAULTS = {
    "kill": {"state": "refused"},
    "freeze": {"state": "hang"},
    "reset": {"state": "reset"},
    "slow": {"delay_s": 0.8},
    "release": {"released": {"docs"}},
    "lose": {"catalogue": {}},
    "not ready": {"script": {"Search": failure(1, "not ready"), "Query": failure(1, "not ready")}},
    "delegator": {"script": {"Search": failure(65535, "fail to search on all shard leaders: no available shard")}},
    "quota": {"script": {"Search": failure(8, "rate limit exceeded")}},
    "unavailable": {"script": {"Search": Reply(b"", 14, "transport is closing")}},
    "starting": {"script": {"Search": Reply(b"", 2, "internal: Milvus Proxy is not ready yet. please wait")}},
}


def apart(count):
    return [Server(delay_s=0.004, catalogue={"docs": REAL_ID + i}) for i in range(count)]


def put(server, fault):
    for name, value in FAULTS[fault].items():
        setattr(server, name, type(value)(value) if isinstance(value, (dict, set)) else value)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [2, 3])
def test_no_single_fault_costs_a_read(fault, count):
    """Before, during and after the fault, each of the readers' calls is answered, rightly and soon."""

    async def scenario():
        world = World(*apart(count), health=Health(interval_s=0.5, deep_interval_s=0.5))
        async with world:
            core = world.core()
            await core.start()
            loop, stop, answered, slowest = world.loop, False, 0, 0.0

            async def reader():
                nonlocal answered, slowest
                while not stop:
                    began = loop.time()
                    reply = await ask(core)
                    assert milvus_pb2.SearchResults.FromString(reply.message).status.code == 0
                    slowest = max(slowest, loop.time() - began)
                    answered += 1
                    await asyncio.sleep(0.05)

            readers = [asyncio.ensure_future(reader()) for _ in range(3)]
            await asyncio.sleep(2)
            server = world.by_address["s0:19530"]
            before = dict(vars(server))
            put(server, fault)
            await asyncio.sleep(6)
            for name in ("state", "delay_s", "catalogue", "released"):
                setattr(server, name, before[name])
            server.script, server.released = {}, set()
            await asyncio.sleep(20)
            stop = True
            await asyncio.gather(*readers)
            assert answered > 3 * 20 * 20
            assert slowest < 0.6
            assert core.view().endpoints[0].state == "up"
            assert all(core.view().endpoints[0].ready.values())

    for seed in range(3):
        run(scenario(), seed)


def test_one_that_was_set_aside_for_slowness_takes_every_call_when_the_others_are_gone():
    """It need not wait for its trial, nor does going on to it from a dead one draw on the budget."""

    async def scenario():
        world = World(*apart(3), breaker=Breaker(open_s=60, max_open_s=60))
        async with world:
            core = world.core()
            await ask(core)
            slow, *others = core.fleet.nodes()
            slow.gate.open("slow: 90 ms where the others take 4 ms", slow=True)
            world.by_address[slow.address].delay_s = 0.09
            for node in others:
                world.by_address[node.address].state = "refused"
            for _ in range(20):
                await asyncio.gather(*(ask(core) for _ in range(10)))

    for seed in range(5):
        run(scenario(), seed)


def test_when_all_is_down_the_error_tells_of_each_and_it_heals_by_itself():
    async def scenario():
        world = World(*apart(3), health=Health(interval_s=0.5))
        async with world:
            core = world.core()
            await ask(core)
            for server in world.by_address.values():
                server.state = "refused"
            for _ in range(5):
                with pytest.raises(Unavailable) as caught:
                    await ask(core, timeout_s=3)
                await asyncio.sleep(0.3)
            for name in ("s0", "s1", "s2"):
                assert f"{name}/{name}" in str(caught.value)
            assert "connection refused" in str(caught.value)
            world.by_address["s2:19530"].state = "up"
            await asyncio.sleep(1.0)  # two probes
            assert (await ask(core)).code == 0

    run(scenario())


def test_a_users_own_mistake_is_answered_once_by_the_server():
    async def scenario():
        world = World(*apart(3))
        async with world:
            core = world.core()
            await core.start()
            for server in world.by_address.values():
                server.script["Search"] = failure(1100, "vector dimension mismatch")
            reply = await ask(core)
            assert milvus_pb2.SearchResults.FromString(reply.message).status.reason == "vector dimension mismatch"
            assert sum(len(s.calls()) for s in world.by_address.values()) == 1
            (finished,) = world.of(CallFinished)
            assert (finished.outcome, finished.cluster) == ("error", "")

    run(scenario())


# Time.


@pytest.mark.parametrize(
    ("method", "message", "limit"), [(INSERT, insert(), 3.0), (CREATE, b"", 7.0), (FLUSH, b"", 7.0), (None, None, 2.0)]
)
def test_each_kind_of_call_has_its_own_time(method, message, limit):
    async def scenario():
        timeouts = Timeouts(read_s=2.0, write_s=3.0, ddl_s=7.0)
        world = World(Server(), timeouts=timeouts, health=Health(interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            server = world.by_address["s0:19530"]
            server.state = "hang"
            server.pings = True
            began = world.loop.time()
            with pytest.raises((DeadlineExceeded, WriteNotConfirmed, Unavailable)):
                await (ask(core) if method is None else ask(core, method=method, message=message))
            assert world.loop.time() - began == pytest.approx(limit, abs=0.001)

    run(scenario())


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_no_time_at_all_is_an_error_at_once(timeout_s):
    async def scenario():
        world = World(Server())
        async with world:
            core = world.core()
            await core.start()
            with pytest.raises(DeadlineExceeded, match="give more than 0"):
                await ask(core, timeout_s=timeout_s)
            assert not world.by_address["s0:19530"].calls()

    run(scenario())


@pytest.mark.parametrize("seed", range(100))
def test_no_call_outlives_its_deadline_whatever_the_servers_do(seed):
    async def scenario():
        rng = random.Random(seed)
        world = World(*apart(rng.randint(1, 4)), seed=seed, health=Health(interval_s=0.5, deep_interval_s=0.5))
        async with world:
            core = world.core()
            loop = world.loop
            stop = False

            async def chaos():
                while not stop:
                    server = rng.choice(list(world.by_address.values()))
                    server.state, server.delay_s, server.script, server.released = "up", 0.004, {}, set()
                    server.catalogue = {"docs": REAL_ID}
                    if rng.random() < 0.7:
                        put(server, rng.choice(list(FAULTS)))
                    await asyncio.sleep(rng.uniform(0.05, 0.6))

            async def reader(number):
                for i in range(15):
                    began, limit = loop.time(), rng.choice([0.05, 0.5, 2.0])
                    message = search("docs", dsl=f"n == {number * 100 + i}") if rng.random() < 0.9 else search("nosuch")
                    task = asyncio.ensure_future(ask(core, message=message, timeout_s=limit))
                    if rng.random() < 0.1:
                        loop.call_later(rng.uniform(0, 0.1), task.cancel)
                    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
                    assert isinstance(outcome, (Reply, CallError, asyncio.CancelledError)), outcome
                    assert loop.time() - began <= limit + 1e-6
                    await asyncio.sleep(rng.uniform(0, 0.1))

            storm = asyncio.ensure_future(chaos())
            await asyncio.gather(*(reader(i) for i in range(4)))
            stop = True
            await storm

    run(scenario(), seed)


# Load.


def test_a_fleet_that_fails_everything_gets_little_more_than_it_is_offered():
    async def scenario():
        world = World(*apart(3), health=Health(interval_s=1000, deep_interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            for server in world.by_address.values():
                server.script["Search"] = failure(503, "channel not available")
            for _ in range(1000):
                with pytest.raises(Unavailable):
                    await ask(core)
                await asyncio.sleep(0.01)
            assert sum(len(s.calls()) for s in world.by_address.values()) <= 1.2 * 1000 + 10

    run(scenario())


def test_a_call_that_goes_well_makes_no_task(monkeypatch):
    async def scenario():
        world = World(*apart(3))
        async with world:
            core = world.core()
            await ask(core)
            made = []
            create = world.loop.create_task
            monkeypatch.setattr(world.loop, "create_task", lambda *a, **k: made.append(a) or create(*a, **k))
            before = len(made)
            for _ in range(5):
                await ask(core)
            ours = [a for a in made[before:] if "_look_after" not in repr(a)]
            assert not ours

    run(scenario())


# Events.


def test_what_happened_to_a_call_is_told():
    async def scenario():
        world = World(*apart(2), health=Health(interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            for server in world.by_address.values():
                server.script["Search"] = lambda r, s=server: s._hits()
            first = world.by_address["s0:19530"]
            first.script["Search"] = failure(2, "unavailable")
            for _ in range(10):
                await ask(core)
            finished = world.of(CallFinished)
            assert [f.outcome for f in finished] == ["ok"] * 10
            retried = [f for f in finished if f.attempts == 2]
            assert retried
            over = world.of(FailedOver)
            assert {(f.from_endpoint, f.to_endpoint) for f in over} == {("s0", "s1")}
            assert len(over) == len(retried)

    run(scenario())


def test_a_cancelled_call_is_told_as_such():
    async def scenario():
        world = World(Server(delay_s=1.0), health=Health(timeout_s=5))
        async with world:
            core = world.core()
            await core.start()
            task = asyncio.ensure_future(ask(core))
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert [f.outcome for f in world.of(CallFinished)] == ["cancelled"]
            assert world.by_address["s0:19530"].cancelled == 1

    run(scenario())


# A file that changes.


def test_a_changed_file_is_taken_over_and_a_wrong_one_is_not():
    async def scenario():
        world = World(*apart(2))
        async with world:
            core = world.core()
            await core.start()
            stamp, wanted = 1, world.config

            def read():
                if isinstance(wanted, Exception):
                    raise wanted
                return wanted

            task = asyncio.ensure_future(core.follow(lambda: stamp, read))
            await asyncio.sleep(3)
            assert not world.of(FleetReconfigured)
            wanted, stamp = Config(clusters=(cluster("s1", "s1"),)), 2
            await until(lambda: bool(world.of(FleetReconfigured)), 3)
            assert [e.name for e in core.view().endpoints] == ["s1"]
            wanted, stamp = ConfigError("line 3: what"), 3
            await until(lambda: bool(world.of(ConfigRejected)), 3)
            assert world.of(ConfigRejected)[0].reason == "line 3: what"
            assert [e.name for e in core.view().endpoints] == ["s1"]
            wanted, stamp = FileNotFoundError("gone"), None
            await until(lambda: len(world.of(ConfigRejected)) == 2, 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(scenario())


def test_refresh_looks_at_everything_now():
    async def scenario():
        world = World(
            Server(catalogue={"a": REAL_ID, "b": REAL_ID + 1}, released={"b"}), health=Health(interval_s=1000)
        )
        async with world:
            view = await world.core().refresh()
            assert view.endpoints[0].ready == {"a": True, "b": False}
            assert view.endpoints[0].server_version == "2.3.5"

    run(scenario())
