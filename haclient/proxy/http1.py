"""HTTP/1.1 with a client: one connection of the listening port, on h11.

Decision made here: a connection has one request at a time, whole before it is answered and whole when it is passed
on, so nothing of how the client framed it reaches a server. What a client may take its time for is bounded by one
timer that is set anew for each phase:

    head     all of it within `request_s` of the first byte
    body     `_STEP` more bytes of it in every `request_s`
    answer   no limit here: the call has its deadline
    reply    each part of it taken within `reply_s`
    rest     the next request within `idle_s`
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, cast, final

import h11

from haclient.config import ProxyLimits
from haclient.proxy.admission import Admission
from haclient.proxy.head import REQUEST_ID
from haclient.proxy.rest import HttpRequest, HttpResponse, refusal, shed

Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]

#: Bytes of a body that make progress, and of a reply that are written at a time.
_STEP: Final = 64 << 10
_PART: Final = 256 << 10
#: How long a client is listened to that was refused in the middle of its request, so that it reads why; seconds.
_LINGER_S: Final = 2.0
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_BODILESS: Final = (204, 304)
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


@final
class Http1Connection(asyncio.Protocol):
    """One connection; hand it to its transport, or call `connection_made` and then `data_received` with what came.

    Args:
        loop: The running loop.
        limits: What a client may do.
        most_bytes: Largest body.
        handler: Answers a request; it is cancelled if the client goes away.
        admission: Lets requests in.
        request_id: Makes an id for a request whose client gave none.
        on_closed: Told once, when the connection is gone and no call of it is under way.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: ProxyLimits,
        most_bytes: int,
        handler: Handler,
        admission: Admission,
        request_id: Callable[[], str],
        on_closed: Callable[[Http1Connection], None],
    ) -> None:
        self._loop = loop
        self._limits = limits
        self._most_bytes = most_bytes
        self._handler = handler
        self._admission = admission
        self._request_id = request_id
        self._on_closed = on_closed
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._draining = False
        #: Whatever comes is thrown away: the connection closes.
        self._over = False
        #: The call under way, and bytes that came after its request.
        self._task: asyncio.Task[None] | None = None
        self._ahead = 0
        # The request that is coming in.
        self._request: h11.Request | None = None
        self._body = bytearray()
        #: What admission has been asked for: calls and bytes.
        self._counted = self._held = 0
        #: Length of the body at which the timer is set anew.
        self._due = 0
        self._begun = False

    @property
    def busy(self) -> bool:
        """A call is under way."""
        return self._task is not None

    def begin_drain(self) -> None:
        """Finish the request that has begun, if any, and close."""
        self._draining = True
        if self._task is None and not self._begun and not self._over:
            self._close()

    # -- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._arm(self._limits.request_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`: nobody waits for an answer any more."""
        self._over = True
        self._transport = None
        self._disarm()
        self._let_go()
        if self._task is None:
            self._on_closed(self)
        else:
            self._task.add_done_callback(lambda _: self._on_closed(self))
            self._task.cancel()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._over:
            return
        self._http.receive_data(data)
        if self._task is None:
            self._advance()
            return
        # The next request is here already. It waits; reading on is only needed to hear of a client that goes away.
        self._ahead += len(data)
        if self._ahead > self._limits.header_bytes and self._transport is not None:
            self._transport.pause_reading()

    # -- a request comes in

    def _advance(self) -> None:
        """Take what has come, as far as it goes."""
        while not self._over and self._task is None:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint, f"the request is not well-formed HTTP/1.1: {error}")
                return
            if event is h11.NEED_DATA:
                self._wait()
                return
            if isinstance(event, h11.Request):
                self._on_request(event)
            elif isinstance(event, h11.Data):
                self._on_data(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._on_end()
            else:  # the other side has closed
                self._close()

    def _wait(self) -> None:
        """Set the timer for what comes next, unless it runs already."""
        if self._request is not None:
            if self._http.they_are_waiting_for_100_continue:
                assert self._transport is not None
                self._transport.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        elif not self._begun and self._http.trailing_data[0]:
            self._begun = True
            self._arm(self._limits.request_s, self._late)

    def _on_request(self, event: h11.Request) -> None:
        self._begun = True
        self._request = event
        headers = event.headers
        size = len(event.target) + sum(len(name) + len(value) for name, value in headers)
        given = {name: value for name, value in headers if name in (b"content-length", b"transfer-encoding")}
        length = int(given.get(b"content-length", b"0"))
        if size > self._limits.header_bytes:
            self._refuse(431, f"the headers are larger than the {self._limits.header_bytes} bytes allowed")
        elif len(given) > 1 or (b"transfer-encoding" in given and event.http_version < b"1.1"):
            # Whatever stands before us may have taken the body for a longer or shorter one (RFC 9112 section 6.1).
            self._refuse(400, "a body has a Content-Length or, in HTTP/1.1 only, a Transfer-Encoding, and not both")
        elif length > self._most_bytes:
            self._refuse_size()
        else:
            self._due = _STEP
            self._arm(self._limits.request_s, self._late)

    def _on_data(self, data: bytes | bytearray) -> None:
        body = self._body
        body += data
        reason = self._admission.hold(len(data))
        if reason:
            self._finish_early(shed(reason))
            return
        self._held += len(data)
        if len(body) > self._most_bytes:
            self._refuse_size()
        elif len(body) >= self._due:
            self._due = len(body) + _STEP
            self._arm(self._limits.request_s, self._late)

    def _on_end(self) -> None:
        event, body = self._request, bytes(self._body)
        assert event is not None
        self._body = bytearray()
        self._disarm()
        reason = self._admission.admit()
        self._counted = 0 if reason else 1
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
        request = HttpRequest(event.method.decode("ascii"), event.target.decode("latin-1"), headers, body)
        self._task = self._loop.create_task(self._answer(request, reason))

    def _let_go(self) -> None:
        self._admission.release(self._counted, self._held)
        self._counted = self._held = 0

    # -- a response goes out

    async def _answer(self, request: HttpRequest, reason: str) -> None:
        """Answer one request, and go on to the next."""
        mark = request.header(REQUEST_ID)
        if not _REQUEST_ID.fullmatch(mark):
            mark = self._request_id()
            rest = tuple(header for header in request.headers if header[0] != REQUEST_ID)
            request = HttpRequest(request.verb, request.target, ((REQUEST_ID, mark), *rest), request.body)
        try:
            response = shed(reason) if reason else await self._handler(request)
            await self._send(response, mark, request.verb)
        except Exception as error:
            self._loop.call_exception_handler({"message": "a request could not be answered", "exception": error})
            if self._http.our_state is h11.SEND_RESPONSE:
                await self._send(refusal(500, "the proxy has failed to answer; its log says why"), mark, request.verb)
            else:
                self._abort()
        finally:
            self._let_go()
        self._next()

    async def _send(self, response: HttpResponse, mark: str, verb: str) -> None:
        """Write a response, no faster than the client takes it."""
        head, body = self._frame(response, mark, verb)
        # Held until the client has taken it; not refused any more, since the work is done.
        self._admission.memory_bytes += len(body)
        self._held += len(body)
        parts: list[bytes | memoryview] = [head + body]
        if len(body) > _PART:
            whole = memoryview(body)
            parts = [head, *(whole[at : at + _PART] for at in range(0, len(body), _PART))]
        for part in parts:
            if self._transport is None:
                return
            self._transport.write(part)
            try:
                async with asyncio.timeout(self._limits.reply_s):
                    await self._writable.wait()
            except TimeoutError:
                self._abort()
                return

    def _frame(self, response: HttpResponse, mark: str, verb: str) -> tuple[bytes, bytes]:
        """Return the head of a response, and the body that goes with it."""
        status, body = response.status, response.body
        headers = [header for header in response.headers if header[0] != REQUEST_ID]
        if mark:
            headers.append((REQUEST_ID, mark))
        if status not in _BODILESS:
            headers.append(("content-length", str(len(body))))
        if self._draining or self._over:
            headers.append(("connection", "close"))
        head = self._http.send(
            h11.Response(
                status_code=status,
                reason=_PHRASES.get(status, ""),
                headers=[(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers],
            )
        )
        assert head is not None
        if verb == "HEAD" or status in _BODILESS:
            body = b""
        if body:
            self._http.send_with_data_passthrough(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        return head, body

    def _next(self) -> None:
        """Make ready for the next request, or close."""
        self._task = None
        if self._over or self._transport is None:
            return
        if self._draining or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._close()
            return
        self._http.start_next_cycle()
        if self._ahead > self._limits.header_bytes:
            self._transport.resume_reading()
        self._request, self._ahead, self._begun = None, 0, False
        self._arm(self._limits.idle_s, self._close)
        self._advance()

    # -- the end

    def _refuse_size(self) -> None:
        self._refuse(413, f"the body is larger than the {self._most_bytes} bytes that wire.max_message_bytes allows")

    def _refuse(self, status: int, message: str) -> None:
        self._finish_early(refusal(status, message))

    def _finish_early(self, response: HttpResponse) -> None:
        """Answer before the request was whole, and close once the client has had time to read it."""
        transport = self._transport
        self._over = True
        self._let_go()
        self._body = bytearray()
        if transport is None:
            return
        verb = self._request.method.decode("ascii") if self._request is not None else ""
        transport.write(b"".join(self._frame(response, "", verb)))
        if transport.can_write_eof():
            # Closed at once, with bytes unread, TCP would reset the connection and the client lose the answer.
            transport.write_eof()
            self._arm(_LINGER_S, self._abort)
        else:
            transport.close()
            self._arm(_LINGER_S, self._abort)

    def _late(self) -> None:
        """Give up on a request that does not come."""
        if self._begun:
            self._refuse(408, f"the request did not go on for {self._limits.request_s:g} s")
        else:
            self._close()

    def _close(self) -> None:
        """Close when what was written has gone out, or after `reply_s`."""
        self._over = True
        if self._transport is not None:
            self._transport.close()
            self._arm(self._limits.reply_s, self._abort)

    def _abort(self) -> None:
        self._over = True
        if self._transport is not None:
            self._transport.abort()

    def _arm(self, after_s: float, then: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._loop.call_later(after_s, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
