"""A fleet in memory, backed up to a folder and restored from it."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from haclient.milvus.status import Flavour
from haclient.recovery import backup, moment, tail
from haclient.recovery import restore as work
from haclient.recovery.manifest import Manifest
from haclient.recovery.source import Fleet
from haclient.recovery.store import Store, open_store
from haclient.recovery.target import Mirrored, OneCluster
from haclient.replication.log import MutationLog
from haclient.replication.reseed import Advance
from tests.servers import memory_clusters as memory
from tests.servers import memory_fleet
from tests.servers.memory_fleet import SETTINGS


def source(clusters: memory.MemoryClusters, log: MutationLog | None) -> Fleet:
    """What the commands work with."""
    rng = random.Random()
    name = f"process {rng.random()} {time.perf_counter_ns()}"
    return Fleet(clusters, SETTINGS, log, name, rng, asyncio.get_running_loop(), time.time)


def store_at(folder: Path) -> Store:
    return open_store(str(folder / "backups"))


async def full(folder: Path, fleet: memory_fleet.Fleet, **task: Any) -> Manifest:
    return await backup.full(store_at(folder), source(fleet.clusters, fleet.log), backup.Task(**task))


async def full_without_log(folder: Path, clusters: memory.MemoryClusters, **task: Any) -> Manifest:
    return await backup.full(store_at(folder), source(clusters, None), backup.Task(**task))


async def incremental(folder: Path, fleet: memory_fleet.Fleet) -> Manifest | None:
    return await tail.incremental(store_at(folder), source(fleet.clusters, fleet.log), 3_600.0)


async def restored(
    folder: Path, clusters: memory.MemoryClusters, at: str = "", backup_id: str = "", **wish: Any
) -> Advance:
    """Restore to the one cluster of a fleet."""
    store, fleet = store_at(folder), source(clusters, None)
    found = await asyncio.to_thread(moment.find, store, backup_id, moment.parse_at(at))
    return await work.restore(store, fleet, OneCluster(fleet, ""), found, work.Wish(**wish))


async def restored_through_the_log(folder: Path, to: memory_fleet.Fleet, **wish: Any) -> Advance:
    """Restore to a fleet whose writes are mirrored."""
    store, fleet = store_at(folder), source(to.clusters, None)
    found = await asyncio.to_thread(moment.find, store, "", None)
    return await work.restore(store, fleet, Mirrored(fleet, to.process), found, work.Wish(**wish))


def told(server: memory.PagedMilvus) -> dict[Any, Any]:
    """All that a restore has to bring back."""
    snapshot = memory_fleet._told(server.snapshot())
    del snapshot["roles"]
    return snapshot


class OtherVersion(memory.MemoryClusters):
    """Clusters of another kind than Milvus 2.3.5."""

    def __init__(self, flavour: Flavour, version: str, *names: str) -> None:
        super().__init__(*names)
        self._kind = (flavour, version)

    def members(self) -> Any:
        return [memory.Member(name, name in self.drained, *self._kind) for name in self.servers]
