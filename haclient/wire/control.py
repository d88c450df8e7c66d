"""Control frames: settings, windows, pings, resets, and how many of them are too many.

Decision made here: everything that is not a header block or DATA is handled apart from the dispatcher, since it is
rare, and every kind that a peer could send for nothing draws on a `Budget`.
"""

from __future__ import annotations

import asyncio
import struct
import time  # noqa: TID251 - measures round trips only: uvloop.s clock has a resolution of 1 ms
from collections.abc import Callable
from typing import Final, NoReturn

from haclient.errors import AttemptTimeout, ProtocolError, WireError
from haclient.wire import frames
from haclient.wire.frames import error_name
from haclient.wire.limits import Budget, Limits
from haclient.wire.writer import Stream, Writer

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


class Control(Writer):
    """The part of a connection that answers control frames."""

    #: What the peer's stream identifiers are modulo 2.
    peer_parity = 0

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, name: str) -> None:
        super().__init__(loop)
        self.limits = limits
        self.name = name
        self.peername = ""
        self.ready = False
        self.last_local_id = 0
        self.last_peer_id = 0
        self.peer_max_streams = 2**31 - 1
        now = loop.time()
        self._answers = Budget(limits.answers_burst, limits.answers_per_s, now)
        self._idle = Budget(limits.idle_frames_burst, limits.idle_frames_per_s, now)
        self._shrink_table = False
        self._pings: dict[bytes, tuple[float, Callable[[float | WireError], None]]] = {}
        self._ping_number = 0

    # -- for the subclass

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """The peer takes no streams above ``last_stream_id``."""

    def on_setting(self, key: int, value: int) -> None:
        """Take a setting that only one side cares for."""

    def on_ready(self) -> None:
        """The peer's first SETTINGS have come: it speaks HTTP/2."""

    def on_stream_gone(self) -> None:
        """A stream has left `streams`."""

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

    def spend_idle(self, what: str) -> None:
        """Count a frame that does nothing."""
        self._spend(self._idle, what)

    def _spend(self, budget: Budget, what: str) -> None:
        if not budget.spend(self.loop.time()):
            fault(frames.ENHANCE_YOUR_CALM, f"too many {what} frames")

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
