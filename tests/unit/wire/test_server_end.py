"""How connections end: GOAWAY twice, nothing lost, nothing that stays because a client does not move."""

import asyncio

import pytest
from server_peer import H2Client, block, client, message, turns

from haclient.wire import Limits, frames
from haclient.wire.frames import frame
from tests.virtual_time import run

LAST = frames.MAX_STREAM_ID
QUICK = {"request_s": 10.0, "reply_s": 20.0}


def sweep(peer):
    peer.server.sweep(peer.server.loop.time(), **QUICK)


def in_virtual_time(test):
    """Run an async test in virtual time; pytest sees a plain function."""

    def sync():
        run(test())

    sync.__doc__ = test.__doc__
    return sync


@in_virtual_time
async def test_goaway_twice_and_no_call_is_lost():
    """What the client opened before it heard of the end is served; then the last identifier is said."""
    peer = await client()
    peer.server.echo = False
    first = peer.ask(b"under way")
    peer.ack = False
    peer.server.drain()
    second = peer.ask(b"on its way")  # the client has not heard yet
    await turns()
    assert peer.goaways == [(LAST, 0)]
    peer.ack = True
    peer.flush()  # answers the PING
    await turns()
    assert peer.goaways == [(LAST, 0), (second, 0)]
    for call in peer.calls:
        call.reply(call.message)
    await turns()
    assert peer.ended == [first, second]
    assert not peer.transport.closing  # the client has a moment to close
    await asyncio.sleep(1.5)
    assert peer.transport.closing
    await peer.end()


@in_virtual_time
async def test_a_client_that_does_not_answer_the_ping():
    """After a second the last identifier is said anyway."""
    peer = await client()
    peer.server.echo = False
    peer.ask()
    peer.ack = False
    peer.server.drain()
    await asyncio.sleep(0.9)
    assert len(peer.goaways) == 1
    await asyncio.sleep(0.2)
    assert peer.goaways[1] == (1, 0)
    peer.calls[0].reply(b"")
    await asyncio.sleep(1.1)
    await peer.end()


@in_virtual_time
async def test_streams_behind_the_last_goaway():
    """They are not served and not answered, and no later GOAWAY claims them: the client may repeat them elsewhere."""
    peer = await client()
    peer.server.echo = False
    peer.ask()
    peer.server.drain()
    await turns()
    assert len(peer.goaways) == 2
    peer.raw(frame(frames.HEADERS, 4, 3, block()) + frame(frames.DATA, 1, 3, message(b"late")))
    assert len(peer.calls) == 1
    peer.calls[0].reply(b"")
    await asyncio.sleep(1.5)
    assert peer.transport.closing
    assert [last for last, _ in peer.goaways] == [LAST, 1, 1]
    await peer.end()


@in_virtual_time
async def test_an_answer_of_the_last_moment_is_sent():
    """What is still in the turn's buffer when the connection closes goes out first."""
    peer = await client()
    peer.server.echo = False
    peer.ask()
    peer.server.drain()
    await turns()
    peer.calls[0].reply(b"at last")
    assert peer.server._out
    peer.server._close_if_idle()
    assert peer.ended == [1]
    assert bytes(peer.bodies[1]) == message(b"at last")
    await peer.end()


@in_virtual_time
async def test_draining_without_calls():
    """An idle connection is told, and closed a moment later."""
    peer = await client()
    peer.server.drain()
    peer.server.drain()
    await turns()
    assert peer.goaways == [(LAST, 0), (0, 0)]
    await asyncio.sleep(2.5)
    assert peer.transport.closing
    await peer.end()


@in_virtual_time
async def test_draining_before_the_client_has_said_anything():
    """A client whose SETTINGS come late hears of it, too."""
    peer = H2Client()
    peer.server.connection_made(peer.transport)
    peer.server.drain()
    await asyncio.sleep(2.5)
    assert peer.transport.closing
    await peer.end()


@in_virtual_time
async def test_goaway_of_the_client():
    """Its calls are finished; then the connection closes by itself, with one timer however often it says so."""
    peer = await client()
    peer.server.echo = False
    stream = peer.ask()
    peer.raw(frames.goaway(0, 0) * 50)
    peer.calls[0].reply(b"x")
    await turns()
    assert peer.ended == [stream]
    peer.raw(frames.goaway(0, 0) * 50)
    assert len([timer for *_, timer in peer.server.loop._timers if not timer.cancelled()]) == 1
    await asyncio.sleep(1.5)
    assert peer.transport.closing
    await peer.end()


@in_virtual_time
async def test_a_client_that_goes_away():
    """Every call is given up, once; what is answered later goes nowhere."""
    peer = await client()
    peer.server.echo = False
    for _ in range(3):
        peer.ask()
    peer.transport.lose(OSError("reset"))
    assert [call.cancelled for call in peer.calls] == [1, 1, 1]
    for call in peer.calls:
        call.reply(b"too late")
    await turns()
    assert peer.gone == 1


async def test_the_end_of_input_closes():
    """A client that shuts its side down can take no more calls, and is not waited for."""
    peer = await client()
    assert not peer.server.eof_received()
    await peer.end()


# -- what does not move


def part_of_a_frame(peer):
    peer.raw(b"\0\0\x08\x06")


def part_of_a_payload(peer):
    peer.raw(frame(6, 0, 0, bytes(8))[:-1])


def part_of_a_header_block(peer):
    peer.raw(frame(frames.HEADERS, 0, 1, block()[:10]))


