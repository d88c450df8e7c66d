"""Asking whichever cluster can answer.

Decision made here: a cluster that does not answer is not waited for to the end; the next one is asked, and, when all
have been, all again with more patience. "No" is an answer too, and is believed once nobody gives a better one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from haclient.errors import CallError, DeadlineExceeded, Unavailable
from haclient.replication.progress import Progress

T = TypeVar("T")

#: Between two rounds, seconds.
_PAUSE_S: Final = 0.05


async def ask_any(
    progress: Progress,
    able: Callable[[], list[str]],
    ask: Callable[[str, float], Awaitable[T]],
    patience_s: float,
    deadline: float,
) -> T | None:
    """Ask the clusters that are able to answer, one after the other; wait for one if there is none.

    Args:
        progress: Wakes up when another cluster may have become able.
        able: Names those that are, best first.
        ask: Asks one of them, in so many seconds.
        patience_s: Time for a cluster at first, seconds.
        deadline: Loop time by which an answer is needed.

    Returns:
        The answer, None if nobody was able to give one in time.

    Raises:
        CallError: The answer is "no", or those who were asked did not answer.
    """
    loop = asyncio.get_running_loop()
    silence: CallError | None = None
    while await progress.until(lambda: bool(able()), deadline) and loop.time() < deadline:
        refusal: CallError | None = None
        names = able()
        for i, cluster in enumerate(names):
            # An equal share, so that everybody is asked in time.
            left_s = (deadline - loop.time()) / (len(names) - i)
            if left_s <= 0.0:
                break
            try:
                return await ask(cluster, min(patience_s, left_s))
            except (Unavailable, DeadlineExceeded) as error:
                silence = error
            except CallError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        patience_s *= 2.0
        await asyncio.sleep(min(_PAUSE_S, max(deadline - loop.time(), 0.0)))
    if silence is not None:
        raise silence
    return None
