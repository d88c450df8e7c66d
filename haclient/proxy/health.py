"""gRPC's health service, answered by the proxy itself: whether a read can be served through it now.

Decision made here: the service named in a request does not matter, there is one answer for all of them
(grpc.health.v1 of the gRPC health checking protocol).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from haclient.wire import grpc
from haclient.wire.grpc import message_prefix
from haclient.wire.incoming import IncomingCall

if TYPE_CHECKING:
    from haclient.proxy.gateway import Connection

_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"
_MOST_BYTES: Final = 4_096


@final
class Health:
    """Answers checks, and keeps watchers informed.

    Args:
        ready: Whether a read can be served now.
    """

    __slots__ = ("_ready", "_watchers")

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._watchers: set[_HealthCall] = set()

    def stream(self, connection: Connection, path: str) -> _HealthCall:
        """Make the stream of one of the service's calls."""
        return _HealthCall(connection, self, path.rpartition("/")[2])

    def message(self) -> bytes:
        """Return the answer, a HealthCheckResponse."""
        return _SERVING if self._ready() else _NOT_SERVING

    def watch(self, call: _HealthCall) -> None:
        """Tell a watcher now, and whenever it changes."""
        self._watchers.add(call)
        call.tell(self.message())

    def leave(self, call: _HealthCall) -> None:
        """Forget a watcher."""
        self._watchers.discard(call)

    def changed(self) -> None:
        """Tell the watchers, if there is something to tell."""
        if self._watchers:
            message = self.message()
            for call in list(self._watchers):
                call.tell(message)

    def close(self) -> None:
        """Tell the watchers that this is over, and end their streams."""
        for call in list(self._watchers):
            call.tell(_NOT_SERVING)
            call.finish()


@final
class _HealthCall(IncomingCall):
    """One Check or Watch."""

    __slots__ = ("_health", "_name", "_told")

    def __init__(self, connection: Connection, health: Health, name: str) -> None:
        super().__init__(connection)
        self._health = health
        self._name = name
        self._told = b""

    def encoding(self) -> str:
        """See `IncomingCall`."""
        return "identity"

    def grow(self, size: int) -> bool:
        """See `GatheredStream`."""
        if len(self.body) + size <= _MOST_BYTES:
            return True
        self.refuse(grpc.RESOURCE_EXHAUSTED, "too large for a health check")
        return False

    def on_message(self, message: bytes) -> None:
        """Answer."""
        if self._name == "Check":
            self.answer(grpc.RESPONSE, self._health.message(), grpc.trailers_block(grpc.OK))
        elif self._name == "Watch":
            self.respond(grpc.RESPONSE, end=False)
            self._health.watch(self)
        else:
            self.refuse(grpc.UNIMPLEMENTED, f"grpc.health.v1.Health has no {self._name!r}")

    def tell(self, message: bytes) -> None:
        """Send a watcher what it has not been told; one that does not listen is told when it does."""
        if message != self._told and self.outgoing is None and self.id in self.connection.streams:
            self._told = message
            prefix = message_prefix(len(message))
            self.connection.send_data(self, (prefix, message), len(prefix) + len(message), False)

    def on_sendable(self) -> None:
        """See `IncomingCall`; a watcher listens again."""
        super().on_sendable()
        if self._name == "Watch":
            self.tell(self._health.message())

    def finish(self) -> None:
        """End a watcher's stream; one that does not listen misses the last word."""
        self._health.leave(self)
        self.connection.stop_sending(self)
        self.fail(grpc.trailers_block(grpc.OK))

    def on_cancelled(self) -> None:
        """The watcher has gone."""
        self._health.leave(self)
