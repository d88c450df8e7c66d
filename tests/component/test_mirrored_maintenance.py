"""Maintenance under load: three clusters are drained, restarted and put back, one after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pymilvus
import pytest

from haclient import AsyncMilvusClient
from tests.servers.mirrored import Mirrored, create, row
from tests.servers.shared import LiteFactory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NAME = "docs"


class Load:
    """Writes and reads its own writes, one call after the other, until told to stop; any error is a failed call."""

    def __init__(self, client: AsyncMilvusClient, first: int) -> None:
        self.done = 0
        self.expected: dict[int, int] = {}
        self._client = client
        self._first = first
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    async def run(self) -> None:
        client = self._client
        while not self._stopping:
            key, version = self._first + self.done % 50, self.done
            if self.done % 10 == 9 and key - 1 in self.expected:
                await client.delete(NAME, ids=[key - 1])
                del self.expected[key - 1]
            await client.upsert(NAME, [row(key, version) | {"version": version}])
            self.expected[key] = version
            found = await client.query(NAME, f"id == {key}", output_fields=["version"], consistency_level="Session")
            assert [one["version"] for one in found] == [version], "its own write"
            hits = await client.search(NAME, [row(key, version)["vector"]], limit=1, consistency_level="Eventually")
            assert len(hits[0]) == 1
            self.done += 1


async def test_a_rolling_restart_of_three_clusters_fails_no_call(lite_server: LiteFactory, tmp_path: Path) -> None:
    servers = await asyncio.gather(lite_server(), lite_server(), lite_server())
    fleet = Mirrored(tmp_path, {name: server.uri for name, server in zip("abc", servers, strict=True)})
    loads: list[Load] = []
    async with fleet.client() as client:
        await create(client, NAME)
        await client.upsert(NAME, [row(key) for key in range(900, 910)])
        loads = [Load(client, first) for first in (0, 100, 200)]
        async with asyncio.TaskGroup() as group:
            for load in loads:
                group.create_task(load.run())
            for name, server in zip("abc", servers, strict=True):
                before = [load.done for load in loads]
                client.drain(name)
                await until(lambda name=name: view(client, name).endpoints[0].state == "drained")
                await server.restart()
                await progress(loads, before, 5)
                client.undrain(name)
                await until(lambda name=name: view(client, name).standing == "in_sync")
                # Its answers are needed, too: milvus-lite has released its collections, and is made to load them.
                await until(lambda name=name: view(client, name).endpoints[0].ready.get(NAME))
                await progress(loads, [load.done for load in loads], 5)
            for load in loads:
                load.stop()
        await until(lambda: all(cluster.lag == 0 for cluster in client.fleet.clusters))
    expected = {key: version for load in loads for key, version in load.expected.items()}
    for server in servers:
        assert await asyncio.to_thread(rows, server.uri) == expected


def view(client: AsyncMilvusClient, name: str) -> Any:
    return next(cluster for cluster in client.fleet.clusters if cluster.name == name)


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


async def progress(loads: list[Load], before: list[int], count: int) -> None:
    """Wait until every load has made so many rounds more."""
    await until(lambda: all(load.done >= done + count for load, done in zip(loads, before, strict=True)))


def rows(uri: str) -> dict[int, int]:
    """Return what a cluster itself holds: versions by key, without the rows that were there before the load."""
    client = pymilvus.MilvusClient(uri, dedicated=True)
    try:
        client.load_collection(NAME)
        found = client.query(NAME, "id < 900", output_fields=["id", "version"], limit=1000)
        return {one["id"]: one["version"] for one in found}
    finally:
        client.close()
