"""The sending half of an HTTP/2 connection: coalesced writes, flow control, fair shares.

Decision made here: whatever a loop turn produces is written once, at its end, and never while the socket is
full. What one `data_received` produces, on whichever connection of the loop, is written at its end, without another
turn of the loop. Small messages, nearly all, go straight to that buffer; one that does not fit in the windows or comes
while the socket is full waits on its stream, and waiting streams take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary

from haclient.errors import WireError
from haclient.wire import frames

#: How much one waiting stream may write before the next has its turn.
_TURN_BYTES: Final = 256 * 1024
_pack_header = frames.FRAME_HEADER.pack


class Stream:
    """One stream's side-neutral state; a subclass says what arriving things mean.

    Attributes:
        id: Stream identifier, 0 while it has none.
        send_window: What the peer lets us send; may be negative (RFC 9113 section 6.9.2).
        recv_window: What we let the peer send.
        outgoing: Parts of DATA that wait for a window or the socket.
        end_waiting: END_STREAM follows the last part.
        local_closed: We have sent END_STREAM or RST_STREAM.
    """

    __slots__ = ("end_waiting", "id", "local_closed", "outgoing", "recv_window", "send_window")

    def __init__(self) -> None:
        self.id = 0
        self.send_window = 0
        self.recv_window = 0
        self.outgoing: deque[memoryview] | None = None
        self.end_waiting = False
        self.local_closed = False

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Take DATA; ``size`` is what it counts for flow control (padding included)."""
        raise NotImplementedError

    def on_reset(self, code: int) -> None:
        """Take the peer's RST_STREAM; the stream is already forgotten by its connection."""
        raise NotImplementedError

    def on_gone(self, error: WireError) -> None:
        """Take the end of the connection, or of this stream by our own doing."""
        raise NotImplementedError

    def on_sendable(self) -> None:
        """Everything queued with `Writer.send_data` has been handed to the socket."""


class Turn:
    """What is to be written at the end of a loop's `data_received` under way, shared by all connections of the loop.

    Attributes:
        due: Connections that have something to write; None while nothing is being received.
    """

    __slots__ = ("__weakref__", "due")

    def __init__(self) -> None:
        self.due: list[Writer] | None = None


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


class Writer(asyncio.Protocol):
    """Writes frames for the streams of one connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._loop_turn = _turns.get(loop) or _turns.setdefault(loop, Turn())
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.streams: dict[int, Stream] = {}
        self.send_window = frames.DEFAULT_WINDOW
        self.peer_initial_window = frames.DEFAULT_WINDOW
        self.peer_max_frame = frames.DEFAULT_MAX_FRAME_SIZE
        self._out: list[bytes | memoryview] = []
        self._flush_scheduled = False
        self._paused = False
        self._waiting: dict[int, Stream] = {}

    # -- the buffer of this loop turn

    def write(self, data: bytes) -> None:
        """Put frames into this turn's buffer."""
        self._out.append(data)
        if not self._flush_scheduled:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Have the buffer written at the end of this turn."""
        self._flush_scheduled = True
        due = self._loop_turn.due
        if due is None:
            self.loop.call_soon(self.flush)
        else:
            due.append(self)

    def flush(self) -> None:
        """Write the buffer now."""
        self._flush_scheduled = False
        out = self._out
        if not out or self.closed or self.transport is None:
            out.clear()
            return
        if self.transport.is_closing():
            # The socket is broken and connection_lost is on its way: nothing of this was sent.
            out.clear()
            self._paused = True
            return
        self._out = []
        self.written()
        self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def written(self) -> None:
        """Hook: all that was put into the buffer now goes to the socket."""

    def pause_writing(self) -> None:
        """The socket is full (called by the transport)."""
        self._paused = True

    def resume_writing(self) -> None:
        """The socket takes more (called by the transport)."""
        self._paused = False
        self._pump()

    # -- DATA under flow control

    def send_data(self, stream: Stream, parts: tuple[bytes | memoryview, ...], size: int, end: bool) -> None:
        """Send DATA of ``size`` bytes in ``parts``, as windows and socket allow."""
        if (
            stream.outgoing is None
            and not self._paused
            and size <= self.peer_max_frame
            and size <= self.send_window
            and size <= stream.send_window
        ):
            self.send_window -= size
            stream.send_window -= size
            out = self._out
            out.append(_pack_header(size >> 8, size & 0xFF, frames.DATA, end, stream.id))
            out.extend(parts)
            stream.local_closed = end
            if not self._flush_scheduled:
                self.flush_soon()
            return
        if stream.outgoing is None:
            stream.outgoing = deque()
        stream.outgoing.extend([memoryview(part) for part in parts if len(part)])
        stream.end_waiting = end
        self._waiting[stream.id] = stream
        self._pump()

    def _pump(self) -> None:
        """Give every waiting stream its turn, until windows, socket or streams run out."""
        waiting = self._waiting
        progress = True
        while waiting and progress and not self._paused and not self.closed:
            progress = False
            for stream_id, stream in list(waiting.items()):
                if self._stopped():
                    return
                if stream_id not in waiting:
                    continue
                progress |= self._turn(stream)
                if not stream.outgoing:
                    del waiting[stream_id]
                    stream.outgoing = None
                    if stream.end_waiting:
                        stream.local_closed = True
                    stream.on_sendable()

    def _stopped(self) -> bool:
        return self._paused or self.closed

    def _turn(self, stream: Stream) -> bool:
        """Write up to `_TURN_BYTES` of one stream now; say whether anything went."""
        outgoing = stream.outgoing
        assert outgoing is not None
        room = min(self.send_window, stream.send_window, _TURN_BYTES)
        total = 0
        out = self._out
        before = len(out)
        while outgoing and room > total:
            part = outgoing[0]
            size = min(len(part), room - total, self.peer_max_frame)
            if size < len(part):
                outgoing[0] = part[size:]
                part = part[:size]
            else:
                outgoing.popleft()
            end = stream.end_waiting and not outgoing
            out.append(_pack_header(size >> 8, size & 0xFF, frames.DATA, end, stream.id))
            out.append(part)
            total += size
        if not outgoing and not total and stream.end_waiting:
            # Nothing but END_STREAM was waiting: an empty frame needs no window.
            out.append(_pack_header(0, 0, frames.DATA, frames.END_STREAM, stream.id))
        if len(out) == before:
            return False
        self.send_window -= total
        stream.send_window -= total
        # At once, not at the end of the turn: only the socket can say that it is full.
        self._flush_now()
        return True

    def _flush_now(self) -> None:
        scheduled = self._flush_scheduled
        self.flush()
        self._flush_scheduled = scheduled

    def window_opened(self) -> None:
        """The peer's window grew: go on with what waits."""
        if self._waiting:
            self._pump()

    def stop_sending(self, stream: Stream) -> None:
        """Forget what a stream still wanted to send."""
        if stream.outgoing is not None:
            stream.outgoing = None
            self._waiting.pop(stream.id, None)
