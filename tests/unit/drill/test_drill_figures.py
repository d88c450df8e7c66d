"""Figures of trials, by cases that are known to the digit and by properties that hold of every trial."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haclient.drill.figures import SUSTAINED_S, Side, figures
from haclient.drill.intervals import spread, upper_bound
from haclient.drill.record import Audit, FaultMark, Operation, Outcome, Trial
from tests.made_up_trials import outage, trial

FAULT = FaultMark("crash", "b", began=5.0, healed=9.0, detected=5.25)


def every(
    step: float = 0.1, *, kind: str = "search", until: float = 20.0, **outcomes: tuple[float, float]
) -> list[Operation]:
    """Calls at even steps, answered after 10 ms, but for those due in ``[from, to)`` of an outcome."""
    calls = []
    for number in range(round(until / step)):
        due = number * step
        outcome = next((name for name, (low, high) in outcomes.items() if low <= due < high), "ok")
        calls.append(Operation(kind, due, due + 0.01, outcome))  # type: ignore[arg-type]
    return calls


def made(operations: list[Operation], *faults: FaultMark, **fields: object) -> Trial:
    return Trial(
        scenario="x", engine="lite", seed=7, seconds=20, rate=10, operations=operations, faults=list(faults), **fields
    )


# Recovery.


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (every(), 0.0),
        (every(failed=(5.0, 5.45)), 0.5),
        (every(failed=(5.3, 5.75)), 0.8),  # the first failure came soon after the fault
        (every(failed=(12.0, 12.45)), 0.5),  # this one did not, and counts from itself
        (every(failed=(5.0, 5.1), wrong=(6.0, 6.1), stale=(7.9, 8.0)), 3.0),  # never 2 s of success in between
        (every(failed=(5.0, 5.1), unknown=(7.2, 8.15)), 1.0),  # the longest of two outages
        (every(failed=(5.0, 60.0)), None),
        (every(failed=(17.0, 17.95)), 1.0),
        (every(failed=(17.0, 18.05)), None),  # success for less than 2 s until the end
        (every(failed=(1.0, 4.0)), 0.0),  # had failed before
        ([], 0.0),
    ],
)
def test_recovery(calls: list[Operation], expected: float | None) -> None:
    """From the fault, or a first failure long after it, to the first call of two seconds of success."""
    found = figures(made(calls, FAULT)).faults[0].rto_s
    assert found["reads"] == (expected if expected is None else pytest.approx(expected))
    assert found["writes"] == 0


def test_recovery_under_way() -> None:
    """A call that a fault hit under way is the fault's, though it was due before; one that had ended is not."""
    calls = every()
    hit = Operation("query", 4.9, 5.2, "failed")
    assert figures(made([*calls, hit], FAULT)).rto_s("reads") == pytest.approx(0.0, abs=0.11)
    assert figures(made([*calls[:50], hit], FAULT)).rto_s("reads") is None
    assert figures(made([*calls[:50], Operation("query", 4.9, 4.95, "failed")], FAULT)).rto_s("reads") == 0


def test_recovery_of_several() -> None:
    """Each fault answers for the outages that began in its time; one that lasts into the next is of both."""
    second = FaultMark("hang", "a", began=10.0, healed=None)
    apart = figures(made(every(failed=(5.0, 5.45), wrong=(10.0, 10.95)), FAULT, second))
    assert [fault.rto_s["reads"] for fault in apart.faults] == [pytest.approx(0.5), pytest.approx(1.0)]
    through = figures(made(every(failed=(9.0, 11.95)), FAULT, second))
    assert [fault.rto_s["reads"] for fault in through.faults] == [pytest.approx(3.0), pytest.approx(2.0)]
    assert through.rto_s("reads") == pytest.approx(3.0)


def test_recovery_by_side() -> None:
    """Reads and writes recover by themselves."""
    both = every(failed=(5.0, 5.45)) + every(kind="upsert", unknown=(5.0, 6.45))
    found = figures(made(both, FAULT))
    assert (found.rto_s("reads"), found.rto_s("writes")) == (pytest.approx(0.5), pytest.approx(1.5))
    assert (found.failed, found.unconfirmed) == ({"reads": 5, "writes": 15}, 15)


# Availability, phases and the rest.


