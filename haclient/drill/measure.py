"""Open-loop load, and what it measured.

Decision made here: questions come at a fixed rate whether or not earlier ones have been answered, and a latency
counts from the moment its question was due. A closed loop asks nothing while a server hangs, and so hides exactly
the seconds that matter ("coordinated omission"). The clock is `time.monotonic`, because uvloop's own counts whole
milliseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, final

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """One question of the load.

    Attributes:
        number: Its place in the schedule, from 0.
        due: When it should start, seconds of `time.monotonic`.
        started: When it did; later than ``due`` if this process was busy.
        ended: When it was answered or had failed.
        answer: What was returned, None if it failed.
        error: What was raised, None if it was answered.
    """

    number: int
    due: float
    started: float
    ended: float
    answer: T | None
    error: Exception | None

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.error is None

    @property
    def latency_s(self) -> float:
        """Seconds from when it was due to its end."""
        return self.ended - self.due


async def open_loop(
    ask: Callable[[int], Awaitable[T]],
    *,
    rate: float,
    seconds: float = math.inf,
    done: Callable[[Record[T]], None] | None = None,
    start: float | None = None,
    stopped: asyncio.Event | None = None,
) -> list[Record[T]]:
    """Ask questions on schedule, ``rate * seconds`` unless stopped before, and wait for all of them.

    Args:
        ask: Asks the question of that number; what it raises is recorded as a failure. It must end by itself.
        rate: Questions a second.
        seconds: Length of the schedule.
        done: Told of each record as it ends.
        start: When the first one is due, ``time.monotonic``; now unless given.
        stopped: Ends the schedule before its time.

    Returns:
        Every record, in the order they were due. Cancelled, it cancels what is under way.
    """
    records: list[Record[T]] = []
    begun = time.monotonic() if start is None else start

    async def one(number: int, due: float) -> None:
        answer: T | None = None
        failure: Exception | None = None
        started = time.monotonic()
        try:
            answer = await ask(number)
        except Exception as error:  # whatever it is, it is a failed question and the load goes on
            failure = error
        record = Record(number, due, started, time.monotonic(), answer, failure)
        records.append(record)
        if done is not None:
            done(record)

    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)) if math.isfinite(seconds) else itertools.count():
            if stopped is not None and stopped.is_set():
                break
            due = begun + number / rate
            # Also without a wait the loop must turn, or a schedule that is behind would never start its questions.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(number, due))
    return sorted(records, key=lambda record: record.number)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed (nearest rank).

    Args:
        ordered: Values in ascending order; NaN is returned if there are none.
        share: From 0 to 1.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures of a load. Latencies are of answered questions only, in seconds; None if there are none."""

    asked: int
    answered: int
    failed: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    p999_s: float | None
    max_s: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it for `json.dumps`, seconds rounded to 10 µs."""
        return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(self).items()}


def summarise(records: Iterable[Record[Any]], *, since: float = -math.inf, until: float = math.inf) -> Summary:
    """Count the records that were due in ``[since, until)`` of `time.monotonic`."""
    counted = [record for record in records if since <= record.due < until]
    latencies = sorted(record.latency_s for record in counted if record.ok)

    def at(share: float) -> float | None:
        return quantile(latencies, share) if latencies else None

    return Summary(
        asked=len(counted),
        answered=len(latencies),
        failed=len(counted) - len(latencies),
        p50_s=at(0.5),
        p90_s=at(0.9),
        p99_s=at(0.99),
        p999_s=at(0.999),
        max_s=at(1.0),
    )
