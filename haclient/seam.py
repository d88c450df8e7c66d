"""The seam to pymilvus: everything that knows its insides.

pymilvus' own client runs unchanged on top; what it believes to be a gRPC channel turns each stub call into bytes
for `haclient.core.Core`. Three things are bent, and pinned by tests against each pymilvus supported:

- its retry decorator is taken off every method (it would retry inserts, and hide our errors behind its own);
- the handlers never dial, authenticate or introduce themselves: endpoints and credentials are the core's;
- errors become `pymilvus.exceptions.MilvusException`s that are also ours, so either ``except`` clause works.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, final

import grpc
from pymilvus import decorators
from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
from pymilvus.client.grpc_handler import GrpcHandler
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen.milvus_pb2_grpc import MilvusServiceStub

from haclient import errors
from haclient.call import Metadata, Method, Reply
from haclient.milvus import methods

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_UNAUTHENTICATED, _PERMISSION_DENIED = 16, 7


class Requester(Protocol):
    """What answers calls; the client starts the core on the first of them."""

    def __call__(
        self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None, /
    ) -> Awaitable[Reply]:
        """Answer one unary call."""


class BlockingRequester(Protocol):
    """What answers calls of threads."""

    def __call__(self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None, /) -> Future[Reply]:
        """Start one unary call."""


# --- errors -----------------------------------------------------------------------------------------------------


class _Milvus(MilvusException):  # type: ignore[misc]
    """Gives our errors the attributes of pymilvus' own."""

    code = property(lambda self: self._code, lambda self, code: setattr(self, "_code", code))

    def __str__(self) -> str:
        return f"<{type(self).__name__}: (code={self.code}, message={self.message})>"


def _as_milvus(kind: type[errors.CallError]) -> type[errors.CallError]:
    def init(self: Any, summary: str, attempts: Iterable[Any] = (), *, code: int = 65535) -> None:
        kind.__init__(self, summary, tuple(attempts), code=code)
        MilvusException.__init__(self, code, errors.describe(summary, self.attempts))

    def reduce(self: Any) -> tuple[Any, ...]:
        return _twin, (kind, self.summary, self.attempts, self.code)

    body = {"__init__": init, "__reduce__": reduce, "__doc__": kind.__doc__, "__module__": __name__}
    return type(kind.__name__, (kind, _Milvus), body)


def _twin(kind: type[errors.CallError], summary: str, attempts: Iterable[Any], code: int) -> errors.CallError:
    return _BOTH[kind](summary, tuple(attempts), code=code)


_KINDS: tuple[type[errors.CallError], ...] = (
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.PoisonedCall,
    errors.WriteNotConfirmed,
    errors.WriteRefused,
    errors.AccessDenied,
)
_BOTH = {kind: _as_milvus(kind) for kind in _KINDS}


class ConfigError(errors.ConfigError, _Milvus):
    """A wrong configuration, for those who expect pymilvus' exceptions from its client."""

    def __init__(self, message: str) -> None:
        errors.ConfigError.__init__(self, message)
        MilvusException.__init__(self, 1, message)


def milvus_error(error: errors.CallError | errors.ConfigError) -> errors.HAClientError:
    """Return the same error, as a `MilvusException` too."""
    if isinstance(error, errors.CallError):
        return _twin(type(error), error.summary, error.attempts, error.code)
    return error if isinstance(error, ConfigError) else ConfigError(str(error))


# --- the channel ------------------------------------------------------------------------------------------------


class _Channel:
    """What both kinds of channel have in common.

    Args:
        request: Answers unary calls.
        database: Sent as ``dbname`` where the call names none (pymilvus 2.5 sets it per connection).
    """

    def __init__(self, request: Any, database: str = "") -> None:
        self.database = database
        self._request = request

    def unary_stream(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        """Refuse a streaming RPC when it is called, not when the stub is made."""
        return _no_streams(path)

    stream_unary = stream_stream = unary_stream


class StubChannel(_Channel):
    """What pymilvus' generated stubs take for a ``grpc.aio.Channel``; ``request`` is a `Requester`."""

    def __init__(self, request: Requester, database: str = "") -> None:
        super().__init__(request, database)
        #: pymilvus appends its interceptors here; what they would add is the core's business.
        self._unary_unary_interceptors: list[Any] = []

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,
    ) -> Callable[..., Awaitable[Any]]:
        """Make the callable of one RPC."""
        method = methods.method(path)
        request = self._request

        async def call(
            message: Any = None,
            timeout: float | None = None,  # noqa: ASYNC109 - gRPC's name
            metadata: Any = None,
            **keywords: Any,
        ) -> Any:
            if message is None:
                message = keywords["request"]
            fields = _metadata(metadata, self.database)
            try:
                reply = await request(method, request_serializer(message), fields, timeout)
            except (errors.CallError, errors.ConfigError) as error:
                raise milvus_error(error) from error
            return _message(method, reply, response_deserializer)

        return call

    async def channel_ready(self) -> None:
        """Return at once: the core connects when there is something to send."""

    async def close(self, grace: float | None = None) -> None:
        """Do nothing: the client closes the core."""


