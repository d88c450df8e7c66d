"""Calls and attempts, counted for Prometheus.

Decision made here: counting is on the path of every call, so it adds to whole numbers in cells found by one look-up;
Prometheus' own objects are made of them when somebody collects.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final, final

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from haclient.call import Call
from haclient.listeners.labels import OTHER, action_label, method_label, outcome_label

#: Upper bounds of the latency histogram, seconds: a cached search to a call that used up its time.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_MOST_CELLS: Final = 10_000


@final
class _Durations:
    """The histogram of one method."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total_s = 0.0


@final
class CallCounts(Collector):
    """Counts calls, how long they took, and their attempts.

    Args:
        namespace: First part of every metric's name.
        endpoint: Bounds the names of endpoints.
    """

    def __init__(self, namespace: str, endpoint: Callable[[str], str]) -> None:
        self._namespace = namespace
        self._endpoint = endpoint
        self._calls: dict[tuple[str, str], int] = {}
        self._durations: dict[str, _Durations] = {}
        self._attempts: dict[tuple[str, str, str], int] = {}

    def count(self, call: Call, outcome: str, duration_s: float) -> None:
        """Count one call; see `haclient.events.Counter`."""
        name = call.method.name
        calls, place = self._calls, (name, outcome)
        if place in calls:
            calls[place] += 1
        else:
            calls[place if len(calls) < _MOST_CELLS else (OTHER, OTHER)] = 1
        durations = self._durations.get(name) or self._durations_of(name)
        durations.counts[bisect_left(BUCKETS, duration_s)] += 1
        durations.total_s += duration_s
        attempts = self._attempts
        for attempt in call.attempts:
            action = attempt.action
            where = (attempt.cluster, attempt.endpoint, action.value if action is not None else "cancelled")
            if where in attempts:
                attempts[where] += 1
            elif len(attempts) < _MOST_CELLS:
                attempts[where] = 1

    def _durations_of(self, name: str) -> _Durations:
        if len(self._durations) >= _MOST_CELLS:
            name = OTHER
        return self._durations.setdefault(name, _Durations())

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, so that a second listener on one registry is refused."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """Make Prometheus' objects of what has been counted."""
        prefix = self._namespace + "_" if self._namespace else ""
        calls = CounterMetricFamily(
            f"{prefix}calls", "Calls of the application, by what it saw.", labels=["method", "outcome"]
        )
        for labels, count in _added(
            ((method_label(name), outcome_label(outcome)), n) for (name, outcome), n in list(self._calls.items())
        ).items():
            calls.add_metric(labels, count)
        yield calls
        yield self._histogram(f"{prefix}call_duration_seconds")
        attempts = CounterMetricFamily(
            f"{prefix}attempts",
            "Attempts, by what their outcome asked for.",
            labels=["cluster", "endpoint", "action"],
        )
        for labels, count in _added(
            ((cluster, self._endpoint(endpoint), action_label(action)), n)
            for (cluster, endpoint, action), n in list(self._attempts.items())
        ).items():
            attempts.add_metric(labels, count)
        yield attempts

    def _histogram(self, name: str) -> Metric:
        text = "Time from a call to its answer, all attempts included."
        family = HistogramMetricFamily(name, text, labels=["method"])
        merged: dict[str, _Durations] = {}
        for method, durations in list(self._durations.items()):
            into = merged.setdefault(method_label(method), _Durations())
            into.counts = [a + b for a, b in zip(into.counts, durations.counts, strict=True)]
            into.total_s += durations.total_s
        bounds = [*map(str, BUCKETS), "+Inf"]
        for label, durations in merged.items():
            buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
            family.add_metric([label], buckets, durations.total_s)
        return family


def _added(cells: Iterable[tuple[tuple[str, ...], int]]) -> dict[tuple[str, ...], int]:
    """Add up the cells that have the same labels."""
    total: dict[tuple[str, ...], int] = {}
    for labels, count in cells:
        total[labels] = total.get(labels, 0) + count
    return total