def test_availability() -> None:
    """Good calls of those from the first fault to 30 s after the last was healed."""
    calls = every(until=60, failed=(5.0, 6.0), wrong=(45.0, 60.0))
    assert figures(made(calls, FAULT)).availability == pytest.approx(1 - 10 / 340)
    assert figures(made(calls, FaultMark("x", "a", 5.0))).availability == pytest.approx(1 - 160 / 550)
    assert figures(made(calls)).availability == pytest.approx(1 - 160 / 600)
    assert figures(made([], FAULT)).availability is None
    assert figures(made(calls[:50], FAULT)).availability is None
    assert figures(made(every(failed=(0, 60)), FAULT)).availability == 0


def test_phases() -> None:
    """Before, during and after: latencies are of answered calls, from when they were due."""
    calls = [
        Operation("search", 1.0, 1.5, "ok"),
        Operation("search", 2.0, 2.1, "stale"),
        Operation("search", 4.9, 5.1, "ok"),
        Operation("query", 6.0, 16.0, "failed"),
        Operation("delete", 8.9, 9.4, "unknown"),
        Operation("upsert", 9.0, 9.25, "ok"),
    ]
    found = figures(made(calls, FAULT)).latency
    assert {phase: {side: cell.calls for side, cell in sides.items()} for phase, sides in found.items()} == {
        "before": {"reads": 2, "writes": 0},
        "during": {"reads": 2, "writes": 1},
        "after": {"reads": 0, "writes": 1},
    }
    before, during, after = (found[phase] for phase in ("before", "during", "after"))
    assert (before["reads"].p50_s, before["reads"].max_s, before["reads"].bad) == (pytest.approx(0.1), 0.5, 1)
    assert (during["reads"].max_s, during["reads"].bad) == (pytest.approx(0.2), 1)
    assert (during["writes"].p999_s, during["writes"].bad) == (None, 1)
    assert after["writes"].p99_s == 0.25
    shown = figures(made(calls, FAULT))
    assert (shown.slowest_s("reads"), shown.slowest_s("writes")) == (pytest.approx(0.2), 0.25)
    assert figures(made(calls)).slowest_s("reads") == 0.5  # before a fault, a slow call is none of its doing


def test_over_at_once() -> None:
    """A fault without a length is watched for two seconds."""
    at_once = FaultMark("release", "a", began=5.0, healed=5.0)
    assert figures(made(every(), at_once)).latency["during"]["reads"].calls == round(SUSTAINED_S / 0.1)


def test_extra_load() -> None:
    """Requests per call, as a multiple of what they were before."""
    calls = [Operation("search", 1, 1.1, "ok", attempts=2), Operation("search", 6, 6.1, "ok", attempts=3)]
    assert figures(made(calls, FAULT)).extra_load == 1.5
    assert figures(made(calls[1:], FAULT)).extra_load is None
    assert figures(made(calls[:1], FAULT)).extra_load is None


def test_detection_and_loss() -> None:
    """The longest detection decides; a deletion that did not last is a loss too."""
    found = figures(made(every(), FAULT, audit=Audit(acknowledged=9, lost=1, resurrected=2)))
    assert (found.detection_s, found.lost) == (0.25, 3)
    unseen = figures(made(every(), FAULT, FaultMark("x", "a", 6.0)))
    assert (unseen.detection_s, unseen.lost) == (None, None)


OUTCOMES: st.SearchStrategy[Outcome] = st.sampled_from(("ok", "ok", "ok", "failed", "unknown", "wrong", "stale"))
TIMES = st.floats(0, 20, allow_nan=False)
CALLS = st.builds(
    lambda kind, due, took, outcome, attempts: Operation(kind, due, due + took, outcome, attempts=attempts),
    st.sampled_from(("search", "query", "upsert", "delete")),
    TIMES,
    st.floats(0, 10),
    OUTCOMES,
    st.integers(0, 3),
)
MARKS = st.builds(
    lambda began, lasts, noticed: FaultMark("x", "a", began, lasts and began + lasts, noticed and began + noticed),
    TIMES,
    st.none() | st.floats(0.001, 5),
    st.none() | st.floats(0.001, 5),
)


