"""Events as records of the standard logger.

Decision made here: what an operator has to know is a warning or an error, what changes by itself is
information, and what happens on every call is debugging. A storm of one kind of event about one endpoint is
cut to a few records per period, and the next record says how many were left out. The events' own loop time is
the clock, so a test needs no other.
"""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from typing import Final, final

from haclient import events
from haclient.events import Event

_LEVELS: Final[dict[type[Event], int]] = {
    events.AttemptFinished: logging.DEBUG,
    events.CallFinished: logging.DEBUG,
    events.Retrieved: logging.DEBUG,
    events.HedgeStarted: logging.DEBUG,
    events.RetryScheduled: logging.DEBUG,
    events.EndpointChanged: logging.INFO,
    events.ReadinessChanged: logging.INFO,
    events.FailedOver: logging.INFO,
    events.ClusterRecognised: logging.INFO,
    events.FleetReconfigured: logging.INFO,
    events.ApplierChanged: logging.INFO,
    events.StandingChanged: logging.INFO,
    events.LogTrouble: logging.WARNING,
    events.ReseedFailed: logging.WARNING,
    events.SiteChanged: logging.WARNING,
    events.PrimaryChanged: logging.WARNING,
    events.AsyncLagging: logging.ERROR,
    events.StreamParked: logging.ERROR,
    events.BudgetExhausted: logging.WARNING,
    events.Degraded: logging.WARNING,
    events.CallQuarantined: logging.ERROR,
    events.ConfigRejected: logging.ERROR,
    events.DataAlarm: logging.ERROR,
}


def level_of(event: Event) -> int:
    """Return the level of `logging` that an event is written at."""
    match event:
        case events.EndpointChanged(after="down") | events.ReadinessChanged(ready=False):
            return logging.WARNING
        case events.StandingChanged(after=after) if after != "in_sync":
            return logging.WARNING
        case events.PrimaryChanged(after=""):
            return logging.ERROR
        case events.AsyncLagging(lagging=False):
            return logging.INFO
        case events.CallFinished(outcome=outcome) if outcome not in {"ok", "error", "cancelled"}:
            return logging.WARNING
        case events.AttemptFinished(action="alarm"):
            return logging.WARNING
    return _LEVELS.get(type(event), logging.INFO)


def text_of(event: Event) -> str:
    """Write an event as ``name key=value ...``, quoted where a value is not one word."""
    return " ".join([type(event).__name__, *(f"{key}={_word(value)}" for key, value in details(event).items())])


def details(event: Event) -> dict[str, object]:
    """Return the fields of an event but its time and its list of attempts."""
    return {f.name: getattr(event, f.name) for f in fields(event) if f.name not in {"at", "tries"}}


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


@final
class LoggingListener:
    """Writes events to a logger, at most ``burst`` of one kind about one endpoint in ``period_s`` seconds.

    The record carries the fields of the event as ``record.haclient`` for structured formatters.

    Args:
        logger: Where to; the logger ``haclient.events`` unless given.
        burst: Records of one kind about one endpoint per period.
        period_s: Length of a period, seconds of loop time.
    """

    __slots__ = ("_burst", "_logger", "_period_s", "_seen")

    #: Kinds and endpoints remembered at most; past that the oldest is forgotten.
    REMEMBERED = 1000

    def __init__(self, logger: logging.Logger | None = None, *, burst: int = 5, period_s: float = 10.0) -> None:
        self._logger = logger if logger is not None else logging.getLogger("haclient.events")
        self._burst = burst
        self._period_s = period_s
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def __call__(self, event: Event) -> None:
        """Write one event, or count it as left out."""
        level = level_of(event)
        if not self._logger.isEnabledFor(level):
            return
        left_out = self._admit(event, level)
        if left_out is None:
            return
        extra = {"event": type(event).__name__, **details(event)}
        text = text_of(event)
        if left_out:
            extra["left_out"] = left_out
            text += f" left_out={left_out}"
        self._logger.log(level, "%s", text, extra={"haclient": extra})

    def _admit(self, event: Event, level: int) -> int | None:
        """Return how many were left out before this one, or None if this one is to be left out too."""
        where = (str(getattr(event, name, "")) for name in ("cluster", "endpoint"))
        key = (type(event).__name__, str(level), *where)
        start, count = self._seen.get(key, (event.at, 0))
        left_out = 0
        if not start <= event.at < start + self._period_s:
            left_out, start, count = max(0, count - self._burst), event.at, 0
        self._seen.pop(key, None)
        self._seen[key] = (start, count + 1)
        if len(self._seen) > self.REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return left_out if count < self._burst else None
