"""Proxies in front of real Milvus, and what dies: a proxy of ours, or one of Milvus' own behind it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pymilvus
import pytest

from haclient import MilvusClient
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.servers.proxy import ProxyServer
from haclient.events import ClusterRecognised, EndpointChanged
from tests.interop.surfaces import differing, reads
from tests.live.steady_load import Load, Watch, eventually, opened, searching, until_up
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus
from tests.servers.proxy import behind, serving
from tests.servers.shared import ROWS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

NEW = {"id": ROWS + 7, "text": "new", "vector": fill.vector(ROWS + 7)}


@pytest.mark.live
async def test_a_proxy_is_killed(standalone: StandaloneServer, tmp_path: Path) -> None:
    """Two proxies given to our client are recognised as one cluster, and kill -9 of one costs no read."""
    config = behind([standalone.uri])
    async with AsyncExitStack() as stack:
        dying = await stack.enter_async_context(ProxyServer(tmp_path, config))
        _, survivor = await stack.enter_async_context(serving(config))
        client, watch = await stack.enter_async_context(opened([dying.uri, survivor]))
        await watch.until(ClusterRecognised)
        await until_up(client, dying.address, survivor.removeprefix("http://"))
        # One cluster, so writes are taken.
        await client.upsert(fill.COLLECTION, [NEW])
        found = await client.query(fill.COLLECTION, filter=f"id == {NEW['id']}", consistency_level="Session")
        assert [row["id"] for row in found] == [NEW["id"]]
        await client.delete(fill.COLLECTION, ids=[NEW["id"]])

        blocking = await asyncio.to_thread(MilvusClient, config=behind([dying.uri, survivor]))
        stack.push_async_callback(asyncio.to_thread, blocking.close)

        async def ask(key: int) -> list[Any]:
            hits = await asyncio.to_thread(blocking.search, fill.COLLECTION, data=[fill.vector(key)], limit=1)
            return [hit["id"] for hit in hits[0]]

        async with Load(searching(client), rate=40) as load, Load(ask) as other:
            await asyncio.gather(load.more(40), other.more(20))
            await dying.kill()
            await watch.until(EndpointChanged, endpoint=dying.address, after="down")
            await asyncio.gather(load.more(80), other.more(40))
        load.assert_all_right()
        other.assert_all_right()


@pytest.mark.cluster
async def test_a_proxy_of_milvus_is_killed(distributed: DistributedMilvus) -> None:
    """pymilvus through our proxy: the same answers by both of Milvus' proxies, and no read fails when one is killed."""
    dead = distributed.proxy_a
    async with AsyncExitStack() as stack:
        server, uri = await stack.enter_async_context(serving(behind(distributed.uris)))
        watch = Watch(server.core.bus)
        await eventually(lambda: all(each.state == "up" for each in server.core.view().endpoints), "up")
        ours, theirs = await asyncio.gather(reads(uri), reads(distributed.uris[1]))
        assert not differing(ours, theirs)

        client = pymilvus.AsyncMilvusClient(uri)
        stack.push_async_callback(client.close)
        await session(client)
        async with Load(searching(client, consistency_level="Bounded"), rate=40) as load:
            await load.more(40)
            await dead.kill()
            await watch.until(EndpointChanged, endpoint=dead.address, after="down")
            await load.more(100)
        load.assert_all_right()


async def session(client: Any) -> None:
    """What it writes by whichever of Milvus' proxies, it reads by whichever."""
    for key in range(ROWS, ROWS + 10):
        await client.upsert(fill.COLLECTION, [{**NEW, "id": key}])
        found = await client.query(fill.COLLECTION, filter=f"id == {key}", consistency_level="Session")
        assert [row["id"] for row in found] == [key]
    await client.delete(fill.COLLECTION, ids=list(range(ROWS, ROWS + 10)))
