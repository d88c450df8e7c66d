"""What is tried again, how soon, how often; and what the caller gets in the end."""

import asyncio
import itertools
import random

import pytest

from haclient.call import Action, Kind, Reply
from haclient.config import Hedge, Retry
from haclient.errors import CallError, DeadlineExceeded, PoisonedCall, Unavailable, WriteNotConfirmed
from haclient.policy.budget import Budget
from haclient.policy.hedge import Hedging
from haclient.policy.quarantine import Quarantine
from haclient.policy.retry import Retrying
from tests.unit.fleet.fleet_fakes import CREATE, INSERT, read_call, write_call
from tests.unit.policy.policy_fakes import FakeFleet
from tests.virtual_time import run

OK, FAILOVER = Action.OK, Action.FAILOVER
READ, REPEATABLE, ONCE = "read", "repeatable write", "write"


class Outcome:
    def __init__(self, fleet, call, result, budget):
        self.fleet, self.call, self.result, self.budget = fleet, call, result, budget
        self.ended = fleet.loop.time()


def attempt(*script, call=None, budget=None, untried=True, endless=None, **settings):
    """Run the retry layer over a scripted fleet whose reads are not hedged."""

    async def scenario():
        fleet = FakeFleet(*script, endless=endless)
        spend = budget or Budget(0, 100)
        hedging = Hedging(fleet.send, Hedge(enabled=False), spend, fleet.loop, fleet.bus)
        still = untried if callable(untried) else lambda _: untried
        given = Retry(**settings)
        retrying = Retrying(hedging, still, given, spend, fleet.loop, random.Random(5), fleet.bus)
        one = call or read_call(10.0)
        try:
            result = await retrying(one)
        except CallError as error:
            result = error
        assert not fleet.under_way
        return Outcome(fleet, one, result, spend)

    return run(scenario())


def of(kind):
    return {READ: read_call, REPEATABLE: lambda d: write_call(d, idempotent=True), ONCE: write_call}[kind](10.0)


# What is tried again: (what came of it, read, repeatable write, other write)
MATRIX = [
    (Action.FAILOVER, True, True, False),
    (Action.FAILOVER_COLLECTION, True, True, False),
    (Action.ROUTE_CHANGE, True, True, False),
    (Action.ALARM, True, True, False),
    (Action.BACK_OFF, True, True, True),
    (Action.WRITE_BLOCKED, True, False, False),
    (Action.REFRESH, True, False, False),
    (Action.FAIL_FAST, False, False, False),
    ("refused", True, True, True),
    ("lost-unsent", True, True, True),
    ("rejected", True, True, True),
    ("died", True, True, False),
]


@pytest.mark.parametrize(
    ("what", "kind", "again"),
    [(what, kind, row[i]) for what, *row in MATRIX for i, kind in enumerate((READ, REPEATABLE, ONCE))],
)
def test_what_is_tried_again(what, kind, again):
    outcome = attempt((0.01, what), (0.01, OK), call=of(kind))
    assert len(outcome.fleet.flights) == (2 if again else 1)
    if again:
        assert outcome.result.message == b"e1"


def test_a_success_needs_no_tenacity(monkeypatch):
    from haclient.policy import retry

    def forbidden(*_, **__):
        raise AssertionError("the hot path must not build a retry")

    monkeypatch.setattr(retry, "AsyncRetrying", forbidden)
    assert attempt((0.01, OK)).result.message == b"e0"


def test_each_call_has_an_attempt_counter_of_its_own():
    async def scenario():
        fleet = FakeFleet(endless=(0.01, FAILOVER))
        budget = Budget(0, 1000)
        hedging = Hedging(fleet.send, Hedge(enabled=False), budget, fleet.loop, fleet.bus)
        settings = Retry(max_attempts=3)
        retrying = Retrying(hedging, lambda _: True, settings, budget, fleet.loop, random.Random(5), fleet.bus)
        calls = [read_call(10.0) for _ in range(10)]
        await asyncio.gather(*(retrying(c) for c in calls), return_exceptions=True)
        assert [len(c.attempts) for c in calls] == [3] * 10

    run(scenario())


def test_at_most_so_many_attempts():
    outcome = attempt(endless=(0.01, FAILOVER), max_attempts=4)
    assert len(outcome.fleet.flights) == 4
    assert isinstance(outcome.result, Unavailable)
    assert outcome.result.attempts == tuple(outcome.call.attempts)
    outcome = attempt(endless=(0.01, FAILOVER), max_attempts=1)
    assert len(outcome.fleet.flights) == 1


