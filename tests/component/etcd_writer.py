"""A process that appends to a log until it is killed, and says what was acknowledged.

Run as ``python etcd_writer.py SETTINGS WRITER AT_ONCE SIZE``; every line it writes is ``SEQ OPERATION``. What fails is
appended again under the same operation, as whoever writes through a log does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time

from haclient.config.replication import Replication
from haclient.errors import LogUnavailable
from haclient.replication.engines import open_log
from haclient.replication.log import Mutation, MutationLog


async def write(log: MutationLog, writer: int, numbers: itertools.count[int], size: int) -> None:
    for number in numbers:
        operation = (writer << 64 | number).to_bytes(16, "big")
        seq = 0
        while not seq:
            try:
                (seq,) = await log.append([Mutation(operation, "Upsert", ("", "docs"), bytes(size))])
            except LogUnavailable as error:
                print(error, file=sys.stderr, flush=True)
        print(seq, operation.hex(), flush=True)


async def main() -> None:
    settings, (writer, at_once, size) = sys.argv[1], map(int, sys.argv[2:])
    log = open_log(Replication(**json.loads(settings)), time.time)
    await log.open()
    numbers = itertools.count(1)
    await asyncio.gather(*(write(log, writer, numbers, size) for _ in range(at_once)))


asyncio.run(main())
