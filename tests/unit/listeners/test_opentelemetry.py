"""Events as OpenTelemetry spans and metrics, on the SDK's in-memory exporters."""
# ruff: noqa: E501 - a table with one event per line is read across

from dataclasses import dataclass

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from haclient import events
from haclient.call import Action, Attempt
from haclient.fleet.model import ClusterView, EndpointView, FleetView
from haclient.listeners.opentelemetry import OpenTelemetryListener

A = {"cluster": "a", "endpoint": "e1"}


@dataclass
class Telemetry:
    listener: OpenTelemetryListener
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer: object

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def points(self, name):
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry():
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader])
    yield Telemetry(OpenTelemetryListener(tracers, meters), exporter, reader, tracers.get_tracer("test"))
    tracers.shutdown()
    meters.shutdown()


def call(outcome="ok", method="Search", duration_s=0.5):
    return events.CallFinished(
        at=100.0, method=method, kind="read", collection="docs", outcome=outcome, duration_s=duration_s, attempts=2,
        hedges=1, **A,
    )  # fmt: skip


TRIES = (
    Attempt("e2", "b", 99.5, 99.9, Action.FAILOVER, reason="refused"),
    Attempt("e1", "a", 99.7, 100.0, Action.OK, hedge=True),
)


def test_a_call_is_a_span_with_its_real_times(telemetry):
    """The span starts when the call did, under the span of the task that made it."""
    with telemetry.tracer.start_as_current_span("request") as parent:
        telemetry.listener(call())
    span = next(s for s in telemetry.spans if s.name == "Search docs")
    assert span.kind is SpanKind.CLIENT
    assert span.parent.span_id == parent.get_span_context().span_id
    assert abs(span.end_time - span.start_time - 500_000_000) < 1000
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes) == {
        "db.system.name": "milvus", "db.operation.name": "Search", "db.collection.name": "docs", "haclient.outcome": "ok",
        "haclient.cluster": "a", "haclient.endpoint": "e1", "haclient.attempts": 2, "haclient.hedges": 1,
    }  # fmt: skip


def test_a_failed_call_is_an_error(telemetry):
    """With the class of the error as its type."""
    telemetry.listener(call("Unavailable"))
    (span,) = telemetry.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "Unavailable"


def test_attempts_are_events_of_the_span(telemetry):
    """Each at the time it was sent, with where and why."""
    telemetry.listener._call(call(), TRIES)
    (span,) = telemetry.spans
    first, second = span.events
    assert first.name == "attempt"
    assert dict(first.attributes) == {
        "haclient.cluster": "b", "haclient.endpoint": "e2", "haclient.action": "failover", "haclient.hedge": False,
        "haclient.reason": "refused", "haclient.duration_s": pytest.approx(0.4),
    }  # fmt: skip
    assert abs(first.timestamp - span.start_time) < 1000
    assert abs(second.timestamp - first.timestamp - 200_000_000) < 1000


def test_metrics(telemetry):
    """Counted once each, with bounded attributes."""
    listener = telemetry.listener
    for event in (
        call(),
        call("Unavailable"),
        call(method="made-up"),
        events.AttemptFinished(at=0.0, method="Search", action="ok", duration_s=1.0, hedge=False, reason="", **A),
        events.HedgeStarted(at=0.0, method="Search", delay_s=0.1, **A),
        events.RetryScheduled(at=0.0, method="Search", attempt=1, delay_s=0.1, reason=""),
        events.FailedOver(at=0.0, method="Search", from_cluster="a", from_endpoint="1", to_cluster="b", to_endpoint="2"),
        events.BudgetExhausted(at=0.0, method="Search", wanted="retry"),
        events.CallQuarantined(at=0.0, method="Search", collection="c", fingerprint="f", for_s=1.0),
        events.DataAlarm(at=0.0, collection="c", reason="", **A),
    ):  # fmt: skip
        listener(event)
    points = telemetry.points("db.client.operation.duration")
    found = {(p.attributes["db.operation.name"], p.attributes.get("error.type")): p.count for p in points}
    assert found == {("Search", None): 1, ("Search", "Unavailable"): 1, ("other", None): 1}


def test_retrievals_are_timed_by_mode_rung_and_outcome(telemetry):
    asked = {"at": 0.0, "collection": "c", "mode": "dense", "questions": 1, "hits": 4, "duration_s": 0.2}
    telemetry.listener(events.Retrieved(outcome="ok", rung="hedge", **asked))
    [point] = telemetry.points("haclient.retrieval.duration")
    assert (point.count, point.sum) == (1, 0.2)
    assert point.attributes == {"haclient.mode": "dense", "haclient.rung": "hedge", "haclient.outcome": "ok"}


@pytest.mark.parametrize(
    ("event", "name", "attributes"),
    [
        (events.HedgeStarted(at=0.0, method="Search", delay_s=0.1, **A), "hedges", {"db.operation.name": "Search"}),
        (events.RetryScheduled(at=0.0, method="x", attempt=1, delay_s=0.1, reason=""), "retries", {"db.operation.name": "other"}),
        (events.BudgetExhausted(at=0.0, method="Search", wanted="retry"), "budget_exhausted", {"haclient.wanted": "retry"}),
        (events.DataAlarm(at=0.0, collection="c", reason="", **A), "data_alarms", {"haclient.cluster": "a", "haclient.endpoint": "e1"}),
        (
            events.FailedOver(at=0.0, method="Search", from_cluster="a", from_endpoint="1", to_cluster="b", to_endpoint="2"),
            "failovers",
            {"haclient.from_cluster": "a", "haclient.to_cluster": "b"},
        ),
        (
            events.AttemptFinished(at=0.0, method="Search", action="ok", duration_s=1.0, hedge=False, reason="", **A),
            "attempts",
            {"haclient.cluster": "a", "haclient.endpoint": "e1", "haclient.action": "ok"},
        ),
        (events.CallQuarantined(at=0.0, method="Search", collection="c", fingerprint="f", for_s=1.0), "quarantined", {"db.operation.name": "Search"}),
    ],
)  # fmt: skip
def test_counters(telemetry, event, name, attributes):
    """Each event counts one."""
    telemetry.listener(event)
    telemetry.listener(event)
    (point,) = telemetry.points(f"haclient.{name}")
    assert (point.value, dict(point.attributes)) == (2, attributes)


def test_endpoint_states(telemetry):
    """The last state told, also from a snapshot."""
    endpoints = (EndpointView("e1", "e1", "up", None, 0), EndpointView("e2", "e2", "up", None, 0))
    telemetry.listener.observe(FleetView((ClusterView("a", "", 0, 1.0, endpoints),), 0.0))
    telemetry.listener(events.EndpointChanged(at=0.0, cluster="a", endpoint="e2", before="up", after="down", reason=""))
    telemetry.listener(events.FleetReconfigured(at=0.0, added=(), removed=("e1",), kept=1))
    (point,) = telemetry.points("haclient.endpoint.state")
    assert dict(point.attributes) == {
        "haclient.cluster": "a", "haclient.endpoint": "e2", "haclient.state": "down"
    }  # fmt: skip


def test_without_an_sdk():
    """The API alone is enough, and nothing is recorded."""
    listener = OpenTelemetryListener()
    listener(call())
    listener(call("Unavailable"))