def test_a_stale_schema_is_refreshed_once_only():
    outcome = attempt(endless=(0.01, Action.REFRESH))
    assert len(outcome.fleet.flights) == 2


def test_going_on_to_another_endpoint_does_not_wait():
    outcome = attempt((0.01, FAILOVER), (0.01, FAILOVER), (0.01, OK), backoff_s=0.5, max_backoff_s=0.5)
    assert outcome.fleet.starts() == [0.0, 0.01, 0.02]


def test_coming_back_to_the_same_endpoints_backs_off_with_jitter():
    outcome = attempt(endless=(0.01, FAILOVER), untried=False, backoff_s=0.1, max_backoff_s=0.3, max_attempts=5)
    starts = outcome.fleet.starts()
    waits = [b - a - 0.01 for a, b in itertools.pairwise(starts)]
    for wait, ceiling in zip(waits, (0.1, 0.2, 0.3, 0.3), strict=True):
        assert ceiling / 2 <= wait <= ceiling + 1e-6
    assert len({round(wait / ceiling, 4) for wait, ceiling in zip(waits, (0.1, 0.2, 0.3, 0.3), strict=True)}) > 1


def test_over_quota_waits_even_if_another_endpoint_is_left():
    outcome = attempt((0.01, Action.BACK_OFF), (0.01, OK), backoff_s=0.2, max_backoff_s=0.2)
    assert outcome.fleet.starts()[1] >= 0.11


def test_no_wait_is_begun_that_would_outlast_the_deadline():
    outcome = attempt(endless=(0.01, FAILOVER), untried=False, call=read_call(0.3), backoff_s=1.0, max_backoff_s=1.0)
    assert len(outcome.fleet.flights) == 1
    assert outcome.ended == pytest.approx(0.01)
    assert isinstance(outcome.result, Unavailable)


def test_the_retry_is_announced():
    outcome = attempt((0.01, FAILOVER), (0.01, OK))
    (event,) = outcome.fleet.of("RetryScheduled")
    assert (event.method, event.attempt, event.delay_s) == ("Search", 1, 0.0)
    assert "failover" in event.reason.lower()


# The budget.


def test_without_budget_nothing_is_repeated_and_the_error_says_so():
    outcome = attempt(endless=(0.01, FAILOVER), budget=Budget(0.2, 0))
    assert len(outcome.fleet.flights) == 1
    assert isinstance(outcome.result, Unavailable)
    assert "not repeated: the retry budget, 20% of recent calls, is spent" in str(outcome.result)
    assert [e.wanted for e in outcome.fleet.of("BudgetExhausted")] == ["retry"]


def test_what_never_reached_a_server_may_go_on_without_budget():
    budget = Budget(0, 0)
    outcome = attempt((0.01, "refused"), (0.01, "refused"), (0.01, OK), budget=budget)
    assert outcome.result.message == b"e2"
    assert budget.extras == 0


def test_but_not_back_to_the_same_endpoints():
    outcome = attempt(endless=(0.01, "refused"), budget=Budget(0, 0), untried=lambda c: len(c.attempts) < 2)
    assert len(outcome.fleet.flights) == 2


def test_everything_failing_makes_little_more_load():
    """1,000 calls against a fleet that fails everything: at most the budget's share on top."""

    async def scenario():
        fleet = FakeFleet(endless=(0.001, FAILOVER))
        budget = Budget(0.2, 10)
        hedging = Hedging(fleet.send, Hedge(), budget, fleet.loop, fleet.bus)
        retrying = Retrying(hedging, lambda _: True, Retry(), budget, fleet.loop, random.Random(5), fleet.bus)
        for _ in range(1000):
            budget.deposit(fleet.loop.time())
            with pytest.raises(Unavailable):
                await retrying(read_call(fleet.loop.time() + 10))
            await asyncio.sleep(0.004)
        assert len(fleet.flights) <= 1.2 * 1000 + 10

    run(scenario())


# Deaths.


def test_a_request_whose_connection_died_twice_is_not_sent_a_third_time():
    outcome = attempt((0.01, "died"), (0.01, "died"), (0.01, OK))
    assert len(outcome.fleet.flights) == 2
    assert isinstance(outcome.result, Unavailable)


