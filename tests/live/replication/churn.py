"""A load that looks for wrong data: ``python -m tests.live.replication.churn FILE``, a kind of `haclient.drill.worker`.

As many calls as get through, on few keys that all processes rewrite, at every consistency level, with limits that are
sometimes too short; rows with haclient's keys; and collections, partitions and aliases that come and go.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, final

from haclient.drill import rows
from haclient.drill.calls import Caller
from haclient.drill.history import Operation, Value
from haclient.drill.worker import Order, main

LEVELS: Final = ("Session", "Session", "Strong", "Bounded", "Eventually")
#: Limits of calls, seconds: some are too short for what happens.
TIMEOUTS_S: Final = (0.5, 2.0, 20.0, 20.0, 20.0)
#: Mean time between two calls of a sequence, seconds.
PAUSE_S: Final = 0.01
#: Collections of one process that may be left over: Milvus 2.3.5 takes 64 in all.
LEFT: Final = 10
#: Keys that every process writes.
SHARED: Final = rows.KEYS[:20]

Found = list[Mapping[str, Any]]


@final
class Churn:
    """A client and its choices: one sequence of calls for each collection, and one for definitions."""

    def __init__(self, caller: Caller, order: Order, stopped: asyncio.Event) -> None:
        self._caller = caller
        self._client = caller.client
        self._order = order
        self._stopped = stopped
        self._random = random.Random(order.seed)
        self._names = rows.Names(order.trial)
        self._versions = rows.versions(order.number)
        self._private = range(1_000 * order.number, 1_000 * order.number + 10)

    async def run(self) -> None:
        """Go on until stopped."""
        await asyncio.gather(self._own(), self._auto(), self._definitions())

    # The collection with keys of the user's.

    async def _own(self) -> None:
        kinds = {self._upsert: 6, self._insert: 1, self._delete: 2, self._read_own: 6}
        while not self._stopped.is_set():
            keys = self._random.sample(self._random.choice((SHARED, self._private)), self._random.randint(1, 4))
            (choice,) = self._random.choices(list(kinds), list(kinds.values()))
            await choice(keys)
            await self._pause()

    async def _upsert(self, keys: list[int]) -> None:
        await self._put("upsert", self._client.upsert, keys)

    async def _insert(self, keys: list[int]) -> None:
        await self._put("insert", self._client.insert, keys)

    async def _put(self, kind: str, method: Callable[..., Awaitable[Any]], keys: list[int]) -> None:
        made = {key: next(self._versions) for key in keys}
        data = [rows.row(version, key, id=key, tag=f"w{self._order.number}") for key, version in made.items()]
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
        while not self._stopped.is_set():
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
        data = [rows.row(version, version, tag=f"batch {made[0]}") for version in made]
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
                if self._stopped.is_set():
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

    async def _call(self, kind: str, work: Callable[..., Awaitable[Any]], **more: Any) -> Operation:
        timeout_s = min(self._order.timeout_s, self._random.choice(TIMEOUTS_S))
        return await self._caller.call(kind, work, timeout_s=timeout_s, **more)

    async def _pause(self, times: float = 1.0) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.expovariate(1 / (times * PAUSE_S))):
                await self._stopped.wait()


async def churn(caller: Caller, order: Order, stopped: asyncio.Event) -> None:
    await Churn(caller, order, stopped).run()


if __name__ == "__main__":
    main(churn)
