"""One process that writes and reads, and writes down what it did: ``python -m tests.live.replication.worker FILE``.

The file (JSON) says what is to be done; SIGTERM ends it, calls under way included.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from pymilvus.client.cache import GlobalCache

from haclient import (
    AsyncMilvusClient,
    ConfigError,
    DeadlineExceeded,
    PoisonedCall,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
)
from haclient.replication.token import seq_of
from tests.live.replication import rows
from tests.live.replication.history import Operation, Recorder, Value

#: What says that the call was not carried out and will not be, unless it was sent (then it may be repeated).
FAILED: Final = (ConfigError, Unavailable, DeadlineExceeded, PoisonedCall, WriteRefused)
LEVELS: Final = ("Session", "Session", "Strong", "Bounded", "Eventually")
#: Limits of calls, seconds: some are too short for what happens.
TIMEOUTS_S: Final = (0.5, 2.0, 20.0, 20.0, 20.0)
#: Collections of one process that may be left over: Milvus 2.3.5 takes 64 in all.
LEFT: Final = 10
#: Between two looks at whether this process was stopped, seconds.
_TICK_S: Final = 0.1

Found = list[Mapping[str, Any]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one process is to do.

    Attributes:
        number: Its number: no two of a trial have the same.
        trial: What the collections' names begin with.
        seed: Of its choices.
        history: The file that it writes.
        config: What its client is configured with.
        timeout_s: Longest limit of its calls.
        pause_s: Mean time between two calls.
        definitions: Whether it creates and drops, too.
    """

    number: int
    trial: str
    seed: int
    history: str
    config: Mapping[str, Any]
    timeout_s: float
    pause_s: float = 0.01
    definitions: bool = True