def test_with_the_quarantine_below_it_is_refused():
    async def scenario():
        fleet = FakeFleet((0.01, "died"), (0.01, "died"), (0.01, OK))
        budget = Budget(0, 100)
        hedging = Hedging(fleet.send, Hedge(), budget, fleet.loop, fleet.bus)
        quarantine = Quarantine(hedging, 60.0, fleet.loop, fleet.bus)
        retrying = Retrying(quarantine, lambda _: True, Retry(), budget, fleet.loop, random.Random(5), fleet.bus)
        with pytest.raises(PoisonedCall):
            await retrying(read_call(10.0))
        assert len(fleet.flights) == 2

    run(scenario())


def test_unsent_deaths_do_not_count():
    outcome = attempt((0.01, "lost-unsent"), (0.01, "lost-unsent"), (0.01, "lost-unsent"), (0.01, OK))
    assert outcome.result.message == b"e3"


# What the caller gets.


@pytest.mark.parametrize("action", [Action.FAIL_FAST, Action.WRITE_BLOCKED])
def test_the_servers_own_refusal_reaches_the_caller_unchanged(action):
    outcome = attempt((0.01, action), call=write_call(10.0))
    assert isinstance(outcome.result, Reply)
    assert outcome.result.message == b"e0"


@pytest.mark.parametrize("action", [Action.BACK_OFF, Action.REFRESH])
def test_so_does_a_refusal_that_stays(action):
    outcome = attempt(endless=(0.01, action), max_attempts=3)
    assert isinstance(outcome.result, Reply)


def test_a_read_that_fails_everywhere_is_unavailable_with_every_attempt():
    outcome = attempt((0.01, FAILOVER), (0.01, "refused"), (0.01, Action.ALARM), max_attempts=3)
    error = outcome.result
    assert isinstance(error, Unavailable)
    assert error.code == 7
    assert "\n  1. c0/e0 after 10 ms: Action.FAILOVER" in str(error)
    assert "\n  2. c1/e1 after 10 ms: refused" in str(error)
    assert "\n  3. c2/e2" in str(error)


def test_a_write_sent_without_an_answer_is_not_confirmed():
    outcome = attempt((0.01, "died"), call=write_call(10.0))
    assert isinstance(outcome.result, WriteNotConfirmed)
    assert "may or may not have been applied" in str(outcome.result)


def test_a_write_that_times_out_is_not_confirmed():
    outcome = attempt((0, "hang"), call=write_call(0.5))
    assert isinstance(outcome.result, WriteNotConfirmed)
    assert outcome.ended == pytest.approx(0.5)


def test_a_write_that_no_server_saw_is_unavailable():
    outcome = attempt(endless=(0.01, "refused"), call=write_call(10.0), untried=False, max_attempts=2)
    assert isinstance(outcome.result, Unavailable)


def test_a_write_answered_with_a_failure_gives_that_answer():
    """The server says what it did; nobody else may be asked, and nothing is unconfirmed."""
    outcome = attempt((0.01, FAILOVER), call=write_call(10.0))
    assert isinstance(outcome.result, Reply)


def test_a_repeatable_write_that_fails_everywhere_is_unavailable():
    outcome = attempt(endless=(0.01, FAILOVER), call=write_call(10.0, idempotent=True), max_attempts=2)
    assert isinstance(outcome.result, Unavailable)


def test_ddl_that_may_not_be_repeated_is_not_confirmed_either():
    call = write_call(10.0)
    call.method = CREATE
    assert CREATE.kind is Kind.DDL
    assert isinstance(attempt((0.01, "died"), call=call).result, WriteNotConfirmed)
    assert INSERT.kind is Kind.WRITE


def test_time_runs_out():
    outcome = attempt((0, "hang"), call=read_call(0.5))
    assert isinstance(outcome.result, DeadlineExceeded)
    assert outcome.ended == pytest.approx(0.5)
    assert "no answer in time" in str(outcome.result.attempts[0].error)


def test_nowhere_to_go_says_why():
    assert "every endpoint is drained; undrain one" in str(attempt(None).result)
    error = attempt(None, call=read_call(10.0, pin="east")).result
    assert isinstance(error, Unavailable)
    assert "belongs to cluster 'east'" in str(error)


def test_an_endpoint_drained_between_two_tries():
    outcome = attempt((0.01, FAILOVER), None, max_attempts=3, call=read_call(1.0))
    assert isinstance(outcome.result, Unavailable)
    assert outcome.ended <= 1.0
    assert len(outcome.fleet.events) < 30
