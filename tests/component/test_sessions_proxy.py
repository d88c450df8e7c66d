"""Sessions across two proxies, in front of two clusters of which one lags: all read what they wrote, nobody goes back.

Nobody applies to the second cluster while the test holds its lease, so it lags for as long as the test wants.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pymilvus import DataType
from pymilvus.grpc_gen import milvus_pb2

from haclient import AsyncMilvusClient
from haclient.call import Metadata, Reply
from haclient.config.replication import Replication
from haclient.drill.servers.lite import LiteServer
from haclient.milvus.methods import SERVICE
from haclient.milvus.watermarks import COLLECTION
from haclient.replication.applier import APPLY
from haclient.replication.engines import open_log
from haclient.replication.past import SESSION
from haclient.wire import Channel, Target
from tests.servers.proxy import behind, serving
from tests.servers.shared import LiteFactory

STRONG, SESSION_LEVEL, BOUNDED, EVENTUALLY = range(4)
TRIES = 25


class Peer:
    """A client of one proxy, on a connection of its own, that says no more than it has to."""

    def __init__(self, uri: str) -> None:
        self.channel = Channel(Target(host="127.0.0.1", port=int(uri.rpartition(":")[2])))

    async def ask(self, name: str, message: Any, metadata: Metadata = (), timeout_s: float = 20.0) -> Reply:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        path = f"/{SERVICE}/{name}"
        self.channel.start(path, message.SerializeToString(), metadata, timeout_s, reply.set_result)
        answer = await reply
        assert isinstance(answer, Reply), answer
        assert answer.code == 0, answer.details
        return answer

    async def keys(self, level: int, metadata: Metadata = (), **more: Any) -> tuple[list[int], Metadata]:
        """Read all keys; returns them, and the session to go on with."""
        request = milvus_pb2.QueryRequest(
            collection_name="docs",
            expr="id > 0",
            output_fields=["id"],
            consistency_level=level,
            guarantee_timestamp={STRONG: 0, BOUNDED: 2}.get(level, 1),
        )
        reply = await self.ask("Query", request, metadata, **more)
        read = milvus_pb2.QueryResults.FromString(reply.message)
        assert read.status.code == 0, read.status
        found = next((field.scalars.long_data.data for field in read.fields_data if field.field_name == "id"), ())
        return sorted(found), tuple(field for field in reply.trailers if field[0] == SESSION)


class Scene:
    """Two servers, the log, two proxies."""

    def __init__(self, servers: list[LiteServer], log: Path, stack: AsyncExitStack) -> None:
        self.servers = servers
        self.settings = {"mode": "mirror", "log": str(log)}
        self._stack = stack
        self.uris: list[str] = []

    def config(self, **settings: Any) -> dict[str, Any]:
        return behind(*([server.uri] for server in self.servers), replication=self.settings | settings)

    async def proxy(self, **settings: Any) -> tuple[Any, str]:
        server, uri = await self._stack.enter_async_context(serving(self.config(**settings)))
        return server, uri

    async def peer(self, uri: str) -> Peer:
        peer = Peer(uri)
        self._stack.push_async_callback(peer.channel.aclose)
        return peer

    @asynccontextmanager
    async def second_lags(self) -> AsyncIterator[None]:
        """Keep everybody from applying to the second cluster, as soon as nobody does."""
        log = open_log(Replication.model_validate(self.settings), time.time)
        await log.open()
        try:
            lease = await log.acquire(f"{APPLY}c1", "the test", 600.0)
            while lease is None:
                await asyncio.sleep(0.05)
                lease = await log.acquire(f"{APPLY}c1", "the test", 600.0)
            yield
            await log.release(lease)
        finally:
            await log.aclose()


@pytest.fixture
async def scene(lite_server: LiteFactory, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two clusters with one row, that both have."""
    servers = [await lite_server() for _ in range(2)]
    async with AsyncExitStack() as stack:
        made = Scene(servers, tmp_path / "mutations.log", stack)
        async with serving(made.config(ack="all")) as (_, uri), AsyncMilvusClient(uri) as client:
            schema = client.create_schema()
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)
            await client.create_collection("docs", schema=schema)
            await client.load_collection("docs")
            await client.upsert("docs", [{"id": 1, "vector": [0.0, 1.0]}])
        yield made


async def test_sessions(scene: Scene) -> None:
    async with AsyncExitStack() as lagging:
        await lagging.enter_async_context(scene.second_lags())
        uris = [(await scene.proxy())[1] for _ in range(2)]
        first, second = [await scene.peer(uri) for uri in uris]
        async with AsyncMilvusClient(config={"cluster": [{"name": "proxies", "endpoints": uris}]}) as client:
            await client.upsert("docs", [{"id": 2, "vector": [1.0, 1.0]}])
            for _ in range(TRIES):
                rows = await client.query("docs", filter="id > 0", consistency_level="Session")
                assert [row["id"] for row in rows] == [1, 2], "it asks either proxy, and reads what it wrote"
                assert COLLECTION not in await client.list_collections()
        strangers = [(await peer.keys(EVENTUALLY))[0] for peer in (first, second) for _ in range(TRIES)]
        assert [1] in strangers, "the second cluster lags, and may answer who does not mind"

        # Whatever a session has seen it sees again, on its connection and on the other proxy.
        for number in range(TRIES):
            one, other = await scene.peer(uris[0]), await scene.peer(uris[1])
            seen, session = await one.keys(STRONG if number % 2 else EVENTUALLY)
            assert len(session) == 1
            again, _ = await one.keys(SESSION_LEVEL)
            elsewhere, session = await other.keys(SESSION_LEVEL, session)
            assert set(seen) <= set(again)
            assert set(seen) <= set(elsewhere)
            assert set(elsewhere) <= set((await one.keys(SESSION_LEVEL, session))[0])
            await one.channel.aclose()
            await other.channel.aclose()

        for _ in range(5):
            assert (await first.keys(STRONG))[0] == [1, 2]
            assert (await second.keys(SESSION_LEVEL, ((SESSION, "rubbish"),)))[0] in ([1], [1, 2])

        # The only cluster that has it dies: a read that must show it waits for the other one.
        _, session = await first.keys(STRONG)
        await scene.servers[0].kill()
        waiting = asyncio.ensure_future(second.keys(SESSION_LEVEL, session, timeout_s=60.0))
        await asyncio.sleep(0.5)
        assert not waiting.done()
    assert (await waiting)[0] == [1, 2]


async def test_a_process_without_the_log_reads_what_the_clusters_say_of_themselves(scene: Scene) -> None:
    """It knows how far they are by their marks; what it cannot know it refuses."""
    _, writing = await scene.proxy(watermark_s=0.2)
    server, reading = await scene.proxy(log="", watermark_s=0.2, bounded_s=5.0)
    assert server.core.mirror.replicator is None
    writer, reader = await scene.peer(writing), await scene.peer(reading)
    assert (await reader.keys(BOUNDED))[0] == [1]
    async with AsyncMilvusClient(writing) as client:
        await client.upsert("docs", [{"id": 2, "vector": [1.0, 1.0]}])
    session: Metadata = ()
    seen: list[int] = []
    while seen != [1, 2]:
        seen, session = await writer.keys(STRONG)
    for _ in range(TRIES):
        seen, session = await reader.keys(SESSION_LEVEL, session)
        assert seen == [1, 2]
    with pytest.raises(AssertionError, match=r"replication\.log is empty"):
        await reader.keys(STRONG)
