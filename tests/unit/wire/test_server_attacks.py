"""What a client may not do: each ends the connection with the right code, and every call is given up."""

import hpack
import pytest
from server_peer import CALM, CE, FC, FS, SC, P, block, client, message, turns

from haclient.wire import Limits, frames
from haclient.wire.frames import frame

WINDOWS = Limits(connection_window_bytes=100_000)
OK = block()


def opened(stream, end=True):
    """A request, whole or not."""
    return frame(frames.HEADERS, 4, stream, OK) + frame(frames.DATA, end, stream, message(b"ask"))


def each(make, count=1_200, start=3):
    """The same for many streams, one after the other."""
    return b"".join([make(stream) for stream in range(start, start + 2 * count, 2)])


FATAL = {
    # what breaks the protocol
    "data on stream 0": (frame(0, 0, 0, b"x"), P),
    "data on an idle stream": (frame(0, 0, 99, b"x"), P),
    "data on an even stream": (frame(0, 0, 2, b"x"), P),
    "headers on an even stream": (frame(1, 4, 2, OK), P),
    "headers on stream 0": (frame(1, 4, 0, OK), P),
    "malformed headers on an even stream": (frame(1, 4, 2, block([("A", "b")])), P),
    "padding beyond the payload": (frame(0, 8, 1, b"\x05abc"), P),
    "padded without its length": (frame(0, 8, 1, b""), FS),
    "headers padded beyond": (frame(1, 0xC, 3, b"\xff" + OK[:10]), P),
    "headers too short for priority": (frame(1, 0x24, 3, b"abc"), FS),
    "a stream that depends on itself": (frame(1, 0x24, 3, b"\0\0\0\x03\x10" + OK), P),
    "broken header block": (frame(1, 4, 3, b"\xff\xff\xff\xff\xff\xff"), CE),
    "index beyond the table": (frame(1, 4, 3, b"\xfe"), CE),
    "index 0": (frame(1, 4, 3, b"\x80"), CE),
    "a table beyond what was announced": (frame(1, 4, 3, b"\x3f\xe2\x1f" + OK), CE),
    "a header cut short": (frame(1, 4, 3, OK[:-3]), CE),
    "bad huffman": (frame(1, 4, 3, b"\x00\x81\xff\x81\xff"), CE),
    "a frame inside a header block": (frame(1, 0, 3, OK) + frame(6, 0, 0, bytes(8)), P),
    "another stream inside a header block": (frame(1, 0, 3, OK) + frame(9, 4, 5, b""), P),
    "an unknown frame inside a header block": (frame(1, 0, 3, OK) + frame(77, 0, 0, b""), P),
    "continuation alone": (frame(9, 4, 1, OK), P),
    "push promise": (frame(5, 4, 1, b"\0\0\0\x02" + OK), P),
    "priority on stream 0": (frame(2, 0, 0, bytes(5)), P),
    "priority of a wrong size": (frame(2, 0, 1, bytes(4)), FS),
    "reset on stream 0": (frame(3, 0, 0, bytes(4)), P),
    "reset of an idle stream": (frame(3, 0, 99, bytes(4)), P),
    "reset of a stream of ours": (frame(3, 0, 2, bytes(4)), P),
    "reset of a wrong size": (frame(3, 0, 1, bytes(3)), FS),
    "settings on a stream": (frame(4, 0, 1, b""), P),
    "settings of a wrong size": (frame(4, 0, 0, bytes(5)), FS),
    "settings ack with a payload": (frame(4, 1, 0, bytes(6)), FS),
    "push neither on nor off": (frames.settings({2: 2}), P),
    "initial window too large": (frames.settings({4: 2**31}), FC),
    "initial window overflows a stream": (
        frames.window_update(1, 2**31 - 1 - 65_535) + frames.settings({4: 70_000}),
        FC,
    ),
    "max frame size too small": (frames.settings({5: 16_383}), P),
    "max frame size too large": (frames.settings({5: 2**24}), P),
    "ping on a stream": (frame(6, 0, 1, bytes(8)), P),
    "ping of a wrong size": (frame(6, 0, 0, bytes(7)), FS),
    "goaway on a stream": (frame(7, 0, 1, bytes(8)), P),
    "goaway of a wrong size": (frame(7, 0, 0, bytes(7)), FS),
    "window update of a wrong size": (frame(8, 0, 0, bytes(3)), FS),
    "window update by nothing": (frame(8, 0, 0, bytes(4)), P),
    "window update of an idle stream": (frames.window_update(99, 1), P),
    "connection window overflows": (frames.window_update(0, 2**31 - 1), FC),
    "a frame beyond the maximum": (frames.frame_header(65_537, 0, 0, 1), FS),
    # what costs us more than the client
    "rapid reset (CVE-2023-44487)": (each(lambda i: opened(i) + frames.rst_stream(i, 8)), CALM),
    "rapid reset of unfinished requests": (each(lambda i: opened(i, end=False) + frames.rst_stream(i, 8)), CALM),
    "made to reset by window updates (CVE-2025-8671)": (each(lambda i: opened(i) + frame(8, 0, i, bytes(4))), CALM),
    "made to reset by overflows": (each(lambda i: opened(i) + frames.window_update(i, 2**31 - 1)), CALM),
    "made to reset by data behind the end": (each(lambda i: opened(i) + frame(0, 0, i, b"x")), CALM),
    "made to reset by headers behind the end": (each(lambda i: opened(i) + frame(1, 5, i, OK)), CALM),
    "made to reset by malformed headers": (each(lambda i: frame(1, 5, i, block([("A", "b")]))), CALM),
    "made to reset by trailers alone": (each(lambda i: frame(1, 5, i, block([("a", "b")]))), CALM),
    "streams beyond the limit": (each(lambda i: opened(i, end=False), 3_000), CALM),
    "continuation flood (CVE-2024-27316)": (frame(1, 0, 3, b"") + frame(9, 0, 3, b"") * 100, CALM),
    "continuation of endless size": (frame(1, 0, 3, OK) + frame(9, 0, 3, bytes(30_000)) * 4, CALM),
    "hpack bomb": (frame(1, 4, 3, b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 15_000), CALM),
    "a huge header list": (frame(1, 4, 3, block([("a", "v" * 4_000)] * 15 + [("b", "")] * 200)), CALM),
    "very many small headers": (frame(1, 4, 3, block([("a", "")] * 3_000)), CALM),
    "zero-length headers (CVE-2019-9516)": (each(lambda i: frame(1, 5, i, block([("", "")] * 100))), CALM),
    "ping flood (CVE-2019-9512)": (frame(6, 0, 0, bytes(8)) * 1_100, CALM),
    "ping ack flood": (frame(6, 1, 0, bytes(8)) * 1_100, CALM),
    "settings flood (CVE-2019-9515)": (frame(4, 0, 0) * 1_100, CALM),
    "settings ack flood": (frame(4, 1, 0) * 1_100, CALM),
    "one large settings (CVE-2020-11080)": (frame(4, 0, 0, b"\0\x04\0\0\xff\xff" * 10_000), CALM),
    "empty data flood (CVE-2019-9518)": (opened(3, end=False) + frame(0, 0, 3) * 11_000, CALM),
    "empty data flood on a closed stream": (opened(3) + frames.rst_stream(3, 8) + frame(0, 0, 3) * 11_000, CALM),
    "padded empty data flood": (opened(3, end=False) + frame(0, 8, 3, b"\0") * 11_000, CALM),
    "priority flood (CVE-2019-9513)": (frame(2, 0, 1, bytes(5)) * 11_000, CALM),
    "unknown frame flood": (frame(77, 0, 0) * 11_000, CALM),
    "window update flood": (frames.window_update(0, 1) * 11_000, CALM),
    "window update flood on a closed stream": (
        opened(3) + frames.rst_stream(3, 8) + frames.window_update(3, 1) * 11_000,
        CALM,
    ),
    "reset flood on a closed stream": (opened(3) + frames.rst_stream(3, 8) * 11_000, CALM),
    "headers flood on a closed stream": (opened(3) + frames.rst_stream(3, 8) + frame(1, 5, 3, OK) * 11_000, CALM),
    "goaway flood": (frame(7, 0, 0, bytes(8)) * 11_000, CALM),
}


