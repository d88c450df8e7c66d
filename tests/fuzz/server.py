"""Fuzz of the proxy's side of the wire: malformed frames, and requests that are none.

    python -m tests.fuzz.server --frames 1000000 --requests 100000 --seed 1

`fuzz` feeds a server's connection as `tests.fuzz.frames` feeds a client's: after every write no exception, bounded
buffers, bounded answers; at the end every call has ended exactly once, and nothing is held. `differential` feeds the
same valid bytes to an `h2` server and to ours. `requests` sends random messages to every method through the gateway
and a whole core: one answer each, and nothing escapes.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import logging
import random
import time

import h2.config
import h2.connection
import h2.events
import hpack

from haclient.call import Reply
from haclient.config import Config
from haclient.core import Core
from haclient.events import EventBus
from haclient.milvus.methods import METHODS
from haclient.proxy.admission import Admission
from haclient.proxy.gateway import Gateway
from haclient.proxy.head import HeadParser
from haclient.proxy.health import Health
from haclient.wire import Limits, frames
from haclient.wire.headers import encode_fields
from haclient.wire.incoming import IncomingCall, IncomingHttp
from haclient.wire.relay import RelayedStream
from haclient.wire.server import ServerConnection
from tests.fuzz.frames import Loop, Transport, how_it_ended, malformed
from tests.fuzz.frames import Session as Upstream
from tests.virtual_time import run

LIMITS = Limits(
    max_message_bytes=2**20,
    stream_window_bytes=65_535,
    connection_window_bytes=2**17,
    max_concurrent_streams=20,
    resets_burst=40,
    answers_burst=40,
)
HEAD = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/milvus.proto.milvus.MilvusService/Search"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
ANSWER = encode_fields(((":status", "200"), ("content-type", "application/grpc")))
OK = encode_fields((("grpc-status", "0"),))


class Ended:
    """Counts how a stream ends."""

    ends = 0
    held = 0

    def grow(self, size):
        self.held += size
        return self.held < 2**20

    def on_answered(self):
        self.ends += 1

    def on_cancelled(self):
        self.ends += 1


class Call(Ended, IncomingCall):
    """Echoes at once, or when the session says so."""

    def __init__(self, connection, head, later):
        super().__init__(connection)
        self.head, self.later = head, later

    def encoding(self):
        return self.head.encoding

    def on_message(self, message):
        if self.later is None:
            self.answer(ANSWER, message, OK)
        else:
            self.later.append((self, message))


class Request(Ended, IncomingHttp):
    """Plain HTTP, answered at once."""

    def on_whole(self):
        self.answer(200, (("server", "x"),), bytes(self.body))


class Relay(RelayedStream):
    """Passed through to a server that answers when the session says so."""

    ends = 0
    held = 0

    def __init__(self, connection, head, channel):
        super().__init__(connection)
        self.head, self.channel = head, channel

    def on_request(self, end):
        self.connect(self.channel, self.head.path, (), self.head.encoding, 60.0, self._ended)

    def _ended(self, error):
        self.ends += 1

    def hold(self, size):
        self.held += size
        return ""

    def release(self, size):
        self.held -= size
        assert self.held >= 0


class Session:
    """One connection of a client, with a server behind it."""

    def __init__(self, rng):
        self.rng = rng
        self.upstream = Upstream(calls=0)
        self.loop: Loop = self.upstream.loop
        self.calls, self.later, self.gone = [], [], 0
        self.connection = ServerConnection(self.loop, LIMITS, HeadParser(None, "db"), self.accept, self._gone)
        self.transport = Transport()
        self.connection.connection_made(self.transport)
        self.fed = 0
        self.feed(frames.PREFACE + frames.settings({}))

    def _gone(self, connection):
        self.gone += 1

    def accept(self, connection, head):
        if not head.grpc:
            call = Request(connection)
        elif head.path.endswith("Search"):
            call = Call(connection, head, self.rng.choice([None, self.later]))
        else:
            call = Relay(connection, head, self.upstream.channel)
        self.calls.append(call)
        return call

    def feed(self, data):
        self.fed += len(data)
        self.upstream.fed += len(data)  # relays write there what comes here
        if not self.transport.closing:
            self.connection.data_received(data)
            self.loop.run()
        self.check()

    def act(self):
        """Do one thing that is not the client's: answer, or have the upstream say something."""
        rng = self.rng
        what = rng.randrange(5)
        if what == 0 and self.later:
            call, message = self.later.pop(rng.randrange(len(self.later)))
            call.answer(ANSWER, message * rng.choice([1, 1, 3]), OK)
        elif what == 1 and not self.upstream.transport.closing:
            self.upstream.connection.data_received(malformed(rng, True))
        elif what == 2 and not self.transport.closing:
            self.connection.pause_writing()
        elif what == 3 and not self.transport.closing:
            self.connection.resume_writing()
        else:
            self.loop.now += rng.choice([0.1, 3.0])
            self.connection.sweep(self.loop.now, 10.0, 10.0)
        self.loop.run()
        self.check()

    def check(self):
        connection = self.connection
        assert not self.loop.errors, self.loop.errors
        assert len(connection._rest) <= LIMITS.max_frame_bytes + 9
        assert len(connection.streams) <= LIMITS.max_concurrent_streams
        assert set(connection._waiting) <= set(connection.streams)
        assert len(self.transport.written) <= 20_000 + 30 * self.fed
        assert len(connection._reader._cache) <= 1_024
        assert all(call.ends <= 1 for call in self.calls)

    def end(self):
        if not self.transport.closing:
            self.transport.close()
        self.connection.connection_lost(None)
        self.loop.run()
        self.check()
        assert self.gone == 1
        assert not self.connection.streams
        for call in self.calls:
            assert call.ends == 1, call
            assert not isinstance(call, Relay) or call.held == 0
        self.upstream.end()


