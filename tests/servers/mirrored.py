"""A fleet whose writes are mirrored, as configuration, and the commands that work on it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
from pymilvus import DataType
from typer.testing import CliRunner

from haclient import AsyncMilvusClient
from haclient.cli import app
from haclient.config import Config
from haclient.core import Core
from haclient.events import EventBus
from haclient.host import Host
from haclient.milvus import structure
from haclient.replication.clusters import Clusters
from haclient.replication.engines import open_log
from haclient.replication.hold import position_of
from haclient.replication.log import MutationLog
from haclient.replication.position import Standing

DIMENSION = 16


@final
class Mirrored:
    """Clusters by name, with an SQLite log.

    Args:
        folder: For the configuration and the log.
        uris: One endpoint per cluster.
        settings: Further keys of ``[replication]``.
        logged: Whether there is a log at all.
        asynchronous: Clusters at another site.
    """

    def __init__(
        self,
        folder: Path,
        uris: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        *,
        logged: bool = True,
        asynchronous: Sequence[str] = (),
    ) -> None:
        self.uris = dict(uris)
        self.file = folder / "haclient.toml"
        lines = []
        for name, uri in uris.items():
            lines += ["[[cluster]]", f'name = "{name}"', f'endpoints = ["{uri}"]']
            lines += ["asynchronous = true", ""] if name in asynchronous else [""]
        if logged:
            more = {"mode": "mirror", "log": str(folder / "mutations.log"), **(settings or {})}
            lines += ["[replication]", *(f"{key} = {json.dumps(value)}" for key, value in more.items())]
        self.file.write_text("\n".join(lines))
        self.config = Config.load(None, self.file)

    def client(self) -> AsyncMilvusClient:
        """A client that writes and applies."""
        return AsyncMilvusClient(config=self.config)

    @asynccontextmanager
    async def reach(self) -> AsyncIterator[tuple[MutationLog, Clusters]]:
        """The log and the clusters, without anybody who applies."""
        replication = self.config.replication
        plain = self.config.model_copy(update={"replication": replication.model_copy(update={"mode": "none"})})
        host = Host(plain, lambda: plain, EventBus())
        log = open_log(replication, time.time)
        try:
            core: Core = await host.enter()
            await core.start()
            await core.refresh()
            await log.open()
            yield log, core.clusters
        finally:
            await log.aclose()
            await host.aclose()

    def options(self) -> dict[str, Any]:
        """What `reseed` and `audit` take besides."""
        loop = asyncio.get_running_loop()
        return {"holder": f"test-{random.getrandbits(32)}", "rng": random.Random(1), "loop": loop}

    async def in_sync(self, log: MutationLog, timeout_s: float = 60) -> None:
        """Wait until every cluster has applied the whole log."""
        async with asyncio.timeout(timeout_s):
            while True:
                head = (await log.bounds()).head
                positions = [await position_of(log, name) for name in self.uris]
                if all(one.standing is Standing.IN_SYNC and one.low == head and not one.parked for one in positions):
                    return
                await asyncio.sleep(0.1)

    async def run(self, *command: str) -> tuple[int, Any, str]:
        """Run ``haclient``; returns its exit code, what it printed (parsed, if it is JSON), and its stderr."""
        line = [*command, "--config", str(self.file)]
        done = await asyncio.to_thread(CliRunner().invoke, app, line)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        try:
            printed = json.loads(done.stdout)
        except ValueError:
            printed = done.stdout
        return done.exit_code, printed, done.stderr


def row(key: int | str, version: int = 0, dimension: int = DIMENSION) -> dict[str, Any]:
    """A row with something of every type that all servers know."""
    number = key if isinstance(key, int) else len(key)
    vector = np.random.default_rng([abs(number), version]).standard_normal(dimension).astype(np.float32)
    made: dict[str, Any] = {
        "id": key,
        "text": f'text {key} of version {version} with "quotes" and é',
        "flag": number % 2 == 0,
        "small": number % 100,
        "share": number / 7,
        "doc": {"b": [1, 2.5, None], "a": {"n": number, "v": version}, "c": 1e22},
        "numbers": list(range(number % 4)),
        "vector": vector.tolist(),
    }
    if number % 3:
        made["extra"] = {"version": version, "x": 1.0}
    return made


async def create(client: AsyncMilvusClient, name: str, *, text_keys: bool = False, dimension: int = DIMENSION) -> None:
    """A collection for `row`, indexed and loaded."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    if text_keys:
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    else:
        schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=256)
    schema.add_field("flag", DataType.BOOL)
    schema.add_field("small", DataType.INT8)
    schema.add_field("share", DataType.DOUBLE)
    schema.add_field("doc", DataType.JSON)
    schema.add_field("numbers", DataType.ARRAY, element_type=DataType.INT32, max_capacity=8)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    await client.create_collection(name, schema=schema)
    await index(client, name)
    await client.load_collection(name)


async def index(client: AsyncMilvusClient, name: str) -> None:
    """An index of the field ``vector``."""
    # pymilvus' own method asks for a timestamp afterwards, which milvus-lite has none of.
    params = (("M", "8"), ("efConstruction", "64"), ("index_type", "HNSW"), ("metric_type", "COSINE"))
    request = structure.create_index(name, structure.Index("vector", "vector", params), "")
    reply = await client.host.request(request.method, request.message, (), None)
    assert (reply.code, reply.message) == (0, b"")


async def fill(client: AsyncMilvusClient, name: str, keys: Sequence[int | str], version: int = 0, **to: Any) -> None:
    """Upsert rows, a thousand at a time."""
    for at in range(0, len(keys), 1_000):
        await client.upsert(name, [row(key, version) for key in keys[at : at + 1_000]], **to)
