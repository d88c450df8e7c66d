"""REST to an endpoint's own port, beside gRPC: Milvus tells the two apart by their first bytes.

Decision made here: that an endpoint offers no REST (Milvus Lite, a port that takes gRPC only behind TLS) or not this
route of it (an older server) says nothing about its health. Such a call was certainly not carried out, so it fails as
one that this transport does not carry, `TransportClosed` and not sent, and goes on to another endpoint at no cost.

httpx is used below its client, which would keep cookies for everybody and follow redirects.
"""

from __future__ import annotations

import asyncio
import base64
import math
import ssl
from collections.abc import Callable, Iterator
from typing import Final, final

import anyio
import httpx

from haclient.call import Metadata, Outcome, Reply, StreamHandle, Transport
from haclient.config import ClusterConfig, Config, EndpointConfig
from haclient.errors import AttemptTimeout, ConnectFailed, ConnectionLost, ProtocolError, TransportClosed, WireError
from haclient.fleet.flight import UNAUTHENTICATED
from haclient.fleet.membership import Connect
from haclient.proxy.rest_routes import STATUS, VERB, lacks_route
from haclient.retrieval.embed.http import Exchange
from haclient.transport import tls_of
from haclient.wire.channel import Channel

#: Idle connections are closed soon: a request that meets the server's own close may have to be given up as sent.
_KEEP_S: Final = 4.0
#: What h11 calls a first line that starts with a control character, as HTTP/2's first frame and a TLS alert do.
_NOT_HTTP1: Final = "illegal request line"
#: A longer body is not sent to an endpoint of which it is not known that it speaks HTTP/1.1: one that does not hangs up
#: on the rest of it, which loses its first frame and would look like a crash.
_SHORT: Final = 64 << 10


def with_rest(connect: Connect, config: Config, loop: asyncio.AbstractEventLoop) -> Connect:
    """Return a connector whose transports carry REST calls too; probes are gRPC and need none."""

    def connect_both(cluster: ClusterConfig, endpoint: EndpointConfig, probe: bool) -> Transport:
        transport = connect(cluster, endpoint, probe)
        return transport if probe else DualTransport(transport, RestTransport(cluster, endpoint, config, loop))

    return connect_both


def channel_of(transport: Transport) -> Channel:
    """Return the gRPC channel to an endpoint, which `with_rest` has put another one beside."""
    assert isinstance(transport, DualTransport)
    assert isinstance(transport.channel, Channel)
    return transport.channel


@final
class DualTransport:
    """One endpoint, over gRPC and over REST; see `haclient.call.Transport`.

    Args:
        channel: Carries gRPC.
        rest: Carries REST.
    """

    def __init__(self, channel: Transport, rest: RestTransport) -> None:
        self.channel = channel
        self._rest = rest

    def start(
        self, path: str, message: bytes, metadata: Metadata, timeout_s: float, done: Callable[[Outcome], None]
    ) -> StreamHandle:
        """See `haclient.call.Transport`."""
        if metadata and metadata[0][0] == VERB:
            return self._rest.start(path, message, metadata, timeout_s, done)
        return self.channel.start(path, message, metadata, timeout_s, done)

    def ping(self, done: Callable[[float | WireError], None]) -> None:
        """See `haclient.call.Transport`."""
        self.channel.ping(done)

    async def aclose(self) -> None:
        """See `haclient.call.Transport`."""
        await self._rest.aclose()
        await self.channel.aclose()


