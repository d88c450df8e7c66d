"""Scripted Milvus servers in memory, for tests in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.call import Call, Outcome, Reply
from haclient.config import ClusterConfig, Config, EndpointConfig
from haclient.core import Core
from haclient.errors import AttemptTimeout, ConnectFailed, ConnectionLost, TransportClosed
from haclient.events import Event, EventBus
from haclient.milvus.methods import named

SEARCH, QUERY, INSERT, UPSERT, DELETE = (named(n) for n in ("Search", "Query", "Insert", "Upsert", "Delete"))
DESCRIBE, SHOW, CREATE, FLUSH = (
    named(n) for n in ("DescribeCollection", "ShowCollections", "CreateCollection", "Flush")
)

#: Ids as Milvus' timestamp oracle hands them out.
REAL_ID = 440_000_000_000_000_000


class Clock:
    """A clock set by hand."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def failure(code: int, reason: str = "", *, legacy: int = 0) -> Reply:
    """What a server answers to a call that it refuses in the body."""
    return Reply(_status_first(common_pb2.Status(code=code, error_code=legacy, reason=reason)))


def ok() -> Reply:
    return Reply(b"\n\x00")


def _status_first(status: Any) -> bytes:
    return milvus_pb2.BoolResponse(status=status).SerializeToString()


def hang() -> None:
    """A script that never answers."""
    return


Script = Callable[["Request"], Outcome | None] | Outcome | None


@dataclass
class Request:
    """One request as a server saw it."""

    at: float
    name: str
    message: bytes
    metadata: dict[str, str]
    probe: bool
    timeout_s: float


@dataclass
class Server:
    """One scripted endpoint.

    Attributes:
        state: ``up``, ``refused`` (nothing listens), ``hang`` (frozen), ``reset`` (dies on every request).
        delay_s: Time until it answers.
        pings: Whether it answers PINGs.
        catalogue: Collection name to id.
        released: Collections that are there but not loaded.
        keys: What reads find.
        script: Method name to its answer, instead of the usual one; see `Script`.
    """

    delay_s: float = 0.001
    state: str = "up"
    pings: bool = True
    catalogue: dict[str, int] = field(default_factory=lambda: {"docs": REAL_ID})
    released: set[str] = field(default_factory=set)
    keys: Sequence[int] = (1, 2, 3)
    build: str = "v2.3.5"
    script: dict[str, Script] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    transports: list[FakeTransport] = field(default_factory=list)
    open: int = 0
    cancelled: int = 0
    ping_count: int = 0

    def calls(self, name: str = "Search") -> list[Request]:
        """Return the application's calls of one method that it has seen."""
        return [r for r in self.requests if r.name == name and not r.probe]

    def answer(self, request: Request) -> Outcome | None:
        if request.name in self.script:
            script = self.script[request.name]
            return script(request) if callable(script) else script
        return getattr(self, f"_{request.name}", _fine)(request)

    def _Connect(self, _: Request) -> Outcome:
        info = common_pb2.ServerInfo(build_tags=self.build)
        return Reply(milvus_pb2.ConnectResponse(server_info=info, identifier=7).SerializeToString())

    def _ShowCollections(self, _: Request) -> Outcome:
        names, ids = list(self.catalogue), list(self.catalogue.values())
        return Reply(milvus_pb2.ShowCollectionsResponse(collection_names=names, collection_ids=ids).SerializeToString())

    def _DescribeCollection(self, request: Request) -> Outcome:
        name = milvus_pb2.DescribeCollectionRequest.FromString(request.message).collection_name
        if name not in self.catalogue:
            return failure(100, f"collection not found[{name}]")
        schema = schema_pb2.CollectionSchema(name=name)
        schema.fields.add(name="id", is_primary_key=True, data_type=schema_pb2.Int64)
        return Reply(
            milvus_pb2.DescribeCollectionResponse(
                collection_name=name, collectionID=self.catalogue[name], schema=schema
            ).SerializeToString()
        )

    def _Query(self, request: Request) -> Outcome:
        return self._read(milvus_pb2.QueryRequest.FromString(request.message).collection_name) or self._rows()

    def _Search(self, request: Request) -> Outcome:
        return self._read(milvus_pb2.SearchRequest.FromString(request.message).collection_name) or self._hits()

    def _LoadCollection(self, request: Request) -> Outcome:
        self.released.discard(milvus_pb2.LoadCollectionRequest.FromString(request.message).collection_name)
        return Reply(b"")

    def _read(self, name: str) -> Outcome | None:
        if name not in self.catalogue:
            return failure(100, f"collection not found[{name}]")
        if name in self.released:
            return failure(101, f"collection not loaded[{name}]")
        return None

    def _rows(self) -> Reply:
        reply = milvus_pb2.QueryResults()
        one = reply.fields_data.add(field_name="id", type=schema_pb2.Int64)
        one.scalars.long_data.data.extend(self.keys)
        return Reply(reply.SerializeToString())

    def _hits(self) -> Reply:
        reply = milvus_pb2.SearchResults()
        reply.results.ids.int_id.data.extend(self.keys)
        return Reply(reply.SerializeToString())


def _fine(_: Request) -> Outcome:
    return Reply(b"")


