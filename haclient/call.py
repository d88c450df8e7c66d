"""The values that travel: one gRPC request, its attempts, and what came back.

Decision made here: a call is bytes. The SDK and the proxy both reduce a request to a `Call`, every
policy passes it on unchanged, and only `Call.attempts` grows; where writes are replicated, `Call.behind` says
before each attempt who must not serve it.  Nothing here does I/O and nothing here knows Milvus' messages; the
table of methods is `haclient.milvus.methods`.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, final

from haclient.errors import WireError

if TYPE_CHECKING:
    from haclient.replication.past import Past

Metadata = tuple[tuple[str, str], ...]
Session = Mapping[tuple[str, str], Metadata]


class Kind(enum.Enum):
    """What a method does to the server, which decides how it may be routed and repeated."""

    READ = "read"
    WRITE = "write"
    DDL = "ddl"
    ADMIN = "admin"
    ACCESS = "access"
    PROBE = "probe"
    SESSION = "session"


@final
@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the Milvus service.

    Attributes:
        name: The RPC's name, for example ``Search``.
        path: The HTTP/2 ``:path``, for example ``/milvus.proto.milvus.MilvusService/Search``.
        kind: What it does to the server.
        idempotent: Sending it twice leaves the server as sending it once does. Where that depends on the
            request (Upsert, Delete), this is False and `haclient.milvus.requests` decides.
        hedgeable: A second copy may run beside the first.
        pinned: The request or its answer names something that only one cluster knows (a job, a segment,
            a timestamp), so it never changes cluster silently.
        collection: Field number of the collection's name in the request, 0 if it has none.
        status: Field number of ``common.Status`` in the response; `STATUS_IS` if the response itself is
            one; `STATUS_NONE` if it carries none.
        streaming: The request, the response or both are streams.
    """

    name: str
    path: str
    kind: Kind
    idempotent: bool = False
    hedgeable: bool = False
    pinned: bool = False
    collection: int = 0
    status: int = 1
    streaming: bool = False


STATUS_IS = 0
STATUS_NONE = -1


class Action(enum.Enum):
    """What a reply (or its absence) asks for; `haclient.milvus.status` decides it."""

    OK = "ok"
    #: This endpoint cannot serve now: go to another endpoint, and count it against this one.
    FAILOVER = "failover"
    #: It was stopped on the server together with another request: go to another endpoint; says nothing of this one.
    DROPPED = "dropped"
    #: This endpoint cannot serve this collection now: go to another, the endpoint itself stays up.
    FAILOVER_COLLECTION = "failover_collection"
    #: The cluster asked is not (or no longer) the one that takes this call.
    ROUTE_CHANGE = "route_change"
    #: The cluster is over its quota: wait, or ask another cluster; siblings share the quota.
    BACK_OFF = "back_off"
    #: The cluster refuses writes (memory, disk, quota); it still reads.
    WRITE_BLOCKED = "write_blocked"
    #: A cached schema or catalogue entry is stale: once more on the same cluster.
    REFRESH = "refresh"
    #: The request itself is wrong, or not allowed: the same everywhere.
    FAIL_FAST = "fail_fast"
    #: The answer smells of lost or damaged data: read elsewhere, and tell the operator.
    ALARM = "alarm"
    #: We gave up on it ourselves (a hedge's loser, the caller cancelled): says nothing of the endpoint.
    CANCELLED = "cancelled"


@final
@dataclass(slots=True)
class Reply:
    """What came back on one gRPC call.

    Attributes:
        message: The response's bytes; empty unless ``code`` is 0.
        code: gRPC status code (0 is OK).
        details: ``grpc-message``, percent-decoded.
        headers: Initial metadata, lower-case names.
        trailers: Trailing metadata, without ``grpc-status`` and ``grpc-message``.
    """

    message: bytes
    code: int = 0
    details: str = ""
    headers: Metadata = ()
    trailers: Metadata = ()


class StreamHandle(Protocol):
    """One unary call under way on a transport."""

    def cancel(self) -> None:
        """Give up: RST_STREAM(CANCEL) goes out, the callback is never called after this returns."""


Outcome = Reply | WireError


