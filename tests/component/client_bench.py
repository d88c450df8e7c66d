"""Small real worlds for the client's tests: filled servers, steady readers, a server that dies of a request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pymilvus
from pymilvus import DataType

DIM, COLLECTION = 8, "docs"


def vectors(count: int = 40, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def fill(uri: str, *, seed: int = 1, indexed: bool = True, name: str = COLLECTION) -> None:
    """Put 40 rows into a server, whose nearest neighbours are known: row i is its own."""
    client = pymilvus.MilvusClient(uri)
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("v", DataType.FLOAT_VECTOR, dim=DIM)
    client.create_collection(name, schema=schema)
    if indexed:
        index = client.prepare_index_params()
        index.add_index("v", index_type="FLAT", metric_type="L2")
        client.create_index(name, index)
    client.load_collection(name)
    client.insert(name, [{"id": i, "v": v.tolist()} for i, v in enumerate(vectors(seed=seed))])
    client.flush(name)
    client.close()


async def nearest(client: Any, row: int = 3, **options: Any) -> int:
    """Search for a row's own vector; returns the id of the best hit."""
    hits = await client.search(COLLECTION, data=[vectors()[row].tolist()], limit=1, anns_field="v", **options)
    return int(hits[0][0]["id"])


@dataclass
class Readers:
    """What steady readers have seen."""

    asked: int = 0
    wrong: int = 0
    failures: list[Exception] = field(default_factory=list)
    worst_s: float = 0.0

    async def more(self, count: int) -> None:
        """Wait until so many more questions have been answered."""
        target = self.asked + count
        await until(lambda: self.asked >= target)


@contextlib.asynccontextmanager
async def reading(client: Any, *, rate: float = 40.0, width: int = 4) -> AsyncIterator[Readers]:
    """Search all the while, and count what fails or is wrong."""
    seen, stop = Readers(), asyncio.Event()

    async def one(number: int) -> None:
        row = number
        while not stop.is_set():
            row = (row + width) % 40
            began = time.monotonic()
            try:
                seen.wrong += await nearest(client, row) != row
            except Exception as error:
                seen.failures.append(error)
            seen.worst_s = max(seen.worst_s, time.monotonic() - began)
            seen.asked += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), width / rate)

    tasks = [asyncio.create_task(one(i)) for i in range(width)]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def until(condition: Callable[[], Any], within_s: float = 40.0) -> None:
    """Poll a condition, with a deadline."""
    limit = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        await asyncio.sleep(0.01)


def state(client: Any, number: int) -> str:
    return str(client.fleet.endpoints[number].state)


class Killed:
    """A proxy in front of a real server that dies of a marked request: it resets the connection when it reads it.

    Args:
        port: The server's.
        mark: What kills it.
    """

    def __init__(self, port: int, mark: bytes = b"the killer") -> None:
        self.target, self.mark, self.deaths = port, mark, 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def uri(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Killed:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        while self._tasks:
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.wait(self._tasks, timeout=0.1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up, out = await asyncio.open_connection("127.0.0.1", self.target)
        both = {out, writer}
        self._writers |= both
        try:
            await asyncio.gather(self._pump(reader, out, both, True), self._pump(up, writer, both, False))
        finally:
            for one in both:
                with contextlib.suppress(ConnectionError):
                    await one.wait_closed()
            self._writers -= both
            self._tasks.discard(task)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, both: set[asyncio.StreamWriter], watch: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if watch and self.mark in data:
                    self.deaths += 1
                    break
                sink.write(data)
        for one in both:
            one.transport.abort()


async def told(work: Awaitable[Any]) -> Exception | Any:
    """Return what came of it, an error too."""
    try:
        return await work
    except Exception as error:
        return error
