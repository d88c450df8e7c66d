"""The gate in front of one endpoint: a circuit breaker that decides by itself and keeps its state in aiobreaker.

Decision made here: aiobreaker holds the state and tells its listeners, nothing more. What it does not do is
done by `Gate`: a rolling window, loop time, exactly N permits while half open, and a generation that makes
the outcome of a call from before a transition count for nothing.

Who may try while the breaker is open: nobody (but see the balancer's last resort). The prober moves it to
half open once the wait is over and a probe has succeeded; users are not sent ahead as guinea pigs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from aiobreaker import CircuitBreaker, CircuitBreakerListener
from aiobreaker.state import CircuitBreakerState

from haclient.config import Breaker

CLOSED, HALF_OPEN, OPEN = 0, 1, 2
NAMES = ("closed", "half-open", "open")
REFUSED = -1

_STATES = {CircuitBreakerState.CLOSED: CLOSED, CircuitBreakerState.HALF_OPEN: HALF_OPEN, CircuitBreakerState.OPEN: OPEN}


@final
class Gate(CircuitBreakerListener):  # type: ignore[misc]
    """Circuit breaker of one endpoint.

    A permit is the generation it was given in (an int); `REFUSED` means none was given. Every permit
    given must come back through `record`.

    Args:
        name: For listeners.
        settings: Thresholds and waits.
        clock: Loop time in seconds.
        on_change: Called with (state before, state after, reason) at every transition.

    Attributes:
        slow: It is open for no other reason than that other endpoints answer faster.
    """

    def __init__(
        self, name: str, settings: Breaker, clock: Callable[[], float], on_change: Callable[[int, int, str], None]
    ) -> None:
        self.state = CLOSED
        self.generation = 0
        self.reason = ""
        self.slow = False
        self.retry_at = 0.0
        self.settings = settings
        self._clock = clock
        self._on_change = on_change
        self._consecutive = 0
        self._window = _Window(settings.window_s, clock())
        self._permits = 0
        self._trials = 0
        self._reopened = 0
        self._closed_at = float("-inf")
        self._holder = CircuitBreaker(name=name, listeners=[self])

    def state_change(self, breaker: object, old: object, new: object) -> None:
        """Take over the state that aiobreaker now holds (its listener protocol)."""
        before, self.state = self.state, _STATES[new.state]  # type: ignore[attr-defined]
        self.generation += 1
        self._on_change(before, self.state, self.reason)

    def try_acquire(self) -> int:
        """Ask for a permit: the generation, or `REFUSED`."""
        if self.state == CLOSED:
            return self.generation
        if self.state == HALF_OPEN and self._permits > 0:
            self._permits -= 1
            return self.generation
        return REFUSED

    def record(self, permit: int, ok: bool | None) -> None:
        """Give a permit back with what came of it; None says nothing about the endpoint."""
        if permit != self.generation:
            return
        if self.state == CLOSED:
            if ok:
                self._consecutive = 0
                self._window.count(True, self._clock())
            elif ok is False:
                self._failed()
        elif self.state == HALF_OPEN:
            self._permits += 1
            if ok:
                self._trials += 1
                if self._trials >= self.settings.trial_successes:
                    self._close()
            elif ok is False:
                self.open("the trial failed")

    def open(self, reason: str, *, slow: bool = False) -> None:
        """Open at once; each reopening without a rest between doubles the wait before the next trial."""
        self.slow = slow
        if self.state == OPEN:
            self.reason = reason
            return
        now = self._clock()
        rested = self.state == CLOSED and now - self._closed_at > self.settings.max_open_s
        self._reopened = 0 if rested else self._reopened + 1
        self.retry_at = now + min(self.settings.open_s * 2.0 ** min(self._reopened, 16), self.settings.max_open_s)
        self.reason = reason
        self._holder.open()

    def try_half_open(self) -> bool:
        """Go from open to half open if the wait is over; the caller has evidence that it may serve."""
        if self.state == OPEN and self._clock() >= self.retry_at:
            self.reason = "a probe succeeded; on trial"
            self._permits = self.settings.trial_permits
            self._trials = 0
            self._holder.half_open()
        return self.state == HALF_OPEN

    def _failed(self) -> None:
        settings = self.settings
        self._consecutive += 1
        now = self._clock()
        self._window.count(False, now)
        ok, failed = self._window.totals(now)
        if self._consecutive >= settings.consecutive:
            self.open(f"{self._consecutive} failures in a row")
        elif ok + failed >= settings.min_calls and failed / (ok + failed) >= settings.failure_ratio:
            self.open(f"{failed:.0f} of {ok + failed:.0f} calls failed within {settings.window_s:g} s")

    def _close(self) -> None:
        self._consecutive = 0
        self._window = _Window(self.settings.window_s, self._clock())
        self._closed_at = self._clock()
        self.reason = "the trials succeeded"
        self._holder.close()


@final
class _Window:
    """Counts over a sliding window, as two adjacent epochs weighted by overlap."""

    __slots__ = ("_failed", "_length", "_ok", "_old_failed", "_old_ok", "_start")

    def __init__(self, length_s: float, now: float) -> None:
        self._length = length_s
        self._start = now
        self._ok = self._failed = self._old_ok = self._old_failed = 0

    def count(self, ok: bool, now: float) -> None:
        """Count one outcome at loop time ``now``."""
        age = now - self._start
        if age >= self._length:
            recent = age < 2 * self._length
            self._old_ok, self._old_failed = (self._ok, self._failed) if recent else (0, 0)
            self._ok = self._failed = 0
            self._start = self._start + self._length if recent else now
        if ok:
            self._ok += 1
        else:
            self._failed += 1

    def totals(self, now: float) -> tuple[float, float]:
        """Return (successes, failures) of the window that ends now."""
        overlap = max(0.0, 1.0 - (now - self._start) / self._length)
        return self._ok + self._old_ok * overlap, self._failed + self._old_failed * overlap