class Transport(Protocol):
    """The seam between the fleet and the wire: one endpoint, reached somehow.

    The wire's `Channel` is one; the simulation's is another.
    """

    def start(
        self,
        path: str,
        message: bytes,
        metadata: Metadata,
        timeout_s: float,
        done: Callable[[Outcome], None],
    ) -> StreamHandle:
        """Send one unary call now, or as soon as a connection stands.

        Never raises for the network's sake, and never calls ``done`` before it returns. ``done`` is called
        exactly once, from the event loop, unless the handle is cancelled first. A deadline of
        ``timeout_s`` seconds from now is sent as ``grpc-timeout`` and enforced here as well.
        """

    def ping(self, done: Callable[[float | WireError], None]) -> None:
        """Send an HTTP/2 PING on the connection in use; ``done`` gets the round trip in seconds."""

    async def aclose(self) -> None:
        """Close every connection; calls still under way fail."""


@final
@dataclass(slots=True)
class Attempt:
    """One try of a call on one endpoint; rides on errors and feeds events.

    Attributes:
        endpoint: The endpoint's configured name.
        cluster: The cluster's configured name.
        started: Loop time at which it was sent.
        ended: Loop time at which it ended, or None while under way.
        action: What the outcome asks for; None while under way.
        reply: What came back, if anything did.
        error: The transport's error, if there was no reply.
        reason: One line for a person: what went wrong here.
        hedge: It was started as a hedge.
        code: Milvus' error code in the reply, or the gRPC code if that was not OK; 0 if neither.
        rejected: The server certainly did not carry the request out, so even a write may be sent again.
        life: Grows whenever the endpoint refuses connections: an endpoint whose process has died is another one then.
    """

    endpoint: str
    cluster: str
    started: float
    ended: float | None = None
    action: Action | None = None
    reply: Reply | None = None
    error: WireError | None = None
    reason: str = ""
    hedge: bool = False
    code: int = 0
    rejected: bool = False
    life: int = 0

    @property
    def sent(self) -> bool:
        """Whether the server may have seen the request."""
        return self.error is None or self.error.sent

    def __str__(self) -> str:
        took = "" if self.ended is None else f" after {(self.ended - self.started) * 1e3:.0f} ms"
        what = self.reason or (self.action.value if self.action else "under way")
        return f"{self.cluster}/{self.endpoint}{' (hedge)' if self.hedge else ''}{took}: {what}"


class ReadPlan(Protocol):
    """Which clusters may serve a read, where they differ in what they have."""

    def quick(self, call: Call) -> bool:
        """Say whether the call's next attempt may be made now, and note in the call by whom not."""

    async def ready(self, call: Call) -> None:
        """Wait until the call's next attempt may be made; raises `haclient.errors.CallError` if it may not."""

    def message(self, call: Call, cluster: str) -> bytes:
        """Return the read as it is to be sent to a cluster."""

    def lag(self, cluster: str) -> str:
        """Say in words why a cluster is not asked."""


@final
@dataclass(slots=True)
class Call:
    """One request of the application, as bytes.

    Attributes:
        method: Which RPC.
        message: The serialised request.
        metadata: Metadata of the application, lower-case names; authorisation is added per cluster.
        deadline: Absolute loop time by which the call must be answered.
        collection: Name of the collection it is about, "" if it has none.
        database: Name of the database, "" for the default one.
        idempotent: Whether this request may be sent twice (decided from method and message).
        hedgeable: Whether a second copy may run beside the first.
        pin: Name of the only cluster that may serve it, or None.
        guarantee_timestamp: The hybrid timestamp the request asks to be as fresh as, if it names one that
            some cluster handed out (values up to 2 are levels, not timestamps); 0 if it does not.
        credentials: The application's own, for clusters that have none configured.
        session: Metadata particular to one endpoint, by the names of cluster and endpoint; None if there is none.
        behind: Names of clusters that must not serve it, because they lack what it has to see.
        plan: Which clusters may serve it; None where nothing is replicated.
        past: What its session has written and seen; None where nothing is replicated.
        attempts: Every try so far, oldest first; the one part that grows.
    """

    method: Method
    message: bytes
    metadata: Metadata
    deadline: float
    collection: str = ""
    database: str = ""
    idempotent: bool = False
    hedgeable: bool = False
    pin: str | None = None
    guarantee_timestamp: int = 0
    credentials: Metadata = ()
    session: Session | None = None
    behind: frozenset[str] = frozenset()
    plan: ReadPlan | None = None
    past: Past | None = None
    attempts: list[Attempt] = field(default_factory=list)


Handler = Callable[[Call], Awaitable[Reply]]
Policy = Callable[[Handler, Call], Awaitable[Reply]]
