"""Calls that come in: unary, in every shape HTTP/2 and gRPC allow, and what is refused with which words."""

import zlib

import pytest
from server_peer import CANCEL, PATH, REQUEST, SC, H2Client, Lenient, P, block, client, gzip, message, turns

from haclient.wire import Limits, frames
from haclient.wire.frames import frame


async def test_a_unary_call():
    """The answer is a head, one message and trailers; nothing stays behind."""
    peer = await client()
    stream = peer.ask(b"hello", [("x-mine", "1"), ("data-bin", "AAEC")])
    await turns()
    assert peer.calls[0].message == b"hello"
    assert ("x-mine", "1") in peer.calls[0].head.fields
    assert ("data-bin", "AAEC") in peer.calls[0].head.fields
    assert peer.heads[stream][":status"] == "200"
    assert bytes(peer.bodies[stream]) == message(b"hello")
    assert peer.status(stream) == (0, "")
    assert peer.ended == [stream]
    assert not peer.resets
    assert not peer.server.streams
    await peer.end()


async def test_many_calls_are_answered_in_any_order():
    """Whatever ends first is answered first, each with its own bytes."""
    peer = await client()
    peer.server.echo = False
    streams = [peer.ask(b"%d" % i) for i in range(50)]
    await turns()
    for call in reversed(peer.calls):
        call.reply(call.message * 2)
    await turns()
    assert peer.ended == streams[::-1]
    for i, stream in enumerate(streams):
        assert bytes(peer.bodies[stream]) == message(b"%d" % i * 2)
    await peer.end()


@pytest.mark.parametrize("step", [1, 2, 9, 10, 100])
async def test_bytes_may_come_in_any_portions(step):
    """Where the network cuts means nothing."""
    peer = H2Client()
    peer.server.connection_made(peer.transport)
    peer.h2.send_headers(1, REQUEST)
    peer.h2.send_data(1, message(b"hello"), end_stream=True)
    data = peer.h2.data_to_send()
    assert data.startswith(frames.PREFACE)
    peer.raw(data, step)
    await turns()
    assert bytes(peer.bodies[1]) == message(b"hello")
    await peer.end()


async def test_a_message_in_many_frames_with_padding():
    """Padding is stripped, and counted for flow control; the parts are put together."""
    peer = await client()
    stream = peer.open()
    whole = message(b"x" * 1_000)
    for i in range(0, len(whole), 7):
        peer.h2.send_data(stream, whole[i : i + 7], pad_length=i % 200)
    peer.h2.end_stream(stream)
    peer.flush()
    await turns()
    assert bytes(peer.bodies[stream]) == whole
    await peer.end()


async def test_headers_in_many_shapes():
    """CONTINUATION, padding and priority change nothing about what a request means."""
    peer = await client()
    peer.h2 = Lenient()  # what it hears belongs to requests that it does not know of
    whole = block()
    body = frames.frame(frames.DATA, 1, 1, message(b"a"))
    parts = frame(frames.HEADERS, 0, 1, whole[:5]) + b"".join(
        frame(frames.CONTINUATION, 4 if i + 9 >= len(whole) else 0, 1, whole[i : i + 9])
        for i in range(5, len(whole), 9)
    )
    peer.raw(parts + body)
    padded = frame(frames.HEADERS, 0x2C, 3, b"\x03" + b"\0\0\0\0\x10" + whole + b"\0\0\0")
    peer.raw(frame(frames.PRIORITY, 0, 3, b"\0\0\0\x01\x05") + padded + frame(frames.DATA, 1, 3, message(b"b")))
    assert [call.message for call in peer.calls] == [b"a", b"b"]
    assert {call.head.path for call in peer.calls} == {PATH}


async def test_trailers_of_a_request_end_it():
    """gRPC clients send none, HTTP/2 allows them."""
    peer = await client()
    stream = peer.open()
    peer.h2.send_data(stream, message(b"x"))
    peer.h2.send_headers(stream, [("checksum", "1")], end_stream=True)
    peer.flush()
    await turns()
    assert peer.status(stream) == (0, "")
    await peer.end()


@pytest.mark.parametrize(
    ("trailers", "flags"), [(block(), 5), (block([("a", "b")]), 4)], ids=["a second request", "no end"]
)
async def test_a_second_header_block_that_is_no_trailers(trailers, flags):
    """It is malformed: the stream is reset, and only the stream."""
    peer = await client()
    stream = peer.open()
    peer.raw(frame(frames.HEADERS, flags, stream, trailers))
    await turns()
    assert peer.resets == {stream: P}
    assert peer.calls[0].cancelled == 1
    peer.ask()
    await turns()
    await peer.end()


async def test_trailers_without_a_request():
    """A header block without pseudo-header fields opens nothing."""
    peer = await client()
    stream = peer.open()
    peer.raw(frame(frames.HEADERS, 5, stream + 2, block([("a", "b")])))
    assert len(peer.calls) == 1
    assert peer.transport.closing is False


# -- the end of a stream


