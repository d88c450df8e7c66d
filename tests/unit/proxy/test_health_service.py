"""gRPC's health service: Check, and watchers who are told of every change, also late ones."""

import asyncio

import pytest

from haclient.proxy.head import HeadParser
from haclient.proxy.health import Health
from haclient.wire import Channel, Limits, Target, frames
from haclient.wire.frames import frame
from haclient.wire.server import ServerConnection
from tests.servers.proxy import behind, serving
from tests.servers.scripted import ScriptedMilvus, head_of

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


class Peer:
    """A client's connection without a network."""

    def __init__(self, settings=None):
        self.ready = True
        self.health = Health(lambda: self.ready)
        loop = asyncio.get_running_loop()
        accept = lambda connection, head: self.health.stream(connection, head.path)  # noqa: E731
        self.connection = ServerConnection(loop, Limits(), HeadParser(None, ""), accept, lambda _: None)
        self.written = bytearray()
        self.closing = False
        self.connection.connection_made(self)
        self.connection.data_received(frames.PREFACE + frames.settings(settings or {}))

    # -- the transport

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True

    def get_extra_info(self, name):
        return None

    # -- the client

    def ask(self, stream, path, body=b"\0\0\0\0\0"):
        self.connection.data_received(frame(frames.HEADERS, 4, stream, head_of(path)))
        self.connection.data_received(frame(frames.DATA, 1, stream, body))

    async def read(self, stream):
        """Return what has come on a stream: messages, and the trailers' status once they are here."""
        for _ in range(3):
            await asyncio.sleep(0)
        found, body, at = [], b"", 0
        while at < len(self.written):
            size = int.from_bytes(self.written[at : at + 3], "big")
            kind, flags = self.written[at + 3], self.written[at + 4]
            payload = bytes(self.written[at + 9 : at + 9 + size])
            if int.from_bytes(self.written[at + 5 : at + 9], "big") == stream:
                assert "end" not in found, "something behind the end"
                if kind == frames.DATA:
                    body += payload
                    while len(body) >= 7:
                        found.append(body[5:7])
                        body = body[7:]
                if flags & 1:
                    found += [payload.partition(b"grpc-status\x01")[2][:1].decode(), "end"]
            at += 9 + size
        return found


async def test_check():
    peer = Peer()
    peer.ask(1, CHECK)
    peer.ready = False
    peer.ask(3, CHECK, b"\0\0\0\0\x03\x0a\x01x")
    assert await peer.read(1) == [SERVING, "0", "end"]
    assert await peer.read(3) == [NOT_SERVING, "0", "end"], "whatever service is named"
    assert not peer.connection.streams


async def test_watch():
    """Told now, and of changes only."""
    peer = Peer()
    peer.ask(1, WATCH)
    peer.health.changed()
    peer.health.changed()
    assert await peer.read(1) == [SERVING]
    peer.ready = False
    peer.health.changed()
    peer.health.changed()
    peer.ask(3, WATCH)
    assert await peer.read(1) == [SERVING, NOT_SERVING]
    assert await peer.read(3) == [NOT_SERVING]


async def test_a_watcher_that_does_not_listen_is_told_when_it_does():
    """It missed a change, and must not go on believing what is over."""
    peer = Peer({4: 7})  # room for one message
    peer.ask(1, WATCH)
    for ready in (False, True):
        peer.ready = ready
        peer.health.changed()
    assert await peer.read(1) == [SERVING]
    peer.connection.data_received(frames.window_update(1, 70))
    assert await peer.read(1) == [SERVING, NOT_SERVING, SERVING]
    peer.ready = False
    peer.health.changed()
    assert await peer.read(1) == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_watchers_are_told_of_the_end():
    peer = Peer()
    peer.ask(1, WATCH)
    peer.health.close()
    assert await peer.read(1) == [SERVING, NOT_SERVING, "0", "end"]
    assert not peer.connection.streams


async def test_the_end_of_a_watcher_that_does_not_listen():
    """Nothing follows its trailers."""
    peer = Peer({4: 7})
    peer.ask(1, WATCH)
    peer.ready = False
    peer.health.changed()
    peer.health.close()
    peer.connection.data_received(frames.window_update(1, 70))
    assert await peer.read(1) == [SERVING, "0", "end"]
    assert not peer.connection._waiting


@pytest.mark.parametrize("how", ["reset", "lost"])
async def test_watchers_that_leave_are_forgotten(how):
    peer = Peer()
    peer.ask(1, WATCH)
    if how == "reset":
        peer.connection.data_received(frames.rst_stream(1, 8))
    else:
        peer.connection.connection_lost(None)
    assert not peer.health._watchers
    peer.ready = False
    peer.health.changed()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/grpc.health.v1.Health/List", b"\0\0\0\0\0", "1"),  # 12
        (CHECK, b"\0\0\0\0\1", "1"),  # 13, cut short
        (CHECK, b"\0\0\0\x13\x88" + bytes(5_000), "8"),
    ],
)
async def test_what_is_refused(path, body, status):
    peer = Peer()
    peer.ask(1, path, body)
    assert (await peer.read(1))[-2:] in ([status, "end"], ["", "end"])


async def test_through_a_proxy():
    """It serves while an endpoint is up; a stranger may ask, too, as probes of orchestrators do."""
    async with ScriptedMilvus() as milvus, serving(behind([milvus.uri], proxy={"tokens": ["x"]})) as (server, uri):
        channel = Channel(Target(host="127.0.0.1", port=int(uri.rpartition(":")[2])))
        stream = channel.stream(WATCH, (), None)
        await stream.send(b"")
        await stream.done_sending()
        assert await anext(stream) == SERVING
        draining = asyncio.create_task(server.drain(5.0))
        assert [message async for message in stream] == [NOT_SERVING]
        assert stream.status.code == 0
        assert await draining == 0
        await channel.aclose()
