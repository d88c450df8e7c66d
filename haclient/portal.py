"""The way from blocking code into the event loop: one thread per process, for every sync client and pipeline.

Decision made here: there is no second, blocking implementation of anything. Sync code hands a coroutine to the
portal's loop and waits for it; a forked child gets a portal of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar, final

from haclient.errors import ConfigError

T = TypeVar("T")

_lock = threading.Lock()
_portals: dict[int, Portal] = {}


def portal() -> Portal:
    """Return this process's portal, starting its thread if need be."""
    pid = os.getpid()
    found = _portals.get(pid)
    if found is None:
        with _lock:
            found = _portals.get(pid)
            if found is None:
                _portals.clear()
                found = _portals[pid] = Portal()
    return found


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - it may have been held by a thread that the child does not have
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@final
class Portal:
    """An event loop in a daemon thread; see `portal`."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="haclient-portal", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the portal's loop; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the portal's loop and wait for it."""
        return wait(work, self.loop)


def wait(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run a coroutine on a loop of another thread and block until it ends; an interrupt cancels it.

    Raises:
        ConfigError: This thread is the loop's own, which would wait for itself.
    """
    if asyncio._get_running_loop() is loop:
        work.close()
        raise ConfigError("a blocking call on the event loop would wait for itself; await the async one instead")
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
