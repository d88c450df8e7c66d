"""What blocks (files, Parquet, hashes), in threads.

Decision made here: a thread cannot be stopped, so who is cancelled waits for his to end. Nothing is written behind the
back of whoever comes next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
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
