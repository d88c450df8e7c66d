"""One try: the race between an attempt and the hedges that follow it."""

import asyncio

import pytest

from haclient.call import Action, Kind
from haclient.config import Hedge
from haclient.policy import hedge as module
from haclient.policy.budget import Budget
from haclient.policy.hedge import Hedging
from tests.unit.fleet.fleet_fakes import read_call, write_call
from tests.unit.policy.policy_fakes import FakeFleet
from tests.virtual_time import run

OK, FAILOVER, FAIL_FAST = Action.OK, Action.FAILOVER, Action.FAIL_FAST


def race(*script, call=None, budget=None, then=None, **settings):
    """Run one try over a scripted fleet; returns (attempt, fleet, loop time at its end)."""

    async def scenario():
        fleet = FakeFleet(*script)
        given = {"initial_delay_s": 0.05, **settings}
        hedging = Hedging(fleet.send, Hedge(**given), budget or Budget(1, 10), fleet.loop, fleet.bus)
        attempt = await hedging(call or read_call())
        ended = fleet.loop.time()
        assert not fleet.under_way, "an attempt was left"
        assert not len(hedging.alarms), "an alarm was left"
        return attempt, fleet, ended

    return run(scenario())


def test_a_quick_answer_is_not_hedged():
    attempt, fleet, ended = race((0.01, OK))
    assert attempt.action is OK
    assert ended == pytest.approx(0.01)
    assert len(fleet.flights) == 1


def test_a_slow_one_is_hedged_after_the_delay_and_the_first_success_wins():
    attempt, fleet, ended = race((10, OK), (0.01, OK))
    assert attempt is fleet.flights[1].attempt
    assert attempt.hedge
    assert fleet.starts() == [0.0, 0.05]
    assert ended == pytest.approx(0.06)
    assert fleet.endings() == ["lost", "landed"]


def test_the_first_attempt_may_still_win():
    attempt, fleet, _ = race((0.06, OK), (10, OK))
    assert attempt is fleet.flights[0].attempt
    assert fleet.endings() == ["landed", "cancelled"], "a hedge that came too late shows nothing about its endpoint"


def test_hedges_follow_at_doubling_distance_up_to_the_limit():
    _, fleet, _ = race((9, OK), (9, OK), (9, OK), (9, OK), max_hedges=2)
    assert fleet.starts() == [0.0, 0.05, 0.15]
    _, fleet, _ = race((9, OK), (9, OK), (9, OK), (9, OK), max_hedges=3)
    assert fleet.starts() == [0.0, 0.05, 0.15, 0.35]


def test_any_success_beats_any_failure():
    """A fast error of the hedge does not win over the slow success of the first."""
    attempt, _, ended = race((0.5, OK), (0.01, FAILOVER), (0.01, FAILOVER))
    assert attempt.action is OK
    assert ended == pytest.approx(0.5)


def test_a_users_mistake_does_not_win_over_a_success_either():
    attempt, fleet, _ = race((0.2, OK), (0.01, FAIL_FAST))
    assert attempt.action is OK
    assert len(fleet.flights) == 2


def test_a_failure_while_another_is_out_starts_a_third_at_once():
    attempt, fleet, ended = race((9, OK), (0.01, FAILOVER), (0.01, OK))
    assert fleet.starts() == [0.0, 0.05, 0.06]
    assert attempt is fleet.flights[2].attempt
    assert ended == pytest.approx(0.07)


def test_a_request_that_may_have_killed_a_server_is_given_to_no_third():
    attempt, fleet, _ = race((0.06, "died"), (0.05, "died"), (0.01, OK))
    assert len(fleet.flights) == 2
    assert attempt is fleet.flights[1].attempt


def test_a_death_stops_the_hedges_by_time_as_well():
    """The hedge of a request whose first connection died may go on, but no other joins it."""
    attempt, fleet, _ = race((0.06, "died"), (5, OK), (0.01, OK))
    assert len(fleet.flights) == 2
    assert attempt.action is OK


