"""The indexer on real Milvus 2.3.5: what is stored, what is refused, and that nothing of it hurts the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pymilvus import DataType, MilvusClient, MilvusException

from haclient import AsyncMilvusClient
from haclient.drill.servers.milvus import StandaloneServer
from haclient.errors import ConfigError
from haclient.retrieval.indexer import Source
from haclient.retrieval.retriever import Retriever
from haclient.retrieval.schema import read_fingerprint
from tests.component.test_indexer_lite import ODD, WORDS, WordEmbedder, make_indexer, rows, sources
from tests.servers import fill

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "indexed"


@pytest.fixture
async def client(standalone: StandaloneServer) -> AsyncIterator[AsyncMilvusClient]:
    async with AsyncMilvusClient(standalone.uri) as client:
        await client.drop_collection(NAME)
        yield client
        await client.drop_collection(NAME)


async def test_indexed_again_changed_and_removed(client: AsyncMilvusClient, standalone: StandaloneServer) -> None:
    embedder = WordEmbedder()
    index = make_indexer(client, embedder, NAME)
    first = await index.add(sources())
    again = await index.add(sources())
    assert (first.added, again.added, again.unchanged, embedder.embedded) == (120, 0, 120, 120)
    assert read_fingerprint(await client.describe_collection(NAME)) == await embedder.fingerprint()
    changed = await index.add([Source("file 0", "glass\n\nzygote")])
    assert (changed.added, changed.removed, changed.replaced) == (2, 2, 1)
    assert await index.remove(["file 1"]) == 2
    found = await asyncio.to_thread(rows, standalone.uri, NAME)
    assert len(found) == 118
    assert {row["text"] for row in found.values() if row["source"] == "file 0"} == {"glass", "zygote"}
    documents = await Retriever(client, NAME, embedder=embedder).retrieve("river 9", k=3, filter="number > 5")
    assert "river" in documents[0].text
    assert all(document.metadata["number"] > 5 for document in documents)


async def test_odd_letters_and_empty_values_come_back_as_they_were(
    client: AsyncMilvusClient, standalone: StandaloneServer
) -> None:
    metadata = {"nothing": None, "deep": {"list": [1, "ä", {"x": []}]}, "empty": ""}
    odd = [Source(name, f"text of {name}", metadata) for name in ODD]
    index = make_indexer(client, WordEmbedder(), NAME)
    assert (await index.add(odd)).added == len(odd)
    assert (await index.add(odd)).unchanged == len(odd)
    for row in (await asyncio.to_thread(rows, standalone.uri, NAME)).values():
        assert row["source"] in ODD
        assert {name: row[name] for name in metadata} == metadata
    assert await index.remove(ODD) == len(odd)


async def test_hybrid_is_refused_and_the_server_lives(client: AsyncMilvusClient, standalone: StandaloneServer) -> None:
    with pytest.raises(ConfigError, match=r"hybrid=True cannot work: 127\.0\.0\.1:\d+ runs Milvus v2\.3\.5"):
        await make_indexer(client, WordEmbedder(), NAME, hybrid=True).add(sources())
    assert not await client.has_collection(NAME)
    assert (await make_indexer(client, WordEmbedder(), NAME).add(sources())).added == 120
    assert fill.count(standalone.uri) > 0


async def test_a_collection_made_by_hand_is_marked_indexed_and_loaded(
    client: AsyncMilvusClient, standalone: StandaloneServer
) -> None:
    schema = MilvusClient.create_schema(enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("text", DataType.VARCHAR, max_length=100)
    schema.add_field("source", DataType.VARCHAR, max_length=100)
    schema.add_field("number", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(WORDS))
    await client.create_collection(NAME, schema=schema)
    embedder = WordEmbedder()
    index = make_indexer(client, embedder, NAME)
    report = await index.add([*sources(5), Source("long", "ä" * 51, {"number": 1})])
    assert report.added == 10
    [failure] = report.failed
    assert "source 'long': a chunk has 102 bytes, and the collection takes 100" in failure.reason
    assert read_fingerprint(await client.describe_collection(NAME)) == await embedder.fingerprint()
    # What Milvus itself refuses is its own error, and names the sources.
    with pytest.raises(MilvusException) as raised:
        await index.add([Source("no number", "text")])
    assert "while indexing 'no number' into collection 'indexed'" in raised.value.__notes__[0]