class FakeHandle:
    def __init__(self, transport: FakeTransport, done: Callable[[Outcome], None]) -> None:
        self.transport = transport
        self.done = done
        self.timers: list[asyncio.TimerHandle] = []
        transport.handles.add(self)
        transport.server.open += 1

    def cancel(self) -> None:
        if self._end():
            self.transport.server.cancelled += 1

    def finish(self, outcome: Outcome) -> None:
        if self._end():
            self.done(outcome)

    def _end(self) -> bool:
        if self not in self.transport.handles:
            return False
        self.transport.handles.discard(self)
        self.transport.server.open -= 1
        for timer in self.timers:
            timer.cancel()
        return True


class FakeTransport:
    """A `haclient.call.Transport` to one scripted server."""

    def __init__(self, server: Server, probe: bool) -> None:
        self.server = server
        self.probe = probe
        self.closed = False
        self.handles: set[FakeHandle] = set()
        server.transports.append(self)

    def start(self, path, message, metadata, timeout_s, done):
        loop, server = asyncio.get_running_loop(), self.server
        handle = FakeHandle(self, done)
        request = Request(loop.time(), path.rpartition("/")[2], message, dict(metadata), self.probe, timeout_s)
        server.requests.append(request)
        timeout = AttemptTimeout(f"no answer within {timeout_s:g} s", sent=True)
        handle.timers.append(loop.call_later(max(timeout_s, 0.0), handle.finish, timeout))
        outcome: Outcome | None
        delay_s = server.delay_s
        if self.closed:
            outcome, delay_s = TransportClosed(), 0.0
        elif server.state == "refused":
            outcome, delay_s = ConnectFailed("connection refused"), 0.0
        elif server.state == "hang":
            outcome = None
        elif server.state == "reset":
            outcome = ConnectionLost("connection reset by peer", sent=True)
        else:
            outcome = server.answer(request)
        if outcome is not None:
            handle.timers.append(loop.call_later(delay_s, handle.finish, outcome))
        return handle

    def ping(self, done):
        self.server.ping_count += 1
        if self.server.pings and self.server.state != "hang":
            asyncio.get_running_loop().call_later(0.0005, done, 0.0005)

    async def aclose(self) -> None:
        self.closed = True
        for handle in list(self.handles):
            handle.finish(TransportClosed())


class World:
    """Servers by address, and what is needed to make a fleet or a core over them."""

    def __init__(self, *servers: Server, seed: int = 1, **config: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = random.Random(seed)
        self.bus = EventBus()
        self.events: list[Event] = []
        self.bus.subscribe(self.events.append)
        self.by_address: dict[str, Server] = {}
        names = [f"s{i}" for i in range(len(servers))]
        for name, server in zip(names, servers, strict=True):
            self.by_address[f"{name}:19530"] = server
        clusters = config.pop("clusters", None)
        if clusters is None:
            clusters = [cluster(name, name) for name in names]
        self.config = Config(clusters=tuple(clusters), **config)
        self.cores: list[Core] = []

    def connect(self, _: ClusterConfig, endpoint: EndpointConfig, probe: bool) -> FakeTransport:
        return FakeTransport(self.by_address.setdefault(endpoint.address, Server()), probe)

    def core(self, config: Config | None = None) -> Core:
        core = Core(config or self.config, self.connect, self.bus, self.rng, self.loop)
        self.cores.append(core)
        return core

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        for core in self.cores:
            await core.aclose()
        assert all(server.open == 0 for server in self.by_address.values()), "a stream was left open"
        for core in self.cores:
            assert all(not node.flights for node in core.fleet.nodes()), "a flight was left"

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


def cluster(name: str, *hosts: str, **more: Any) -> ClusterConfig:
    """Describe a cluster whose endpoints are ``host:19530``."""
    endpoints = tuple(EndpointConfig(name=host, host=host) for host in hosts)
    return ClusterConfig(name=name, endpoints=endpoints, **more)


def search(collection: str = "docs", **fields: Any) -> bytes:
    return milvus_pb2.SearchRequest(collection_name=collection, nq=1, **fields).SerializeToString()


def query(collection: str = "docs", **fields: Any) -> bytes:
    return milvus_pb2.QueryRequest(collection_name=collection, **fields).SerializeToString()


def insert(collection: str = "docs") -> bytes:
    return milvus_pb2.InsertRequest(collection_name=collection, num_rows=1).SerializeToString()


def delete(expr: str = "id in [1]", collection: str = "docs") -> bytes:
    return milvus_pb2.DeleteRequest(collection_name=collection, expr=expr).SerializeToString()


def read_call(deadline: float = 1e9, **fields: Any) -> Call:
    given = {"collection": "docs", "idempotent": True, "hedgeable": True, **fields}
    return Call(SEARCH, search(), (), deadline, **given)


def write_call(deadline: float = 1e9, *, idempotent: bool = False) -> Call:
    return Call(UPSERT if idempotent else INSERT, insert(), (), deadline, "docs", idempotent=idempotent)


async def until(condition: Callable[[], bool], within_s: float = 60.0) -> float:
    """Wait for a condition; returns how long it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() - start < within_s, "it never came true"
        await asyncio.sleep(0.01)
    return loop.time() - start


async def ask(core: Core, *, method=SEARCH, message: bytes | None = None, timeout_s: float | None = None) -> Reply:
    return await core.request(method, search() if message is None else message, (), timeout_s)
