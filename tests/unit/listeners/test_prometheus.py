"""Events as Prometheus metrics, on a real registry."""
# ruff: noqa: E501 - a table with one event per line is read across

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from haclient import events
from haclient.call import Action, Attempt, Call, Kind, Method
from haclient.fleet.model import ClusterView, EndpointView, FleetView, State
from haclient.listeners.prometheus import PrometheusListener

A = {"cluster": "a", "endpoint": "e1"}


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def listener(registry):
    return PrometheusListener(registry)


def call(method="Search", *attempts):
    tries = [Attempt(endpoint, "a", 0.0, action=action) for endpoint, action in attempts]
    return Call(Method(method, f"/s/{method}", Kind.READ), b"", (), 1.0, attempts=tries)


def changed(after, endpoint="e1", cluster="a"):
    return events.EndpointChanged(at=0.0, cluster=cluster, endpoint=endpoint, before="up", after=after, reason="")


def ready(collection, value, database="", endpoint="e1"):
    return events.ReadinessChanged(
        at=0.0, cluster="a", endpoint=endpoint, database=database, collection=collection, ready=value, reason=""
    )


def samples(registry, name):
    return [s for m in registry.collect() for s in m.samples if s.name == name]


def view(*names, state="up", **ready):
    endpoints = tuple(EndpointView(n, n, state, None, 0, ready) for n in names)
    return FleetView((ClusterView("a", "", 0, 1.0, endpoints),), 0.0)


def test_calls(registry, listener):
    """By method and outcome, with a histogram of their time."""
    for name, outcome, took_s in (("Search", "ok", 0.02), ("Search", "ok", 0.02), ("Search", "Unavailable", 0.02)):
        listener.count(call(name), outcome, took_s)
    listener.count(call("Query"), "ok", 3.0)
    value = registry.get_sample_value
    assert value("haclient_calls_total", {"method": "Search", "outcome": "ok"}) == 2
    assert value("haclient_calls_total", {"method": "Search", "outcome": "Unavailable"}) == 1
    assert value("haclient_call_duration_seconds_count", {"method": "Search"}) == 3
    assert value("haclient_call_duration_seconds_bucket", {"method": "Query", "le": "2.5"}) == 0
    assert value("haclient_call_duration_seconds_bucket", {"method": "Query", "le": "5.0"}) == 1


def test_attempts(registry, listener):
    """Every attempt of a call, by what its outcome asked for; one still under way has been given up."""
    listener.count(call("Search", ("e1", Action.FAILOVER), ("e2", Action.OK), ("e3", None)), "ok", 0.02)
    listener.count(call("Search", ("e2", Action.OK)), "ok", 0.02)
    found = {(s.labels["endpoint"], s.labels["action"]): s.value for s in samples(registry, "haclient_attempts_total")}
    assert found == {("e1", "failover"): 1, ("e2", "ok"): 2, ("e3", "cancelled"): 1}


def test_calls_are_told_once(registry, listener):
    """On a bus nobody makes events of calls for a listener that counts them; removed, it hears of nothing."""
    bus = events.EventBus()
    stop = bus.subscribe(listener)
    assert not bus.per_call
    assert bus.per_retrieval
    bus.count(call(), "ok", 0.02)
    bus.emit(
        events.CallFinished(
            at=0.0,
            method="Search",
            kind="read",
            collection="c",
            outcome="ok",
            duration_s=0.1,
            attempts=1,
            hedges=0,
            **A,
        )
    )
    stop()
    bus.count(call(), "ok", 0.02)
    assert registry.get_sample_value("haclient_calls_total", {"method": "Search", "outcome": "ok"}) == 1


def test_a_counter_that_raises_disturbs_nobody(caplog):
    """It is reported once."""

    class Broken:
        def count(self, call, outcome, duration_s):
            raise ZeroDivisionError

        def __call__(self, event): ...

    bus, seen = events.EventBus(), []
    bus.subscribe(Broken())
    bus.subscribe(seen.append)
    assert bus.per_call
    bus.count(call(), "ok", 0.02)
    bus.count(call(), "ok", 0.02)
    assert len(caplog.records) == 1


def test_retrievals(registry, listener):
    """By mode, rung and outcome; several questions at once count as so many."""
    asked = {"at": 0.0, "collection": "c", "mode": "hybrid", "hits": 4, "duration_s": 0.2}
    listener(events.Retrieved(outcome="ok", rung="cached", questions=3, **asked))
    listener(events.Retrieved(outcome="BadQuery", rung="", questions=1, **asked))
    value = registry.get_sample_value
    assert value("haclient_retrievals_total", {"mode": "hybrid", "rung": "cached", "outcome": "ok"}) == 3
    assert value("haclient_retrievals_total", {"mode": "hybrid", "rung": "", "outcome": "BadQuery"}) == 1
    assert value("haclient_retrieval_duration_seconds_count", {"mode": "hybrid"}) == 2


