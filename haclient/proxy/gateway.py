"""From a client's request to the core, and from its answer back.

Decision made here: a server's answer reaches the client byte for byte, also one that says no. Where no server could be
brought to answer, a failure that may pass is a gRPC status, which SDKs may try again; one that must not be repeated is
Milvus' own status in the body, because SDKs repeat what fails with a gRPC status (pymilvus: inserts, too).
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from typing import TYPE_CHECKING, Final, final

from haclient.call import STATUS_NONE, Kind, Metadata, Method, Reply
from haclient.core import Core, winner
from haclient.errors import CallError, DeadlineExceeded, HAClientError, Unavailable, WireError
from haclient.exchange import Exchange
from haclient.milvus import messages
from haclient.milvus.methods import HEALTH, SERVICE, SEVERAL_CLUSTERS, method
from haclient.proxy.admission import Admission
from haclient.proxy.head import REQUEST_ID, Head
from haclient.proxy.rest import HttpRequest, HttpResponse, RestGateway, refusal, shed
from haclient.proxy.rest_transport import channel_of
from haclient.proxy.sessions import Sessions
from haclient.wire import grpc
from haclient.wire.headers import encode_fields, literal
from haclient.wire.incoming import IncomingCall, IncomingHttp
from haclient.wire.relay import RelayedStream
from haclient.wire.server import IncomingStream, ServerConnection, passed_on

if TYPE_CHECKING:
    from haclient.proxy.health import Health

log = logging.getLogger("haclient.proxy.calls")

Connection = ServerConnection[Head]

_HEAD_ID: Final = grpc.RESPONSE + b"\x00" + bytes([len(REQUEST_ID)]) + REQUEST_ID.encode()
_OK_TRAILERS: Final = encode_fields((("grpc-status", "0"),))
_HEALTH: Final = f"/{HEALTH}/"
_CONNECT: Final = f"/{SERVICE}/Connect"
_ABOUT_SERVERS: Final = frozenset((_CONNECT, f"/{SERVICE}/ShowCollections"))
_ASCII_BYTES: Final = 127


@final
class Gateway:
    """What a worker's calls have in common.

    Attributes:
        core: Answers them.
        admission: Says how many there may be.
        health: Answers gRPC's health checks.
        rest: Answers plain HTTP.
        sessions: What servers call the clients.
    """

    __slots__ = ("_made", "_prefix", "admission", "core", "health", "rest", "sessions")

    def __init__(self, core: Core, admission: Admission, health: Health, rest: RestGateway) -> None:
        self.core = core
        self.admission = admission
        self.health = health
        self.rest = rest
        self.sessions = Sessions()
        self._prefix = secrets.token_hex(4) + "-"
        self._made = 0

    def request_id(self) -> str:
        """Make an id for a call whose client gave none: of this process, and growing."""
        self._made += 1
        return f"{self._prefix}{self._made:x}"

    def accept(self, connection: Connection, head: Head) -> IncomingStream:
        """Make the stream of a request."""
        if not head.grpc:
            return ProxyRequest(connection, self, head)
        known = head.method
        if (known is None or known.kind is Kind.PROBE) and head.path.startswith(_HEALTH):
            return self.health.stream(connection, head.path)
        if known is None or known.streaming:
            return ProxyStream(connection, self, head)
        return ProxyCall(connection, self, head, known)

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer a plain HTTP request."""
        return await self.rest.answer(request)


