"""Whether one more call can be taken on, all clients together.

Decision made here: what cannot be answered in time is refused at once, since a queue that grows makes every answer
late. Three things are bounded: calls under way, bytes held, and how late the event loop runs (after CoDel, RFC 8289:
late once is a burst, late all the time is a standing queue).
"""

from __future__ import annotations

import asyncio
from typing import Final, final

from haclient.config import ProxyLimits

#: The loop's lateness is measured this often, seconds, and counts if it was too great this many times in a row.
_TICK_S: Final = 0.05
_LATE_TICKS: Final = 3


@final
class Admission:
    """Counts what is under way in one worker.

    Args:
        limits: How much may be.
        loop: Its lateness is measured.

    Attributes:
        calls: Calls under way.
        memory_bytes: Bytes of requests and replies held.
        shed: Calls refused so far.
    """

    __slots__ = ("_late", "_loop", "_timer", "calls", "limits", "memory_bytes", "shed")

    def __init__(self, limits: ProxyLimits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.calls = 0
        self.memory_bytes = 0
        self.shed = 0
        self._late = 0
        self._loop = loop
        self._timer = loop.call_later(_TICK_S, self._tick, loop.time() + _TICK_S)

    def admit(self) -> str:
        """Take on one more call; return why not, "" if it was."""
        if self.calls >= self.limits.calls:
            self.shed += 1
            return f"the proxy has {self.calls} calls under way, as many as it takes; try again later"
        if self._late >= _LATE_TICKS:
            self.shed += 1
            return "the proxy is overloaded (its event loop runs late); try again later"
        self.calls += 1
        return ""

    def hold(self, size: int) -> str:
        """Hold more bytes; return why not, "" if they are."""
        if self.memory_bytes + size > self.limits.memory_bytes:
            self.shed += 1
            return f"the proxy holds {self.memory_bytes} bytes of messages, as many as it may; try again later"
        self.memory_bytes += size
        return ""

    def release(self, calls: int, size: int) -> None:
        """Give back what a call has taken."""
        self.calls -= calls
        self.memory_bytes -= size

    def close(self) -> None:
        """Stop measuring."""
        self._timer.cancel()

    def _tick(self, expected: float) -> None:
        now = self._loop.time()
        self._late = self._late + 1 if now - expected > self.limits.lag_s else 0
        self._timer = self._loop.call_later(_TICK_S, self._tick, now + _TICK_S)