def block(rng):
    """A header block of a request, right or wrong."""
    fields = rng.choice(
        [
            HEAD,
            HEAD,
            [*HEAD[:2], (":path", "/other.Service/Stream"), *HEAD[3:]],
            [*HEAD, ("grpc-encoding", rng.choice(["gzip", "deflate", "br"]))],
            [*HEAD, ("grpc-timeout", rng.choice(["1S", "x", "", "99999999H"]))],
            [("x", "trailer")],
            [(":method", "GET"), (":scheme", "http"), (":path", "/v2/x"), ("a", "b")],
            [*HEAD, ("Upper", "x")],
            [*HEAD, ("a", "b\n")],
            [*HEAD, (":late", "x")],
            [*HEAD, ("x", "v" * rng.randrange(3_000))],
            HEAD[1:],
            [],
        ]
    )
    encoded = hpack.Encoder().encode(fields)
    if rng.random() < 0.3:  # a field that differs from call to call, as gRPC's C-core writes it
        value = rng.choice([b"1", b"", rng.randbytes(9)])
        encoded += b"\0\x11client-request-id" + bytes([len(value)]) + value
    return encoded


def fuzz(count, seed):
    """Feed ``count`` malformed frames; return statistics."""
    rng = random.Random(seed)
    stats = collections.Counter()
    while stats["frames"] < count:
        session = Session(rng)
        gentle = rng.random() < 0.5
        stats["sessions"] += 1
        stream = 1
        for _ in range(60):
            if rng.random() < 0.25:
                data = frames.headers(stream, block(rng), end_stream=rng.random() < 0.2, max_frame_size=16_384)
                body = rng.randbytes(rng.randrange(60))
                if rng.random() < 0.5:
                    whole = b"\0" + len(body).to_bytes(4, "big") + body
                    data += frames.frame(frames.DATA, rng.randrange(2), stream, whole)
                stream += 2
            else:
                data = malformed(rng, gentle, block)
                stats["frames"] += 1
            if rng.random() < 0.2:
                cut = rng.randrange(len(data))
                session.feed(data[:cut])
                data = data[cut:]
            stats["bytes"] += len(data)
            session.feed(data)
            if rng.random() < 0.2:
                session.act()
            if session.transport.closing:
                break
        stats["calls"] += len(session.calls)
        stats["ended " + how_it_ended(session.transport.written)] += 1
        session.end()
    return stats


