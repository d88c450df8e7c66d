"""What a client may make a server do for nothing.

Decision made here: whatever costs us more than it costs the client, or can be had without end, is counted here, apart
from the frames of calls that go well, which cost nothing extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from haclient.wire import frames
from haclient.wire.connection import Connection
from haclient.wire.control import fault
from haclient.wire.headers import TABLE_SIZE_ZERO, RawHeaders
from haclient.wire.limits import Budget, Limits
from haclient.wire.writer import Stream

T = TypeVar("T")
#: Entries in one SETTINGS frame; there are six settings (CVE-2020-11080).
_MOST_SETTINGS: Final = 32
#: Header blocks that wait for a client that does not read: bytes for each stream it may have.
_UNREAD_BYTES: Final = 256
#: One WINDOW_UPDATE is explained by two to the power of this many bytes sent.
_UPDATE_BITS: Final = 3


class Guarded(Connection[T], Generic[T]):
    """The part of a server's connection that counts what its client costs."""

    peer_parity = 1

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, parse: Callable[[RawHeaders], T], name: str
    ) -> None:
        super().__init__(loop, limits, parse, name)
        now = loop.time()
        self._resets = Budget(limits.resets_burst, limits.resets_per_s, now)
        #: WINDOW_UPDATEs so far, and what those of the connection have added up to.
        self._updates = 0
        self._granted = frames.DEFAULT_WINDOW
        self._pump_scheduled = False
        self._paused_at = now
        #: Bytes of header blocks written since the socket is full.
        self._unread = 0

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        """Count what is opened and reset (rapid reset, CVE-2023-44487), once the stream has been told."""
        opened = stream_id in self.streams
        super()._rst_stream(stream_id, payload)
        self._spend(self._resets if opened else self._idle, "RST_STREAM")

    def _stream_fault(self, stream: Stream, code: int, text: str) -> None:
        """Count what we are made to reset: it costs as much (CVE-2025-8671)."""
        super()._stream_fault(stream, code, text)
        self._spend(self._resets, "faulty")

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Take few settings at a time: each may concern every stream."""
        if len(payload) > _MOST_SETTINGS * 6:
            fault(frames.ENHANCE_YOUR_CALM, f"more than {_MOST_SETTINGS} settings in one frame")
        super()._settings(flags, stream_id, payload)

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        """Count what neither streams opened nor bytes sent explain (data dribble, CVE-2019-9511)."""
        super()._window_update(stream_id, payload)
        if not stream_id:
            self._granted += int.from_bytes(payload, "big") & frames.MAX_WINDOW
        self._updates += 1
        if self._updates > self.last_peer_id + (self._granted - self.send_window >> _UPDATE_BITS):
            self._spend(self._idle, "WINDOW_UPDATE")

    def window_opened(self) -> None:
        """Go on with what waits, once for all windows that this turn opens: every stream that waits is looked at."""
        if self._waiting and not self._pump_scheduled:
            self._pump_scheduled = True
            self.loop.call_soon(self._pump_once)

    def _pump_once(self) -> None:
        self._pump_scheduled = False
        self._pump()

    def pause_writing(self) -> None:
        """The socket is full: note since when."""
        super().pause_writing()
        self._paused_at = self.loop.time()
        self._unread = 0

    def send_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """Send a header block, but not ever more of them to a client that asks and never reads (CVE-2019-9517)."""
        if self._paused:
            self._unread += len(block)
            if self._unread > _UNREAD_BYTES * self.limits.max_concurrent_streams:
                self.abort()
                return
        if self._shrink_table:
            self._shrink_table = False
            block = TABLE_SIZE_ZERO + block
        self.write(frames.headers(stream_id, block, end_stream=end, max_frame_size=self.peer_max_frame))
