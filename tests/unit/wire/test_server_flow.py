"""Windows, slow readers, settings: how much waits where, and that all of it arrives."""

import pytest
from h2.settings import SettingCodes
from server_peer import H2Client, block, client, message, turns

from haclient.wire import Limits, frames
from haclient.wire.frames import frame

SMALL = Limits(stream_window_bytes=65_535, connection_window_bytes=65_535)


async def test_a_large_request_through_small_windows():
    """The server opens its windows as it gathers, padding included, and never lets them dry up."""
    peer = await client(limits=SMALL)
    peer.server.echo = False
    stream = peer.open()
    left = memoryview(message(bytes(500_000)))
    while left:
        room = min(peer.h2.local_flow_control_window(stream), peer.h2.max_outbound_frame_size) - 101
        assert room > 0, "the server's window is shut"
        peer.h2.send_data(stream, bytes(left[:room]), pad_length=100)
        left = left[room:]
        peer.flush()
        await turns()
    peer.h2.end_stream(stream)
    peer.flush()
    assert len(peer.calls[0].message) == 500_000
    await peer.end()


async def test_a_client_that_ignores_the_windows():
    """FLOW_CONTROL_ERROR: of the stream, or of the connection."""
    peer = await client(limits=Limits(stream_window_bytes=65_535, connection_window_bytes=200_000))
    peer.server.echo = False
    peer.raw(frame(frames.HEADERS, 4, 1, block()))
    peer.calls[0].connection.refill_stream = lambda stream, used: None  # as if it had not been given back yet
    peer.raw(frame(frames.DATA, 0, 1, bytes([0, 0, 9, 9, 9]) + bytes(40_000)))
    peer.h2.send_headers(1, REQUEST_OF_H2)
    peer.raw(frame(frames.DATA, 0, 1, bytes(40_000)))
    await turns()
    assert peer.resets == {1: 3}
    assert peer.calls[0].cancelled == 1
    peer.server._refill = lambda: None
    peer.raw(frame(frames.DATA, 0, 1, bytes(60_000)) * 4)
    assert peer.goaways == [(1, 3)]


REQUEST_OF_H2 = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "proxy")]


async def test_a_large_answer_to_a_slow_reader():
    """Nothing beyond the client's windows; every byte arrives, trailers last."""
    peer = await client()
    peer.server.echo = False
    peer.refill = False
    stream = peer.ask()
    body = bytes(range(256)) * 1_000
    peer.calls[0].reply(body)
    await turns()
    assert len(peer.bodies[stream]) == 65_535
    assert peer.calls[0].answered == 0
    while stream not in peer.ended:
        peer.h2.acknowledge_received_data(min(20_000, 65_535), stream)
        peer.flush()
        await turns()
    assert bytes(peer.bodies[stream]) == message(body)
    assert peer.status(stream) == (0, "")
    assert peer.calls[0].answered == 1
    await peer.end()


async def test_slow_streams_share_the_connection():
    """Small answers overtake a large one that waits for its own window."""
    peer = await client()
    peer.server.echo = False
    peer.refill = False
    large, small = peer.ask(), peer.ask()
    peer.h2.increment_flow_control_window(1 << 20)  # the connection's
    peer.flush()
    peer.calls[0].reply(bytes(200_000))
    peer.calls[1].reply(b"small")
    await turns()
    assert peer.ended == [small]
    peer.h2.increment_flow_control_window(200_000, large)
    peer.flush()
    await turns()
    assert peer.ended == [small, large]
    await peer.end()


async def test_a_full_socket_holds_answers_back():
    """While the socket is full nothing but header blocks is written; then everything is."""
    peer = await client()
    peer.server.echo = False
    peer.refill = True
    streams = [peer.ask() for _ in range(5)]
    peer.server.pause_writing()
    for call in peer.calls:
        call.reply(b"x" * 10_000)
    await turns()
    assert not any(peer.bodies[stream] for stream in streams)
    peer.server.resume_writing()
    await turns(8)
    assert sorted(peer.ended) == streams
    assert all(bytes(peer.bodies[stream]) == message(b"x" * 10_000) for stream in streams)
    await peer.end()


async def test_a_client_that_asks_and_never_reads():
    """CVE-2019-9517: answers do not pile up behind a full socket; the connection is cut."""
    peer = await client(limits=Limits(max_message_bytes=10, max_concurrent_streams=100))
    peer.server.pause_writing()
    peer.transport.peer = None  # nobody reads
    asked = 0
    for stream in range(1, 200_001, 2):
        peer.raw(frame(frames.HEADERS, 5, stream, block()))  # each is refused at once
        asked += 1
        if peer.transport.closing:
            break
    assert asked < 1_000
    assert sum(map(len, peer.server._out)) < 100 * 256 * 2
    await peer.end()