@pytest.mark.usefixtures("no_refills")
@pytest.mark.parametrize("name", FATAL)
async def test_fatal(name):
    """GOAWAY with the code, then the end; the calls under way are given up once each."""
    wrong, code = FATAL[name]
    peer = await client(limits=WINDOWS)
    peer.server.echo = False
    peer.ack = False  # what the client's library makes of the attack does not matter
    peer.ask(b"a call under way")
    peer.transport.peer = Reader()
    peer.raw(wrong, step=20_000)
    assert peer.server.closed
    await turns()
    assert peer.transport.peer.goaway == code
    assert peer.gone == 1
    assert all(call.cancelled == 1 for call in peer.calls)
    assert not peer.server.streams
    assert not peer.server._rest
    assert len(peer.calls) <= 1_001


class Reader:
    """Reads the frames that come back."""

    def __init__(self):
        self.goaway = None
        self.kinds = []

    def receive(self, data):
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 3], "big")
            self.kinds.append(data[at + 3])
            if data[at + 3] == frames.GOAWAY:
                assert self.goaway is None, "GOAWAY twice"
                self.goaway = int.from_bytes(data[at + 13 : at + 17], "big")
            at += 9 + size
        assert at == len(data), "half a frame"


async def test_a_dribbled_answer_is_not_endless():
    """CVE-2019-9511: windows opened byte by byte are counted against the bytes they let go."""
    peer = await client(limits=WINDOWS)
    peer.server.echo = False
    peer.raw(frames.settings({4: 0}) + opened(1))
    peer.calls[0].reply(bytes(100_000))
    peer.transport.peer = Reader()
    sent = 0
    while not peer.server.closed:
        peer.raw(frames.window_update(1, 1))
        await turns(2)
        sent += 1
        assert sent < 15_000
    assert peer.transport.peer.goaway == CALM
    assert peer.calls[0].cancelled == 1


