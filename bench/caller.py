"""One client under load, in a process of its own, for the benches that compare clients.

    python bench/caller.py KIND URI...      then commands on stdin, see `main`

KIND is ``haclient`` (everything on), ``balanced`` (haclient with no hedging and no slowness detection), ``random``
(that, and endpoints taken at random), ``pymilvus`` (pymilvus' AsyncMilvusClient; several URIs are taken in turn).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness import Sample, commands, run, say

from haclient.drill.measure import Record, open_loop

#: Keys of the rows that are asked for.
KEYS = range(0, 200)
#: Config that leaves the balancer alone with the servers.
PLAIN = {"hedge": {"enabled": False}, "health": {"slow_ratio": 1e9}}


class HAClient:
    def __init__(self, uris: list[str], **settings: Any) -> None:
        from haclient import AsyncMilvusClient

        self._client = AsyncMilvusClient(uris, **settings)
        self._client.subscribe(self._count)
        self.counts: Counter[str] = Counter()
        self.search = self._client.search
        self.close = self._client.close

    def _count(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "AttemptFinished":
            self.counts["attempts"] += 1
            self.counts[f"attempts {event.action}"] += 1
            if event.action not in ("ok", "cancelled"):
                print(f"{event.at:.3f} {event}", file=sys.stderr)
        elif kind == "HedgeStarted":
            self.counts["hedges"] += 1
        elif kind == "RetryScheduled":
            self.counts["retries"] += 1
        elif kind == "EndpointChanged":
            self.counts["changes"] += 1
            print(f"{event.at:.3f} {event}", file=sys.stderr)
        elif kind == "ReadinessChanged":
            print(f"{event.at:.3f} {event}", file=sys.stderr)

    async def start(self) -> None:
        await self._client.refresh()


class PyMilvus:
    def __init__(self, uris: list[str]) -> None:
        from pymilvus import AsyncMilvusClient

        self._clients = [AsyncMilvusClient(uri) for uri in uris]
        self._turn = itertools.cycle(self._clients)
        self.counts: Counter[str] = Counter()

    def search(self, *args: Any, **kwargs: Any) -> Any:
        return next(self._turn).search(*args, **kwargs)

    async def start(self) -> None:
        """It connects with its first call."""

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def make(kind: str, uris: list[str]) -> HAClient | PyMilvus:
    if kind == "pymilvus":
        return PyMilvus(uris)
    if kind == "random":
        from haclient.fleet.node import Node

        Node.load = lambda _node, _now: 0.0  # type: ignore[method-assign]
    return HAClient(uris, **({} if kind == "haclient" else PLAIN))


class Load:
    """Searches at a fixed rate, their record in a file."""

    def __init__(self, client: HAClient | PyMilvus, order: dict[str, Any]) -> None:
        from tests.servers import fill

        self._client = client
        self._check = order.get("check", False)
        self._vectors = {key: fill.vector(key, 384) for key in KEYS}
        timeout = order.get("timeout")
        self._options = {"limit": 10, "output_fields": ["id"]} | ({"timeout": timeout} if timeout else {})
        self._out = Path(order["out"]).open("w")  # noqa: SIM115 - closed by `finish`
        load = open_loop(self._one, rate=order["rate"], seconds=order.get("seconds", 1e5), done=self._write)
        self._task = asyncio.create_task(load)
        self._limit_s = order.get("seconds", 1e5) + order.get("grace_s", 30.0)

    async def _one(self, number: int) -> str:
        key = KEYS[number % len(KEYS)]
        hits = await self._client.search("docs", data=[self._vectors[key]], **self._options)
        if not self._check:
            return "ok"
        if not hits or not hits[0]:
            return "empty"
        return "ok" if hits[0][0]["id"] == key else "wrong"

    def _write(self, record: Record[str]) -> None:
        outcome = record.answer or type(record.error).__name__
        print(record.due, record.started - record.due, record.latency_s, outcome, file=self._out)

    def stop(self) -> None:
        """End it, with what is under way."""
        self._task.cancel()

    async def finish(self) -> None:
        """Wait for its end, but no longer than its ``grace_s`` for the last answers."""
        await asyncio.wait([self._task], timeout=self._limit_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._out.close()


def read(path: Path) -> list[Sample]:
    """Read a record."""
    rows = (line.split() for line in path.read_text().splitlines())
    return sorted(
        (Sample(float(start), float(late), float(latency), outcome) for start, late, latency, outcome in rows),
        key=lambda sample: sample.start,
    )


async def main() -> None:
    """Obey: ``load`` starts one, ``stop`` ends it, ``wait`` waits for it, ``counts`` tells the events."""
    kind, *uris = sys.argv[1:]
    client = make(kind, uris)
    # A traceback for each failed call; not before its import, which sets the level.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    await client.start()
    orders = await commands()
    say("ready")
    load: Load | None = None
    while line := await orders.readline():
        order = json.loads(line)
        if order["do"] == "load":
            gc.collect()
            gc.freeze()  # a full collection over what pymilvus imports takes 35 ms, every few thousand calls
            load = Load(client, order)
        elif order["do"] in ("stop", "wait"):
            assert load is not None
            if order["do"] == "stop":
                load.stop()
            await load.finish()
        say(dict(client.counts))
    await client.close()


if __name__ == "__main__":
    run(main())
