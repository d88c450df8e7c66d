"""The client on real milvus-lite servers while they are killed, frozen, slowed, emptied and drained."""

import asyncio
import time

import pymilvus
import pytest
from client_bench import COLLECTION, Killed, fill, nearest, reading, state, told, until, vectors
from pymilvus import MilvusException

import haclient
from haclient import AsyncMilvusClient
from haclient.config import ClusterConfig, Config
from haclient.drill.servers.lite import LiteServer

pytestmark = pytest.mark.both_loops


@pytest.fixture(scope="module")
def _servers(tmp_path_factory):
    made = [LiteServer(tmp_path_factory.mktemp(f"lite{i}")) for i in range(3)]
    try:
        asyncio.run(_start(made))
        for server in made:
            fill(server.uri)
        yield made
    finally:
        for server in made:
            asyncio.run(server.close())


async def _start(servers):
    await asyncio.gather(*(server.start() for server in servers))


@pytest.fixture
def servers(_servers):
    """Three filled servers, whole at the start of each test."""
    asyncio.run(_start(_servers))
    for server in _servers:
        load(server.uri)
    return _servers


@pytest.fixture
def two(servers):
    return servers[:2]


def load(uri):
    client = pymilvus.MilvusClient(uri)
    client.load_collection(COLLECTION)
    client.close()


def release(uri):
    client = pymilvus.MilvusClient(uri)
    client.release_collection(COLLECTION)
    client.close()


def config(*uris, **sections):
    return Config.from_uri(list(uris), **sections)


QUICK = {"health": {"interval_s": 0.3, "deep_interval_s": 0.3, "slow_start_s": 0.1, "failback_dwell_s": 0.1}}


@pytest.mark.slow
async def test_readers_never_notice_kill_freeze_release_restart(servers):
    a, b, c = servers
    settings = {"health": {**QUICK["health"], "load_collections": True}}
    async with AsyncMilvusClient(config=config(*(s.uri for s in servers), **settings)) as client:
        async with reading(client) as seen:
            await seen.more(40)
            await a.kill()
            await until(lambda: state(client, 0) == "down")
            await seen.more(40)
            b.freeze()
            await until(lambda: state(client, 1) == "down")
            await seen.more(40)
            b.thaw()
            await until(lambda: state(client, 1) == "up")
            await asyncio.to_thread(release, c.uri)
            await seen.more(40)
            await until(lambda: all(client.fleet.endpoints[2].ready.values()))
            await a.start()  # indexed, so it comes back released and has to be loaded
            await until(lambda: state(client, 0) == "up" and all(client.fleet.endpoints[0].ready.values()))
            await seen.more(40)
        assert seen.failures == []
        assert seen.wrong == 0


async def test_wrong_data_is_taken_out_by_the_canary(two, lite_server):
    right, wrong = two[0], await lite_server()
    await asyncio.to_thread(fill, wrong.uri, seed=2)
    canary = {"collection": COLLECTION, "vector": vectors()[3].tolist(), "anns_field": "v", "limit": 1, "expect": [3]}
    health = {**QUICK["health"], "canary": [canary]}
    heard = []
    async with AsyncMilvusClient(config=config(right.uri, wrong.uri, health=health)) as client:
        client.subscribe(heard.append)
        await until(lambda: client.fleet.endpoints[1].ready.get(COLLECTION) is False)
        for row in range(40):
            assert await nearest(client, row) == row
        assert client.fleet.endpoints[1].state == "up"


async def test_a_slow_server_is_avoided(two, toxic):
    quick, slow = two
    proxy = await toxic(slow.port)
    async with AsyncMilvusClient(config=config(quick.uri, proxy.uri, **QUICK)) as client:
        for i in range(40):
            await nearest(client, i)
        proxy.delay(1.5)
        began = time.monotonic()
        heard = []
        client.subscribe(heard.append)
        for i in range(40):
            assert await nearest(client, i) == i
        answered = [e for e in heard if type(e).__name__ == "CallFinished"]
        assert [e.outcome for e in answered] == ["ok"] * 40
        assert sum(e.endpoint == proxy.address for e in answered) <= 2
        assert time.monotonic() - began < 40 * 1.5


async def test_a_black_hole_costs_no_call_and_the_deadline_holds(two, toxic):
    proxies = [await toxic(s.port) for s in two]
    async with AsyncMilvusClient(config=config(*(p.uri for p in proxies), **QUICK)) as client:
        assert await nearest(client) == 3
        proxies[0].black_hole()
        for i in range(20):
            assert await nearest(client, i) == i
        proxies[1].black_hole()
        began = time.monotonic()
        with pytest.raises(MilvusException) as caught:
            await nearest(client, timeout=1.0)
        assert isinstance(caught.value, (haclient.DeadlineExceeded, haclient.Unavailable))
        assert time.monotonic() - began < 1.0 + 2.0
        assert {a.endpoint for a in caught.value.attempts} <= {p.address for p in proxies}
        for proxy in proxies:
            await proxy.heal()
        await until(lambda: "up" in (state(client, 0), state(client, 1)))
        assert await nearest(client) == 3


async def test_connections_reset_under_load_fail_no_read(two, toxic):
    proxies = [await toxic(s.port) for s in two]
    async with AsyncMilvusClient(config=config(*(p.uri for p in proxies), **QUICK)) as client:
        async with reading(client, rate=100) as seen:
            for _ in range(6):
                await seen.more(10)
                proxies[0].reset_all()
        assert seen.failures == []
        assert seen.wrong == 0