@final
class RestTransport:
    """One endpoint, over HTTP/1.1.

    Args:
        cluster: Its cluster's TLS and credentials.
        endpoint: Its address.
        config: Time-outs and limits.
        loop: Runs the requests.

    Raises:
        ConfigError: A TLS file cannot be read.
    """

    def __init__(
        self, cluster: ClusterConfig, endpoint: EndpointConfig, config: Config, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        self._closed = False
        #: It has answered in HTTP/1.1.
        self._met = False
        self._exchanges: dict[asyncio.Task[None], Exchange] = {}
        self._most_bytes = config.wire.max_message_bytes
        authorization = cluster.authorization()
        self._token = base64.b64decode(authorization).decode() if authorization else ""
        unix = endpoint.scheme == "unix"
        self._url = "http://localhost" if unix else endpoint.uri
        self._options: dict[str, object] = {"timeout": {"connect": config.timeouts.connect_s}}
        if cluster.server_name:
            self._options["sni_hostname"] = cluster.server_name
        self._http = httpx.AsyncHTTPTransport(
            verify=tls_of(cluster) if endpoint.secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            trust_env=False,
            # How many requests there may be is decided above.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_S),
            uds=endpoint.path if unix else None,
        )

    def start(
        self, path: str, message: bytes, metadata: Metadata, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Exchange:
        """See `haclient.call.Transport`: ``path`` is the target, and the metadata starts with `VERB`."""
        exchange = Exchange(done)
        request = httpx.Request(
            metadata[0][1],
            self._url,
            headers=list(self._headers(metadata, timeout_s)),
            content=message,
            extensions={**self._options, "target": path.encode("latin-1", "replace")},
        )
        task = self._loop.create_task(self._run(exchange, request, timeout_s))
        self._exchanges[task] = exchange
        task.add_done_callback(self._exchanges.pop)
        return exchange

    async def aclose(self) -> None:
        """See `haclient.call.Transport`."""
        self._closed = True
        for exchange in self._exchanges.values():
            exchange.abort()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        await self._http.aclose()

    def _headers(self, metadata: Metadata, timeout_s: float) -> Iterator[tuple[bytes, bytes]]:
        for name, value in metadata[1:]:
            # The cluster's own credentials win, and stand here as gRPC has them.
            if not (self._token and name == "authorization"):
                yield name.encode("latin-1", "replace"), value.encode("latin-1", "replace")
        if self._token:
            yield b"authorization", f"Bearer {self._token}".encode()
        # In whole seconds; the server need not work on what nobody waits for.
        yield b"request-timeout", str(max(1, math.ceil(timeout_s))).encode()

    async def _run(self, exchange: Exchange, request: httpx.Request, timeout_s: float) -> None:
        outcome: Outcome | None = None
        if exchange.wanted and not self._closed:
            with anyio.move_on_after(timeout_s) as exchange.scope:
                outcome = await self._ask(request)
        if outcome is None:
            late = AttemptTimeout(f"no answer within {timeout_s:g} s", sent=True)
            outcome = TransportClosed(sent=exchange.scope is not None) if self._closed else late
        exchange.finish(outcome)

    async def _ask(self, request: httpx.Request) -> Outcome:
        try:
            if not self._met and len(request.content) > _SHORT:
                await self._exchange(httpx.Request("OPTIONS", self._url, extensions=self._options))
            return await self._exchange(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if _in_tls(error):
                return TransportClosed(f"no REST here: the TLS handshake for HTTP/1.1 failed: {_text(error)}")
            return ConnectFailed(f"cannot connect: {_text(error)}")
        except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
            if str(error) == _NOT_HTTP1:
                return TransportClosed("no REST here: the server does not speak HTTP/1.1")
            return ConnectionLost(f"the connection ended before the answer did: {_text(error)}", sent=True)
        except httpx.HTTPError as error:
            return ProtocolError(f"this is not HTTP: {_text(error)}", sent=True)

    async def _exchange(self, request: httpx.Request) -> Outcome:
        response = await self._http.handle_async_request(request)
        self._met = True
        try:
            return await self._take(response)
        finally:
            await response.aclose()

    async def _take(self, response: httpx.Response) -> Outcome:
        """Read the answer, and hand it on as the core knows it."""
        assert isinstance(response.stream, httpx.AsyncByteStream)
        body = bytearray()
        async for part in response.stream:
            body += part
            if len(body) > self._most_bytes:
                text = f"the reply is larger than wire.max_message_bytes, {self._most_bytes}, allows"
                return ProtocolError(text, sent=True)
        status = response.status_code
        if lacks_route(status, bytes(body)):
            return TransportClosed(f"no such REST route here (HTTP {status})")
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers.raw]
        # A client's own credentials may be wrong; the endpoint is only denied to us if the cluster's are.
        code = UNAUTHENTICATED if status == httpx.codes.UNAUTHORIZED and self._token else 0
        return Reply(bytes(body), code, headers=((STATUS, str(status)), *headers))


def _in_tls(error: BaseException) -> bool:
    """Say whether it was the TLS handshake that failed: then something listens there."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError)):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _text(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