async def test_initial_window_size_changes():
    """It moves the windows of open streams, below zero too; what waits goes on when they are open again."""
    peer = await client(settings={SettingCodes.INITIAL_WINDOW_SIZE: 1_000})
    peer.server.echo = False
    peer.refill = False
    stream = peer.ask()
    peer.calls[0].reply(bytes(5_000))
    await turns()
    assert len(peer.bodies[stream]) == 1_000
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    peer.flush()
    await turns()
    assert peer.server.streams[stream].send_window == -1_000
    peer.h2.increment_flow_control_window(500, stream)
    peer.flush()
    await turns()
    assert len(peer.bodies[stream]) == 1_000
    peer.h2.increment_flow_control_window(600, stream)
    peer.flush()
    await turns()
    assert len(peer.bodies[stream]) == 1_100
    peer.h2.increment_flow_control_window(10_000, stream)
    peer.flush()
    await turns()
    assert peer.ended == [stream]
    assert bytes(peer.bodies[stream]) == message(bytes(5_000))
    await peer.end()


async def test_a_window_of_nothing_from_the_start():
    """A client may open its streams with a window of 0: only END_STREAM and headers go without."""
    peer = await client(settings={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    stream = peer.ask(b"abc")
    await turns()
    assert peer.heads[stream][":status"] == "200"
    assert not peer.bodies[stream]
    while stream not in peer.ended:
        peer.h2.increment_flow_control_window(1, stream)
        peer.flush()
        await turns()
    assert bytes(peer.bodies[stream]) == message(b"abc")
    assert peer.ended == [stream]
    await peer.end()


@pytest.mark.parametrize("size", [16_384, 20_000])
async def test_frames_are_no_larger_than_the_client_takes(size):
    """`h2` is the judge: it refuses a frame beyond its MAX_FRAME_SIZE, also of headers."""
    peer = await client(settings={SettingCodes.MAX_FRAME_SIZE: size})
    peer.server.echo = False
    stream = peer.ask()
    peer.calls[0].reply(bytes(60_000), trailers=tuple((f"t{i}", "v" * 1_000) for i in range(50)))
    await turns(8)
    assert peer.ended == [stream]
    assert len(peer.trailers[stream]) == 51
    await peer.end()


async def test_a_smaller_header_table_is_acknowledged():
    """The first block behind it says so (RFC 7541 section 4.2); `h2` insists."""
    peer = await client(settings={SettingCodes.HEADER_TABLE_SIZE: 0})
    first, second = peer.ask(), peer.ask()
    await turns()
    assert peer.ended == [first, second]
    peer.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 100})
    peer.flush()
    await turns()
    third = peer.ask()
    await turns()
    assert peer.ended[-1] == third
    await peer.end()


async def test_settings_and_pings_are_answered():
    """Each SETTINGS is acknowledged once, each PING comes back."""
    peer = await client()
    for i in range(20):
        peer.h2.ping(bytes([i] * 8))
        peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 70_000 + i})
    peer.flush()
    await turns()
    names = [type(event).__name__ for event in peer.events]
    assert names.count("PingAckReceived") == 20
    assert names.count("SettingsAcknowledged") == 21
    await peer.end()


async def test_a_round_trip_of_a_ping():
    """The server measures, too."""
    peer = await client()
    got = []
    peer.server.ping(got.append)
    await turns()
    assert len(got) == 1
    assert got[0] >= 0
    await peer.end()


async def test_windows_opened_together_are_used_together():
    """Every stream that waits is looked at once for all windows of a turn, not once for each (CPU exhaustion)."""
    peer = await client(settings={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    peer.server.echo = False
    for _ in range(100):
        peer.ask()
    for call in peer.calls:
        call.reply(bytes(100))
    await turns()
    looked = 0
    turn = peer.server._turn

    def counted(stream):
        nonlocal looked
        looked += 1
        return turn(stream)

    peer.server._turn = counted
    peer.raw(frames.window_update(0, 1) * 1_000)
    await turns()
    assert looked <= 200


def test_h2_is_a_judge():
    """The peer of these tests does raise on a frame that breaks HTTP/2."""
    import h2.connection
    import h2.exceptions

    judge = h2.connection.H2Connection()
    judge.initiate_connection()
    with pytest.raises(h2.exceptions.ProtocolError):
        judge.receive_data(frame(frames.DATA, 0, 1, b"x"))
    assert H2Client
