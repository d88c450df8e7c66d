"""Deadlines of many calls on one timer.

Decision made here: the loop's heap of timers would keep a handle per call until its time, long after most are
answered. Here calls are grouped in slots of a few milliseconds, a finished call leaves its slot at once, and
one timer of the loop watches the earliest slot. A deadline fires up to `SLOT_S` late, never early.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import Final, Protocol, final

#: Width of a slot.
SLOT_S: Final = 0.005


class Expiring(Protocol):
    """What has a deadline."""

    def expired(self) -> None:
        """The deadline is here."""


@final
class Deadlines:
    """The deadlines of one channel."""

    __slots__ = ("_armed", "_heap", "_loop", "_slots", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, dict[Expiring, None]] = {}
        self._heap: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, item: Expiring, when: float) -> int:
        """Have ``item.expired()`` called at ``when`` (loop time); returns the slot for `remove`."""
        slot = int(when / SLOT_S) + 1
        items = self._slots.get(slot)
        if items is not None:
            items[item] = None
            return slot
        self._slots[slot] = {item: None}
        heap = self._heap
        heapq.heappush(heap, slot)
        if len(heap) > 64 and len(heap) > 2 * len(self._slots):
            # Slots emptied before their time leave their number behind.
            heap[:] = sorted(self._slots)
        if self._timer is None or slot < self._armed:
            self._arm(slot)
        return slot

    def remove(self, item: Expiring, slot: int) -> None:
        """Forget an item."""
        items = self._slots.get(slot)
        if items is not None:
            items.pop(item, None)
            if not items:
                del self._slots[slot]

    def close(self) -> None:
        """Forget everything."""
        self._slots.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = slot
        self._timer = self._loop.call_at(slot * SLOT_S, self._fire)

    def _fire(self) -> None:
        self._timer = None
        # The loop may call a timer early by its clock's resolution.
        now = int(self._loop.time() / SLOT_S + 1e-3)
        heap = self._heap
        due: list[Expiring] = []
        while heap and (heap[0] <= now or heap[0] not in self._slots):
            due += self._slots.pop(heapq.heappop(heap), ())
        if heap:
            self._arm(heap[0])
        for item in due:
            item.expired()
