"""Unary calls against `h2` in memory: replies, errors, deadlines, cancellation, GOAWAY, what counts as sent."""

import asyncio

import h2.errors
import h2.settings
import pytest
from wire_peer import PATH, Call, H2Server, turns

from haclient.call import Reply
from haclient.errors import (
    AttemptTimeout,
    ConnectFailed,
    ConnectionLost,
    ProtocolError,
    StreamReset,
    TransportClosed,
)
from haclient.wire import Limits, frames, grpc


async def test_a_call_and_its_reply(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel, b"question", (("authorization", "t"), ("x-bin", "AAE")), 1.5)
    assert not call.outcomes
    await turns()
    assert server.requests[1] == {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "db:19530",
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "haclient/0.1.0 grpc-haclient",
        "authorization": "t",
        "x-bin": "AAE",
        "grpc-timeout": server.requests[1]["grpc-timeout"],
    }
    assert 1.4 < grpc.decode_timeout(server.requests[1]["grpc-timeout"]) <= 1.5
    assert server.bodies[1] == b"\0\0\0\0\x08question"
    assert server.ended == [1]
    server.reply(1, b"answer")
    assert await call == Reply(b"answer", 0, "", (("x-h", "1"),), (("x-t", "2"),))


async def test_a_status_is_a_reply(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.reply(1, code=5, details="nö")
    assert await call == Reply(b"", 5, "nö", (("x-h", "1"),), (("x-t", "2"),))


async def test_trailers_only(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.h2.send_headers(
        1,
        [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "14"), ("a", "b")],
        end_stream=True,
    )
    server.flush()
    assert await call == Reply(b"", 14, "", (), (("a", "b"),))


async def test_informational_headers_are_skipped(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.h2.send_headers(1, [(":status", "103"), ("link", "x")])
    server.reply(1, b"a")
    assert (await call).message == b"a"


@pytest.mark.parametrize(
    ("status", "code"), [(401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (500, 2)]
)
async def test_an_http_error_page_becomes_a_grpc_code(memory, status, code):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.h2.send_headers(1, [(":status", str(status)), ("content-type", "text/html")])
    server.h2.send_data(1, b"<h1>no</h1>" * 100, end_stream=True)
    server.flush()
    reply = await call
    assert reply.code == code
    assert f"HTTP status {status}" in reply.details
    assert "<h1>no</h1>" in reply.details
    assert len(reply.details) < 300


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([b"\x01\0\0\0\x01x"], "compressed"),
        ([b"\0\0\0\0\x02x"], "cut short"),
        ([b"\0\0\0\0"], "cut short"),
        ([], "missing"),
        ([b"\0\0\0\0\x01xy"], "more than one message"),
        ([b"\0\0\0\0\x01x", b"\0\0\0\0\x01x"], "more than one message"),
        ([b"\0\0\x10\0\x01x"], "max_message_bytes"),
    ],
)
async def test_broken_messages(memory, parts, text):
    channel, server, _ = await memory.connected(limits=Limits(max_message_bytes=2**20))
    call = Call(channel)
    await turns()
    server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    for part in parts:
        server.h2.send_data(1, part)
    server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    server.flush()
    outcome = await call
    assert isinstance(outcome, ProtocolError)
    assert text in str(outcome)
    assert outcome.sent
    assert channel.connected == 1


async def test_no_trailers(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.h2.send_data(1, b"\0\0\0\0\0", end_stream=True)
    server.flush()
    outcome = await call
    assert isinstance(outcome, ProtocolError)
    assert "without trailers" in str(outcome)


async def test_no_grpc_status(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.h2.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.h2.send_headers(1, [("a", "b")], end_stream=True)
    server.flush()
    assert (await call).code == grpc.UNKNOWN


# -- sent or not: the table


async def test_sent_refused_connection(memory):
    memory.error = ConnectFailed("refused")
    channel = memory.channel()
    first, second = Call(channel), Call(channel)
    for call in (first, second):
        assert isinstance(await call, ConnectFailed)
        assert not (await call).sent
    assert channel.last_connect_error is not None
    memory.error = None
    third = Call(channel)  # no back-off: the next call dials at once
    await turns(8)
    memory.dialled[-1].reply(1, b"a")
    assert (await third).code == 0
    assert channel.last_connect_error is None


async def test_sent_before_the_buffer_is_written(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    server.transport.lose()
    assert isinstance(await call, ConnectionLost)
    assert not (await call).sent
    assert not server.requests


async def test_sent_after_the_buffer_is_written(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.transport.lose(ConnectionResetError("reset by peer"))
    assert isinstance(await call, ConnectionLost)
    assert (await call).sent
    assert "reset by peer" in str(await call)


async def test_sent_queued_behind_the_limit_of_streams(memory):
    memory.servers.append(H2Server({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1}))
    channel, server, _ = await memory.connected()
    first, second = Call(channel), Call(channel, timeout_s=0.02)
    await turns()
    assert list(server.requests) == [1]
    outcome = await second
    assert isinstance(outcome, AttemptTimeout)
    assert not outcome.sent
    third = Call(channel)
    server.reply(1, b"1")
    await turns()
    server.reply(3, b"3")
    assert [(await c).message for c in (first, third)] == [b"1", b"3"]


@pytest.mark.parametrize(("code", "sent"), [(7, False), (8, True), (2, True), (0xFFFF, True)])
async def test_sent_reset_by_the_server(memory, code, sent):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.raw(frames.rst_stream(1, code))
    outcome = await call
    assert isinstance(outcome, StreamReset)
    assert (outcome.code, outcome.sent) == (code, sent)
    assert channel.connected == 1


async def test_sent_deadline(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel, timeout_s=0.01)
    outcome = await call
    assert isinstance(outcome, AttemptTimeout)
    assert outcome.sent
    await turns()
    assert server.resets == {1: h2.errors.ErrorCodes.CANCEL}


async def test_sent_deadline_while_dialling(memory):
    memory.hold = asyncio.Event()
    channel = memory.channel()
    outcome = await Call(channel, timeout_s=0.01)
    assert isinstance(outcome, AttemptTimeout)
    assert not outcome.sent


async def test_no_time_at_all(memory):
    channel, server, _ = await memory.connected()
    outcome = await Call(channel, timeout_s=0)
    assert isinstance(outcome, AttemptTimeout)
    assert not outcome.sent
    assert not server.requests


async def test_sent_closed_by_us(memory):
    channel, server, _ = await memory.connected()
    gone = Call(channel)
    await turns()
    buffered = Call(channel)
    await channel.aclose()
    assert isinstance(await gone, TransportClosed)
    assert (await gone).sent
    assert isinstance(await buffered, TransportClosed)
    assert not (await buffered).sent
    assert list(server.requests) == [1]
    assert server.goaway[0] == 0
    late = await Call(channel)
    assert isinstance(late, TransportClosed)
    assert not late.sent


async def test_a_stopped_server_has_not_seen_the_call(memory, monkeypatch):
    """The kernel accepts, the process never speaks: nothing was sent."""
    server = H2Server()
    monkeypatch.setattr(server, "flush", lambda: None)
    memory.servers.append(server)
    channel = memory.channel(connect_timeout_s=0.02)
    outcome = await Call(channel)
    assert isinstance(outcome, ConnectFailed)
    assert "does not speak" in str(outcome)
    assert not server.requests


# -- cancellation


async def test_cancelling_resets_and_is_never_answered(memory):
    channel, server, connection = await memory.connected()
    call = Call(channel)
    await turns()
    call.handle.cancel()
    call.handle.cancel()
    await turns()
    assert server.resets == {1: h2.errors.ErrorCodes.CANCEL}
    # What crosses the reset is taken quietly, and counted.
    window = connection._recv_window
    encoded = H2Server().h2.encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
    server.raw(frames.frame(frames.HEADERS, 4, 1, encoded))
    server.raw(frames.frame(frames.DATA, 0, 1, b"late" * 100))
    server.raw(frames.window_update(1, 10) + frames.rst_stream(1, 8))
    assert connection._recv_window == window - 400
    assert not call.outcomes
    assert channel.connected == 1
    again = Call(channel)
    await turns()
    # (the encoder above was a stranger's: use one that knows the table)
    server.h2.encoder = type(server.h2.encoder)()
    server.reply(3, b"yes")
    assert (await again).message == b"yes"


async def test_cancelling_a_queued_call(memory):
    memory.hold = asyncio.Event()
    channel = memory.channel()
    first, second = Call(channel), Call(channel)
    first.handle.cancel()
    memory.hold.set()
    await turns(8)
    server = memory.dialled[0]
    assert list(server.requests) == [1]
    server.reply(1, b"2")
    assert (await second).message == b"2"
    assert not first.outcomes


async def test_an_exception_in_the_callback_is_reported_and_harmless(memory):
    channel, server, _ = await memory.connected()
    seen = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context["exception"]))

    def done(_outcome):
        raise KeyError("mine")

    channel.start(PATH, b"", (), 5.0, done)
    call = Call(channel)
    await turns()
    server.reply(1, b"", flush=False)
    server.reply(3, b"3")
    assert (await call).message == b"3"
    assert [repr(error) for error in seen] == ["KeyError('mine')"]


async def test_callbacks_may_start_cancel_and_close(memory):
    channel, server, _ = await memory.connected()
    calls = []
    victim = Call(channel)
    channel.start(PATH, b"", (), 5.0, lambda _: (victim.handle.cancel(), calls.append(Call(channel))))
    await turns()
    server.reply(3, b"")
    await turns()
    assert not victim.outcomes
    server.reply(5, b"5")
    assert (await calls[0]).message == b"5"
    closer = Call(channel)
    closing = []
    closer.future.add_done_callback(lambda _: closing.append(asyncio.ensure_future(channel.aclose())))
    await turns()
    server.reply(7, b"")
    await closer
    await turns()
    await closing[0]


@pytest.mark.parametrize("metadata", [(("A", "b"),), (("a", "b\r\n"),), (("content-type", "x"),)])
async def test_illegal_metadata_raises_before_anything_is_sent(memory, metadata):
    channel, server, _ = await memory.connected()
    with pytest.raises(ValueError, match="metadata"):
        Call(channel, metadata=metadata)
    with pytest.raises(ValueError, match="path"):
        channel.start("/a b", b"", (), 1.0, print)
    await turns()
    assert not server.requests


# -- GOAWAY


async def test_goaway_lets_the_served_end_and_moves_the_rest(memory):
    channel, server, connection = await memory.connected()
    served, moved = Call(channel), Call(channel, b"m")
    await turns()
    server.raw(frames.goaway(1, 0))
    assert channel.connected == 0
    await turns(10)
    second = memory.dialled[1]
    assert second.bodies == {1: b"\0\0\0\0\x01m"}
    second.reply(1, b"there")
    assert (await moved).message == b"there"
    server.reply(1, b"here")
    assert (await served).message == b"here"
    await turns()
    assert connection.closed
    assert memory.connections[1].closed is False


async def test_the_graceful_double_goaway(memory):
    channel, server, connection = await memory.connected()
    first = Call(channel)
    await turns()
    server.raw(frames.goaway(2**31 - 1, 0))
    assert channel.connected == 0
    later = Call(channel)
    await turns(10)
    assert list(server.requests) == [1]
    assert list(memory.dialled[1].requests) == [1]
    server.raw(frames.goaway(1, 0))
    server.reply(1, b"1")
    memory.dialled[1].reply(1, b"2")
    assert [(await c).message for c in (first, later)] == [b"1", b"2"]
    await turns()
    assert connection.closed


async def test_goaway_on_an_idle_connection_closes_it(memory):
    channel, server, connection = await memory.connected()
    server.raw(frames.goaway(0, 0))
    await turns()
    assert connection.closed
    assert channel.connected == 0
    assert (len(memory.dialled), repr(channel)) == (1, "<Channel db:19530 connected=0 queued=0>")


async def test_a_server_that_only_says_goaway_does_not_loop(memory):
    channel = memory.channel()
    call = Call(channel)
    for number in range(3):
        await turns(12)
        assert len(memory.dialled) == number + 1
        memory.dialled[number].raw(frames.goaway(0, 0))
    outcome = await call
    assert isinstance(outcome, ConnectionLost)
    assert not outcome.sent


async def test_goaway_then_close_fails_what_was_being_served(memory):
    channel, server, _ = await memory.connected()
    call = Call(channel)
    await turns()
    server.raw(frames.goaway(1, 11, b"calm"))
    server.transport.lose()
    outcome = await call
    assert isinstance(outcome, ConnectionLost)
    assert outcome.sent


async def test_a_second_goaway_may_lower_the_limit(memory):
    channel, server, _ = await memory.connected()
    calls = [Call(channel, b"%d" % n) for n in range(3)]
    await turns()
    server.raw(frames.goaway(2**31 - 1, 0))
    server.raw(frames.goaway(1, 0))
    await turns(12)
    assert len(memory.dialled[1].requests) == 2
    for stream_id in (1, 3):
        memory.dialled[1].reply(stream_id, bytes(memory.dialled[1].bodies[stream_id][5:]))
    server.reply(1, b"0")
    assert [(await c).message for c in calls] == [b"0", b"1", b"2"]


# -- the rest of the channel


async def test_ping_measures_and_fails_with_the_connection(memory):
    channel, server, _ = await memory.connected()
    results = []
    channel.ping(results.append)
    await turns()
    assert isinstance(results[0], float)
    server.auto = False
    channel.ping(results.append)
    await turns()
    server.transport.lose()
    assert isinstance(results[1], ConnectionLost)
    memory.error = ConnectFailed("no")
    channel.ping(results.append)
    await turns(6)
    assert isinstance(results[2], ConnectFailed)
    await channel.aclose()
    channel.ping(results.append)
    await turns()
    assert isinstance(results[3], TransportClosed)


async def test_unanswered_pings_are_bounded(memory):
    channel, server, connection = await memory.connected()
    server.auto = False
    results = []
    for _ in range(250):
        channel.ping(results.append)
    assert len(connection._pings) == 100
    assert len(results) == 150
    assert all(isinstance(r, AttemptTimeout) for r in results)


async def test_several_connections_share_the_calls(memory):
    channel = memory.channel(connections=3)
    for _ in range(4):
        warm = Call(channel)
        await turns(10)
        next(s for s in memory.dialled if s.requests.keys() - set(_answered(s))).reply(
            max(k for s in memory.dialled for k in s.requests if k not in _answered(s)), b""
        )
        await warm
        channel._next_sibling = 0.0
    assert channel.connected == 3
    before = [len(s.requests) for s in memory.dialled]
    calls = [Call(channel) for _ in range(30)]
    await turns()
    assert [len(s.requests) - b for s, b in zip(memory.dialled, before, strict=True)] == [10, 10, 10]
    for call in calls:
        call.handle.cancel()


def _answered(server):
    return [sid for sid in server.requests if server.h2._stream_closed_by(sid) or sid not in server.h2.streams]


async def test_an_old_connection_is_replaced_before_it_is_left(memory):
    channel, old, connection = await memory.connected(max_age_s=1000.0)
    under_way = Call(channel)
    await turns()
    (timer,) = channel._age_timers.values()
    assert 899 < timer.when() - asyncio.get_running_loop().time() <= 1100
    memory.error = ConnectFailed("no")
    channel._grow_old(connection, 1000.0)
    await turns(6)
    assert channel.connected == 1  # the replacement failed: the old one stays
    memory.error = None
    channel._age_timers[connection].cancel()
    channel._grow_old(connection, 100.0)
    await turns(10)
    assert len(memory.dialled) == 2
    assert channel.connected == 1
    assert connection.draining
    later = Call(channel)
    await turns()
    memory.dialled[1].reply(1, b"new")
    old.reply(1, b"old")
    assert ((await under_way).message, (await later).message) == (b"old", b"new")
    await turns()
    assert connection.closed


async def test_identifiers_run_out(memory):
    channel, server, connection = await memory.connected()
    connection._next_id = 2**31 - 1
    last = Call(channel)
    await turns()
    assert connection.draining
    server.reply(2**31 - 1, b"last")
    assert (await last).message == b"last"
    after = Call(channel)
    await turns(10)
    memory.dialled[1].reply(1, b"first")
    assert (await after).message == b"first"


async def test_an_unexpected_failure_to_connect_fails_the_calls_at_once(memory):
    memory.error = OSError(24, "Too many open files")
    outcome = await Call(memory.channel())
    assert isinstance(outcome, ConnectFailed)
    assert "Too many open files" in str(outcome)


async def test_a_callback_may_try_again_at_once(memory):
    memory.error = ConnectFailed("no")
    channel = memory.channel()
    outcomes = []

    def again(outcome):
        outcomes.append(outcome)
        if len(outcomes) < 5:
            channel.start(PATH, b"", (), 30.0, again)

    channel.start(PATH, b"", (), 30.0, again)
    await turns(40)
    assert len(outcomes) == 5