async def test_an_early_answer_spares_the_client_the_rest():
    """Who is answered before the request is whole gets RST_STREAM(NO_ERROR), and the rest is ignored."""
    peer = await client(limits=Limits(max_message_bytes=100))
    stream = peer.open()
    peer.h2.send_data(stream, b"\0\0\0\x10\0" + b"x" * 50)
    peer.flush()
    await turns()
    assert peer.status(stream)[0] == 8
    assert "4096 bytes" in peer.status(stream)[1]
    assert peer.resets == {stream: 0}
    for _ in range(3):  # what was on its way
        peer.raw(frame(frames.DATA, 0, stream, bytes(1_000)))
    peer.raw(frame(frames.DATA, 1, stream, b""))
    assert bytes(peer.calls[0].body) == b"\0\0\0\x10\0" + b"x" * 50
    peer.ask(b"small")
    await turns()
    await peer.end()


async def test_more_than_was_announced_is_not_gathered():
    """A body that goes on behind its message is refused at once, not when memory runs out."""
    peer = await client()
    stream = peer.open()
    peer.h2.send_data(stream, message(b"abc") + b"more")
    peer.flush()
    await turns()
    assert peer.status(stream) == (13, "more than one message in a unary call")
    assert len(peer.calls[0].body) < 20
    await peer.end()


@pytest.mark.parametrize("kind", ["data", "headers"])
async def test_half_closed(kind):
    """Behind END_STREAM nothing may come: STREAM_CLOSED, and the call is given up (RFC 9113 section 5.1)."""
    peer = await client()
    peer.server.echo = False
    peer.ask()
    more = frame(frames.DATA, 0, 1, b"x") if kind == "data" else frame(frames.HEADERS, 5, 1, block([("a", "b")]))
    peer.raw(more)
    await turns()
    assert peer.resets == {1: SC}
    assert peer.calls[0].cancelled == 1
    assert not peer.transport.closing