async def test_a_request_that_kills_servers_reaches_two_and_is_refused(two):
    server = two[0]
    async with Killed(server.port) as a, Killed(server.port) as b, Killed(server.port) as c:
        proxies = a, b, c
        async with AsyncMilvusClient(config=config(*(p.uri for p in proxies), **QUICK)) as client:
            async with reading(client) as seen:
                await seen.more(10)
                killer = client.query(COLLECTION, filter='id in [1] and "the killer" == "x"', timeout=5)
                assert isinstance(await told(killer), haclient.PoisonedCall)
                assert sum(p.deaths for p in proxies) == 2
                for _ in range(5):
                    killer = client.query(COLLECTION, filter='id in [1] and "the killer" == "x"', timeout=5)
                    assert isinstance(await told(killer), haclient.PoisonedCall)
                assert sum(p.deaths for p in proxies) == 2
                await seen.more(40)
            assert seen.failures == []


async def test_drain_and_undrain(two):
    a, b = two
    async with AsyncMilvusClient(config=config(a.uri, b.uri, **QUICK)) as client:
        await nearest(client)
        client.drain(a.address)
        assert state(client, 0) in ("drained", "draining")
        heard = []
        client.subscribe(heard.append)
        async with reading(client) as seen:
            await seen.more(30)
        assert not seen.failures
        assert {e.endpoint for e in heard if type(e).__name__ == "CallFinished"} == {b.address}
        client.drain(b.address)
        with pytest.raises(haclient.Unavailable, match="every endpoint is drained"):
            await nearest(client)
        client.undrain(a.address)
        assert await nearest(client) == 3
        with pytest.raises(
            haclient.ConfigError, match=f"no endpoint or cluster is named 'nosuch'; there are: .*{a.address}"
        ):
            client.drain("nosuch")


async def test_a_changed_file_is_followed_while_calls_run(two, tmp_path):
    a, b = two
    file = tmp_path / "haclient.toml"

    def write(*uris):
        text = "".join(f'[[cluster]]\nname = "c{i}"\nendpoints = ["{u}"]\n' for i, u in enumerate(uris))
        new = tmp_path / "new.toml"
        new.write_text("[health]\ninterval_s = 0.3\n" + text)
        new.replace(file)

    write(a.uri)
    async with AsyncMilvusClient(config=file) as client:
        async with reading(client) as seen:
            await seen.more(10)
            write(a.uri, b.uri)
            await until(lambda: len(client.fleet.endpoints) == 2)
            await seen.more(10)
            write(b.uri)
            await until(lambda: [e.address for e in client.fleet.endpoints] == [b.address])
            await seen.more(10)
            heard = []
            client.subscribe(heard.append)
            file.write_text("[[cluster]\n")
            await until(lambda: any(type(e).__name__ == "ConfigRejected" for e in heard))
            await seen.more(10)
            assert [e.address for e in client.fleet.endpoints] == [b.address]
        assert seen.failures == []


async def test_writes_to_several_clusters_are_refused_and_nothing_is_sent(two):
    a, b = two
    async with AsyncMilvusClient([a.uri, b.uri]) as client:
        for write in (
            lambda: client.insert(COLLECTION, [{"id": 999, "v": [0.0] * 8}]),
            lambda: client.delete(COLLECTION, ids=[1]),
            lambda: client.drop_collection(COLLECTION),
            lambda: client.create_database("x"),
        ):
            with pytest.raises(haclient.WriteRefused, match=r'There are 2 clusters .* replication\.mode = "none"'):
                await write()
        assert len(await client.query(COLLECTION, filter="id in [1, 999]", output_fields=["id"])) == 1


async def test_one_dead_of_two_at_start(two):
    a, b = two
    await a.kill()
    async with AsyncMilvusClient([a.uri, b.uri]) as client:
        assert await nearest(client) == 3
        assert [e.state for e in client.fleet.endpoints] == ["down", "up"]


async def test_several_endpoints_of_one_cluster_take_writes(two, toxic):
    """Two proxies before one server: an upsert goes on after the first path is cut."""
    server, _ = two
    first, second = await toxic(server.port), await toxic(server.port)
    cluster = ClusterConfig(name="c", endpoints=(first.uri, second.uri))
    async with AsyncMilvusClient(config=Config(clusters=(cluster,))) as client:
        await client.describe_collection(COLLECTION)
        rows = [{"id": 200, "v": [0.5] * 8}]
        await client.upsert(COLLECTION, rows)
        first.refuse()
        first.reset_all()
        for _ in range(5):
            await client.upsert(COLLECTION, rows)
        second.refuse()
        second.reset_all()
        await first.accept()
        await client.upsert(COLLECTION, rows)


async def test_an_insert_whose_answer_is_lost_is_not_confirmed(two, toxic):
    server, _ = two
    proxy = await toxic(server.port)
    async with AsyncMilvusClient(proxy.uri) as client:
        await client.insert(COLLECTION, [{"id": 100, "v": [0.5] * 8}])
        proxy.one_way("down")
        with pytest.raises(haclient.WriteNotConfirmed, match="may or may not have been applied"):
            await client.insert(COLLECTION, [{"id": 101, "v": [0.5] * 8}], timeout=1.0)
