"""Streams passed through: every direction, every end, and how much may wait in between."""

import asyncio

import pytest
from server_peer import CANCEL, REQUEST, Lenient, block, client, message, turns
from wire_peer import H2Server

from haclient.errors import StreamReset
from haclient.wire import Limits, frames
from haclient.wire.frames import frame
from haclient.wire.relay import RelayedStream

HEAD = [(":status", "200"), ("content-type", "application/grpc"), ("x-h", "caf\xe9"), ("blob-bin", "AAEC")]
#: What a part that waits counts for beside its bytes.
PART = 256


class Relay(RelayedStream):
    """Relays to a channel and counts what is held."""

    def __init__(self, connection, head, channel, log, timeout_s=float("inf"), most=1 << 30):
        super().__init__(connection)
        self.head, self.channel, self.timeout_s, self.most = head, channel, timeout_s, most
        self.held, self.peak = 0, 0
        self.ends = []
        log.append(self)

    def on_request(self, end):
        head = self.head
        self.connect(self.channel, head.path, (("x-up", "1"),), head.encoding, self.timeout_s, self.ends.append)

    def hold(self, size):
        if self.held + size > self.most:
            return "full"
        self.held += size
        self.peak = max(self.peak, self.held)
        return ""

    def release(self, size):
        self.held -= size
        assert self.held >= 0


class Bridge:
    """A client, the proxy's two sides in memory, and a server."""

    def __init__(self, peer, server, channel, relays):
        self.peer, self.server, self.channel, self.relays = peer, server, channel, relays

    def open(self, *, end=False, fields=()):
        stream = self.peer.h2.get_next_available_stream_id()
        self.peer.h2.send_headers(stream, [*REQUEST, *fields], end_stream=end)
        self.peer.flush()
        return stream

    async def end(self):
        await turns(6)
        for relay in self.relays:
            assert relay.held == 0
            assert len(relay.ends) == 1, relay.ends
        assert self.channel.in_flight == 0
        assert len(self.channel.deadlines) == 0
        self.peer.calls.clear()
        await self.peer.end()


@pytest.fixture
def bridge(memory):
    async def make(limits=None, upstream=None, settings=None, **options):
        if settings:
            memory.servers.append(H2Server(settings))
        channel, server, _ = await memory.connected(**({"limits": upstream} if upstream else {}))
        relays = []
        peer = await client(limits=limits, accept=lambda c, head: Relay(c, head, channel, relays, **options))
        return Bridge(peer, server, channel, relays)

    return make


async def test_both_directions(bridge):
    """Parts go through as they come, both ways at once; metadata and trailers, too, with their bytes."""
    b = await bridge()
    stream = b.open(fields=[("grpc-encoding", "gzip")])
    await turns()
    assert b.server.requests[1][":path"] == "/pkg.Service/Method"
    assert b.server.requests[1]["x-up"] == "1"
    assert b.server.requests[1]["grpc-encoding"] == "gzip"
    assert "grpc-timeout" not in b.server.requests[1]
    b.peer.h2.send_data(stream, message(b"first"))
    b.peer.flush()
    await turns()
    assert bytes(b.server.bodies[1]) == message(b"first")
    b.peer.h2.config.header_encoding = "latin-1"
    b.server.h2.send_headers(1, [(n.encode(), v.encode("latin-1")) for n, v in [*HEAD, ("grpc-encoding", "deflate")]])
    b.server.h2.send_data(1, message(b"one", 1))
    b.server.flush()
    await turns()
    assert bytes(b.peer.bodies[stream]) == message(b"one", 1)
    assert b.peer.heads[stream]["grpc-encoding"] == "deflate"
    assert b.peer.heads[stream]["blob-bin"] == "AAEC"
    assert b.peer.heads[stream]["x-h"] == "caf\xe9"
    b.peer.h2.send_data(stream, message(b"second"), end_stream=True)
    b.peer.flush()
    await turns()
    assert b.server.ended == [1]
    b.server.h2.send_headers(1, [("grpc-status", "9"), ("grpc-message", "a%20b"), ("x-t", "2")], end_stream=True)
    b.server.flush()
    await turns()
    assert b.peer.status(stream) == (9, "a b")
    assert b.peer.trailers[stream]["x-t"] == "2"
    assert b.relays[0].ends == [None]
    await b.end()


