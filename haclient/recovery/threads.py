"""Work beside other work: what blocks (files, Parquet, hashes) in threads, and several things at once.

Decision made here: a thread cannot be stopped, so who is cancelled waits for his to end. Nothing is written behind the
back of whoever comes next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import closing
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something in a thread, and wait for its end even when cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def each_in_thread(items: Generator[T]) -> AsyncGenerator[T]:
    """Draw from a generator that blocks, one item at a time; it is closed at the end."""

    def draw() -> tuple[T] | None:
        for item in items:
            return (item,)
        return None

    try:
        while (drawn := await in_thread(draw)) is not None:
            yield drawn[0]
    finally:
        await in_thread(closing(items).__exit__)


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
