"""A stream passed through: what a client sends goes to a server, what the server answers goes back, as it comes.

Decision made here: bytes are passed on, not messages, so that any call (streaming in any direction, compressed, of an
unknown service) goes through, and either side's window opens only as the other side takes what was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

from haclient.call import Metadata
from haclient.errors import ConnectionLost, ProtocolError, StreamReset, WireError
from haclient.wire import frames, grpc
from haclient.wire.channel import Channel
from haclient.wire.client import ClientConnection
from haclient.wire.grpc import ResponseHead
from haclient.wire.headers import encode_fields
from haclient.wire.server import IncomingStream, ServerConnection, passed_on
from haclient.wire.unary import ClientStream

#: What a part that waits costs beside its bytes: a client may send one byte at a time.
_PART_BYTES: Final = 256


class RelayedStream(IncomingStream):
    """The client's side of a relay; a subclass opens the other side with `connect`."""

    __slots__ = ("_last", "_out", "_waiting")

    #: A stream may be silent for as long as it likes.
    hurried = False

    def __init__(self, connection: ServerConnection[Any]) -> None:
        super().__init__(connection)
        self._out: _Upstream | None = None
        self._last: bytes | None = None
        #: Bytes of the answer that wait for the client.
        self._waiting = 0

    def hold(self, size: int) -> str:
        """Hold bytes that wait for the slower side; return why not, "" if they are held."""
        raise NotImplementedError

    def release(self, size: int) -> None:
        """Bytes held have been taken, or are thrown away."""
        raise NotImplementedError

    def connect(
        self,
        channel: Channel,
        path: str,
        metadata: Metadata,
        encoding: str,
        timeout_s: float,
        ended: Callable[[WireError | None], None],
    ) -> None:
        """Open the server's side.

        Args:
            channel: Where to.
            path: The ``:path``.
            metadata: Fields of the request.
            encoding: Its ``grpc-encoding``.
            timeout_s: Seconds it may last in all, infinity for ever.
            ended: Told how it ended: None if the server has ended it in its own way or the client has left.
        """
        block = channel.encode(path, metadata)
        if encoding != "identity":
            block += encode_fields((("grpc-encoding", encoding),))
        self._out = _Upstream(self, channel, block, timeout_s, ended)
        channel.submit(self._out, timeout_s)
        if self.remote_closed:
            self._out.pass_on(b"", True)

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Pass a part of the request on."""
        if self.remote_closed:
            self.connection.fault(self, frames.STREAM_CLOSED, "DATA behind END_STREAM")
            return
        self.received += size
        self.remote_closed = end
        if self._out is not None:
            self._out.pass_on(data, end)

    def on_sendable(self) -> None:
        """The client has taken what there was: let the server go on."""
        self._let_go()
        if self._last is not None:
            self.end(self._last)
        elif self._out is not None:
            self._out.credit()

    def end(self, block: bytes) -> None:
        """Send the last header block, behind all that waits."""
        if self.outgoing is not None:
            self._last = block
        elif self.id in self.connection.streams:
            self.respond(block, end=True)

    def pass_back(self, data: bytes) -> str:
        """Send a part of the answer; return why not, "" if it is on its way, or waits to be."""
        self.connection.send_data(self, (data,), len(data), False)
        if self.outgoing is None:
            return ""
        reason = self.hold(len(data) + _PART_BYTES)
        if not reason:
            self._waiting += len(data) + _PART_BYTES
        return reason

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, 0
        self.release(waiting)

    def credit(self) -> None:
        """Open the client's window by what has been passed on."""
        window = self.connection.limits.stream_window_bytes
        if not self.remote_closed and self.recv_window << 1 <= window and self.id in self.connection.streams:
            self.connection.refill_stream(self, window - self.recv_window)

    def on_reset(self, code: int) -> None:
        """The client has given up: so do we."""
        self._let_go()
        if self._out is not None:
            self._out.cancel()

    def on_gone(self, error: WireError) -> None:
        """The client is gone."""
        self.on_reset(frames.CANCEL)