@final
class Worker:
    """A client and its choices: one sequence of calls for each collection, and one for definitions."""

    def __init__(self, order: Order, client: AsyncMilvusClient, recorder: Recorder) -> None:
        self._order = order
        self._client = client
        self._recorder = recorder
        self._random = random.Random(order.seed)
        self._names = rows.Names(order.trial)
        self._versions = rows.versions(order.number)
        self._private = rows.private(order.number)
        self.stopped = asyncio.Event()

    async def run(self) -> None:
        """Go on until `stopped`."""
        sequences = [self._own, self._auto, *([self._definitions] if self._order.definitions else [])]
        clock = asyncio.create_task(self._watch_clock())
        try:
            await asyncio.gather(*(sequence() for sequence in sequences))
        finally:
            clock.cancel()

    # The collection with keys of the user's.

    async def _own(self) -> None:
        kinds = {self._upsert: 6, self._insert: 1, self._delete: 2, self._read_own: 6}
        while not self.stopped.is_set():
            keys = self._random.sample(self._random.choice((rows.SHARED, self._private)), self._random.randint(1, 4))
            (choice,) = self._random.choices(list(kinds), list(kinds.values()))
            await choice(keys)
            await self._pause()

    async def _upsert(self, keys: list[int]) -> None:
        await self._put("upsert", self._client.upsert, keys)

    async def _insert(self, keys: list[int]) -> None:
        await self._put("insert", self._client.insert, keys)

    async def _put(self, kind: str, method: Callable[..., Awaitable[Any]], keys: list[int]) -> None:
        made = {key: next(self._versions) for key in keys}
        data = [rows.row(version, id=key, tag=f"w{self._order.number}") for key, version in made.items()]
        sets = {f"own/{key}": version for key, version in made.items()}
        await self._call(kind, partial(method, self._names.own, data), sets=sets, of=self._names.own)

    async def _delete(self, keys: list[int]) -> None:
        await self._drop(self._names.own, keys, f"id in {keys}", (f"own/{key}" for key in keys))

    async def _read_own(self, keys: list[int]) -> None:
        def got(found: Found) -> dict[str, Value]:
            versions = {row["id"]: row["version"] for row in found}
            return {f"own/{key}": versions.get(key) for key in keys}

        await self._read(self._names.own, keys, got)

    # The collection with keys of haclient's.

    async def _auto(self) -> None:
        mine: list[Mapping[str, int]] = []  # batches that are there: keys by register
        while not self.stopped.is_set():
            choice = self._random.random()
            if choice < 0.5 or not mine:
                mine += await self._add()
            elif choice < 0.75:
                await self._remove(mine.pop(self._random.randrange(len(mine))))
            else:
                await self._read_auto(self._random.choice(mine[-5:]))
            await self._pause()

    async def _add(self) -> list[Mapping[str, int]]:
        made = [next(self._versions) for _ in range(self._random.randint(1, 5))]
        data = [rows.row(version, tag=f"batch {made[0]}") for version in made]
        names = [f"auto/{version}" for version in made]

        def acknowledged(op: Operation, answer: Mapping[str, Any]) -> None:
            op.keys = dict(zip(names, map(int, answer["ids"]), strict=True))

        work = partial(self._client.insert, self._names.auto, data)
        op = await self._call("insert", work, sets=dict.fromkeys(names, 1), of=self._names.auto, then=acknowledged)
        return [op.keys] if op.keys else []

    async def _remove(self, batch: Mapping[str, int]) -> None:
        first = min(int(name.removeprefix("auto/")) for name in batch)
        await self._drop(self._names.auto, list(batch.values()), f"tag == 'batch {first}'", batch)

    async def _read_auto(self, batch: Mapping[str, int]) -> None:
        def got(found: Found) -> dict[str, Value]:
            there = {row["id"] for row in found}
            return {name: 1 if key in there else None for name, key in batch.items()}

        await self._read(self._names.auto, list(batch.values()), got)

    # Collections, partitions, aliases: no name is used again once nobody knows what became of it.

    async def _definitions(self) -> None:
        for number in itertools.count(1):
            steps = self._steps(self._names.extra(self._order.number, number))
            last = self._random.randint(1, len(steps)) if number <= LEFT else len(steps)
            for method, arguments, register, value in steps[:last]:
                await self._pause(20)
                if self.stopped.is_set():
                    return
                work = partial(getattr(self._client, method), **arguments)
                op = await self._call(method, work, sets={register: value})
                if op.outcome != "ok":
                    break

    @staticmethod
    def _steps(name: str) -> list[tuple[str, dict[str, Any], str, Value]]:
        """The life of one collection: method, arguments, register, its new value."""
        collection, alias = {"collection_name": name}, {"alias": f"{name}_alias"}
        partition = {**collection, "partition_name": "part"}
        registers = f"collection/{name}", f"partition/{name}/part", f"alias/{name}_alias"
        return [
            ("create_collection", {**collection, "schema": rows.schema(auto_id=False)}, registers[0], 1),
            ("create_partition", partition, registers[1], 1),
            ("create_alias", {**collection, **alias}, registers[2], name),
            ("drop_partition", partition, registers[1], None),
            ("drop_alias", alias, registers[2], None),
            ("drop_collection", collection, registers[0], None),
        ]

    # One call.

    async def _drop(self, collection: str, keys: list[int], filter: str, registers: Iterable[str]) -> None:
        how = {"ids": keys} if self._random.random() < 0.5 else {"filter": filter}
        work = partial(self._client.delete, collection, **how)
        await self._call("delete", work, sets=dict.fromkeys(registers), of=collection)

    async def _read(self, collection: str, keys: list[int], got: Callable[[Found], dict[str, Value]]) -> None:
        def answered(op: Operation, found: Found) -> None:
            op.got = got(found)

        level = self._random.choice(LEVELS)
        wanted = {"filter": f"id in {keys}", "output_fields": ["id", "version"], "consistency_level": level}
        work = partial(self._client.query, collection, **wanted)
        await self._call("read", work, level=level, then=answered)

    async def _call(
        self,
        kind: str,
        work: Callable[..., Awaitable[Any]],
        *,
        sets: Mapping[str, Value] | None = None,
        level: str = "",
        of: str = "",
        then: Callable[[Operation, Any], None] | None = None,
    ) -> Operation:
        """Make one call and record it; a write to rows of a collection (``of``) gets its place in the log."""
        timeout_s = min(self._order.timeout_s, self._random.choice(TIMEOUTS_S))
        with self._recorder.record(kind, timeout_s, sets=sets, level=level) as record:
            op = record.operation
            try:
                answer = await work(timeout=timeout_s)
            except WriteNotConfirmed as error:
                op.seq, op.error = error.seq, f"{type(error).__name__}: {error}"
            except FAILED as error:
                sent = any(attempt.sent for attempt in getattr(error, "attempts", ()))
                op.outcome, op.error = "unknown" if sent else "failed", f"{type(error).__name__}: {error}"
            except Exception as error:
                op.error = f"{type(error).__name__}: {error}"
            else:
                op.outcome = "ok"
                op.seq = await self._seq(of) if of else 0
                if then is not None:
                    then(op, answer)
        return op

    async def _seq(self, collection: str) -> int:
        """The place in the log of this session's newest write to a collection."""
        handler = await self._client._get_connection()
        return seq_of(GlobalCache.collection_ts.get(handler.server_address, "", collection))

    async def _pause(self, times: float = 1.0) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.expovariate(1 / (times * self._order.pause_s))):
                await self.stopped.wait()

    async def _watch_clock(self) -> None:
        """Notice that this process was stopped."""
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(_TICK_S)
            self._recorder.stalled_s += max(0.0, clock() - before - 2 * _TICK_S)


async def main(order: Order) -> None:
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # a traceback for each failed call otherwise
    recorder = Recorder(Path(order.history), f"w{order.number}")
    async with AsyncMilvusClient(config=order.config) as client:
        worker = Worker(order, client, recorder)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stopped.set)
        recorder.ready()
        await worker.run()
    recorder.close()


if __name__ == "__main__":
    asyncio.run(main(Order(**json.loads(Path(sys.argv[1]).read_bytes()))))
