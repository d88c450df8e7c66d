"""A Milvus that asks who one is, behind a proxy that passes on what its clients present."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pymilvus
import pytest
from pymilvus import MilvusException

from haclient.drill.servers.milvus import StandaloneServer
from tests.interop.surfaces import client_of, told
from tests.servers import fill
from tests.servers.proxy import behind, serving

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


async def test_users_at_the_same_time(tmp_path: Path) -> None:
    """Each has its own rights, and a wrong password shuts nobody else out."""
    async with StandaloneServer(tmp_path, auth=True) as server:
        await asyncio.to_thread(fill.fill, [server.uri], rows=20, token=server.token)
        async with serving(behind([server.uri])) as (proxy, uri), client_of("sync", uri, token=server.token) as root:
            await root.create_user("guest", "Secret123")

            async def strangers() -> None:
                for _ in range(10):
                    for where in (uri, server.uri):
                        with pytest.raises(MilvusException) as caught:
                            await asyncio.to_thread(pymilvus.MilvusClient, where, user="guest", password="wrong")
                        assert caught.value.code == 2

            def ask(client: Any) -> Any:
                return told(client.search(fill.COLLECTION, data=[fill.vector(3)], limit=1))

            guest = {"user": "guest", "password": "Secret123"}
            async with client_of("async", uri, **guest) as through, client_of("async", server.uri, **guest) as direct:
                wanted = await ask(direct)
                assert wanted[1] is grpc.StatusCode.PERMISSION_DENIED
                failing = asyncio.create_task(strangers())
                while not failing.done():
                    refused, ((hit,),) = await asyncio.gather(ask(through), ask(root))
                    assert refused == wanted
                    assert hit["id"] == 3
                await failing
            assert proxy.ready[0]
