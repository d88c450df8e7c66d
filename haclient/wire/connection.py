"""One HTTP/2 connection, either side: what arrives, in what order it may, and how much of it.

Decision made here: `Connection.data_received` is the frame dispatcher, one loop without a function call for the
frames that make up a call, and both the client and the server are this class with a different answer to "a header
block came". Everything the peer does wrong ends in one place, `_fail`, which sends GOAWAY with the right
code (RFC 9113 section 5.4.1) and closes; no exception of parsing leaves this class.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Final, Generic, NoReturn, TypeVar

from haclient.errors import AttemptTimeout, ConnectionLost, ProtocolError, TransportClosed, WireError
from haclient.wire import frames
from haclient.wire.frames import error_name
from haclient.wire.headers import CompressionFault, HeaderReader, HeadersTooLarge, MalformedHeaders, RawHeaders
from haclient.wire.limits import Budget, Limits
from haclient.wire.writer import Stream, Writer

T = TypeVar("T")
_FRAME_HEADER: Final = frames.FRAME_HEADER
_U32: Final = struct.Struct(">I")
_TWO_U32: Final = struct.Struct(">II")
_STREAM_MASK: Final = 0x7FFF_FFFF
_MAX_PINGS: Final = 100


class ConnectionFault(Exception):
    """The peer broke the protocol; caught by `Connection.data_received`."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def fault(code: int, text: str) -> NoReturn:
    """End the connection with ``code``."""
    raise ConnectionFault(code, text)


