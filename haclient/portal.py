"""The way from blocking code into the event loop: one thread per process, for every sync client and pipeline.

Decision made here: there is no second, blocking implementation of anything. Sync code hands a coroutine to the
portal's loop and waits for it; a forked child gets a portal of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar, final

from haclient.errors import ConfigError

T = TypeVar("T")

_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """Return this process's portal, starting its thread if need be."""
    global _portal  # noqa: PLW0603 - a process has one
    if _portal is None:
        with _lock:
            if _portal is None:
                _portal = Portal()
    return _portal


def _forked() -> None:
    global _lock, _portal  # noqa: PLW0603 - the lock may be held by a thread that the child does not have
    _lock = threading.Lock()
    _portal = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@final
class Portal:
    """An event loop in a daemon thread; see `portal`."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        running = threading.Event()
        self.loop.call_soon(running.set)
        threading.Thread(target=self.loop.run_forever, name="haclient-portal", daemon=True).start()
        running.wait()

    def submit(self, work: Coroutine[Any, Any, T]) -> Pending[T]:
        """Start a coroutine on the portal's loop."""
        return Pending(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the portal's loop and wait for it; see `wait`."""
        return wait(work, self.loop)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function on the portal's thread and wait for it; listeners, which are on it already, may do so too."""
        if asyncio._get_running_loop() is self.loop:
            return function()

        async def work() -> T:
            return function()

        return self.run(work())


@final
class Pending(Generic[T]):
    """A coroutine under way on a loop of another thread.

    It does what `asyncio.run_coroutine_threadsafe` and its future do, for about half of their CPU time, since
    every call of a sync client comes through here.
    """

    __slots__ = ("_done", "_ended", "_loop", "_task", "_work")

    _task: asyncio.Task[T]

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._work = work
        self._loop = loop
        self._done = False
        self._ended = threading.Lock()  # held until then
        self._ended.acquire()
        try:
            loop.call_soon_threadsafe(self._start)
        except RuntimeError as error:
            work.close()
            raise ConfigError("the event loop that this belongs to is closed") from error

    def _start(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # now it counts as seen, even if nobody asks for the result
        self._done = True
        self._ended.release()

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the result; an interrupt cancels the work.

        Raises:
            ConfigError: This thread is the loop's own, which would wait for itself.
            TimeoutError: There was none within ``timeout_s`` seconds; the work goes on.
            concurrent.futures.CancelledError: The work was cancelled.
        """
        if not self._done:
            try:
                ended = self._wait(-1 if timeout_s is None else max(timeout_s, 0.0))
            except BaseException:
                self.cancel()
                raise
            if not ended:
                raise TimeoutError(f"no result within {timeout_s:g} s")
        if self._task.cancelled():
            raise CancelledError
        return self._task.result()

    def _wait(self, timeout_s: float) -> bool:
        if asyncio._get_running_loop() is self._loop:
            raise ConfigError("a blocking call on the event loop would wait for itself; await the async one instead")
        ended = self._ended.acquire(timeout=timeout_s)
        if ended:
            self._ended.release()  # for the next who waits
        return ended

    def cancel(self) -> bool:
        """Cancel the work, unless it is done."""
        if self._done:
            return False
        self._loop.call_soon_threadsafe(self._cancel)
        return True

    def _cancel(self) -> None:
        self._task.cancel()

    def done(self) -> bool:
        """Say whether the work has ended."""
        return self._done

    def cancelled(self) -> bool:
        """Say whether the work has ended by being cancelled."""
        return self._done and self._task.cancelled()

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Call a function on the loop when the work has ended."""
        self._loop.call_soon_threadsafe(lambda: self._task.add_done_callback(lambda _: callback()))


def wait(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run a coroutine on a loop of another thread and block until it ends; an interrupt cancels it.

    Raises:
        ConfigError: This thread is the loop's own, which would wait for itself.
    """
    return Pending(work, loop).result()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
