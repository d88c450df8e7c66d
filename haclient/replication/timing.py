"""Waiting, with a limit and longer each time; several things at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar, final

T = TypeVar("T")

_FIRST_S: Final = 0.02
_LONGEST_S: Final = 1.0


@final
class Backoff:
    """Delays that double up to a second, each drawn from its upper half so that nobody keeps step."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._tries = 0

    def reset(self) -> None:
        """Start over."""
        self._tries = 0

    def next(self) -> float:
        """Return the next delay, seconds."""
        self._tries += 1
        return self.of(self._tries)

    def of(self, tries: int) -> float:
        """Return the delay after this many tries, seconds."""
        return min(_FIRST_S * 2.0 ** min(tries, 10), _LONGEST_S) * (0.5 + 0.5 * self._rng.random())


async def lasting(work: Coroutine[Any, Any, Any], limit_s: float) -> bool:
    """Await something for a limited time; False if it was not over by then."""
    # Not wait_for: on Python 3.11 it swallows a cancellation that comes together with the result.
    try:
        async with asyncio.timeout(limit_s):
            await work
    except TimeoutError:
        return False
    return True


async def at_once(work: Callable[[T], Awaitable[None]], items: Iterable[T], most: int) -> None:
    """Do something with each item, with at most so many at once; the first failure ends all."""
    permits = asyncio.Semaphore(most)

    async def one(item: T) -> None:
        async with permits:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                group.create_task(one(item))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