@pytest.mark.parametrize("what", [part_of_a_frame, part_of_a_payload, part_of_a_header_block])
def test_what_does_not_become_whole(what):
    """Slow headers: ENHANCE_YOUR_CALM after the time of a request."""

    async def scenario():
        peer = await client()
        what(peer)
        for _ in range(11):
            sweep(peer)
            assert not peer.server.closed
            await asyncio.sleep(1.0)
        sweep(peer)
        assert peer.goaways == [(0, 11)]
        await peer.end()

    run(scenario())


@in_virtual_time
async def test_a_preface_without_settings():
    """Slow preface."""
    peer = H2Client()
    peer.server.connection_made(peer.transport)
    peer.raw(frames.PREFACE)
    for _ in range(12):
        sweep(peer)
        await asyncio.sleep(1.0)
    assert peer.server.closed
    await peer.end()


@in_virtual_time
async def test_a_busy_connection_is_not_taken_for_a_slow_one():
    """One that ends in the middle of a frame at every sweep, but never of the same one."""
    peer = await client()
    whole = frame(6, 0, 0, bytes(8))
    peer.raw(whole[:5])
    for _ in range(50):
        peer.raw(whole[5:] + whole[:5])
        sweep(peer)
        await asyncio.sleep(1.0)
    assert not peer.server.closed
    await peer.end()


@pytest.mark.parametrize("drip", [0, 1])
def test_a_slow_body(drip):
    """Slowloris: a body must grow by a step within the time of a request; a byte now and then is none."""

    async def scenario():
        peer = await client()
        stream = peer.open()
        peer.h2.send_data(stream, message(bytes(1_000))[:5])
        for _ in range(12):
            if drip and stream not in peer.resets:
                peer.h2.send_data(stream, b"\0")
                peer.flush()
            sweep(peer)
            await asyncio.sleep(1.0)
        assert peer.resets == {stream: 8}
        assert peer.calls[0].cancelled == 1
        assert not peer.server.closed
        await peer.end()

    run(scenario())


@in_virtual_time
async def test_a_steady_upload_may_take_its_time():
    """Two kilobytes a second are slow, and fine."""
    peer = await client()
    stream = peer.open()
    whole = message(bytes(200_000))
    for i in range(0, len(whole), 2_000):
        peer.h2.send_data(stream, whole[i : i + 2_000])
        peer.flush()
        sweep(peer)
        await asyncio.sleep(1.0)
    peer.h2.end_stream(stream)
    peer.flush()
    assert len(peer.calls[0].message) == 200_000
    await peer.end()


@pytest.mark.parametrize("drip", [0, 1])
def test_an_answer_that_is_not_taken(drip):
    """A window that stays shut, or opens byte by byte, does not hold an answer for ever."""

    async def scenario():
        peer = await client()
        peer.refill = False
        stream = peer.ask(bytes(60_000))
        second = peer.ask(bytes(60_000))
        for _ in range(23):
            if drip and second not in peer.resets:
                peer.h2.increment_flow_control_window(1)
                peer.h2.increment_flow_control_window(1, second)
                peer.flush()
            sweep(peer)
            await asyncio.sleep(1.0)
        assert peer.ended == [stream]
        assert peer.resets == {second: 8}
        assert peer.calls[1].cancelled == 1
        await peer.end()

    run(scenario())


@in_virtual_time
async def test_a_long_call_is_not_hurried():
    """A call that the servers work on may take any time, and its answer has all of its own."""
    peer = await client()
    peer.server.echo = False
    peer.refill = False
    slow = peer.ask(bytes(50_000))
    peer.raw(b"\0\0\x08")
    peer.raw(frame(6, 0, 0, bytes(8))[3:])
    for _ in range(40):
        sweep(peer)
        await asyncio.sleep(1.0)
    peer.calls[0].reply(bytes(66_000))
    for _ in range(19):
        sweep(peer)
        await asyncio.sleep(1.0)
    assert not peer.resets
    peer.h2.increment_flow_control_window(1_000)
    peer.h2.increment_flow_control_window(1_000, slow)
    peer.flush()
    await turns()
    assert peer.ended == [slow]
    await peer.end()


@in_virtual_time
async def test_a_full_socket_is_not_waited_for_for_ever():
    """GOAWAY would not reach a client that does not empty its socket: the connection is cut."""
    peer = await client()
    peer.server.pause_writing()
    for _ in range(22):
        sweep(peer)
        await asyncio.sleep(1.0)
    assert peer.transport.closing
    await peer.end()


@in_virtual_time
async def test_closing_is_not_waited_for_for_ever():
    """A client that does not take our last words keeps its socket, and its place, only as long as a reply may take."""
    peer = await client()
    aborted = []
    peer.transport.close = lambda: setattr(peer.transport, "closing", True)  # something is left to write
    peer.transport.abort = lambda: aborted.append(1)
    peer.raw(frame(frames.DATA, 0, 0, b"wrong"))
    assert peer.server.closed
    for _ in range(20):
        sweep(peer)
        await asyncio.sleep(1.0)
    assert not aborted
    assert peer.gone == 0  # still counted
    await asyncio.sleep(1.0)
    sweep(peer)
    assert aborted
    peer.server.connection_lost(None)
    assert peer.gone == 1


def test_limits_are_announced():
    """A client is told what it may do."""

    async def scenario():
        peer = await client(limits=Limits(max_concurrent_streams=7, max_header_list_bytes=2_000))
        settings = peer.h2.remote_settings
        assert settings.max_concurrent_streams == 7
        assert settings.max_header_list_size == 2_000
        assert settings.initial_window_size == 4 << 20
        await peer.end()

    run(scenario())
