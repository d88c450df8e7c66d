"""What comes in on a server's streams: unary gRPC calls, and plain HTTP requests.

Decision made here: a request is gathered whole before anyone hears of it, and its stream is its call, so that
taking and answering one makes no other object. How much may be gathered is asked of the subclass, part by part.
"""

from __future__ import annotations

import zlib
from typing import Any

from haclient.errors import WireError
from haclient.wire import frames, grpc
from haclient.wire.grpc import PREFIX, PREFIX_SIZE
from haclient.wire.headers import encode_fields
from haclient.wire.server import IncomingStream, ServerConnection

#: zlib's window bits by name.
_DECODERS = {"gzip": 31, "deflate": 15}
#: What a client may compress with: the value of ``grpc-accept-encoding``.
_ACCEPTED = ",".join(["identity", *_DECODERS])
_TOO_MANY = "more than one message in a unary call"
#: Decompressed at a time, so that the memory is asked for before it is taken.
_PIECE_BYTES = 1 << 20


class GatheredStream(IncomingStream):
    """A stream whose body is gathered."""

    __slots__ = ("body",)

    def __init__(self, connection: ServerConnection[Any]) -> None:
        super().__init__(connection)
        self.body: bytes | bytearray = b""

    def grow(self, size: int) -> bool:
        """Hold ``size`` more bytes; False if that is too much, and the request has been answered so."""
        raise NotImplementedError

    def on_whole(self) -> None:
        """The body is whole."""
        raise NotImplementedError

    def on_cancelled(self) -> None:
        """The client has gone away, or has given up."""
        raise NotImplementedError

    def on_request(self, end: bool) -> None:
        """See `IncomingStream`."""
        if end:
            self.on_whole()

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Gather the body."""
        if self.remote_closed:
            self.connection.fault(self, frames.STREAM_CLOSED, "DATA behind END_STREAM")
            return
        self.received += size
        if not self.grow(len(data)):
            return
        if self.body:
            if not isinstance(self.body, bytearray):
                self.body = bytearray(self.body)
            self.body += data
        else:
            self.body = data
        if end:
            self.remote_closed = True
            self.on_whole()
        elif not self.on_part():
            return
        elif self.recv_window << 1 < self.connection.limits.stream_window_bytes:
            connection = self.connection
            connection.refill_stream(self, connection.limits.stream_window_bytes - self.recv_window)

    def on_part(self) -> bool:
        """Look at what has come so far; False if the request has been answered already."""
        return True

    def on_reset(self, code: int) -> None:
        """Take RST_STREAM."""
        self.on_cancelled()

    def on_gone(self, error: WireError) -> None:
        """Take the end of the connection."""
        self.on_cancelled()


class IncomingCall(GatheredStream):
    """A unary gRPC call."""

    __slots__ = ("_trailers",)

    def __init__(self, connection: ServerConnection[Any]) -> None:
        super().__init__(connection)
        self._trailers: bytes | None = None

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Take a message that comes whole at once, as nearly all do; gather the others."""
        if end and not self.body and not self.remote_closed and len(data) >= PREFIX_SIZE:
            compressed, length = PREFIX.unpack_from(data)
            if (
                not compressed
                and length + PREFIX_SIZE == len(data)
                and length <= self.connection.limits.max_message_bytes
            ):
                self.remote_closed = True
                if self.grow(length):
                    self.on_message(data[PREFIX_SIZE:])
                return
        super().on_data(data, size, end)

    def encoding(self) -> str:
        """Return the request's ``grpc-encoding``."""
        raise NotImplementedError

    def on_message(self, message: bytes) -> None:
        """The request is here."""
        raise NotImplementedError

    def on_part(self) -> bool:
        """Refuse what is too large before it has come, and what is more than was announced."""
        if len(self.body) < PREFIX_SIZE:
            return True
        length = PREFIX.unpack_from(self.body)[1]
        limit = self.connection.limits.max_message_bytes
        if length > limit:
            text = f"the request has {length} bytes; [wire] max_message_bytes allows {limit}"
            self.refuse(grpc.RESOURCE_EXHAUSTED, text)
            return False
        if len(self.body) > length + PREFIX_SIZE:
            self.refuse(grpc.INTERNAL, _TOO_MANY)
            return False
        return True

    def on_whole(self) -> None:
        """Cut the message out of the body."""
        body = self.body
        if len(body) < PREFIX_SIZE:
            self.refuse(grpc.INTERNAL, "the request ended before its message")
            return
        compressed, length = PREFIX.unpack_from(body)
        if length + PREFIX_SIZE != len(body):
            less = len(body) < length + PREFIX_SIZE
            self.refuse(grpc.INTERNAL, "the request is cut short" if less else _TOO_MANY)
            return
        self.body = b""
        message = body[PREFIX_SIZE:] if type(body) is bytes else bytes(memoryview(body)[PREFIX_SIZE:])
        if compressed:
            plain = self._decompressed(message)
            if plain is None:
                return
            message = plain
        self.on_message(message)

    def _decompressed(self, message: bytes) -> bytes | None:
        """Decompress a message within the limit; None if it has been refused."""
        name, limit = self.encoding(), self.connection.limits.max_message_bytes
        bits = _DECODERS.get(name)
        if bits is None:
            text = f"grpc-encoding {name!r} is not known here; use one of {_ACCEPTED}"
            known = encode_fields((("grpc-accept-encoding", _ACCEPTED),))
            self.fail(grpc.status_block(grpc.UNIMPLEMENTED, text) + known)
            return None
        decoder = zlib.decompressobj(bits)
        plain, rest = bytearray(), message
        while not decoder.eof:
            try:
                piece = decoder.decompress(rest, _PIECE_BYTES)
            except zlib.error:
                self.refuse(grpc.INTERNAL, f"the request is no valid {name}")
                return None
            if not piece and not decoder.eof:
                self.refuse(grpc.INTERNAL, f"the request is no whole {name}")
                return None
            if len(plain) + len(piece) > limit:
                text = f"the request has more than {limit} bytes decompressed; [wire] max_message_bytes allows no more"
                self.refuse(grpc.RESOURCE_EXHAUSTED, text)
                return None
            if not self.grow(len(piece)):
                return None
            plain += piece
            rest = decoder.unconsumed_tail
        return bytes(plain)

    # -- answering

    def answer(self, head: bytes, message: bytes, trailers: bytes) -> None:
        """Send the reply: a header block, the message, and a block of trailers."""
        connection = self.connection
        if self.id not in connection.streams:
            return
        if connection.answer(self, head, message, trailers):
            self.on_answered()
            return
        self.respond(head, end=False)
        self._trailers = trailers
        size = len(message)
        connection.send_data(self, (PREFIX.pack(0, size), message), size + PREFIX_SIZE, False)
        if self.outgoing is None:
            self.on_sendable()

    def on_sendable(self) -> None:
        """The message is on its way: send the trailers."""
        trailers, self._trailers = self._trailers, None
        if trailers is not None:
            self.respond(trailers, end=True)
            self.on_answered()

    def on_answered(self) -> None:
        """The whole reply has been handed to the socket."""

    def refuse(self, code: int, details: str) -> None:
        """Answer with a status alone."""
        self.fail(grpc.status_block(code, details))

    def fail(self, block: bytes) -> None:
        """Answer with trailers alone."""
        if self.id in self.connection.streams:
            self.respond(block, end=True)
            self.on_answered()


class IncomingHttp(GatheredStream):
    """A plain HTTP request."""

    __slots__ = ("_ended",)

    def __init__(self, connection: ServerConnection[Any]) -> None:
        super().__init__(connection)
        self._ended = False

    def answer(self, status: int, fields: tuple[tuple[str, str], ...], body: bytes) -> None:
        """Send the response; field names in lower case."""
        connection = self.connection
        if self.id not in connection.streams:
            return
        block = encode_fields(((":status", str(status)), *fields))
        if not body:
            self.respond(block, end=True)
            self.on_answered()
            return
        self.respond(block, end=False)
        connection.send_data(self, (body,), len(body), True)
        if self.outgoing is None:
            self.on_sendable()

    def on_sendable(self) -> None:
        """The body is on its way."""
        if not self._ended and self.local_closed:
            self._ended = True
            self.connection.answered(self)
            self.on_answered()

    def on_answered(self) -> None:
        """The whole response has been handed to the socket."""
