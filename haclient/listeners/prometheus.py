"""Events as Prometheus metrics.

Decision made here: counters and histograms come from events alone; gauges hold the last state told, and
`PrometheusListener.observe` sets them all from a snapshot, for what was there before anyone listened.
Labels are bounded by `haclient.listeners.labels`.
"""

from __future__ import annotations

from typing import Final, final

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:  # pragma: no cover - the extra is installed where tests run
    raise ImportError('PrometheusListener needs prometheus-client: pip install "haclient[prometheus]"') from error

from haclient import events
from haclient.call import Call
from haclient.events import Event
from haclient.fleet.model import FleetView
from haclient.listeners.calls import BUCKETS, CallCounts
from haclient.listeners.labels import (
    OTHER,
    STATES,
    Capped,
    collection_name,
    method_label,
    outcome_label,
)

_MOST_CHILDREN: Final = 10_000


@final
class PrometheusListener:
    """Counts events; one listener may be subscribed to several clients.

    Args:
        registry: Where the metrics are registered; Prometheus' default registry unless given.
        namespace: First part of every metric's name.
        max_collections: Collections that have a label of their own; later ones have no ``ready`` gauge.
        max_endpoints: Endpoints that have labels of their own (discovery finds new addresses for ever).

    Raises:
        ValueError: The registry has metrics of these names already: subscribe the listener that made them.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        namespace: str = "haclient",
        max_collections: int = 100,
        max_endpoints: int = 1000,
    ) -> None:
        self._collection = Capped(max_collections)
        self._endpoint = Capped(max_endpoints)
        self._retrieval_children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._states: dict[tuple[str, str], str] = {}
        self._ready: set[tuple[str, str, str]] = set()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=namespace, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, namespace=namespace, registry=registry)

        self._calls = CallCounts(namespace, self._endpoint)
        registry.register(self._calls)
        self._retrievals = counter(
            "retrievals_total", "Questions asked of retrievers, by the rung that answered.", "mode", "rung", "outcome"
        )
        self._retrieval_duration = Histogram(
            "retrieval_duration_seconds",
            "Time from a question to its documents, embedding included.",
            ["mode"],
            namespace=namespace,
            registry=registry,
            buckets=BUCKETS,
        )
        self._hedges = counter("hedges_total", "Second attempts of reads.", "method")
        self._retries = counter("retries_total", "Repeated attempts.", "method")
        self._failovers = counter(
            "failovers_total", "Calls answered elsewhere than first tried.", "from_cluster", "to_cluster"
        )
        self._exhausted = counter("budget_exhausted_total", "Attempts not made for lack of budget.", "wanted")
        self._quarantined = counter("quarantined_total", "Requests seen to kill servers.", "method")
        self._alarms = counter("data_alarms_total", "Answers that smell of lost data.", "cluster", "endpoint")
        self._rejected = counter("config_rejected_total", "Changed configuration files that were wrong.")
        self._log_trouble = counter("log_trouble_total", "Failures of the mutation log.")
        self._standings = counter(
            "standing_changes_total", "Changes of what a cluster is to the others.", "cluster", "standing"
        )
        self._reseeds_failed = counter(
            "reseed_failures_total", "Clusters that could not be copied anew by themselves.", "cluster"
        )
        self._applies = gauge(
            "applier_active", "Whether this process applies the mutation log to a cluster.", "cluster"
        )
        self._state = gauge("endpoint_state", "1 for the state an endpoint is in.", "cluster", "endpoint", "state")
        self._lag = gauge("cluster_lag_entries", "Entries of the mutation log that a cluster lacks.", "cluster")
        self._lag_s = gauge(
            "cluster_lag_seconds", "Age of the oldest entry that an asynchronous cluster lacks.", "cluster"
        )
        self._follows = gauge("cluster_asynchronous", "Whether a cluster follows the others.", "cluster")
        self._in_sync = gauge("cluster_in_sync", "Whether a cluster applies the mutation log.", "cluster")
        self._parked = gauge("cluster_parked_collections", "Collections stopped on a cluster.", "cluster")
        self._readiness = gauge(
            "ready", "Whether an endpoint can serve a collection.", "cluster", "endpoint", "collection"
        )

    def count(self, call: Call, outcome: str, duration_s: float) -> None:
        """Count one call and its attempts; see `haclient.events.Counter`."""
        self._calls.count(call, outcome, duration_s)

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case events.Retrieved():
                retrievals, duration = self._of_retrieval(event.mode, event.rung, event.outcome)
                retrievals.inc(event.questions)
                duration.observe(event.duration_s)
            case events.HedgeStarted():
                self._hedges.labels(method_label(event.method)).inc()
            case events.RetryScheduled():
                self._retries.labels(method_label(event.method)).inc()
            case events.FailedOver():
                self._failovers.labels(event.from_cluster, event.to_cluster).inc()
            case events.BudgetExhausted():
                self._exhausted.labels(event.wanted if event.wanted in {"retry", "hedge"} else OTHER).inc()
            case events.CallQuarantined():
                self._quarantined.labels(method_label(event.method)).inc()
            case events.DataAlarm():
                self._alarms.labels(event.cluster, self._endpoint(event.endpoint)).inc()
            case events.ConfigRejected():
                self._rejected.inc()
            case events.LogTrouble():
                self._log_trouble.inc()
            case events.StandingChanged():
                self._standings.labels(event.cluster, event.after).inc()
            case events.ReseedFailed():
                self._reseeds_failed.labels(event.cluster).inc()
            case events.ApplierChanged():
                self._applies.labels(event.cluster).set(event.active)
            case events.EndpointChanged():
                self._set_state(event.cluster, event.endpoint, event.after)
            case events.ReadinessChanged():
                name = collection_name(event.database, event.collection)
                self._set_ready(event.cluster, event.endpoint, name, event.ready)
            case events.FleetReconfigured():
                self._forget({key for key in self._states if key[1] in event.removed})
                self._forget_ready({key for key in self._ready if key[1] in event.removed})

    # What happens often: looking labels up anew each time would cost more than counting.

    def _of_retrieval(self, mode: str, rung: str, outcome: str) -> tuple[Counter, Histogram]:
        found = self._retrieval_children.get((mode, rung, outcome))
        if found is None:
            labels = self._retrievals.labels(mode, rung, outcome_label(outcome))
            found = labels, self._retrieval_duration.labels(mode)
            if len(self._retrieval_children) < _MOST_CHILDREN:
                self._retrieval_children[mode, rung, outcome] = found
        return found

    def observe(self, view: FleetView) -> None:
        """Set every gauge from a snapshot (``client.fleet``), and drop those of endpoints that are not in it."""
        present = {(cluster.name, endpoint.name) for cluster in view.clusters for endpoint in cluster.endpoints}
        self._forget(self._states.keys() - present)
        self._forget_ready({key for key in self._ready if key[:2] not in present})
        for gauge in (self._lag, self._lag_s, self._follows, self._in_sync, self._parked):
            gauge.clear()
        for cluster in view.clusters:
            if cluster.standing:
                self._lag.labels(cluster.name).set(cluster.lag)
                self._follows.labels(cluster.name).set(cluster.asynchronous)
                if cluster.lag_s is not None:
                    self._lag_s.labels(cluster.name).set(cluster.lag_s)
                self._in_sync.labels(cluster.name).set(cluster.standing == "in_sync")
                self._parked.labels(cluster.name).set(len(cluster.parked))
            for endpoint in cluster.endpoints:
                self._set_state(cluster.name, endpoint.name, endpoint.state)
                for collection, ready in endpoint.ready.items():
                    self._set_ready(cluster.name, endpoint.name, collection, ready)

    def _set_state(self, cluster: str, endpoint: str, state: str) -> None:
        if self._endpoint(endpoint) == OTHER:
            return  # several endpoints have no one state
        self._states[cluster, endpoint] = state
        for each in STATES:
            self._state.labels(cluster, endpoint, each).set(each == state)

    def _set_ready(self, cluster: str, endpoint: str, collection: str, ready: bool) -> None:
        if OTHER in (self._endpoint(endpoint), self._collection(collection)):
            return
        self._ready.add((cluster, endpoint, collection))
        self._readiness.labels(cluster, endpoint, collection).set(ready)

    def _forget(self, keys: set[tuple[str, str]]) -> None:
        for key in keys:
            del self._states[key]
            for state in STATES:
                self._state.remove(*key, state)

    def _forget_ready(self, keys: set[tuple[str, str, str]]) -> None:
        for key in keys:
            self._ready.discard(key)
            self._readiness.remove(*key)
