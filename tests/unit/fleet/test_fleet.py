"""The step from a call to an attempt, what is learnt from answers, drain, and live reconfiguration."""

import asyncio
import dataclasses
import random

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Call
from haclient.config import Config, Health
from haclient.core import Core
from haclient.errors import ConfigError, Unavailable, WriteRefused
from haclient.events import EndpointChanged, EventBus, FleetReconfigured
from haclient.fleet.breaker import CLOSED, OPEN
from haclient.fleet.model import FleetView
from haclient.milvus.methods import named
from tests.unit.fleet.fleet_fakes import (
    DELETE,
    DESCRIBE,
    FLUSH,
    INSERT,
    QUERY,
    REAL_ID,
    Server,
    World,
    ask,
    cluster,
    delete,
    failure,
    insert,
    query,
    search,
    until,
)
from tests.virtual_time import run

KEY = ("", "docs")
PATIENT = Health(interval_s=1000, timeout_s=9)


def apart(count):
    """Servers of different clusters."""
    return [Server(catalogue={"docs": REAL_ID + i}) for i in range(count)]


def mutation(timestamp):
    from haclient.call import Reply

    return Reply(b"\n\x00" + milvus_pb2.MutationResult(timestamp=timestamp).SerializeToString())


def guarantee(request):
    message = milvus_pb2.SearchRequest.FromString(request.message)
    return message.guarantee_timestamp, message.consistency_level


# Timestamps.

T = 440_000_000_000_777_777


@pytest.mark.parametrize("known", [True, False])
def test_a_timestamp_goes_only_to_the_cluster_that_gave_it_out(known):
    async def scenario():
        world = World(*apart(3))
        async with world:
            core = world.core()
            await core.start()
            if known:
                core.fleet.timestamps.learn("s1", T)
            for _ in range(20):
                await ask(core, message=search(guarantee_timestamp=T, consistency_level=1))
            for i, server in enumerate(world.by_address.values()):
                for request in server.calls():
                    assert guarantee(request) == ((T, 1) if known and i == 1 else (0, 0))
            if known:
                assert len(world.by_address["s1:19530"].calls()) == 20

    run(scenario())


@pytest.mark.parametrize("level", [0, 1, 2])
def test_special_timestamps_are_no_timestamps(level):
    async def scenario():
        world = World(*apart(2))
        async with world:
            core = world.core()
            message = search(guarantee_timestamp=level, consistency_level=3)
            await ask(core, message=message)
            (request,) = [r for s in world.by_address.values() for r in s.calls()]
            assert request.message is message or request.message == message

    run(scenario())


def test_with_one_cluster_nothing_is_rewritten():
    async def scenario():
        world = World(Server(), Server(), clusters=[cluster("c", "s0", "s1")])
        async with world:
            core = world.core()
            message = search(guarantee_timestamp=T)
            await ask(core, message=message)
            (request,) = [r for s in world.by_address.values() for r in s.calls()]
            assert request.message is message

    run(scenario())


# Pins.


def page(**params):
    message = milvus_pb2.QueryRequest(collection_name="docs")
    for key, value in {"iterator": "True", **params}.items():
        message.query_params.add(key=key, value=value)
    return message.SerializeToString()


def test_pages_of_an_iterator_stay_in_one_cluster_and_are_never_hedged():
    async def scenario():
        world = World(*apart(3))
        async with world:
            core = world.core()
            for _ in range(20):
                await ask(core, method=QUERY, message=page())
            seen = [len(s.calls("Query")) for s in world.by_address.values()]
            assert sorted(seen) == [0, 0, 20]
            home = list(world.by_address.values())[seen.index(20)]
            home.delay_s = 0.5
            await ask(core, method=QUERY, message=page())
            assert sorted(len(s.calls("Query")) for s in world.by_address.values()) == [0, 0, 21]

    run(scenario())


def test_a_page_fails_with_its_cluster_rather_than_going_on_elsewhere():
    async def scenario():
        world = World(*apart(2))
        async with world:
            core = world.core()
            await ask(core, method=QUERY, message=page())
            home = next(s for s in world.by_address.values() if s.calls("Query"))
            home.state = "refused"
            with pytest.raises(Unavailable):
                await ask(core, method=QUERY, message=page(), timeout_s=1)
            assert all(not s.calls("Query") for s in world.by_address.values() if s is not home)

    run(scenario())


