"""What haclient really exports to Prometheus, for tests of what refers to it."""

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from haclient import events
from haclient.call import Action, Attempt, Call, Kind, Method
from haclient.fleet.model import ClusterView, EndpointView, FleetView
from haclient.listeners.prometheus import PrometheusListener
from haclient.proxy import metrics
from haclient.proxy.report import FleetReport, Totals, WorkerStatus


def exported() -> dict[str, set[str]]:
    """Everything that a proxy exports when all has happened to it: the names of series, and their labels."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)
    at = {"at": 0.0, "cluster": "a"}
    for event in (
        events.HedgeStarted(method="Search", endpoint="e", delay_s=0.1, **at),
        events.RetryScheduled(at=0.0, method="Search", attempt=1, delay_s=0.1, reason=""),
        events.FailedOver(
            at=0.0, method="Search", from_cluster="a", from_endpoint="e", to_cluster="b", to_endpoint="f"
        ),
        events.BudgetExhausted(at=0.0, method="Search", wanted="retry"),
        events.CallQuarantined(at=0.0, method="Search", collection="c", fingerprint="f", for_s=1.0),
        events.DataAlarm(endpoint="e", collection="c", reason="", **at),
        events.StandingChanged(before="in_sync", after="away", reason="", **at),
        events.ReseedFailed(reason="", **at),
        events.ApplierChanged(active=True, reason="", **at),
        events.Retrieved(
            at=0.0, collection="c", mode="dense", outcome="ok", rung="first", questions=1, hits=1, duration_s=0.1
        ),
    ):
        listener(event)
    call = Call(Method("Search", "/s/S", Kind.READ), b"", (), 1.0)
    call.attempts.append(Attempt("e", "a", 0.0, action=Action.OK))
    listener.count(call, "ok", 1.0)
    endpoint = EndpointView("e", "e", "up", None, 0, {"c": True})
    cluster = ClusterView("a", "", 0, 1.0, (endpoint,), "in_sync", 1, ("c",), asynchronous=True, lag_s=1.0)
    listener.observe(FleetView((cluster,), 0.0))
    worker = WorkerStatus(slot=0, pid=1, state="serving", started=0, connections=1, calls=1, memory_bytes=1)
    report = FleetReport(
        version="1", started=0, now=0, ready=True, reason="", up=1, endpoints=1, clusters=[], drained=[],
        workers=[worker], totals=Totals(), objective=0.999, burn=[],
    )  # fmt: skip
    text = metrics.text(metrics.add([(0, metrics.families(registry))]), report, 0).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
