"""How the log lies in etcd."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclient.errors import LogCorrupt
from haclient.replication.etcd.layout import CHUNK, End, Head, Keys, Record, packed
from haclient.replication.etcd.txn import end_of
from haclient.replication.log import Entry, Mutation


def mutation(number, size, stream=("db", "docs")):
    return Mutation(number.to_bytes(16, "big"), "Upsert", stream, random.Random(number).randbytes(size), "db")


@given(st.lists(st.integers(0, 2 * CHUNK + 1), min_size=1, max_size=4))
def test_messages_are_cut_out_of_their_chunks(sizes):
    """Each of them only needs the chunks that it is in, wherever the borders are."""
    mutations = [mutation(number, size) for number, size in enumerate(sizes)]
    heads, body = packed([(one, 1.5) for one in mutations])
    for seq, (head, one) in enumerate(zip(heads, mutations, strict=True), 1):
        chunks = [body[number * CHUNK : (number + 1) * CHUNK] for number in head.chunks]
        assert head.entry(seq, head.message(b"".join(chunks))) == Entry(seq, 1.5, one, len(one.message))
        assert len(chunks) <= len(one.message) // CHUNK + 2


def test_a_message_that_was_changed():
    """Is none."""
    (head,), body = packed([(mutation(1, 100), 0.0)])
    for wrong in (b"", body[:-1], bytes(100)):
        with pytest.raises(LogCorrupt, match="not what was written"):
            head.message(wrong)


def test_a_record_is_read_as_it_was_written():
    """With names of any kind, and the bytes up to each of its entries."""
    heads, _ = packed([(mutation(n, 10 * n, ("größe", "文/書")), 0.1 * n) for n in range(1, 4)])
    record = Record(5, 1000, "upload", heads)
    assert Record.decode(record.encode()) == record
    assert isinstance(Record.decode(record.encode()).heads[0], Head)
    assert [record.bytes_through(seq) for seq in (5, 6, 7)] == [1010, 1030, 1060]
    assert record.tail == End(7, 1060)
    assert End.decode(record.tail.encode()) == record.tail


@pytest.mark.parametrize("value", [b"", b"x", b"{}", b"[]", b"[1,2,3]", b"7"])
def test_a_value_of_somebody_else(value):
    """Is not taken for ours."""
    for kind in (Record, End):
        with pytest.raises(LogCorrupt, match="did not write"):
            kind.decode(value)


def test_records_are_found_by_any_of_their_entries():
    """The first key at or above a seq is the record that holds it."""
    keys = Keys("/log/")
    assert sorted([keys.record(100), keys.record(9), keys.record(10**19)]) == [
        keys.record(9),
        keys.record(100),
        keys.record(10**19),
    ]


@pytest.mark.parametrize("prefix", ["/log", "/log/", "/log//"])
def test_all_keys_are_below_the_prefix(prefix):
    """And what is waited for is apart from bodies."""
    keys = Keys(prefix)
    assert keys.root == b"/log/"
    watched = [keys.tail, keys.removed, keys.fact("x"), keys.epoch("x"), keys.lease("x")]
    other = [keys.record(1), keys.chunk("x", 1), keys.operation(b"1" * 16, "x"), keys.staged("x"), keys.writer("x")]
    assert all(keys.state <= key < end_of(keys.state) for key in watched)
    assert not any(keys.state <= key < end_of(keys.state) for key in [*other, keys.upload("x"), keys.swept, keys.log])
    assert all(key.startswith(keys.root) for key in [*watched, *other])