def test_an_iterator_begun_after_a_drain_has_another_home():
    async def scenario():
        world = World(*apart(2))
        async with world:
            core = world.core()
            await ask(core, method=QUERY, message=page())
            first = core.fleet.homes._names[KEY]
            core.fleet.drain(first)
            await ask(core, method=QUERY, message=page())
            assert core.fleet.homes._names[KEY] != first

    run(scenario())


# What is learnt.


def test_a_key_once_described_makes_deletes_repeatable():
    async def scenario():
        world = World(Server(), Server(), clusters=[cluster("c", "s0", "s1")])
        async with world:
            core = world.core()
            await core.start()
            describe = milvus_pb2.DescribeCollectionRequest(collection_name="docs")
            await ask(core, method=DESCRIBE, message=describe.SerializeToString())
            assert core.fleet.keys[KEY].name == "id"
            for server in world.by_address.values():
                server.state = "up"
            first = world.by_address["s0:19530"]
            first.script["Delete"] = failure(2, "unavailable")
            for _ in range(10):
                assert (await ask(core, method=DELETE, message=delete())).message == b""

    run(scenario())


def test_writes_to_several_clusters_are_refused_before_anything_is_sent():
    async def scenario():
        world = World(*apart(2))
        async with world:
            core = world.core()
            for method, message in ((INSERT, insert()), (DELETE, delete()), (FLUSH, b"")):
                with pytest.raises(WriteRefused, match=r"There are 2 clusters \(s0, s1\)"):
                    await ask(core, method=method, message=message)
            assert not any(s.calls(m.name) for s in world.by_address.values() for m in (INSERT, DELETE, FLUSH))

    run(scenario())


