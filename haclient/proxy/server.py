"""A worker's server: its core, its listening socket, and the connections of its clients.

Decision made here: one port for every protocol. The first bytes of a connection tell HTTP/2 from HTTP/1, and the
headers of an HTTP/2 request tell gRPC from plain HTTP.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final, final

from haclient.config import Config, Proxy
from haclient.core import Core
from haclient.events import EventBus
from haclient.fleet.model import State
from haclient.proxy.admission import Admission
from haclient.proxy.gateway import Connection, Gateway
from haclient.proxy.head import HeadParser, admission
from haclient.proxy.health import Health
from haclient.proxy.http1 import Http1Connection
from haclient.proxy.rest import RestGateway
from haclient.proxy.rest_routes import MILVUS_AND_REST
from haclient.proxy.rest_transport import with_rest
from haclient.transport import connector
from haclient.wire import frames
from haclient.wire.limits import Limits
from haclient.wire.server import ServerConnection
from haclient.wire.tls import server_context

#: How often connections are looked at for what does not move, seconds.
_SWEEP_S: Final = 1.0
#: How far apart connections of one age are drained, as a share of the age.
_AGE_JITTER: Final = 0.1
#: How long clients may take to read that the proxy stops, seconds.
_GOODBYE_S: Final = 1.0
_SERVES: Final = frozenset((State.UP.value, State.PROBATION.value))


@final
class Server:
    """Serves clients of one process, on one event loop.

    Args:
        config: What is configured.
        bus: Takes events.
        loop: The loop to live on.

    Attributes:
        core: The fleet and its policies.
    """

    def __init__(self, config: Config, bus: EventBus, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._config = config
        self._rng = random.Random()
        connect = with_rest(connector(config, loop, self._rng), config, loop)
        self.core = Core(config, connect, bus, self._rng, loop, time.monotonic, MILVUS_AND_REST, time.time)
        self._admission = Admission(config.proxy.limits, loop)
        self._health = Health(lambda: self.ready[0])
        self._gateway = Gateway(self.core, self._admission, self._health, RestGateway(self.core, _known(config)))
        self._limits = _limits(config)
        self._parse = _parse(config)
        #: With each, what its greatest age is multiplied by, so that they do not all come back at once.
        self._connections: dict[Connection, float] = {}
        self._plain: dict[Http1Connection, tuple[float, asyncio.Transport]] = {}
        self._doors: set[Door] = set()
        self._listening: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._secure = False
        self._relistening: asyncio.Task[None] | None = None
        self._draining = False
        self._emptied: asyncio.Future[None] | None = None
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep)

    async def start(self, listening: socket.socket) -> None:
        """Look at the endpoints, then take connections from a bound, listening socket.

        Raises:
            ConfigError: See `haclient.core.Core.start`.
        """
        await self.core.start()
        self._listening = listening
        await self._listen(_tls(self._config.proxy))

    async def _listen(self, tls: ssl.SSLContext | None) -> None:
        """Take connections, from now on with this context; those that stand are not touched."""
        assert self._listening is not None
        self._secure = tls is not None
        # A copy of the descriptor, as closing a server closes its socket: the supervisor's stays open.
        sock = socket.socket(fileno=os.dup(self._listening.fileno()))
        timeout_s = self._config.proxy.limits.request_s if tls is not None else None
        server = await self._loop.create_server(
            lambda: Door(self), sock=sock, ssl=tls, ssl_handshake_timeout=timeout_s, backlog=4096
        )
        before, self._server = self._server, server
        if before is not None:
            self._stop_listening(before)
        if self._draining:
            self._stop_listening(server)

    def _stop_listening(self, server: asyncio.Server) -> None:
        # asyncio loses a connection that it has accepted, but not yet made, when its server closes: its client would
        # hear nothing. All of this turn's are made before what is called from a timer.
        self._loop.call_later(0, self._loop.call_soon, server.close)

    # -- connections

    def admit(self, door: Door) -> bool:
        """Note a new connection; False if there are too many."""
        if self._draining or self.connections >= self._config.proxy.limits.connections:
            return False
        self._doors.add(door)
        return True

    def leave(self, door: Door) -> None:
        """Forget a connection that has not said what it speaks."""
        self._doors.discard(door)

    def serve_http2(self, transport: asyncio.Transport) -> Connection:
        """Make the connection of a client that speaks HTTP/2."""
        connection: Connection = ServerConnection(
            self._loop, self._limits, self._parse, self._gateway.accept, self._closed
        )
        self._connections[connection] = self._rng.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        return connection

    def serve_http1(self, transport: asyncio.Transport) -> Http1Connection:
        """Make the connection of a client that speaks HTTP/1."""
        gateway, config = self._gateway, self._config
        connection = Http1Connection(
            self._loop,
            config.proxy.limits,
            config.wire.max_message_bytes,
            gateway.answer,
            self._admission,
            gateway.request_id,
            self._closed_plain,
        )
        self._plain[connection] = self._loop.time(), transport
        transport.set_protocol(connection)
        connection.connection_made(transport)
        return connection

    def _closed(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._left()

    def _closed_plain(self, connection: Http1Connection) -> None:
        self._plain.pop(connection, None)
        self._left()

    def _left(self) -> None:
        empty = not self._connections and not self._plain
        if self._emptied is not None and empty and not self._emptied.done():
            self._emptied.set_result(None)

    def _sweep(self) -> None:
        """End what does not move, what is idle, and what is old."""
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        limits, now = self._config.proxy.limits, self._loop.time()
        for connection, spread in list(self._connections.items()):
            connection.sweep(now, limits.request_s, limits.reply_s)
            idle = not connection.streams and now - connection.busy_at > limits.idle_s
            if idle or (limits.age_s is not None and now - connection.born > limits.age_s * spread):
                connection.drain()
        for plain, (born, _) in list(self._plain.items()):
            if limits.age_s is not None and now - born > limits.age_s:
                plain.begin_drain()
        for door in list(self._doors):
            door.sweep(now, limits.request_s)
        self._health.changed()

    # -- steering

    def reload(self, config: Config) -> None:
        """Go over to another configuration, and read TLS files again, without dropping a connection.

        Raises:
            ConfigError: A file cannot be read; nothing has changed then.
        """
        tls = _tls(config.proxy)
        self.core.reconfigure(config)
        before, self._config = self._config, config
        self._admission.limits = config.proxy.limits
        self._limits, self._parse = _limits(config), _parse(config)
        self._gateway.rest = RestGateway(self.core, _known(config))
        if before.proxy.tokens != config.proxy.tokens or before.database != config.database:
            # A connection remembers whom it has let in: clients come back on a new one.
            for connection in list(self._connections):
                connection.drain()
        if self._server is not None and (tls is not None or self._secure):
            self._relistening = self._loop.create_task(self._listen(tls))

    async def drain(self, grace_s: float) -> int:
        """Take no more connections, send GOAWAY, and wait for the calls under way.

        Returns:
            How many calls were cut off because they took longer than ``grace_s`` seconds.
        """
        self._draining = True
        self._health.close()
        if self._server is not None:
            self._stop_listening(self._server)
        for door in list(self._doors):
            door.close()
        self._emptied = self._loop.create_future()
        for connection in list(self._connections):
            connection.drain()
        for plain in list(self._plain):
            plain.begin_drain()
        if self._connections or self._plain:
            await asyncio.wait([self._emptied], timeout=grace_s)
        return self.calls

    async def aclose(self) -> None:
        """Close every connection and the core."""
        self._draining = True
        self._sweeper.cancel()
        self._admission.close()
        if self._server is not None:
            self._server.close()
        for door in list(self._doors):
            door.close()
        connections = list(self._connections)
        for connection in connections:
            connection.close("the proxy stops")
        if connections:
            await asyncio.wait([connection.closed_waiter for connection in connections], timeout=_GOODBYE_S)
        for connection in list(self._connections):
            connection.abort()  # it does not read
        for _, transport in list(self._plain.values()):
            transport.abort()
        await self.core.aclose()

    # -- looking in

    @property
    def ready(self) -> tuple[bool, str]:
        """Whether a read can be served now, and if not, why."""
        if self._draining:
            return False, "it is stopping"
        view = self.core.view()
        if any(endpoint.state in _SERVES for endpoint in view.endpoints):
            return True, ""
        return False, f"no endpoint is up: {view}"

    @property
    def connections(self) -> int:
        """Connections of clients."""
        return len(self._connections) + len(self._plain) + len(self._doors)

    @property
    def calls(self) -> int:
        """Calls under way."""
        return self._admission.calls

    @property
    def memory_bytes(self) -> int:
        """Bytes of requests and replies held."""
        return self._admission.memory_bytes

    @property
    def shed(self) -> int:
        """Calls refused so far because there was too much to do."""
        return self._admission.shed


@final
class Door(asyncio.Protocol):
    """A connection that has not said yet what it speaks."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._first = b""
        self._since = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or not."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        if not self._server.admit(self):
            transport.abort()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Find out what it speaks, and hand it on."""
        first = self._first = self._first + data
        if len(first) < len(frames.PREFACE) and frames.PREFACE.startswith(first):
            return
        assert self._transport is not None
        self._server.leave(self)
        if first.startswith(frames.PREFACE):
            self._server.serve_http2(self._transport).data_received(first)
        else:
            self._server.serve_http1(self._transport).data_received(first)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left without a word."""
        self._server.leave(self)

    def sweep(self, now: float, request_s: float) -> None:
        """Close it if it has nothing to say for ``request_s`` seconds."""
        self._since = self._since or now
        if now - self._since > request_s:
            self.close()

    def close(self) -> None:
        """Close it."""
        self._server.leave(self)
        if self._transport is not None:
            self._transport.close()


def _limits(config: Config) -> Limits:
    limits = config.proxy.limits
    return Limits(
        max_message_bytes=config.wire.max_message_bytes,
        max_header_list_bytes=limits.header_bytes,
        max_header_block_bytes=limits.header_bytes,
        max_concurrent_streams=limits.streams,
    )


def _known(config: Config) -> Callable[[str], bool] | None:
    return admission([token.get_secret_value() for token in config.proxy.tokens])


def _parse(config: Config) -> HeadParser:
    return HeadParser(_known(config), config.database)


def _tls(proxy: Proxy) -> ssl.SSLContext | None:
    files = proxy.tls
    if not files.cert_file:
        return None
    return server_context(files.cert_file, files.key_file or None, files.client_ca_file or None)