async def test_trailers_alone(bridge):
    """A server that answers with a status and nothing else."""
    b = await bridge()
    stream = b.open(end=True)
    await turns()
    assert b.server.ended == [1]
    b.server.h2.send_headers(1, [*HEAD[:2], ("grpc-status", "12"), ("x-t", "1")], end_stream=True)
    b.server.flush()
    await turns()
    assert b.peer.status(stream) == (12, "")
    assert b.peer.heads[stream]["x-t"] == "1"
    await b.end()


async def test_the_server_ends_early(bridge):
    """The client is told at once, and need not send the rest."""
    b = await bridge()
    stream = b.open()
    await turns()
    b.server.h2.send_headers(1, HEAD[:2])
    b.server.h2.send_headers(1, [("grpc-status", "3")], end_stream=True)
    b.server.flush()
    await turns()
    assert b.peer.status(stream)[0] == 3
    assert b.peer.resets == {stream: 0}
    assert b.server.resets == {1: CANCEL}
    b.peer.raw(frame(frames.DATA, 0, stream, b"too late"))
    await b.end()


async def test_the_client_cancels(bridge):
    """Its reset goes on to the server."""
    b = await bridge()
    stream = b.open()
    await turns()
    b.peer.h2.reset_stream(stream, CANCEL)
    b.peer.flush()
    await turns()
    assert b.server.resets == {1: CANCEL}
    assert b.relays[0].ends == [None]
    await b.end()


async def test_the_client_goes_away(bridge):
    """Every stream of its connection is given up at the server."""
    b = await bridge()
    for _ in range(3):
        b.open()
    await turns()
    b.peer.transport.lose()
    await turns()
    assert b.server.resets == {1: CANCEL, 3: CANCEL, 5: CANCEL}
    await b.end()


async def test_the_server_resets(bridge):
    """The client gets a status that says so, before or behind the head."""
    b = await bridge()
    first, second = b.open(), b.open()
    await turns()
    b.server.h2.send_headers(3, HEAD[:2])
    b.server.h2.reset_stream(1, 7)
    b.server.h2.reset_stream(3, 2)
    b.server.flush()
    await turns()
    for stream, name in ((first, "REFUSED_STREAM"), (second, "INTERNAL_ERROR")):
        code, text = b.peer.status(stream)
        assert code == 14
        assert name in text
    errors = [relay.ends[0] for relay in b.relays]
    assert [type(error) for error in errors] == [StreamReset, StreamReset]
    assert [error.sent for error in errors] == [False, True]
    await b.end()


async def test_the_server_goes_away(bridge):
    """UNAVAILABLE, with the reason."""
    b = await bridge()
    stream = b.open()
    await turns()
    b.server.transport.lose(OSError("gone"))
    await turns()
    code, text = b.peer.status(stream)
    assert code == 14
    assert "gone" in text
    assert b.relays[0].ends[0] is not None
    await b.end()


async def test_what_was_sent_before_there_was_a_connection(bridge, memory):
    """It waits, counted, and goes out in order."""
    b = await bridge()
    b.server.transport.lose()
    memory.hold = asyncio.Event()
    stream = b.open()
    for i in range(5):
        b.peer.h2.send_data(stream, b"%d" % i * 100)
    b.peer.h2.end_stream(stream)
    b.peer.flush()
    await turns()
    assert b.relays[0].held == 5 * (100 + PART) + PART
    memory.hold.set()
    await turns(10)
    server = memory.dialled[-1]
    assert bytes(server.bodies[1]) == b"".join(b"%d" % i * 100 for i in range(5))
    assert server.ended == [1]
    assert b.relays[0].held == 0
    server.h2.send_headers(1, HEAD[:2])
    server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    server.flush()
    await turns()
    assert b.peer.status(stream)[0] == 0
    await b.end()


async def test_nobody_listens(bridge, memory):
    """UNAVAILABLE, and what waited is let go."""
    from haclient.errors import ConnectFailed

    b = await bridge()
    b.server.transport.lose()
    memory.error = ConnectFailed("refused")
    stream = b.open()
    b.peer.h2.send_data(stream, bytes(1_000))
    b.peer.flush()
    await turns(10)
    assert b.peer.status(stream)[0] == 14
    await b.end()


SMALL = Limits(stream_window_bytes=65_535, connection_window_bytes=65_535)


