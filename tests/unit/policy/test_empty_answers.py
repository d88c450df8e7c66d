"""An empty answer where answers are hardly ever empty gets a second opinion."""

import asyncio

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.call import Action, Reply
from haclient.config import Hedge
from haclient.milvus.methods import named
from haclient.milvus.results import found_nothing
from haclient.policy.budget import Budget
from haclient.policy.hedge import Hedging
from tests.unit.fleet.fleet_fakes import Server, World, ask, query, read_call
from tests.unit.policy.policy_fakes import FakeFleet
from tests.virtual_time import run

OK = Action.OK
SEARCH, HYBRID, QUERY = named("Search"), named("HybridSearch"), named("Query")


def hits(*ids):
    reply = milvus_pb2.SearchResults(status=common_pb2.Status(reason="" if ids else "search result is empty"))
    reply.results.num_queries = 1
    reply.results.topks.append(len(ids))
    if ids and isinstance(ids[0], str):
        reply.results.ids.str_id.data.extend(ids)
    elif ids:
        reply.results.ids.int_id.data.extend(ids)
    return reply.SerializeToString()


@pytest.mark.parametrize("method", [SEARCH, HYBRID])
def test_a_search_without_hits_is_recognised(method):
    assert found_nothing(method, hits())
    assert not found_nothing(method, hits(7))
    assert not found_nothing(method, hits("a"))
    assert not found_nothing(method, hits(*range(1000)))


def test_what_2_3_5_answers_for_nothing_is_recognised():
    recorded = "0a18121673656172636820726573756c7420697320656d707479120508013201001a04676f6f64"
    assert found_nothing(SEARCH, bytes.fromhex(recorded))


def test_lite_marks_nothing_with_an_empty_list_of_ids():
    reply = milvus_pb2.SearchResults()
    reply.results.ids.int_id.SetInParent()
    assert found_nothing(SEARCH, reply.SerializeToString())


def test_other_methods_and_garbage_are_never_empty_searches():
    assert not found_nothing(QUERY, b"")
    assert not found_nothing(SEARCH, b"\xff\xff\xff")


def race(*script, emptiness=0.0, budget=None, **settings):
    """One try over replies (delay, ids or an action); returns (attempt, fleet, time it took, digest)."""

    async def scenario():
        fleet = FakeFleet(*((delay, OK if isinstance(what, tuple) else what) for delay, what in script))
        send, answers = fleet.send, [what for _, what in script]

        def answering(call, hedge, done):
            what = answers[len(fleet.flights)] if len(fleet.flights) < len(answers) else None

            def then(attempt):
                if isinstance(what, tuple):
                    attempt.reply = Reply(hits(*what))
                done(attempt)

            return send(call, hedge, then)

        fleet.send = answering
        hedging = Hedging(
            fleet.send, Hedge(initial_delay_s=0.05, **settings), budget or Budget(1, 10), fleet.loop, fleet.bus
        )
        call = read_call()
        digest = hedging.digest(call)
        digest.emptiness = emptiness
        attempt = await hedging(call)
        assert not fleet.under_way
        assert not len(hedging.alarms)
        return attempt, fleet, fleet.loop.time(), digest

    return run(scenario())


def test_the_one_that_found_something_is_believed():
    attempt, fleet, took, digest = race((0.01, ()), (0.01, (1, 2)))
    assert attempt is fleet.flights[1].attempt
    assert took == pytest.approx(0.02)
    doubted = fleet.flights[0].attempt
    assert doubted.action is Action.FAILOVER_COLLECTION
    assert doubted.reason == "it found nothing, where another endpoint has found something"
    assert digest.emptiness == 0.0


def test_two_that_found_nothing_are_believed():
    attempt, fleet, took, digest = race((0.01, ()), (0.01, ()))
    assert attempt.action is OK
    assert len(fleet.flights) == 2
    assert took == pytest.approx(0.02)
    assert digest.emptiness == pytest.approx(0.1)


def test_nothing_is_doubted_where_answers_are_often_empty():
    _, fleet, _, _ = race((0.01, ()), (0.01, (1,)), emptiness=0.2)
    assert len(fleet.flights) == 1


def test_nothing_is_doubted_before_it_is_known_what_is_usual():
    async def scenario():
        fleet = FakeFleet()
        return Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus).digest(read_call()).emptiness

    assert run(scenario()) == 1.0


def test_a_second_opinion_that_fails_changes_nothing():
    attempt, fleet, _, _ = race((0.01, ()), (0.01, Action.FAILOVER))
    assert attempt is fleet.flights[0].attempt
    assert attempt.action is OK


def test_a_second_opinion_that_takes_long_is_not_waited_for():
    attempt, fleet, took, _ = race((0.01, ()), (5.0, (1,)))
    assert attempt is fleet.flights[0].attempt
    assert took == pytest.approx(0.01 + 2 * 0.05)
    assert fleet.endings() == ["landed", "cancelled"]


def test_one_that_is_out_already_gives_the_second_opinion():
    attempt, fleet, _, _ = race((0.06, ()), (0.02, (1,)))
    assert attempt is fleet.flights[1].attempt
    assert len(fleet.flights) == 2


@pytest.mark.parametrize("settings", [{"budget": Budget(0, 0)}, {"enabled": False}])
def test_without_a_budget_or_hedging_the_first_answer_counts(settings):
    attempt, fleet, _, _ = race((0.01, ()), (0.01, (1,)), **settings)
    assert attempt is fleet.flights[0].attempt
    assert len(fleet.flights) == 1


def test_a_server_that_answers_with_nothing_while_it_lets_go_of_a_collection_misleads_nobody():
    async def scenario():
        async with World(Server(), Server()) as world:
            core = world.core()
            for _ in range(60):
                await ask(core)
            world.by_address["s0:19530"].keys = ()
            for _ in range(20):
                assert not found_nothing(SEARCH, (await ask(core)).message)
                await asyncio.sleep(0.05)
            assert (await ask(core, method=QUERY, message=query())).code == 0

    run(scenario())
