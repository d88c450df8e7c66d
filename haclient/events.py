"""Everything that changes state is an event: a frozen, typed value handed to listeners.

Metrics, logs, traces and dashboards are listeners (`haclient.listeners`); the core never logs by itself.
Listeners run synchronously on the event loop, so they must be quick; one that raises is reported once to
the standard logger and never disturbs a call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, TypeGuard, final

from haclient.call import Attempt, Call

_log = logging.getLogger("haclient")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes:
        at: Loop time in seconds.
    """

    at: float

    def __str__(self) -> str:
        pairs = " ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "at")
        return f"{type(self).__name__} {pairs}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChanged(Event):
    """An endpoint's state changed (names of `haclient.fleet.model.State`)."""

    cluster: str
    endpoint: str
    before: str
    after: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessChanged(Event):
    """An endpoint can, or can no longer, serve one collection."""

    cluster: str
    endpoint: str
    database: str
    collection: str
    ready: bool
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished(Event):
    """One attempt ended; ``action`` is the value of a `haclient.call.Action`."""

    cluster: str
    endpoint: str
    method: str
    action: str
    duration_s: float
    hedge: bool
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(Event):
    """What the application saw of one call.

    Attributes:
        outcome: ``ok``, ``error`` (the server refused the request itself), or the class name of the
            `haclient.errors.CallError` raised, or ``cancelled``.
        cluster: The cluster that answered, "" if none did.
        attempts: How many attempts were made.
        hedges: How many of them were hedges.
        tries: The attempts themselves, oldest first.
    """

    method: str
    kind: str
    collection: str
    outcome: str
    duration_s: float
    cluster: str
    endpoint: str
    attempts: int
    hedges: int
    tries: tuple[Attempt, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeStarted(Event):
    """A second attempt was started before the first had answered."""

    method: str
    cluster: str
    endpoint: str
    delay_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryScheduled(Event):
    """A failed try will be repeated after ``delay_s`` seconds."""

    method: str
    attempt: int
    delay_s: float
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FailedOver(Event):
    """A call was answered by another cluster or endpoint than the one tried first."""

    method: str
    from_cluster: str
    from_endpoint: str
    to_cluster: str
    to_endpoint: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetExhausted(Event):
    """A retry or hedge was not made because the budget of extra load is spent."""

    method: str
    wanted: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CallQuarantined(Event):
    """A request was seen to kill servers and is refused for ``for_s`` seconds."""

    method: str
    collection: str
    fingerprint: str
    for_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecognised(Event):
    """Clusters given apart turned out to be one (they hold the same collections by id)."""

    clusters: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReconfigured(Event):
    """The configuration changed while running."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    kept: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigRejected(Event):
    """A changed configuration file was wrong; the old configuration stays in force."""

    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DataAlarm(Event):
    """A server's answer smells of lost or damaged data."""

    cluster: str
    endpoint: str
    collection: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieved(Event):
    """A retriever has answered, or failed to.

    Attributes:
        mode: ``dense``, ``sparse`` or ``hybrid``.
        outcome: ``ok``, or the class name of the error raised.
        rung: Value of a `haclient.retrieval.Rung`: how far down the ladder the answer was found; "" if it failed.
        questions: How many questions were asked at once.
        hits: How many documents were found for all of them.
    """

    collection: str
    mode: str
    outcome: str
    rung: str
    questions: int
    hits: int
    duration_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Degraded(Event):
    """A retriever has gone down to a rung that may be stale (``relaxed``, ``cached``), for want of a better answer."""

    collection: str
    rung: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StandingChanged(Event):
    """What a cluster is to the others has changed (names of `haclient.replication.position.Standing`)."""

    cluster: str
    before: str
    after: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncLagging(Event):
    """A cluster at another site is further behind than ``max_lag_s`` allows, or is back within it.

    Attributes:
        lagging: Whether it is too far behind.
        entries: Entries of the mutation log that it lacks.
        lag_s: Age of the oldest of them, seconds; infinite if the log no longer holds it.
        max_lag_s: What is allowed.
    """

    cluster: str
    lagging: bool
    entries: int
    lag_s: float
    max_lag_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SiteChanged(Event):
    """It was decided anew which clusters count, and which follow them."""

    counted: tuple[str, ...]
    following: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryChanged(Event):
    """Clusters that replicate among themselves have another primary, or (then it is "") it is not known which."""

    before: str
    after: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamParked(Event):
    """A collection has stopped on one cluster at an entry of the log that it cannot take; an operator has to decide."""

    cluster: str
    database: str
    collection: str
    seq: int
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ApplierChanged(Event):
    """This process has begun, or has ceased, to apply the log to a cluster."""

    cluster: str
    active: bool
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReseedFailed(Event):
    """A cluster could not be copied anew by itself; it is tried again, and goes on where it stopped."""

    cluster: str
    reason: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LogTrouble(Event):
    """The mutation log failed; what needs it is tried again."""

    reason: str


Listener = Callable[[Event], None]


class Counter(Protocol):
    """A listener that counts calls: told of each call once, in place of the events of every call and attempt.

    Being told costs a function call; an event would have to be made first.
    """

    def __call__(self, event: Event, /) -> None:
        """Hear of an event."""

    def count(self, call: Call, outcome: str, duration_s: float) -> None:
        """Hear of a call that has ended; see `CallFinished` for what the arguments mean."""


#: What happens on every call that goes well; all other events say that something is out of the ordinary.
PER_CALL = (AttemptFinished, CallFinished, Retrieved)
_OF_CALLS = (AttemptFinished, CallFinished)


@final
class EventBus:
    """Hands each event to every listener, in order of subscription.

    Attributes:
        per_call: Whether anyone listens to `AttemptFinished` and `CallFinished`, so that the hot path need not build
            them for nobody.
        per_retrieval: The same of `Retrieved`.
        counters: Those that count calls.
    """

    __slots__ = ("_listeners", "_reported", "counters", "per_call", "per_retrieval")

    def __init__(self) -> None:
        self.per_call = False
        self.per_retrieval = False
        self.counters: tuple[Callable[[Call, str, float], None], ...] = ()
        self._listeners: tuple[tuple[Listener | Counter, bool], ...] = ()
        self._reported: set[int] = set()

    def subscribe(self, listener: Listener | Counter, *, per_call: bool = True) -> Callable[[], None]:
        """Add a listener; returns the function that removes it.

        Args:
            listener: Called with each event; a `Counter` is told of calls by its ``count``.
            per_call: Send it the events in `PER_CALL` too, one or more for every call.
        """
        entry = (listener, per_call)
        self._set((*self._listeners, entry))
        return lambda: self._set(tuple(other for other in self._listeners if other is not entry))

    def _set(self, listeners: tuple[tuple[Listener | Counter, bool], ...]) -> None:
        self._listeners = listeners
        wanted = [listener for listener, per_call in listeners if per_call]
        self.counters = tuple([listener.count for listener in wanted if _counts(listener)])
        self.per_call = len(self.counters) < len(wanted)
        self.per_retrieval = bool(wanted)

    def count(self, call: Call, outcome: str, duration_s: float) -> None:
        """Tell those that count calls of one."""
        for count in self.counters:
            try:
                count(call, outcome, duration_s)
            except Exception:
                self._complain(count)

    def emit(self, event: Event) -> None:
        """Hand one event to every listener that wants it."""
        usual, of_calls = isinstance(event, PER_CALL), isinstance(event, _OF_CALLS)
        for listener, per_call in self._listeners:
            if (usual and not per_call) or (of_calls and _counts(listener)):
                continue
            try:
                listener(event)
            except Exception:
                self._complain(listener)

    def _complain(self, listener: object) -> None:
        if id(listener) not in self._reported:
            self._reported.add(id(listener))
            _log.exception("haclient listener %r raised; further errors of it are not shown", listener)


def _counts(listener: Listener | Counter) -> TypeGuard[Counter]:
    return hasattr(listener, "count")
