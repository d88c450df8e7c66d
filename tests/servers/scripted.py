"""A scripted Milvus on loopback, and HTTP/2 clients that do as they please.

The server gives the answers of `tests.unit.fleet.fleet_fakes.Server` over a real socket, so that a test can say what a
whole proxy meets upstream.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from haclient.call import Reply
from haclient.drill.servers.process import HOST
from haclient.proxy.head import Head, HeadParser
from haclient.wire import Limits, frames, grpc
from haclient.wire.headers import encode_fields
from haclient.wire.incoming import IncomingCall
from haclient.wire.server import IncomingStream, ServerConnection, passed_on
from tests.unit.fleet.fleet_fakes import Request, Server

_HEAD = encode_fields(((":status", "200"), ("content-type", "application/grpc")))


class ScriptedMilvus:
    """A server whose answers are scripted.

    Attributes:
        limits: What its clients may do.
        script: What it answers, and what it has been asked.
        streams: Path to what makes the stream of a request, instead of a unary call.
        open: Calls under way.
        cancelled: Calls that were given up.
        connections: Its clients' connections.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, limits: Limits | None = None) -> None:
        self.script = Server()
        self.limits = limits or Limits()
        self.streams: dict[str, Callable[[Any], IncomingStream]] = {}
        self.open = 0
        self.cancelled = 0
        self.connections: list[ServerConnection[Head]] = []
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None

    @property
    def uri(self) -> str:
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    async def __aenter__(self) -> ScriptedMilvus:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, HOST, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            connection.close()
        await self._server.wait_closed()

    def _connection(self) -> ServerConnection[Head]:
        loop = asyncio.get_running_loop()
        made = ServerConnection(loop, self.limits, HeadParser(None, ""), self._accept, lambda _: None)
        self.connections.append(made)
        return made

    def _accept(self, connection: ServerConnection[Head], head: Head) -> IncomingStream:
        make = self.streams.get(head.path)
        return _Call(connection, self, head) if make is None else make(connection)


class _Call(IncomingCall):
    """One call; its script may leave it unanswered."""

    def __init__(self, connection: ServerConnection[Head], server: ScriptedMilvus, head: Head) -> None:
        super().__init__(connection)
        self._server = server
        self._head = head
        server.open += 1

    def encoding(self) -> str:
        return self._head.encoding

    def grow(self, size: int) -> bool:
        return True

    def on_message(self, message: bytes) -> None:
        head, script = self._head, self._server.script
        metadata = dict((*head.metadata, *head.credentials))
        metadata |= {
            name: value
            for name, value in (("client-request-id", head.request_id), ("identifier", head.identifier))
            if value
        }
        timeout_s = float("inf") if head.timeout_s is None else head.timeout_s
        request = Request(0.0, head.path.rpartition("/")[2], message, metadata, False, timeout_s)
        script.requests.append(request)
        reply = script.answer(request)
        if reply is None:
            return
        assert isinstance(reply, Reply)
        trailers = passed_on(reply.trailers)
        if reply.code:
            self.fail(_HEAD + passed_on(reply.headers) + grpc.trailers_block(reply.code, reply.details) + trailers)
        else:
            self.answer(_HEAD + passed_on(reply.headers), reply.message, grpc.trailers_block(0) + trailers)

    def on_answered(self) -> None:
        self._server.open -= 1

    def on_cancelled(self) -> None:
        self._server.open -= 1
        self._server.cancelled += 1


def head_of(path: str, *fields: tuple[str, str]) -> bytes:
    """Return the header block of a gRPC call."""
    pseudo = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "proxy"))
    return encode_fields((*pseudo, ("content-type", "application/grpc"), *fields))


REQUEST = head_of("/milvus.proto.milvus.MilvusService/Query")


def request(stream: int, body: bytes = b"", *, end: bool = True, block: bytes = REQUEST) -> bytes:
    """Return the frames of a unary call."""
    whole = b"\0" + len(body).to_bytes(4, "big") + body
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, stream, block)
    return head + frames.frame(frames.DATA, int(end), stream, whole)


class RawClient:
    """A client that sends any bytes; reads only when told to.

    Attributes:
        frames: What has been read: kind, flags, stream, payload.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames: list[tuple[int, int, int, bytes]] = []

    @classmethod
    async def connect(cls, port: int, *, tls: ssl.SSLContext | None = None, small: bool = False) -> RawClient:
        """Connect; ``small`` makes the socket take little before somebody reads."""
        sock = socket.socket()
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        limit = 1_024 if small else 1 << 16
        name = "proxy.test" if tls else None
        return cls(*await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name, limit=limit))

    @classmethod
    async def open(cls, port: int, settings: dict[int, int] | None = None, **options: Any) -> RawClient:
        """Connect and begin as HTTP/2 must."""
        client = await cls.connect(port, **options)
        client.send(frames.PREFACE + frames.settings(settings or {}) + frames.SETTINGS_ACK)
        return client

    def send(self, data: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(data)

    async def next(self) -> tuple[int, int, int, bytes] | None:
        """Read one frame; None at the end."""
        try:
            header = await self.reader.readexactly(9)
            payload = await self.reader.readexactly(int.from_bytes(header[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None
        self.frames.append((header[3], header[4], int.from_bytes(header[5:], "big"), payload))
        return self.frames[-1]

    async def until(self, kind: int, stream: int | None = None) -> bytes | None:
        """Read until a frame of a kind (on a stream) comes; return its payload, None at the end."""
        while (one := await self.next()) is not None:
            if one[0] == kind and stream in (None, one[2]):
                return one[3]
        return None

    async def goaway(self) -> int | None:
        """Read until GOAWAY; return its code, None if the connection ended without."""
        payload = await self.until(frames.GOAWAY)
        return None if payload is None else int.from_bytes(payload[4:8], "big")

    async def ended(self) -> bool:
        """Read until the end."""
        while await self.next() is not None:
            pass
        return True

    def close(self) -> None:
        self.writer.transport.abort()
