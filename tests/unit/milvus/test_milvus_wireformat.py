"""The field walker, with protobuf's own library as judge."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.milvus import wireformat as w

queries = st.builds(
    milvus_pb2.QueryRequest,
    db_name=st.text(max_size=20),
    collection_name=st.text(max_size=300),
    expr=st.text(max_size=20),
    output_fields=st.lists(st.text(max_size=5), max_size=3),
    guarantee_timestamp=st.integers(0, 2**64 - 1),
    consistency_level=st.integers(0, 4),
    use_default_consistency=st.booleans(),
)


@given(st.integers(0, 2**64 - 1))
def test_varints_round_trip_and_agree_with_protobuf(value):
    assert w.read_varint(w.varint(value), 0) == (value, len(w.varint(value)))
    judge = milvus_pb2.QueryRequest(guarantee_timestamp=value).SerializeToString()
    assert judge == (b"\x40" + w.varint(value) if value else b"")


@given(st.integers(-(2**63), 2**63 - 1))
def test_negative_numbers_are_twos_complement(value):
    judge = milvus_pb2.ConnectResponse(identifier=value).SerializeToString()
    assert judge == (b"\x18" + w.varint(value) if value else b"")
    assert w.signed(w.read_varint(w.varint(value), 0)[0]) == value


@pytest.mark.parametrize("bad", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10 + b"\x01", b"\x80" * 10])
def test_bad_varints_are_refused(bad):
    with pytest.raises(ValueError):
        w.read_varint(bad, 0)


@given(queries)
def test_walk_finds_every_field_and_ends_at_the_end(request_):
    message = request_.SerializeToString()
    rebuilt, at = [], 0
    for number, kind, a, b in w.fields(message):
        rebuilt.append(message[at:b])
        payload = a if kind == w.VARINT else message[a:b]
        if number == 3:
            assert payload == request_.collection_name.encode()
        if number == 8:
            assert payload == request_.guarantee_timestamp
        at = b
    assert b"".join(rebuilt) == message
    assert w.bytes_field(message, 3) == (request_.collection_name.encode() or None)
    assert w.varint_field(message, 8) == request_.guarantee_timestamp


@given(queries, st.integers(0, 2**64 - 1), st.integers(0, 4), st.booleans())
def test_replaced_varints_reparse_as_if_set(request_, timestamp, level, default):
    replaced = w.replace_varints(request_.SerializeToString(), {8: timestamp, 11: level, 12: int(default)})
    request_.guarantee_timestamp, request_.consistency_level = timestamp, level
    request_.use_default_consistency = default
    assert milvus_pb2.QueryRequest.FromString(replaced) == request_


def test_replacing_removes_every_occurrence():
    twice = b"\x40\x05\x1a\x01c\x40\x06"
    assert w.replace_varint(twice, 8, 0) == b"\x1a\x01c"
    assert w.replace_varint(twice, 8, 7) == b"\x1a\x01c\x40\x07"


@given(st.binary(max_size=60))
def test_bytes_that_walk_to_the_end_are_bytes_that_protobuf_parses_or_merely_types_apart(message):
    """Whatever the walker accepts has sound framing: an empty-typed message parses it (all fields unknown)."""
    try:
        found = list(w.fields(message))
    except ValueError:
        return
    try:
        common_pb2.KeyValuePair.FromString(message)
    except (DecodeError, UnicodeDecodeError):
        # Only the known fields' contents (UTF-8) can be at fault.
        assert any(number in (1, 2) and kind == w.BYTES for number, kind, _, _ in found)


@given(queries, st.data())
def test_truncated_messages_raise_or_end_between_fields(request_, data):
    message = request_.SerializeToString()
    ends = {0} | {b for _, _, _, b in w.fields(message)}
    cut = data.draw(st.integers(0, len(message)))
    if cut in ends:
        assert [b for *_, b in w.fields(message[:cut])] == sorted(ends - {0})[: len([e for e in ends if 0 < e <= cut])]
    else:
        with pytest.raises(ValueError):
            list(w.fields(message[:cut]))


@pytest.mark.parametrize(
    "bad", [b"\x00\x01", b"\x0b", b"\x0c", b"\x0e\x00", b"\x0a\x05ab", b"\x0d\x00", b"\x09\x00", b"\x08"]
)
def test_malformed_messages_are_refused(bad):
    with pytest.raises(ValueError):
        list(w.fields(bad))


def test_fixed_width_fields_are_skipped():
    message = b"\x09" + b"\xff" * 8 + b"\x15" + b"\xff" * 4 + b"\x18\x01"
    assert [(number, kind) for number, kind, _, _ in w.fields(message)] == [(1, 1), (2, 5), (3, 0)]


def test_an_embedded_message_may_not_reach_behind_its_end():
    with pytest.raises(ValueError):
        list(w.fields(b"\x0a\x03abc\x08\x01", 0, 4))


def test_payloads_are_not_touched():
    class Bytes(bytes):
        slices = 0

        def __getitem__(self, at):
            Bytes.slices += isinstance(at, slice)
            return super().__getitem__(at)

    assert len(list(w.fields(Bytes(w.embed(1, b"x" * 100_000) + b"\x10\x01")))) == 2
    assert Bytes.slices == 0
