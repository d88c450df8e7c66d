"""The server side of a connection.

Decision made here: a connection knows streams, not gRPC: what a request means is decided by whoever accepts it, with
the parsed header block in hand. What the peer may do to the connection as a whole is decided here: how many streams,
how long nothing may move, and how it ends (RFC 9113 sections 5.1.2, 6.8).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from haclient.call import Metadata
from haclient.wire import frames
from haclient.wire.control import fault
from haclient.wire.grpc import PREFIX, PREFIX_SIZE
from haclient.wire.guard import Guarded
from haclient.wire.headers import RawHeaders, literal
from haclient.wire.limits import Limits
from haclient.wire.writer import Stream


class RequestHead(Protocol):
    """What a header block is parsed into."""

    @property
    def trailers(self) -> bool:
        """It has no pseudo-header fields, so that it can only end a request (RFC 9113 section 8.1)."""


H = TypeVar("H", bound=RequestHead)
_pack_header = frames.FRAME_HEADER.pack
#: How long a peer may take to answer the PING behind the first GOAWAY, and to close after the last, seconds.
_GOODBYE_S: Final = 1.0
#: Nothing has come in part; see `ServerConnection.sweep`.
_WHOLE: Final = (False, 0, 0)
#: Bits of a count of bytes that are no progress: 16 KiB have to move, or the rest.
_STEP_BITS: Final = 14


def passed_on(fields: Metadata) -> bytes:
    """Encode fields that a server has sent, byte for byte, also what we would not send ourselves."""
    return b"".join([literal(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields])


class IncomingStream(Stream):
    """A stream that a client has opened; a subclass says what its request is.

    Attributes:
        connection: Where it came from.
        remote_closed: The client has sent all it wants to send.
        moved: How much had moved at the last sweep, and when that changed (loop time); see `ServerConnection.sweep`.
    """

    __slots__ = ("connection", "moved", "moved_at", "received", "remote_closed")

    def __init__(self, connection: ServerConnection[Any]) -> None:
        super().__init__()
        self.connection = connection
        self.remote_closed = False
        self.received = 0
        self.moved = -1
        self.moved_at = 0.0

    #: Whether a client must go on sending until its request is whole.
    hurried = True

    def on_request(self, end: bool) -> None:
        """The header block was all (``end``), or a body follows."""
        raise NotImplementedError

    # -- answering

    def respond(self, block: bytes, end: bool) -> None:
        """Send a header block; with ``end``, the last thing to be sent."""
        connection = self.connection
        connection.send_block(self.id, block, end)
        if end:
            self.local_closed = True
            connection.answered(self)


class ServerConnection(Guarded[H], Generic[H]):
    """A connection that calls come in on.

    Args:
        loop: The running loop.
        limits: What the peer may do.
        parse: Makes the value that a request is accepted by from its header fields.
        accept: Makes the stream of a request.
        closed: Told when the connection is over.

    Attributes:
        draining: GOAWAY was sent; the connection closes when its last stream has ended.
        born: Loop time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        parse: Callable[[RawHeaders], H],
        accept: Callable[[ServerConnection[H], H], IncomingStream],
        closed: Callable[[ServerConnection[H]], None],
    ) -> None:
        super().__init__(loop, limits, parse, "client")
        self.draining = False
        self.born = self.busy_at = loop.time()
        self._accept = accept
        self._on_closed = closed
        self._last_accepted = frames.MAX_STREAM_ID
        self._preface = frames.PREFACE
        #: What was there in part at the last sweep, and since when: SETTINGS, a frame, a header block.
        self._half = _WHOLE
        self._half_at = self.born
        self._closing_at = math.inf
        self._leaving: asyncio.TimerHandle | None = None

    # -- the beginning

    def start_up(self) -> None:
        """Send SETTINGS and the connection's window (RFC 9113 section 3.4)."""
        limits = self.limits
        first = frames.settings(
            {
                frames.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                frames.MAX_FRAME_SIZE: limits.max_frame_bytes,
                frames.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
            }
        )
        if limits.connection_window_bytes > frames.DEFAULT_WINDOW:
            first += frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW)
        assert self.transport is not None
        self.transport.write(first)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket; the first are the preface."""
        if self._preface:
            expected, self._preface = self._preface, self._preface[len(data) :]
            if not data.startswith(expected[: len(data)]):
                self._fail(frames.PROTOCOL_ERROR, f"no HTTP/2: the first bytes are {data[:20]!r}")
                return
            data = data[len(expected) :]
        super().data_received(data)

    # -- requests

    def on_headers(self, stream_id: int, value: H, end: bool) -> None:
        """Take a request, or the trailers of one."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            assert isinstance(stream, IncomingStream)
            if stream.remote_closed:
                self._stream_fault(stream, frames.STREAM_CLOSED, "HEADERS behind END_STREAM")
                return
            if not end or not value.trailers:
                self._stream_fault(stream, frames.PROTOCOL_ERROR, "a second header block that is no trailers")
                return
            stream.on_data(b"", 0, True)
            return
        if stream_id <= self.last_peer_id:
            self._check_stream_id(stream_id, "HEADERS")
            self._spend(self._idle, "HEADERS of a closed stream")
            return
        if not stream_id & 1:
            fault(frames.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, which is not the client's to open")
        if value.trailers:
            self.on_malformed(stream_id, "no pseudo-header fields")
            return
        self.last_peer_id = stream_id
        if stream_id > self._last_accepted:
            return  # behind our GOAWAY: the client knows that it was not served
        if len(self.streams) >= self.limits.max_concurrent_streams:
            self._spend(self._resets, "HEADERS beyond the limit of streams")
            self.reset(stream_id, frames.REFUSED_STREAM)
            return
        stream = self._accept(self, value)
        stream.id = stream_id
        stream.remote_closed = end
        stream.send_window = self.peer_initial_window
        stream.recv_window = self.limits.stream_window_bytes
        self.streams[stream_id] = stream
        stream.on_request(end)

    def on_malformed(self, stream_id: int, reason: str) -> None:
        """Reset the stream; a client that goes on like that is disconnected."""
        self._spend(self._resets, "malformed HEADERS")
        if stream_id not in self.streams and stream_id & 1:
            self.last_peer_id = max(stream_id, self.last_peer_id)
        super().on_malformed(stream_id, reason)

    def on_setting(self, key: int, value: int) -> None:
        """Check what clients may say (RFC 9113 section 6.5.2)."""
        if key == frames.ENABLE_PUSH and value > 1:
            fault(frames.PROTOCOL_ERROR, f"ENABLE_PUSH {value} is not allowed")

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """Close when the client's last stream has ended; it will open no more."""
        self._spend(self._idle, "GOAWAY")
        self.draining = True
        if not self.streams:
            self._leave()

    def fault(self, stream: Stream, code: int, text: str) -> None:
        """End one stream for the client's fault."""
        self._stream_fault(stream, code, text)

    # -- answers

    def answer(self, stream: IncomingStream, head: bytes, message: bytes, trailers: bytes) -> bool:
        """Write a whole unary answer at once.

        Returns:
            False if it does not fit now; nothing was written then.
        """
        size = len(message) + PREFIX_SIZE
        limit = self.peer_max_frame
        if (
            self._paused
            or self._shrink_table
            or size > self.send_window
            or size > stream.send_window
            or size > limit
            or len(head) > limit
            or len(trailers) > limit
        ):
            return False
        self.send_window -= size
        stream_id, length, tail = stream.id, len(head), len(trailers)
        self._out += (
            _pack_header(length >> 8, length & 0xFF, frames.HEADERS, frames.END_HEADERS, stream_id),
            head,
            _pack_header(size >> 8, size & 0xFF, frames.DATA, 0, stream_id),
            PREFIX.pack(0, size - PREFIX_SIZE),
            message,
            _pack_header(tail >> 8, tail & 0xFF, frames.HEADERS, 5, stream_id),
            trailers,
        )
        stream.local_closed = True
        if not self._flush_scheduled:
            self.flush_soon()
        self.answered(stream)
        return True

    def answered(self, stream: IncomingStream) -> None:
        """Our side of a stream has ended: forget it."""
        if self.streams.pop(stream.id, None) is None:
            return
        if not stream.remote_closed:
            # Answered before the request was whole: the client need not send the rest (RFC 9113 section 8.1).
            self.reset(stream.id, frames.NO_ERROR)
        self.on_stream_gone()

    def on_stream_gone(self) -> None:
        """Note when the last one went; close if this was all."""
        if not self.streams:
            self.busy_at = self.loop.time()
            if self.draining:
                self._leave()

    # -- the end

    def drain(self) -> None:
        """Take no new streams, and close after the last: GOAWAY twice, so that none is lost (RFC 9113 section 6.8)."""
        if self.draining or self.closed:
            return
        self.draining = True
        self.write(frames.goaway(frames.MAX_STREAM_ID, frames.NO_ERROR))
        self.ping(lambda _: self._say_last())
        self.loop.call_later(_GOODBYE_S, self._say_last)

    def _say_last(self) -> None:
        if self.closed or self._last_accepted != frames.MAX_STREAM_ID:
            return
        self._last_accepted = self.last_peer_id
        self.write(frames.goaway(self.last_peer_id, frames.NO_ERROR))
        if not self.streams:
            self._leave()

    def _leave(self) -> None:
        """Give the client a moment to close first: closing with unread bytes could cost it our last answer."""
        if self._leaving is not None:
            self._leaving.cancel()
        self._leaving = self.loop.call_later(_GOODBYE_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.streams and not self.closed:
            self.flush()  # an answer of this very turn
            self.close("the connection was drained")

    def _close(self, code: int, debug: bytes) -> None:
        # What came behind our GOAWAY was not served, and must not be claimed now (RFC 9113 section 6.8).
        self.last_peer_id = min(self.last_peer_id, self._last_accepted)
        super()._close(code, debug)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the streams, and the server: until now there was a socket."""
        super().connection_lost(exc)
        self._on_closed(self)

    # -- what takes too long

    def sweep(self, now: float, request_s: float, reply_s: float) -> None:
        """End what does not move: a frame or request that does not become whole, a reply that is not taken.

        Args:
            now: Loop time.
            request_s: Time allowed between two parts of a request, seconds; a part is 16 KiB, or the rest.
            reply_s: Time allowed between two parts of a reply, seconds.
        """
        if self.transport is not None and self.transport.is_closing():
            self._closing_at = min(self._closing_at, now)
            if now - self._closing_at > reply_s:
                self.abort()  # the client does not take our last words
            return
        # A busy connection ends in the middle of a frame more often than not, but never twice of the same one.
        partial = self._partials if self._rest else 0
        half = (not self.ready, partial, self._block_stream if self._block is not None else 0)
        if half != self._half:
            self._half, self._half_at = half, now
        elif half != _WHOLE and now - self._half_at > request_s:
            self._fail(frames.ENHANCE_YOUR_CALM, "a frame that does not become whole")
            return
        if self._paused and now - self._paused_at > reply_s:
            # The peer does not even empty its socket: GOAWAY would not reach it.
            self.abort()
            return
        for stream in list(self.streams.values()):
            assert isinstance(stream, IncomingStream)
            waiting = stream.outgoing is not None
            if not waiting and (stream.remote_closed or not stream.hurried):
                stream.moved = -1
                continue
            size = sum(map(len, stream.outgoing)) if stream.outgoing is not None else stream.received
            # Told apart from the same size in the other direction.
            moved = size >> _STEP_BITS << 1 | waiting
            if moved != stream.moved:
                stream.moved, stream.moved_at = moved, now
            elif now - stream.moved_at > (reply_s if waiting else request_s):
                self.drop(stream, frames.CANCEL)
                stream.on_reset(frames.CANCEL)
