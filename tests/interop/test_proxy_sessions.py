"""Several clients of one proxy, and one client of several clusters: nobody is taken for another."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from pymilvus.grpc_gen.milvus_pb2 import ConnectRequest, ConnectResponse

from haclient.drill.servers.lite import LiteServer
from haclient.drill.toxic import ToxicProxy
from tests.conftest import run
from tests.interop.surfaces import client_of
from tests.interop.test_proxy_grpc import KNOWN, MILVUS, Upstream
from tests.servers import fill
from tests.servers.proxy import behind, listening, serving
from tests.servers.shared import ToxicFactory

pytestmark = [
    pytest.mark.xdist_group("proxy_sessions"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@asynccontextmanager
async def upstream(first: int) -> AsyncIterator[tuple[Upstream, str]]:
    service = Upstream(first)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield service, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Client:
    """One that introduces itself, as SDKs do, and then says who it is with every call."""

    def __init__(self, uri: str, user: str, database: str) -> None:
        self.channel = grpc.aio.insecure_channel(uri.removeprefix("http://"))
        self.headers = [("authorization", user), ("dbname", database)]

    async def connect(self) -> int:
        message = ConnectRequest(client_info={"sdk_type": "test"}).SerializeToString()
        answer = await self.channel.unary_unary(f"{MILVUS}/Connect")(message, metadata=self.headers)
        identifier = ConnectResponse.FromString(answer).identifier
        self.headers.append(("identifier", str(identifier)))
        return identifier

    async def call(self) -> None:
        await self.channel.unary_unary(KNOWN)(b"", metadata=self.headers, wait_for_ready=True)


async def test_each_server_hears_its_own_number_of_a_client() -> None:
    """And whose a call is: user and database. A server that has not met the client hears no number."""
    async with AsyncExitStack() as stack:
        (a, uri_a), (b, uri_b) = [await stack.enter_async_context(upstream(first)) for first in (1_000, 2_000)]
        _, uri = await stack.enter_async_context(serving(behind([uri_a, uri_b])))
        clients = [Client(uri, f"user{number}", f"db{number}") for number in range(2)]
        for client in clients:
            stack.push_async_callback(client.channel.close)
        ours = [await client.connect() for client in clients]
        assert len({*ours, *a.introduced, *b.introduced}) == 2 + len(a.introduced) + len(b.introduced)
        while not (len(a.seen) > 20 and len(b.seen) > 20):
            await asyncio.gather(*(client.call() for client in clients))

        theirs: dict[str, set[int]] = {"user0": set(), "user1": set()}
        for server in (a, b):
            for seen, _ in server.seen:
                assert seen["dbname"] == seen["authorization"].replace("user", "db")
                if "identifier" in seen:
                    assert int(seen["identifier"]) in server.introduced
                    theirs[seen["authorization"]].add(int(seen["identifier"]))
        # Connect went to one of the two servers, and each client has a number of its own there.
        assert [len(numbers) for numbers in theirs.values()] == [1, 1]
        assert theirs["user0"] != theirs["user1"]


async def test_a_number_from_before_a_restart_is_not_passed_on() -> None:
    async with upstream(1_000) as (server, uri_of_server):
        config = behind([uri_of_server])
        with contextlib.closing(listening()) as sock:
            async with serving(config, sock) as (_, uri):
                client = Client(uri, "user", "db")
                await client.connect()
                await client.call()
                assert int(server.seen[-1][0]["identifier"]) in server.introduced
            async with serving(config, sock):
                await client.call()
                assert "identifier" not in server.seen[-1][0]
            await client.channel.close()


async def test_credentials_of_the_cluster_s_own() -> None:
    async with upstream(1) as (server, uri_of_server):
        config = behind([uri_of_server], proxy={"tokens": ["let:me-in"]})
        config["cluster"][0]["token"] = "root:Milvus"
        async with serving(config) as (_, uri):
            stranger, known = Client(uri, "let:someone-else-in", ""), Client(uri, "let:me-in", "")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stranger.call()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert not server.seen
            await known.call()
            ((seen, _),) = server.seen
            assert seen["authorization"] == base64.b64encode(b"root:Milvus").decode()
            for client in (stranger, known):
                await client.channel.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiteServer]]:
    """Two servers with the same keys; the text of each row is the name of the server."""
    servers = [LiteServer(tmp_path_factory.mktemp(name), name=name) for name in "ab"]
    try:
        for server in servers:
            run(server.start())
            fill.fill([server.uri], rows=200)
            client = fill.connect(server.uri)
            client.upsert(fill.COLLECTION, [{**fill.row(key), "text": server.name} for key in range(200)])
            client.close()
        yield servers
    finally:
        for server in servers:
            run(server.close())


async def test_databases_at_the_same_time(pair: list[LiteServer]) -> None:
    """The same collection name in two databases, asked for at once by two clients, blocking and async."""
    async with serving(behind([pair[0].uri])) as (_, uri):
        async with client_of("sync", uri) as client:
            for name in ("one", "two"):
                await client.create_database(name)
                async with client_of("sync", uri, db_name=name) as inside:
                    await inside.create_collection("same", dimension=4)
                    await inside.insert("same", [{"id": 1, "vector": [1.0, 0, 0, 0], "text": name}])
            assert await client.list_collections() == [fill.COLLECTION]
        ask: dict[str, Any] = {"filter": "id == 1", "output_fields": ["text"]}
        async with client_of("sync", uri, db_name="one") as one, client_of("async", uri, db_name="two") as two:
            answers = await asyncio.gather(*(client.query("same", **ask) for _ in range(20) for client in (one, two)))
        assert [rows[0]["text"] for rows in answers] == ["one", "two"] * 20


class TestIterators:
    """Two clusters: all pages of an iterator are of one of them."""

    @pytest.fixture
    async def clusters(self, pair: list[LiteServer], toxic: ToxicFactory) -> dict[str, ToxicProxy]:
        return {server.name: await toxic(server.port) for server in pair}

    @pytest.mark.parametrize("kind", ["query", "search"])
    async def test_stay_on_their_cluster(self, clusters: dict[str, ToxicProxy], kind: str) -> None:
        """Also when the other one is faster, and when the proxy is restarted in the middle."""
        config = behind(*([each.uri] for each in clusters.values()))
        rows: list[Any] = []

        async def page() -> bool:
            found = await asyncio.to_thread(iterator.next)
            rows.extend(row["entity"] if kind == "search" else row for row in found)
            return bool(found)

        async with AsyncExitStack() as stack:
            sock = stack.enter_context(contextlib.closing(listening()))
            async with serving(config, sock) as (_, uri):
                client = await stack.enter_async_context(client_of("sync", uri))
                iterator = await asyncio.to_thread(self.iterator, client.client, kind)
                await page()
                home = rows[0]["text"]
                clusters[home].delay(0.05)
                while (await client.get(fill.COLLECTION, ids=[1], output_fields=["text"]))[0]["text"] == home:
                    pass
                await page()
            async with serving(config, sock):
                while await page():
                    pass
        assert len(rows) == len({row["id"] for row in rows}) == 200
        assert {row["text"] for row in rows} == {home}

    def iterator(self, client: Any, kind: str) -> Any:
        options: dict[str, Any] = {"batch_size": 30, "output_fields": ["id", "text"]}
        if kind == "query":
            return client.query_iterator(fill.COLLECTION, **options)
        return client.search_iterator(fill.COLLECTION, data=[fill.vector(3)], limit=200, **options)