def differential(sequences, seed):
    """Compare what an `h2` server and ours make of the same valid bytes."""
    rng = random.Random(seed)
    for number in range(sequences):
        session = Keeping(rng)
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        judge = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        client.initiate_connection()
        judge.initiate_connection()
        judge.receive_data(client.data_to_send())
        client.receive_data(judge.data_to_send())
        client.data_to_send()
        state: dict[int, int] = {}
        for _ in range(rng.randrange(5, 60)):
            act = rng.randrange(9)
            open_ones = [stream for stream, ended in state.items() if not ended]
            if act == 0:
                client.ping(rng.randbytes(8))
            elif act == 1:
                client.update_settings({4: rng.randrange(2**20)})
            elif act == 2:
                client.increment_flow_control_window(rng.randrange(1, 1_000))
            elif act == 3 and open_ones:
                stream = rng.choice(open_ones)
                client.reset_stream(stream, rng.randrange(12))
                del state[stream]
            elif act in (4, 5) and open_ones:
                stream, end = rng.choice(open_ones), rng.random() < 0.5
                client.send_data(stream, rng.randbytes(rng.randrange(50)), end, rng.choice([None, 0, 9]))
                state[stream] = int(end)
            elif act == 6 and open_ones:
                stream = rng.choice(open_ones)
                client.send_headers(stream, [("t", str(rng.randrange(3)))], end_stream=True)
                state[stream] = 1
            elif len(state) < LIMITS.max_concurrent_streams:  # nothing is answered here
                stream, end = client.get_next_available_stream_id(), rng.random() < 0.2
                extra = [("n", str(rng.randrange(5))), ("client-request-id", str(rng.randrange(99)))]
                priority = {"priority_weight": 5} if rng.random() < 0.2 else {}
                client.send_headers(stream, [*HEAD, *extra], end_stream=end, **priority)
                state[stream] = int(end)
        data = client.data_to_send()
        expected: dict[int, list] = {}
        for event in judge.receive_data(data):
            stream = getattr(event, "stream_id", None)
            if isinstance(event, h2.events.RequestReceived):
                expected[stream] = [dict(event.headers), b"", "open"]
            elif isinstance(event, h2.events.DataReceived):
                expected[stream][1] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                expected[stream][2] = "ended"
            elif isinstance(event, h2.events.StreamReset):
                expected[stream][2] = "reset"
        while data:
            cut = rng.randrange(1, len(data) + 1)
            session.feed(data[:cut])
            data = data[cut:]
        assert not session.connection.closed
        assert len(session.calls) == len(expected)
        for call in session.calls:
            headers, body, how = expected[call.id]
            where = f"sequence {number}, stream {call.id}"
            assert dict(call.head.metadata)["n"] == headers["n"], where
            assert call.head.request_id == headers["client-request-id"], where
            assert (bytes(call.body), call.how) == (body, how), where


class Keeping(Session):
    """A session whose calls keep what they are sent."""

    def accept(self, connection, head):
        self.calls.append(Kept(connection, head))
        return self.calls[-1]


class Kept(Ended, IncomingHttp):
    """Keeps its body, whatever it is."""

    def __init__(self, connection, head):
        super().__init__(connection)
        self.head, self.how = head, "open"

    def on_whole(self):
        self.how = "ended"

    def on_reset(self, code):
        self.how = "reset"


# -- the gateway


class Server:
    """A transport to a server that answers with whatever comes to mind."""

    def __init__(self, rng):
        self.rng = rng
        self.loop = asyncio.get_running_loop()

    def start(self, path, message, metadata, timeout_s, done):
        rng = self.rng
        reply = rng.choice(
            [
                Reply(b""),
                Reply(message),
                Reply(rng.randbytes(rng.randrange(40))),
                Reply(mutated(rng, message)),
                Reply(b"", rng.randrange(17), "said \u20ac no", (("h\xe9", "\xe9"),), (("grpc-x", "1"),)),
            ]
        )
        return self.loop.call_soon(done, reply)

    def ping(self, done):
        self.loop.call_soon(done, 0.001)

    async def aclose(self):
        pass


def mutated(rng, message):
    """The same with something wrong about it."""
    out = bytearray(message)
    for _ in range(rng.randrange(4)):
        if out:
            at = rng.randrange(len(out))
            what = rng.randrange(3)
            if what == 0:
                out[at] ^= 1 << rng.randrange(8)
            elif what == 1:
                del out[at:]
            else:
                out[at:at] = rng.randbytes(rng.randrange(6))
    return bytes(out)


