"""Fuzz of the client's frame parser: malformed frames in, nothing but an orderly GOAWAY out.

    python -m tests.fuzz.frames --frames 1000000 --seed 1

Every session is one connection with calls under way, fed with frames that are valid, mutated, cut, or noise.
After every write: no exception, bounded buffers, bounded answers; at the end every call has ended exactly once.
`differential` feeds valid sequences made by an `h2` server to an `h2` client and to ours and compares what they say.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
import time

import h2.config
import h2.connection
import h2.events
import hpack

from haclient.call import Reply
from haclient.errors import StreamReset, WireError
from haclient.wire import Channel, Limits, Target, frames, grpc
from haclient.wire.client import ClientConnection

LIMITS = Limits(max_message_bytes=2**20, stream_window_bytes=65_535, connection_window_bytes=2**17)
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
PATH = "/a.B/C"


class Loop:
    """Just enough of a loop, and one that runs nothing by itself."""

    def __init__(self):
        self.ready = collections.deque()
        self.errors = []
        self.now = 1.0

    def time(self):
        return self.now

    def get_debug(self):
        return False

    def call_soon(self, function, *args, context=None):
        self.ready.append((function, args))

    def call_at(self, when, function, *args):
        return self

    call_later = call_at

    def cancel(self):
        pass

    def create_future(self):
        return asyncio.Future(loop=self)

    def create_task(self, coroutine):
        coroutine.close()
        return self

    def add_done_callback(self, function):
        pass

    def __hash__(self):
        return id(self)

    def call_exception_handler(self, context):
        self.errors.append(context)

    def run(self):
        for _ in range(10_000):
            if not self.ready:
                return
            function, args = self.ready.popleft()
            function(*args)
        raise AssertionError("the loop does not come to rest")


class Transport:
    def __init__(self):
        self.written = bytearray()
        self.closing = False

    def write(self, data):
        assert not self.closing
        self.written += data

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    abort = close

    def get_extra_info(self, name, default=None):
        return None


class Session:
    """One connection with calls under way."""

    def __init__(self, calls=4):
        self.loop = Loop()
        self.channel = Channel(Target(host="x"), loop=self.loop)
        self.connection = ClientConnection(self.loop, LIMITS, "x", self.channel)
        self.transport = Transport()
        self.connection.connection_made(self.transport)
        self.connection.data_received(frames.settings({}))
        self.channel._open.append(self.connection)
        self.outcomes = [[] for _ in range(calls)]
        for got in self.outcomes:
            self.channel.start(PATH, b"?", (), 30.0, got.append)
        self.stream = self.channel.stream(PATH, (), None)
        self.loop.run()
        self.fed = 0

    def feed(self, data):
        self.fed += len(data)
        if not self.transport.closing:
            self.connection.data_received(data)
            self.loop.run()
        self.check()

    def check(self):
        connection = self.connection
        assert not self.loop.errors, self.loop.errors
        assert len(connection._rest) <= LIMITS.max_frame_bytes + 9
        assert (
            connection._block is None
            or len(connection._block) <= LIMITS.max_header_block_bytes + LIMITS.max_frame_bytes
        )
        assert len(self.transport.written) <= 2_000 + 4 * self.fed
        assert len(connection.streams) <= 5
        assert len(connection._reader._cache) <= 1_024
        assert len(self.stream._buffer) + self.stream._held <= self.fed
        assert all(len(got) <= 1 for got in self.outcomes)

    def end(self):
        if not self.transport.closing:
            self.transport.close()
        self.connection.connection_lost(None)
        self.loop.run()
        for stream in list(self.channel.queue):
            stream.on_gone(WireError("end", sent=False))
        self.check()
        assert all(len(got) == 1 for got in self.outcomes), self.outcomes
        assert self.stream.settled
        assert not len(self.channel.deadlines)


def block(rng):
    fields = rng.choice(
        [
            HEAD,
            [("grpc-status", "0")],
            [("grpc-status", "x"), ("grpc-message", "%zz%")],
            [(":status", "103")],
            [(":status", "500"), ("content-type", "text/html")],
            [("Upper", "x")],
            [("a", "b\n")],
            [(":path", "/")],
            [("x", "v" * rng.randrange(3_000))],
            [],
        ]
    )
    return hpack.Encoder().encode(fields)


def payload(rng, kind, block=block):
    if kind == frames.DATA:
        size = rng.choice([0, 1, 5, 20, 300])
        return rng.choice(
            [b"\0" + size.to_bytes(4, "big") + bytes(size), b"\1\0\0\0\1x", bytes(size), b"\0\xff\xff\xff\xff"]
        )
    if kind in (frames.HEADERS, frames.CONTINUATION, frames.PUSH_PROMISE):
        return block(rng)
    if kind == frames.SETTINGS:
        return b"".join(
            rng.choice([0, 1, 2, 3, 4, 5, 6, 99]).to_bytes(2, "big")
            + rng.choice([0, 1, 100, 16_384, 65_535, 2**24 - 1, 2**31 - 1, 2**32 - 1]).to_bytes(4, "big")
            for _ in range(rng.randrange(4))
        )
    size = {frames.PRIORITY: 5, frames.RST_STREAM: 4, frames.PING: 8, frames.GOAWAY: 8, frames.WINDOW_UPDATE: 4}
    return bytes(rng.choice([0, 0, 1, 127, 255]) for _ in range(size.get(kind, rng.randrange(30))))


def malformed(rng, gentle, block=block):
    """One frame with something wrong, or odd, about it; a gentle one seldom ends the connection.

    ``block`` makes the header blocks.
    """
    kind = rng.choice([0, 0, 0, 1, 3, 8, 10, 77] if gentle else [0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 77, 255])
    body = bytearray(payload(rng, kind, block))
    how = rng.randrange(7)
    if how == 0 and body:
        del body[rng.randrange(len(body)) :]
    elif how == 1:
        body += rng.randbytes(rng.randrange(1, 9))
    elif how == 2 and body:
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    elif how == 3:
        body = bytearray(rng.randbytes(rng.randrange(40)))
    stream_id = rng.choice([1, 3, 5, 7, 9] if gentle else [0, 1, 3, 5, 7, 9, 9, 2, 11, 999, 2**31 - 1, 2**31 + 1])
    flags = rng.choice([0, 1, 4, 4, 5, 5, 8, 9, 12, 13, 0x24, 0x2D, rng.randrange(256)])
    data = bytearray(frames.frame(kind, flags, stream_id, bytes(body)))
    if how == 4:
        data[rng.randrange(9)] ^= 1 << rng.randrange(8)
    elif how == 5 and not gentle:
        data[:3] = rng.choice([0, 1, 4, 16_384, 65_536, 65_537, 2**24 - 1]).to_bytes(3, "big")
    return bytes(data)


def how_it_ended(written):
    """Read the frames that were written; the name of GOAWAY's code, or "open"."""
    at, code = 0, None
    while at < len(written):
        size = int.from_bytes(written[at : at + 3], "big")
        if written[at + 3] == frames.GOAWAY:
            code = int.from_bytes(written[at + 13 : at + 17], "big")
        at += 9 + size
    assert at == len(written), "half a frame was written"
    return "open" if code is None else frames.error_name(code)