class Connection(Writer, Generic[T]):
    """The side-neutral part of a connection; ``T`` is what a header block is parsed into."""

    #: What the peer's stream identifiers are modulo 2.
    peer_parity = 0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        parse: Callable[[RawHeaders], T],
        name: str = "",
    ) -> None:
        super().__init__(loop)
        self.limits = limits
        self.name = name
        self.peername = ""
        self.ready = False
        self.last_local_id = 0
        self.last_peer_id = 0
        self.peer_max_streams = 2**31 - 1
        self.closed_waiter: asyncio.Future[None] = loop.create_future()
        now = loop.time()
        self._answers = Budget(limits.answers_burst, limits.answers_per_s, now)
        self._idle = Budget(limits.idle_frames_burst, limits.idle_frames_per_s, now)
        self._reader = HeaderReader(parse, limits.max_header_list_bytes)
        self._recv_window = limits.connection_window_bytes
        self._recv_used = 0
        self._rest: bytes | bytearray = b""
        self._need = 0
        self._block: bytearray | None = None
        self._block_stream = 0
        self._block_flags = 0
        self._block_frames = 0
        self._shrink_table = False
        self._pings: dict[bytes, tuple[float, Callable[[float | WireError], None]]] = {}
        self._ping_number = 0
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

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The peer takes no streams above ``last_stream_id``."""

    def on_setting(self, key: int, value: int) -> None:
        """Take a setting that only one side cares for."""

    def on_ready(self) -> None:
        """The peer's first SETTINGS have come: it speaks HTTP/2."""

    def on_stream_gone(self) -> None:
        """A stream has left `streams`."""

    def on_peer_reset(self) -> None:
        """The peer has reset a stream that was open."""

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
        try:
            self._dispatch(data)
        except ConnectionFault as error:
            self._fail(error.code, str(error))

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
            if size > max_frame:
                fault(frames.FRAME_SIZE_ERROR, f"a frame of {size} bytes, allowed are {max_frame}")
            end = body + size
            if not self.ready and kind != frames.SETTINGS:
                # RFC 9113 section 3.4; also what an HTTP/1 server's answer looks like.
                fault(frames.PROTOCOL_ERROR, f"no HTTP/2 server: its first bytes are {data[:20]!r}")
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
                if stream is None:
                    self._check_not_idle(stream_id, "DATA")
                elif size > stream.recv_window:
                    self._stream_fault(stream, frames.FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
                elif payload:
                    stream.recv_window -= size
                    stream.on_data(payload, size, flags & 1 == 1)
                else:
                    if not flags & 1:
                        self._spend(self._idle, "empty DATA")
                    stream.recv_window -= size
                    stream.on_data(payload, size, flags & 1 == 1)
            elif kind == frames.HEADERS:
                if flags & 0x2C == frames.END_HEADERS:  # neither padded nor with priority
                    self._headers(stream_id, data[body:end], flags & 1 == 1)
                else:
                    self._unusual_headers(stream_id, flags, data, body, end)
            else:
                self._control(kind, flags, stream_id, data[body:end])
            at = end
        if at < length_of_data and not self.closed:
            self._rest = data[at:] if at else data

    # -- frames

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == frames.PING:
            self._ping(flags, stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._rst_stream(stream_id, payload)
        elif kind == frames.GOAWAY:
            if stream_id:
                fault(frames.PROTOCOL_ERROR, "GOAWAY on a stream")
            if len(payload) < 8:
                fault(frames.FRAME_SIZE_ERROR, "GOAWAY is too short")
            last, code = _TWO_U32.unpack_from(payload)
            self.on_goaway(last & _STREAM_MASK, code, payload[8:])
        elif kind == frames.CONTINUATION:
            self._continuation(flags, stream_id, payload)
        elif kind == frames.PUSH_PROMISE:
            fault(frames.PROTOCOL_ERROR, "PUSH_PROMISE, which is switched off")
        elif kind == frames.PRIORITY:
            if not stream_id:
                fault(frames.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if len(payload) != 5:
                fault(frames.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes")
            self._spend(self._idle, "PRIORITY")
        else:
            # Unknown types are ignored (RFC 9113 section 4.1), in moderation.
            self._spend(self._idle, "unknown")

    def _spend(self, budget: Budget, what: str) -> None:
        if not budget.spend(self.loop.time()):
            fault(frames.ENHANCE_YOUR_CALM, f"too many {what} frames")

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

    def _check_stream_id(self, stream_id: int, what: str) -> None:
        """Refuse identifiers that nobody may use (RFC 9113 section 5.1.1)."""
        if not stream_id:
            fault(frames.PROTOCOL_ERROR, f"{what} on stream 0")
        if stream_id not in self.streams and stream_id & 1 != self.peer_parity:
            self._check_not_idle(stream_id, what)

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        """Accept frames on closed streams, which cross our resets, but not on ones never opened."""
        if not stream_id:
            fault(frames.PROTOCOL_ERROR, f"{what} on stream 0")
        last = self.last_peer_id if stream_id & 1 == self.peer_parity else self.last_local_id
        if stream_id > last:
            fault(frames.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which is idle")

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            fault(frames.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            self._check_not_idle(stream_id, "RST_STREAM")
            return
        self.stop_sending(stream)
        stream.local_closed = True
        self.on_peer_reset()
        stream.on_reset(_U32.unpack(payload)[0])
        self.on_stream_gone()

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            fault(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = _U32.unpack(payload)[0] & _STREAM_MASK
        if not stream_id:
            if not increment:
                fault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.send_window += increment
            if self.send_window > frames.MAX_WINDOW:
                fault(frames.FLOW_CONTROL_ERROR, "the connection's window overflows")
        else:
            stream = self.streams.get(stream_id)
            if stream is None:
                self._check_not_idle(stream_id, "WINDOW_UPDATE")
                return
            if not increment:
                self._stream_fault(stream, frames.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
                return
            stream.send_window += increment
            if stream.send_window > frames.MAX_WINDOW:
                self._stream_fault(stream, frames.FLOW_CONTROL_ERROR, "the stream's window overflows")
                return
        self.window_opened()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            fault(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                fault(frames.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self.ready:
                fault(frames.PROTOCOL_ERROR, "SETTINGS ACK before SETTINGS")
            self._spend(self._answers, "SETTINGS")
            return
        if len(payload) % 6:
            fault(frames.FRAME_SIZE_ERROR, "SETTINGS is no multiple of 6 bytes")
        self._spend(self._answers, "SETTINGS")
        for key, value in struct.iter_unpack(">HI", payload):
            self._setting(key, value)
        self.write(frames.SETTINGS_ACK)
        if not self.ready:
            self.ready = True
            self.on_ready()
        self.window_opened()

    def _setting(self, key: int, value: int) -> None:
        """Apply one of the peer's settings (RFC 9113 section 6.5.2)."""
        if key == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                fault(frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
            delta = value - self.peer_initial_window
            self.peer_initial_window = value
            for stream in self.streams.values():
                stream.send_window += delta
                if stream.send_window > frames.MAX_WINDOW:
                    fault(frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE makes a window overflow")
        elif key == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_MAX_FRAME_SIZE <= value <= frames.LARGEST_MAX_FRAME_SIZE:
                fault(frames.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value} is not allowed")
            self.peer_max_frame = value
        elif key == frames.HEADER_TABLE_SIZE:
            # Our table is empty, but an encoder must say so if its allowance shrinks (RFC 7541 section 4.2).
            self._shrink_table = self._shrink_table or value < frames.DEFAULT_HEADER_TABLE_SIZE
        elif key == frames.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        else:
            self.on_setting(key, value)

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            fault(frames.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            fault(frames.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if not flags & frames.ACK:
            self._spend(self._answers, "PING")
            self.write(frames.ping(payload, ack=True))
            return
        waiting = self._pings.pop(payload, None)
        if waiting is None:
            self._spend(self._answers, "PING")
        else:
            self.guard(waiting[1], time.perf_counter() - waiting[0])

    # -- what we do

    def ping(self, done: Callable[[float | WireError], None]) -> None:
        """Send a PING; ``done`` gets the round trip in seconds, or the error that ended the connection."""
        if len(self._pings) >= _MAX_PINGS:
            # The peer does not answer; the oldest caller has long lost patience.
            oldest = self._pings.pop(next(iter(self._pings)))
            self.guard(oldest[1], AttemptTimeout(f"{self.describe()}: {_MAX_PINGS} PINGs unanswered", sent=True))
        self._ping_number += 1
        payload = self._ping_number.to_bytes(8, "big")
        # Not loop.time(): uvloop's has a resolution of 1 ms.
        self._pings[payload] = (time.perf_counter(), done)
        self.write(frames.ping(payload))

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM."""
        self.write(frames.rst_stream(stream_id, code))

    def drop(self, stream: Stream, code: int) -> None:
        """Reset a stream ourselves and forget it; its own methods are not called."""
        if self.streams.pop(stream.id, None) is not None:
            self.stop_sending(stream)
            stream.local_closed = True
            self.reset(stream.id, code)
            self.on_stream_gone()

    def _stream_fault(self, stream: Stream, code: int, text: str) -> None:
        """End one stream for the peer's fault (RFC 9113 section 5.4.2)."""
        self.drop(stream, code)
        stream.on_gone(ProtocolError(f"{self.describe()}: {text} ({error_name(code)})", sent=True))

    def guard(self, callback: Callable[..., None], *args: object) -> None:
        """Call out; what an outsider raises must not break the connection's state."""
        try:
            callback(*args)
        except Exception as error:
            self.loop.call_exception_handler(
                {"message": "a callback of haclient.wire raised", "exception": error, "protocol": self}
            )

    def describe(self) -> str:
        """Name the connection for a person."""
        return f"{self.name} [{self.peername}]" if self.peername and self.peername != self.name else self.name

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