@pytest.mark.parametrize(
    ("event", "name", "labels"),
    [
        (events.HedgeStarted(at=0.0, method="Search", delay_s=0.1, **A), "hedges", {"method": "Search"}),
        (events.RetryScheduled(at=0.0, method="Query", attempt=1, delay_s=0.1, reason=""), "retries", {"method": "Query"}),
        (
            events.FailedOver(at=0.0, method="Search", from_cluster="a", from_endpoint="1", to_cluster="b", to_endpoint="2"),
            "failovers",
            {"from_cluster": "a", "to_cluster": "b"},
        ),
        (events.BudgetExhausted(at=0.0, method="Search", wanted="hedge"), "budget_exhausted", {"wanted": "hedge"}),
        (events.CallQuarantined(at=0.0, method="Search", collection="c", fingerprint="f", for_s=1.0), "quarantined", {"method": "Search"}),
        (events.DataAlarm(at=0.0, collection="c", reason="", **A), "data_alarms", A),
        (events.ConfigRejected(at=0.0, reason=""), "config_rejected", {}),
        (events.LogTrouble(at=0.0, reason=""), "log_trouble", {}),
        (events.StandingChanged(at=0.0, cluster="a", before="in_sync", after="away", reason=""), "standing_changes", {"cluster": "a", "standing": "away"}),
        (events.ReseedFailed(at=0.0, cluster="a", reason=""), "reseed_failures", {"cluster": "a"}),
    ],
)  # fmt: skip
def test_counters(registry, listener, event, name, labels):
    """Each event counts one."""
    listener(event)
    listener(event)
    assert registry.get_sample_value(f"haclient_{name}_total", labels) == 2


def test_who_applies(registry, listener):
    """The gauge is 1 from when this process begins to apply the log to a cluster until it ceases."""
    for active in (True, False, True):
        listener(events.ApplierChanged(at=0.0, cluster="a", active=active, reason=""))
        assert registry.get_sample_value("haclient_applier_active", {"cluster": "a"}) == active


def test_endpoint_is_in_one_state(registry, listener):
    """The gauge is 1 for the state and 0 for the others."""
    for state in ("down", "probation", "up"):
        listener(changed(state))
    found = {s.labels["state"]: s.value for s in samples(registry, "haclient_endpoint_state")}
    assert found == {"up": 1, "down": 0, "probation": 0, "draining": 0, "drained": 0}
    assert set(found) == {s.value for s in State}


def test_readiness(registry, listener):
    """A collection of another database has its name before it."""
    listener(ready("docs", True))
    listener(ready("docs", False, database="default"))
    listener(ready("docs", True, database="books"))
    found = {s.labels["collection"]: s.value for s in samples(registry, "haclient_ready")}
    assert found == {"docs": 0, "books.docs": 1}


def test_snapshot_sets_and_forgets(registry, listener):
    """What was there before anyone listened is seen, what is gone is not."""
    listener.observe(view("e1", "e2", docs=True, books=False))
    assert len(samples(registry, "haclient_ready")) == 4
    listener.observe(view("e2", state="drained", docs=True))
    assert {s.labels["endpoint"] for s in samples(registry, "haclient_endpoint_state")} == {"e2"}
    assert registry.get_sample_value(
        "haclient_endpoint_state", {"cluster": "a", "endpoint": "e2", "state": "drained"}
    ) == 1  # fmt: skip
    assert {s.labels["endpoint"] for s in samples(registry, "haclient_ready")} == {"e2"}


def test_how_far_clusters_are(registry, listener):
    """Only where writes are mirrored; a cluster that is gone leaves nothing."""
    behind = ClusterView("b", "", 0, 1.0, (), standing="away", lag=7, parked=("docs",))
    listener.observe(FleetView((ClusterView("a", "", 0, 1.0, ()), behind), 0.0))
    for name, value in (("lag_entries", 7), ("in_sync", 0), ("parked_collections", 1)):
        (sample,) = samples(registry, f"haclient_cluster_{name}")
        assert (sample.labels["cluster"], sample.value) == ("b", value)
    listener.observe(FleetView((), 0.0))
    assert samples(registry, "haclient_cluster_lag_entries") == []


def test_removed_endpoints_lose_their_gauges(registry, listener):
    """A reconfiguration leaves no gauge of an endpoint that is gone."""
    listener.observe(view("e1", "e2", docs=True))
    listener(events.FleetReconfigured(at=0.0, added=(), removed=("e1",), kept=1))
    for name in ("haclient_endpoint_state", "haclient_ready"):
        assert {s.labels["endpoint"] for s in samples(registry, name)} == {"e2"}


def test_labels_are_bounded(registry):
    """Nothing that an application or a server makes up grows a metric."""
    listener = PrometheusListener(registry, max_collections=3, max_endpoints=4)
    for i in range(50):
        listener.count(call(f"M{i}", (f"e{i}", Action.OK)), f"o{i}", 0.02)
        listener(ready(f"c{i}", True))
        listener(changed("up", endpoint=f"e{i}"))
    assert [s.labels for s in samples(registry, "haclient_calls_total")] == [{"method": "other", "outcome": "other"}]
    assert {s.labels["collection"] for s in samples(registry, "haclient_ready")} == {"c0", "c1", "c2"}
    endpoints = {s.labels["endpoint"] for s in samples(registry, "haclient_endpoint_state")}
    assert endpoints == {"e0", "e1", "e2", "e3"}
    assert {s.labels["endpoint"] for s in samples(registry, "haclient_attempts_total")} == endpoints | {"other"}


def test_exposition_is_readable(registry, listener):
    """What a Prometheus server would read."""
    listener.count(call("Search", ("e1", Action.OK)), "ok", 0.02)
    listener(changed("down"))
    text = generate_latest(registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"haclient_calls", "haclient_call_duration_seconds", "haclient_endpoint_state", "haclient_ready"} <= names


def test_namespace_and_two_listeners():
    """Two listeners need two namespaces or two registries."""
    registry = CollectorRegistry()
    PrometheusListener(registry)
    PrometheusListener(registry, namespace="second")
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusListener(registry)