def fuzz(count, seed):
    """Feed ``count`` malformed frames; return statistics."""
    rng = random.Random(seed)
    stats = collections.Counter()
    while stats["frames"] < count:
        session = Session()
        gentle = rng.random() < 0.5
        stats["sessions"] += 1
        for _ in range(60):
            if rng.random() < 0.1:
                data = frames.headers(
                    rng.choice([1, 3, 5, 7, 9]), hpack.Encoder().encode(HEAD), end_stream=False, max_frame_size=16_384
                )
            else:
                data = malformed(rng, gentle)
                stats["frames"] += 1
            if rng.random() < 0.2:
                cut = rng.randrange(len(data))
                session.feed(data[:cut])
                data = data[cut:]
            stats["bytes"] += len(data)
            session.feed(data)
            if session.transport.closing:
                break
        stats["ended " + how_it_ended(session.transport.written[len(frames.PREFACE) :])] += 1
        session.end()
    return stats


def differential(sequences, seed):
    """Compare what an `h2` client and ours make of the same valid bytes."""
    rng = random.Random(seed)
    for number in range(sequences):
        ours = Session()
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        client.initiate_connection()
        ids = (1, 3, 5, 7)
        for stream_id in ids:
            client.send_headers(
                stream_id,
                [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "x")],
                end_stream=True,
            )
        server.initiate_connection()
        server.receive_data(client.data_to_send())
        state = dict.fromkeys(ids, 0)
        for _ in range(rng.randrange(5, 40)):
            stream_id = rng.choice(ids)
            act = rng.randrange(8)
            if act == 0:
                server.ping(rng.randbytes(8))
            elif act == 1:
                server.update_settings({3: rng.randrange(1, 100), 4: rng.randrange(2**20)})
            elif act == 2 and state[stream_id] >= 0:
                server.reset_stream(stream_id, rng.randrange(12))
                state[stream_id] = -1
            elif state[stream_id] == 0:
                server.send_headers(stream_id, [*HEAD, ("n", str(rng.randrange(5)))])
                state[stream_id] = 1
            elif state[stream_id] == 1:
                body = rng.randbytes(rng.randrange(50))
                server.send_data(
                    stream_id, b"\0" + len(body).to_bytes(4, "big") + body, pad_length=rng.choice([None, 0, 9])
                )
                state[stream_id] = 2
            elif state[stream_id] == 2:
                server.send_headers(stream_id, [("grpc-status", "0"), ("t", str(rng.randrange(3)))], end_stream=True)
                state[stream_id] = -1
        data = server.data_to_send()
        expected = {stream_id: {"body": b"", "headers": None, "end": None} for stream_id in ids}
        for event in client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                expected[event.stream_id]["headers"] = tuple(map(tuple, event.headers))[2:]
            elif isinstance(event, h2.events.DataReceived):
                expected[event.stream_id]["body"] += event.data
            elif isinstance(event, h2.events.TrailersReceived):
                expected[event.stream_id]["end"] = tuple(map(tuple, event.headers))[1:]
            elif isinstance(event, h2.events.StreamReset):
                expected[event.stream_id]["end"] = int(event.error_code)
        while data:
            cut = rng.randrange(1, len(data) + 1)
            ours.feed(data[:cut])
            data = data[cut:]
        assert not ours.connection.closed
        for stream_id, got in zip(ids, ours.outcomes, strict=True):
            want = expected[stream_id]
            where = f"sequence {number}, stream {stream_id}"
            if want["end"] is None:
                assert not got, where
            elif isinstance(want["end"], int):
                assert isinstance(got[0], StreamReset), where
                assert got[0].code == want["end"], where
            else:
                assert got == [Reply(want["body"][5:], grpc.OK, "", want["headers"], want["end"])], where
        ours.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--sequences", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.perf_counter()
    stats = fuzz(options.frames, options.seed)
    for name, value in sorted(stats.items()):
        print(f"{name:30} {value:>12,}")
    differential(options.sequences, options.seed)
    print(f"{'differential sequences':30} {options.sequences:>12,}")
    print(f"{'seconds':30} {time.perf_counter() - began:>12.1f}")


if __name__ == "__main__":
    main()