def test_over_quota_a_cluster_rests_and_the_reads_go_to_another():
    async def scenario():
        world = World(*apart(2), health=Health(interval_s=1000, deep_interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            limited, other = world.by_address.values()
            limited.script["Search"] = failure(8, "rate limit exceeded")
            for _ in range(30):
                assert (await ask(core)).code == 0
            assert len(limited.calls()) <= 1
            assert len(other.calls()) >= 29
            assert all(n.gate.state == CLOSED for n in core.fleet.nodes())

    run(scenario())


@pytest.mark.parametrize("state", ["reset", "refused"])
def test_failures_of_traffic_open_the_gate(state):
    async def scenario():
        catalogue = {f"q{i}": REAL_ID + i for i in range(20)}
        servers = Server(catalogue=catalogue), Server(catalogue={n: i + 100 for n, i in catalogue.items()})
        world = World(*servers, health=Health(interval_s=1000, deep_interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            node = next(core.fleet.nodes())
            world.by_address["s0:19530"].state = state
            for i in range(20):
                assert (await ask(core, message=search(f"q{i}"))).code == 0
            assert node.gate.state == OPEN

    run(scenario())


def test_a_users_mistake_and_a_short_timeout_open_nothing():
    async def scenario():
        world = World(Server(), Server())
        async with world:
            core = world.core()
            await core.start()
            for server in world.by_address.values():
                server.script["Search"] = failure(1100, "invalid parameter")
            for _ in range(20):
                await ask(core)
            for server in world.by_address.values():
                server.script.clear()
                server.delay_s = 0.02
            for _ in range(20):
                with pytest.raises(Exception, match="before the deadline"):
                    await ask(core, timeout_s=0.005)
            assert all(n.gate.state == CLOSED for n in core.fleet.nodes())

    run(scenario())


def test_an_unknown_collection_is_told_at_once_although_an_endpoint_is_down():
    """The one that is down is not known to have had it, so the answer of the other one is the truth."""

    async def scenario():
        world = World(*apart(2), health=Health(interval_s=0.5))
        async with world:
            core = world.core()
            await ask(core)
            world.by_address["s0:19530"].state = "refused"
            await until(lambda: next(core.fleet.nodes()).gate.state == OPEN)
            for i in range(30):
                reply = await ask(core, message=search(f"nosuch{i}"))
                assert milvus_pb2.SearchResults.FromString(reply.message).status.code == 100
            assert len(world.by_address["s1:19530"].calls()) <= 32

    run(scenario())


def test_a_collection_lost_here_and_known_there_is_no_users_mistake():
    async def scenario():
        world = World(*apart(2), health=Health(interval_s=1000, deep_interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            await ask(core)
            world.by_address["s1:19530"].catalogue.clear()
            for _ in range(10):
                reply = await ask(core)
                assert milvus_pb2.SearchResults.FromString(reply.message).status.code == 0

    run(scenario())


# Drain.


def test_drain_lets_calls_finish_and_sends_no_more():
    async def scenario():
        world = World(Server(delay_s=0.5), health=Health(interval_s=1000))
        async with world:
            core = world.core()
            await core.start()
            task = asyncio.ensure_future(ask(core))
            await asyncio.sleep(0.1)
            core.fleet.drain("s0")
            assert core.view().endpoints[0].state == "draining"
            assert (await task).code == 0
            assert core.view().endpoints[0].state == "drained"
            with pytest.raises(Unavailable, match="drained"):
                await ask(core)
            core.fleet.drain("s0", drained=False)
            assert (await ask(core)).code == 0
            reasons = [e.reason for e in world.of(EndpointChanged)]
            assert reasons == ["drained by the operator", "put back by the operator"]

    run(scenario())


def test_a_cluster_is_drained_by_its_name():
    async def scenario():
        world = World(*apart(3), clusters=[cluster("a", "s0"), cluster("b", "s2", "s3")])
        async with world:
            core = world.core()
            core.fleet.drain("b")
            assert [n.drained for n in core.fleet.nodes()] == [False, True, True]
            with pytest.raises(ConfigError, match=r"no endpoint or cluster is named 'x'; there are: a/s0, b/s2, b/s3"):
                core.fleet.drain("x")

    run(scenario())


# Reconfiguration.


def test_what_stays_keeps_its_connections_and_what_it_has_learnt():
    async def scenario():
        world = World(*apart(3))
        async with world:
            core = world.core()
            await ask(core)
            before = list(core.fleet.nodes())
            before[1].latency.observe(0.123, 1.0)
            clusters = (cluster("renamed", "s1", priority=2), cluster("new", "s9"))
            core.reconfigure(world.config.model_copy(update={"clusters": clusters}))
            after = list(core.fleet.nodes())
            assert after[0] is before[1]
            assert (after[0].cluster.name, after[0].cluster.priority) == ("renamed", 2)
            assert after[0].latency.value >= 0.123
            (event,) = world.of(FleetReconfigured)
            assert (event.added, sorted(event.removed), event.kept) == (("s9",), ["s0", "s2"], 1)
            await asyncio.sleep(1)
            assert [n.data.closed for n in before] == [True, False, True]
            assert [n.probe.closed for n in before] == [True, False, True]
            assert (await ask(core)).code == 0

    run(scenario())


def test_calls_under_way_on_what_is_removed_finish():
    async def scenario():
        world = World(Server(delay_s=2.0), Server(), health=PATIENT, hedge={"enabled": False})
        async with world:
            core = world.core(world.config.model_copy(update={"clusters": world.config.clusters[:1]}))
            await core.start()
            calls = [asyncio.ensure_future(ask(core)) for _ in range(5)]
            await asyncio.sleep(0.1)
            core.reconfigure(world.config.model_copy(update={"clusters": world.config.clusters[1:]}))
            assert [e.name for e in core.view().endpoints] == ["s1"]
            replies = await asyncio.gather(*calls)
            assert all(r.code == 0 for r in replies)
            assert len(world.by_address["s0:19530"].calls()) == 5
            await until(lambda: all(t.closed for t in world.by_address["s0:19530"].transports))

    run(scenario())


def test_closing_while_removed_endpoints_finish_closes_them_too():
    async def scenario():
        world = World(Server(delay_s=5.0), Server(), health=PATIENT, hedge={"enabled": False})
        async with world:
            core = world.core(world.config.model_copy(update={"clusters": world.config.clusters[:1]}))
            await core.start()
            call = asyncio.ensure_future(ask(core))
            await asyncio.sleep(0.1)
            core.reconfigure(world.config.model_copy(update={"clusters": world.config.clusters[1:]}))
            await asyncio.sleep(0.1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await core.aclose()
            assert all(t.closed for s in world.by_address.values() for t in s.transports)

    run(scenario())


def test_other_credentials_mean_other_connections():
    async def scenario():
        world = World(Server())
        async with world:
            core = world.core()
            await ask(core)
            (old,) = core.fleet.nodes()
            core.reconfigure(world.config.model_copy(update={"clusters": (cluster("s0", "s0", token="t"),)}))
            (new,) = core.fleet.nodes()
            assert new is not old
            await ask(core)
            assert world.by_address["s0:19530"].calls()[-1].metadata["authorization"]

    run(scenario())


def test_a_reload_under_load_fails_no_call():
    async def scenario():
        world = World(*(Server(delay_s=0.01) for _ in range(3)), clusters=[cluster("c", "s0", "s1", "s2")])
        async with world:
            core = world.core()
            await core.start()
            stop = False

            async def reader():
                while not stop:
                    assert (await ask(core)).code == 0

            readers = [asyncio.ensure_future(reader()) for _ in range(5)]
            for i in range(12):
                hosts = [f"s{j}" for j in range(3) if j != i % 3]
                core.reconfigure(world.config.model_copy(update={"clusters": (cluster("c", *hosts),)}))
                await asyncio.sleep(0.2)
            stop = True
            await asyncio.gather(*readers)

    for seed in range(5):
        run(scenario(), seed)


# The view.


def test_the_view_is_frozen_and_true_at_one_moment():
    async def scenario():
        world = World(Server(), Server())
        async with world:
            core = world.core()
            await ask(core)
            view = core.view()
            assert isinstance(view, FleetView)
            for value in (view, view.clusters[0], view.endpoints[0]):
                with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
                    value.name = "x"
            before = str(view)
            node = next(core.fleet.nodes())
            node.gate.open("x")
            node.ready["", "other"] = False
            assert str(view) == before
            assert "other" not in view.endpoints[0].ready
            assert core.view().endpoints[0].state == "down"
            assert str(core.view()).startswith("s0: s0 down")

    run(scenario())


def test_query_message_helper_reads_back():
    assert milvus_pb2.QueryRequest.FromString(query("a")).collection_name == "a"


def test_two_processes_settle_on_the_same_home():
    """And a page that names a collection by its id goes to the cluster that has the id."""
    page = Call(named("Query"), b"", (), 1.0, collection="docs")
    config = Config.load(["http://a:1", "http://b:1", "http://c:1"])
    ids = {"a:1": 1 << 50, "b:1": (1 << 50) + 7, "c:1": (1 << 50) + 9}

    async def settle(seed):
        core = Core(config, lambda *_: SilentTransport(), EventBus(), random.Random(seed), asyncio.get_running_loop())
        for node in core.fleet.nodes():
            node.catalogue = {("", "docs"): ids[node.name]}
        homes = core.fleet.homes
        found = homes.of(page), homes.of(page, ids["b:1"]), homes.of(page, ids["c:1"])
        await core.aclose()
        return found

    first, second = (asyncio.run(settle(seed)) for seed in (1, 2))
    assert first == second
    assert first[1:] == ("b:1", "c:1")


def test_a_page_goes_on_where_it_began_or_not_at_all():
    """Its cluster may be dead and unseen since a restart: then the page waits for it, and goes to no other one."""
    page = Call(named("Query"), b"", (), 1.0, collection="docs")
    config = Config.load(["http://a:1", "http://b:1"])

    async def settle(seen):
        core = Core(config, lambda *_: SilentTransport(), EventBus(), random.Random(1), asyncio.get_running_loop())
        for node in core.fleet.nodes():
            node.catalogue = {("", "docs"): seen[node.name]} if node.name in seen else {}
        try:
            return core.fleet.homes.of(page, 1 << 51)
        finally:
            await core.aclose()

    assert asyncio.run(settle({"a:1": 1 << 50})) == "b:1"
    assert asyncio.run(settle({"b:1": 1 << 50})) == "a:1"
    with pytest.raises(Unavailable, match="Begin the iterator anew"):
        asyncio.run(settle({"a:1": 1 << 50, "b:1": (1 << 50) + 1}))


class SilentTransport:
    async def aclose(self): ...
