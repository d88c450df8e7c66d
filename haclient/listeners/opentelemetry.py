"""Events as OpenTelemetry spans and metrics.

Decision made here: only the API is used, so without an SDK everything here costs next to nothing. A span is
made when its call has ended, with the start it really had: the hot path carries no span along. The attempts
are events of the span, as `haclient.events.CallFinished` carries them. Names follow the semantic conventions
for database clients; what these have no name for starts with ``haclient.``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final, final

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
except ImportError as error:  # pragma: no cover - the extra is installed where tests run
    raise ImportError('OpenTelemetryListener needs opentelemetry-api: pip install "haclient[opentelemetry]"') from error

from haclient import events
from haclient.call import Attempt
from haclient.events import CallFinished, Event
from haclient.fleet.model import FleetView
from haclient.listeners.labels import OTHER, Capped, action_label, method_label, outcome_label

_SYSTEM: Final = "milvus"
_GOOD: Final = frozenset({"ok", "cancelled"})


@final
class OpenTelemetryListener:
    """Turns calls into spans and counts events; subscribe one per client.

    The span of a call is a child of the span current in the task that made the call.

    Args:
        tracer_provider: The global one unless given.
        meter_provider: The global one unless given.
        max_endpoints: Endpoints that have attributes of their own in metrics.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        max_endpoints: int = 1000,
    ) -> None:
        self._tracer = trace.get_tracer("haclient", tracer_provider=tracer_provider)
        meter = metrics.get_meter("haclient", meter_provider=meter_provider)
        self._endpoint = Capped(max_endpoints)
        self._states: dict[tuple[str, str], str] = {}
        self._duration = meter.create_histogram(
            "db.client.operation.duration", unit="s", description="Time from a call to its answer."
        )
        self._attempts = meter.create_counter("haclient.attempts", unit="{attempt}", description="Attempts.")
        self._retrieval_duration = meter.create_histogram(
            "haclient.retrieval.duration", unit="s", description="Time from a question to its documents."
        )
        self._hedges = meter.create_counter("haclient.hedges", unit="{hedge}", description="Second attempts of reads.")
        self._retries = meter.create_counter("haclient.retries", unit="{retry}", description="Repeated attempts.")
        self._failovers = meter.create_counter(
            "haclient.failovers", unit="{call}", description="Calls answered elsewhere than first tried."
        )
        self._exhausted = meter.create_counter(
            "haclient.budget_exhausted", unit="{attempt}", description="Attempts not made for lack of budget."
        )
        self._quarantined = meter.create_counter(
            "haclient.quarantined", unit="{call}", description="Requests seen to kill servers."
        )
        self._alarms = meter.create_counter(
            "haclient.data_alarms", unit="{alarm}", description="Answers that smell of lost data."
        )
        meter.create_observable_gauge(
            "haclient.endpoint.state",
            [self._observe_states],
            unit="1",
            description="1 for the state an endpoint is in.",
        )

    def __call__(self, event: Event) -> None:
        """Count one event; make a span of a call."""
        match event:
            case CallFinished():
                self._call(event, getattr(event, "tries", ()))
            case events.AttemptFinished():
                where = self._where(event.cluster, event.endpoint)
                self._attempts.add(1, {**where, "haclient.action": action_label(event.action)})
            case events.Retrieved():
                attributes = {
                    "haclient.mode": event.mode,
                    "haclient.rung": event.rung,
                    "haclient.outcome": outcome_label(event.outcome),
                }
                self._retrieval_duration.record(event.duration_s, attributes)
            case events.HedgeStarted():
                self._hedges.add(1, {"db.operation.name": method_label(event.method)})
            case events.RetryScheduled():
                self._retries.add(1, {"db.operation.name": method_label(event.method)})
            case events.FailedOver():
                where = {"haclient.from_cluster": event.from_cluster, "haclient.to_cluster": event.to_cluster}
                self._failovers.add(1, where)
            case events.BudgetExhausted():
                wanted = event.wanted if event.wanted in {"retry", "hedge"} else OTHER
                self._exhausted.add(1, {"haclient.wanted": wanted})
            case events.CallQuarantined():
                self._quarantined.add(1, {"db.operation.name": method_label(event.method)})
            case events.DataAlarm():
                self._alarms.add(1, self._where(event.cluster, event.endpoint))
            case events.EndpointChanged():
                self._states[event.cluster, event.endpoint] = event.after
            case events.FleetReconfigured():
                self._states = {key: state for key, state in self._states.items() if key[1] not in event.removed}

    def observe(self, view: FleetView) -> None:
        """Take the states of a snapshot (``client.fleet``), for what was there before anyone listened."""
        self._states = {(c.name, e.name): e.state for c in view.clusters for e in c.endpoints}

    def _where(self, cluster: str, endpoint: str) -> dict[str, str]:
        return {"haclient.cluster": cluster, "haclient.endpoint": self._endpoint(endpoint)}

    def _observe_states(self, _: CallbackOptions) -> Iterable[Observation]:
        for (cluster, endpoint), state in list(self._states.items()):
            if self._endpoint(endpoint) != OTHER:
                yield Observation(1, {**self._where(cluster, endpoint), "haclient.state": state})

    def _call(self, event: CallFinished, tries: Iterable[Attempt]) -> None:
        outcome = outcome_label(event.outcome)
        method = method_label(event.method)
        common = {"db.system.name": _SYSTEM, "db.operation.name": method}
        failed = {} if outcome in _GOOD else {"error.type": outcome}
        self._duration.record(event.duration_s, {**common, **failed})
        # Loop time says nothing to others: the span ends now, and everything else lies before by that much.
        now_ns = time.time_ns()

        def wall_ns(at: float) -> int:
            return now_ns - round((event.at - at) * 1e9)

        span = self._tracer.start_span(
            f"{method} {event.collection}".strip(),
            kind=SpanKind.CLIENT,
            start_time=wall_ns(event.at - event.duration_s),
            attributes={
                **common,
                **failed,
                "db.collection.name": event.collection,
                "haclient.outcome": outcome,
                "haclient.cluster": event.cluster,
                "haclient.endpoint": event.endpoint,
                "haclient.attempts": event.attempts,
                "haclient.hedges": event.hedges,
            },
        )
        if span.is_recording():
            for attempt in tries:
                span.add_event(
                    "attempt",
                    {
                        "haclient.cluster": attempt.cluster,
                        "haclient.endpoint": attempt.endpoint,
                        "haclient.action": attempt.action.value if attempt.action else "",
                        "haclient.hedge": attempt.hedge,
                        "haclient.reason": attempt.reason,
                        "haclient.duration_s": (attempt.ended or event.at) - attempt.started,
                    },
                    timestamp=wall_ns(attempt.started),
                )
            if failed:
                span.set_status(Status(StatusCode.ERROR, event.outcome))
        span.end(end_time=now_ns)
