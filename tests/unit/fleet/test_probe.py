"""Looks at endpoints: what each step can find, whose fault it is, and the way back."""

import asyncio

import httpx
import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Reply
from haclient.config import Breaker, Canary, Health
from haclient.errors import AttemptTimeout, ConnectionLost
from haclient.events import DataAlarm, EndpointChanged, ReadinessChanged
from haclient.fleet.breaker import CLOSED, HALF_OPEN, OPEN
from tests.unit.fleet.fleet_fakes import Server, World, ask, cluster, failure, until
from tests.virtual_time import run

KEY = ("", "docs")
QUICK = {"interval_s": 0.5, "deep_interval_s": 1.0, "timeout_s": 0.3}


def watched(*servers, **health):
    world = World(*servers, health=Health(**{**QUIET, **QUICK, **health}))
    core = world.core()
    return world, core, list(core.fleet.nodes())


QUIET = {"slow_start_s": 0.0, "failback_dwell_s": 0.0}


async def used(core):
    """Start, and let the application ask for the collection so that probes read it."""
    await core.start()
    await ask(core)


STEPS = {
    "nobody listens": ("state", "refused"),
    "it hangs": ("state", "hang"),
    "it resets": ("state", "reset"),
    "Connect fails": ("Connect", failure(1, "not ready")),
    "Connect is cut off": ("Connect", ConnectionLost("reset", sent=True)),
    "Connect is slow": ("Connect", AttemptTimeout("slow", sent=True)),
    "the listing fails": ("ShowCollections", failure(2, "unavailable")),
    "the read fails": ("Query", failure(503, "channel not available")),
    "another service answers": ("Connect", Reply(b"", 12, "unknown service milvus.proto.milvus.MilvusService")),
    "something else answers": ("Connect", Reply(b"\n\x05abc")),
    "the proxy is starting": ("Connect", Reply(b"", 2, "internal: Milvus Proxy is not ready yet. please wait")),
}


@pytest.mark.parametrize("step", STEPS)
def test_every_step_can_take_an_endpoint_out_and_it_comes_back(step):
    what, how = STEPS[step]

    async def scenario():
        world, core, (node, _other) = watched(Server(), Server(), identity_interval_s=0.4)
        async with world:
            await used(core)
            server = world.by_address["s0:19530"]
            if what == "state":
                server.state = how
            else:
                server.script[what] = how
            await until(lambda: node.gate.state == OPEN, 5)
            assert node.last_error
            assert node.gate.reason.startswith("probe: ")
            assert node.gate.state == OPEN
            for _ in range(20):
                await ask(core)
            server.state = "up"
            server.script.clear()
            await until(lambda: node.gate.state == CLOSED, 40)
            assert node.probe_failures == 0
            states = [(e.before, e.after) for e in world.of(EndpointChanged) if e.endpoint == "s0"]
            assert states[0] == ("up", "down")
            assert states[-1][1] == "up"

    run(scenario())


def test_a_refused_connection_is_certain_at_once_other_failures_need_a_second_one():
    async def scenario():
        world, core, (certain, other) = watched(Server(), Server(), down_after=3)
        async with world:
            await used(core)
            world.by_address["s0:19530"].state = "refused"
            world.by_address["s1:19530"].state = "hang"
            await until(lambda: certain.gate.state == OPEN, 1)
            assert certain.probe_failures == 1
            await until(lambda: other.gate.state == OPEN, 5)
            assert other.probe_failures == 3

    run(scenario())


@pytest.mark.parametrize(
    "refusal",
    [
        Reply(b"", 16, "auth check failure, please check username and password are correct"),
        Reply(b"", 7, "PrivilegeGroup: not permitted"),
        failure(800, "database not found[database=nope]"),
    ],
)
def test_wrong_credentials_and_databases_take_no_endpoint_out(refusal):
    async def scenario():
        server = Server(script=dict.fromkeys(("Connect", "ShowCollections", "DescribeCollection", "Query"), refusal))
        world, core, (node,) = watched(server)
        async with world:
            await used(core)
            await asyncio.sleep(5)
            assert node.gate.state == CLOSED
            assert node.probe_failures == 0
            assert core.fleet.view().endpoints[0].state == "up"
            assert core.fleet.view().endpoints[0].last_error

    run(scenario())


def test_a_shallow_success_does_not_reopen_what_traffic_has_shut():
    """Connect answers all the while; only a read of the collection in use brings the endpoint back."""

    async def scenario():
        world, core, (node, _) = watched(Server(), Server())
        async with world:
            await used(core)
            server = world.by_address["s0:19530"]
            server.script["Query"] = server.script["Search"] = failure(2, "unavailable")
            await until(lambda: node.gate.state == OPEN, 10)
            await asyncio.sleep(20)
            assert node.gate.state == OPEN
            assert node.heard_at > world.loop.time() - 3
            server.script.clear()
            await until(lambda: node.gate.state == CLOSED, 40)

    run(scenario())


