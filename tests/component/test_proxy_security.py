"""Attacks on a proxy that serves: the attacker is refused or cut, others are served on, nothing is left behind."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from haclient.call import Reply
from haclient.proxy import server as server_module
from haclient.proxy.server import Server
from haclient.wire import Channel, Limits, Target, frames
from haclient.wire.frames import frame
from haclient.wire.headers import encode_fields
from haclient.wire.server import IncomingStream
from tests.servers.proxy import behind, serving
from tests.servers.scripted import REQUEST, RawClient, ScriptedMilvus, head_of, request

pytestmark = pytest.mark.both_loops

P, FC, REFUSED, CANCEL, CE, CALM = 1, 3, 7, 8, 9, 11
SEARCH = "/milvus.proto.milvus.MilvusService/Search"
#: A reply of a megabyte, as one field that nobody knows.
LARGE = Reply(b"\n\0\x7a\x80\x80\x40" + bytes(1 << 20))
#: What is allowed for slow things here, seconds.
SOON_S = 0.5


async def until(true: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)
    assert true(), what


class Bystander:
    """A client that behaves, and asks one thing after the other."""

    def __init__(self, port: int) -> None:
        self.channel = Channel(Target(host="127.0.0.1", port=port))
        self.replies: list[Any] = []
        self._asking = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            self.replies.append(await self.ask())

    async def ask(self, path: str = SEARCH, message: bytes = b"", metadata: Any = ()) -> Any:
        reply = asyncio.get_running_loop().create_future()
        self.channel.start(path, message, metadata, 20.0, reply.set_result)
        return await reply

    async def leave(self) -> None:
        """Stop asking; every question must have been answered well."""
        self._asking.cancel()
        await asyncio.gather(self._asking, return_exceptions=True)
        await self.channel.aclose()
        bad = [reply for reply in self.replies if not isinstance(reply, Reply) or reply.code]
        assert not bad, bad[:3]
        assert self.replies


class Siege:
    """A proxy under attack.

    Attributes:
        server: The proxy.
        milvus: The server behind it; its Query never answers.
        others: A client that is not to notice anything.
    """

    def __init__(self, server: Server, port: int, milvus: ScriptedMilvus) -> None:
        self.server, self.port, self.milvus = server, port, milvus
        self.others = Bystander(port)
        self.attackers: list[RawClient] = []

    async def attacker(self, settings: dict[int, int] | None = None, **options: Any) -> RawClient:
        self.attackers.append(await RawClient.open(self.port, settings, **options))
        return self.attackers[-1]

    async def served(self, more: int = 20) -> None:
        """Wait until others have been served some more."""
        goal = len(self.others.replies) + more
        await until(lambda: len(self.others.replies) >= goal, "others are served")


@pytest.fixture
def siege(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.05)

    @asynccontextmanager
    async def make(limits: dict[str, Any] | None = None, upstream: Limits | None = None) -> AsyncIterator[Siege]:
        before = len(asyncio.all_tasks())
        async with ScriptedMilvus(limits=upstream) as milvus:
            milvus.script.script["Query"] = None
            given = {"limits": {"lag_s": 30.0, **(limits or {})}}
            async with serving(behind([milvus.uri], proxy=given)) as (server, uri):
                one = Siege(server, int(uri.rpartition(":")[2]), milvus)
                await one.served(5)
                yield one
                await one.served()
                for attacker in one.attackers:
                    attacker.close()
                await one.others.leave()
                await until(lambda: server.connections == 0, "connections are forgotten")
                await until(lambda: milvus.open == 0, "calls are given up upstream")
                assert (server.calls, server.memory_bytes) == (0, 0)
        await until(lambda: len(asyncio.all_tasks()) <= before, "no task is left")

    return make


def each(make: Callable[[int], bytes], count: int = 1_200) -> bytes:
    return b"".join([make(stream) for stream in range(1, 2 * count, 2)])


FLOODS = {
    "rapid reset (CVE-2023-44487)": each(lambda i: request(i) + frames.rst_stream(i, CANCEL)),
    "made to reset (CVE-2025-8671)": each(lambda i: request(i) + frame(frames.WINDOW_UPDATE, 0, i, bytes(4))),
    "made to reset by data behind the end": each(lambda i: request(i) + frame(frames.DATA, 0, i, b"x")),
    "continuation (CVE-2024-27316)": frame(frames.HEADERS, 0, 1, b"") + frame(frames.CONTINUATION, 0, 1, b"") * 200,
    "continuation with bytes": frame(1, 0, 1, REQUEST) + frame(9, 0, 1, bytes(10_000)) * 50,
    "settings (CVE-2019-9515)": frame(frames.SETTINGS, 0, 0) * 3_000,
    "large settings (CVE-2020-11080)": frame(frames.SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff" * 10_000) * 3,
    "ping (CVE-2019-9512)": frame(frames.PING, 0, 0, bytes(8)) * 3_000,
    "empty data (CVE-2019-9518)": request(1, end=False) + frame(frames.DATA, 0, 1) * 20_000,
    "priority (CVE-2019-9513)": frame(frames.PRIORITY, 0, 1, bytes(5)) * 20_000,
    "unknown frames": frame(77, 0, 0, b"x") * 20_000,
    "window updates": frames.window_update(0, 1) * 20_000,
    "window updates of a closed stream": request(1)
    + frames.rst_stream(1, CANCEL)
    + frames.window_update(1, 1) * 20_000,
    "resets of a closed stream": request(1) + frames.rst_stream(1, CANCEL) * 20_000,
    "goaway": frames.goaway(0, 0) * 20_000,
    "hpack bomb": frame(1, 4, 1, b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4_000 + b"\xbe" * 15_000),
    "a huge header list": frame(1, 4, 1, encode_fields([("a", "v" * 4_000)] * 15 + [("b", "")] * 200)),
    "zero-length headers (CVE-2019-9516)": each(lambda i: frame(1, 5, i, REQUEST + b"\0\0\0" * 100)),
    "too many streams": each(lambda i: request(i, end=False), 3_000),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods(siege: Any, name: str) -> None:
    """ENHANCE_YOUR_CALM; what was begun upstream is given up there, too."""
    async with siege() as one:
        attacker = await one.attacker()
        attacker.send(FLOODS[name])
        assert await attacker.goaway() == CALM
        assert await attacker.ended()
        assert one.server.calls <= 1


async def test_rapid_reset_gives_up_upstream(siege: Any) -> None:
    """As many calls are given up at the server as were begun there: none stays behind."""
    async with siege() as one:
        attacker = await one.attacker()
        for stream in range(1, 401, 2):
            attacker.send(request(stream))
        await until(lambda: one.server.calls >= 200, "they are under way")
        for stream in range(1, 401, 2):
            attacker.send(frames.rst_stream(stream, CANCEL))
        await until(lambda: one.server.calls <= 1, "they are given up")
        await until(lambda: one.milvus.cancelled >= 200, "they are given up at the server")


async def test_table_thrash(siege: Any) -> None:
    """A new entry in the table with every request: served, and nothing grows."""
    async with siege() as one:
        one.milvus.script.script["Query"] = Reply(b"")
        attacker = await one.attacker()
        for stream in range(1, 1_001, 2):
            name = b"n%04d" % (stream % 997)
            attacker.send(request(stream, block=REQUEST + b"\x40" + bytes([len(name)]) + name + b"\x01v"))
        assert await attacker.until(frames.HEADERS, 999) is not None
        (connection,) = [c for c in one.server._connections if c.last_peer_id == 999]
        assert len(connection._reader._cache) <= 1


async def test_streams_beyond_the_limit(siege: Any) -> None:
    """REFUSED_STREAM; the ones before are not touched."""
    async with siege({"streams": 10}) as one:
        attacker = await one.attacker()
        attacker.send(each(request, 11))
        payload = await attacker.until(frames.RST_STREAM)
        assert payload == REFUSED.to_bytes(4, "big")
        assert attacker.frames[-1][2] == 21
        await until(lambda: one.server.calls >= 10, "the others are under way")


# -- slow


def nothing() -> bytes:
    return b""


def part_of_the_preface() -> bytes:
    return frames.PREFACE[:10]


def preface_alone() -> bytes:
    return frames.PREFACE


def part_of_a_frame() -> bytes:
    return frames.PREFACE + frames.settings({}) + b"\0\0"


def headers_without_end() -> bytes:
    return frames.PREFACE + frames.settings({}) + frame(frames.HEADERS, 0, 1, REQUEST[:5])


SLOW = [nothing, part_of_the_preface, preface_alone, part_of_a_frame, headers_without_end]


@pytest.mark.parametrize("what", SLOW)
async def test_slow_beginnings(siege: Any, what: Callable[[], bytes]) -> None:
    """Who does not finish what it has begun is cut, each of many."""
    async with siege({"request_s": SOON_S}) as one:
        attackers = [await RawClient.connect(one.port) for _ in range(20)]
        one.attackers += attackers
        for attacker in attackers:
            attacker.send(what())
        await until(lambda: one.server.connections >= 21, "they are here")
        assert all([await attacker.ended() for attacker in attackers])
        await until(lambda: one.server.connections == 1, "they are forgotten")


async def test_slow_bodies(siege: Any) -> None:
    """Slowloris: a byte now and then does not keep a request alive; the connection may go on."""
    async with siege({"request_s": SOON_S}) as one:
        attacker = await one.attacker()
        attacker.send(frame(frames.HEADERS, 4, 1, REQUEST) + frame(frames.DATA, 0, 1, b"\0\0\0\x20\0"))
        reset = asyncio.create_task(attacker.until(frames.RST_STREAM, 1))
        while not reset.done():
            attacker.send(frame(frames.DATA, 0, 1, b"x"))
            await asyncio.sleep(SOON_S / 10)
        assert await reset == CANCEL.to_bytes(4, "big")
        one.milvus.script.script["Query"] = Reply(b"")
        attacker.send(request(3))
        assert await attacker.until(frames.HEADERS, 3) is not None


# -- clients that do not read


async def test_windows_of_nothing(siege: Any) -> None:
    """Answers that may not be sent are held, counted, and thrown away in time (CVE-2019-9517)."""
    async with siege({"reply_s": SOON_S}) as one:
        one.milvus.script.script["Query"] = LARGE
        attacker = await one.attacker({4: 0})
        attacker.send(each(request, 20))
        await until(lambda: one.server.memory_bytes > 20 << 20, "they are held")
        resets = 0
        while resets < 20:
            assert await attacker.until(frames.RST_STREAM) == CANCEL.to_bytes(4, "big")
            resets += 1
        await until(lambda: one.server.memory_bytes < 1 << 20, "they are thrown away")


async def test_dribble(siege: Any) -> None:
    """CVE-2019-9511: windows that open byte by byte keep nothing alive."""
    async with siege({"reply_s": SOON_S}) as one:
        one.milvus.script.script["Query"] = LARGE
        attacker = await one.attacker({4: 0})
        attacker.send(each(request, 5))
        ended = asyncio.create_task(attacker.until(frames.RST_STREAM, 1))
        while not ended.done():
            attacker.send(each(lambda i: frames.window_update(i, 1), 5))
            await asyncio.sleep(0.02)
        assert await ended == CANCEL.to_bytes(4, "big")
        await until(lambda: one.server.memory_bytes < 1 << 20, "they are thrown away")


async def test_a_socket_that_nobody_reads(siege: Any) -> None:
    """All windows are open and the socket is full: the connection is cut, and what it held is free."""
    async with siege({"reply_s": SOON_S}) as one:
        one.milvus.script.script["Query"] = LARGE
        attacker = await one.attacker({4: 2**31 - 1}, small=True)
        attacker.send(frames.window_update(0, 2**31 - 65_536) + each(request, 20))
        await until(lambda: one.server.memory_bytes > 10 << 20, "they are held")
        await until(lambda: one.server.connections == 1, "it is cut")
        assert one.server.memory_bytes < 1 << 20


async def test_answers_that_nobody_reads(siege: Any) -> None:
    """Requests that are refused at once, from one who does not read: answers do not pile up."""
    async with siege() as one:
        attacker = await one.attacker(small=True)
        await until(lambda: one.server.connections == 2, "it is here")
        stream = 1
        async with asyncio.timeout(20):
            while one.server.connections == 2:
                for one_more in range(stream, stream + 400, 2):
                    attacker.send(frame(frames.HEADERS, 5, one_more, REQUEST))
                stream += 400
                await asyncio.sleep(0)
        assert one.server.memory_bytes < 1 << 20


async def test_last_words_that_nobody_reads(siege: Any) -> None:
    """GOAWAY does not get through a full socket: the place of the connection is free again all the same."""
    async with siege({"reply_s": SOON_S}) as one:
        one.milvus.script.script["Query"] = LARGE
        attacker = await one.attacker({4: 2**31 - 1}, small=True)
        attacker.send(frames.window_update(0, 2**31 - 65_536) + each(request, 20))
        await until(lambda: one.server.memory_bytes > 10 << 20, "they are held")
        attacker.send(frame(frames.DATA, 0, 0, b"wrong"))
        await until(lambda: one.server.connections == 1, "it is cut")


# -- too much


async def test_too_many_connections(siege: Any) -> None:
    """One more than the limit is turned away at once; one that goes makes room."""
    async with siege({"connections": 5}) as one:
        for _ in range(4):
            await one.attacker()
        await until(lambda: one.server.connections == 5, "they are here")
        late = await one.attacker()
        assert await late.ended()
        assert late.frames == []
        one.attackers[0].close()
        await until(lambda: one.server.connections == 4, "one has gone")
        again = await one.attacker()
        assert await again.until(frames.SETTINGS) is not None


async def test_memory_in_flight(siege: Any) -> None:
    """Requests beyond the memory are refused with RESOURCE_EXHAUSTED; those who need little are served on."""
    async with siege({"memory_bytes": 4 << 20, "request_s": SOON_S}) as one:
        attacker = await one.attacker()
        for stream in (1, 3, 5, 7, 9):
            attacker.send(frame(frames.HEADERS, 4, stream, REQUEST) + frame(frames.DATA, 0, stream, b"\0\0\x20\0\0"))
            attacker.send(frame(frames.DATA, 0, stream, bytes(60_000)) * 17)
        refused = await attacker.until(frames.HEADERS)
        assert refused is not None
        assert b"grpc-status\x018" in refused
        assert one.server.memory_bytes <= 4 << 20
        assert one.server.shed >= 1
        await until(lambda: one.server.memory_bytes < 1 << 20, "slow requests do not hold it for ever")


async def test_a_huge_message_is_refused_at_its_announcement(siege: Any) -> None:
    """Five bytes are enough to know."""
    async with siege() as one:
        attacker = await one.attacker()
        attacker.send(frame(frames.HEADERS, 4, 1, REQUEST) + frame(frames.DATA, 0, 1, b"\0\xff\xff\xff\xff"))
        refused = await attacker.until(frames.HEADERS, 1)
        assert refused is not None
        assert b"grpc-status\x018" in refused
        assert await attacker.until(frames.RST_STREAM, 1) == bytes(4)


async def test_a_compressed_bomb(siege: Any) -> None:
    """A hundred megabytes in a hundred kilobytes are refused when the memory in flight is reached."""
    async with siege({"memory_bytes": 8 << 20}) as one:
        attacker = await one.attacker()
        packed = gzip.compress(bytes(100 << 20), 9)
        whole = b"\1" + len(packed).to_bytes(4, "big") + packed
        attacker.send(frame(frames.HEADERS, 4, 1, REQUEST + encode_fields((("grpc-encoding", "gzip"),))))
        for at in range(0, len(whole), 16_000):
            attacker.send(frame(frames.DATA, int(at + 16_000 >= len(whole)), 1, whole[at : at + 16_000]))
        refused = await attacker.until(frames.HEADERS, 1)
        assert refused is not None
        assert b"grpc-status\x018" in refused
        assert one.server.memory_bytes < 1 << 20


async def test_calls_beyond_the_limit(siege: Any) -> None:
    """RESOURCE_EXHAUSTED, at once, and only for as long as there are too many."""
    async with siege({"calls": 50}) as one:
        attacker = await one.attacker()
        attacker.send(each(request, 49))
        await until(lambda: one.server.calls >= 49, "they are under way")
        attacker.send(each(lambda i: request(i + 98), 3))
        refused = await attacker.until(frames.HEADERS)
        assert refused is not None
        assert b"grpc-status\x018" in refused
        attacker.close()
        await until(lambda: one.server.calls <= 1, "they are given up")
        one.others.replies.clear()  # some of theirs may have been refused, too


# -- leaving


@pytest.mark.parametrize("how", ["closes", "resets", "shuts down", "goes away"])
async def test_clients_that_leave(siege: Any, how: str) -> None:
    """Calls under way are given up at the server, however a client leaves."""
    async with siege() as one:
        attacker = await one.attacker()
        attacker.send(each(request, 30))
        await until(lambda: one.server.calls >= 30, "they are under way")
        if how == "closes":
            attacker.writer.close()
        elif how == "resets":
            attacker.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            attacker.close()
        elif how == "shuts down":
            attacker.writer.write_eof()
        else:
            attacker.send(frames.goaway(0, 0) + each(lambda i: frames.rst_stream(i, CANCEL), 30))
        await until(lambda: one.server.calls <= 1, "they are given up")
        await until(lambda: one.milvus.cancelled >= 30, "they are given up at the server")


# -- relays


STREAM = "/milvus.proto.other.Service/Flood"


class Flood(IncomingStream):
    """A server that sends as much as it is let, and counts it."""

    sent = 0
    hurried = False

    def on_request(self, end: bool) -> None:
        self.respond(encode_fields(((":status", "200"), ("content-type", "application/grpc"))), end=False)
        self.on_sendable()

    def on_sendable(self) -> None:
        while self.outgoing is None and self.id in self.connection.streams:
            Flood.sent += 50_000
            self.connection.send_data(self, (bytes(50_000),), 50_000, False)

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        self.remote_closed = end

    def on_reset(self, code: int) -> None:
        Flood.sent = -1

    def on_gone(self, error: Exception) -> None:
        Flood.sent = -1


async def test_a_slow_reader_of_a_stream(siege: Any) -> None:
    """It holds the server back: a few windows wait, counted, and the stream ends when its time is over."""
    async with siege({"reply_s": 2 * SOON_S}) as one:
        Flood.sent = 0
        one.milvus.streams[STREAM] = Flood
        attacker = await one.attacker({4: 0})
        attacker.send(request(1, block=head_of(STREAM)))
        await until(lambda: one.server.memory_bytes > 4 << 20, "a window is held")
        await one.served(50)
        assert one.server.memory_bytes < 6 << 20
        assert 0 < Flood.sent < 16 << 20
        assert await attacker.until(frames.RST_STREAM, 1) == CANCEL.to_bytes(4, "big")
        await until(lambda: Flood.sent == -1, "the server is told")


async def test_sending_to_a_stream_that_is_not_read(siege: Any) -> None:
    """What waits for a slow server is held in the memory in flight, byte by byte."""

    class Deaf(Flood):
        def on_sendable(self) -> None:
            pass

        def on_data(self, data: bytes, size: int, end: bool) -> None:
            pass  # and gives nothing back

    async with siege({"memory_bytes": 3 << 20}, upstream=Limits(stream_window_bytes=65_535)) as one:
        one.milvus.streams[STREAM] = Deaf
        attacker = await one.attacker()
        attacker.send(frame(frames.HEADERS, 4, 1, head_of(STREAM)))
        for _ in range(32):
            attacker.send(frame(frames.DATA, 0, 1, bytes(65_000)))
        attacker.send(frame(frames.DATA, 0, 1, b"x") * 20_000)
        while (one_frame := await attacker.next()) is not None:
            if one_frame[0] == frames.HEADERS and one_frame[1] & 1:
                break
        assert one_frame is not None
        assert b"grpc-status\x018" in one_frame[3]
        assert one.server.memory_bytes <= 3 << 20
