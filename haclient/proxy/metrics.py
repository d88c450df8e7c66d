"""The metrics of all workers as one text.

Decision made here: what counts (counters, histograms) is added up, and the counts of workers that have ended stay in
the sum, for Prometheus would take a smaller number for a restart. What measures (gauges) is told apart by worker, and
ends with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypedDict, final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from haclient.proxy.report import FleetReport, WorkerStatus

_GAUGE: Final = "gauge"


class Family(TypedDict):
    """One metric with all its samples, as plain data."""

    name: str
    text: str
    kind: str
    #: Name, labels, value.
    samples: list[tuple[str, dict[str, str], float]]


def families(registry: CollectorRegistry) -> list[Family]:
    """Return everything in a registry as plain data; times of creation are left out, for they cannot be added up."""
    return [
        Family(
            name=metric.name,
            text=metric.documentation,
            kind=metric.type,
            samples=[(s.name, dict(s.labels), s.value) for s in metric.samples if not s.name.endswith("_created")],
        )
        for metric in registry.collect()
    ]


def add(parts: Iterable[tuple[int | None, list[Family]]]) -> list[Family]:
    """Add up the metrics of several workers.

    Args:
        parts: Each worker's slot and metrics. The slot None means that it has ended: its gauges are left out.
    """
    merged: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for slot, part in parts:
        for family in part:
            gauge = family["kind"] == _GAUGE
            if gauge and slot is None:
                continue
            name = family["name"]
            merged.setdefault(name, Family(name=name, text=family["text"], kind=family["kind"], samples=[]))
            values = sums.setdefault(name, {})
            for sample, labels, value in family["samples"]:
                key = sample, tuple((labels | {"worker": str(slot)} if gauge else labels).items())
                values[key] = values.get(key, 0.0) + value
    for name, values in sums.items():
        merged[name]["samples"] = [(sample, dict(labels), value) for (sample, labels), value in values.items()]
    return list(merged.values())


def text(merged: Iterable[Family], fleet: FleetReport, restarts: int) -> bytes:
    """Write metrics, and the proxy's own, in Prometheus' text format.

    Args:
        merged: What `add` returned.
        fleet: How everything is.
        restarts: Workers started in place of one that had ended unasked.
    """
    registry = CollectorRegistry()
    registry.register(_Collector([*map(_metric, merged), *_own(fleet, restarts)]))
    return generate_latest(registry)


@final
class _Collector:
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _metric(family: Family) -> Metric:
    metric = Metric(family["name"], family["text"], family["kind"])
    for name, labels, value in family["samples"]:
        metric.add_sample(name, labels, value)
    return metric


def _own(fleet: FleetReport, restarts: int) -> Iterator[Metric]:
    yield InfoMetricFamily("haclient_proxy", "The version that runs.", {"version": fleet.version})
    yield CounterMetricFamily(
        "haclient_proxy_shed", "Calls refused because there was too much to do.", fleet.totals.shed
    )
    yield CounterMetricFamily(
        "haclient_proxy_worker_restarts", "Workers replaced after they had ended unasked.", restarts
    )
    yield GaugeMetricFamily("haclient_proxy_ready", "Whether a read can be served.", float(fleet.ready))
    for field, what in _MEASURED.items():
        gauge = GaugeMetricFamily(f"haclient_proxy_{field}", what, labels=["worker"])
        for slot, value in _by_slot(fleet.workers, field).items():
            gauge.add_metric([str(slot)], value)
        yield gauge


_MEASURED: Final[Mapping[str, str]] = {
    "connections": "Connections of clients.",
    "calls": "Calls under way.",
    "memory_bytes": "Bytes of requests and replies held.",
}


def _by_slot(workers: Iterable[WorkerStatus], field: str) -> dict[int, float]:
    """Add up a field by slot, which has two workers while one is replaced."""
    values: dict[int, float] = {}
    for worker in workers:
        values[worker.slot] = values.get(worker.slot, 0.0) + getattr(worker, field)
    return values