@given(st.lists(CALLS, max_size=40), st.lists(MARKS, max_size=3))
def test_properties(calls: list[Operation], marks: list[FaultMark]) -> None:
    """Nothing is counted twice or left out, and no figure is out of its range."""
    found = figures(made(calls, *marks))
    cells = [cell for sides in found.latency.values() for cell in sides.values()]
    assert sum(cell.calls for cell in cells) == len(calls) == found.calls("reads") + found.calls("writes")
    bad = sum(call.outcome != "ok" for call in calls)
    stale_writes = sum(call.outcome == "stale" and call.kind in ("upsert", "delete") for call in calls)
    assert sum(cell.bad for cell in cells) == bad == sum(found.failed.values()) + found.stale + stale_writes
    assert found.availability is None or 0 <= found.availability <= 1
    for cell in cells:
        known = [time for time in (cell.p50_s, cell.p99_s, cell.p999_s, cell.max_s) if time is not None]
        assert known == sorted(known)
        assert len(known) in (0, 4)
    for fault in found.faults:
        for side in ("reads", "writes"):
            _check_recovery(calls, fault.mark, side, fault.rto_s[side])


def _check_recovery(calls: list[Operation], mark: FaultMark, side: Side, rto: float | None) -> None:
    mine = [call for call in calls if (call.kind in ("search", "query")) == (side == "reads")]
    bad = [call for call in mine if call.outcome != "ok" and call.ended >= mark.began]
    if not bad:
        assert rto == 0
    if bad and not any(call.outcome == "ok" and call.due >= mark.began for call in mine):
        assert rto is None or bad[0].due > mark.began
    if rto is not None:
        assert 0 <= rto <= 20 - mark.began


@given(st.lists(CALLS, max_size=40), MARKS, st.integers(0, 100))
def test_worse_never_looks_better(calls: list[Operation], mark: FaultMark, which: int) -> None:
    """One more call that fails never makes availability or recovery better."""
    if not calls:
        return
    number = which % len(calls)
    old = calls[number]
    worse = [*calls[:number], Operation(old.kind, old.due, old.ended, "failed"), *calls[number + 1 :]]
    before, after = figures(made(calls, mark)), figures(made(worse, mark))
    assert (after.availability or 0) <= (before.availability or 0)
    for side in ("reads", "writes"):
        was, now = before.rto_s(side), after.rto_s(side)
        assert math.inf if now is None else now >= (math.inf if was is None else was) - 1e-9


@settings(max_examples=15)
@given(st.floats(0.1, 3), st.integers(0, 1_000))
def test_known_outage(length: float, seed: int) -> None:
    """An outage of a known length is measured to a few calls."""
    found = figures(trial(seed, outage(length), rate=40))
    assert found.rto_s("reads") == pytest.approx(length, abs=0.4)


# Many trials.


def test_upper_bound() -> None:
    """The exact bound, by values known from tables."""
    assert upper_bound(0, 59) == pytest.approx(0.0495, abs=1e-4)
    assert upper_bound(0, 299) == pytest.approx(0.00997, abs=1e-5)
    assert upper_bound(1, 10) == pytest.approx(0.3942, abs=1e-4)
    assert upper_bound(10, 10) == upper_bound(0, 0) == 1


@given(st.integers(1, 300), st.data())
def test_upper_bound_covers(trials: int, data: st.DataObject) -> None:
    """At the bound so few would be seen in one series of twenty, and more trials narrow it."""
    bad = data.draw(st.integers(0, trials - 1))
    bound = upper_bound(bad, trials)
    assert bad / trials < bound < 1
    seen = sum(math.comb(trials, k) * bound**k * (1 - bound) ** (trials - k) for k in range(bad + 1))
    assert seen == pytest.approx(0.05, rel=1e-6)
    assert upper_bound(bad, trials + 1) < bound


def test_spread() -> None:
    """The median and its interval by order statistics; with fewer than six trials there is none."""
    found = spread(float(number) for number in range(1, 60))
    assert found is not None
    assert (found.n, found.median, found.low, found.high, found.worst) == (59, 30, 22, 38, 59)
    few = spread([1.0, None, 2.0])
    assert few is not None
    assert (few.median, few.low, few.high, few.worst) == (2, None, None, math.inf)
    assert spread([]) is None
    never = spread([None] * 8)
    assert never is not None
    assert (never.median, never.low, never.worst) == (math.inf, math.inf, math.inf)


@given(st.lists(st.none() | st.floats(0, 100), min_size=1, max_size=70))
def test_spread_in_order(times: list[float | None]) -> None:
    """Low, median, high and worst are in this order, and the ends are times that were measured."""
    found = spread(times)
    assert found is not None
    assert found.n == len(times)
    assert found.median <= found.worst
    assert (found.low is None) == (found.high is None) == (len(times) < 6)
    if found.low is not None and found.high is not None:
        assert found.low <= found.median <= found.high
        assert {found.low, found.high} <= {math.inf if time is None else time for time in times}