def test_the_probe_itself_is_the_guinea_pig():
    """While an endpoint is out or on trial with one permit, users' calls go elsewhere."""

    async def scenario():
        world, core, (node, _) = watched(Server(), Server())
        async with world:
            await used(core)
            server = world.by_address["s0:19530"]
            server.state = "refused"
            await until(lambda: node.gate.state == OPEN, 10)
            before = len(server.calls())
            for _ in range(100):
                await ask(core)
                await asyncio.sleep(0.02)
            assert len(server.calls()) == before
            server.state = "up"
            await until(lambda: node.gate.state == HALF_OPEN, 10)
            await until(lambda: node.gate.state == CLOSED, 10)

    run(scenario())


def test_a_failed_trial_waits_longer_each_time():
    async def scenario():
        world = World(Server(), Server(), health=Health(**QUIET, **QUICK), breaker=Breaker(open_s=0.5, max_open_s=8.0))
        async with world:
            core = world.core()
            await used(core)
            node = next(core.fleet.nodes())
            waits = []
            for _ in range(4):
                node.gate.open("flapping")
                waits.append(round(node.gate.retry_at - world.loop.time(), 3))
                await until(lambda: node.gate.state == CLOSED, 30)
            assert waits == [0.5, 1.0, 2.0, 4.0]

    run(scenario())


# Collections.


def test_an_unloaded_collection_is_found_by_the_probe_and_the_endpoint_stays_up():
    async def scenario():
        world, core, (node, _) = watched(Server(), Server())
        async with world:
            await used(core)
            await until(lambda: node.ready.get(KEY) is True, 5)
            server = world.by_address["s0:19530"]
            server.released.add("docs")
            await until(lambda: node.ready.get(KEY) is False, 5)
            assert node.gate.state == CLOSED
            assert core.fleet.view().endpoints[0].ready == {"docs": False}
            seen = len(server.calls())
            for _ in range(50):
                await ask(core)
            assert len(server.calls()) == seen
            server.released.clear()
            await until(lambda: node.ready.get(KEY) is True, 5)
            await asyncio.gather(*(ask(core) for _ in range(10)))
            assert len(server.calls()) > seen
            changes = [(e.ready, e.collection) for e in world.of(ReadinessChanged) if e.endpoint == "s0"]
            assert changes[-2:] == [(False, "docs"), (True, "docs")]

    run(scenario())


def test_traffic_finds_it_first_and_the_call_is_answered_elsewhere():
    async def scenario():
        world, core, nodes = watched(Server(), Server(), interval_s=1000.0, deep_interval_s=1000.0)
        async with world:
            await used(core)
            world.by_address["s0:19530"].released.add("docs")
            for _ in range(20):
                assert (await ask(core)).code == 0
            assert nodes[0].ready[KEY] is False
            assert len(world.by_address["s0:19530"].calls()) <= 12

    run(scenario())


def test_it_is_loaded_again_only_if_that_is_configured():
    async def scenario(load):
        world, core, (node, _) = watched(Server(), Server(), load_collections=load)
        async with world:
            await used(core)
            server = world.by_address["s0:19530"]
            server.released.add("docs")
            await until(lambda: node.ready.get(KEY) is False, 5)
            await asyncio.sleep(5)
            return [r.name for r in server.requests].count("LoadCollection"), node.ready[KEY]

    assert run(scenario(True)) == (1, True)
    assert run(scenario(False)) == (0, False)


def test_a_load_that_does_not_help_is_not_repeated_at_every_look():
    async def scenario():
        world, core, _ = watched(Server(), Server(), load_collections=True)
        async with world:
            await used(core)
            server = world.by_address["s0:19530"]
            server.released.add("docs")
            server.script["LoadCollection"] = Reply(b"")
            await asyncio.sleep(25)
            assert 2 <= [r.name for r in server.requests].count("LoadCollection") <= 3

    run(scenario())


def test_a_lost_collection_is_unready_there_but_a_users_mistake_is_an_answer():
    async def scenario():
        world, core, (node, other) = watched(Server(), Server())
        async with world:
            await used(core)
            world.by_address["s0:19530"].catalogue.clear()
            await until(lambda: node.ready.get(KEY) is False, 5)
            assert other.ready.get(KEY) is True
            assert (await ask(core)).message.startswith(b"\x12")
            from tests.unit.fleet.fleet_fakes import search

            reply = await ask(core, message=search("nosuch"))
            assert milvus_pb2.SearchResults.FromString(reply.message).status.code == 100
            assert node.gate.state == other.gate.state == CLOSED
            sent = sum(len(s.calls()) for s in world.by_address.values())
            for _ in range(10):
                await ask(core, message=search("nosuch"))
            assert sum(len(s.calls()) for s in world.by_address.values()) <= sent + 12

    run(scenario())