def test_when_all_fail_the_last_failure_decides():
    attempt, fleet, _ = race((0.08, FAILOVER), (0.02, FAILOVER), (0.02, FAILOVER))
    assert attempt is fleet.flights[2].attempt
    assert attempt.action is FAILOVER
    assert fleet.endings() == ["landed"] * 3


def test_a_failure_alone_is_for_the_retry_layer():
    attempt, fleet, _ = race((0.01, FAILOVER), (0.01, OK))
    assert attempt.action is FAILOVER
    assert len(fleet.flights) == 1


def test_nowhere_to_send_it():
    attempt, fleet, _ = race(None)
    assert attempt is None
    assert not fleet.flights


def test_nowhere_to_hedge_to_costs_no_budget():
    budget = Budget(0, 5)
    attempt, _, _ = race((0.2, OK), None, budget=budget)
    assert attempt.action is OK
    assert budget.extras == 0


def test_writes_and_reads_that_must_not_be_copied_are_not_hedged():
    for call in (write_call(), write_call(idempotent=True), read_call(hedgeable=False)):
        _, fleet, _ = race((0.5, OK), (0.01, OK), call=call)
        assert len(fleet.flights) == 1


def test_hedging_can_be_switched_off():
    _, fleet, _ = race((0.5, OK), (0.01, OK), enabled=False)
    assert len(fleet.flights) == 1


def test_no_budget_no_hedge_and_the_listener_hears_why():
    _, fleet, _ = race((0.5, OK), (0.01, OK), budget=Budget(0, 0))
    assert len(fleet.flights) == 1
    assert [e.wanted for e in fleet.of("BudgetExhausted")] == ["hedge"]


def test_a_slow_attempt_is_looked_into():
    _, fleet, _ = race((0.2, OK), None)
    assert fleet.suspected == [fleet.flights[0]]
    _, fleet, _ = race((0.2, OK), None, call=write_call())
    assert fleet.suspected == [fleet.flights[0]]


def test_the_hedge_is_announced():
    _, fleet, _ = race((0.5, OK), (0.01, OK))
    (event,) = fleet.of("HedgeStarted")
    assert (event.method, event.endpoint, event.delay_s) == ("Search", "e1", 0.05)


# Deadline and cancellation.


def test_the_deadline_ends_everything():
    attempt, fleet, ended = race((0, "hang"), (0, "hang"), (0, "hang"), call=read_call(0.12))
    assert ended == pytest.approx(0.12)
    assert attempt.action is FAILOVER
    assert fleet.endings() == ["expired", "expired"]


def test_a_deadline_before_the_hedging_delay():
    _, fleet, ended = race((0, "hang"), (0.001, OK), call=read_call(0.02))
    assert ended == pytest.approx(0.02)
    assert fleet.endings() == ["expired"]


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.06, 0.2])
def test_cancelling_the_caller_leaves_nothing_behind(after_s):
    async def scenario():
        fleet = FakeFleet((9, OK), (9, OK), (9, OK))
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus)
        task = asyncio.ensure_future(hedging(read_call()))
        await asyncio.sleep(after_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not fleet.under_way
        assert set(fleet.endings()) <= {"cancelled"}
        assert not len(hedging.alarms)

    run(scenario())


def test_cancelling_in_the_moment_of_the_answer_leaves_nothing_behind():
    async def scenario():
        fleet = FakeFleet((0.06, OK), (9, OK))
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus)
        task = asyncio.ensure_future(hedging(read_call()))
        fleet.loop.call_at(0.06, task.cancel)
        await asyncio.gather(task, return_exceptions=True)
        assert not fleet.under_way
        assert not len(hedging.alarms)

    for seed in range(20):
        run(scenario(), seed)


def test_the_hot_path_makes_no_task(monkeypatch):
    async def scenario():
        fleet = FakeFleet(endless=(0.001, OK))
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus)
        made = []
        create = fleet.loop.create_task
        monkeypatch.setattr(fleet.loop, "create_task", lambda *a, **k: made.append(a) or create(*a, **k))
        for _ in range(10):
            await hedging(read_call())
        assert not made

    run(scenario())


