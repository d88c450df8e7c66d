"""What is counted: each call once, by what the client saw and how long it took.

Decision made here: counting is on the path of every call, so it is whole numbers and one bisection; whatever can be
worked out of them later (rates, percentiles) is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, final

from haclient.call import Call
from haclient.events import Event, FailedOver, HedgeStarted, RetryScheduled
from haclient.proxy.report import LATENCY_BOUNDS_S, Totals

#: Outcomes that are the request's own fault; see `haclient.events.CallFinished`.
_REFUSED: Final = frozenset({"error", "AccessDenied", "PoisonedCall", "WriteRefused"})
_COUNTS: Final = ("ok", "refused", "failed", "shed", "hedges", "retries", "failovers")
_BUCKETS: Final = len(LATENCY_BOUNDS_S) + 1


@final
class Tally:
    """Counts a worker's calls; subscribe it to the event bus."""

    __slots__ = ("_failed", "_failovers", "_hedges", "_latency", "_ok", "_refused", "_retries")

    def __init__(self) -> None:
        self._ok = self._refused = self._failed = 0
        self._hedges = self._retries = self._failovers = 0
        self._latency = [0] * _BUCKETS

    def __call__(self, event: Event) -> None:
        """Count one event."""
        kind = type(event)
        if kind is HedgeStarted:
            self._hedges += 1
        elif kind is RetryScheduled:
            self._retries += 1
        elif kind is FailedOver:
            self._failovers += 1

    def count(self, call: Call, outcome: str, duration_s: float) -> None:
        """Count one call; one that its client gave up says nothing, and is left out.

        Args:
            call: The call.
            outcome: See `haclient.events.CallFinished`.
            duration_s: From the request to the answer, seconds.
        """
        if outcome == "ok":
            self._ok += 1
        elif outcome in _REFUSED:
            self._refused += 1
        elif outcome == "cancelled":
            return
        else:
            self._failed += 1
        self._latency[bisect_left(LATENCY_BOUNDS_S, duration_s)] += 1

    def totals(self, shed: int) -> Totals:
        """Return what has been counted so far.

        Args:
            shed: Calls that were refused before they became calls.
        """
        return Totals(
            ok=self._ok,
            refused=self._refused,
            failed=self._failed,
            shed=shed,
            hedges=self._hedges,
            retries=self._retries,
            failovers=self._failovers,
            latency=list(self._latency),
        )


def add(parts: Iterable[Totals]) -> Totals:
    """Add up what several workers have counted."""
    counts = dict.fromkeys(_COUNTS, 0)
    latency = [0] * _BUCKETS
    for part in parts:
        for name in _COUNTS:
            counts[name] += getattr(part, name)
        for i, count in enumerate(part.latency):
            latency[i] += count
    return Totals(**counts, latency=latency)


def difference(now: Totals, before: Totals) -> Totals:
    """Return what was counted between two moments."""
    counts = {name: getattr(now, name) - getattr(before, name) for name in _COUNTS}
    earlier = before.latency or [0] * len(now.latency)
    return Totals(**counts, latency=[a - b for a, b in zip(now.latency, earlier, strict=True)])


def quantile(latency: Sequence[int], share: float) -> float | None:
    """Estimate a quantile of what was counted: a straight line within the entry that it falls into.

    Args:
        latency: See `Totals.latency`.
        share: For example 0.99.

    Returns:
        Seconds; the last bound for what took longer than that; None if nothing was counted.
    """
    total = sum(latency)
    if not total:
        return None
    rank, below = share * total, 0
    for count, (lower, upper) in zip(latency, pairwise((0.0, *LATENCY_BOUNDS_S)), strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
    return LATENCY_BOUNDS_S[-1]
