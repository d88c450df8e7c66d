"""What a peer may not do: each ends the connection (or the stream) with the right code, and nothing else."""

import hpack
import pytest
from h2.settings import SettingCodes
from wire_peer import Call, turns

from haclient.errors import ConnectFailed, ProtocolError
from haclient.wire import Limits, frames
from haclient.wire.frames import frame

OK_HEAD = hpack.Encoder().encode([(":status", "200"), ("content-type", "application/grpc")])
P, FC, FS, SC, CE, CALM = 1, 3, 6, 5, 9, 11

FATAL = {
    "data on stream 0": (frame(0, 0, 0, b"x"), P),
    "data on an idle stream": (frame(0, 0, 99, b"x"), P),
    "data on an even stream": (frame(0, 0, 2, b"x"), P),
    "padding beyond the payload": (frame(0, 8, 1, b"\x05abc"), P),
    "padded without its length": (frame(0, 8, 1, b""), FS),
    "headers on stream 0": (frame(1, 4, 0, OK_HEAD), P),
    "headers on an idle stream": (frame(1, 4, 99, OK_HEAD), P),
    "headers too short for priority": (frame(1, 0x24, 1, b"abc"), FS),
    "a stream that depends on itself": (frame(1, 0x24, 1, b"\0\0\0\x01\x10" + OK_HEAD), P),
    "broken header block": (frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff"), CE),
    "index beyond the table": (frame(1, 4, 1, b"\xfe"), CE),
    "a frame inside a header block": (frame(1, 0, 1, OK_HEAD) + frame(6, 0, 0, bytes(8)), P),
    "another stream inside a header block": (frame(1, 0, 1, OK_HEAD) + frame(9, 4, 3, b""), P),
    "continuation alone": (frame(9, 4, 1, OK_HEAD), P),
    "push promise": (frame(5, 4, 1, b"\0\0\0\x02" + OK_HEAD), P),
    "priority on stream 0": (frame(2, 0, 0, bytes(5)), P),
    "priority of a wrong size": (frame(2, 0, 1, bytes(4)), FS),
    "reset on stream 0": (frame(3, 0, 0, bytes(4)), P),
    "reset of an idle stream": (frame(3, 0, 99, bytes(4)), P),
    "reset of a wrong size": (frame(3, 0, 1, bytes(3)), FS),
    "settings on a stream": (frame(4, 0, 1, b""), P),
    "settings of a wrong size": (frame(4, 0, 0, bytes(5)), FS),
    "settings ack with a payload": (frame(4, 1, 0, bytes(6)), FS),
    "push switched on": (frames.settings({2: 1}), P),
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
    "ping flood": (frame(6, 0, 0, bytes(8)) * 1_100, CALM),
    "ping ack flood": (frame(6, 1, 0, bytes(8)) * 1_100, CALM),
    "settings flood": (frame(4, 0, 0) * 1_100, CALM),
    "settings ack flood": (frame(4, 1, 0) * 1_100, CALM),
    "empty data flood": (frame(1, 4, 1, OK_HEAD) + frame(0, 0, 1) * 11_000, CALM),
    "empty data flood on a closed stream": (frame(3, 0, 1, bytes(4)) + frame(0, 0, 1) * 11_000, CALM),
    "padded empty data flood": (frame(1, 4, 1, OK_HEAD) + frame(0, 8, 1, b"\0") * 11_000, CALM),
    "priority flood": (frame(2, 0, 1, bytes(5)) * 11_000, CALM),
    "unknown frame flood": (frame(77, 0, 0) * 11_000, CALM),
    "informational headers flood": (frame(1, 4, 1, hpack.Encoder().encode([(":status", "103")])) * 11_000, CALM),
    "continuation flood": (frame(1, 0, 1, b"") + frame(9, 0, 1, b"") * 100, CALM),
    "continuation of endless size": (frame(1, 0, 1, OK_HEAD) + frame(9, 0, 1, bytes(30_000)) * 4, CALM),
    "hpack bomb": (frame(1, 4, 1, b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 15_000), CALM),
    "connection window overrun": (frame(0, 0, 1, bytes(60_000)) * 3, FC),
}


@pytest.mark.usefixtures("no_refills")
@pytest.mark.parametrize("name", FATAL)
async def test_fatal(memory, name):
    wrong, code = FATAL[name]
    channel, server, connection = await memory.connected(limits=Limits(connection_window_bytes=100_000))
    call = Call(channel)
    await turns()
    if "overrun" in name:
        connection._refill = lambda: None  # as if no window had been given back yet
        server.raw(frame(1, 4, 1, OK_HEAD) + frame(3, 0, 1, bytes(4)))
    server.raw(wrong)
    assert server.goaway is not None
    assert server.goaway[0] == code, server.goaway
    outcome = await call
    if "closed stream" not in name and "overrun" not in name:
        assert isinstance(outcome, ProtocolError)
        assert outcome.sent
    assert connection.closed
    assert channel.connected == 0
    again = Call(channel)  # the channel lives on
    await turns(10)
    memory.dialled[-1].reply(1, b"ok")
    assert (await again).message == b"ok"


STREAM_ONLY = {
    "headers without status": frame(1, 4, 1, hpack.Encoder().encode([("a", "b")])),
    "upper-case name": frame(1, 4, 1, b"\x00\x01A\x01b"),
    "data before headers": frame(0, 0, 1, b"x"),
    "second headers": frame(1, 4, 1, OK_HEAD) + frame(1, 4, 1, b"\x88"),
    "headers that end nothing": frame(1, 4, 1, OK_HEAD) + frame(1, 4, 1, b"\x00\x01a\x01b"),
    "window update by nothing": frame(8, 0, 1, bytes(4)),
    "stream window overflows": frames.window_update(1, 2**31 - 1),
}


@pytest.mark.parametrize("name", STREAM_ONLY)
async def test_wrong_on_one_stream(memory, name):
    channel, server, connection = await memory.connected()
    call, other = Call(channel), Call(channel)
    await turns()
    server.raw(STREAM_ONLY[name])
    outcome = await call
    assert isinstance(outcome, ProtocolError)
    await turns()
    assert list(server.resets) == [1]
    assert not connection.closed
    server.h2.encoder = hpack.Encoder()
    server.h2.encoder.header_table_size = 0
    server.reply(3, b"ok")
    assert (await other).message == b"ok"


async def test_what_must_be_ignored(memory):
    channel, server, connection = await memory.connected()
    call = Call(channel)
    await turns()
    server.raw(
        frame(77, 0xFF, 0, b"?")
        + frame(10, 0, 1, b"altsvc")
        + frame(2, 0, 1, bytes(5))
        + frames.settings({0x99: 7, SettingCodes.ENABLE_CONNECT_PROTOCOL: 1})
        + frame(4, 0, 0x80000000)
        + frame(6, 0, 0, b"pingpong")
    )
    await turns()
    server.reply(1, b"ok")
    assert (await call).message == b"ok"
    assert not connection.closed


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH", frame(6, 0, 0, bytes(8)), frame(4, 1, 0)]
)
async def test_no_http2_server(memory, first, monkeypatch):
    from wire_peer import H2Server

    server = H2Server()
    monkeypatch.setattr(server, "flush", lambda: server.raw(first))
    memory.servers.append(server)
    outcome = await Call(memory.channel())
    assert isinstance(outcome, ConnectFailed)
    assert "HTTP/2" in str(outcome)


async def test_bytes_one_by_one_are_gathered_in_bounded_memory(memory):
    channel, server, connection = await memory.connected()
    server.chunk = 1
    call = Call(channel)
    await turns()
    server.reply(1, b"x" * 50_000)
    assert (await call).message == b"x" * 50_000
    assert len(connection._rest) <= connection.limits.max_frame_bytes + 9
