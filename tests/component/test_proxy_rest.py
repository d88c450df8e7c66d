"""REST through the proxy: real HTTP to servers in every kind of trouble, and a real client in front."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import trustme

from haclient.call import Outcome, Reply
from haclient.config import ClusterConfig, Config, EndpointConfig, Hedge, ProxyLimits, Timeouts, Wire
from haclient.core import Core
from haclient.drill.servers.process import HOST
from haclient.errors import AttemptTimeout, ConnectFailed, ConnectionLost, ProtocolError, TransportClosed
from haclient.events import EventBus
from haclient.milvus.methods import named
from haclient.proxy.admission import Admission
from haclient.proxy.http1 import Http1Connection
from haclient.proxy.rest import HttpRequest, RestGateway
from haclient.proxy.rest_routes import MILVUS_AND_REST, STATUS, VERB
from haclient.proxy.rest_transport import RestTransport, with_rest
from haclient.transport import connector
from tests.servers import fill
from tests.servers.shared import ROWS, LiteFactory, StandalonePair
from tests.unit.fleet.fleet_fakes import FakeTransport, Server, until

SEARCH = "/v2/vectordb/entities/search"
INSERT = "/v2/vectordb/entities/insert"
OK = b'{"code":0,"data":[]}'
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class HttpServer:
    """A server of plain HTTP that can also do what none should.

    Attributes:
        fault: "" or one of: ``close`` (hangs up before it reads), ``reset`` (after it has read), ``part`` (in the
            middle of its answer), ``hang``, ``slow``, ``http2``, ``nonsense``.
        status: HTTP status of its answers, and their ``body``.
        seen: Verb, target, headers and body of every request.
        gone: Clients that hung up while it had not answered yet.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.fault = ""
        self.status = 200
        self.body = OK
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.gone = 0
        self.port = 0
        #: What answers there over gRPC.
        self.grpc = Server()
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def endpoint(self) -> EndpointConfig:
        return EndpointConfig(host=HOST, port=self.port, secure=self._tls is not None)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, HOST, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.grpc.state = "up"

    async def kill(self) -> None:
        assert self._server is not None
        self._server.close()
        self.grpc.state = "refused"
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while await self._serve(reader, writer):
                pass
        except (ConnectionError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._connections.pop(task, None)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.fault in ("close", "http2"):
            if self.fault == "http2":
                await reader.read(1 << 16)
                writer.write(SETTINGS)
                await writer.drain()
            return False
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").splitlines()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        verb, target, _ = first.split(" ")
        self.seen.append((verb, target, headers, body))
        if self.fault == "reset":
            return False
        if self.fault == "hang":
            await reader.read()
            self.gone += 1
            return False
        if self.fault == "slow":
            await asyncio.sleep(0.3)
        answer = f"HTTP/1.1 {self.status} Status\r\ncontent-length: {len(self.body)}\r\nx-server: {self.port}\r\n\r\n"
        raw = b"nonsense\r\n\r\n" if self.fault == "nonsense" else answer.encode() + self.body
        writer.write(raw[:-5] if self.fault == "part" else raw)
        await writer.drain()
        return self.fault != "part"


@pytest.fixture
async def server() -> AsyncIterator[Callable[..., Awaitable[HttpServer]]]:
    """``await server()`` starts one more; all end with the test."""
    servers: list[HttpServer] = []

    async def make(tls: ssl.SSLContext | None = None) -> HttpServer:
        servers.append(HttpServer(tls))
        await servers[-1].start()
        return servers[-1]

    yield make
    for one in servers:
        await one.kill()


MakeServer = Callable[..., Awaitable[HttpServer]]


class TestTransport:
    async def ask(
        self, endpoint: EndpointConfig, *, body: bytes = b"{}", timeout_s: float = 5.0, path: str = SEARCH, **more: Any
    ) -> Outcome:
        cluster = ClusterConfig(name="c", endpoints=(endpoint,), **more)
        loop = asyncio.get_running_loop()
        config = Config(clusters=(cluster,), timeouts=Timeouts(connect_s=1.0), wire=Wire(max_message_bytes=100_000))
        transport = RestTransport(cluster, endpoint, config, loop)
        answered: asyncio.Future[Outcome] = loop.create_future()
        metadata = ((VERB, "POST"), ("authorization", "Bearer mine"), ("x-a", "1"))
        try:
            transport.start(path, body, metadata, timeout_s, answered.set_result)
            return await answered
        finally:
            await transport.aclose()

    @pytest.mark.parametrize(
        ("fault", "kind", "sent", "text"),
        [
            ("dead", ConnectFailed, False, "cannot connect"),
            ("close", ConnectionLost, True, "the connection ended"),
            ("reset", ConnectionLost, True, "the connection ended"),
            ("part", ConnectionLost, True, "the connection ended"),
            ("nonsense", ConnectionLost, True, "the connection ended"),
            ("hang", AttemptTimeout, True, "no answer within 0.2 s"),
            ("http2", TransportClosed, False, "does not speak HTTP/1.1"),
            ("huge", ProtocolError, True, "max_message_bytes, 100000"),
            ("404", TransportClosed, False, "no such REST route"),
        ],
    )
    @pytest.mark.both_loops
    async def test_trouble(self, server: MakeServer, fault: str, kind: type, sent: bool, text: str) -> None:
        """What may have been carried out is never called unsent."""
        one = await server()
        if fault == "dead":
            await one.kill()
        elif fault == "huge":
            one.body = b"x" * 200_000
        elif fault == "404":
            one.status, one.body = 404, b"404 page not found"
        else:
            one.fault = fault
        error = await self.ask(one.endpoint, timeout_s=0.2 if fault == "hang" else 5.0)
        assert isinstance(error, kind)
        assert not isinstance(error, Reply)
        assert error.sent is sent
        assert text in str(error)
        if fault == "hang":
            await until(lambda: one.gone == 1)

    async def test_reply(self, server: MakeServer) -> None:
        """Verb, target, headers and body arrive as they are; status, headers and body come back so."""
        one = await server()
        one.status, one.body = 418, b'{"code":7}'
        reply = await self.ask(one.endpoint, body=b'{"a": 1}', path=SEARCH + "?a=%2F%20&b", timeout_s=1.5)
        assert isinstance(reply, Reply)
        assert (reply.code, reply.message) == (0, b'{"code":7}')
        assert reply.headers == ((STATUS, "418"), ("content-length", "10"), ("x-server", str(one.port)))
        verb, target, headers, body = one.seen[0]
        assert (verb, target, body) == ("POST", SEARCH + "?a=%2F%20&b", b'{"a": 1}')
        assert headers == {
            "host": f"{HOST}:{one.port}",
            "content-length": "8",
            "authorization": "Bearer mine",
            "x-a": "1",
            "request-timeout": "2",
        }

    @pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 16)])
    async def test_own_credentials(self, server: MakeServer, status: int, code: int) -> None:
        """They replace the client's; if they are wrong, the core is told so in gRPC's terms."""
        one = await server()
        one.status = status
        reply = await self.ask(one.endpoint, user="root", password="Milvus")
        assert isinstance(reply, Reply)
        assert reply.code == code
        assert one.seen[0][2]["authorization"] == "Bearer root:Milvus"

    async def test_wrong_credentials_of_a_client(self, server: MakeServer) -> None:
        one = await server()
        one.status = 401
        reply = await self.ask(one.endpoint)
        assert isinstance(reply, Reply)
        assert reply.code == 0

    async def test_tls(self, server: MakeServer, tmp_path: Path) -> None:
        """With the cluster's CA and server name; a port that takes no HTTP/1.1 is not taken for dead."""
        authority, stranger = trustme.CA(), trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("milvus.example").configure_cert(context)
        one = await server(context)
        for name, ca in (("ca.pem", authority), ("other.pem", stranger)):
            ca.cert_pem.write_to_path(str(tmp_path / name))
        known = {"ca_pem_path": str(tmp_path / "ca.pem"), "server_name": "milvus.example"}
        assert isinstance(await self.ask(one.endpoint, **known), Reply)
        wrong = await self.ask(one.endpoint, **known | {"ca_pem_path": str(tmp_path / "other.pem")})
        assert isinstance(wrong, TransportClosed)
        assert "TLS handshake" in str(wrong)
        await one.kill()
        assert isinstance(await self.ask(one.endpoint, **known), ConnectFailed)

    @pytest.mark.both_loops
    async def test_closed_while_under_way(self, server: MakeServer) -> None:
        one = await server()
        one.fault = "hang"
        cluster = ClusterConfig(name="c", endpoints=(one.endpoint,))
        transport = RestTransport(cluster, one.endpoint, Config(clusters=(cluster,)), asyncio.get_running_loop())
        outcomes: list[Outcome] = []
        transport.start(SEARCH, b"", ((VERB, "POST"),), 5.0, outcomes.append)
        given_up = transport.start(SEARCH, b"", ((VERB, "POST"),), 5.0, outcomes.append)
        await until(lambda: len(one.seen) == 2)
        given_up.cancel()
        await until(lambda: one.gone == 1)
        assert not outcomes
        await transport.aclose()
        assert [type(outcome) for outcome in outcomes] == [TransportClosed]


