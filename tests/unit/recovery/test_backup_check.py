"""Backups examined: whatever is wrong is found, and its file named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import duckdb
import pandas as pd
import pytest
from written_backups import full, incremental

from haclient.recovery.check import Findings, verify
from haclient.recovery.errors import BackupDamaged, StoreFailed
from haclient.recovery.manifest import MANIFEST, SUMS, chain, finish, list_backups, read_manifest
from haclient.recovery.rows import read_rows
from haclient.recovery.store import Store, open_store

ROWS = "rows/default/docs/partition=_default/00000.parquet"
LOG = "log/00000.parquet"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_a_backup_and_its_increments_are_read_to_their_last_row(store: Store) -> None:
    full(store)
    incremental(store, "more", "full", 8, 20)
    told: list[tuple[int, int]] = []
    found = verify(store, "more", lambda now: told.append((now.bytes, now.of_bytes)))
    assert found.well
    assert (found.backups, found.files, found.rows) == (["full", "more"], 4, 30 + 3 + 12)
    assert told[-1][0] == told[-1][1] == found.bytes
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_the_sums_are_those_that_sha256sum_checks(store: Store, tmp_path: Path) -> None:
    full(store)
    done = run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path / "full", capture_output=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4


# Every byte of every file counts.


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


@pytest.mark.parametrize("name", [ROWS, LOG, SUMS, MANIFEST])
def test_a_changed_byte_anywhere_is_found_and_the_file_named(store: Store, tmp_path: Path, name: str) -> None:
    full(store)
    path = tmp_path / "full" / name
    sound = path.read_bytes()
    places = range(len(sound)) if len(sound) < 400 else sorted(random.Random(7).sample(range(len(sound)), 60))
    for at in (0, *places, len(sound) - 1):
        changed(path, at)
        found = verify(store, "full")
        assert len(found.problems) == 1, at
        assert str(path) in found.problems[0]
        path.write_bytes(sound)
    assert verify(store, "full").well


@pytest.mark.parametrize("name", [ROWS, LOG, SUMS, MANIFEST])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of|damaged"),
        (lambda path: path.write_bytes(b""), "0 bytes instead of|damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "bytes instead of|damaged"),
        (Path.unlink, "is missing|there is no"),
    ],
    ids=["cut", "emptied", "longer", "removed"],
)
def test_what_is_cut_or_removed_is_named(
    store: Store, tmp_path: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    full(store)
    path = tmp_path / "full" / name
    damage(path)
    (problem,) = verify(store, "full").problems
    assert str(path) in problem
    assert any(one in problem for one in words.split("|"))


def test_files_that_were_exchanged_are_both_named(store: Store, tmp_path: Path) -> None:
    full(store)
    one, other = (tmp_path / "full" / ROWS.replace("00000", number) for number in ("00000", "00001"))
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    problems = verify(store, "full").problems
    assert [str(path) in problem for path, problem in zip((one, other), problems, strict=True)] == [True, True]


def test_a_file_that_nobody_wrote_is_named(store: Store, tmp_path: Path) -> None:
    full(store)
    stranger = tmp_path / "full" / "rows" / "default" / "docs" / "partition=_default" / "00002.parquet"
    stranger.write_bytes(b"x")
    (problem,) = verify(store, "full").problems
    assert str(stranger) in problem


def test_damage_is_never_restored(store: Store, tmp_path: Path) -> None:
    """Reading rows for any purpose refuses what is not what was written."""
    manifest = full(store)
    changed(tmp_path / "full" / ROWS, 200)
    (collection,) = manifest.collections
    with pytest.raises(BackupDamaged, match="not what was written"):
        list(read_rows(store, "full", collection.files[0], collection.shape))


def test_rows_that_were_changed_together_with_their_sums_are_found_by_the_digest(store: Store) -> None:
    manifest = full(store)
    (collection,) = manifest.collections
    other = collection.model_copy(update={"digest": f"{int(collection.digest, 16) ^ 1:032x}"})
    finish(store, manifest.model_copy(update={"collections": [other]}))
    (problem,) = verify(store, "full").problems
    assert "docs: its rows are 30:" in problem


def test_all_that_is_wrong_is_told_at_once(store: Store, tmp_path: Path) -> None:
    full(store)
    incremental(store, "more", "full", 8, 9)
    changed(tmp_path / "full" / ROWS, 100)
    (tmp_path / "more" / LOG).unlink()
    found = verify(store, "more")
    assert ["full" in problem for problem in found.problems] == [True, False]


def test_a_report_may_stop_it(store: Store) -> None:
    full(store)

    def stop(now: Findings) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        verify(store, "full", stop)


# The chain.


def test_a_backup_without_its_parent_is_refused(store: Store, tmp_path: Path) -> None:
    full(store)
    incremental(store, "more", "full", 8, 9)
    (tmp_path / "full" / MANIFEST).unlink()
    (problem,) = verify(store, "more").problems
    assert "more cannot be used without its parent: the backup full was cut off" in problem


def test_a_parent_that_ends_elsewhere_is_refused(store: Store) -> None:
    full(store)
    incremental(store, "more", "full", 9, 10)
    with pytest.raises(BackupDamaged, match="goes on from entry 9 of the log, and its parent full ends at 8"):
        chain(store, "more")


def test_backups_that_go_on_from_each_other_are_refused(store: Store) -> None:
    incremental(store, "a", "b", 1, 1)
    incremental(store, "b", "a", 1, 1)
    with pytest.raises(BackupDamaged, match="goes on from itself"):
        chain(store, "a")


# What a manifest says of itself.


def test_a_backup_is_one_once_its_manifest_is_there(store: Store, tmp_path: Path) -> None:
    manifest = full(store)
    (tmp_path / "full" / MANIFEST).unlink()
    with pytest.raises(BackupDamaged, match="was cut off before it was complete"):
        read_manifest(store, "full")
    assert list_backups(store).backups == []
    assert "cut off" in list_backups(store).unusable["full"]
    finish(store, manifest)
    assert list_backups(store).backups == [read_manifest(store, "full")] == [manifest]


def test_a_newer_format_is_refused_before_anything_of_it_is_believed(store: Store, tmp_path: Path) -> None:
    full(store)
    (tmp_path / "full" / MANIFEST).write_bytes(b'{"format": 2, "what": "we cannot know"}')
    with pytest.raises(BackupDamaged, match="format 2, and this haclient knows 1: update haclient"):
        read_manifest(store, "full")


def test_a_manifest_of_another_backup_is_refused(store: Store, tmp_path: Path) -> None:
    full(store)
    (tmp_path / "full").rename(tmp_path / "other")
    with pytest.raises(BackupDamaged, match="manifest of another backup, full"):
        read_manifest(store, "other")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "a b"])
def test_names_that_could_lead_elsewhere_are_no_names(store: Store, name: str) -> None:
    with pytest.raises(BackupDamaged, match="no name of a backup"):
        read_manifest(store, name)


def test_what_is_not_there_is_said_to_be_not_there(store: Store) -> None:
    with pytest.raises(BackupDamaged, match="the backup nothing is not there"):
        read_manifest(store, "nothing")


def test_a_storage_that_fails_is_no_damage(store: Store, tmp_path: Path) -> None:
    full(store)
    (tmp_path / "full" / ROWS).unlink()
    (tmp_path / "full" / ROWS).mkdir()
    with pytest.raises(StoreFailed, match=ROWS):
        verify(store, "full")


def test_left_overs_of_a_job_that_was_cut_off_are_gone_when_it_is_finished(store: Store) -> None:
    store.write("full/rows/default/docs/partition=_default/00007.parquet", b"half")
    store.write("full/progress.json", b"{}")
    full(store)
    assert verify(store, "full").well
    assert not store.exists("full/progress.json")


def test_other_programs_read_a_collection_by_its_folder(store: Store, tmp_path: Path) -> None:
    """Most of them pass over folders and files whose names begin with an underscore, as partitions' names do."""
    full(store)
    folder = tmp_path / "full" / "rows" / "default" / "docs"
    frame = pd.read_parquet(folder)
    assert sorted(frame["id"]) == list(range(30))
    assert set(frame["partition"]) == {"_default"}
    near = f"list_cosine_distance(vector, [{', '.join('1' * 16)}]::FLOAT[])"
    with duckdb.connect() as base:
        rows = base.sql(f"SELECT id, partition, {near} AS d FROM '{folder}/**/*.parquet' ORDER BY d").fetchall()
    assert len(rows) == 30
    assert {row[1] for row in rows} == {"_default"}


def test_keys_that_are_not_those_of_the_manifest_are_found(store: Store) -> None:
    manifest = full(store)
    (collection,) = manifest.collections
    files = [collection.files[0].model_copy(update={"last": 18}), collection.files[1]]
    finish(store, manifest.model_copy(update={"collections": [collection.model_copy(update={"files": files})]}))
    (problem,) = verify(store, "full").problems
    assert f"{ROWS} has other keys than manifest.json says" in problem
