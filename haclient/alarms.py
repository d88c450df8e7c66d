"""Many alarms on one timer.

Decision made here: most alarms are set for a few milliseconds and called off long before, so setting and calling off
must cost next to nothing. They wait in a heap of our own, one that is called off stays there as an empty shell, and
one timer of the loop watches the earliest.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Final, final

#: A loop may call a timer early by its clock's resolution, seconds (uvloop: 1 ms).
_EARLY_S: Final = 0.0005


@final
class Alarm:
    """One alarm; made by `Alarms.set`."""

    __slots__ = ("_call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self._call: Callable[[], None] | None = call

    def __lt__(self, other: Alarm) -> bool:
        return self.when < other.when

    @property
    def set(self) -> bool:
        """Neither called off nor over."""
        return self._call is not None

    def cancel(self) -> None:
        """Call it off."""
        self._call = None

    def ring(self) -> None:
        """Call what it was set for, unless it was called off."""
        call, self._call = self._call, None
        if call is not None:
            call()


@final
class Alarms:
    """Alarms of one loop.

    Args:
        loop: Its time is the clock.
    """

    __slots__ = ("_heap", "_loop", "_timer", "_watched")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[Alarm] = []
        self._timer: asyncio.TimerHandle | None = None
        self._watched = 0.0

    def __len__(self) -> int:
        return sum([alarm.set for alarm in self._heap])

    def set(self, when: float, call: Callable[[], None]) -> Alarm:
        """Have ``call`` called at ``when`` (loop time)."""
        alarm = Alarm(when, call)
        heap = self._heap
        heapq.heappush(heap, alarm)
        if self._timer is None or when < self._watched:
            self._watch(when)
        return alarm

    def close(self) -> None:
        """Call all of them off."""
        for alarm in self._heap:
            alarm.cancel()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._watched = when
        self._timer = self._loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer = None
        heap, now = self._heap, self._loop.time() + _EARLY_S
        due = []
        while heap and (heap[0].when <= now or not heap[0].set):
            due.append(heapq.heappop(heap))
        if heap:
            self._watch(heap[0].when)
        for alarm in due:
            alarm.ring()
