"""An event loop in which waiting takes no time.

Decision made here: there is no I/O at all, so when nothing is ready the clock jumps to the next timer, and when
there is no timer either the program waits for something that can never happen, which is raised as `Deadlock`.
With a seed, callbacks that are ready at the same moment run in an order drawn from it. asyncio promises an order
only for callbacks of one source; code that relies on more than that breaks under some seed, and does so again.

    def test_backs_off() -> None:
        async def scenario() -> float:
            await asyncio.sleep(3600)
            return asyncio.get_running_loop().time()

        assert run(scenario()) == 3600
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Something is awaited and nothing is left that could bring it about."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Event loop without I/O whose clock jumps to the next timer.

    Args:
        seed: Draws the order of callbacks that are ready at the same moment; None keeps them in order.
        start: Loop time at the beginning, seconds.
        steps: How many rounds may run before it is taken for a loop that never ends.

    Attributes:
        errors: What callbacks raised and tasks left unretrieved.
    """

    def __init__(self, seed: int | None = None, start: float = 0.0, steps: int = 10_000_000) -> None:
        super().__init__()
        self._clock = start
        self._steps = steps
        self._shuffle = random.Random(seed).random if seed is not None else None
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._clock

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are still set, soonest first."""
        return sorted(timer for timer in self._scheduled if not timer.cancelled())

    def run_in_executor(self, *_: Any) -> Any:
        raise RuntimeError("a thread knows nothing of virtual time")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave cancelled timers in the heap; they are dropped when their time comes."""

    def _write_to_self(self) -> None:
        """There is nobody to wake."""

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        if not ready and not self._stopping:
            while scheduled and scheduled[0]._cancelled:
                heapq.heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Deadlock("nothing is ready and no timer is set")
            if scheduled[0]._when > self._clock:
                self._clock = scheduled[0]._when
        while scheduled and scheduled[0]._when <= self._clock:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        self._steps -= 1
        if self._steps < 0:
            raise Deadlock("it goes round and round")
        count = len(ready)
        if self._shuffle is not None and count > 1:
            draw = self._shuffle
            for i in range(count - 1, 0, -1):
                j = int(draw() * (i + 1))
                ready[i], ready[j] = ready[j], ready[i]
        for _ in range(count):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()


def run(work: Coroutine[Any, Any, T], seed: int | None = None, start: float = 0.0) -> T:
    """Run a coroutine in virtual time.

    Args:
        work: What to run.
        seed: Draws the order of simultaneous callbacks; None keeps them in order.
        start: Loop time at the beginning, seconds.

    Raises:
        Deadlock: It waits for something that can never happen.
        AssertionError: It left tasks behind, or a callback raised.
    """
    loop = VirtualTimeLoop(seed, start)
    try:
        result = loop.run_until_complete(work)
        for _ in range(3):  # what was cancelled or scheduled last may end now
            if loop._ready:
                loop.call_soon(loop.stop)
                loop.run_forever()
        assert not (left := asyncio.all_tasks(loop)), f"tasks left behind: {left}"
        assert not loop.errors, f"raised in callbacks: {loop.errors}"
        return result
    finally:
        _end(loop)
        loop.close()


def _end(loop: VirtualTimeLoop) -> None:
    """Cancel whatever still runs, so that the next test starts clean."""
    for _ in range(10):
        left = asyncio.all_tasks(loop)
        if not left:
            break
        for task in left:
            task.cancel()
        try:
            loop.run_until_complete(asyncio.wait(left, timeout=60.0))
        except Deadlock:
            break
    if loop._asyncgens:
        loop.run_until_complete(loop.shutdown_asyncgens())
