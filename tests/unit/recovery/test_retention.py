"""Which backups are kept; and that deleting them can be cut off anywhere."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_backups import BEGAN, full, incremental

from haclient.errors import ConfigError
from haclient.recovery.check import verify
from haclient.recovery.manifest import Manifest, list_backups
from haclient.recovery.retention import delete, plan, prune
from haclient.recovery.store import Store, open_store

NOW = BEGAN + timedelta(days=10)


def made(backup: str, day: float, parent: str = "") -> Manifest:
    kind: Any = "incremental" if parent else "full"
    return Manifest(id=backup, created=BEGAN + timedelta(days=day), kind=kind, parent=parent, seq=0, from_seq=0)


WEEK = [made("f1", 0), made("i1", 1, "f1"), made("i2", 2, "i1"), made("f2", 5), made("i3", 6, "f2"), made("f3", 9)]


@pytest.mark.parametrize(
    ("keep", "deleted"),
    [
        ({"keep_last": 1}, ["i2", "i3", "i1", "f2", "f1"]),
        ({"keep_last": 2}, ["i2", "i1", "f1"]),
        ({"keep_last": 4}, []),
        ({"keep_days": 1.5}, ["i2", "i3", "i1", "f2", "f1"]),
        ({"keep_days": 4.5}, ["i2", "i1", "f1"]),
        ({"keep_days": 8}, []),
        ({"keep_last": 1, "keep_days": 4}, ["i2", "i1", "f1"]),
    ],
)
def test_what_is_neither_new_nor_needed_is_deleted_children_first(keep: dict[str, Any], deleted: list[str]) -> None:
    found = plan(WEEK, NOW, **keep)
    assert sorted(found) == sorted(deleted)
    parents = {one.id: one.parent for one in WEEK}
    assert not any(parents[one] in found[:at] for at, one in enumerate(found))


def test_the_newest_is_kept_however_old_it_is() -> None:
    assert plan(WEEK, NOW + timedelta(days=1000), keep_days=1) == plan(WEEK, NOW, keep_last=1)


@pytest.mark.parametrize("keep", [{}, {"keep_last": 0}, {"keep_days": -1.0}])
def test_what_to_keep_must_be_said(keep: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="say what to keep"):
        plan(WEEK, NOW, **keep)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 8)), min_size=1, max_size=9),
    st.integers(0, 4),
    st.integers(0, 9),
)
def test_whatever_is_deleted_in_whatever_order_no_backup_ever_lacks_its_parent(
    drawn: list[tuple[int, int]], keep_last: int, keep_days: int
) -> None:
    """Clocks may be wrong: a child may look older than its parent."""
    backups = [made(f"b{at}", day, f"b{parent}" if 0 <= parent < at else "") for at, (day, parent) in enumerate(drawn)]
    there = {one.id: one.parent for one in backups}
    for backup in plan(backups, NOW, keep_last=keep_last or 1, keep_days=keep_days):
        del there[backup]
        assert all(parent in there for parent in there.values() if parent)
    assert there


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made_in = open_store(str(tmp_path))
    full(made_in, "f1")
    incremental(made_in, "i1", "f1", 8, 9)
    full(made_in, "f2", created=BEGAN + timedelta(days=5))
    return made_in


def test_pruning_leaves_what_is_kept_and_what_is_being_written(store: Store, tmp_path: Path) -> None:
    store.write("running/rows/00000.parquet", b"half a backup")
    told: list[str] = []
    assert prune(store, NOW, keep_last=1, report=told.append) == told == ["i1", "f1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f2", "running"]
    assert verify(store, "f2").well
    assert prune(store, NOW, keep_last=1) == []


class CutOffError(Exception):
    """Stands for a process that is killed."""


def test_pruning_that_is_cut_off_anywhere_shows_no_half_backup_and_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, allowed = 0, 0
    for name in ("write", "delete", "delete_folder"):
        real = getattr(Store, name)

        def step(self: Store, *args: Any, real: Any = real) -> None:
            nonlocal steps
            if steps == allowed:
                raise CutOffError
            steps += 1
            real(self, *args)

        monkeypatch.setattr(Store, name, step)
    while True:
        steps, allowed = 0, allowed + 1
        try:
            prune(store, NOW, keep_last=1)
            break
        except CutOffError:
            for one in list_backups(store).backups:
                assert verify(store, one.id).well
    assert allowed > 5
    assert (store.folders(), list_backups(store).unusable) == (["f2"], {})


def test_what_was_cut_off_while_it_was_written_can_be_deleted_by_name(store: Store) -> None:
    store.write("cut/rows/00000.parquet", b"half a backup")
    delete(store, "cut")
    assert store.folders() == ["f1", "f2", "i1"]
