"""A fleet in memory, a log, and a process that writes and applies; for what copies and compares clusters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
from typing import Any

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.config.replication import Replication
from haclient.events import EventBus
from haclient.milvus.methods import named
from haclient.replication.hold import position_of
from haclient.replication.position import Standing
from haclient.replication.replicator import Replicator
from haclient.replication.reseed import Advance, reseed
from tests.servers import memory_clusters as memory
from tests.servers.memory_clusters import MemoryClusters
from tests.servers.memory_log import MemoryLog, MemoryStore

SETTINGS = Replication(mode="mirror", log="memory", batch_bytes=1 << 16)


class Fleet:
    """Clusters, a log, and a process that writes and applies."""

    def __init__(self, *names: str, seed: int = 0, asynchronous: Collection[str] = ()) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = random.Random(seed)
        self.clusters = MemoryClusters(*names)
        self.clusters.asynchronous.update(asynchronous)
        self.store = MemoryStore()
        self.log = self.open_log()
        self.process = self.start()

    def open_log(self) -> MemoryLog:
        return MemoryLog(self.store)

    def start(self) -> Replicator:
        return Replicator(
            SETTINGS, self.open_log(), self.clusters, EventBus(), self.rng, self.loop, "process", wall=self.loop.time
        )

    async def __aenter__(self) -> Fleet:
        await self.process.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.process.aclose()

    async def write(self, name: str, message: bytes, ack: str = "all") -> None:
        deadline = self.loop.time() + 60
        reply = await self.process.write(named(name), message, (("haclient-ack", ack),), "", deadline)
        assert (reply.code == 0 and len(reply.message) < 100) or name in ("Insert", "Upsert"), reply

    async def make(self, name: str, values: dict[Any, str], ack: str = "all", **options: Any) -> None:
        await self.write("CreateCollection", memory.collection(name, **options), ack)
        await self.write("CreateIndex", memory.index(name), ack)
        await self.write("LoadCollection", memory.load(name), ack)
        if values:
            method = "Insert" if options.get("auto_id") else "Upsert"
            await self.write(method, memory.rows(name, values, **options), ack)

    async def reseed(self, cluster: str, log: MemoryLog | None = None, **options: Any) -> Advance:
        return await reseed(
            log or self.log, self.clusters, SETTINGS, cluster, holder="reseed", rng=self.rng, loop=self.loop, **options
        )

    async def in_sync(self, timeout_s: float = 60) -> None:
        """Wait until every cluster has applied the whole log, with nothing parked."""
        until = self.loop.time() + timeout_s
        while self.loop.time() < until:
            head = (await self.log.bounds()).head
            positions = [await position_of(self.log, name) for name in self.clusters.servers]
            if all(one.standing is Standing.IN_SYNC and one.low == head and not one.parked for one in positions):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"not in sync: {positions}")

    def differences(self) -> list[str]:
        """What the clusters do not have in common."""
        (name, first), *others = [(name, _told(server.snapshot())) for name, server in self.clusters.servers.items()]
        return [
            f"{what}: {name} has {first.get(what)}, {other} has {theirs.get(what)}"
            for other, theirs in others
            for what in first.keys() | theirs.keys()
            if first.get(what) != theirs.get(what)
        ]


def _told(snapshot: dict[Any, Any]) -> dict[Any, Any]:
    """Leave out what a rename does not change, but a copy does."""
    for one in snapshot.values():
        if isinstance(one, dict) and "schema" in one:
            schema = schema_pb2.CollectionSchema.FromString(one["schema"][0])
            schema.ClearField("name")
            one["schema"] = (schema.SerializeToString(), one["schema"][1])
    return snapshot


def drop(name: str) -> bytes:
    return bytes(milvus_pb2.DropCollectionRequest(collection_name=name).SerializeToString())


def alias(name: str, other: str) -> bytes:
    return bytes(milvus_pb2.CreateAliasRequest(collection_name=name, alias=other).SerializeToString())


def drop_alias(name: str) -> bytes:
    return bytes(milvus_pb2.DropAliasRequest(alias=name).SerializeToString())


def rename(before: str, after: str) -> bytes:
    return bytes(milvus_pb2.RenameCollectionRequest(oldName=before, newName=after).SerializeToString())
