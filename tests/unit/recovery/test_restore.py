"""What is restored where, under which names, and what is refused before anything is written."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.errors import ConfigError
from haclient.milvus.status import Flavour
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.moment import parse_at
from haclient.recovery.restore import parse_names
from haclient.replication.clusters import Delivery, Outcome
from haclient.replication.site import SiteFailed
from tests.servers import memory_clusters as memory
from tests.servers.memory_clusters import MemoryClusters
from tests.servers.memory_fleet import Fleet, alias
from tests.unit.recovery.backups import (
    OtherVersion,
    full,
    full_without_log,
    incremental,
    restored,
    restored_through_the_log,
    store_at,
    told,
)


async def backed_up(folder: Path) -> MemoryClusters:
    """A cluster with docs (alias: latest) and notes, and its backup."""
    clusters = MemoryClusters("a")
    for name in ("docs", "notes"):
        memory.make(clusters, name, ["a"], {key: f"{name} {key}" for key in range(40)})
    clusters.servers["a"].answer("CreateAlias", alias("docs", "latest"), "")
    await full_without_log(folder, clusters)
    return clusters


def rows_of(clusters: MemoryClusters, name: str, database: str = "default") -> int:
    return len(clusters.servers["new"].collections[database, name].rows)


async def test_a_part_under_other_names_beside_what_is_there(tmp_path: Path) -> None:
    await backed_up(tmp_path)
    new = MemoryClusters("new")
    memory.make(new, "docs", ["new"], {1: "mine"})
    done = await restored(tmp_path, new, names={"docs": "archive.old", "default.notes": "copied"})
    assert {name for _, name in new.servers["new"].collections} == {"docs", "old", "copied"}
    assert (rows_of(new, "docs"), rows_of(new, "old", "archive"), rows_of(new, "copied")) == (1, 40, 40)
    assert done.notes == ["the alias latest was left out, as docs has another name now"]


async def test_what_is_there_is_not_touched_unless_that_is_asked_for(tmp_path: Path) -> None:
    clusters = await backed_up(tmp_path)
    new = MemoryClusters("new")
    memory.make(new, "docs", ["new"], {1: "mine"})
    memory.make(new, "other", ["new"], {1: "mine"})
    new.servers["new"].answer("CreateAlias", alias("other", "latest"), "")
    before = told(new.servers["new"])
    with pytest.raises(ConfigError, match=r"has these names already: default\.docs, default\.latest"):
        await restored(tmp_path, new)
    assert not new.sent
    assert told(new.servers["new"]) == before
    await restored(tmp_path, new, drop_existing=True)
    after = told(new.servers["new"])
    assert after.pop(("default", "other"))
    assert after == told(clusters.servers["a"])


async def test_two_collections_do_not_become_one(tmp_path: Path) -> None:
    await backed_up(tmp_path)
    new = MemoryClusters("new")
    with pytest.raises(ConfigError, match="would have the same name"):
        await restored(tmp_path, new, names={"docs": "one", "notes": "one"})
    with pytest.raises(ConfigError, match="no collection 'none'"):
        await restored(tmp_path, new, names={"none": ""})
    assert not new.sent


@pytest.mark.parametrize("given", [["a="], ["=b"], ["a", "a=b"], [""]])
def test_names_that_cannot_be_read_are_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"write database\.name"):
        parse_names(given)


def test_a_moment_is_an_entry_or_a_time() -> None:
    assert parse_at("") is None
    assert parse_at("17") == 17
    assert parse_at("2026-03-01T12:00:00+02:00") == datetime(2026, 3, 1, 10, tzinfo=UTC)
    with pytest.raises(ConfigError, match="write the number of an entry"):
        parse_at("yesterday")


@pytest.mark.parametrize("what", ["changed", "cut", "missing"])
async def test_a_damaged_file_is_named_before_anything_is_written(tmp_path: Path, what: str) -> None:
    await backed_up(tmp_path)
    (file,) = (tmp_path / "backups").glob("*/rows/default/notes/**/*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if what == "missing":
        file.unlink()
    else:
        file.write_bytes(data if what == "changed" else data[:-1])
    new = MemoryClusters("new")
    with pytest.raises(BackupDamaged, match=r"notes/.*00000\.parquet"):
        await restored(tmp_path, new)
    assert not new.sent
    # What is whole can be had.
    await restored(tmp_path, new, names={"docs": ""})
    assert rows_of(new, "docs") == 40


async def test_a_target_that_loses_rows_is_found_out(tmp_path: Path) -> None:
    await backed_up(tmp_path)
    new = MemoryClusters("new")

    async def lose(cluster: str, method: str, message: bytes) -> Delivery | None:
        return Delivery(Outcome.DONE, b"") if method == "Upsert" and b"notes" in message else None

    new.hook = lose
    with pytest.raises(SiteFailed, match=r"notes: cluster new does not hold what the backup does: 0:0+ was read back"):
        await restored(tmp_path, new)
    new.hook = None
    with pytest.raises(SiteFailed, match="--drop-existing"):
        await restored(tmp_path, new)


def keyless(name: str) -> bytes:
    """A collection whose keys the servers make."""
    return memory.collection(name, auto_id=True)


async def with_native_keys(folder: Path) -> MemoryClusters:
    clusters = MemoryClusters("a")
    server = clusters.servers["a"]
    for request, message in (("CreateCollection", keyless("made")), ("CreateIndex", memory.index("made"))):
        server.answer(request, message, "")
    server.answer("LoadCollection", memory.load("made"), "")
    server.answer("Upsert", memory.rows("made", {2**60 + key: "" for key in range(20)}), "")
    await full_without_log(folder, clusters)
    return clusters


async def test_keys_that_servers_made_are_kept_or_refused(tmp_path: Path) -> None:
    clusters = await with_native_keys(tmp_path)
    wanted = told(clusters.servers["a"])["default", "made"]["rows"]
    new = MemoryClusters("new")
    with pytest.raises(ConfigError, match=r"the servers made its keys\. Cluster new runs Milvus 2\.3\.5"):
        await restored(tmp_path, new)
    assert not new.sent
    await restored(tmp_path, new, given_keys=True)
    schema = schema_pb2.CollectionSchema.FromString(new.servers["new"].collections["default", "made"].schema)
    assert not any(field.autoID for field in schema.fields)
    assert told(new.servers["new"])["default", "made"]["rows"] == wanted
    lite = OtherVersion(Flavour.LITE, "3.2.2", "new")
    with pytest.raises(ConfigError, match="runs Milvus Lite"):
        await restored(tmp_path, lite)


async def test_newer_servers_take_keys_for_a_while(tmp_path: Path) -> None:
    await with_native_keys(tmp_path)
    new, properties = OtherVersion(Flavour.REAL, "2.6.4", "new"), []

    async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
        if method == "CreateCollection":
            told = milvus_pb2.CreateCollectionRequest.FromString(message)
            properties.append([(pair.key, pair.value) for pair in told.properties])
        if method == "AlterCollection":
            properties.append(list(milvus_pb2.AlterCollectionRequest.FromString(message).delete_keys))
            return Delivery(Outcome.DONE, b"")
        return None

    new.hook = hook
    await restored(tmp_path, new)
    assert properties == [[("allow_insert_auto_id", "true")], ["allow_insert_auto_id"]]
    assert rows_of(new, "made") == 20


async def test_a_mirrored_fleet_gets_everything_through_its_log(tmp_path: Path) -> None:
    async with Fleet("a", "b") as fleet:
        await fleet.make("docs", {key: f"row {key}" for key in range(200)})
        await fleet.make("made", dict.fromkeys(range(30), ""), auto_id=True)
        await fleet.write("CreateAlias", alias("docs", "latest"))
        await full(tmp_path, fleet)
        await fleet.write("Upsert", memory.rows("docs", {5: "later", 500: "new"}))
        await incremental(tmp_path, fleet)
        wanted = told(fleet.clusters.servers["a"])
    async with Fleet("c", "d", seed=1) as other:
        await other.make("mine", {1: "one"})
        await restored_through_the_log(tmp_path, other)
        await other.in_sync()
        assert other.differences() == []
        held = told(other.clusters.servers["d"])
        del held["default", "mine"]
        assert held == wanted
        # It is a mirrored collection like any other, and haclient makes the keys of the one that has none.
        await other.write("Upsert", memory.rows("docs", {6: "written since"}))
        await other.write("Insert", memory.rows("made", {0: "new"}, auto_id=True))
        await other.in_sync()
        assert other.differences() == []
        assert len(other.clusters.servers["c"].collections["default", "made"].rows) == 31


async def test_native_keys_go_to_a_mirrored_fleet_which_then_makes_them(tmp_path: Path) -> None:
    clusters = await with_native_keys(tmp_path)
    wanted = told(clusters.servers["a"])["default", "made"]["rows"]
    async with Fleet("c", "d") as other:
        await restored_through_the_log(tmp_path, other)
        assert told(other.clusters.servers["c"])["default", "made"]["rows"] == wanted
        await other.write("Insert", memory.rows("made", {0: "new"}, auto_id=True))
        await other.in_sync()
        assert other.differences() == []


async def test_a_time_is_known_only_between_backups(tmp_path: Path) -> None:
    async with Fleet("a") as fleet:
        await fleet.make("docs", {1: "one"})
        made = await full(tmp_path, fleet)
        new = MemoryClusters("new")
        with pytest.raises(ConfigError, match=f"{made.id} holds entry {made.seq} alone"):
            await restored(tmp_path, new, at=str((made.seq or 0) + 1))
        with pytest.raises(ConfigError, match="no backup holds that moment"):
            await restored(tmp_path, new, at="2999-01-01T00:00:00+00:00")
        await fleet.write("Upsert", memory.rows("docs", {2: "two"}))
        later = await incremental(tmp_path, fleet)
        assert later is not None
        with pytest.raises(ConfigError, match=f"{later.id} holds entries {made.seq} to {later.seq}"):
            await restored(tmp_path, new, at=str((later.seq or 0) + 1))
        # The log's clock is that of the loop here, so every entry is older than the backup.
        await restored(tmp_path, new, at=later.created.isoformat())
        assert rows_of(new, "docs") == 2


async def test_there_is_nothing_to_restore(tmp_path: Path) -> None:
    new = MemoryClusters("new")
    with pytest.raises(ConfigError, match="there is no backup at"):
        await restored(tmp_path, new)
    two = MemoryClusters("new", "other")
    await backed_up(tmp_path)
    with pytest.raises(ConfigError, match="name the one to restore to with --cluster"):
        await restored(tmp_path, two)
    assert store_at(tmp_path).folders()
