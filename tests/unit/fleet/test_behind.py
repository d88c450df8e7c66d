"""Clusters that lag: they are not asked for what they lack, and not blamed for it."""

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Action, Attempt
from haclient.events import ReadinessChanged
from haclient.milvus.methods import named
from haclient.milvus.timestamps import SESSION, TOKEN
from haclient.replication.token import token
from tests.unit.fleet.fleet_fakes import REAL_ID, Server, World, ask, cluster, query, read_call, search, until
from tests.virtual_time import run

DOCS = ("", "docs")


def apart(count):
    """Servers of different clusters."""
    return [Server(catalogue={"docs": REAL_ID + i}) for i in range(count)]


class Lag:
    """What a plan says, as far as the fleet asks it."""

    def __init__(self, behind=()):
        self.behind = frozenset(behind)

    def quick(self, call):
        call.behind = self.behind
        return True

    def message(self, call, name):
        return call.message

    def lag(self, name):
        return "behind: lacks up to 7 writes, 3.0 s"


async def started(world):
    core = world.core()
    await core.start()
    await until(lambda: all(node.found for node in core.fleet.nodes()))
    return core


def test_who_is_behind_is_not_asked_as_long_as_it_is():
    async def scenario():
        first, second = apart(2)
        clusters = [cluster("a", "s0"), cluster("b", "s1", "s2")]
        async with World(first, second, second, clusters=clusters) as world:
            core = await started(world)
            for behind, names in ((["b"], {"a"}), (["a"], {"b"}), ([], {"a", "b"})):
                picked = [core.fleet.balancer.pick(read_call(behind=frozenset(behind))) for _ in range(40)]
                assert {node.cluster.name for node, _ in picked} == names
            assert core.fleet.balancer.pick(read_call(behind=frozenset("ab"))) is None
            assert core.fleet.rotation() == {"a": True, "b": True}
            core.fleet.drain("b")
            assert core.fleet.rotation() == {"a": True, "b": False}

    run(scenario())


def test_neither_retries_nor_hedges_nor_errors_forget_it():
    async def scenario():
        async with World(*apart(2)) as world:
            core = await started(world)
            fleet = core.fleet
            call = read_call(behind=frozenset(["s1"]), plan=Lag(["s1"]))
            call.attempts.append(Attempt("s0", "s0", 0.0))
            assert not fleet.untried(call)
            assert fleet.left_out(call) == "s1/s1 (up: behind: lacks up to 7 writes, 3.0 s)"
            assert fleet.send(call, True, lambda attempt: None) is None
            call.plan = Lag()
            flight = fleet.send(call, True, lambda attempt: None)
            assert flight is not None, "it has caught up since"
            assert flight.attempt.cluster == "s1"
            flight.cancel()

    run(scenario())


@pytest.mark.parametrize("count", [1, 2])
def test_a_token_from_before_reaches_no_server_where_nothing_is_replicated(count):
    async def scenario():
        async with World(*apart(count)) as world:
            core = await started(world)
            inner = milvus_pb2.SearchRequest(collection_name="docs", guarantee_timestamp=token(5))
            hybrid = milvus_pb2.HybridSearchRequest(collection_name="docs", requests=[inner])
            for name, message in (
                ("Query", query(guarantee_timestamp=token(5), consistency_level=SESSION)),
                ("Search", search(guarantee_timestamp=token(5), use_default_consistency=True)),
                ("HybridSearch", hybrid.SerializeToString()),
            ):
                await ask(core, method=named(name), message=message)
            seen = [one for server in world.by_address.values() for one in server.requests if not one.probe]
            kinds = {"Query": milvus_pb2.QueryRequest, "Search": milvus_pb2.SearchRequest}
            for request in seen:
                if request.name == "HybridSearch":
                    parts = milvus_pb2.HybridSearchRequest.FromString(request.message).requests
                else:
                    parts = [kinds[request.name].FromString(request.message)]
                assert all(part.guarantee_timestamp < TOKEN for part in parts)
                assert all(part.consistency_level == 0 for part in parts), "Strong"
            assert len(seen) == 3

    run(scenario())


def test_a_collection_that_is_still_to_come_convicts_nobody():
    """The read goes on to a cluster that has it, and the one that has not stays in use."""

    async def scenario():
        late = Server(catalogue={})
        async with World(late, Server(), hedge={"enabled": False}) as world:
            core = await started(world)
            core.fleet.doubts.lagging = lambda name, key: name == "s0"
            while not late.calls():
                assert (await ask(core)).code == 0
            assert not world.of(ReadinessChanged)
            core.fleet.doubts.lagging = lambda name, key: False
            await until(lambda: bool(world.of(ReadinessChanged)))

    run(scenario())


def test_a_collection_that_is_still_to_go_convicts_nobody():
    """It was dropped; that a cluster that lags still has it is no sign that the others have lost it."""

    async def scenario():
        servers = [Server(catalogue={"docs": REAL_ID + i}) for i in range(2)]
        async with World(*servers, hedge={"enabled": False}) as world:
            core = await started(world)
            first = next(core.fleet.nodes())
            assert core.fleet.doubts.lost(first, DOCS)
            core.fleet.doubts.lagging = lambda name, key: name == "s1"
            assert not core.fleet.doubts.lost(first, DOCS)

    run(scenario())


def test_empty_answers_of_who_lags_prove_nothing():
    async def scenario():
        async with World(*apart(2)) as world:
            core = await started(world)
            fleet, (empty, full) = core.fleet, list(core.fleet.nodes())
            full.rows[DOCS] = True
            call = read_call()
            call.attempts = [Attempt("s0", "s0", 0.0, action=Action.OK), Attempt("s1", "s1", 0.0, action=Action.OK)]
            for lags in ("s0", "s1"):
                fleet.doubts.lagging = lambda name, key, lags=lags: name == lags
                assert not fleet.doubts.emptied(empty, DOCS)
                fleet.doubts.contradicted(call, call.attempts[0])
                assert empty.ready.get(DOCS) is not False
            fleet.doubts.lagging = lambda name, key: False
            assert fleet.doubts.emptied(empty, DOCS)
            fleet.doubts.contradicted(call, call.attempts[0])
            assert empty.ready[DOCS] is False

    run(scenario())


def test_a_cluster_that_is_not_whole_is_nobodys_home():
    async def scenario():
        async with World(*apart(2)) as world:
            core = await started(world)
            home = core.fleet.homes.of(read_call())
            other = ({"s0", "s1"} - {home}).pop()
            assert core.fleet.homes.of(read_call(behind=frozenset([home]))) == other
            assert core.fleet.homes.of(read_call(behind=frozenset(["s0", "s1"]))) is None

    run(scenario())


def test_the_cost_of_nobody_being_behind_is_one_look():
    """Picking makes no new tuples then."""

    async def scenario():
        async with World(*apart(2)) as world:
            core = await started(world)
            balancer = core.fleet.balancer
            balancer.pick(read_call())
            tiers = balancer._tiers(DOCS, world.loop.time())
            seen = []
            balancer._choose = lambda tier, now: seen.append(tier) or tier[0]
            balancer.pick(read_call())
            assert seen[0] is tiers[0]

    run(scenario())
