"""Test helpers: a server's connection in memory, and an `h2` client at its other end."""

from __future__ import annotations

import asyncio
import struct
import zlib
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.settings
from wire_peer import MemoryTransport

from haclient.wire import Limits, frames, grpc
from haclient.wire.headers import MalformedHeaders, encode_fields, split_pseudo
from haclient.wire.incoming import IncomingCall
from haclient.wire.server import ServerConnection

PATH = "/pkg.Service/Method"
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "proxy"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
ANSWER_HEAD = encode_fields(((":status", "200"), ("content-type", "application/grpc")))
P, FC, SC, FS, REFUSED, CANCEL, CE, CALM = 1, 3, 5, 6, 7, 8, 9, 11


@dataclass(frozen=True)
class Parsed:
    """What a header block says, as far as these tests care."""

    path: str
    fields: tuple
    encoding: str
    trailers: bool


def parse(raw):
    pseudo, regular = split_pseudo(raw)
    if pseudo and (set(pseudo) != {b":method", b":scheme", b":path", b":authority"}):
        raise MalformedHeaders("wrong pseudo-header fields")
    fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in regular)
    path = pseudo.get(b":path", b"").decode("latin-1")
    return Parsed(path, fields, dict(fields).get("grpc-encoding", "identity"), not pseudo)


def message(body, compressed=0):
    """Frame a gRPC message."""
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


def gzip(body):
    packer = zlib.compressobj(wbits=31)
    return packer.compress(body) + packer.flush()


def block(fields=REQUEST):
    """Encode a header list without touching a table."""
    return b"".join(b"\x10" + hpack_string(name) + hpack_string(value) for name, value in fields)


def hpack_string(text):
    data = text.encode("latin-1")
    encoded = bytearray()
    first, rest = min(len(data), 127), len(data) - 127
    encoded.append(first)
    if first == 127:
        while rest >= 128:
            encoded.append(rest & 127 | 128)
            rest >>= 7
        encoded.append(rest)
    return bytes(encoded) + data


class Served(IncomingCall):
    """A call that echoes its message, at once or when the test says so."""

    def __init__(self, connection, head, log):
        super().__init__(connection)
        self.head = head
        self.log = log
        self.message = None
        self.cancelled = 0
        self.answered = 0
        self.held = 0
        self.refusal = ""
        log.append(self)

    def encoding(self):
        return self.head.encoding

    def grow(self, size):
        if self.refusal:
            self.refuse(grpc.RESOURCE_EXHAUSTED, self.refusal)
            return False
        self.held += size
        return True

    def on_message(self, message):
        assert self.message is None
        self.message = bytes(message)
        if self.connection.echo:
            self.reply(self.message)

    def reply(self, body, trailers=()):
        self.answer(ANSWER_HEAD, body, encode_fields((("grpc-status", "0"), *trailers)))

    def on_answered(self):
        self.answered += 1

    def on_cancelled(self):
        self.cancelled += 1


class Connection(ServerConnection):
    """A server's connection with what the test wants to know of it."""

    echo = True


class H2Client:
    """`h2` as the client of one connection; it raises if the server breaks HTTP/2.

    Attributes:
        calls: What the server was asked, in order.
        gone: How often the server was told that the connection is over.
    """

    def __init__(self, limits=None, accept=None, settings=None, parse=parse):
        loop = asyncio.get_running_loop()
        self.calls = []
        self.gone = 0
        accept = accept or (lambda connection, head: Served(connection, head, self.calls))
        self.server = Connection(loop, limits or Limits(), parse, accept, self._gone)
        self.transport = MemoryTransport(loop, self.server, self)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
            self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
            self.h2.decoder.max_allowed_table_size = self.h2.local_settings.header_table_size
        self.events = []
        self.heads, self.bodies, self.trailers = {}, {}, {}
        self.ended, self.resets = [], {}
        self.goaways = []
        self.refill = True
        self.ack = True
        self.h2.initiate_connection()

    def _gone(self, connection):
        assert connection is self.server
        self.gone += 1

    async def connect(self):
        self.server.connection_made(self.transport)
        self.flush()
        await turns()
        return self

    # -- what arrives (the transport's peer)

    def _without_goaways(self, data):
        """Note GOAWAYs: `h2` takes nothing that comes behind one, though calls under way end as usual."""
        at, kept = 0, b""
        while at < len(data):
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if data[at + 3] == frames.GOAWAY:
                last, code = struct.unpack_from(">II", data, at + 9)
                self.goaways.append((last, code))
            else:
                kept += data[at:end]
            at = end
        assert at == len(data), "half a frame"
        return kept

    def receive(self, data):
        for event in self.h2.receive_data(self._without_goaways(data)):
            self.events.append(event)
            if isinstance(event, h2.events.ResponseReceived):
                self.heads[event.stream_id] = dict(event.headers)
                self.bodies[event.stream_id] = bytearray()
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] += event.data
                if self.refill and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.append(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[event.stream_id] = event.error_code
        if self.ack:
            self.transport.loop.call_soon(self.flush)

    # -- what is sent

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.raw(data)

    def raw(self, data, step=0):
        step = step or len(data)
        for at in range(0, len(data), step):
            if self.transport.closing:
                return
            self.server.data_received(bytes(data[at : at + step]))

    def ask(self, body=b"ask", fields=(), *, end=True, head=REQUEST):
        """Send a unary call; returns its stream's identifier."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, [*head, *fields])
        self.h2.send_data(stream_id, message(body), end_stream=end)
        self.flush()
        return stream_id

    def open(self, *, end=False):
        """Open a stream with raw frames; returns its identifier (h2 knows of it, too)."""
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, REQUEST, end_stream=end)
        self.flush()
        return stream_id

    def status(self, stream_id):
        """The gRPC status and text of an answered call."""
        fields = self.trailers.get(stream_id) or self.heads[stream_id]
        return int(fields["grpc-status"]), grpc.decode_message(fields.get("grpc-message", "").encode())

    async def end(self):
        """Close the connection; nothing may be left behind."""
        if not self.transport.closing:
            self.transport.close()
        await turns()
        assert self.gone == 1
        assert not self.server.streams
        assert not self.server._waiting
        for call in self.calls:
            assert call.answered + call.cancelled == 1, (call.answered, call.cancelled)


class Lenient:
    """Reads frames where h2 would object to what the test itself has sent."""

    def __init__(self):
        self.resets = {}

    def receive_data(self, data):
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 3], "big")
            if data[at + 3] == frames.RST_STREAM:
                stream = int.from_bytes(data[at + 5 : at + 9], "big")
                self.resets[stream] = int.from_bytes(data[at + 9 : at + 13], "big")
            at += 9 + size
        return []

    def data_to_send(self):
        return b""


async def turns(n=4):
    """Let the loop turn a few times."""
    for _ in range(n):
        await asyncio.sleep(0)


async def client(**options):
    """A client with its connection standing."""
    return await H2Client(**options).connect()
