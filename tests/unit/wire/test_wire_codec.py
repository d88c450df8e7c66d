"""Frames, header blocks and gRPC's helpers: pure functions."""

import contextlib

import hpack
import hyperframe.frame as hf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclient.errors import ConfigError
from haclient.wire import Limits, frames, grpc, headers
from haclient.wire.limits import Budget


def parse(data):
    out = []
    while data:
        frame, size = hf.Frame.parse_frame_header(memoryview(data)[:9])
        frame.parse_body(memoryview(data)[9 : 9 + size])
        out.append(frame)
        data = data[9 + size :]
    return out


def test_frames_are_read_alike_by_hyperframe():
    (settings,) = parse(frames.settings({frames.ENABLE_PUSH: 0, frames.MAX_FRAME_SIZE: 20_000}))
    assert settings.settings == {2: 0, 5: 20_000}
    (update,) = parse(frames.window_update(7, 1 << 30))
    assert (update.stream_id, update.window_increment) == (7, 1 << 30)
    (reset,) = parse(frames.rst_stream(9, frames.CANCEL))
    assert (reset.stream_id, reset.error_code) == (9, 8)
    (ping,) = parse(frames.ping(b"12345678", ack=True))
    assert ping.opaque_data == b"12345678"
    assert "ACK" in ping.flags
    (goaway,) = parse(frames.goaway(5, frames.ENHANCE_YOUR_CALM, b"calm"))
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (5, 11, b"calm")


@given(st.binary(max_size=100), st.integers(1, 40), st.booleans())
def test_long_header_blocks_are_continued(block, size, end):
    got = parse(frames.headers(3, block, end_stream=end, max_frame_size=size))
    assert b"".join(frame.data for frame in got) == block
    assert isinstance(got[0], hf.HeadersFrame)
    assert all(isinstance(frame, hf.ContinuationFrame) for frame in got[1:])
    assert [("END_HEADERS" in frame.flags) for frame in got] == [False] * (len(got) - 1) + [True]
    assert ("END_STREAM" in got[0].flags) == end


@given(
    st.lists(st.tuples(st.text("abc-z_", min_size=1, max_size=200), st.text("!~ abcXYZ09", max_size=300)), max_size=8)
)
def test_encoded_fields_are_read_by_hpack(fields):
    decoder = hpack.Decoder()
    assert [tuple(f) for f in decoder.decode(headers.encode_fields(fields))] == fields
    assert not decoder.header_table.dynamic_entries


def test_secrets_are_never_indexed():
    (field,) = hpack.Decoder().decode(headers.encode_fields([("authorization", "token")]))
    assert not field.indexable


@given(st.lists(st.lists(st.sampled_from([(b"a", b"1"), (b"b", b"2"), (b"c", b"3" * 3000), (b"d", b"4")]), max_size=5)))
def test_the_cached_reader_decodes_what_a_plain_decoder_does(lists):
    encoder, plain = hpack.Encoder(), hpack.Decoder()
    reader = headers.HeaderReader(list, 65_536)
    for fields in lists * 3:
        block = encoder.encode(fields)
        assert [tuple(f) for f in reader.read(block)] == [tuple(f) for f in plain.decode(block, raw=True)]


@given(st.binary(max_size=60))
def test_any_bytes_give_fields_or_a_compression_fault(block):
    reader = headers.HeaderReader(tuple, 65_536)
    with contextlib.suppress(headers.CompressionFault, headers.HeadersTooLarge):
        reader.read(block)


def test_a_table_change_empties_the_cache():
    reader = headers.HeaderReader(list, 65_536)
    encoder = hpack.Encoder()
    first = encoder.encode([("x", "1")])
    warm = encoder.encode([("x", "1")])
    reader.read(first)
    assert reader.read(warm) == [(b"x", b"1")]
    reader.read(encoder.encode([("x", "2")]))
    assert reader.read(warm) == [(b"x", b"2")]  # the same bytes mean the newest entry now


def test_a_size_update_empties_the_cache():
    reader = headers.HeaderReader(list, 65_536)
    encoder = hpack.Encoder()
    reader.read(encoder.encode([("x", "1")]))
    warm = encoder.encode([("x", "1")])
    assert reader.read(warm) == [(b"x", b"1")]
    reader.read(b"\x20")
    with pytest.raises(headers.CompressionFault):
        reader.read(warm)


def test_a_bomb_is_refused():
    encoder = hpack.Encoder()
    reader = headers.HeaderReader(list, 65_536)
    reader.read(encoder.encode([("x", "v" * 3_000)]))
    with pytest.raises(headers.HeadersTooLarge):
        reader.read(encoder.encode([("x", "v" * 3_000)]) * 1_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Upper", "v"),
        ("a b", "v"),
        ("", "v"),
        ("a\r\nb", "v"),
        (":path", "/x"),
        ("te", "trailers"),
        ("connection", "close"),
        ("grpc-timeout", "1S"),
        ("a", "b\r\nc: d"),
        ("a", "b\x00"),
        ("a", "ü"),
        ("a", "\t"),
    ],
)
def test_illegal_metadata_is_refused(name, value):
    with pytest.raises(ValueError, match="metadata"):
        headers.check_metadata(name, value)


def test_the_message_about_illegal_metadata_keeps_secrets():
    with pytest.raises(ValueError) as raised:
        headers.check_metadata("authorization", "secret\n")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Upper", b"")],
        [(b"a", b""), (b":status", b"200")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b"connection", b"close")],
        [(b"te", b"gzip")],
        [(b"a", b"b\nc")],
        [(b"", b"")],
        [(b":status", b"20")],
        [(b":status", b"abc")],
        [(b":path", b"/")],
    ],
)
def test_malformed_responses(fields):
    with pytest.raises(headers.MalformedHeaders):
        grpc.parse_response(fields)


def test_a_response_head():
    head = grpc.parse_response(
        [
            (b":status", b"200"),
            (b"content-type", b"application/grpc+proto"),
            (b"x", b"1"),
            (b"grpc-status", b"5"),
            (b"grpc-message", b"no%20such %C3%BC%zz"),
        ]
    )
    assert (head.status, head.grpc, head.code, head.details, head.metadata) == (
        200,
        True,
        5,
        "no such ü%zz",
        (("x", "1"),),
    )


@given(st.floats(1e-9, 1e12))
def test_a_timeout_is_never_shortened(timeout):
    text = grpc.encode_timeout(timeout).decode()
    assert len(text) <= 9
    if timeout < 99_999_999 * 3600:
        assert grpc.decode_timeout(text) >= timeout * (1 - 1e-9)
    if timeout > 1:
        assert grpc.decode_timeout(text) <= timeout * 1.001 + 60


@pytest.mark.parametrize("text", ["", "1", "S", "123456789S", "1x", "-1S", "1 S", "١S"])
def test_broken_timeouts(text):
    with pytest.raises(ValueError):
        grpc.decode_timeout(text)


@given(st.text())
def test_messages_survive_percent_encoding(text):
    encoded = grpc.encode_message(text) if not any(0xD800 <= ord(c) < 0xE000 for c in text) else ""
    if encoded:
        assert grpc.decode_message(encoded.encode("ascii")) == text


@given(st.binary())
def test_binary_metadata(value):
    assert grpc.decode_binary(grpc.encode_binary(value)) == value


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="max_frame_bytes"):
        Limits(max_frame_bytes=100)


def test_a_budget_refills_with_time():
    budget = Budget(2, 1.0, 0.0)
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]
    assert budget.spend(1.0)
    assert not budget.spend(1.5)
