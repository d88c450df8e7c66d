"""Streams that a client opens, and the unary call.

Decision made here: a call is one object, its stream, its handle and its timer's entry, so that answering one
makes no task and no future.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from haclient.call import Outcome, Reply
from haclient.errors import AttemptTimeout, ProtocolError, StreamReset, WireError
from haclient.wire import frames, grpc
from haclient.wire.grpc import PREFIX, PREFIX_SIZE, ResponseHead
from haclient.wire.writer import Stream

if TYPE_CHECKING:
    from haclient.wire.channel import Channel
    from haclient.wire.client import ClientConnection

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

    def _informational(self) -> None:
        """Skip a 1xx header block, in moderation."""
        assert self.connection is not None
        self.connection.spend_idle("informational HEADERS")

    def detach(self) -> WireError | None:
        """Go back to the state before opening, because of GOAWAY; an error if it is too late for that."""
        raise NotImplementedError


@final
class UnaryStream(ClientStream):
    """One unary call; is its own `haclient.call.StreamHandle`."""

    __slots__ = ("_body", "_done", "_expected", "_head", "_message")

    def __init__(
        self, channel: Channel, block: bytes, message: bytes, deadline: float, done: Callable[[Outcome], None]
    ) -> None:
        # Every field of both bases at once: a constructor of each would cost twice as much.
        self.id = self.send_window = self.recv_window = self.slot = self.moves = 0
        self.outgoing = None
        self.end_waiting = self.local_closed = False
        self.connection = None
        self.channel = channel
        self.block = block
        self.deadline = deadline
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

    def detach(self) -> WireError | None:
        """Prepare for another connection."""
        where = self.connection.describe() if self.connection else str(self.channel)
        self.connection = None
        self.id = 0
        self.local_closed = False
        if self._head is not None:
            return ProtocolError(f"{where}: GOAWAY disowns a call that was being answered", sent=True)
        return None

    def on_head(self, head: ResponseHead, end: bool) -> None:
        """Take response headers or trailers."""
        if self._head is None:
            if head.status is None:
                self._broken("response headers without :status")
            elif end:
                self._complete(head, trailers_only=True)
            elif head.status >= 200:
                self._head = head
            else:
                self._informational()
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
