"""The client side of a connection.

Decision made here: a stream is opened only on a connection that has shown the peer's SETTINGS, so a process that
is stopped but whose kernel still accepts connections never counts as having seen a request.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, final

from haclient.errors import WireError
from haclient.wire import frames, grpc
from haclient.wire.connection import Connection
from haclient.wire.control import fault
from haclient.wire.grpc import ResponseHead
from haclient.wire.headers import TABLE_SIZE_ZERO
from haclient.wire.limits import Limits
from haclient.wire.unary import ClientStream

if TYPE_CHECKING:
    from haclient.wire.channel import Channel

_pack_header = frames.FRAME_HEADER.pack
#: The literal field ``grpc-timeout``, up to the length of its value.
_TIMEOUT_FIELD: Final = b"\x00\x0cgrpc-timeout"


@final
class ClientConnection(Connection[ResponseHead]):
    """A connection that calls go out on.

    Attributes:
        draining: It takes no new streams; it closes when its last stream has ended.
        opened: Loop time at which it became ready.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, name: str, channel: Channel) -> None:
        super().__init__(loop, limits, grpc.parse_response, name)
        self.draining = False
        self.opened = 0.0
        self.ready_waiter: asyncio.Future[None] = loop.create_future()
        self._channel = channel
        self._next_id = 1
        self._written_id = 0

    # -- state

    @property
    def has_room(self) -> bool:
        """Whether a stream could be opened now."""
        return not self._paused and len(self.streams) < self.peer_max_streams and not self.draining and not self.closed

    def written(self) -> None:
        """Remember which streams the socket has got."""
        self._written_id = self.last_local_id

    def was_sent(self, stream_id: int) -> bool:
        """Whether a stream's HEADERS have gone to the socket."""
        return stream_id <= self._written_id

    # -- opening and ending streams

    def start_up(self) -> None:
        """Send the preface, SETTINGS, and the connection's window (RFC 9113 section 3.4)."""
        limits = self.limits
        first = [
            frames.PREFACE,
            frames.settings(
                {
                    frames.ENABLE_PUSH: 0,
                    frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    frames.MAX_FRAME_SIZE: limits.max_frame_bytes,
                    frames.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
                }
            ),
        ]
        if limits.connection_window_bytes > frames.DEFAULT_WINDOW:
            first.append(frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW))
        assert self.transport is not None
        self.transport.write(b"".join(first))

    def open(self, stream: ClientStream, timeout_s: float) -> None:
        """Give a stream its identifier and send its request."""
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self.last_local_id = stream_id
        self.streams[stream_id] = stream
        stream.id = stream_id
        stream.connection = self
        stream.send_window = self.peer_initial_window
        stream.recv_window = self.limits.stream_window_bytes
        self._send_headers(stream_id, stream.block, timeout_s)
        if not self._flush_scheduled:
            self.flush_soon()
        stream.send_request(self)
        if self._next_id > frames.MAX_STREAM_ID:
            # Identifiers are used up (RFC 9113 section 5.1.1).
            self._channel.connection_draining(self)

    def _send_headers(self, stream_id: int, block: bytes, timeout_s: float) -> None:
        """Put HEADERS into the buffer: the cached block, and the time-out behind it."""
        timeout = b""
        size = len(block)
        if timeout_s != math.inf:
            value = grpc.encode_timeout(timeout_s)
            timeout = b"%b%c%b" % (_TIMEOUT_FIELD, len(value), value)
            size += len(timeout)
        if size <= self.peer_max_frame and not self._shrink_table:
            header = _pack_header(size >> 8, size & 0xFF, frames.HEADERS, frames.END_HEADERS, stream_id)
            self._out += (header, block, timeout)
            return
        block += timeout
        if self._shrink_table:
            self._shrink_table = False
            block = TABLE_SIZE_ZERO + block
        self._out.append(frames.headers(stream_id, block, end_stream=False, max_frame_size=self.peer_max_frame))

    def finished(self, stream: ClientStream) -> None:
        """The peer has ended a stream."""
        del self.streams[stream.id]
        if not stream.local_closed:
            # The server has answered without reading to the end: nothing more needs to be sent.
            self.stop_sending(stream)
            stream.local_closed = True
            self.reset(stream.id, frames.CANCEL)
        self.on_stream_gone()

    def on_stream_gone(self) -> None:
        """Use the room, or close an emptied connection that drains."""
        if self.draining:
            if not self.streams:
                # Not inside the dispatcher: what else came with these bytes may still be of use.
                self.loop.call_soon(self.close, "the connection was drained")
        elif self._channel.queue:
            self._channel.pump_queue()

    def window_opened(self) -> None:
        """Use what the peer now allows: windows, or streams (SETTINGS)."""
        if self._channel.queue:
            self._channel.pump_queue()
        if self._waiting:
            self._pump()

    def resume_writing(self) -> None:
        """Let new calls in before what fills the socket anyway."""
        self._paused = False
        if self._channel.queue:
            self._channel.pump_queue()
        self._pump()

    # -- what arrives

    def on_headers(self, stream_id: int, value: ResponseHead, end: bool) -> None:
        """Pass a header block to its stream."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_stream_id(stream_id, "HEADERS")
            return
        assert isinstance(stream, ClientStream)
        stream.on_head(value, end)

    def on_setting(self, key: int, value: int) -> None:
        """Refuse a server that asks for push (RFC 9113 section 6.5.2)."""
        if key == frames.ENABLE_PUSH and value:
            fault(frames.PROTOCOL_ERROR, "the server asks for server push")

    def on_ready(self) -> None:
        """The server speaks HTTP/2: calls may go out."""
        self.opened = self.loop.time()
        if not self.ready_waiter.done():
            self.ready_waiter.set_result(None)

    def on_goaway(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """Move what the server will not serve, and let the rest end (RFC 9113 section 6.8)."""
        self._channel.connection_draining(self)
        left_out = [stream for stream_id, stream in self.streams.items() if stream_id > last_stream_id]
        for stream in left_out:
            assert isinstance(stream, ClientStream)
            del self.streams[stream.id]
            self.stop_sending(stream)
            error = stream.detach()
            if error is None:
                self._channel.move(stream)
            else:
                stream.on_gone(error)
        if not self.streams:
            self.loop.call_soon(self.close, "the connection was drained")

    def on_closed(self, error: WireError) -> None:
        """Tell whoever waits for the connection, and the channel."""
        if not self.ready_waiter.done():
            self.ready_waiter.set_exception(error)
            self.ready_waiter.exception()  # it may be that nobody waits
        self._channel.connection_gone(self, error)