async def test_a_slow_client_holds_the_server_back(bridge):
    """What the client does not take, the server cannot send: one window of it waits here, no more."""
    b = await bridge(upstream=Limits(stream_window_bytes=65_535))
    b.peer.refill = False
    stream = b.open(end=True)
    await turns()
    b.server.h2.send_headers(1, HEAD[:2])
    sent = 0
    for _ in range(100):
        room = min(b.server.h2.local_flow_control_window(1), 16_384)
        if not room:
            break
        b.server.h2.send_data(1, bytes([sent % 251]) * room)
        sent += room
        b.server.flush()
        await turns()
    assert sent <= 3 * 65_535
    assert b.relays[0].peak <= 65_535 + 40 * PART
    expected = 0
    while expected < sent:
        b.peer.h2.acknowledge_received_data(min(30_000, len(b.peer.bodies[stream]) - expected), stream)
        expected = len(b.peer.bodies[stream])
        b.peer.flush()
        await turns()
    assert b.server.h2.local_flow_control_window(1) > 0
    b.server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    b.server.flush()
    await turns()
    assert b.peer.status(stream)[0] == 0
    assert len(b.peer.bodies[stream]) == sent
    await b.end()


async def test_a_slow_server_holds_the_client_back(bridge):
    """The same upwards."""
    b = await bridge(limits=SMALL)
    b.server.refill = False
    stream = b.open()
    sent = 0
    for _ in range(100):
        room = min(b.peer.h2.local_flow_control_window(stream), 16_384)
        if not room:
            break
        b.peer.h2.send_data(stream, bytes(room))
        sent += room
        b.peer.flush()
        await turns()
    assert sent <= 3 * 65_535
    assert b.relays[0].peak <= 65_535 + 40 * PART
    b.server.h2.increment_flow_control_window(1 << 20)
    b.server.h2.increment_flow_control_window(1 << 20, 1)
    b.server.flush()
    await turns()
    assert len(b.server.bodies[1]) == sent
    assert b.relays[0].held == 0
    assert b.peer.h2.local_flow_control_window(stream) > 0
    b.peer.h2.reset_stream(stream, CANCEL)
    b.peer.flush()
    await b.end()


async def test_trailers_wait_behind_the_last_part(bridge):
    """A client that takes its time gets everything, in order, though the server has long ended."""
    b = await bridge()
    b.peer.refill = False
    stream = b.open(end=True)
    await turns()
    b.server.h2.send_headers(1, HEAD[:2])
    body = bytes(range(250)) * 400
    for at in range(0, len(body), 10_000):
        b.server.h2.send_data(1, body[at : at + 10_000])
    b.server.h2.send_headers(1, [("grpc-status", "0"), ("x-t", "1")], end_stream=True)
    b.server.flush()
    await turns()
    assert b.relays[0].ends == [None]
    assert stream not in b.peer.ended
    while stream not in b.peer.ended:
        b.peer.h2.increment_flow_control_window(10_000)
        b.peer.h2.increment_flow_control_window(10_000, stream)
        b.peer.flush()
        await turns()
    assert bytes(b.peer.bodies[stream]) == body
    assert b.peer.trailers[stream] == {"grpc-status": "0", "grpc-message": "", "x-t": "1"}
    await b.end()


async def test_memory_that_runs_out_upwards(bridge):
    """RESOURCE_EXHAUSTED; both sides are ended and nothing stays held."""
    b = await bridge(most=100_000)
    b.server.refill = False
    stream = b.open()
    await turns()
    for _ in range(20):
        b.peer.h2.send_data(stream, bytes(10_000))
        b.peer.flush()
        await turns()
        if stream in b.peer.resets:
            break
    assert b.peer.status(stream) == (8, "full")
    assert b.server.resets == {1: CANCEL}
    await b.end()


async def test_memory_that_runs_out_downwards(bridge):
    """The server's side is given up; the client gets what waits, and then the status."""
    b = await bridge(most=100_000)
    b.peer.refill = False
    stream = b.open(end=True)
    await turns()
    b.server.h2.send_headers(1, HEAD[:2])
    for _ in range(20):
        b.server.h2.send_data(1, bytes(10_000))
    b.server.flush()
    await turns()
    assert b.server.resets == {1: CANCEL}
    while stream not in b.peer.ended:
        b.peer.h2.increment_flow_control_window(10_000)
        b.peer.h2.increment_flow_control_window(10_000, stream)
        b.peer.flush()
        await turns()
    assert b.peer.status(stream) == (8, "full")
    await b.end()


async def test_one_byte_at_a_time(bridge):
    """Parts that wait cost more than their bytes, and are counted so."""
    b = await bridge(most=100_000)
    b.server.refill = False
    stream = b.open()
    await turns()
    for _ in range(4):
        b.peer.h2.send_data(stream, bytes(16_384))
    b.peer.flush()
    sent = 0
    while stream not in b.peer.resets:
        b.peer.raw(frame(frames.DATA, 0, stream, b"x"))
        await turns(1)
        sent += 1
        assert sent < 1_000
    assert sent > 100
    await b.end()


