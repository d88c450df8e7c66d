"""The figures of one trial: availability, recovery, detection, loss, latency, extra load.

Decision made here: a call counts from when it was due, and is good only if it was answered with what is true and fresh.
What was under way when a fault began belongs to the fault, so that no failure falls between two phases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from haclient.drill.measure import quantile
from haclient.drill.record import READS, Audit, FaultMark, Operation, Trial

Phase = Literal["before", "during", "after"]
Side = Literal["reads", "writes"]
PHASES: Final[tuple[Phase, ...]] = ("before", "during", "after")
SIDES: Final[tuple[Side, ...]] = ("reads", "writes")

#: Calls that succeed for this long without exception have recovered. A fault that is over at once is watched as long.
SUSTAINED_S: Final = 2.0
#: Availability counts until this long after the last fault was healed.
AFTERMATH_S: Final = 30.0


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """Calls of one side in one phase. Latencies are of answered calls only, in seconds; None if there are none."""

    calls: int
    bad: int
    p50_s: float | None
    p99_s: float | None
    p999_s: float | None
    max_s: float | None


@final
@dataclass(frozen=True, slots=True)
class FaultFigures:
    """What one fault did.

    Attributes:
        mark: The fault.
        detection_s: Until haclient said that it had noticed; None if it never did.
        rto_s: For reads and for writes: from the fault until calls succeeded for good. 0 if none failed, None if that
            was not seen before the load ended.
    """

    mark: FaultMark
    detection_s: float | None
    rto_s: dict[Side, float | None]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFigures:
    """What one trial showed.

    Attributes:
        seed: The trial's.
        availability: Share of good calls from the first fault to 30 s after the last was healed; of all calls if there
            was no fault; None if there was no call.
        failed: Calls that failed, were answered wrongly or left unconfirmed, of the whole trial.
        wrong: Of the reads among them, those answered with what is not true.
        stale: Reads that were older than their consistency level promises.
        unconfirmed: Writes of which nobody said what became of them.
        audit: What was found at the end; None if nothing was written.
        faults: In the order they began.
        latency: By phase and side. ``during`` is from the first fault until the last is healed.
        extra_load: Requests per call during the faults, as a multiple of before; None without calls in both.
    """

    seed: int
    availability: float | None
    failed: dict[Side, int]
    wrong: int
    stale: int
    unconfirmed: int
    audit: Audit | None
    faults: tuple[FaultFigures, ...]
    latency: dict[Phase, dict[Side, Latency]]
    extra_load: float | None

    def calls(self, side: Side) -> int:
        """Count the calls of all phases."""
        return sum(self.latency[phase][side].calls for phase in PHASES)

    def rto_s(self, side: Side) -> float | None:
        """Return the longest of all faults; 0 without a fault, None if one of them was not recovered from."""
        return longest(fault.rto_s[side] for fault in self.faults)

    @property
    def detection_s(self) -> float | None:
        """The longest of all faults; None if one of them was never noticed."""
        return longest(fault.detection_s for fault in self.faults)

    @property
    def lost(self) -> int | None:
        """Acknowledged writes that did not last (RPO), deletions among them; None if nothing was written."""
        return None if self.audit is None else self.audit.lost + self.audit.resurrected

    def slowest_s(self, side: Side) -> float | None:
        """Return the longest that an answered call took from the first fault on; None if none was answered.

        Without a fault it is of all calls.
        """
        phases = PHASES[1:] if self.faults else PHASES
        return max((one.max_s for p in phases if (one := self.latency[p][side]).max_s is not None), default=None)


def figures(trial: Trial) -> TrialFigures:
    """Draw the figures of a trial, however little of it there is."""
    calls = sorted(trial.operations, key=lambda call: call.due)
    sides: dict[Side, list[Operation]] = {"reads": [], "writes": []}
    phases: dict[Phase, list[Operation]] = {phase: [] for phase in PHASES}
    first, last = span(trial.faults)
    for call in calls:
        sides[side_of(call)].append(call)
        phases[phase_of(call, first, last)].append(call)
    outcomes = {side: _outcomes(sides[side]) for side in SIDES}
    return TrialFigures(
        seed=trial.seed,
        availability=_availability(calls, first, last),
        failed={side: sum(n for what, n in outcomes[side].items() if what not in ("ok", "stale")) for side in SIDES},
        wrong=outcomes["reads"]["wrong"],
        stale=outcomes["reads"]["stale"],
        unconfirmed=outcomes["writes"]["unknown"],
        audit=trial.audit,
        faults=_faults(trial, sides),
        latency={p: {side: _latency([c for c in phases[p] if side_of(c) == side]) for side in SIDES} for p in PHASES},
        extra_load=_extra_load(phases["before"], phases["during"]),
    )


def side_of(call: Operation) -> Side:
    """Say whether a call reads or writes."""
    return "reads" if call.kind in READS else "writes"


def span(faults: Iterable[FaultMark]) -> tuple[float, float]:
    """Return when the first fault began and the last one was over; both are infinite without a fault."""
    marks = list(faults)
    first = min((mark.began for mark in marks), default=math.inf)
    ends = [math.inf if mark.healed is None else max(mark.healed, mark.began + SUSTAINED_S) for mark in marks]
    return first, max(ends, default=math.inf)


def phase_of(call: Operation, first: float, last: float) -> Phase:
    """Say in which phase a call was; one that was under way when the first fault began is ``during``."""
    if call.ended < first:
        return "before"
    return "during" if call.due < last else "after"


def longest(times: Iterable[float | None]) -> float | None:
    """Return the longest time, None if one of them never ended, 0 if there are none."""
    result = 0.0
    for time in times:
        if time is None:
            return None
        result = max(result, time)
    return result


def _outcomes(calls: Iterable[Operation]) -> dict[str, int]:
    counted: dict[str, int] = defaultdict(int)
    for call in calls:
        counted[call.outcome] += 1
    return counted


def _availability(calls: Sequence[Operation], first: float, last: float) -> float | None:
    if math.isfinite(first):
        calls = [call for call in calls if call.ended >= first and call.due < last + AFTERMATH_S]
    return sum(call.outcome == "ok" for call in calls) / len(calls) if calls else None


def _latency(calls: Sequence[Operation]) -> Latency:
    took = sorted(call.ended - call.due for call in calls if call.outcome not in ("failed", "unknown"))
    at = [quantile(took, share) if took else None for share in (0.5, 0.99, 0.999, 1.0)]
    return Latency(len(calls), sum(call.outcome != "ok" for call in calls), *at)


def _extra_load(before: Sequence[Operation], during: Sequence[Operation]) -> float | None:
    sent = [sum(call.attempts for call in calls) for calls in (before, during)]
    if not during or not sent[0]:
        return None
    return (sent[1] / len(during)) / (sent[0] / len(before))


def _faults(trial: Trial, sides: dict[Side, list[Operation]]) -> tuple[FaultFigures, ...]:
    marks = sorted(trial.faults, key=lambda mark: mark.began)
    result = []
    for mark in marks:
        until = min((other.began for other in marks if other.began > mark.began), default=math.inf)
        rto = {side: recovery_s(sides[side], mark.began, until, trial.seconds) for side in SIDES}
        noticed = None if mark.detected is None else max(0.0, mark.detected - mark.began)
        result.append(FaultFigures(mark, noticed, rto))
    return tuple(result)


def recovery_s(calls: Sequence[Operation], began: float, until: float, end: float) -> float | None:
    """Return how long the longest outage lasted that a fault caused.

    An outage ends with the first call of `SUSTAINED_S` without a failure. It starts with the fault or, where calls had
    succeeded for that long since the fault, with the first call that failed.

    Args:
        calls: Of one side, in the order they were due.
        began: When the fault did.
        until: When the next fault began: an outage that starts later is not this one's.
        end: When the load ended.

    Returns:
        Seconds; 0 if no call failed, None if an outage lasted to the end or too near to it to tell.
    """
    worst = 0.0
    start: float | None = None  # of the outage
    back: float | None = None  # when calls began to succeed in it
    for call in calls:
        bad = call.outcome != "ok"
        if (call.ended if bad else call.due) < began:
            continue
        at = max(call.due, began)
        if start is not None and back is not None and at - back >= SUSTAINED_S:
            worst = max(worst, back - start)
            start = back = None
        if bad and start is None:
            if at >= until:
                break
            start = began if at - began < SUSTAINED_S else at
        elif bad:
            back = None
        elif start is not None and back is None:
            back = at
    if start is None:
        return worst
    return max(worst, back - start) if back is not None and end - back >= SUSTAINED_S else None
