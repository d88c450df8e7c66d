"""The last events of all workers and of the supervisor, and whoever follows them.

Decision made here: the ring of the last events is everyone's queue. A follower has only a place in it, so one that is
slow costs nothing, and misses what has left the ring.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import islice
from typing import Any, Final, final

from haclient.proxy.report import EventReport

_KEPT: Final = 1_000
_log = logging.getLogger("haclient.proxy")


@final
class Journal:
    """Numbers events and keeps the last of them.

    Args:
        clock: Unix time.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: deque[EventReport] = deque(maxlen=_KEPT)
        self._last = 0
        self._closed = False
        self._news = asyncio.Event()

    def note(self, kind: str, level: str, text: str, **fields: Any) -> None:
        """Keep and log an event of the supervisor.

        Args:
            kind: What happened, as a class of events would be called.
            level: debug, info, warning or error.
            text: The same for a person, in one line.
            **fields: The same for a program.
        """
        extra = {"event": kind, **fields}
        _log.log(logging.getLevelNamesMapping()[level.upper()], "%s", text, extra={"haclient": extra})
        self._add(EventReport(id=0, at=self._clock(), kind=kind, worker=None, level=level, text=text, fields=fields))

    def hear(self, slot: int, event: Mapping[str, Any]) -> None:
        """Keep an event that a worker has seen, and logged, itself."""
        self._add(EventReport(**event, id=0, worker=slot))

    def _add(self, event: EventReport) -> None:
        self._last += 1
        self._kept.append(event.model_copy(update={"id": self._last}))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def recent(self, after: int) -> list[EventReport]:
        """See `haclient.proxy.report.Backend.recent`."""
        missed = min(self._last - after, len(self._kept))
        return list(islice(self._kept, len(self._kept) - missed, None)) if missed > 0 else []

    async def follow(self, after: int) -> AsyncIterator[EventReport]:
        """See `haclient.proxy.report.Backend.events`."""
        after = min(after, self._last)  # a number of an earlier supervisor's
        while True:
            news = self._news
            for event in self.recent(after):
                after = event.id
                yield event
            if self._closed:
                return
            if after == self._last:
                await news.wait()

    def close(self) -> None:
        """Let everyone who follows finish."""
        self._closed = True
        self._wake()
