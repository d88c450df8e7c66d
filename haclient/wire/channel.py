"""A channel: the connections to one endpoint, and the calls waiting for one.

Decision made here: there is no back-off and no hidden retry. When nothing listens, every waiting call
fails at once and the next call dials again; whether and where to try again is the policy's business above.
The one thing moved silently is a call that a server's GOAWAY has promised not to have touched.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

from haclient.call import Metadata, Outcome
from haclient.errors import ConfigError, ConnectFailed, ConnectionLost, TransportClosed, WireError
from haclient.wire.bidi import BidiStream
from haclient.wire.client import ClientConnection
from haclient.wire.deadlines import Deadlines
from haclient.wire.dial import Target, dial
from haclient.wire.grpc import LARGEST_MESSAGE
from haclient.wire.headers import encode_fields, encode_metadata
from haclient.wire.limits import Limits
from haclient.wire.unary import ClientStream, UnaryStream

USER_AGENT: Final = "haclient/0.1.0 grpc-haclient"
_PATH: Final = re.compile(r"/[\x21-\x7e]*")
_MAX_HEADS: Final = 1_024
#: A call that GOAWAY sends back is moved at most this often.
_MAX_MOVES: Final = 2
#: While one connection stands, a missing second one is tried no more often than this.
_SIBLING_RETRY_S: Final = 1.0
#: How long a closing connection may take to say good-bye.
_CLOSE_S: Final = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """How a channel connects."""

    #: Connections kept open to the endpoint.
    connections: int = 1
    #: Time for name, TCP, TLS and the server's SETTINGS together.
    connect_timeout_s: float = 2.0
    #: Replace a connection after this time, give or take a tenth; None: never.
    max_age_s: float | None = None
    #: What the peer may do.
    limits: Limits = field(default_factory=Limits)
    #: First field of the user agent.
    user_agent: str = USER_AGENT

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.connections < 1:
            raise ConfigError(f"connections = {self.connections}: at least 1 is needed")
        if self.connect_timeout_s <= 0:
            raise ConfigError(f"connect_timeout_s = {self.connect_timeout_s}: must be above 0")
        if self.max_age_s is not None and self.max_age_s <= 0:
            raise ConfigError(f"max_age_s = {self.max_age_s}: must be above 0, or absent")


@final
class Channel:
    """The wire's `haclient.call.Transport`.

    Create it on the loop it is used on.

    Attributes:
        last_connect_error: Why the last attempt to connect failed; None once one has succeeded.
    """

    def __init__(
        self,
        target: Target,
        options: ChannelOptions | None = None,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.target = target
        self.options = options or ChannelOptions()
        self.loop = loop or asyncio.get_running_loop()
        self.deadlines = Deadlines(self.loop)
        self.queue: deque[ClientStream] = deque()
        self.last_connect_error: WireError | None = None
        self._rng = rng or random.Random()
        self._open: list[ClientConnection] = []
        self._all: set[ClientConnection] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        self._pings: list[Callable[[float | WireError], None]] = []
        self._age_timers: dict[ClientConnection, asyncio.TimerHandle] = {}
        self._heads: dict[str, bytes] = {}
        self._next_sibling = 0.0
        self._closed = False

    def __str__(self) -> str:
        return str(self.target)

    def __repr__(self) -> str:
        return f"<Channel {self.target} connected={self.connected} queued={len(self.queue)}>"

    # -- looking in

    @property
    def connected(self) -> int:
        """Connections that take new calls."""
        return len(self._open)

    @property
    def peers(self) -> tuple[str, ...]:
        """Addresses of those connections."""
        return tuple([connection.peername for connection in self._open])

    @property
    def in_flight(self) -> int:
        """Streams open on all connections, draining ones too."""
        return sum([len(connection.streams) for connection in self._all])

    # -- calls

    def start(
        self,
        path: str,
        message: bytes,
        metadata: Metadata,
        timeout_s: float,
        done: Callable[[Outcome], None],
    ) -> UnaryStream:
        """Send one unary call; see `haclient.call.Transport.start`.

        Raises:
            ValueError: If ``path``, ``message`` or ``metadata`` cannot be sent; nothing was sent then.
        """
        block = self.encode(path, metadata)
        if len(message) > LARGEST_MESSAGE:
            raise ValueError(f"a gRPC message has at most {LARGEST_MESSAGE} bytes, this one has {len(message)}")
        deadline = self.loop.time() + timeout_s
        stream = UnaryStream(self, block, message, deadline, done)
        self.submit(stream, timeout_s)
        return stream

    def stream(self, path: str, metadata: Metadata, timeout_s: float | None) -> BidiStream:
        """Start a streaming call; ``timeout_s`` None means that it may last for ever.

        Raises:
            ValueError: If ``path`` or ``metadata`` cannot be sent; nothing was sent then.
        """
        block = self.encode(path, metadata)
        timeout_s = math.inf if timeout_s is None else timeout_s
        stream = BidiStream(self, block, self.loop.time() + timeout_s)
        self.submit(stream, timeout_s)
        return stream

    def submit(self, stream: ClientStream, timeout_s: float) -> None:
        """Open a stream now, or queue it and connect."""
        if self._closed:
            self.loop.call_soon(stream.on_gone, TransportClosed(f"{self}: the transport was closed"))
            return
        if timeout_s <= 0:
            self.loop.call_soon(stream.expired)
            return
        if timeout_s != math.inf:
            stream.slot = self.deadlines.add(stream, stream.deadline)
        if not self.queue:
            connection = self._pick()
            if connection is not None:
                connection.open(stream, timeout_s)
                if len(self._open) < self.options.connections:
                    self._connect()
                return
        self.queue.append(stream)
        self._connect()

    def ping(self, done: Callable[[float | WireError], None]) -> None:
        """Measure the round trip on the connection in use, connecting first if there is none.

        How long to wait for it is the caller's business.
        """
        if self._closed:
            self.loop.call_soon(self.guard, done, TransportClosed(f"{self}: the transport was closed"))
        elif self._open:
            min(self._open, key=_load).ping(done)
        else:
            self._pings.append(done)
            self._connect()

    def _pick(self) -> ClientConnection | None:
        """The open connection with the fewest streams that has room."""
        if len(self._open) == 1:
            only = self._open[0]
            return only if only.has_room else None
        free = [connection for connection in self._open if connection.has_room]
        return min(free, key=_load) if free else None

    def encode(self, path: str, metadata: Metadata) -> bytes:
        """Encode the header block of a request, but for its time-out.

        Raises:
            ValueError: If ``path`` or ``metadata`` cannot be sent.
        """
        head = self._heads.get(path) or self._encode_head(path)
        return head + encode_metadata(metadata) if metadata else head

    def _encode_head(self, path: str) -> bytes:
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path[:80]!r} is no gRPC path: it must be /package.Service/Method")
        head = encode_fields(
            (
                (":method", "POST"),
                (":scheme", "http" if self.target.tls is None else "https"),
                (":path", path),
                (":authority", self.target.effective_authority),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", self.options.user_agent),
            )
        )
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[path] = head
        return head

    def pump_queue(self) -> None:
        """Open waiting streams while there is room."""
        while self.queue:
            if self.queue[0].settled:
                self.queue.popleft()
                continue
            connection = self._pick()
            if connection is None:
                return
            stream = self.queue.popleft()
            connection.open(stream, max(stream.deadline - self.loop.time(), 0.001))

    def move(self, stream: ClientStream) -> None:
        """Queue a stream again that a server has promised not to have touched."""
        stream.moves += 1
        if stream.moves > _MAX_MOVES:
            stream.on_gone(ConnectionLost(f"{self}: the server closed every connection at once (GOAWAY)", sent=False))
        elif self._closed:
            stream.on_gone(TransportClosed(f"{self}: the transport was closed"))
        else:
            self.queue.append(stream)
            self.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self.queue and not self._closed:
            self.pump_queue()
            if self.queue:
                self._connect()

    # -- connecting

    def _connect(self) -> None:
        """Start to dial if a connection is missing."""
        missing = self.options.connections - len(self._open) - len(self._dialling)
        if missing <= 0 or self._closed:
            return
        if self._open:
            now = self.loop.time()
            if now < self._next_sibling:
                return
            self._next_sibling = now + _SIBLING_RETRY_S
        self._dial(None)

    def _dial(self, replaces: ClientConnection | None) -> None:
        task = self.loop.create_task(self._run_dial(replaces))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _run_dial(self, replaces: ClientConnection | None) -> None:
        """Dial once, and pass on what came of it."""
        connection: ClientConnection | None = None

        def factory() -> ClientConnection:
            nonlocal connection
            connection = ClientConnection(self.loop, self.options.limits, str(self.target), self)
            self._all.add(connection)
            return connection

        try:
            async with asyncio.timeout(self.options.connect_timeout_s):
                await dial(self.loop, self.target, factory, self.peers)
                assert connection is not None
                await connection.ready_waiter
        except WireError as error:
            self._dialled()
            self._failed(error if isinstance(error, ConnectFailed) else ConnectFailed(str(error)), replaces)
        except TimeoutError:
            self._dialled()
            at = f" ({connection.peername} accepts, but does not speak)" if connection and connection.peername else ""
            text = f"{self}: no connection within {self.options.connect_timeout_s:g} s{at}"
            self._failed(ConnectFailed(text), replaces)
        except Exception as error:
            # Out of file descriptors, a name that TLS cannot use: whoever waits must hear of it at once.
            self._dialled()
            self._failed(ConnectFailed(f"{self}: cannot connect: {type(error).__name__}: {error}"), replaces)
        else:
            self._dialled()
            self._established(connection, replaces)
            return
        if connection is not None:
            connection.abort()
            self._all.discard(connection)

    def _dialled(self) -> None:
        # Must be before anyone is told: a caller that tries again at once needs a fresh dial.
        task = asyncio.current_task()
        assert task is not None
        self._dialling.discard(task)

    def _established(self, connection: ClientConnection, replaces: ClientConnection | None) -> None:
        if connection.closed or connection.draining:
            # GOAWAY came in the same breath as SETTINGS.
            self._failed(ConnectFailed(f"{self}: the server closed the connection at once"), replaces)
            return
        self.last_connect_error = None
        self._next_sibling = 0.0
        self._open.append(connection)
        if self.options.max_age_s is not None:
            age = self.options.max_age_s * self._rng.uniform(0.9, 1.1)
            self._age_timers[connection] = self.loop.call_later(age, self._grow_old, connection, age)
        if replaces is not None:
            self.connection_draining(replaces)
        pings, self._pings = self._pings, []
        for done in pings:
            connection.ping(done)
        self.pump_queue()

    def _failed(self, error: ConnectFailed, replaces: ClientConnection | None) -> None:
        """Fail everything that waits, unless another connection stands or is on its way."""
        self.last_connect_error = error
        if replaces is not None and replaces in self._open:
            # The old connection still works: keep it, and try again later.
            assert self.options.max_age_s is not None
            later = self.options.max_age_s * 0.1
            self._age_timers[replaces] = self.loop.call_later(later, self._grow_old, replaces, later)
            return
        if self._open or self._dialling:
            return
        queue, self.queue = self.queue, deque()
        pings, self._pings = self._pings, []
        for stream in queue:
            stream.on_gone(ConnectFailed(str(error)))
        for done in pings:
            self.guard(done, error)

    def _grow_old(self, connection: ClientConnection, age: float) -> None:
        """Replace a connection by a new one before it takes no more calls."""
        self._age_timers.pop(connection, None)
        if connection in self._open and not self._closed:
            self._dial(connection)

    # -- what connections report

    def connection_draining(self, connection: ClientConnection) -> None:
        """Give it no new calls, and close it after its last."""
        self._leave(connection)
        if not connection.draining:
            connection.draining = True
            if not connection.streams:
                self.loop.call_soon(connection.close, "the connection was drained")
        if self.queue:
            self._connect()

    def connection_gone(self, connection: ClientConnection, error: WireError) -> None:
        """Forget it; whoever waits for room gets a new one."""
        self._leave(connection)
        if connection.transport is None or connection.transport.is_closing() is False:
            self._all.discard(connection)
        else:
            connection.closed_waiter.add_done_callback(lambda _: self._all.discard(connection))
        if self.queue:
            self.loop.call_soon(self._resume)

    def _leave(self, connection: ClientConnection) -> None:
        if connection in self._open:
            self._open.remove(connection)
        timer = self._age_timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    # -- the end

    async def aclose(self) -> None:
        """Close everything; calls under way fail with `TransportClosed`."""
        self._closed = True
        tasks = list(self._dialling)
        for task in tasks:
            task.cancel()
        queue, self.queue = self.queue, deque()
        pings, self._pings = self._pings, []
        text = f"{self}: the transport was closed"
        for stream in queue:
            stream.on_gone(TransportClosed(text))
        for done in pings:
            self.guard(done, TransportClosed(text))
        connections = list(self._all)
        for connection in connections:
            connection.close(text)
        self.deadlines.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        waiters = [c.closed_waiter for c in connections if c.transport is not None]
        if waiters:
            await asyncio.wait(waiters, timeout=_CLOSE_S)
            for connection in connections:
                connection.abort()
            await asyncio.wait(waiters, timeout=_CLOSE_S)
        self._all.clear()

    # -- calling out

    def guard(self, callback: Callable[..., None], *args: object) -> None:
        """Call a caller's function; what it raises is reported, not passed on."""
        try:
            callback(*args)
        except Exception as error:
            self.report(error)

    def report(self, error: Exception) -> None:
        """Report an exception raised by a caller's function."""
        self.loop.call_exception_handler({"message": "a callback of haclient.wire raised", "exception": error})


def _load(connection: ClientConnection) -> int:
    return len(connection.streams)
