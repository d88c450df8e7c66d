"""Flow control, large messages, and every random mix of settings, judged by `h2`."""

import asyncio
import itertools
import random

import h2.events
import pytest
from h2.settings import SettingCodes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from wire_peer import PATH, Call, H2Server, Memory, turns

from haclient.errors import ProtocolError, StreamReset, TransportClosed
from haclient.wire import Limits, frames


@settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(
    seed=st.integers(0, 2**32),
    initial=st.integers(0, 200_000),
    max_frame=st.integers(16_384, 70_000),
    streams=st.integers(1, 20),
    table=st.sampled_from([0, 100, 4096, 65536]),
    chunk=st.sampled_from([0, 1, 9, 1_000]),
    pad=st.sampled_from([None, 0, 200]),
)
def test_any_settings_and_any_cutting(seed, initial, max_frame, streams, table, chunk, pad):
    rng = random.Random(seed)

    async def scenario(monkeypatch):
        network = Memory(monkeypatch)
        server = H2Server(
            {
                SettingCodes.INITIAL_WINDOW_SIZE: initial,
                SettingCodes.MAX_FRAME_SIZE: max_frame,
                SettingCodes.MAX_CONCURRENT_STREAMS: streams,
                SettingCodes.HEADER_TABLE_SIZE: table,
            },
            chunk,
        )
        network.servers.append(server)
        channel, _, connection = await network.connected(limits=Limits(stream_window_bytes=rng.randint(65_535, 10**6)))
        sizes = [0, 1, 100, 300] if 0 < chunk < 100 else [0, 1, 100, 16_379, 16_384, 70_000]
        messages = [rng.randbytes(rng.choice(sizes)) for _ in range(15)]
        calls = [Call(channel, m) for m in messages]
        changed = False
        for _ in range(2_000):
            for stream_id in list(server.ended):
                server.ended.remove(stream_id)
                body = bytes(server.bodies[stream_id][5:])
                server.reply(stream_id, body, pad=pad)
            if not changed and rng.random() < 0.3:
                # Also makes windows negative (RFC 9113 section 6.9.2).
                changed = True
                server.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: rng.randint(0, 100_000)})
                server.flush()
            await turns(1)
            if all(call.outcomes for call in calls):
                break
            if not initial or changed:
                for stream_id in server.requests:
                    try:
                        server.h2.increment_flow_control_window(5_000, stream_id)
                    except Exception:
                        continue
                server.flush()
        assert [call.outcomes and call.outcomes[0].message for call in calls] == messages
        assert connection.closed is False
        assert not connection.streams
        assert not connection._waiting
        await channel.aclose()

    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(scenario(patch))


async def test_a_large_reply_refills_windows_and_is_copied_linearly(memory):
    channel, server, _ = await memory.connected(
        limits=Limits(stream_window_bytes=65_535, connection_window_bytes=2**17)
    )
    call = Call(channel)
    await turns()
    body = random.Random(1).randbytes(4 * 2**20)
    server.reply(1, body)
    assert (await call).message == body


async def test_a_large_request_respects_windows(memory):
    channel, server, connection = await memory.connected()
    server.refill = False
    body = bytes(200_000)
    call = Call(channel, body)
    await turns()
    assert len(server.bodies[1]) == 65_535
    assert connection.send_window == 0
    small = Call(channel, b"small")
    await turns()
    assert not server.bodies[3]
    server.h2.increment_flow_control_window(100_000)
    server.flush()
    await turns()
    assert server.bodies[3] == b"\0\0\0\0\x05small"  # its own window was open: only the connection's was shut
    assert len(server.bodies[1]) == 65_535
    server.h2.increment_flow_control_window(200_000, 1)
    server.h2.increment_flow_control_window(200_000)
    server.flush()
    await turns()
    assert server.bodies[1] == b"\0" + len(body).to_bytes(4, "big") + body
    server.reply(1)
    server.reply(3)
    await call
    await small


