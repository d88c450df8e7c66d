"""Entries of the mutation log as Parquet: nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_backups import entries

from haclient.recovery.errors import BackupDamaged
from haclient.recovery.manifest import LogFile
from haclient.recovery.segments import read_segment, write_segment
from haclient.recovery.store import open_store
from haclient.replication.log import Entry, Mutation

NAME = st.text(max_size=5)
MUTATIONS = st.builds(
    Mutation,
    operation=st.binary(min_size=16, max_size=16),
    method=st.sampled_from(["Upsert", "Delete", "CreateCollection"]),
    stream=st.tuples(NAME, NAME),
    message=st.binary(max_size=30),
    database=NAME,
)


@given(
    first=st.integers(1, 2**62),
    drawn=st.lists(st.tuples(st.floats(0, 4e9), MUTATIONS), min_size=1, max_size=8),
    cut=st.integers(0, 8),
)
@settings(max_examples=40, deadline=None)
def test_entries_come_back_as_they_were(first: int, drawn: list[tuple[float, Mutation]], cut: int) -> None:
    written = [Entry(first + at, when, one, len(one.message)) for at, (when, one) in enumerate(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        with write_segment(store, "b/log.parquet") as writer:
            writer.add(written[:cut])
            writer.add(written[cut:])
        file = writer.described("log.parquet")
        assert (file.rows, file.first, file.last) == (len(written), first, written[-1].seq)
        assert [entry for some in read_segment(store, "b", file) for entry in some] == written


def test_a_gap_is_refused(tmp_path: Path) -> None:
    with (
        write_segment(open_store(str(tmp_path)), "b/log.parquet") as writer,
        pytest.raises(ValueError, match="entry 9 of the log does not follow entry 3"),
    ):
        writer.add([*entries(1, 3), *entries(9, 9)])


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with store.open_write("b/log.parquet") as sink:
        sink.write(b"PAR1 but nothing else PAR1")
    file = LogFile(path="log.parquet", rows=1, bytes=sink.size, sha256=sink.sha256, first=1, last=1)
    with pytest.raises(BackupDamaged, match=r"b/log\.parquet cannot be read"):
        list(read_segment(store, "b", file))


def test_duckdb_searches_it(tmp_path: Path) -> None:
    with write_segment(open_store(str(tmp_path)), "b/log.parquet") as writer:
        writer.add(entries(1, 9))
    with duckdb.connect() as base:
        found = base.read_parquet(f"{tmp_path}/b/log.parquet").filter("seq > 4")
        told = found.aggregate("method, count(*), max(octet_length(message))").fetchall()
    assert told == [("Upsert", 5, 9)]
