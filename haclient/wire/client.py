"""The client side of a connection, and a unary call on it.

Decision made here: a stream is opened only on a connection that has shown the peer's SETTINGS, so a process that
is stopped but whose kernel still accepts connections never counts as having seen a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from haclient.call import Outcome, Reply
from haclient.errors import AttemptTimeout, ConnectionLost, ProtocolError, StreamReset, WireError
from haclient.wire import frames, grpc
from haclient.wire.connection import Connection, fault
from haclient.wire.grpc import PREFIX, PREFIX_SIZE, ResponseHead
from haclient.wire.headers import TABLE_SIZE_ZERO
from haclient.wire.limits import Limits
from haclient.wire.writer import Stream

if TYPE_CHECKING:
    from haclient.wire.channel import Channel

_pack_header = frames.FRAME_HEADER.pack
#: The literal field ``grpc-timeout``, up to the length of its value.
_TIMEOUT_FIELD: Final = b"\x00\x0cgrpc-timeout"
_SHOWN_BYTES: Final = 200


class ClientStream(Stream):
    """A stream that a client opens.

    Attributes:
        channel: Where it came from, and goes back to if the connection cannot take it.
        connection: Where it is open, or None.
        block: Encoded request headers without ``grpc-timeout``.
        deadline: Loop time.
        moves: How often it was moved to another connection.
    """

    __slots__ = ("block", "channel", "connection", "deadline", "moves", "slot")

    def __init__(self, channel: Channel, block: bytes, deadline: float) -> None:
        super().__init__()
        self.channel = channel
        self.connection: ClientConnection | None = None
        self.block = block
        self.deadline = deadline
        self.slot = 0
        self.moves = 0

    @property
    def settled(self) -> bool:
        """Nobody waits for this stream any more."""
        raise NotImplementedError

    def expired(self) -> None:
        """The deadline is here."""
        raise NotImplementedError

    def send_request(self, connection: ClientConnection) -> None:
        """Send what follows the headers."""
        raise NotImplementedError

    def on_head(self, head: ResponseHead, end: bool) -> None:
        """Take a header block."""
        raise NotImplementedError

    def detach(self) -> bool:
        """Go back to the state before opening; False if it is too late for that."""
        raise NotImplementedError


@final
class UnaryStream(ClientStream):
    """One unary call; is its own `haclient.call.StreamHandle`."""

    __slots__ = ("_body", "_done", "_expected", "_head", "_message")

    def __init__(
        self, channel: Channel, block: bytes, message: bytes, deadline: float, done: Callable[[Outcome], None]
    ) -> None:
        super().__init__(channel, block, deadline)
        self._message = message
        self._done: Callable[[Outcome], None] | None = done
        self._head: ResponseHead | None = None
        self._body: bytes | bytearray = b""
        self._expected = -1

    @property
    def settled(self) -> bool:
        """Answered or cancelled."""
        return self._done is None

    def cancel(self) -> None:
        """Give up; nothing is called back after this returns."""
        if self._done is not None:
            self._forget()
            if self.connection is not None:
                self.connection.drop(self, frames.CANCEL)

    def expired(self) -> None:
        """The deadline is here."""
        done, connection = self._done, self.connection
        if done is None:
            return
        self._forget()
        if connection is None:
            text, sent = f"{self.channel}: no connection had room for the request within its time", False
        else:
            text, sent = f"{connection.describe()}: no reply within the time allowed", True
            connection.drop(self, frames.CANCEL)
        self.channel.guard(done, AttemptTimeout(text, sent=sent))

    def send_request(self, connection: ClientConnection) -> None:
        """Send the message and END_STREAM."""
        size = len(self._message)
        connection.send_data(self, (PREFIX.pack(0, size), self._message), size + PREFIX_SIZE, True)

    def detach(self) -> bool:
        """Prepare for another connection."""
        self.connection = None
        self.id = 0
        self.local_closed = False
        self.outgoing = None
        return self._head is None

    def on_head(self, head: ResponseHead, end: bool) -> None:
        """Take response headers or trailers."""
        if self._head is None:
            if head.status is None:
                self._broken("response headers without :status")
            elif end:
                self._complete(head, trailers_only=True)
            elif head.status >= 200:
                self._head = head
        elif head.status is not None or not end:
            self._broken("a second header block that is no trailers")
        else:
            self._complete(head)

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Gather the message."""
        head, connection = self._head, self.connection
        assert connection is not None
        if head is None:
            self._broken("DATA before HEADERS")
            return
        if not head.grpc:
            # An HTTP server's error page; its first words help whoever reads the error.
            self._body = (self._body + data)[:_SHOWN_BYTES]
        elif self._body:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += data
        else:
            self._body = data
        if self._expected < 0 and head.grpc and len(self._body) >= PREFIX_SIZE and not self._begin_message(head):
            return
        if head.grpc and 0 <= self._expected < len(self._body):
            self._broken("more than one message in a unary reply")
            return
        if end:
            self._complete(None)
        elif self.recv_window << 1 < connection.limits.stream_window_bytes:
            connection.refill_stream(self, connection.limits.stream_window_bytes - self.recv_window)

    def _begin_message(self, head: ResponseHead) -> bool:
        compressed, length = PREFIX.unpack_from(self._body)
        limit = self.channel.options.limits.max_message_bytes
        if compressed:
            self._broken(f"the reply is compressed ({head.encoding}), which was not offered")
        elif length > limit:
            self._broken(f"the reply has {length} bytes; max_message_bytes allows {limit}", frames.CANCEL)
        else:
            self._expected = length + PREFIX_SIZE
            return True
        return False

    def on_reset(self, code: int) -> None:
        """Take RST_STREAM."""
        where = self.connection.describe() if self.connection else str(self.channel)
        name = frames.error_name(code)
        # REFUSED_STREAM promises that nothing was processed (RFC 9113 section 8.7).
        self._settle(
            StreamReset(f"{where}: the server reset the call ({name})", code=code, sent=code != frames.REFUSED_STREAM)
        )

    def on_gone(self, error: WireError) -> None:
        """Take the end of the connection."""
        self._settle(error)

    def _broken(self, text: str, code: int = frames.PROTOCOL_ERROR) -> None:
        """End the call for the peer's fault; the connection goes on."""
        connection = self.connection
        assert connection is not None
        connection.drop(self, code)
        self._settle(ProtocolError(f"{connection.describe()}: {text}", sent=True))

    def _complete(self, trailers: ResponseHead | None, *, trailers_only: bool = False) -> None:
        connection = self.connection
        assert connection is not None
        outcome = self._outcome(trailers, trailers_only)
        connection.finished(self)
        self._settle(outcome)

    def _outcome(self, trailers: ResponseHead | None, trailers_only: bool) -> Outcome:
        """Make the reply of a stream that has ended."""
        assert self.connection is not None
        head = trailers if trailers_only else self._head
        assert head is not None
        headers = () if trailers_only else head.metadata
        tail = trailers.metadata if trailers is not None else ()
        code = trailers.code if trailers is not None else None
        if code == grpc.OK:
            body = self._body
            if len(body) == self._expected:
                message = body[PREFIX_SIZE:] if isinstance(body, bytes) else bytes(memoryview(body)[PREFIX_SIZE:])
                return Reply(message, 0, "", headers, tail)
            what = "is cut short" if body else "is missing"
            return ProtocolError(f"{self.connection.describe()}: the reply says OK but its message {what}", sent=True)
        if code is not None:
            assert trailers is not None
            return Reply(b"", code, trailers.details, headers, tail)
        if head.status != 200 or not head.grpc:
            return Reply(b"", grpc.status_from_http(head.status or 0), self._http_text(head), headers, tail)
        if trailers is None:
            return ProtocolError(f"{self.connection.describe()}: the reply ended without trailers", sent=True)
        return Reply(b"", grpc.UNKNOWN, "the server sent no grpc-status", headers, tail)

    def _http_text(self, head: ResponseHead) -> str:
        text = bytes(self._body).decode("utf-8", "replace").strip() if not head.grpc else ""
        return f"HTTP status {head.status} instead of a gRPC reply" + (f": {text}" if text else "")

    def _settle(self, outcome: Outcome) -> None:
        done = self._done
        if done is not None:
            self._forget()
            try:
                done(outcome)
            except Exception as error:
                self.channel.report(error)

    def _forget(self) -> None:
        """Let go of everything: a caller may keep the handle."""
        self._done = None
        self._message = b""
        self._body = b""
        self.channel.deadlines.remove(self, self.slot)


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
        block = stream.block
        timeout = grpc.encode_timeout(timeout_s).encode()
        size = len(block) + 15 + len(timeout)
        if size > self.peer_max_frame or self._shrink_table:
            block = b"".join((block, _TIMEOUT_FIELD, bytes((len(timeout),)), timeout))
            if self._shrink_table:
                self._shrink_table = False
                block = TABLE_SIZE_ZERO + block
            self._out.append(frames.headers(stream_id, block, end_stream=False, max_frame_size=self.peer_max_frame))
        else:
            self._out += (
                _pack_header(size >> 8, size & 0xFF, frames.HEADERS, frames.END_HEADERS, stream_id),
                block,
                _TIMEOUT_FIELD,
                bytes((len(timeout),)),
                timeout,
            )
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
        stream.send_request(self)
        if self._next_id > frames.MAX_STREAM_ID:
            # Identifiers are used up (RFC 9113 section 5.1.1).
            self._channel.connection_draining(self)

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
            if stream.detach():
                self._channel.move(stream)
            else:
                stream.on_gone(ProtocolError(f"{self.describe()}: answered and then disowned by GOAWAY", sent=True))
        if not self.streams:
            self.loop.call_soon(self.close, "the connection was drained")

    def on_closed(self, error: WireError) -> None:
        """Tell whoever waits for the connection, and the channel."""
        if not self.ready_waiter.done():
            self.ready_waiter.set_exception(error)
            self.ready_waiter.exception()  # it may be that nobody waits
        self._channel.connection_gone(self, error)

    def lost(self, text: str) -> ConnectionLost:
        """Make the error for a stream that never went out."""
        return ConnectionLost(f"{self.describe()}: {text}", sent=False)
