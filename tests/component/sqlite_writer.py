"""A process that appends to an SQLite log and says each time what was acknowledged: ``operation seq``.

An append that fails is said too (``! kind sent``) and repeated, as whoever uses a log does.

    python sqlite_writer.py LOG LANES OPERATION...     (lanes: appends at once; ``N..`` means from N on, for ever)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Iterable

from haclient.config import Replication
from haclient.errors import LogError
from haclient.replication.log import Mutation
from haclient.replication.sqlite import SqliteLog


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def write(path: str, lanes: int, operations: Iterable[int]) -> None:
    """Append an entry for each operation, several at once."""
    log = SqliteLog(Replication(log=path), time.time)
    await log.open()
    waiting = iter(operations)

    async def lane() -> None:
        for number in waiting:
            entry = Mutation(number.to_bytes(16, "big"), "Upsert", ("", "docs"), bytes(1024))
            while True:
                try:
                    (seq,) = await log.append([entry])
                except LogError as error:
                    say(f"! {type(error).__name__} {getattr(error, 'sent', '')}")
                    await asyncio.sleep(0.01)
                else:
                    break
            say(f"{number} {seq}")

    await asyncio.gather(*(lane() for _ in range(lanes)))
    await log.aclose()


if __name__ == "__main__":
    path, lanes, *numbers = sys.argv[1:]
    endless = itertools.count(int(numbers[0].rstrip("."))) if numbers[0].endswith("..") else map(int, numbers)
    asyncio.run(write(path, int(lanes), endless))
