"""Backups of fleets in memory while they are written to, and what is restored from them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.config.replication import Replication
from haclient.errors import ConfigError
from haclient.milvus.methods import named
from haclient.recovery import check, dump, journal, tail
from haclient.recovery.errors import BackupDamaged, BackupError
from haclient.replication.clusters import Delivery
from haclient.replication.keep import KEEP, KEPT, may_go
from haclient.replication.log import Bounds, Fact
from tests.servers import memory_clusters as memory
from tests.servers.memory_clusters import MemoryClusters
from tests.servers.memory_fleet import Fleet, alias, drop, drop_alias, rename
from tests.unit.recovery.backups import (
    full,
    full_without_log,
    incremental,
    restored,
    source,
    store_at,
    told,
)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump, "FILE_BYTES", 5_000)


async def quiet(fleet: Fleet) -> tuple[int, dict[Any, Any]]:
    """The end of the log and what all clusters hold then."""
    await fleet.in_sync()
    return (await fleet.log.bounds()).head, told(fleet.clusters.servers["a"])


@pytest.mark.parametrize("seed", range(4))
async def test_every_entry_that_was_looked_at_is_brought_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    moments: list[tuple[int, dict[Any, Any]]] = []
    async with Fleet("a", "b", seed=seed) as fleet:
        for name in ("docs", "notes", "old"):
            await fleet.make(name, {key: f"{name} {key}" for key in range(300)})
        await fleet.make("made", dict.fromkeys(range(30), ""), auto_id=True)
        await fleet.in_sync()

        async def slow_donor(cluster: str, method: str, message: bytes) -> Delivery | None:
            # What is in the log is not yet in the cluster that is read.
            await asyncio.sleep(rng.random() * 0.01)
            return None

        fleet.clusters.hook = slow_donor
        first = await together(full(tmp_path, fleet), rows_change(fleet, rng), collections_change(fleet, rng))
        await fleet.write("LoadCollection", memory.load("docs"))
        await fleet.write("LoadCollection", memory.load("old"))
        moments.append(await quiet(fleet))
        await incremental(tmp_path, fleet)
        for _ in range(2):
            await together(rows_change(fleet, rng), collections_change(fleet, rng))
            moments.append(await quiet(fleet))
            await together(rows_change(fleet, rng))
            assert (await incremental(tmp_path, fleet)) is not None
        moments.append(await quiet(fleet))
        assert first.exact
    for seq, wanted in moments:
        clusters = MemoryClusters("new")
        await restored(tmp_path, clusters, at=str(seq), where=(str(seq),))
        assert differences(told(clusters.servers["new"]), wanted) == {}


def differences(one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    found = {}
    for what in one.keys() | other.keys():
        mine, theirs = one.get(what, {}), other.get(what, {})
        if mine != theirs and isinstance(mine, dict) and isinstance(theirs, dict):
            found |= {
                (what, part): (mine.get(part), theirs.get(part))
                for part in mine.keys() | theirs.keys()
                if mine.get(part) != theirs.get(part)
            }
        elif mine != theirs:
            found[what] = (mine, theirs)
    return found


async def together(*work: Awaitable[Any]) -> Any:
    return (await asyncio.gather(*work))[0]


async def rows_change(fleet: Fleet, rng: random.Random) -> None:
    for turn in range(15):
        await asyncio.sleep(rng.random() * 0.01)
        keys = rng.sample(range(400), 3)
        if rng.random() < 0.3:
            await fleet.write("Delete", memory.delete("notes", keys), "log")
        else:
            await fleet.write("Upsert", memory.rows("notes", dict.fromkeys(keys, f"turn {turn}")), "log")
        await fleet.write("Insert", memory.rows("made", {turn: "new"}, auto_id=True), "log")


async def collections_change(fleet: Fleet, rng: random.Random) -> None:
    async def some(name: str, message: bytes) -> None:
        await asyncio.sleep(rng.random() * 0.02)
        await fleet.write(name, message, "one")

    await some("CreateAlias", alias("docs", "latest"))
    await some("Upsert", memory.rows("docs", {1: "before it was dropped"}))
    await some("DropAlias", drop_alias("latest"))
    await some("DropCollection", drop("docs"))
    await fleet.make("docs", {2: "another one"}, "one")
    await some("RenameCollection", rename("old", "older"))
    await some("RenameCollection", rename("docs", "old"))
    await some("RenameCollection", rename("older", "docs"))
    await some("Upsert", memory.rows("docs", {3: "under its new name", 4: "too"}))
    await some("Upsert", memory.rows("old", {5: "under its new name"}))
    await some("CreateAlias", alias("docs", "latest"))


async def test_a_backup_of_a_quiet_cluster_without_a_log_is_of_one_moment(tmp_path: Path) -> None:
    clusters = MemoryClusters("a")
    memory.make(clusters, "docs", ["a"], {key: f"row {key}" for key in range(500)})
    made = await full_without_log(tmp_path, clusters)
    assert (made.seq, made.exact, made.notes, made.collections[0].count) == (None, True, [], 500)
    new = MemoryClusters("new")
    await restored(tmp_path, new)
    assert told(new.servers["new"]) == told(clusters.servers["a"])


async def test_a_backup_without_a_log_says_that_it_is_fuzzy_if_something_was_written(tmp_path: Path) -> None:
    clusters = MemoryClusters("a")
    memory.make(clusters, "docs", ["a"], {key: f"row {key}" for key in range(500)})
    memory.make(clusters, "still", ["a"], {1: "one"})
    reads = 0

    async def write(cluster: str, method: str) -> None:
        nonlocal reads
        reads += method == "Query"
        clusters.servers["a"].answer("Upsert", memory.rows("docs", {reads % 500: f"read {reads}"}), "")

    clusters.asked = write
    made = await full_without_log(tmp_path, clusters)
    assert not made.exact
    assert len(made.notes) == 1
    assert "docs: its rows may not be of one moment" in made.notes[0]


async def test_a_server_that_counts_more_rows_than_it_lists_is_named(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        await fleet.make("docs", {1: "one", 2: "two"})
        await fleet.in_sync()
        for server in fleet.clusters.servers.values():
            server.answer("Insert", memory.rows("docs", {1: "once more"}), "")  # behind the log's back
        (note,) = (await full(tmp_path, fleet)).notes
    assert "the server counts 3 rows and lists 2" in note


@pytest.mark.usefixtures("small_files")
async def test_a_backup_that_is_killed_again_and_again_reads_no_whole_file_twice(tmp_path: Path) -> None:
    store, read, kills = store_at(tmp_path), 0, 0
    async with Fleet("a", "b") as fleet:
        for name in ("docs", "notes", "other"):
            await fleet.make(name, {key: f"{name} {key}" for key in range(2_000)})
        await fleet.in_sync()
        sizes: dict[str, tuple[int, int]] = {}

        def whole() -> dict[str, tuple[int, int]]:
            """Files that the journals name: they must not change any more."""
            found = [(head.id, journal.Journal(store, head).places()) for head in journal.unfinished(store)]
            named = [(name, file.path) for name, places in found for place in places for file in place.files]
            files = [tmp_path / "backups" / name / path for name, path in named]
            return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

        async def count(cluster: str, method: str) -> None:
            nonlocal read
            if method == "Query":
                read += 1
                if read % 4 == 0:
                    work.cancel()
                    await asyncio.sleep(60)

        fleet.clusters.asked = count
        while kills < 100:
            work = asyncio.create_task(full(tmp_path, fleet, workers=1))
            await asyncio.wait([work])
            if not work.cancelled():
                break
            kills += 1
            before, sizes = sizes, whole()
            assert before.items() <= sizes.items()
            (head,) = journal.unfinished(store)
        fleet.clusters.asked = None
        made = work.result()
        assert kills > 2
        assert made.id == head.id
        assert sizes
        assert check.verify(store, made.id).well
        new = MemoryClusters("new")
        await restored(tmp_path, new)
        assert told(new.servers["new"]) == (await quiet(fleet))[1]
    assert journal.unfinished(store) == []


@pytest.mark.usefixtures("small_files")
async def test_a_restore_that_is_killed_again_and_again_writes_no_whole_file_twice(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        for name in ("docs", "notes"):
            await fleet.make(name, {key: f"{name} {key}" for key in range(1_500)})
        await full(tmp_path, fleet)
        await fleet.write("Upsert", memory.rows("docs", dict.fromkeys(range(100, 160), "later")))
        await fleet.write("Delete", memory.delete("notes", range(7)))
        await incremental(tmp_path, fleet)
        wanted = (await quiet(fleet))[1]
    new, written, kills, rng = MemoryClusters("new"), 0, 0, random.Random(1)

    async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
        nonlocal written
        if method == "Upsert":
            written += milvus_pb2.UpsertRequest.FromString(message).num_rows
        if rng.random() < 0.1:
            work.cancel()
            await asyncio.sleep(60)
        return None

    new.hook = hook
    while kills < 100:
        work = asyncio.create_task(restored(tmp_path, new, workers=2))
        await asyncio.wait([work])
        if not work.cancelled():
            break
        kills += 1
    work.result()
    assert kills > 2
    assert told(new.servers["new"]) == wanted
    # Rows that were written over are written once, in their last form; at most a file of each writer is done again.
    assert 2_993 <= written <= 2_993 + kills * 2 * 500
    assert not list((tmp_path / "backups").glob("restore-*"))


@pytest.mark.usefixtures("small_files")
async def test_another_process_that_goes_on_with_a_backup_stops_the_first_one(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        await fleet.make("docs", {key: f"row {key}" for key in range(3_000)})
        started = asyncio.Event()
        go_on = asyncio.Event()
        pages = 0

        async def wait(cluster: str, method: str) -> None:
            nonlocal pages
            pages += method == "Query"
            if pages == 5:
                started.set()
                await go_on.wait()

        fleet.clusters.asked = wait
        first = asyncio.create_task(full(tmp_path, fleet))
        await started.wait()
        fleet.clusters.asked = None
        second = await full(tmp_path, fleet)
        go_on.set()
        with pytest.raises(BackupError, match="another process goes on with the backup"):
            await first
        assert check.verify(store_at(tmp_path), second.id).well


async def test_passwords_are_not_in_a_backup(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        await fleet.make("docs", {1: "one"})
        await full(tmp_path, fleet)
        role = milvus_pb2.CreateRoleRequest(entity=milvus_pb2.RoleEntity(name="very secret"))
        await fleet.write("CreateRole", role.SerializeToString())
        await fleet.write("Upsert", memory.rows("docs", {2: "two"}))
        assert (await incremental(tmp_path, fleet)) is not None
    files = [path.read_bytes() for path in (tmp_path / "backups").rglob("*") if path.is_file()]
    assert files
    assert not any(b"very secret" in data for data in files)
    new = MemoryClusters("new")
    assert (await restored(tmp_path, new)).rows == 2


async def test_what_every_cluster_refused_is_not_restored(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        await fleet.make("docs", {1: "one"})
        await full(tmp_path, fleet)
        # Taken by haclient, and by no server: there is another index already.
        other = milvus_pb2.CreateIndexRequest(collection_name="docs", field_name="vector", index_name="vector")
        other.extra_params.append(common_pb2.KeyValuePair(key="index_type", value="IVF_FLAT"))
        reply = await fleet.process.write(
            named("CreateIndex"),
            other.SerializeToString(),
            (("haclient-ack", "all"),),
            "",
            fleet.loop.time() + 60,
        )
        assert b"at most one distinct index" in reply.message
        assert (await incremental(tmp_path, fleet)) is not None
        wanted = (await quiet(fleet))[1]
    new = MemoryClusters("new")
    await restored(tmp_path, new)
    assert told(new.servers["new"]) == wanted


async def test_an_incremental_backup_needs_a_backup_of_this_log_that_it_still_reaches(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        await fleet.make("docs", {1: "one"})
        with pytest.raises(ConfigError, match=r"there is none\. Make a full one"):
            await incremental(tmp_path, fleet)
        made = await full(tmp_path, fleet)
        assert await incremental(tmp_path, fleet) is None
        assert KEEP + KEPT in await fleet.log.facts(KEEP)
        for turn in range(10):
            await fleet.write("Upsert", memory.rows("docs", {turn: "one"}))
        await fleet.log.trim((made.seq or 0) + 5)
        with pytest.raises(ConfigError, match=r"make a full backup\. The log keeps what comes after"):
            await incremental(tmp_path, fleet)
    async with Fleet("a") as other:
        await other.make("docs", {1: "one"})
        with pytest.raises(ConfigError, match="of another log"):
            await incremental(tmp_path, other)
    with pytest.raises(ConfigError, match="make a full backup"):
        await tail.incremental(store_at(tmp_path), source(MemoryClusters("a"), None), 1.0)


def test_the_log_keeps_what_follows_a_backup_for_a_while() -> None:
    wishes = {
        f"{KEEP}a": Fact(b'{"after": 70, "until": 100.0}', 1),
        f"{KEEP}b": Fact(b'{"after": 40, "until": 50.0}', 1),
    }
    settings = Replication(max_entries=100, max_bytes=1 << 20)
    assert may_go(wishes, Bounds(61, 100, 0), settings, 10.0) == 40
    assert may_go(wishes, Bounds(61, 100, 0), settings, 60.0) == 70
    assert may_go(wishes, Bounds(61, 100, 0), settings, 100.0) == 100
    # Nobody may be kept from writing.
    assert may_go(wishes, Bounds(41, 100, 0), settings, 10.0) == 100
    assert may_go(wishes, Bounds(61, 100, 600_000), settings, 10.0) == 100


async def test_a_cluster_that_is_not_in_sync_is_not_backed_up(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        await fleet.make("docs", {1: "one"})
        await fleet.in_sync()
        with pytest.raises(ConfigError, match="there is no cluster 'c'"):
            await full(tmp_path, fleet, cluster="c")
        with pytest.raises(ConfigError, match="no collection 'none'"):
            await full(tmp_path, fleet, wanted=("none",))
        fleet.clusters.drained.add("b")
        with pytest.raises(ConfigError, match="cluster 'b' cannot be copied from: it is drained"):
            await full(tmp_path, fleet, cluster="b")
        assert (await full(tmp_path, fleet)).source == {"a": "milvus 2.3.5"}
    two = MemoryClusters("a", "b")
    with pytest.raises(ConfigError, match="name the one to back up with --cluster"):
        await full_without_log(tmp_path, two)


async def test_a_collection_with_keys_that_servers_made_and_a_part_of_a_fleet(tmp_path: Path) -> None:
    clusters = MemoryClusters("a")
    memory.make(clusters, "docs", ["a"], {1: "one"})
    memory.make(clusters, "notes", ["a"], {2: "two"})
    made = await full_without_log(tmp_path, clusters, wanted=("default.docs",))
    assert [one.name for one in made.collections] == ["docs"]
    new = MemoryClusters("new")
    with pytest.raises(ConfigError, match="no collection 'notes'"):
        await restored(tmp_path, new, names={"notes": ""})
    with pytest.raises(BackupDamaged, match="is not there"):
        await restored(tmp_path, new, backup_id="20200101T000000Z-abcdef")
    assert not new.sent