def varied(rng):
    """A message that looks like protobuf more often than not."""
    out = b""
    for _ in range(rng.randrange(6)):
        kind = rng.choice([0, 1, 2, 2, 2, 5, 3, 7])
        out += bytes([rng.randrange(1, 20) << 3 & 0x78 | kind])
        if kind == 0:
            out += rng.choice([b"\x01", rng.randbytes(1), b"\xff" * rng.randrange(12)])
        elif kind == 2:
            part = rng.choice([b"docs", b"", rng.randbytes(9), b"\xc3", varied(rng) if rng.random() < 0.3 else b"a"])
            out += bytes([rng.choice([len(part) & 0x7F, 0x7F])]) + part
        else:
            out += rng.randbytes(rng.choice([8, 4, 3]))
    return rng.choice([out, out, mutated(rng, out), rng.randbytes(rng.randrange(60))])


def requests(count, seed):
    """Send ``count`` random messages through the gateway and a core; return how they were answered."""
    return run(_requests(count, random.Random(seed)))


async def _requests(count, rng):
    loop = asyncio.get_running_loop()
    config = Config.load(None, {"cluster": [{"name": "c", "endpoints": ["http://a:1", "http://b:1"]}]})
    core = Core(config, lambda *_: Server(rng), EventBus(), rng, loop)
    await core.start()
    admission = Admission(config.proxy.limits, loop)
    gateway = Gateway(core, admission, Health(lambda: True), None)
    paths = [path for path, known in METHODS.items() if not known.streaming and "grpc.health" not in path]
    stats = collections.Counter()
    while stats["requests"] < count:
        connection = ServerConnection(loop, Limits(), HeadParser(None, ""), gateway.accept, lambda _: None)
        transport = Transport()
        connection.connection_made(transport)
        connection.data_received(frames.PREFACE + frames.settings({}))
        streams = range(1, 401, 2)
        for stream in streams:
            path = paths[stats["requests"] % len(paths)]
            fields = [*HEAD[:2], (":path", path), *HEAD[3:]]
            if rng.random() < 0.3:
                token = rng.choice(["x", "\xff", "Bearer", "Bearer \xe9", "cm9vdDpNaWx2dXM="])
                fields.append(("identifier", rng.choice(["", "7", "x" * 99])))
                fields.append(("authorization", token))
            message = varied(rng)
            body = b"\0" + len(message).to_bytes(4, "big") + message
            data = frames.headers(stream, encode_fields(fields), end_stream=False, max_frame_size=16_384)
            connection.data_received(data + frames.frame(frames.DATA, 1, stream, body))
            stats["requests"] += 1
        while connection.streams:
            await asyncio.sleep(1.0)
        assert how_it_ended(transport.written) == "open"
        for stream, (status, text) in answers(transport.written).items():
            assert stream in streams
            stats[f"grpc-status {status}"] += 1
            assert "Traceback" not in text
        assert len(answers(transport.written)) == len(streams)
        assert (admission.calls, admission.memory_bytes) == (0, 0)
        transport.close()
        connection.connection_lost(None)
    admission.close()
    await core.aclose()
    return stats


def answers(written):
    """The gRPC status and text of each stream that was ended."""
    found: dict[int, tuple[str, str]] = {}
    at = 0
    while at < len(written):
        size = int.from_bytes(written[at : at + 3], "big")
        kind, flags = written[at + 3], written[at + 4]
        stream = int.from_bytes(written[at + 5 : at + 9], "big")
        if kind == frames.HEADERS and flags & frames.END_STREAM:
            assert stream not in found, "answered twice"
            fields = dict(hpack.Decoder().decode(bytes(written[at + 9 : at + 9 + size]), raw=True))
            found[stream] = fields[b"grpc-status"].decode(), fields.get(b"grpc-message", b"").decode()
        at += 9 + size
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--sequences", type=int, default=2_000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    stats = fuzz(options.frames, options.seed)
    for name, value in sorted(stats.items()):
        print(f"{name:30} {value:>12,}")
    differential(options.sequences, options.seed)
    print(f"{'differential sequences':30} {options.sequences:>12,}")
    for name, value in sorted(requests(options.requests, options.seed).items()):
        print(f"{name:30} {value:>12,}")
    print(f"{'seconds':30} {time.perf_counter() - began:>12.1f}")


if __name__ == "__main__":
    main()