@final
class ProxyCall(IncomingCall):
    """One unary call of a client."""

    __slots__ = ("_counted", "_exchange", "_gateway", "_head", "_held", "_id", "_method")

    def __init__(self, connection: Connection, gateway: Gateway, head: Head, known: Method) -> None:
        # Every field of every base at once: five constructors would cost more than all else that is done here.
        self.id = self.send_window = self.recv_window = self.received = 0
        self.outgoing = None
        self.end_waiting = self.local_closed = self.remote_closed = False
        self.moved = -1
        self.moved_at = 0.0
        self.connection = connection
        self.body = b""
        self._trailers = None
        self._gateway = gateway
        self._head = head
        self._method = known
        self._exchange: Exchange | None = None
        self._held = 0
        self._counted = 0
        self._id = ""

    # -- the request

    def on_request(self, end: bool) -> None:
        """Refuse a stranger at once."""
        if not self._head.admitted:
            self.refuse(grpc.UNAUTHENTICATED, "the proxy asks for a token, and this is not one it accepts")
        elif end:
            self.on_whole()

    def encoding(self) -> str:
        """See `IncomingCall`."""
        return self._head.encoding

    def grow(self, size: int) -> bool:
        """See `GatheredStream`."""
        reason = self._gateway.admission.hold(size)
        if reason:
            self.refuse(grpc.RESOURCE_EXHAUSTED, reason)
            return False
        self._held += size
        return True

    def on_message(self, message: bytes) -> None:
        """Hand the request to the core."""
        gateway, head = self._gateway, self._head
        reason = gateway.admission.admit()
        if reason:
            self.refuse(grpc.RESOURCE_EXHAUSTED, reason)
            return
        self._counted = 1
        self._id = head.request_id or gateway.request_id()
        try:
            self._exchange = gateway.core.begin(
                self._method,
                message,
                (*head.metadata, (REQUEST_ID, self._id)),
                head.timeout_s,
                self._answered,
                credentials=head.credentials,
                session=gateway.sessions.of(head.identifier) if head.identifier else None,
                past=gateway.sessions.past(self.connection) if gateway.core.reader is not None else None,
            )
        except CallError as error:
            self._answered(error)

    def on_cancelled(self) -> None:
        """The client gave up: give up upstream, too."""
        if self._exchange is not None:
            self._exchange.cancel()
        self._release()

    # -- the answer

    def _answered(self, outcome: Reply | HAClientError) -> None:
        reply = outcome if type(outcome) is Reply else self._told(outcome)
        message = reply.message
        own: Metadata = ()
        if self._method.path in _ABOUT_SERVERS and reply.code == 0 and self._exchange is not None:
            message, own = self._about_us(message, self._exchange)
        trailers = reply.trailers
        if self._gateway.core.reader is not None and self._exchange is not None:
            trailers += self._gateway.core.reader.trailer(self._exchange.call)
        if log.isEnabledFor(logging.DEBUG):
            self._log(logging.DEBUG, "answered", reply)
        mark = self._id.encode()
        if len(mark) < _ASCII_BYTES:
            head = _HEAD_ID + bytes([len(mark)]) + mark
        else:
            head = grpc.RESPONSE + literal(REQUEST_ID.encode(), mark)
        if reply.headers or own:
            head += passed_on(reply.headers + own)
        if reply.code:
            tail = grpc.trailers_block(reply.code, reply.details)
            self.fail(head + tail + passed_on(trailers))
            return
        # Held until the client has taken it; not refused any more, since the work is done.
        self._gateway.admission.memory_bytes += len(message)
        self._held += len(message)
        self.answer(head, message, _OK_TRAILERS + passed_on(trailers) if trailers else _OK_TRAILERS)

    def _told(self, error: HAClientError) -> Reply:
        """Tell a failure in words that SDKs understand."""
        reply = last_word(self._method, error)
        self._log(logging.WARNING, str(error), reply)
        return reply

    def _about_us(self, message: bytes, exchange: Exchange) -> tuple[bytes, Metadata]:
        """Answer for all servers where one has answered for itself; returns the message, and fields beside it."""
        won = winner(exchange.call)
        if won is None:
            return message, ()
        if self._method.path == _CONNECT:
            return self._gateway.sessions.introduce((won.cluster, won.endpoint), message), ()
        several = not self._gateway.core.fleet.single_cluster()
        return message, (SEVERAL_CLUSTERS,) if several else ()

    def on_answered(self) -> None:
        """See `IncomingCall`."""
        self._release()

    def _release(self) -> None:
        self._gateway.admission.release(self._counted, self._held)
        self._counted = self._held = 0
        self._exchange = None

    def _log(self, level: int, text: str, reply: Reply) -> None:
        where = {"request_id": self._id, "method": self._method.name, "grpc_status": reply.code}
        if self._exchange is not None:
            where["attempts"] = "; ".join(map(str, self._exchange.call.attempts))
        log.log(level, "%s %s: %s", self._id, self._method.name, text, extra={"haclient": where})