def test_a_collection_that_appears_later_is_served():
    async def scenario():
        from tests.unit.fleet.fleet_fakes import REAL_ID, search

        world, core, _ = watched(Server(), Server())
        async with world:
            await used(core)
            await ask(core, message=search("late"))
            for server in world.by_address.values():
                server.catalogue["late"] = REAL_ID + 5
            reply = await ask(core, message=search("late"))
            assert milvus_pb2.SearchResults.FromString(reply.message).status.code == 0

    run(scenario())


def test_one_look_reads_a_few_collections_and_the_rest_in_the_next_looks():
    async def scenario():
        from tests.unit.fleet.fleet_fakes import REAL_ID, search

        names = [f"c{i}" for i in range(20)]
        world, core, (node,) = watched(Server(catalogue={n: REAL_ID + i for i, n in enumerate(names)}))
        async with world:
            await core.start()
            for name in names:
                await ask(core, message=search(name))
            server = world.by_address["s0:19530"]
            server.requests.clear()
            await until(lambda: all(node.ready.get(("", n)) for n in names), 20)
            await asyncio.sleep(10)
            looks, reads = 0, 0
            for request in server.requests:
                if request.name == "Connect":
                    looks, reads = looks + 1, 0
                elif request.name == "Query":
                    reads += 1
                assert reads <= 8
            read = {
                milvus_pb2.QueryRequest.FromString(r.message).collection_name
                for r in server.requests
                if r.name == "Query"
            }
            assert read == set(names)

    run(scenario())


# Canaries.

BY_FILTER = Canary(collection="docs", filter="id in [1, 2, 3]", expect=(1, 2, 3))
BY_VECTOR = Canary(collection="docs", vector=(0.5, 0.5), anns_field="v", expect=(1, 2, 3))


@pytest.mark.parametrize("canary", [BY_FILTER, BY_VECTOR])
def test_wrong_data_takes_the_endpoint_out_for_that_collection_and_raises_the_alarm(canary):
    async def scenario():
        world, core, (node, _) = watched(Server(), Server(), canary=(canary,))
        async with world:
            await used(core)
            server = world.by_address["s0:19530"]
            await until(lambda: node.ready.get(KEY) is True, 5)
            server.keys = (7, 8, 9)
            await until(lambda: node.ready.get(KEY) is False, 5)
            (alarm,) = world.of(DataAlarm)
            assert (alarm.endpoint, alarm.collection) == ("s0", "docs")
            assert "[1, 2, 3] should be found and is not (found: [7, 8, 9])" in alarm.reason
            seen = len(server.calls())
            for _ in range(30):
                await ask(core)
            assert len(server.calls()) == seen
            await asyncio.sleep(10)
            assert len(world.of(DataAlarm)) == 1
            server.keys = (3, 2, 1)
            await until(lambda: node.ready.get(KEY) is True, 5)

    run(scenario())


def test_a_canary_is_asked_even_if_nobody_uses_its_collection():
    async def scenario():
        world, core, (node,) = watched(Server(), canary=(BY_FILTER,))
        async with world:
            await core.start()
            await until(lambda: node.ready.get(KEY) is True, 5)

    run(scenario())


def test_an_answer_from_traffic_does_not_override_the_canary():
    """The server answers reads all right; what it answers is wrong."""

    async def scenario():
        world, core, (node,) = watched(Server(keys=(7,)), canary=(BY_FILTER,))
        async with world:
            await core.start()
            await until(lambda: node.ready.get(KEY) is False, 5)
            await ask(core)  # the only one there is: panic mode
            assert node.ready.get(KEY) is False

    run(scenario())


def test_no_hedge_goes_to_where_the_data_is_wrong():
    """Any success wins a race, so the wrong answer must not take part in it."""

    async def scenario():
        world, core, (node, _) = watched(Server(), Server(), canary=(BY_FILTER,), timeout_s=5.0)
        async with world:
            await used(core)
            wrong, right = world.by_address["s0:19530"], world.by_address["s1:19530"]
            wrong.keys = (7, 8, 9)
            await until(lambda: node.ready.get(KEY) is False, 5)
            right.delay_s = 1.0
            seen = len(wrong.calls())
            reply = await ask(core)
            assert list(milvus_pb2.SearchResults.FromString(reply.message).results.ids.int_id.data) == [1, 2, 3]
            assert len(wrong.calls()) == seen

    run(scenario())


