"""The retriever on Milvus 2.3.5: what pymilvus finds, answers while a server is killed, and what 2.3.5 cannot do."""

from __future__ import annotations

import asyncio

import pymilvus
import pytest

from haclient import AsyncMilvusClient
from haclient.errors import BadQuery, ConfigError
from haclient.retrieval import Freshness, Relax, Retriever
from tests.servers import fill
from tests.servers.shared import ROWS, StandalonePair

pytestmark = pytest.mark.live


async def test_results_are_pymilvus_own(standalone_pair: StandalonePair) -> None:
    """Every consistency level; the answer says with which it was read."""
    vectors = [fill.vector(key) for key in (3, 77, ROWS - 1)]
    theirs = pymilvus.MilvusClient(standalone_pair.a.uri)
    async with AsyncMilvusClient(standalone_pair.a.uri) as client:
        retriever = Retriever(client, fill.COLLECTION)
        for level in ("Strong", "Bounded", "Session", "Eventually"):
            found = await retriever.retrieve_many(vectors, 5, consistency=level, filter="id != 4")
            wanted = await asyncio.to_thread(
                theirs.search,
                fill.COLLECTION,
                data=vectors,
                limit=5,
                filter="id != 4",
                output_fields=["text"],
                consistency_level=level,
            )
            assert [[(d.id, d.score, d.text) for d in docs] for docs in found] == [
                [(hit["id"], hit["distance"], hit["entity"]["text"]) for hit in hits] for hits in wanted
            ]
            assert found[0].freshness == Freshness(level)
            assert found[0][0].id == 3
        diverse = await retriever.retrieve(vectors[0], 5, mmr=0.5)
        assert diverse[0].id == 3
        assert len({d.id for d in diverse}) == 5
    theirs.close()


async def test_what_it_does_not_know_is_said_clearly(standalone_pair: StandalonePair) -> None:
    async with AsyncMilvusClient(standalone_pair.a.uri) as client:
        retriever = Retriever(client, fill.COLLECTION)
        for mode in ("sparse", "hybrid"):
            with pytest.raises(BadQuery, match=r"Milvus 2\.3 knows no sparse vectors"):
                await retriever.retrieve(fill.vector(1), mode=mode)
        with pytest.raises(BadQuery, match="nosuch"):
            await retriever.retrieve(fill.vector(1), filter="nosuch > 1")
        with pytest.raises(BadQuery, match="nowhere"):
            await retriever.retrieve(fill.vector(1), partitions=["nowhere"])
        with pytest.raises(ConfigError, match="does not exist"):
            await Retriever(client, "nowhere").check()


async def test_all_questions_are_answered_while_one_of_two_is_killed(standalone_pair: StandalonePair) -> None:
    async with AsyncMilvusClient(standalone_pair.uris) as client:
        retriever = Retriever(client, fill.COLLECTION, relax=Relax(after_s=5.0))
        await retriever.check()

        async def ask(key: int) -> bool:
            docs = await retriever.retrieve(fill.vector(key), 3)
            return docs[0].id == key and not docs.freshness.stale

        before = await asyncio.gather(*(ask(key) for key in range(100)))
        killing = asyncio.ensure_future(standalone_pair.a.kill())
        during = [await ask(key) for key in range(100, 200)]
        await killing
        after = await asyncio.gather(*(ask(key) for key in range(200, 300)))
        assert all(before)
        assert all(during)
        assert all(after)