async def test_the_deadline(bridge):
    """DEADLINE_EXCEEDED for the client, a reset for the server, which was told the time."""
    b = await bridge(timeout_s=0.05)
    stream = b.open()
    await turns()
    assert b.server.requests[1]["grpc-timeout"] == "50m"
    while stream not in b.peer.ended:
        await asyncio.sleep(0.01)
    assert b.peer.status(stream)[0] == 4
    assert b.server.resets == {1: CANCEL}
    await b.end()


async def test_a_time_of_nothing(bridge):
    """It is over before it begins."""
    b = await bridge(timeout_s=0.0)
    stream = b.open()
    await turns()
    assert b.peer.status(stream)[0] == 4
    assert 1 not in b.server.requests
    await b.end()


BROKEN = {
    "data before headers": (frame(0, 0, 1, b"x"), 13),
    "a second head": (frame(1, 4, 1, block(HEAD[:2])) * 2, 13),
    "no gRPC": (frame(1, 5, 1, block([(":status", "503"), ("content-type", "text/html")])), 14),
    "no status": (frame(1, 4, 1, block(HEAD[:2])) + frame(0, 1, 1, b"xx"), 2),
    "malformed headers": (frame(1, 4, 1, block([("A", "b")])), 14),
    "window update by nothing": (frame(8, 0, 1, bytes(4)), 14),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_server_that_breaks_the_rules(bridge, name):
    """The client gets a status of ours, and its connection is not touched."""
    wrong, code = BROKEN[name]
    b = await bridge()
    stream = b.open(end=True)
    await turns()
    b.server.raw(wrong)
    await turns()
    assert b.peer.status(stream)[0] == code
    assert b.relays[0].ends != [None] or code == 2
    b.open(end=True)
    await turns()
    assert len(b.relays) == 2
    b.peer.transport.lose()
    await b.end()


async def test_informational_heads_are_skipped(bridge):
    """1xx are of the hop."""
    b = await bridge()
    stream = b.open(end=True)
    await turns()
    b.server.raw(frame(1, 4, 1, block([(":status", "103")])))
    b.server.h2.send_headers(1, HEAD[:2])
    b.server.h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
    b.server.flush()
    await turns()
    assert b.peer.status(stream)[0] == 0
    await b.end()


async def test_data_behind_the_end(bridge):
    """STREAM_CLOSED for the client; the server hears of it."""
    b = await bridge()
    b.open(end=True)
    await turns()
    b.peer.h2 = Lenient()
    b.peer.raw(frame(frames.DATA, 0, 1, b"more"))
    await turns()
    assert b.peer.h2.resets == {1: 5}
    assert b.server.resets == {1: CANCEL}


async def test_sweeping_relays(bridge):
    """A silent stream may live; one whose answer is not taken may not."""
    b = await bridge()
    b.peer.refill = False
    silent, stuck = b.open(), b.open()
    await turns()
    b.server.h2.send_headers(3, HEAD[:2])
    for _ in range(8):
        b.server.h2.send_data(3, bytes(10_000))
    b.server.flush()
    await turns()
    now = b.peer.server.loop.time()
    for later in (0.0, 100.0, 131.0):
        b.peer.server.sweep(now + later, 10.0, 30.0)
    await turns()
    assert b.peer.resets == {stuck: CANCEL}
    assert b.server.resets == {3: CANCEL}
    assert silent in b.peer.server.streams
    b.peer.transport.lose()
    await b.end()


async def test_a_stream_that_is_now_and_then_slow(bridge):
    """Each part that waits has all the time of its own, however alike they are."""
    b = await bridge()
    b.peer.refill = False
    stream = b.open()
    await turns()
    b.server.h2.send_headers(1, HEAD[:2])
    b.server.h2.send_data(1, bytes(15_000))
    now = b.peer.server.loop.time()
    for later in (0.0, 1_000.0, 2_000.0):
        for _ in range(4):
            b.server.h2.send_data(1, bytes(16_000))
        b.server.flush()
        await turns()
        assert b.peer.server.streams[stream].outgoing is not None
        b.peer.server.sweep(now + later, 10.0, 30.0)
        b.peer.server.sweep(now + later + 29.0, 10.0, 30.0)
        for window in (None, stream):
            b.peer.h2.increment_flow_control_window(64_000, window)
        b.peer.flush()
        await turns()
        b.peer.server.sweep(now + later + 30.0, 10.0, 30.0)
    assert not b.peer.resets
    b.peer.transport.lose()
    await b.end()
