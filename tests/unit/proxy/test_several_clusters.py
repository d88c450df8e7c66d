"""A proxy in front of several clusters is any of them: the ids that it shows prove nothing."""

import asyncio
import random
import time
from contextlib import AsyncExitStack

import pytest

from haclient.config import Config
from haclient.core import Core
from haclient.events import EventBus
from haclient.transport import connector
from tests.servers.proxy import behind, serving
from tests.servers.scripted import ScriptedMilvus
from tests.unit.fleet.fleet_fakes import REAL_ID, Server


@pytest.mark.parametrize("several", [True, False])
async def test_proxies_of_several_clusters_are_no_strangers_to_each_other(several):
    """Each shows the ids of another one of its clusters; where a proxy has one cluster, ids count as always."""
    async with AsyncExitStack() as stack:
        uris = []
        for number in range(2):
            milvus = ScriptedMilvus()
            milvus.script = Server(catalogue={"docs": REAL_ID + number})
            uris.append((await stack.enter_async_context(milvus)).uri)
        fleets = [behind([uris[0]], [uris[1]]), behind([uris[1]], [uris[0]])] if several else [behind(uris[:1])] * 2
        proxies = [(await stack.enter_async_context(serving(fleet)))[1] for fleet in fleets]
        config = Config.load(None, {"cluster": [{"name": "proxies", "endpoints": proxies}]})
        loop, rng = asyncio.get_running_loop(), random.Random(1)
        core = Core(config, connector(config, loop, rng), EventBus(), rng, loop, time.monotonic)
        stack.push_async_callback(core.aclose)
        await core.start()
        await core.refresh()
        ids = {node.catalogue["", "docs"] for node in core.fleet.nodes()}
        assert ids == ({0} if several else {REAL_ID})
        assert not any(node.refused for node in core.fleet.nodes())
