"""Metrics of several workers as one text."""

import json

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from haclient.proxy import metrics
from haclient.proxy.report import FleetReport, Totals, WorkerStatus

FLEET = FleetReport(
    version="1.2.3", started=0.0, now=1.0, ready=True, reason="", up=1, endpoints=1, clusters=[], drained=[],
    workers=[
        WorkerStatus(slot=0, pid=1, state="draining", started=0.0, connections=3, calls=2, memory_bytes=10),
        WorkerStatus(slot=0, pid=2, state="serving", started=0.0, connections=4, calls=1, memory_bytes=20),
        WorkerStatus(slot=1, pid=3, state="serving", started=0.0, connections=5, calls=0, memory_bytes=0),
    ],
    totals=Totals(shed=9), objective=0.999, burn=[],
)  # fmt: skip


def counted(calls, state, *, method="Search"):
    """What a worker answers, as it comes over the control channel."""
    registry = CollectorRegistry()
    counter = Counter("calls", "Calls.", ["method"], namespace="haclient", registry=registry)
    counter.labels(method).inc(calls)
    histogram = Histogram("seconds", "Time.", ["method"], namespace="haclient", registry=registry, buckets=(1.0, 2.0))
    for _ in range(calls):
        histogram.labels(method).observe(1.5)
    Gauge("state", "State.", ["endpoint"], namespace="haclient", registry=registry).labels('a"\n').set(state)
    return json.loads(json.dumps(metrics.families(registry)))


def read(text):
    """Every sample by name and labels; a sample that comes twice is a mistake."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def test_counts_add_up_and_measures_stand_apart():
    merged = metrics.add([(0, counted(2, 1)), (1, counted(3, 0)), (1, counted(1, 1, method="Query"))])
    found = read(metrics.text(merged, FLEET, restarts=4))
    search = ("method", "Search")
    assert found["haclient_calls_total", search] == 5
    assert found["haclient_calls_total", ("method", "Query")] == 1
    assert found["haclient_seconds_count", search] == 5
    assert found["haclient_seconds_sum", search] == 7.5
    assert [found["haclient_seconds_bucket", ("le", le), search] for le in ("1.0", "2.0", "+Inf")] == [0, 5, 5]
    assert found["haclient_state", ("endpoint", 'a"\n'), ("worker", "0")] == 1
    assert not [key for key in found if key[0].endswith("_created")]


def test_ended_workers_keep_their_counts_and_lose_their_gauges():
    ended = metrics.add([(None, counted(2, 1)), (None, counted(2, 1))])
    found = read(metrics.text(metrics.add([(None, ended), (0, counted(1, 1))]), FLEET, restarts=2))
    assert found["haclient_calls_total", ("method", "Search")] == 5
    assert [key for key in found if key[0] == "haclient_state"] == [
        ("haclient_state", ("endpoint", 'a"\n'), ("worker", "0"))
    ]


def test_the_proxys_own_metrics():
    """Two workers of one place, while one is replaced, are one place."""
    found = read(metrics.text([], FLEET, restarts=4))
    assert found["haclient_proxy_info", ("version", "1.2.3")] == 1
    assert found["haclient_proxy_shed_total",] == 9
    assert found["haclient_proxy_worker_restarts_total",] == 4
    assert found["haclient_proxy_ready",] == 1
    assert found["haclient_proxy_connections", ("worker", "0")] == 7
    assert found["haclient_proxy_connections", ("worker", "1")] == 5
    assert found["haclient_proxy_calls", ("worker", "0")] == 3
    assert found["haclient_proxy_memory_bytes", ("worker", "0")] == 30
