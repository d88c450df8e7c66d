"""What counts as what, and what can be worked out of it."""

import random

import pytest

from haclient.call import Call, Kind, Method
from haclient.events import AttemptFinished, FailedOver, HedgeStarted, RetryScheduled
from haclient.proxy.report import LATENCY_BOUNDS_S, Totals
from haclient.proxy.totals import Tally, add, difference, quantile

CALL = Call(Method("Search", "/s/Search", Kind.READ), b"", (), 1.0)


@pytest.mark.parametrize(
    ("outcome", "field"),
    [
        ("ok", "ok"),
        ("error", "refused"),
        ("AccessDenied", "refused"),
        ("PoisonedCall", "refused"),
        ("WriteRefused", "refused"),
        ("Unavailable", "failed"),
        ("DeadlineExceeded", "failed"),
        ("WriteNotConfirmed", "failed"),
        ("SomethingNew", "failed"),
    ],
)
def test_a_call_counts_once_and_by_what_its_client_saw(outcome, field):
    """What is the request's own fault is refused; whatever else is not an answer has failed."""
    tally = Tally()
    tally.count(CALL, outcome, 0.01)
    totals = tally.totals(shed=0)
    assert totals.model_dump(exclude={"latency"}) == Totals(**{field: 1}).model_dump(exclude={"latency"})
    assert sum(totals.latency) == 1


def test_a_call_given_up_by_its_client_says_nothing():
    tally = Tally()
    tally.count(CALL, "cancelled", 0.01)
    assert add([tally.totals(shed=0)]) == add([])


def test_what_is_done_for_a_call_is_counted_apart():
    tally = Tally()
    tally(HedgeStarted(at=0.0, method="Search", cluster="a", endpoint="a", delay_s=0.1))
    tally(HedgeStarted(at=0.0, method="Search", cluster="a", endpoint="a", delay_s=0.1))
    tally(RetryScheduled(at=0.0, method="Search", attempt=1, delay_s=0.1, reason=""))
    tally(FailedOver(at=0.0, method="Search", from_cluster="a", from_endpoint="a", to_cluster="b", to_endpoint="b"))
    tally(
        AttemptFinished(
            at=0.0, cluster="a", endpoint="a", method="Search", action="ok", duration_s=0.1, hedge=False, reason=""
        )
    )
    totals = tally.totals(shed=7)
    assert (totals.hedges, totals.retries, totals.failovers, totals.shed) == (2, 1, 1, 7)
    assert sum(totals.latency) == 0


def test_a_latency_belongs_to_the_first_bound_that_is_not_below_it():
    tally = Tally()
    for bound in LATENCY_BOUNDS_S:
        tally.count(CALL, "ok", bound)
    tally.count(CALL, "ok", LATENCY_BOUNDS_S[-1] * 2)
    assert tally.totals(shed=0).latency == [1] * (len(LATENCY_BOUNDS_S) + 1)


def test_totals_add_up_and_their_difference_takes_apart():
    """A worker that has not counted yet has no entries of latency."""
    tally = Tally()
    tally.count(CALL, "ok", 0.01)
    before = add([tally.totals(shed=1), Totals()])
    tally.count(CALL, "Unavailable", 3.0)
    after = add([tally.totals(shed=4), Totals()])
    between = difference(after, before)
    assert (between.ok, between.failed, between.shed, sum(between.latency)) == (0, 1, 3, 1)
    assert difference(after, Totals()) == after


def test_a_quantile_is_within_the_entry_that_holds_it():
    """Against the exact quantile of the same latencies: never further off than the entry is wide."""
    rng = random.Random(7)
    took = sorted(rng.lognormvariate(-5.0, 1.0) for _ in range(2_000))
    tally = Tally()
    for each in took:
        tally.count(CALL, "ok", each)
    latency = tally.totals(shed=0).latency
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = took[max(0, int(share * len(took)) - 1)]
        assert quantile(latency, share) == pytest.approx(exact, rel=0.25)


def test_a_quantile_has_limits():
    assert quantile([0] * 51, 0.5) is None
    assert quantile([], 0.5) is None
    assert quantile([0] * 50 + [3], 0.5) == LATENCY_BOUNDS_S[-1]