@final
class _Upstream(ClientStream):
    """The server's side of a relay."""

    __slots__ = ("_end_waits", "_ended", "_head", "_in", "_queue", "_used", "_waiting")

    def __init__(
        self,
        incoming: RelayedStream,
        channel: Channel,
        block: bytes,
        timeout_s: float,
        ended: Callable[[WireError | None], None],
    ) -> None:
        super().__init__(channel, block, channel.loop.time() + timeout_s)
        self._in: RelayedStream | None = incoming
        self._ended = ended
        self._head: ResponseHead | None = None
        self._queue: list[bytes] = []
        self._end_waits = False
        self._used = False
        #: Bytes of the request that wait for the server, or for a connection to it.
        self._waiting = 0

    # -- the request

    def pass_on(self, data: bytes, end: bool) -> None:
        """Send a part of the request, or keep it until there is a connection: one window of it at most."""
        incoming = self._in
        if incoming is None:
            return
        if self.connection is None:
            self._queue.append(data)
            self._end_waits = end
        elif self.local_closed:
            return
        else:
            self._used = True
            self.connection.send_data(self, (data,) if data else (), len(data), end)
            if self.outgoing is None:
                incoming.credit()
                return
        reason = incoming.hold(len(data) + _PART_BYTES)
        if reason:
            self._overrun(reason)
        else:
            self._waiting += len(data) + _PART_BYTES

    def send_request(self, connection: ClientConnection) -> None:
        """Send what has waited for the connection."""
        self._let_go()
        data, self._queue = b"".join(self._queue), []
        if data or self._end_waits:
            self.pass_on(data, self._end_waits)

    def on_sendable(self) -> None:
        """The server has taken what there was: let the client go on."""
        self._let_go()
        if self._in is not None:
            self._in.credit()

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, 0
        if self._in is not None:
            self._in.release(waiting)

    # -- the answer

    def on_head(self, head: ResponseHead, end: bool) -> None:
        """Pass a header block or trailers back."""
        if self._in is None:
            return
        if self._head is None and head.status is not None and head.status < 200:
            self._informational()
        elif self._head is None:
            self._head = head
            fields = [(":status", str(head.status or 502)), ("content-type", "application/grpc")]
            if not head.grpc and head.code is None:
                fields += [("grpc-status", str(grpc.status_from_http(head.status or 0)))]
                self._finish(encode_fields(fields), StreamReset("no gRPC", code=0, sent=True))
                return
            if head.encoding != "identity":
                fields.append(("grpc-encoding", head.encoding))
            block = encode_fields(fields) + passed_on(head.metadata)
            if end:
                self._finish(block + encode_fields(_status(head)), None)
            else:
                self._in.respond(block, end=False)
        elif head.status is None and end:
            self._finish(encode_fields(_status(head)) + passed_on(head.metadata), None)
        else:
            self._break("a second header block that is no trailers")

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        """Pass a part of the answer back."""
        incoming = self._in
        if incoming is None:
            return
        if self._head is None:
            self._break("DATA before HEADERS")
            return
        reason = incoming.pass_back(data) if data else ""
        if reason:
            self._overrun(reason)
        elif end:
            self._finish(grpc.trailers_block(grpc.UNKNOWN, "the server sent no grpc-status"), None)
        elif incoming.outgoing is None:
            self.credit()

    def credit(self) -> None:
        """Open the server's window by what the client has taken."""
        connection = self.connection
        if connection is not None and self._in is not None:
            window = connection.limits.stream_window_bytes
            if self.recv_window << 1 <= window:
                connection.refill_stream(self, window - self.recv_window)

    # -- the end

    @property
    def settled(self) -> bool:
        """It has ended."""
        return self._in is None

    def cancel(self) -> None:
        """Give up."""
        if self._in is not None:
            self._give_up()
            self._settle(None)

    def expired(self) -> None:
        """The deadline is here."""
        self._give_up()
        self._fail(grpc.DEADLINE_EXCEEDED, "the stream did not end within the time allowed", None)

    def _overrun(self, reason: str) -> None:
        """There is no room for what has to wait."""
        self._give_up()
        self._fail(grpc.RESOURCE_EXHAUSTED, reason, None)

    def _give_up(self) -> None:
        if self.connection is not None:
            self.connection.drop(self, frames.CANCEL)

    def on_reset(self, code: int) -> None:
        """Take RST_STREAM."""
        text = f"the server reset the stream ({frames.error_name(code)})"
        self._fail(grpc.UNAVAILABLE, text, StreamReset(text, code=code, sent=code != frames.REFUSED_STREAM))

    def on_gone(self, error: WireError) -> None:
        """Take the end of the connection, or that there is none."""
        self._fail(grpc.UNAVAILABLE, str(error), error)

    def detach(self) -> WireError | None:
        """See `ClientStream.detach`: only what has sent nothing can be moved."""
        where = str(self.channel)
        self.connection = None
        self.id = 0
        self.local_closed = False
        if self._head is not None or self._used:
            return ConnectionLost(f"{where}: the server went away (GOAWAY) without reading the stream", sent=False)
        return None

    def _break(self, text: str) -> None:
        assert self.connection is not None
        self.connection.drop(self, frames.PROTOCOL_ERROR)
        self._fail(grpc.INTERNAL, text, ProtocolError(f"{self.channel}: {text}", sent=True))

    def _fail(self, code: int, text: str, error: WireError | None) -> None:
        """End the client's side with a status of our own."""
        if self._in is not None:
            make = grpc.status_block if self._head is None else grpc.trailers_block
            self._in.end(make(code, text))
            self._settle(error)

    def _finish(self, block: bytes, error: WireError | None) -> None:
        """The server has ended it: so does the client's side, once it has taken everything."""
        incoming, connection = self._in, self.connection
        assert incoming is not None
        if connection is not None and self.id in connection.streams:
            connection.finished(self)
        incoming.end(block)
        self._settle(error)

    def _settle(self, error: WireError | None) -> None:
        self._let_go()
        self._in = None
        self._queue.clear()
        self.channel.deadlines.remove(self, self.slot)
        self._ended(error)


def _status(head: ResponseHead) -> tuple[tuple[str, str], ...]:
    code = grpc.UNKNOWN if head.code is None else head.code
    return (("grpc-status", str(code)), ("grpc-message", grpc.encode_message(head.details)))