# The delay.


def test_the_delay_follows_the_latency_of_answers():
    async def scenario():
        fleet = FakeFleet(endless=(0.020, OK))
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus)
        call = read_call()
        assert hedging.delay(hedging.digest(call)) == 0.05
        for _ in range(50):
            await hedging(read_call())
        assert hedging.delay(hedging.digest(call)) == pytest.approx(0.020 * 1.25, rel=0.12)

    run(scenario())


def test_the_delay_stays_within_its_limits():
    async def scenario():
        fleet = FakeFleet()
        settings = Hedge(min_delay_s=0.01, initial_delay_s=0.02, max_delay_s=0.3)
        hedging = Hedging(fleet.send, settings, Budget(1, 10), fleet.loop, fleet.bus)
        fast, slow = hedging.digest(read_call(collection="fast")), hedging.digest(read_call(collection="slow"))
        for _ in range(20):
            fast.observe(0.0005)
            slow.observe(3.0)
        assert hedging.delay(fast) == 0.01
        assert hedging.delay(slow) == 0.3

    run(scenario())


def test_a_frozen_server_does_not_push_the_delay_up():
    """The winner counts from its own start: many hedged calls leave the delay where it was."""

    async def scenario():
        fleet = FakeFleet()
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 1000), fleet.loop, fleet.bus)
        for _ in range(200):
            fleet.script = [(0, "hang"), (0.004, OK)]
            await hedging(read_call())
        assert hedging.delay(hedging.digest(read_call())) < 0.01

    run(scenario())


def test_failures_teach_nothing_about_latency():
    async def scenario():
        fleet = FakeFleet(endless=(0.001, FAILOVER))
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus)
        for _ in range(50):
            await hedging(read_call())
        assert hedging.digest(read_call()).value() is None

    run(scenario())


def test_each_method_and_collection_has_its_own_delay_and_their_number_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_MOST_DIGESTS", 8)

    async def scenario():
        fleet = FakeFleet()
        hedging = Hedging(fleet.send, Hedge(), Budget(1, 10), fleet.loop, fleet.bus)
        one, two = hedging.digest(read_call(collection="a")), hedging.digest(read_call(collection="b"))
        assert one is not two
        assert hedging.digest(read_call(collection="a")) is one
        for i in range(100):
            hedging.digest(read_call(collection=f"k{i}"))
        assert len(hedging._digests) <= 8

    run(scenario())


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_nothing_leaks(seed):
    """Random scripts, deadlines and cancellations: one outcome, nothing under way, no timer, in time."""
    import random

    async def scenario():
        rng = random.Random(seed)
        words = [OK, FAILOVER, FAIL_FAST, "refused", "died", "hang", Action.FAILOVER_COLLECTION]
        script = [(rng.choice([0.0, 0.01, 0.05, 0.1, 0.5]), rng.choice(words)) for _ in range(6)]
        fleet = FakeFleet(*script)
        hedging = Hedging(fleet.send, Hedge(max_hedges=3), Budget(0, 3), fleet.loop, fleet.bus)
        call = read_call(rng.choice([0.05, 0.1, 0.3, 2.0]))
        task = asyncio.ensure_future(hedging(call))
        limit = rng.choice([0.0, 0.01, 0.05, 0.1, None, None, None, None])
        await asyncio.wait([task], timeout=limit)
        task.cancel()
        await asyncio.wait([task])
        assert fleet.loop.time() <= call.deadline + 1e-9
        assert not fleet.under_way
        assert not len(hedging.alarms)
        if not task.cancelled():
            attempt = task.result()
            if any(f.ending == "landed" and f.attempt.action is OK for f in fleet.flights):
                assert attempt.action is OK
        assert all(a.action is not None for a in call.attempts)
        assert call.method.kind is Kind.READ

    run(scenario(), seed)
