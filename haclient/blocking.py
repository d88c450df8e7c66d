"""The seam to pymilvus' sync client: what its handler takes for a gRPC channel, for threads.

Decision made here: a call is a coroutine on the portal's loop, and what pymilvus gets is a future over it. Errors,
metadata and the retries taken off are those of `haclient.seam`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Protocol, final

import grpc
from pymilvus.client.grpc_handler import GrpcHandler
from pymilvus.grpc_gen.milvus_pb2_grpc import MilvusServiceStub

from haclient import errors
from haclient.call import Metadata, Method, Reply
from haclient.milvus import methods
from haclient.portal import Pending
from haclient.seam import Channel, fields_of, message_of, milvus_error, without_retries


class BlockingRequester(Protocol):
    """What answers calls of threads."""

    def __call__(
        self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None, /
    ) -> Pending[Reply]:
        """Start one unary call."""


class BlockingStubChannel(Channel):
    """What pymilvus' generated stubs take for a ``grpc.Channel``; ``request`` is a `BlockingRequester`."""

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> BlockingCall:
        """Make the callable of one RPC."""
        return BlockingCall(self, methods.method(path), request_serializer, response_deserializer)

    def start(self, method: Method, message: bytes, metadata: Any, timeout_s: float | None) -> Pending[Reply]:
        """Start a call."""
        reply: Pending[Reply] = self._request(method, message, fields_of(metadata, self.database), timeout_s)
        return reply

    def subscribe(self, callback: Callable[..., Any], try_to_connect: bool = False) -> None:
        """Do nothing: there is no one connection whose state could change."""

    def unsubscribe(self, callback: Callable[..., Any]) -> None:
        """Do nothing; see `subscribe`."""

    def close(self) -> None:
        """Do nothing: the client closes the core."""


@final
class BlockingCall:
    """The callable of one RPC, as the stubs of a ``grpc.Channel`` have them."""

    __slots__ = ("_channel", "_deserialize", "_method", "_serialize")

    def __init__(
        self,
        channel: BlockingStubChannel,
        method: Method,
        serialize: Callable[[Any], bytes],
        deserialize: Callable[[bytes], Any],
    ) -> None:
        self._channel = channel
        self._method = method
        self._serialize = serialize
        self._deserialize = deserialize

    def __call__(self, request: Any, timeout: float | None = None, metadata: Any = None, **_: Any) -> Any:
        """Send a request and wait for its reply."""
        return self.future(request, timeout, metadata).result()

    def future(self, request: Any, timeout: float | None = None, metadata: Any = None, **_: Any) -> CallFuture:
        """Send a request."""
        reply = self._channel.start(self._method, self._serialize(request), metadata, timeout)
        return CallFuture(self._method, reply, self._deserialize)


@final
class CallFuture:
    """A call under way, as gRPC's futures are; the reply is parsed by the thread that asks for it."""

    __slots__ = ("_deserialize", "_method", "_reply")

    def __init__(self, method: Method, reply: Pending[Reply], deserialize: Callable[[bytes], Any]) -> None:
        self._method = method
        self._reply = reply
        self._deserialize = deserialize

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the reply; an interrupt cancels the call.

        Raises:
            grpc.FutureTimeoutError: It did not come within ``timeout`` seconds; the call goes on.
            grpc.FutureCancelledError: The call was cancelled.
        """
        try:
            reply = self._reply.result(timeout)
        except (errors.CallError, errors.ConfigError) as error:
            raise milvus_error(error) from error
        except TimeoutError:
            if self._reply.done():
                raise  # the call's own
            raise grpc.FutureTimeoutError from None
        except CancelledError:
            raise grpc.FutureCancelledError from None
        return message_of(self._method, reply, self._deserialize)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the reply, and return the error that `result` raises."""
        try:
            self.result(timeout)
        except (grpc.FutureTimeoutError, grpc.FutureCancelledError):
            raise
        except Exception as error:
            return error
        return None

    def cancel(self) -> bool:
        """Cancel the call."""
        return self._reply.cancel()

    def cancelled(self) -> bool:
        """Say whether the call was cancelled."""
        return self._reply.cancelled()

    def running(self) -> bool:
        """Say whether the reply is still awaited."""
        return not self._reply.done()

    def done(self) -> bool:
        """Say whether the reply, or an error, is there."""
        return self._reply.done()

    def add_done_callback(self, callback: Callable[[CallFuture], Any]) -> None:
        """Call a function when the call is done, on the portal's thread: it must not block."""
        self._reply.add_done_callback(lambda: callback(self))


@without_retries
class BlockingHandler(GrpcHandler):  # type: ignore[misc]
    """pymilvus' handler over our channel."""

    def _setup_grpc_channel(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Make the stub without interceptors: credentials are the core's."""
        self._final_channel, self._stub = self._channel, MilvusServiceStub(self._channel)
        return self._final_channel, self._stub

    def _setup_identifier_interceptor(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Nobody to be introduced to."""
        return self._final_channel, self._stub

    def _setup_db_interceptor(self, db_name: str | None) -> None:
        """Change the connection's database, which only pymilvus 2.5 does."""
        self._channel.database = db_name or ""

    _wait_for_channel_ready = _setup_identifier_interceptor


def make_blocking_handler(request: BlockingRequester, address: str, database: str) -> Any:
    """Make a handler for blocking calls; see `haclient.seam.make_handler`."""
    return BlockingHandler(channel=BlockingStubChannel(request, database), address=address, db_name=database)
