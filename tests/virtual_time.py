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
import contextvars
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
        self._draw = random.Random(seed).random if seed is not None else None
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._clock

    # BaseEventLoop's handles cost more than all that a simulation does with them.

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = _Handle(0.0, callback, args, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        timer = _Handle(when, callback, args, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._clock + delay, callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        self._tasks.append(task)
        return task

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, oldest first; asyncio's own list holds those of every loop."""
        return [task for task in self._tasks if not task.done()]

    def timers(self) -> list[Any]:
        """Return the timers that are still set, soonest first."""
        return [timer for _, _, timer in sorted(self._timers) if not timer.cancelled()]

    def run_in_executor(self, *_: Any) -> Any:
        raise RuntimeError("a thread knows nothing of virtual time")

    def _write_to_self(self) -> None:
        """There is nobody to wake."""

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise Deadlock("nothing is ready and no timer is set")
            self._clock = max(self._clock, timers[0][0])
        while timers and timers[0][0] <= self._clock:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                ready.append(timer)
        self._steps -= 1
        if self._steps < 0:
            raise Deadlock("it goes round and round")
        count = len(ready)
        if self._draw is not None and count > 1:
            for i in range(count - 1, 0, -1):
                j = int(self._draw() * (i + 1))
                ready[i], ready[j] = ready[j], ready[i]
        for _ in range(count):
            handle = ready.popleft()
            if not handle._cancelled:
                try:
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.errors.append({"exception": error, "callback": handle._callback})


class _Handle:
    """A callback that will be called, soon or at a time; as `asyncio.TimerHandle` to whoever holds it."""

    __slots__ = ("_args", "_callback", "_cancelled", "_context", "_when")

    def __init__(self, when: float, callback: Any, args: tuple[Any, ...], context: Any) -> None:
        self._when = when
        self._callback = callback
        self._args = args
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._when

    def __repr__(self) -> str:
        return f"<timer at {self._when:.4f}: {self._callback}>"


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
        assert not (left := loop.tasks()), f"tasks left behind: {left}"
        assert not loop.errors, f"raised in callbacks: {loop.errors}"
        return result
    finally:
        _end(loop)
        loop.close()


def _end(loop: VirtualTimeLoop) -> None:
    """Cancel whatever still runs, so that the next test starts clean."""
    for _ in range(10):
        left = loop.tasks()
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
