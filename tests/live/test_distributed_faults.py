"""A real distributed Milvus whose processes die, read through both of its proxies.

What Milvus itself cannot do, nobody in front of it can: a Strong read waits for the lease of a dead proxy, a query node
takes its half of the loaded data with it, and without coordinators no proxy serves for long. What haclient owes is that
a dead proxy costs no read, and that all is well again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from haclient import AsyncMilvusClient
from haclient.events import CallFinished, EndpointChanged, FailedOver
from tests.live.steady_load import Load, Watch, opened, searching, until_revived, until_up
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus
from tests.servers.shared import ROWS

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

#: Longer than Milvus' own stalls (a lease of ten seconds).
TIMEOUT_S = 40.0


@contextlib.asynccontextmanager
async def both_proxies(distributed: DistributedMilvus) -> AsyncIterator[tuple[AsyncMilvusClient, Watch]]:
    config = {"cluster": [{"name": "one", "endpoints": distributed.uris}], "timeouts": {"read_s": TIMEOUT_S}}
    async with opened(config=config) as (client, watch):
        await until_up(client, *(proxy.address for proxy in distributed.proxies))
        yield client, watch


async def all_right_again(load: Load) -> None:
    """Wait until a long run of questions is answered rightly."""
    for _ in range(30):
        if all(question.right for question in await load.more(60)):
            return
    bad = load.failures()
    raise AssertionError(f"still failing: {[str(question) for question in bad[-3:]]}")


@pytest.mark.parametrize("level", ["Bounded", "Eventually"])
async def test_proxy_killed(distributed: DistributedMilvus, level: str) -> None:
    """kill -9 of a proxy, and its restart: every read that need not be Strong is answered, and rightly."""
    dead = distributed.proxy_a
    async with both_proxies(distributed) as (client, watch):
        async with Load(searching(client, consistency_level=level)) as load:
            await load.more(40)
            mark = watch.mark()
            await dead.kill()
            change = await watch.until(EndpointChanged, endpoint=dead.address, after="down")
            assert change.reason
            await load.more(100)
            await dead.start()
            await until_up(client, dead.address)
            await load.more(60)
            assert watch.of(CallFinished, after_number=mark, endpoint=dead.address, outcome="ok"), "it is used again"
            survivor = distributed.proxy_b.address
            assert not watch.of(EndpointChanged, after_number=mark, endpoint=survivor, after="down")
            switched = watch.of(FailedOver, after_number=mark, from_endpoint=dead.address)
            assert all(event.to_endpoint == survivor for event in switched)
        load.assert_all_right()


async def test_proxy_killed_strong(distributed: DistributedMilvus) -> None:
    """Strong reads wait for the dead proxy's lease, as Milvus makes them; given the time, each is answered."""
    async with both_proxies(distributed) as (client, watch):
        ask = searching(client, consistency_level="Strong")
        async with Load(ask, rate=5) as load:
            await load.more(15)
            await distributed.proxy_b.kill()
            await watch.until(EndpointChanged, endpoint=distributed.proxy_b.address, after="down")
            await load.more(60)
            await distributed.proxy_b.start()
            await until_up(client, distributed.proxy_b.address)
            await load.more(20)
        load.assert_all_right()


async def test_proxy_frozen(distributed: DistributedMilvus) -> None:
    """SIGSTOP of a proxy: it says nothing, and every Bounded read is answered by the other one."""
    frozen = distributed.proxy_b
    async with both_proxies(distributed) as (client, watch):
        async with Load(searching(client, consistency_level="Bounded")) as load:
            await load.more(40)
            frozen.freeze()
            await watch.until(EndpointChanged, endpoint=frozen.address, after="down")
            await load.more(60)
            frozen.thaw()
            await load.more(60)
            await until_revived(client, frozen)
            await load.more(20)
        load.assert_all_right()


async def test_proxies_restarted_in_turn(distributed: DistributedMilvus) -> None:
    """A rolling restart of the proxies: no Bounded read is lost."""
    async with both_proxies(distributed) as (client, watch):
        async with Load(searching(client, consistency_level="Bounded")) as load:
            await load.more(20)
            for proxy in distributed.proxies:
                mark = watch.mark()
                await proxy.stop()
                await watch.until(EndpointChanged, after_number=mark, endpoint=proxy.address, after="down")
                await load.more(20)
                await proxy.start()
                await until_up(client, proxy.address)
            await load.more(20)
        load.assert_all_right()


async def test_query_node_killed(distributed: DistributedMilvus) -> None:
    """kill -9 of a query node, and its restart: every read is answered while it is dead, and all is right again.

    Both proxies lead to the same query nodes, so what haclient can do is ask again by the other proxy. For some seconds
    after the node is back Milvus gives out empty answers, or the best of a part of the rows, as successes.
    """
    async with both_proxies(distributed) as (client, _), Load(searching(client, consistency_level="Bounded")) as load:
        await load.more(40)
        load.assert_all_right()
        await distributed.qn1.kill()
        await load.more(100)
        assert not [str(question) for question in load.questions if question.error]
        await distributed.qn1.start()
        await asyncio.to_thread(fill.wait_settled, distributed.uris, rows=ROWS)
        await until_up(client, *(proxy.address for proxy in distributed.proxies))
        await all_right_again(load)


@pytest.mark.parametrize("level", ["Bounded", "Eventually"])
async def test_coordinator_killed(distributed: DistributedMilvus, level: str) -> None:
    """kill -9 of the coordinators: no proxy can serve long without them; all recovers by itself."""
    async with both_proxies(distributed) as (client, _), Load(searching(client, consistency_level=level)) as load:
        await load.more(40)
        load.assert_all_right()
        await distributed.coord.kill()
        await load.more(40)
        await distributed.coord.start()
        await asyncio.to_thread(fill.wait_settled, distributed.uris, rows=ROWS)
        await until_up(client, *(proxy.address for proxy in distributed.proxies))
        await all_right_again(load)
