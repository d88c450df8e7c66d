"""pymilvus' asynchronous client does not look at the status of a Delete: one that was refused looked like one done."""

from __future__ import annotations

import pytest
from pymilvus.exceptions import MilvusException

from haclient import AsyncMilvusClient, MilvusClient
from tests.servers.shared import LiteFactory


async def test_a_delete_that_is_refused_raises(lite_server: LiteFactory) -> None:
    server = await lite_server()
    async with AsyncMilvusClient(uri=server.uri) as client:
        with pytest.raises(MilvusException) as refused:
            await client.delete("absent", filter="id in [1]")
    with MilvusClient(uri=server.uri) as blocking, pytest.raises(MilvusException) as refused_too:
        blocking.delete("absent", filter="id in [1]")
    assert (refused.value.code, refused.value.message) == (refused_too.value.code, refused_too.value.message)
    assert refused.value.code == 100