class Proxy:
    """Gateway and core over servers; their gRPC is scripted, unless ``real``."""

    def __init__(self, *clusters: ClusterConfig, servers: tuple[HttpServer, ...] = (), **config: Any) -> None:
        loop = asyncio.get_running_loop()
        rng = random.Random(1)
        settings = Config(clusters=clusters, **config)
        grpc = {server.endpoint.address: server.grpc for server in servers}
        inner = connector(settings, loop, rng)
        if servers:

            def inner(_: ClusterConfig, endpoint: EndpointConfig, probe: bool) -> FakeTransport:
                return FakeTransport(grpc[endpoint.address], probe)

        connect = with_rest(inner, settings, loop)
        self.core = Core(settings, connect, EventBus(), rng, loop, time.monotonic, MILVUS_AND_REST)
        self.gateway = RestGateway(self.core)

    async def __aenter__(self) -> Proxy:
        await self.core.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.core.aclose()
        assert all(not node.flights for node in self.core.fleet.nodes())

    async def ask(self, path: str, body: dict[str, Any], *, verb: str = "POST") -> tuple[int, Any]:
        request = HttpRequest(verb, path, (("content-type", "application/json"),), orjson.dumps(body) if body else b"")
        response = await self.gateway.answer(request)
        return response.status, orjson.loads(response.body) if response.body[:1] == b"{" else {}