async def test_windows_that_were_used_may_be_opened_again():
    """A client that gives back every frame as it comes, stream and connection, is never suspected."""
    peer = await client()
    for _ in range(300):
        stream = peer.ask(b"x" * 3_000)
        await turns()
        assert stream in peer.ended
        peer.raw((frames.window_update(0, 1_500) + frames.window_update(stream, 1)) * 2)
    assert not peer.goaways
    tokens = peer.server._idle._tokens
    assert tokens > 9_000
    await peer.end()


async def test_table_thrash_is_served():
    """A new entry in the table with every request makes the cache useless, and is no crime; nothing grows."""
    peer = await client()
    for i in range(1_000):
        peer.ask(b"x", [(f"n{i % 977}", "v" * (i % 50))])
        if i % 50 == 0:
            await turns()
            assert len(peer.server._reader._cache) <= 1
            assert peer.server._reader._table._current_size <= 4_096
    await turns()
    assert len(peer.ended) == 1_000
    await peer.end()


async def test_the_cache_is_bounded():
    """Distinct blocks that leave the table alone are remembered, but not all of them."""
    peer = await client()
    peer.transport.peer = Reader()
    for i in range(2_500):
        peer.raw(frame(1, 5, 2 * i + 1, block([*HEAD, ("n", str(i))])))
    assert len(peer.server._reader._cache) <= 1_024


HEAD = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x")]


FIRST = {
    "http/1": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30),
    "another preface": frames.PREFACE[:-2] + b"xx",
    "no settings": frames.PREFACE + frame(6, 0, 0, bytes(8)),
    "an ack": frames.PREFACE + frame(4, 1, 0),
    "settings on a stream": frames.PREFACE + frame(4, 0, 1),
    "headers": frames.PREFACE + opened(1),
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", FIRST)
async def test_the_first_bytes(name, step):
    """What does not begin as HTTP/2 must ends with PROTOCOL_ERROR."""
    from server_peer import H2Client

    peer = H2Client()
    reader = peer.transport.peer = Reader()
    peer.server.connection_made(peer.transport)
    peer.raw(FIRST[name], step)
    await turns()
    assert reader.goaway == P
    assert reader.kinds[0] == frames.SETTINGS
    assert peer.gone == 1


async def test_what_must_be_ignored():
    """Unknown frames, settings and flags; reserved bits."""
    peer = await client()
    peer.raw(
        frame(77, 0xFF, 0, b"?")
        + frame(10, 0, 1, b"altsvc")
        + frames.settings({0x99: 7, 8: 1, 3: 0})
        + frame(6, 0xFE, 0, b"pingpong")
        + frame(4, 0, 0x80000000)
    )
    peer.ask(b"ok")
    await turns()
    assert len(peer.calls) == 1
    await peer.end()


async def test_the_last_reset_call_is_told_too():
    """The reset that is one too many gives its call up like every other: nothing is counted for ever."""
    peer = await client(limits=Limits(resets_burst=3, resets_per_s=0.001))
    peer.server.echo = False
    for stream in (1, 3, 5, 7, 9):
        peer.raw(opened(stream) + frames.rst_stream(stream, 8))
    assert peer.server.closed
    assert [call.cancelled + call.answered for call in peer.calls] == [1] * len(peer.calls)
    assert len(peer.calls) == 4


async def test_error_codes_are_of_the_right_level():
    """STREAM_CLOSED and FRAME_SIZE_ERROR are told apart."""
    peer = await client()
    peer.server.echo = False
    stream = peer.ask()
    peer.raw(frame(0, 1, stream, b""))
    await turns()
    assert peer.resets == {stream: SC}


def test_the_encoder_of_these_tests():
    """`block` is what hpack reads."""
    assert hpack.Decoder().decode(OK)[0] == (":method", "POST")