# HTTP.


class Health200(httpx.AsyncBaseTransport):
    def __init__(self):
        self.status, self.urls, self.error = 200, [], None

    async def handle_async_request(self, request):
        self.urls.append(str(request.url))
        if self.error:
            raise self.error
        return httpx.Response(self.status, text="querynode is abnormal")


@pytest.mark.parametrize("how", [503, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
def test_healthz_is_asked_first(how, monkeypatch):
    transport = Health200()
    original = httpx.AsyncClient
    monkeypatch.setattr(httpx, "AsyncClient", lambda: original(transport=transport))

    async def scenario():
        config = [cluster("a", "s0", healthz_url="http://{host}:9091/healthz"), cluster("b", "s1")]
        world = World(Server(), Server(), clusters=config, health=Health(**QUIET, **QUICK))
        async with world:
            core = world.core()
            await core.start()
            node = next(core.fleet.nodes())
            assert transport.urls[0] == "http://s0:9091/healthz"
            if isinstance(how, int):
                transport.status = how
            else:
                transport.error = how
            await until(lambda: node.gate.state == OPEN, 5)
            expected = "HTTP 503: querynode is abnormal" if isinstance(how, int) else type(how).__name__
            assert expected in node.last_error
            transport.status, transport.error = 200, None
            await until(lambda: node.gate.state == CLOSED, 30)

    run(scenario())


# Slowness seen by probes.


def test_a_server_slow_for_several_looks_is_set_aside_and_returns_when_it_is_fast_again():
    async def scenario():
        world, core, nodes = watched(Server(), Server(), Server(), timeout_s=1.0)
        async with world:
            await used(core)
            await until(lambda: all(n.probe_latency.seen for n in nodes), 5)
            server = world.by_address["s2:19530"]
            server.delay_s = 0.3
            await until(lambda: nodes[2].gate.state == OPEN, 10)
            assert nodes[2].gate.reason.startswith("slow: 300 ms where the others take")
            await asyncio.sleep(5)
            assert nodes[2].gate.state == OPEN
            server.delay_s = 0.001
            await until(lambda: nodes[2].gate.state == CLOSED, 40)
            assert nodes[0].gate.state == nodes[1].gate.state == CLOSED

    run(scenario())


def test_one_slow_look_says_nothing():
    async def scenario():
        world, core, nodes = watched(Server(), Server(), timeout_s=1.0)
        async with world:
            await used(core)
            await until(lambda: all(n.probe_latency.seen for n in nodes), 5)
            server = world.by_address["s1:19530"]
            reads = 0

            def sometimes(_):
                nonlocal reads
                reads += 1
                server.delay_s = 0.3 if reads % 2 else 0.001
                return server._rows()

            server.script["Query"] = sometimes
            await asyncio.sleep(20)
            assert nodes[1].gate.state == CLOSED
            assert reads > 4

    run(scenario())


def test_credentials_of_the_cluster_go_with_probes_and_calls():
    async def scenario():
        world = World(Server(), clusters=[cluster("a", "s0", user="u", password="p")])
        async with world:
            core = world.core()
            await used(core)
            assert {r.metadata.get("authorization") for r in world.by_address["s0:19530"].requests} == {"dTpw"}

    run(scenario())


def test_probes_have_a_transport_of_their_own():
    async def scenario():
        world, core, (node,) = watched(Server())
        async with world:
            await used(core)
            assert node.data is not node.probe
            assert {r.name for r in world.by_address["s0:19530"].requests if not r.probe} == {"Search"}

    run(scenario())


def test_a_collection_that_lost_its_rows_on_one_endpoint_is_read_elsewhere():
    """A server with an emptied data directory, or one letting go of the collection, answers with success."""

    async def scenario():
        world, core, (first, second) = watched(Server(), Server())
        async with world:
            await used(core)
            await until(lambda: second.rows.get(KEY) and first.rows.get(KEY), 10)
            world.by_address["s0:19530"].keys = ()
            await until(lambda: first.ready.get(KEY) is False, 10)
            before = len(world.by_address["s0:19530"].calls())
            for _ in range(20):
                await ask(core)
            assert len(world.by_address["s0:19530"].calls()) == before
            world.by_address["s0:19530"].keys = (1, 2, 3)
            await until(lambda: first.ready.get(KEY) is True, 10)

    run(scenario())


def test_a_collection_that_is_empty_everywhere_is_served_everywhere():
    async def scenario():
        world, core, nodes = watched(Server(keys=()), Server(keys=()))
        async with world:
            await used(core)
            await asyncio.sleep(10)
            assert not any(node.ready.get(KEY) is False for node in nodes)

    run(scenario())
