"""pymilvus' own clients on real Milvus 2.3.5, through the proxy and directly: the same answers, the same errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from haclient.drill.servers.milvus import StandaloneServer
from tests.interop.surfaces import client_of, differing, lives, reads
from tests.servers.proxy import behind, serving

pytestmark = [
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture
async def proxied(standalone: StandaloneServer) -> AsyncIterator[str]:
    async with serving(behind([standalone.uri])) as (_, uri):
        yield uri


async def test_reads_and_mistakes(standalone: StandaloneServer, proxied: str) -> None:
    """Reads of all kinds, and mistakes of all kinds: the same answer or error, by type, code and text."""
    ours, theirs = await asyncio.gather(reads(proxied), reads(standalone.uri))
    assert not differing(ours, theirs)


async def test_lives_of_collections(standalone: StandaloneServer, proxied: str) -> None:
    """The same programs from create to drop, users and databases included, are answered alike at every step."""
    ours, theirs = await asyncio.gather(lives(proxied, "ours"), lives(standalone.uri, "theirs"))
    assert not differing(ours, theirs)


async def test_a_large_batch(standalone: StandaloneServer, proxied: str) -> None:
    """16,000 rows in one insert, and in one answer: nothing is missing or changed."""
    name, count = "a_large_batch", 16_000
    vectors = np.random.default_rng(1).random((count, 128), dtype=np.float32)
    async with client_of("sync", proxied) as client:
        await client.create_collection(name, dimension=128, consistency_level="Strong")
        try:
            rows = [{"id": key, "vector": vector} for key, vector in enumerate(vectors)]
            assert (await client.insert(name, rows))["insert_count"] == count
            found = await client.query(name, filter="id >= 0", output_fields=["vector"], limit=count)
        finally:
            await client.drop_collection(name)
    assert {row["id"] for row in found} == set(range(count))
    assert all(np.array_equal(np.float32(row["vector"]), vectors[row["id"]]) for row in found)