@final
class ProxyStream(RelayedStream):
    """A call that is passed through as it comes: a stream, or a method that nothing is known of."""

    __slots__ = ("_counted", "_gateway", "_head")

    def __init__(self, connection: Connection, gateway: Gateway, head: Head) -> None:
        super().__init__(connection)
        self._gateway = gateway
        self._head = head
        self._counted = 0

    def on_request(self, end: bool) -> None:
        """Open the way to a server."""
        gateway, head = self._gateway, self._head
        if not head.admitted:
            self._refuse(grpc.UNAUTHENTICATED, "the proxy asks for a token, and this is not one it accepts")
            return
        reason = gateway.admission.admit()
        if reason:
            self._refuse(grpc.RESOURCE_EXHAUSTED, reason)
            return
        self._counted = 1
        timeout_s = math.inf if head.timeout_s is None else head.timeout_s
        deadline = gateway.core.loop.time() + timeout_s
        flight = gateway.core.lend(method(head.path), head.metadata, head.credentials, deadline)
        if flight is None:
            self._ended()
            self._refuse(grpc.UNAVAILABLE, "no endpoint is in rotation")
            return

        def ended(error: WireError | None) -> None:
            flight.landed(Reply(b"") if error is None else error)
            self._ended()

        self.connect(channel_of(flight.node.data), head.path, flight.metadata(), head.encoding, timeout_s, ended)

    def hold(self, size: int) -> str:
        """See `RelayedStream`."""
        return self._gateway.admission.hold(size)

    def release(self, size: int) -> None:
        """See `RelayedStream`."""
        self._gateway.admission.release(0, size)

    def _refuse(self, code: int, details: str) -> None:
        self.end(grpc.status_block(code, details))

    def _ended(self) -> None:
        self._gateway.admission.release(self._counted, 0)
        self._counted = 0


@final
class ProxyRequest(IncomingHttp):
    """A plain HTTP request on an HTTP/2 connection."""

    __slots__ = ("_counted", "_gateway", "_head", "_held", "_task")

    def __init__(self, connection: Connection, gateway: Gateway, head: Head) -> None:
        super().__init__(connection)
        self._gateway = gateway
        self._head = head
        self._held = self._counted = 0
        self._task: asyncio.Task[None] | None = None

    def grow(self, size: int) -> bool:
        """See `GatheredStream`."""
        limit = self.connection.limits.max_message_bytes
        if len(self.body) + size > limit:
            self._refuse(refusal(413, f"the body has more than {limit} bytes, which is all max_message_bytes allows"))
            return False
        reason = self._gateway.admission.hold(size)
        if reason:
            self._refuse(shed(reason))
            return False
        self._held += size
        return True

    def on_whole(self) -> None:
        """Have it answered by a task."""
        reason = self._gateway.admission.admit()
        if reason:
            self._refuse(shed(reason))
            return
        self._counted = 1
        self._task = self.connection.loop.create_task(self._run())

    async def _run(self) -> None:
        head, body = self._head, bytes(self.body)
        self.body = b""
        response = await self._gateway.rest.answer(HttpRequest(head.verb, head.path, head.fields, body))
        # Held until the client has taken it, as in `ProxyCall`.
        self._gateway.admission.memory_bytes += len(response.body)
        self._held += len(response.body)
        self.answer(response.status, response.headers, b"" if head.verb == "HEAD" else response.body)

    def _refuse(self, response: HttpResponse) -> None:
        self.answer(response.status, response.headers, response.body)

    def on_answered(self) -> None:
        """See `IncomingHttp`."""
        self._gateway.admission.release(self._counted, self._held)
        self._counted = self._held = 0

    def on_cancelled(self) -> None:
        """The client gave up."""
        if self._task is not None:
            self._task.cancel()
        self.on_answered()


def last_word(known: Method, error: HAClientError) -> Reply:
    """Turn an error into what its client gets: the last server's own answer if there is one, else one of ours."""
    if isinstance(error, Unavailable):
        for attempt in reversed(error.attempts):
            if attempt.reply is not None:
                return attempt.reply
        return Reply(b"", grpc.UNAVAILABLE, _line(error))
    if isinstance(error, DeadlineExceeded):
        return Reply(b"", grpc.DEADLINE_EXCEEDED, _line(error))
    if known.status == STATUS_NONE:
        return Reply(b"", grpc.INVALID_ARGUMENT, _line(error))
    return Reply(messages.refusal(known, _line(error)))


def _line(error: HAClientError) -> str:
    return " ".join(str(error).split())