async def test_half_closed_takes_what_it_may():
    """WINDOW_UPDATE, PRIORITY and RST_STREAM are fine behind END_STREAM."""
    peer = await client()
    peer.server.echo = False
    peer.ask()
    peer.raw(frames.window_update(1, 10) + frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\1"))
    assert peer.calls[0].cancelled == 0
    peer.h2.reset_stream(1, CANCEL)
    peer.flush()
    assert peer.calls[0].cancelled == 1
    peer.calls[0].reply(b"too late")
    await turns()
    assert 1 not in peer.heads
    await peer.end()


async def test_frames_on_a_closed_stream_are_forgiven():
    """They cross our answer; the connection goes on."""
    peer = await client()
    peer.ask()
    await turns()
    for late in (
        frame(frames.DATA, 0, 1, b"late"),
        frames.window_update(1, 5),
        frames.rst_stream(1, 8),
        frame(frames.HEADERS, 5, 1, block([("a", "b")])),
        frame(frames.HEADERS, 5, 1, block()),
    ):
        peer.raw(late)
    assert len(peer.calls) == 1
    peer.ask(b"next")
    await turns()
    assert len(peer.calls) == 2
    assert not peer.goaways
    await peer.end()


async def test_streams_beyond_the_limit_are_refused():
    """REFUSED_STREAM says that nothing was done; one that ends makes room."""
    peer = await client(limits=Limits(max_concurrent_streams=2))
    peer.server.echo = False
    peer.h2 = Lenient()
    for stream in (1, 3, 5):
        peer.raw(frame(frames.HEADERS, 4, stream, block()) + frame(frames.DATA, 1, stream, message(b"x")))
    await turns()
    assert peer.h2.resets == {5: 7}
    assert len(peer.calls) == 2
    peer.calls[0].reply(b"")
    peer.raw(frame(frames.HEADERS, 4, 7, block()) + frame(frames.DATA, 1, 7, message(b"x")))
    await turns()
    assert len(peer.calls) == 3
    assert peer.h2.resets == {5: 7}


# -- messages


@pytest.mark.parametrize(
    ("name", "packed"),
    [("gzip", gzip(b"x" * 5_000)), ("deflate", zlib.compress(b"x" * 5_000)), ("gzip", gzip(b""))],
    ids=["gzip", "deflate", "empty"],
)
async def test_compressed_messages_are_read(name, packed):
    """A server must take what clients send."""
    peer = await client()
    stream = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(stream, [*REQUEST, ("grpc-encoding", name)])
    peer.h2.send_data(stream, message(packed, 1), end_stream=True)
    peer.flush()
    await turns()
    assert peer.calls[0].message in (b"x" * 5_000, b"")
    assert peer.calls[0].held >= len(peer.calls[0].message)
    assert peer.status(stream) == (0, "")
    await peer.end()


async def test_the_flag_decides_not_the_header():
    """A client that could compress and did not."""
    peer = await client()
    peer.ask(b"plain", [("grpc-encoding", "gzip")])
    assert peer.calls[0].message == b"plain"


BAD = {
    "unknown": ("br", b"x", 12, "identity,gzip,deflate"),
    "identity": ("identity", b"x", 12, "identity"),
    "no gzip": ("gzip", b"hello hello", 13, "no valid gzip"),
    "truncated": ("gzip", gzip(b"x" * 100_000)[:-9], 13, "no whole gzip"),
    "nothing": ("gzip", b"", 13, "no whole gzip"),
    "bomb": ("gzip", gzip(bytes(50_000_000)), 8, "max_message_bytes"),
    "deflate bomb": ("deflate", zlib.compress(bytes(50_000_000)), 8, "max_message_bytes"),
}


@pytest.mark.parametrize("name", BAD)
async def test_compressed_messages_that_are_refused(name):
    """Each with its status; none is held beyond the limit."""
    encoding, packed, code, text = BAD[name]
    peer = await client(limits=Limits(max_message_bytes=1 << 20))
    peer.h2.send_headers(1, [*REQUEST, ("grpc-encoding", encoding)])
    for i in range(0, len(message(packed)), 16_000):
        peer.h2.send_data(1, message(packed, 1)[i : i + 16_000])
    peer.h2.end_stream(1)
    peer.flush()
    await turns()
    assert peer.status(1)[0] == code
    assert text in peer.status(1)[1]
    assert peer.calls[0].message is None
    assert peer.calls[0].held <= (1 << 20) + len(packed) + 5
    await peer.end()


async def test_a_bomb_asks_for_memory_before_it_takes_it():
    """The memory in flight bounds a message piece by piece while it is decompressed."""
    peer = await client()
    stream = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(stream, [*REQUEST, ("grpc-encoding", "gzip")])
    packed = message(gzip(bytes(60 << 20)), 1)
    for i in range(0, len(packed), 16_000):
        peer.h2.send_data(stream, packed[i : i + 16_000])
    peer.flush()
    peer.calls[0].refusal = "no more memory"
    held = peer.calls[0].held
    peer.raw(frame(frames.DATA, 1, stream, b""))
    await turns()
    assert peer.calls[0].held == held
    assert peer.calls[0].message is None


CUT = {
    "nothing": b"",
    "less than a prefix": b"\0\0\0",
    "less than announced": b"\0\0\0\0\x09abc",
    "more than announced": message(b"a") + b"b",
    "two messages": message(b"a") + message(b"b"),
}


@pytest.mark.parametrize("name", CUT)
async def test_bodies_that_are_no_message(name):
    """INTERNAL, with what is wrong; nothing is handed on."""
    peer = await client()
    stream = peer.open(end=not CUT[name])
    if CUT[name]:
        peer.raw(frame(frames.DATA, 1, stream, CUT[name]))
    await turns()
    assert peer.status(stream)[0] == 13
    assert peer.calls[0].message is None
    await peer.end()


async def test_the_largest_message_is_taken():
    """The limit is what may be sent, not less."""
    peer = await client(limits=Limits(max_message_bytes=1_000))
    peer.ask(bytes(1_000))
    assert len(peer.calls[0].message) == 1_000
    stream = peer.ask(bytes(1_001), end=False)
    await turns()
    assert peer.status(stream)[0] == 8
    assert len(peer.calls) == 2


async def test_memory_that_runs_out_refuses_the_call():
    """What the subclass does not hold is not gathered; the rest of the connection goes on."""
    peer = await client()
    stream = peer.open()
    peer.calls[0].refusal = "full"
    peer.h2.send_data(stream, message(bytes(10_000)))
    peer.flush()
    await turns()
    assert peer.status(stream) == (8, "full")
    assert peer.resets == {stream: 0}
    peer.ask()
    await turns()
    await peer.end()


# -- header lists


MALFORMED = {
    "no method": REQUEST[1:],
    "no path": [f for f in REQUEST if f[0] != ":path"],
    "no scheme": [f for f in REQUEST if f[0] != ":scheme"],
    "method twice": [REQUEST[0], *REQUEST],
    "unknown pseudo-header": [(":protocol", "x"), *REQUEST],
    "a response's": [(":status", "200"), *REQUEST],
    "pseudo-header behind": [*REQUEST[1:], REQUEST[0]],
    "upper case": [*REQUEST, ("X-Y", "1")],
    "connection": [*REQUEST, ("connection", "close")],
    "upgrade": [*REQUEST, ("upgrade", "h2c")],
    "te": [("te", "gzip") if f[0] == "te" else f for f in REQUEST],
    "a value that ends a line": [*REQUEST, ("a", "b\r\nc: d")],
    "a value with NUL": [*REQUEST, ("a", "b\0")],
    "no name": [*REQUEST, ("", "x")],
    "a name with a space": [*REQUEST, ("a b", "x")],
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_requests(name):
    """Their stream is reset with PROTOCOL_ERROR before anyone hears of it; the next request is served."""
    peer = await client()
    peer.h2 = Lenient()
    peer.raw(frame(frames.HEADERS, 5, 1, block(MALFORMED[name])))
    await turns()
    assert peer.h2.resets == {1: P}
    assert not peer.calls
    peer.raw(frame(frames.DATA, 0, 1, b"the rest"))
    peer.raw(frame(frames.HEADERS, 5, 3, block()))
    await turns()
    assert peer.h2.resets == {1: P}
    assert len(peer.calls) == 1