class BlockingStubChannel(_Channel):
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

    def start(self, method: Method, message: bytes, metadata: Any, timeout_s: float | None) -> Future[Reply]:
        """Start a call."""
        reply: Future[Reply] = self._request(method, message, _metadata(metadata, self.database), timeout_s)
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

    def __init__(self, method: Method, reply: Future[Reply], deserialize: Callable[[bytes], Any]) -> None:
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
            raise grpc.FutureTimeoutError from None
        except CancelledError:
            raise grpc.FutureCancelledError from None
        except BaseException:
            self._reply.cancel()
            raise
        return _message(self._method, reply, self._deserialize)

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
        self._reply.add_done_callback(lambda _: callback(self))


def _message(method: Method, reply: Reply, deserialize: Callable[[bytes], Any]) -> Any:
    if reply.code:
        raise _refusal(method, reply)
    return deserialize(reply.message)


def _metadata(metadata: Any, database: str) -> Metadata:
    """Keep what says something; an empty value is what its absence says."""
    fields = tuple((name, value) for name, value in metadata if value) if metadata else ()
    if database and not any(name == "dbname" for name, _ in fields):
        fields += (("dbname", database),)
    return fields


def _refusal(method: Method, reply: Reply) -> Exception:
    """Make the error of a call that a server refused by its gRPC status."""
    if reply.code in (_UNAUTHENTICATED, _PERMISSION_DENIED):
        what = "wrong or missing credentials" if reply.code == _UNAUTHENTICATED else "not permitted"
        return _BOTH[errors.AccessDenied](f"{method.name}: {what}: {reply.details}", code=reply.code)
    code = _CODES.get(reply.code, grpc.StatusCode.UNKNOWN)
    refusal: Exception = grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(*reply.headers), grpc.aio.Metadata(*reply.trailers), details=reply.details
    )
    return refusal


def _no_streams(path: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{path} is a stream, which pymilvus' client never calls")

    return call


# --- the handlers -----------------------------------------------------------------------------------------------


def _bare(function: Any) -> Any:
    """Take pymilvus' retry decorator off a method; None if it has none.

    The decorator wraps the method in its error handler, a tracer and the retry loop, and then marks the whole as a
    wrapper of the method itself: one step in, and all three are gone. The error handler is put back.
    """
    code = getattr(function, "__code__", None)
    if code is None or not code.co_qualname.startswith("error_handler."):
        return None
    return decorators.error_handler(func_name=function.__name__)(function.__wrapped__)


def _without_retries(handler: type) -> dict[str, Any]:
    functions = inspect.getmembers(handler, inspect.isfunction)
    return {name: bare for name, function in functions if (bare := _bare(function)) is not None}


async def _ready(self: Any, *_: Any, **__: Any) -> None:
    """Nothing to wait for: the core starts with the first call."""


def _plain_stub(self: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    """Make the stub without interceptors: credentials are the core's."""
    self._final_channel, self._stub = self._channel, MilvusServiceStub(self._channel)
    return self._final_channel, self._stub


def _introduced(self: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
    """Nobody to be introduced to."""
    return self._final_channel, self._stub


def _database(self: Any, db_name: str | None) -> None:
    """Change the connection's database, which only pymilvus 2.5 does."""
    self._channel.database = db_name or ""


#: pymilvus' handlers over our channels.
Handler = type("Handler", (AsyncGrpcHandler,), {**_without_retries(AsyncGrpcHandler), "ensure_channel_ready": _ready})
BlockingHandler = type(
    "BlockingHandler",
    (GrpcHandler,),
    {
        **_without_retries(GrpcHandler),
        "_setup_grpc_channel": _plain_stub,
        "_setup_identifier_interceptor": _introduced,
        "_wait_for_channel_ready": _introduced,
        "_setup_db_interceptor": _database,
    },
)


def make_handler(request: Requester, address: str, database: str) -> Any:
    """Make a handler whose stub calls ``request``; ``address`` names it in pymilvus' caches."""
    return Handler(channel=StubChannel(request, database), address=address)


def make_blocking_handler(request: BlockingRequester, address: str, database: str) -> Any:
    """Make a handler for blocking calls; see `make_handler`."""
    return BlockingHandler(channel=BlockingStubChannel(request, database), address=address, db_name=database)
