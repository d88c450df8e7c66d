"""A client whose start is cancelled leaves nothing running, at whatever moment that happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from haclient import AsyncMilvusClient


async def test_a_cancelled_start_leaves_nothing_running(lite_server):
    """Tasks that swallowed their cancellation kept the process alive for ever after Ctrl-C."""
    servers = [await lite_server() for _ in range(2)]
    before = asyncio.all_tasks()
    for turns in range(0, 60, 3):
        client = AsyncMilvusClient([server.uri for server in servers])
        task = asyncio.ensure_future(client.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
            await client.close()
        left = asyncio.all_tasks() - before
        if left:
            await asyncio.wait(left, timeout=10)
        assert not asyncio.all_tasks() - before
