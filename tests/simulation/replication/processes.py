"""Processes that die, stop and go on, in one event loop.

Decision made here: what a process runs is known by its context. Every callback inherits the context of whoever asked
for it, so a process that has died is one whose callbacks are no longer run (nothing is cleaned up, no ``finally``
is reached), and one that is stopped is one whose callbacks wait until it goes on. Counting its callbacks gives every
step at which it can die.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine
from typing import Any, Final

from tests.virtual_time import VirtualTimeLoop

_process: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("process", default=None)


class Process:
    """One process of the simulation.

    Attributes:
        name: Unique; a process that is started again has another one.
        alive: Whether it has not died.
        stopped: Whether it is stopped for now.
        since: Loop time at which it was started, or last went on.
        steps: How many callbacks it has run.
    """

    def __init__(self, loop: Processes, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.steps = 0
        self.since = loop.time()
        self._loop = loop
        self._held: list[Any] = []
        self._due: list[tuple[int, Any, tuple[Any, ...]]] = []
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let it do something."""
        return self._context.run(self._loop.create_task, work)

    def run(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call a function as the process."""
        return self._context.run(function, *args, **options)

    def die(self) -> None:
        """Be gone, without a word."""
        self.alive = False
        self._held.clear()

    def stop(self) -> None:
        """Do nothing until it goes on; the clock does not wait."""
        self.stopped = True

    def go_on(self) -> None:
        """Do what is due."""
        self.stopped = False
        self.since = self._loop.time()
        held, self._held = self._held, []
        self._loop._ready.extend(held)

    def after(self, count: int, function: Any, *args: Any) -> None:
        """Have something happen to it between two of its steps, this many from now."""
        self._due.append((self.steps + count, function, args))

    def spare(self) -> None:
        """Let nothing more happen to it."""
        self._due.clear()

    def step(self, handle: Any, context: contextvars.Context, callback: Any, args: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self._due and not self.stopped:
            now = [one for one in self._due if one[0] <= self.steps]
            self._due = [one for one in self._due if one[0] > self.steps]
            for _, function, arguments in now:
                self._loop.world.run(function, *arguments)
            if not self.alive:
                return
        if self.stopped:
            self._held.append(handle)
            return
        self.steps += 1
        context.run(callback, *args)


class _Step:
    """Stands for a handle's context: runs the callback as its process does."""

    __slots__ = ("context", "handle", "process")

    def __init__(self, handle: Any, process: Process) -> None:
        self.handle = handle
        self.context = handle._context
        self.process = process

    def run(self, callback: Any, *args: Any) -> None:
        self.process.step(self.handle, self.context, callback, args)


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory, so that a run can be repeated."""

    __slots__ = ("_number",)

    def __init__(self, coro: Any, loop: Processes, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coro, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


class _Future(asyncio.Future[Any]):
    """A future whose place in a set does not depend on where it lies in memory."""

    __slots__ = ("_number",)

    def __init__(self, loop: Processes, number: int) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class Processes(VirtualTimeLoop):
    """A loop in virtual time that knows which process a callback belongs to."""

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__(seed, 1000.0, steps)
        self._numbers = 0
        self._owners: dict[asyncio.Task[Any], Process | None] = {}
        #: The context of what belongs to no process: servers, the network, the operator.
        self.world = contextvars.copy_context()

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return _gated(super().call_soon(callback, *args, context=context))

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return _gated(super().call_at(when, callback, *args, context=context))

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        self._numbers += 1
        task = _Task(coro, self, self._numbers, **options)
        self._owners[task] = _process.get()
        return task

    def create_future(self) -> asyncio.Future[Any]:
        self._numbers += 1
        return _Future(self, self._numbers)

    def owner(self, task: asyncio.Task[Any]) -> Process | None:
        """Return the process that a task belongs to."""
        return self._owners[task]

    @staticmethod
    def process_of(timer: Any) -> Process | None:
        """Return the process that a timer belongs to."""
        return timer._context.process if isinstance(timer._context, _Step) else None

    def left(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, without those of processes that have died."""
        return [task for task, owner in self._owners.items() if not task.done() and (owner is None or owner.alive)]

    def bury(self) -> None:
        """Let go of what died in mid-step; nothing may run after this."""
        asyncio.events._set_running_loop(self)
        for task in self._owners:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                # As if it ran: what it does in its ``finally`` begins, and gets nowhere.
                asyncio.tasks._enter_task(self, task)
                _close(task.get_coro())
                asyncio.tasks._leave_task(self, task)
        asyncio.events._set_running_loop(None)


def _close(coroutine: Any) -> None:
    for _ in range(10):
        with contextlib.suppress(BaseException):
            coroutine.close()
            return


def _gated(handle: Any) -> Any:
    process = handle._context.get(_process)
    if process is not None:
        handle._context = _Step(handle, process)
    return handle


def current() -> Process | None:
    """Return the process that runs now."""
    return _process.get()
