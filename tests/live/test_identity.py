"""Which endpoints are one cluster is told by what real servers say, not by how they were given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from haclient import AsyncMilvusClient, ConfigError, WriteRefused
from haclient.events import ClusterRecognised, ConfigRejected
from tests.live.steady_load import Watch, eventually, opened, searching, until_up
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus
from tests.servers.shared import ROWS, StandalonePair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NEW = {"id": ROWS + 1, "text": "new", "vector": fill.vector(ROWS + 1)}


def one_cluster(*uris: str) -> dict[str, Any]:
    return {"cluster": [{"name": "one", "endpoints": list(uris)}]}


@pytest.mark.cluster
class TestOneCluster:
    """Two proxies of a distributed Milvus."""

    async def test_given_as_a_list(self, distributed: DistributedMilvus) -> None:
        """Given as two URIs they are recognised as one cluster, so writes are allowed."""
        client = AsyncMilvusClient(uri=distributed.uris)
        watch = Watch(client)
        async with client:
            await watch.until(ClusterRecognised)
            assert len(client.fleet.clusters) == 1
            assert len(client.fleet.endpoints) == 2
            await client.upsert(fill.COLLECTION, [NEW])
            await client.delete(fill.COLLECTION, ids=[NEW["id"]])

    async def test_first_call_is_a_write(self, distributed: DistributedMilvus) -> None:
        """A client that starts with a write knows already that there is one cluster only."""
        client = AsyncMilvusClient(uri=distributed.uris)
        try:
            await client.delete(fill.COLLECTION, ids=[NEW["id"]])
        finally:
            await client.close()

    async def test_declared(self, distributed: DistributedMilvus) -> None:
        """Declared as one cluster they are accepted as one."""
        async with opened(config=one_cluster(*distributed.uris)) as (client, watch):
            await until_up(client, *(proxy.address for proxy in distributed.proxies))
            await client.delete(fill.COLLECTION, ids=[NEW["id"]])
            assert not watch.of(ConfigRejected)

    async def test_one_proxy_is_late(self, distributed: DistributedMilvus) -> None:
        """A proxy that was down at the start is recognised once it is up; until then it counts as another cluster."""
        await distributed.proxy_b.kill()
        async with opened(distributed.uris) as (client, watch):
            assert await searching(client, consistency_level="Eventually")(3) == [3]
            with pytest.raises(WriteRefused, match="replication"):
                await client.delete(fill.COLLECTION, ids=[NEW["id"]])
            await distributed.proxy_b.start()
            await watch.until(ClusterRecognised)
            await client.delete(fill.COLLECTION, ids=[NEW["id"]])


@pytest.mark.live
class TestTwoClusters:
    """Two standalone servers with the same collection names."""

    async def test_declared_as_one(self, standalone_pair: StandalonePair) -> None:
        """Declared as one cluster they are refused at the start, in words that say why and what to do."""
        client = AsyncMilvusClient(config=one_cluster(*standalone_pair.uris))
        with pytest.raises(ConfigError) as caught:
            async with client:
                pass
        text = str(caught.value)
        assert any(server.address in text for server in standalone_pair.both)
        assert "different ids" in text
        assert "[[cluster]]" in text
        await client.close()

    async def test_declared_as_one_and_called(self, standalone_pair: StandalonePair) -> None:
        """Without ``async with`` the first call says it."""
        client = AsyncMilvusClient(config=one_cluster(*standalone_pair.uris))
        try:
            with pytest.raises(ConfigError, match="different ids"):
                await client.list_collections()
        finally:
            await client.close()

    async def test_declared_as_one_while_one_is_dead(self, standalone_pair: StandalonePair) -> None:
        """The stranger is dead at the start: it is refused when it comes, and nothing is ever asked of it."""
        stranger, own = standalone_pair.both
        await stranger.kill()
        async with opened(config=one_cluster(stranger.uri, own.uri)) as (client, watch):
            assert await searching(client)(3) == [3]
            await stranger.start()
            rejected = await watch.until(ConfigRejected)
            assert "different ids" in rejected.reason
            refused = [e for e in client.fleet.endpoints if "different ids" in e.last_error]
            assert [endpoint.name for endpoint in refused] == [stranger.address], (
                "not the one that has served all along"
            )
            assert await searching(client)(4) == [4]

    async def test_writes_are_refused(self, standalone_pair: StandalonePair) -> None:
        """Given as two clusters a write is refused before it is sent, and the data stay alike."""
        async with opened(standalone_pair.uris) as (client, watch):
            await until_up(client, *(server.address for server in standalone_pair.both))
            for write in (
                client.upsert(fill.COLLECTION, [NEW]),
                client.insert(fill.COLLECTION, [NEW]),
                client.delete(fill.COLLECTION, ids=[1]),
                client.drop_collection(fill.COLLECTION),
                client.release_collection(fill.COLLECTION),
            ):
                with pytest.raises(WriteRefused, match="replication"):
                    await write
            assert not watch.of(ClusterRecognised)
        for uri in standalone_pair.uris:
            assert await asyncio.to_thread(fill.count, uri) == ROWS

    async def test_same_server_twice(self, standalone_pair: StandalonePair) -> None:
        """One server under two names is one cluster."""
        port = standalone_pair.a.port
        async with opened([f"http://127.0.0.1:{port}", f"http://localhost:{port}"]) as (client, watch):
            await watch.until(ClusterRecognised)
            await eventually(lambda: len(client.fleet.clusters) == 1)
            await client.delete(fill.COLLECTION, ids=[NEW["id"]])
