"""One process of the load: ``python -m haclient.drill.worker FILE``.

The file (JSON) is an `Order`. SIGUSR1 ends the load, calls under way included, and the client goes on to do its part in
the fleet until SIGTERM. Decision made here: the load is a
process of its own, so that it can be killed like an application, and measuring costs those who are measured nothing.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from haclient.client import AsyncMilvusClient
from haclient.drill import rows
from haclient.drill.calls import Caller
from haclient.drill.history import Operation, Recorder, Value
from haclient.drill.measure import open_loop

#: Between two looks at whether this process was stopped, and at what is drained, seconds.
_TICK_S: Final = 0.1
#: Keys that one query asks for.
_ASKED: Final = 3
#: A hit closer than this is the row of exactly that vector (squared distance).
_SAME: Final = 1e-5
_LEVEL: Final = "Session"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one process is to do.

    Attributes:
        number: Its number: no two of a trial have the same.
        trial: What the collections' names begin with.
        seed: Of its choices.
        history: The file that it writes.
        drained: A file that names what it takes out of rotation, JSON; it may appear and change at any time.
        config: What its client is configured with.
        timeout_s: Limit of its calls.
        rate: Calls a second.
        mix: Shares of the kinds of calls.
        plants: Bugs that tests plant, ``module:bug``; the module's ``plant`` takes the bug's name.
    """

    number: int
    trial: str
    seed: int
    history: str
    drained: str
    config: Mapping[str, Any]
    timeout_s: float
    rate: float = 10.0
    mix: Mapping[str, float] = field(default_factory=dict)
    plants: tuple[str, ...] = ()


def idle_mark(order: Order) -> Path:
    """Return the file that is there once the load of a process has ended, calls under way included."""
    return Path(order.history).with_suffix(".idle")


#: What a process does with its client until it is told to stop.
Load = Callable[[Caller, Order, asyncio.Event], Awaitable[None]]


@final
class Calls:
    """The load of a drill: calls at a fixed rate on keys that all processes share, reads at Session.

    Args:
        caller: Makes and records them.
        order: What is to be done.
        start: When the first one is due, ``time.monotonic``.
    """

    def __init__(self, caller: Caller, order: Order, start: float) -> None:
        self._caller = caller
        self._client = caller.client
        self._order = order
        self._start = start
        self._random = random.Random(order.seed)
        self._collection = rows.Names(order.trial).own
        self._versions = rows.versions(order.number)
        self._kinds = {kind: getattr(self, f"_{kind}") for kind, share in order.mix.items() if share}

    async def ask(self, number: int) -> None:
        """Make one call."""
        (kind,) = self._random.choices(list(self._kinds), [self._order.mix[kind] for kind in self._kinds])
        await self._kinds[kind](self._start + number / self._order.rate)

    async def _search(self, due: float) -> None:
        key = self._random.choice(rows.KEYS)

        def answered(op: Operation, found: Any) -> None:
            hits = found[0]
            op.got = {f"own/{key}": None}
            if not hits:
                op.wrong = "nothing was found"
            elif hits[0]["id"] == key:
                self._row(op, hits[0]["entity"])
            elif hits[0]["distance"] < _SAME:
                op.wrong = f"row {hits[0]['id']} has the vector of row {key}"

        wanted = {"data": [rows.vector(key)], "limit": 1, "output_fields": ["id", "version", "text"]}
        await self._read("search", due, partial(self._client.search, **wanted), answered)

    async def _query(self, due: float) -> None:
        keys = self._random.sample(rows.KEYS, _ASKED)

        def answered(op: Operation, found: Any) -> None:
            op.got = {f"own/{key}": None for key in keys}
            for row in found:
                self._row(op, row)

        wanted = {"filter": f"id in {keys}", "output_fields": ["id", "version", "text"]}
        await self._read("query", due, partial(self._client.query, **wanted), answered)

    async def _read(
        self, kind: str, due: float, work: Callable[..., Awaitable[Any]], then: Callable[[Operation, Any], None]
    ) -> None:
        work = partial(work, collection_name=self._collection, consistency_level=_LEVEL)
        await self._caller.call(kind, work, timeout_s=self._order.timeout_s, due=due, level=_LEVEL, then=then)

    @staticmethod
    def _row(op: Operation, row: Mapping[str, Any]) -> None:
        op.got = {**op.got, f"own/{row['id']}": row["version"]}
        op.wrong = rows.damage(row, row["id"]) or op.wrong

    async def _upsert(self, due: float) -> None:
        key, version = self._random.choice(rows.KEYS), next(self._versions)
        data = [rows.row(version, key, id=key, tag=f"w{self._order.number}")]
        await self._write("upsert", due, partial(self._client.upsert, data=data), {f"own/{key}": version})

    async def _delete(self, due: float) -> None:
        key = self._random.choice(rows.KEYS)
        await self._write("delete", due, partial(self._client.delete, ids=[key]), {f"own/{key}": None})

    async def _write(
        self, kind: str, due: float, work: Callable[..., Awaitable[Any]], sets: Mapping[str, Value]
    ) -> None:
        work = partial(work, collection_name=self._collection)
        await self._caller.call(kind, work, timeout_s=self._order.timeout_s, due=due, sets=sets, of=self._collection)


async def at_a_rate(caller: Caller, order: Order, stopped: asyncio.Event) -> None:
    """The load of a drill."""
    start = time.monotonic()
    await open_loop(Calls(caller, order, start).ask, rate=order.rate, start=start, stopped=stopped)


async def _serve(order: Order, load: Load) -> None:
    recorder = Recorder(Path(order.history), f"w{order.number}")
    stopped, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, stopped.set)
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with AsyncMilvusClient(config=order.config) as client:
        caller = Caller(client, recorder)
        # What has to be known of a collection before its first rows are written is asked before anything is hurt.
        await client.describe_collection(rows.Names(order.trial).own)
        recorder.ready()
        watch = asyncio.create_task(_watch(caller, Path(order.drained)))
        try:
            await load(caller, order, stopped)
            idle_mark(order).touch()
            await ended.wait()
        finally:
            watch.cancel()
    recorder.close()


async def _watch(caller: Caller, drained: Path) -> None:
    """Notice that this process was stopped for a while, and what is to be drained."""
    clock = asyncio.get_running_loop().time
    out: set[str] = set()
    while True:
        before = clock()
        await asyncio.sleep(_TICK_S)
        caller.recorder.stalled_s += max(0.0, clock() - before - 2 * _TICK_S)
        wanted = _drained(drained)
        for name in wanted - out:
            caller.client.drain(name)
        for name in out - wanted:
            caller.client.undrain(name)
        out = wanted


def _drained(file: Path) -> set[str]:
    return set(json.loads(file.read_bytes())) if file.exists() else set()


def main(load: Load = at_a_rate) -> None:
    """Run one process of the load, as the file that is its argument says."""
    order = Order(**json.loads(Path(sys.argv[1]).read_bytes()))
    for plant in order.plants:
        module, _, bug = plant.partition(":")
        importlib.import_module(module).plant(bug)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # a traceback for each failed call otherwise
    asyncio.run(_serve(order, load))


if __name__ == "__main__":
    main()