async def test_waiting_streams_take_turns(memory):
    channel, server, _ = await memory.connected()
    server.refill = False
    calls = [Call(channel, bytes(2 * 2**20)) for _ in range(2)]
    await turns()
    for stream_id in (1, 3):
        server.h2.increment_flow_control_window(2 * 2**20, stream_id)
    server.h2.increment_flow_control_window(2 * 2**20)
    server.flush()
    await turns()
    got = [len(server.bodies[sid]) for sid in (1, 3)]
    assert sum(got) == 2 * 2**20 + 65_535
    assert min(got) >= 2**19
    for call in calls:
        call.handle.cancel()
    await turns()
    assert set(server.resets) == {1, 3}


async def test_a_full_socket_holds_calls_back_unsent(memory):
    channel, server, connection = await memory.connected()
    connection.pause_writing()
    call = Call(channel)
    await turns()
    assert not server.requests
    assert len(channel.queue) == 1
    connection.resume_writing()
    await turns()
    server.reply(1, b"ok")
    assert (await call).message == b"ok"


async def test_a_socket_that_fills_stops_a_large_request(memory):
    server = H2Server({SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
    memory.servers.append(server)
    channel, _, connection = await memory.connected()
    server.refill = False
    server.h2.increment_flow_control_window(2**30)
    server.flush()
    write = server.transport.write

    def full(data):
        write(data)
        if len(data) > 100_000:
            connection.pause_writing()

    server.transport.write = full
    call = Call(channel, bytes(10 * 2**20))
    await turns(20)
    sizes = [len(server.bodies[1])]
    for _ in range(3):
        connection.resume_writing()
        await turns()
        sizes.append(len(server.bodies[1]))
    assert [b - a for a, b in itertools.pairwise(sizes)] == [2**18] * 3
    call.handle.cancel()
    connection.resume_writing()
    assert not connection._waiting


async def test_an_early_answer_stops_the_upload(memory):
    channel, server, connection = await memory.connected()
    server.refill = False
    call = Call(channel, bytes(10**6))
    await turns()
    server.reply(1, code=8, details="too large")
    assert (await call).code == 8
    await turns()
    assert server.resets == {1: 8}
    assert not connection._waiting
    assert channel.connected == 1


async def test_data_beyond_the_windows_is_refused(memory):
    channel, server, connection = await memory.connected(limits=Limits(stream_window_bytes=65_535))
    call = Call(channel)
    await turns()
    server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.flush()
    connection.refill_stream = lambda *_: None  # as if no window had been given back yet
    server.raw(frames.frame(frames.DATA, 0, 1, b"\0\0\xff\xff\xff" + bytes(40_000)))
    server.raw(frames.frame(frames.DATA, 0, 1, bytes(30_000)))
    outcome = await call
    assert isinstance(outcome, ProtocolError)
    await turns()
    assert server.resets == {1: 3}
    assert channel.connected == 1


@pytest.mark.parametrize("size", [64 * 2**20, pytest.param(256 * 2**20 - 5, marks=pytest.mark.slow)])
async def test_huge_messages_both_ways(size):
    """A real socket, our client against a byte-level sink: the number of operations grows with the size only."""
    from haclient.wire import Channel, Target

    got = 0
    reply = bytes(size)

    async def serve(reader, writer):
        nonlocal got
        writer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31 - 1, frames.MAX_FRAME_SIZE: 2**20}))
        writer.write(frames.window_update(0, 2**31 - 1 - 65_535))
        await reader.readexactly(24)
        window, stream_window = 65_535, None
        done = False
        opened = asyncio.Event()

        async def answer():
            nonlocal window, stream_window
            import hpack

            encode = hpack.Encoder().encode
            head = encode([(":status", "200"), ("content-type", "application/grpc")])
            writer.write(frames.frame(frames.HEADERS, 4, 1, head))
            body = memoryview(b"\0" + size.to_bytes(4, "big") + reply)
            while body:
                room = min(window, stream_window, 65_536, len(body))
                if not room:
                    opened.clear()
                    await opened.wait()
                    continue
                writer.write(frames.frame_header(room, frames.DATA, 0, 1) + body[:room])
                window -= room
                stream_window -= room
                body = body[room:]
                await writer.drain()
            writer.write(frames.frame(frames.HEADERS, 5, 1, encode([("grpc-status", "0")])))

        answering = None
        try:
            while not done:
                header = await reader.readexactly(9)
                length = int.from_bytes(header[:3], "big")
                payload = await reader.readexactly(length)
                kind, flags, stream = header[3], header[4], int.from_bytes(header[5:], "big")
                if kind == frames.SETTINGS and not flags:
                    stream_window = next(
                        int.from_bytes(payload[i + 2 : i + 6], "big")
                        for i in range(0, length, 6)
                        if payload[i + 1] == 4
                    )
                elif kind == frames.WINDOW_UPDATE:
                    if stream:
                        stream_window += int.from_bytes(payload, "big")
                    else:
                        window += int.from_bytes(payload, "big")
                    opened.set()
                elif kind == frames.DATA:
                    got += length
                    if flags & 1:
                        answering = asyncio.ensure_future(answer())
        except asyncio.IncompleteReadError:
            pass
        finally:
            if answering is not None:
                await answering
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    channel = Channel(Target(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
    outcome = await Call(channel, bytes(size), timeout_s=150.0)
    assert len(outcome.message) == size
    assert got == size + 5
    await channel.aclose()
    server.close()
    await server.wait_closed()


# -- streaming


async def test_a_stream_is_read_under_backpressure(memory):
    channel, server, connection = await memory.connected(limits=Limits(stream_window_bytes=65_535))
    stream = channel.stream(PATH, (("a", "b"),), None)
    await stream.send(b"go")
    await stream.done_sending()
    await turns()
    assert "grpc-timeout" not in server.requests[1]
    assert server.ended == [1]
    server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc"), ("h", "1")])
    piece = b"\0\0\0\x03\xe8" + bytes(1_000)
    sent = 0
    while server.h2.local_flow_control_window(1) >= len(piece):
        server.h2.send_data(1, piece)
        sent += 1
    server.flush()
    await turns()
    assert server.h2.local_flow_control_window(1) < len(piece)  # nobody reads: nothing is given back
    assert connection.streams[1].recv_window < len(piece)
    for _ in range(40):
        assert await anext(stream) == bytes(1_000)
    await turns()
    assert server.h2.local_flow_control_window(1) > 30 * len(piece)
    server.h2.send_headers(1, [("grpc-status", "3"), ("grpc-message", "odd"), ("t", "2")], end_stream=True)
    server.flush()
    rest = [message async for message in stream]
    assert len(rest) == sent - 40
    assert (stream.status.code, stream.status.details) == (3, "odd")
    assert (stream.headers, stream.status.trailers) == ((("h", "1"),), (("t", "2"),))
    stream.cancel()


async def test_sending_on_a_stream_waits_for_the_window(memory):
    channel, server, _ = await memory.connected()
    server.refill = False
    async with channel.stream(PATH, (), 60.0) as stream:
        sending = asyncio.ensure_future(stream.send(bytes(100_000)))
        await turns(8)
        assert not sending.done()
        server.h2.increment_flow_control_window(100_000, 1)
        server.h2.increment_flow_control_window(100_000)
        server.flush()
        await sending
        await stream.send(b"more")
    await turns()
    assert server.resets == {1: 8}
    with pytest.raises(TransportClosed):
        await anext(stream)


async def test_a_message_larger_than_the_window_streams_through(memory):
    channel, server, _ = await memory.connected(limits=Limits(stream_window_bytes=65_535))
    stream = channel.stream(PATH, (), 60.0)
    await stream.done_sending()
    await turns()
    server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.send(1, b"\0\0\x0f\x42\x40" + bytes(1_000_000))
    server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    server.flush()
    assert [len(message) async for message in stream] == [1_000_000]
    assert stream.status.code == 0


async def test_a_stream_that_is_reset_raises(memory):
    channel, server, _ = await memory.connected()
    stream = channel.stream(PATH, (), 60.0)
    receiving = asyncio.ensure_future(anext(stream))
    await turns()
    server.raw(frames.rst_stream(1, 2))
    with pytest.raises(StreamReset, match="INTERNAL_ERROR"):
        await receiving
    with pytest.raises(StreamReset):
        await stream.send(b"x")
    assert any(isinstance(e, h2.events.RequestReceived) for e in server.events)
