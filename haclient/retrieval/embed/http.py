"""HTTP as a `haclient.call.Transport`: one base URL, reached with httpx.

Decision made here: HTTP is translated at once into what the core speaks. A status becomes gRPC's code for it (as in
google.rpc.Code), a body that is no answer becomes a failure of the server, and vectors are handed on as plain float32,
so that everything above can be judged by its code. A server's text never shows a secret that was sent to it.

A request is given up by cancelling anyio's scope around it, never its task: httpx cleans up in shielded scopes, which a
task's cancellation cuts through, and then its pool keeps the connection for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import final

import anyio
import httpx

from haclient.call import Metadata, Outcome, Reply
from haclient.errors import (
    AttemptTimeout,
    ConnectFailed,
    ConnectionLost,
    EmbeddingError,
    ProtocolError,
    TransportClosed,
    WireError,
)
from haclient.fleet.flight import UNAUTHENTICATED
from haclient.retrieval.embed.agreement import Agreement
from haclient.retrieval.embed.openai_api import count_texts, read_answer, read_refusal

INVALID_ARGUMENT, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 3, 8, 13, 14
#: Every other status says that this server cannot serve, whatever the request.
_CODES = {
    400: INVALID_ARGUMENT,
    401: UNAUTHENTICATED,
    403: UNAUTHENTICATED,
    413: INVALID_ARGUMENT,
    422: INVALID_ARGUMENT,
    429: RESOURCE_EXHAUSTED,
}
#: What is answered by every process that can answer at all; asked with GET.
MODELS = "/models"
_PING_TIMEOUT_S = 10.0
#: Shorter words of a header's value (``Bearer`` is one of six letters) are not worth hiding.
_SHORTEST_SECRET = 8
_SHOWN_LETTERS = 300
#: Idle connections are closed before servers do so (uvicorn and Node.js after 5 s), or requests would meet the close.
_KEEP_S = 4.0


def tls() -> ssl.SSLContext:
    """Make what several transports can share, since it takes some milliseconds."""
    return httpx.create_ssl_context()


@final
class HTTPTransport:
    """One base URL.

    Args:
        name: What errors call the server.
        url: The base URL, without a slash at its end.
        headers: Sent with every request; their values are secrets.
        agreement: What the servers say they are.
        connect_timeout_s: Time to connect, seconds.
        verify: See `tls`.
        loop: Runs the requests.
    """

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str],
        agreement: Agreement,
        connect_timeout_s: float,
        verify: ssl.SSLContext,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._name = name
        self._url = url
        self._secrets = [word for value in headers.values() for word in value.split() if len(word) >= _SHORTEST_SECRET]
        self._agreement = agreement
        self._loop = loop
        self._closed = False
        self._exchanges: dict[asyncio.Task[None], Exchange] = {}
        self._client = httpx.AsyncClient(
            headers={"content-type": "application/json", **headers},
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            # How many requests there may be is decided above.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_S),
            verify=verify,
        )

    def start(
        self, path: str, message: bytes, metadata: Metadata, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Exchange:
        """See `haclient.call.Transport`: POST a message, or GET if it is empty."""
        exchange = Exchange(done)
        task = self._loop.create_task(self._run(exchange, path, message, timeout_s))
        self._exchanges[task] = exchange
        task.add_done_callback(self._exchanges.pop)
        return exchange

    def ping(self, done: Callable[[float | WireError], None]) -> None:
        """See `haclient.call.Transport`: whatever comes back, the process is there."""
        start = self._loop.time()

        def answered(outcome: Outcome) -> None:
            done(self._loop.time() - start if isinstance(outcome, Reply) else outcome)

        self.start(MODELS, b"", (), _PING_TIMEOUT_S, answered)

    async def aclose(self) -> None:
        """See `haclient.call.Transport`."""
        self._closed = True
        for exchange in self._exchanges.values():
            exchange.abort()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        await self._client.aclose()

    async def _run(self, exchange: Exchange, path: str, message: bytes, timeout_s: float) -> None:
        outcome: Outcome | None = None
        if exchange.wanted and not self._closed:
            with anyio.move_on_after(timeout_s) as exchange.scope:
                outcome = await self._ask(path, message)
        if outcome is None:
            closed, late = TransportClosed(sent=True), AttemptTimeout(f"no answer within {timeout_s:g} s", sent=True)
            outcome = closed if self._closed else late
        exchange.finish(outcome)

    async def _ask(self, path: str, message: bytes) -> Outcome:
        try:
            if not message:
                return self._alive(await self._client.get(self._url + path))
            return self._answered(await self._client.post(self._url + path, content=message), message)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return ConnectFailed(f"cannot connect: {_text(error)}")
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            return ConnectionLost(f"the connection ended before the answer did: {_text(error)}", sent=True)
        except httpx.HTTPError as error:
            return ProtocolError(f"what came back is not HTTP: {_text(error)}", sent=True)

    def _alive(self, response: httpx.Response) -> Reply:
        """Take an answer to a GET: what a server does not know, or does not allow, shows that it is there."""
        return Reply(b"") if response.status_code < 500 else self._refused(response)

    def _answered(self, response: httpx.Response, message: bytes) -> Reply:
        if response.status_code != httpx.codes.OK:
            return self._refused(response)
        try:
            rows, model = read_answer(response.content, count_texts(message))
            self._agreement.check(self._name, self._shown(model), rows.shape[1])
        except EmbeddingError as error:
            return Reply(b"", INTERNAL, str(error))
        return Reply(rows.tobytes())

    def _refused(self, response: httpx.Response) -> Reply:
        status = response.status_code
        text = self._shown(f"HTTP {status} {response.reason_phrase}: {read_refusal(response.content)}")
        if status == httpx.codes.NOT_FOUND:
            text += " (is the model there, and does the base URL end as it should, mostly in /v1?)"
        return Reply(b"", _CODES.get(status, UNAVAILABLE), text)

    def _shown(self, text: str) -> str:
        """Cut what a server said to what may be shown."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:_SHOWN_LETTERS]


@final
class Exchange:
    """One request under way; see `haclient.call.StreamHandle`.

    Attributes:
        scope: What it runs in, once it runs.
    """

    __slots__ = ("_done", "scope")

    def __init__(self, done: Callable[[Outcome], None]) -> None:
        self._done: Callable[[Outcome], None] | None = done
        self.scope: anyio.CancelScope | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it."""
        return self._done is not None

    def cancel(self) -> None:
        """Close its connection; ``done`` is never called."""
        self._done = None
        self.abort()

    def abort(self) -> None:
        """End it now."""
        if self.scope is not None:
            self.scope.cancel()

    def finish(self, outcome: Outcome) -> None:
        """Tell whoever waits how it ended."""
        done, self._done = self._done, None
        if done is not None:
            done(outcome)


def _text(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
