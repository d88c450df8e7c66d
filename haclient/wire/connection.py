"""One HTTP/2 connection, either side: what arrives, in what order it may, and how much of it.

Decision made here: `Connection.data_received` is the frame dispatcher, one loop without a function call for the
frames that make up a call, and both the client and the server are this class with a different answer to "a header
block came". Everything the peer does wrong ends in one place, `_fail`, which sends GOAWAY with the right
code (RFC 9113 section 5.4.1) and closes; no exception of parsing leaves this class.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from haclient.errors import ConnectionLost, ProtocolError, TransportClosed, WireError
from haclient.wire import frames
from haclient.wire.control import ConnectionFault, Control, fault
from haclient.wire.frames import error_name
from haclient.wire.headers import CompressionFault, HeaderReader, HeadersTooLarge, MalformedHeaders, RawHeaders
from haclient.wire.limits import Limits
from haclient.wire.writer import Stream

T = TypeVar("T")
_FRAME_HEADER: Final = frames.FRAME_HEADER
_U32: Final = struct.Struct(">I")
_STREAM_MASK: Final = 0x7FFF_FFFF


class Connection(Control, Generic[T]):
    """The side-neutral part of a connection; ``T`` is what a header block is parsed into."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        parse: Callable[[RawHeaders], T],
        name: str = "",
    ) -> None:
        super().__init__(loop, limits, name)
        self.closed_waiter: asyncio.Future[None] = loop.create_future()
        self._reader = HeaderReader(parse, limits.max_header_list_bytes)
        self._recv_window = limits.connection_window_bytes
        self._recv_used = 0
        self._rest: bytes | bytearray = b""
        self._need = 0
        #: Grows with every frame that comes in parts.
        self._partials = 0
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_flags = 0
        self._block_frames = 0
        self._finished = False

    # -- for the subclass

    def on_headers(self, stream_id: int, value: T, end: bool) -> None:
        """Take a decoded header block."""
        raise NotImplementedError

    def on_malformed(self, stream_id: int, reason: str) -> None:
        """A header block was malformed (RFC 9113 section 8.1.1): a stream error."""
        self.reset(stream_id, frames.PROTOCOL_ERROR)
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.stop_sending(stream)
            stream.on_gone(ProtocolError(f"{self.describe()}: malformed headers: {reason}", sent=True))

    def on_closed(self, error: WireError) -> None:
        """The connection is over; every stream has been told."""

    def was_sent(self, stream_id: int) -> bool:
        """Whether bytes of this stream may have reached the peer."""
        return True

    # -- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport and send our side's first frames."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peername = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer or "unix")
        self.start_up()

    def start_up(self) -> None:
        """Send preface and SETTINGS."""
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is left (called by the transport, last)."""
        reason = f": {exc}" if exc is not None and str(exc) else ""
        self._finish(f"{self.describe()}: the connection was closed by the peer or the network{reason}", ConnectionLost)
        if not self.closed_waiter.done():
            self.closed_waiter.set_result(None)

    def eof_received(self) -> bool:
        """The peer will send no more: there is nothing left to wait for."""
        return False

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket: the frame dispatcher."""
        if self._rest:
            # Linear however the bytes are cut: parts are gathered until the frame is whole.
            rest = self._rest
            if len(rest) + len(data) < self._need:
                if not isinstance(rest, bytearray):
                    self._rest = rest = bytearray(rest)
                rest += data
                return
            data = b"".join((rest, data))
            self._rest = b""
        turn = self._loop_turn
        due = turn.due = []
        try:
            self._dispatch(data)
        except ConnectionFault as error:
            self._fail(error.code, str(error))
        finally:
            turn.due = None
        for writer in due:
            writer.flush()

    def _dispatch(self, data: bytes) -> None:
        at, length_of_data = 0, len(data)
        streams = self.streams
        max_frame = self.limits.max_frame_bytes
        while not self.closed:
            body = at + 9
            if body > length_of_data:
                self._need = 9
                break
            high, low, kind, flags, stream_id = _FRAME_HEADER.unpack_from(data, at)
            size = (high << 8) | low
            if not self.ready and (kind != frames.SETTINGS or stream_id):
                # RFC 9113 section 3.4; also what an HTTP/1 server's answer looks like.
                fault(frames.PROTOCOL_ERROR, f"no HTTP/2: the first bytes are {data[:20]!r}")
            if size > max_frame:
                fault(frames.FRAME_SIZE_ERROR, f"a frame of {size} bytes, allowed are {max_frame}")
            end = body + size
            if end > length_of_data:
                self._need = 9 + size
                break
            stream_id &= _STREAM_MASK
            if self._block is not None and kind != frames.CONTINUATION:
                fault(frames.PROTOCOL_ERROR, "a frame inside a header block")
            if kind == frames.DATA:
                if size > self._recv_window:
                    fault(frames.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
                self._recv_window -= size
                self._recv_used += size
                if self._recv_used << 1 > self.limits.connection_window_bytes:
                    self._refill()
                payload = self._unpad(data, body, end) if flags & frames.PADDED else data[body:end]
                stream = streams.get(stream_id)
                if not payload and not flags & 1:
                    self._spend(self._idle, "empty DATA")
                if stream is None:
                    self._check_not_idle(stream_id, "DATA")
                elif size > stream.recv_window:
                    self._stream_fault(stream, frames.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
                else:
                    stream.recv_window -= size
                    stream.on_data(payload, size, flags & 1 == 1)
            elif kind == frames.HEADERS:
                if flags & 0x2C == frames.END_HEADERS:  # neither padded nor with priority
                    self._headers(stream_id, data[body:end], flags & 1 == 1)
                else:
                    self._unusual_headers(stream_id, flags, data, body, end)
            elif kind == frames.CONTINUATION:
                self._continuation(flags, stream_id, data[body:end])
            else:
                self._control(kind, flags, stream_id, data[body:end])
            at = end
        if at < length_of_data and not self.closed:
            self._partials += 1
            self._rest = data[at:] if at else data

    # -- frames

    def _unpad(self, data: bytes, body: int, end: int) -> bytes:
        """Strip padding (RFC 9113 section 6.1)."""
        if body == end:
            fault(frames.FRAME_SIZE_ERROR, "a padded frame without its length of padding")
        stop = end - data[body]
        if stop <= body:
            fault(frames.PROTOCOL_ERROR, "more padding than payload")
        return data[body + 1 : stop]

    def _refill(self) -> None:
        """Open the connection's window again; streams are held back by their own windows."""
        self.write(frames.window_update(0, self._recv_used))
        self._recv_window += self._recv_used
        self._recv_used = 0

    def refill_stream(self, stream: Stream, used: int) -> None:
        """Open a stream's window by ``used`` bytes."""
        stream.recv_window += used
        self.write(frames.window_update(stream.id, used))

    def _unusual_headers(self, stream_id: int, flags: int, data: bytes, body: int, end: int) -> None:
        """Take HEADERS with padding, with priority fields, or continued."""
        block = self._unpad(data, body, end) if flags & frames.PADDED else data[body:end]
        if flags & frames.PRIORITY_FLAG:
            if len(block) < 5:
                fault(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if _U32.unpack_from(block)[0] & _STREAM_MASK == stream_id:
                fault(frames.PROTOCOL_ERROR, "a stream depends on itself")
            block = block[5:]
        if flags & frames.END_HEADERS:
            self._headers(stream_id, block, flags & 1 == 1)
        else:
            self._begin_block(stream_id, flags, block)

    def _begin_block(self, stream_id: int, flags: int, block: bytes) -> None:
        self._check_stream_id(stream_id, "HEADERS")
        self._block = bytearray(block)
        self._block_stream = stream_id
        self._block_flags = flags
        self._block_frames = 0

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Add to a header block, within limits (CVE-2024-27316 and its kin: CONTINUATION flood)."""
        block = self._block
        if block is None or stream_id != self._block_stream:
            fault(frames.PROTOCOL_ERROR, "CONTINUATION without its HEADERS")
        self._block_frames += 1
        if self._block_frames > self.limits.max_continuations:
            fault(frames.ENHANCE_YOUR_CALM, "too many CONTINUATION frames")
        block += payload
        if len(block) > self.limits.max_header_block_bytes:
            fault(frames.ENHANCE_YOUR_CALM, "the header block is too large")
        if flags & frames.END_HEADERS:
            self._block = None
            self._headers(stream_id, bytes(block), self._block_flags & 1 == 1)

    def _headers(self, stream_id: int, block: bytes, end: bool) -> None:
        if not stream_id:
            fault(frames.PROTOCOL_ERROR, "HEADERS on stream 0")
        try:
            value = self._reader.read(block)
        except MalformedHeaders as error:
            self._check_stream_id(stream_id, "HEADERS")
            self.on_malformed(stream_id, str(error))
        except CompressionFault as error:
            fault(frames.COMPRESSION_ERROR, str(error))
        except HeadersTooLarge as error:
            fault(frames.ENHANCE_YOUR_CALM, str(error))
        else:
            self.on_headers(stream_id, value, end)

    # -- the end

    def _fail(self, code: int, text: str) -> None:
        """End the connection for the peer's fault (RFC 9113 section 5.4.1)."""
        self._close(code, text.encode("utf-8", "replace")[:200])
        self._finish(f"{self.describe()}: the peer broke HTTP/2: {text} ({error_name(code)})", ProtocolError)

    def close(self, reason: str = "the transport was closed") -> None:
        """Close now; streams under way fail with `TransportClosed`."""
        self._close(frames.NO_ERROR, b"")
        self._finish(reason, TransportClosed)

    def _close(self, code: int, debug: bytes) -> None:
        """Write GOAWAY, and nothing else that waits: what is unsent must stay unsent."""
        if self.closed:
            return
        self.closed = True
        self._out.clear()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frames.goaway(self.last_peer_id, code, debug))
            self.transport.close()

    def abort(self) -> None:
        """Drop the socket without good-byes."""
        if self.transport is not None:
            self.transport.abort()

    def _finish(self, reason: str, kind: type[ConnectionLost] | type[ProtocolError] | type[TransportClosed]) -> None:
        """Tell everyone, once."""
        self.closed = True
        if self._finished:
            return
        self._finished = True
        self._out.clear()
        self._rest = b""
        self._block = None
        self._waiting.clear()
        self._reader.forget()
        streams = list(self.streams.values())
        pings = list(self._pings.values())
        self.streams.clear()
        self._pings.clear()
        self.on_closed(kind(reason, sent=False))
        for stream in streams:
            stream.outgoing = None
            stream.on_gone(kind(reason, sent=self.was_sent(stream.id)))
        for _, done in pings:
            self.guard(done, kind(reason, sent=True))