def one_cluster(*servers: HttpServer) -> ClusterConfig:
    return ClusterConfig(name="c", endpoints=tuple(server.endpoint for server in servers))


async def befall(one: HttpServer, fault: str) -> None:
    refusals = {
        "not ready": (200, b'{"code":1,"message":"service not ready"}'),
        "not loaded": (200, b'{"code":101,"message":"collection not loaded"}'),
        "unavailable": (503, b"no healthy upstream"),
        "no route": (404, b"404 page not found"),
    }
    if fault == "dead":
        await one.kill()
    elif fault in refusals:
        one.status, one.body = refusals[fault]
    else:
        one.fault = fault


FAULTS = [
    "dead",
    "close",
    "reset",
    "part",
    "hang",
    "slow",
    "http2",
    "not ready",
    "not loaded",
    "unavailable",
    "no route",
]
#: At these a server has certainly carried nothing out, so that even an insert goes on to the other one.
HARMLESS = {"dead", "http2", "not ready", "no route"}


class TestFailover:
    @pytest.mark.parametrize("fault", FAULTS)
    async def test_reads(self, server: MakeServer, fault: str) -> None:
        """Whatever befalls one of two, every read is answered by the other, and soon."""
        one, two = await server(), await server()
        async with Proxy(one_cluster(one, two), servers=(one, two), hedge=Hedge(initial_delay_s=0.02)) as proxy:
            await befall(one, fault)
            answers = [await proxy.ask(SEARCH, {"collectionName": "docs"}) for _ in range(20)]
            assert answers == [(200, orjson.loads(OK))] * 20

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_writes(self, server: MakeServer, fault: str) -> None:
        """An insert reaches one server only, unless the other has certainly not carried it out; none is called lost
        that was acknowledged, and none acknowledged that was lost."""
        one, two = await server(), await server()
        timeouts = Timeouts(write_s=0.5)
        async with Proxy(one_cluster(one, two), servers=(one, two), timeouts=timeouts) as proxy:
            await befall(one, fault)
            for i in range(8):
                status, answer = await proxy.ask(INSERT, {"collectionName": "docs", "data": [{"id": i}]})
                acknowledged = (status, answer.get("code")) == (200, 0)
                got = [orjson.loads(body)["data"][0]["id"] == i for *_, body in two.seen].count(True)
                assert acknowledged >= (fault in HARMLESS | {"slow"})
                assert acknowledged or (status, got) in ((500, 0), (200, 0), (503, 0))
            sent = Counter(orjson.loads(body)["data"][0]["id"] for s in (one, two) for *_, body in s.seen)
            if fault not in HARMLESS:
                assert max(sent.values()) == 1

    async def test_an_upsert_with_known_keys_goes_on(self, server: MakeServer) -> None:
        """As over gRPC: whole rows with keys of the client's own may be sent twice, once the key is known."""
        one, two = await server(), await server()
        async with Proxy(one_cluster(one, two), servers=(one, two)) as proxy:
            await proxy.ask(SEARCH, {"collectionName": "docs"})
            await until(lambda: ("", "docs") in proxy.core.fleet.keys)
            one.fault = "reset"
            body = {"collectionName": "docs", "data": [{"id": 1}]}
            assert [await proxy.ask("/v2/vectordb/entities/upsert", body) for _ in range(5)] == [
                (200, orjson.loads(OK))
            ] * 5

    async def test_all_dead(self, server: MakeServer) -> None:
        one, two = await server(), await server()
        async with Proxy(one_cluster(one, two), servers=(one, two)) as proxy:
            await one.kill()
            await two.kill()
            status, answer = await proxy.ask(SEARCH, {"collectionName": "docs"})
            assert status == 503
            assert answer["message"].count("cannot connect") >= 2

    async def test_nobody_offers_it(self, server: MakeServer) -> None:
        """A clear word, and nobody's health is called into question."""
        one, two = await server(), await server()
        async with Proxy(one_cluster(one, two), servers=(one, two)) as proxy:
            one.fault = "http2"
            two.status, two.body = 404, b"404 page not found"
            for path in (SEARCH, INSERT):
                status, answer = await proxy.ask(path, {"collectionName": "docs"})
                assert status == 404
                assert "no endpoint offers this route" in answer["message"]
            assert {endpoint.state for endpoint in proxy.core.view().endpoints} == {"up"}

    async def test_users_mistakes(self, server: MakeServer) -> None:
        """They are told unchanged, and nothing is repeated."""
        one, two = await server(), await server()
        async with Proxy(one_cluster(one, two), servers=(one, two)) as proxy:
            for each in (one, two):
                each.body = b'{"code":1802,"message":"missing required parameters"}'
            answer = await proxy.ask(SEARCH, {"collectionName": "docs"})
            assert answer == (200, {"code": 1802, "message": "missing required parameters"})
            assert len(one.seen) + len(two.seen) == 1

    async def test_poison(self, server: MakeServer) -> None:
        """A request that kills reaches two servers at most."""
        servers = [await server() for _ in range(3)]
        async with Proxy(one_cluster(*servers), servers=tuple(servers)) as proxy:
            for each in servers:
                each.fault = "reset"
            status, _ = await proxy.ask(SEARCH, {"collectionName": "docs"})
            assert status in (422, 503)
            assert sum(len(each.seen) for each in servers) == 2

    async def test_writes_to_several_clusters(self, server: MakeServer) -> None:
        one, two = await server(), await server()
        clusters = [ClusterConfig(name=f"c{each.port}", endpoints=(each.endpoint,)) for each in (one, two)]
        for i, each in enumerate((one, two)):
            each.grpc.catalogue = {"docs": 440_000_000_000_000_000 + i}
        async with Proxy(*clusters, servers=(one, two)) as proxy:
            assert (await proxy.ask(SEARCH, {"collectionName": "docs"}))[0] == 200
            status, answer = await proxy.ask(INSERT, {"collectionName": "docs", "data": []})
            assert status == 501
            assert "not sent" in answer["message"]
            assert INSERT not in [target for each in (one, two) for _, target, _, _ in each.seen]

    async def test_grpc_goes_on_as_ever(self, server: MakeServer) -> None:
        """Beside REST, over the same transports, with the same core."""
        one = await server()
        async with Proxy(one_cluster(one), servers=(one,)) as proxy:
            reply = await proxy.core.request(named("ShowCollections"), b"", (("x", "y"),), 5.0)
            assert reply.code == 0
            assert len(one.grpc.calls("ShowCollections")) == 1
            assert not one.seen


