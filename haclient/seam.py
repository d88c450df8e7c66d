"""The seam to pymilvus: everything that knows its insides.

pymilvus' own client runs unchanged on top; what it believes to be a gRPC channel turns each stub call into bytes
for `haclient.core.Core`. Three things are bent, and pinned by tests against each pymilvus supported:

- its retry decorator is taken off every method (it would retry inserts, and hide our errors behind its own);
- the handler never dials, authenticates or introduces itself: endpoints and credentials are the core's;
- errors become `pymilvus.exceptions.MilvusException`s that are also ours, so either ``except`` clause works.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import grpc
from pymilvus import decorators
from pymilvus.client import ts_utils
from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
from pymilvus.exceptions import MilvusException

from haclient import acknowledge, errors
from haclient.call import Metadata, Method, Reply
from haclient.milvus import methods
from haclient.milvus.status import peek

H = TypeVar("H")

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_UNAUTHENTICATED, _PERMISSION_DENIED = 16, 7


class Requester(Protocol):
    """What answers calls; the client starts the core on the first of them."""

    def __call__(
        self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None, /
    ) -> Awaitable[Reply]:
        """Answer one unary call."""


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
        twin = _twin(type(error), error.summary, error.attempts, error.code)
        if isinstance(error, errors.WriteNotConfirmed):
            twin.seq = error.seq  # type: ignore[attr-defined]
        return twin
    return error if isinstance(error, ConfigError) else ConfigError(str(error))


# --- the channel ------------------------------------------------------------------------------------------------


class Channel:
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


class StubChannel(Channel):
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
            fields = fields_of(metadata, self.database)
            try:
                reply = await request(method, request_serializer(message), fields, timeout)
            except (errors.CallError, errors.ConfigError) as error:
                raise milvus_error(error) from error
            return message_of(method, reply, response_deserializer)

        return call

    async def channel_ready(self) -> None:
        """Return at once: the core connects when there is something to send."""

    async def close(self, grace: float | None = None) -> None:
        """Do nothing: the client closes the core."""


def message_of(method: Method, reply: Reply, deserialize: Callable[[bytes], Any]) -> Any:
    """Parse a reply; one that is a refusal is raised."""
    if reply.code:
        raise _refusal(method, reply)
    # pymilvus' asynchronous client takes every answer to a Delete for a success.
    if method.name == "Delete" and (status := peek(method, reply.message)) is not None:
        raise MilvusException(status.code, status.reason)
    return deserialize(reply.message)


def fields_of(metadata: Any, database: str) -> Metadata:
    """Keep what says something; an empty value is what its absence says."""
    fields = tuple((name, value) for name, value in metadata if value) if metadata else ()
    if database and not any(name == "dbname" for name, _ in fields):
        fields += (("dbname", database),)
    wanted = acknowledge.level()
    return fields if wanted is None else (*fields, (acknowledge.METADATA, wanted))


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


# --- the handler ------------------------------------------------------------------------------------------------


def _bare(function: Any) -> Any:
    """Take pymilvus' retry decorator off a method; None if it has none.

    The decorator wraps the method in its error handler, a tracer and the retry loop, and then marks the whole as a
    wrapper of the method itself: one step in, and all three are gone. The error handler is put back.
    """
    code = getattr(function, "__code__", None)
    if code is None or not code.co_qualname.startswith("error_handler."):
        return None
    return decorators.error_handler(func_name=function.__name__)(function.__wrapped__)


def without_retries(handler: type[H]) -> type[H]:
    """Take pymilvus' retries off every method of a handler's class."""
    for name, function in inspect.getmembers(handler, inspect.isfunction):
        bare = _bare(function)
        if bare is not None:
            setattr(handler, name, bare)
    return handler


@without_retries
class Handler(AsyncGrpcHandler):  # type: ignore[misc]
    """pymilvus' handler over our channel."""

    async def ensure_channel_ready(self, *_: Any, **__: Any) -> None:
        """Nothing to wait for: the core starts with the first call."""


def make_handler(request: Requester, address: str, database: str) -> Any:
    """Make a handler whose stub calls ``request``; ``address`` names it in pymilvus' caches."""
    return Handler(channel=StubChannel(request, database), address=address)


#: pymilvus 2.5 remembers a write by the collection's name alone.
_BY_NAME_ONLY = len(inspect.signature(ts_utils.get_collection_ts).parameters) == 1


def last_write(address: str, database: str, collection: str) -> int:
    """Return the timestamp of a client's last write to a collection, 0 if it has made none."""
    key = (collection,) if _BY_NAME_ONLY else (collection, address, database)
    return int(ts_utils.get_collection_ts(*key) or 0)
