"""A streaming call: messages both ways, with back-pressure both ways.

Decision made here: the stream's receive window opens again only as messages are taken, so what waits here for a
slow reader is bounded by one window and one message. How a call ended is its `status`, not an
exception; only the wire's own failures are raised.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from haclient.call import Metadata, Reply
from haclient.errors import AttemptTimeout, ConnectionLost, ProtocolError, StreamReset, TransportClosed, WireError
from haclient.wire import frames, grpc
from haclient.wire.grpc import PREFIX, PREFIX_SIZE, ResponseHead
from haclient.wire.unary import ClientStream

if TYPE_CHECKING:
    from haclient.wire.channel import Channel
    from haclient.wire.client import ClientConnection


@final
class BidiStream(ClientStream):
    """One streaming call, made by `Channel.stream`.

    One task may send while another iterates. Leave it by its end, by `cancel`, or as a context manager.

    Attributes:
        headers: Initial metadata, once it has come.
        status: How the call ended (with an empty message), once it has.
    """

    __slots__ = (
        "_buffer",
        "_error",
        "_head",
        "_held",
        "_messages",
        "_receiver",
        "_send_used",
        "_sender",
        "headers",
        "status",
    )

    def __init__(self, channel: Channel, block: bytes, deadline: float) -> None:
        super().__init__(channel, block, deadline)
        self.headers: Metadata = ()
        self.status: Reply | None = None
        self._head: ResponseHead | None = None
        self._error: WireError | None = None
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._buffer = bytearray()
        self._send_used = False
        self._receiver: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    # -- sending

    async def send(self, message: bytes) -> None:
        """Send one message; returns when the socket has taken it.

        Raises:
            WireError: If the call has failed. After its regular end, sending does nothing.
        """
        connection = await self._open_connection()
        if connection is not None:
            prefix = grpc.message_prefix(len(message))
            connection.send_data(self, (prefix, message), len(message) + PREFIX_SIZE, False)
            await self._drained()

    async def done_sending(self) -> None:
        """Say that no more messages will come."""
        connection = await self._open_connection()
        if connection is not None and not self.local_closed:
            connection.send_data(self, (), 0, True)

    async def _open_connection(self) -> ClientConnection | None:
        while not self.settled and self.connection is None:
            await self._wait_to_send()
        if self._error is not None:
            raise self._error
        if self.settled:
            return None
        self._send_used = True
        return self.connection

    async def _drained(self) -> None:
        while self.outgoing is not None and not self.settled:
            await self._wait_to_send()
        if self._error is not None:
            raise self._error

    async def _wait_to_send(self) -> None:
        self._sender = self.channel.loop.create_future()
        try:
            await self._sender
        finally:
            self._sender = None

    def on_sendable(self) -> None:
        """Wake the sender."""
        _wake(self._sender)

    def send_request(self, connection: ClientConnection) -> None:
        """Wake the sender: the stream is open."""
        _wake(self._sender)

    # -- receiving

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next message.

        Raises:
            WireError: If the call has failed; messages that came before are returned first.
        """
        while True:
            if self._messages:
                message = self._messages.popleft()
                self._held -= len(message) + PREFIX_SIZE
                self._credit()
                return message
            if self._error is not None:
                raise self._error
            if self.status is not None:
                raise StopAsyncIteration
            self._receiver = self.channel.loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None

    def _credit(self) -> None:
        """Open the window by what has been taken; an unfinished message counts as taken if nothing is before it."""
        connection = self.connection
        if connection is None or self.settled:
            return
        window = connection.limits.stream_window_bytes
        used = window - self.recv_window - self._held - (len(self._buffer) if self._messages else 0)
        if used << 1 >= window:
            connection.refill_stream(self, used)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        """Take response headers or trailers."""
        if self._head is None:
            if head.status is None:
                self._broken("response headers without :status")
            elif end:
                self._end(head, head)
            elif head.status >= 200:
                self._head = head
                self.headers = head.metadata
            else:
                self._informational()
        elif head.status is not None or not end:
            self._broken("a second header block that is no trailers")
        else:
            self._end(self._head, head)

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Cut messages out of what arrives."""
        if self._head is None:
            self._broken("DATA before HEADERS")
            return
        if self._head.grpc:
            self._buffer += data
            if not self._cut():
                return
        if end:
            self._end(self._head, None)
        else:
            self._credit()

    def _cut(self) -> bool:
        """Move complete messages out of the buffer; False if the stream is broken."""
        buffer, at = self._buffer, 0
        limit = self.channel.options.limits.max_message_bytes
        while len(buffer) - at >= PREFIX_SIZE:
            compressed, length = PREFIX.unpack_from(buffer, at)
            if compressed:
                self._broken("a message is compressed, which was not offered")
                return False
            if length > limit:
                self._broken(f"a message has {length} bytes; max_message_bytes allows {limit}", frames.CANCEL)
                return False
            stop = at + PREFIX_SIZE + length
            if stop > len(buffer):
                break
            self._messages.append(bytes(memoryview(buffer)[at + PREFIX_SIZE : stop]))
            self._held += PREFIX_SIZE + length
            at = stop
        if at:
            del buffer[:at]
            _wake(self._receiver)
        return True

    # -- the end

    @property
    def settled(self) -> bool:
        """It has ended, one way or another."""
        return self._error is not None or self.status is not None

    def cancel(self) -> None:
        """Give up; whoever waits gets `TransportClosed`."""
        self._give_up(TransportClosed("the stream was cancelled", sent=self.connection is not None))

    def expired(self) -> None:
        """The deadline is here."""
        where = self.connection.describe() if self.connection else str(self.channel)
        text = f"{where}: the stream did not end within the time allowed"
        self._give_up(AttemptTimeout(text, sent=self.connection is not None))

    def _give_up(self, error: WireError, code: int = frames.CANCEL) -> None:
        if not self.settled:
            if self.connection is not None:
                self.connection.drop(self, code)
            self._settle(error)

    def _broken(self, text: str, code: int = frames.PROTOCOL_ERROR) -> None:
        where = self.connection.describe() if self.connection else str(self.channel)
        self._give_up(ProtocolError(f"{where}: {text}", sent=True), code)

    def on_reset(self, code: int) -> None:
        """Take RST_STREAM."""
        where = self.connection.describe() if self.connection else str(self.channel)
        name = frames.error_name(code)
        sent = code != frames.REFUSED_STREAM
        self._settle(StreamReset(f"{where}: the server reset the stream ({name})", code=code, sent=sent))

    def on_gone(self, error: WireError) -> None:
        """Take the end of the connection."""
        self._settle(error)

    def detach(self) -> WireError | None:
        """Prepare for another connection, which only a stream can that has sent nothing yet."""
        where = self.connection.describe() if self.connection else str(self.channel)
        self.connection = None
        self.id = 0
        self.local_closed = False
        if self._head is not None:
            return ProtocolError(f"{where}: GOAWAY disowns a stream that was being answered", sent=True)
        if self._send_used:
            return ConnectionLost(f"{where}: the server went away (GOAWAY) without reading the stream", sent=False)
        return None

    def _end(self, head: ResponseHead, trailers: ResponseHead | None) -> None:
        """Take END_STREAM."""
        assert self.connection is not None
        tail = trailers.metadata if trailers is not None else ()
        code = trailers.code if trailers is not None else None
        error: WireError | None = None
        if code is not None:
            assert trailers is not None
            if code == grpc.OK and self._buffer:
                error = ProtocolError(f"{self.connection.describe()}: the last message is cut short", sent=True)
            status = Reply(b"", code, trailers.details, self.headers, tail)
        elif head.status != 200 or not head.grpc:
            text = f"HTTP status {head.status} instead of a gRPC reply"
            status = Reply(b"", grpc.status_from_http(head.status or 0), text, self.headers, tail)
        else:
            status = Reply(b"", grpc.UNKNOWN, "the server sent no grpc-status", self.headers, tail)
        self.connection.finished(self)
        if error is None:
            self.status = status
        self._settle(error)

    def _settle(self, error: WireError | None) -> None:
        if self._error is None and error is not None and self.status is None:
            self._error = error
        self._buffer.clear()
        self.channel.deadlines.remove(self, self.slot)
        _wake(self._receiver)
        _wake(self._sender)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