class FrontDoor:
    """A listening port that speaks HTTP/1.1 in front of a gateway."""

    def __init__(self, handler: Any, **limits: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._limits = ProxyLimits(**limits)
        self.admission = Admission(self._limits, self._loop)
        self.connections: set[Http1Connection] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    def _connection(self) -> Http1Connection:
        connection = Http1Connection(
            self._loop, self._limits, 1 << 20, self._handler, self.admission, lambda: "id", self.connections.discard
        )
        self.connections.add(connection)
        return connection

    async def __aenter__(self) -> FrontDoor:
        self._server = await self._loop.create_server(self._connection, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{HOST}:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.begin_drain()
        await until(lambda: not self.connections)
        self.admission.close()
        assert (self.admission.calls, self.admission.memory_bytes) == (0, 0)


@pytest.mark.both_loops
class TestFrontDoor:
    async def test_whole_way(self, server: MakeServer) -> None:
        """A client, the proxy, a server: what is said on one side is heard on the other."""
        one = await server()
        one.body = b'{"code":0,"data":"' + b"x" * 900_000 + b'"}'
        async with (
            Proxy(one_cluster(one), servers=(one,)) as proxy,
            FrontDoor(proxy.gateway.answer) as door,
            httpx.AsyncClient(base_url=door.url) as client,
        ):
            for _ in range(3):
                response = await client.post(SEARCH, content=b'{"collectionName":"docs","x":"' + b"y" * 900_000 + b'"}')
                assert (response.status_code, response.content) == (200, one.body)
                assert response.headers["client-request-id"] == "id"
            assert len(door.connections) == 1, "it is kept"
            assert [verb for verb, *_ in one.seen] == ["OPTIONS", "POST", "POST", "POST"], (
                "it is met before a long body"
            )
            _, _, headers, body = one.seen[1]
            assert len(body) > 900_000
            assert headers["client-request-id"] == "id"
            assert (await client.get("/")).status_code == 404

    async def test_the_client_goes_away(self, server: MakeServer) -> None:
        """Its call is given up on the server, too."""
        one = await server()
        one.fault = "hang"
        async with Proxy(one_cluster(one), servers=(one,)) as proxy, FrontDoor(proxy.gateway.answer) as door:
            _, writer = await asyncio.open_connection(HOST, door.port)
            writer.write(b"POST %s HTTP/1.1\r\nhost: p\r\ncontent-length: 2\r\n\r\n{}" % SEARCH.encode())
            await until(lambda: len(one.seen) == 1)
            writer.close()
            await until(lambda: one.gone == 1 and not door.connections)

    async def test_too_large(self) -> None:
        """The client reads why, although it has not sent everything yet."""

        async def never(_: HttpRequest) -> Any:
            raise AssertionError("it was let in")

        async with FrontDoor(never) as door:
            reader, writer = await asyncio.open_connection(HOST, door.port)
            writer.write(b"POST / HTTP/1.1\r\nhost: p\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 3_000_000)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b'allows"}')
            writer.close()

    async def test_a_client_that_does_not_read(self, server: MakeServer) -> None:
        """It is cut off, and what was held for it is free again."""
        one = await server()
        one.body = b'{"code":0,"data":"' + b"x" * 30_000_000 + b'"}'
        async with (
            Proxy(one_cluster(one), servers=(one,)) as proxy,
            FrontDoor(proxy.gateway.answer, reply_s=0.2) as door,
        ):
            reader, writer = await asyncio.open_connection(HOST, door.port)
            writer.write(b"POST %s HTTP/1.1\r\nhost: p\r\ncontent-length: 2\r\n\r\n{}" % SEARCH.encode())
            await until(lambda: door.admission.memory_bytes > 30_000_000)
            await until(lambda: not door.connections)
            assert door.admission.memory_bytes == 0
            writer.transport.abort()
            del reader


async def test_milvus_lite_has_no_rest(lite_server: LiteFactory) -> None:
    """It hears HTTP/1.1 as nonsense; the client is told so, and gRPC's health is not touched."""
    lite = await lite_server()
    cluster = ClusterConfig(name="lite", endpoints=(EndpointConfig(host=HOST, port=lite.port),))
    async with Proxy(cluster) as proxy:
        for path in (SEARCH, INSERT):
            # A long body, too: a server that hangs up on it must not look like one that it has killed.
            status, answer = await proxy.ask(path, {"collectionName": "docs", "data": [[0.0] * 500_000]})
            assert status == 404
            assert "no endpoint offers this route" in answer["message"]
            assert "does not speak HTTP/1.1" in answer["message"]
        assert {endpoint.state for endpoint in proxy.core.view().endpoints} == {"up"}


def question(key: int = 7, **more: Any) -> dict[str, Any]:
    return {"collectionName": fill.COLLECTION, "vector": fill.vector(key), "limit": 3, "outputFields": ["text"], **more}


def pair_clusters(pair: StandalonePair) -> list[ClusterConfig]:
    return [
        ClusterConfig(name=name, endpoints=(EndpointConfig(host=HOST, port=server.port),))
        for name, server in (("a", pair.a), ("b", pair.b))
    ]


@pytest.mark.live
async def test_same_answers_as_direct(standalone_pair: StandalonePair) -> None:
    """Milvus 2.3.5 offers v1: what comes through the proxy is what comes directly, the user's mistakes too."""
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/v1/vector/collections", None),
        ("GET", "/v1/vector/collections/describe?collectionName=docs", None),
        ("GET", "/v1/vector/collections/describe?collectionName=nothing", None),
        ("POST", "/v1/vector/search", question()),
        ("POST", "/v1/vector/search", question(vector=[0.0] * 5)),
        ("POST", "/v1/vector/search", question(collectionName="nothing")),
        ("POST", "/v1/vector/search", question(filter="id ==== 1")),
        ("POST", "/v1/vector/search", {}),
        ("POST", "/v1/vector/query", {"collectionName": "docs", "filter": "id in [1, 2]", "outputFields": ["text"]}),
        ("POST", "/v1/vector/get", {"collectionName": "docs", "id": [3], "outputFields": ["text"]}),
    ]
    (cluster, _), server = pair_clusters(standalone_pair), standalone_pair.a
    async with (
        Proxy(cluster) as proxy,
        FrontDoor(proxy.gateway.answer) as door,
        httpx.AsyncClient(timeout=30) as client,
    ):
        for verb, path, body in asked:
            direct = await client.request(verb, server.uri + path, json=body)
            through = await client.request(verb, door.url + path, json=body)
            assert (through.status_code, through.json()) == (direct.status_code, direct.json()), path
            for name in ("content-type", "access-control-allow-origin"):
                assert through.headers[name] == direct.headers[name]
        malformed = [await client.post(base + "/v1/vector/search", content=b"{") for base in (server.uri, door.url)]
        assert malformed[0].json() == malformed[1].json()
        preflight = [await client.options(base + "/v1/vector/search") for base in (server.uri, door.url)]
        assert preflight[0].status_code == preflight[1].status_code == 204
        newer = await client.post(door.url + SEARCH, json=question())
        assert newer.status_code == 404
        assert "no endpoint offers this route" in newer.json()["message"]


@pytest.mark.live
async def test_writes_to_a_real_one(standalone_pair: StandalonePair) -> None:
    cluster, _ = pair_clusters(standalone_pair)
    async with Proxy(cluster) as proxy:
        row = {"id": 90_001, "text": "new", "vector": fill.vector(90_001)}
        assert (await proxy.ask("/v1/vector/insert", {"collectionName": "docs", "data": [row]}))[1]["code"] == 200
        assert (await proxy.ask("/v1/vector/delete", {"collectionName": "docs", "id": row["id"]}))[1]["code"] == 200
        made = {"collectionName": "made_over_rest", "dimension": 4}
        assert (await proxy.ask("/v1/vector/collections/create", made))[1]["code"] == 200
        assert (await proxy.ask("/v1/vector/collections/drop", made))[1]["code"] == 200


@pytest.mark.live
@pytest.mark.parametrize("fault", ["kill", "freeze", "release"])
async def test_failover_of_a_real_pair(standalone_pair: StandalonePair, fault: str) -> None:
    """Whatever befalls one of two, every search finds the right row."""
    async with Proxy(*pair_clusters(standalone_pair)) as proxy:
        for key in range(20):
            assert (await proxy.ask("/v1/vector/search", question(key)))[1]["data"][0]["id"] == str(key)
        if fault == "kill":
            await standalone_pair.a.kill()
        elif fault == "freeze":
            standalone_pair.a.freeze()
        else:
            client = fill.connect(standalone_pair.a.uri)
            await asyncio.to_thread(client.release_collection, fill.COLLECTION)
            client.close()
        for key in range(ROWS // 5):
            status, answer = await proxy.ask("/v1/vector/search", question(key))
            assert (status, answer["code"]) == (200, 200), answer
            assert answer["data"][0]["id"] == str(key)
