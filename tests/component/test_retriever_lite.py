"""The retriever on milvus-lite: what pymilvus finds, and answers while servers die."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pymilvus
import pytest
from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, RRFRanker, WeightedRanker

from haclient import AsyncMilvusClient, MilvusClient
from haclient.errors import BadQuery, ConfigError, Unavailable
from haclient.retrieval import RRF, AnswerCache, Document, HashingEmbedder, Retriever, Rung, Weighted

DIMENSION = 64
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
ROWS = 300


def passages() -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, 6)) + f" number{i}" for i in range(ROWS)]


EMBEDDER = HashingEmbedder(DIMENSION)


def fill(uri: str, metric: str = "COSINE") -> None:
    client = pymilvus.MilvusClient(uri)
    try:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("text", DataType.VARCHAR, max_length=1000, enable_analyzer=True)
        schema.add_field("lang", DataType.VARCHAR, max_length=10, nullable=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIMENSION)
        schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(Function("bm25", FunctionType.BM25, ["text"], ["sparse"]))
        client.create_collection("docs", schema=schema)
        client.create_partition("docs", "late")
        texts = passages()
        rows = [
            {"id": i, "text": text, "lang": (None, "en", "de")[i % 3], "vector": vector, "page": i, "tags": [i, "x"]}
            for i, (text, vector) in enumerate(zip(texts, EMBEDDER.vectors(texts), strict=True))
        ]
        client.insert("docs", rows[:200])
        client.insert("docs", rows[200:], partition_name="late")
        client.flush("docs")
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type=metric)
        index.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        client.create_index("docs", index)
        client.load_collection("docs")
    finally:
        client.close()


@pytest.fixture
async def server(lite_server):
    started = await lite_server()
    await asyncio.to_thread(fill, started.uri)
    return started


@pytest.fixture
async def client(server) -> AsyncIterator[AsyncMilvusClient]:
    async with AsyncMilvusClient(server.uri) as one:
        yield one


def plain(documents) -> list[tuple]:
    return [(d.id, d.score, d.text, dict(d.metadata)) for d in documents]


def as_documents(hits, sign=1.0) -> list[tuple]:
    """What pymilvus returned, in our shape."""
    out = []
    for hit in hits:
        fields = dict(hit["entity"])
        out.append((hit["id"], sign * hit["distance"], fields.pop("text"), fields))
    return out


async def test_results_are_pymilvus_own_bit_for_bit(server, client):
    """Dense, sparse and hybrid; with filter, partition and several questions."""
    questions = ["alpha beta number7", "theta iota kappa", "number211"]
    vectors = EMBEDDER.vectors(questions)
    fields = ["text", "lang", "page", "tags"]
    theirs = pymilvus.MilvusClient(server.uri)
    retriever = Retriever(client, "docs", embedder=EMBEDDER, output_fields=fields)
    common = {"limit": 5, "output_fields": fields}

    def search(data, field, **options):
        return [as_documents(hits) for hits in theirs.search("docs", data=data, anns_field=field, **common, **options)]

    try:
        found = await retriever.retrieve_many(questions, 5)
        assert [plain(docs) for docs in found] == search(list(vectors), "vector")
        for docs in found:
            assert [d.score for d in docs] == sorted((d.score for d in docs), reverse=True)

        narrowed = {"filter": 'lang == "en" and page < 250', "partitions": ["late"]}
        [wanted] = search([vectors[0]], "vector", filter=narrowed["filter"], partition_names=["late"])
        assert plain(await retriever.retrieve(questions[0], 5, **narrowed)) == wanted
        assert all(
            d.metadata["lang"] == "en" and 200 <= d.id < 250 for d in await retriever.retrieve("x", 5, **narrowed)
        )

        # milvus-lite gives BM25 scores with a minus sign.
        [wanted] = search([questions[2]], "sparse")
        assert plain(await retriever.retrieve(questions[2], 5, mode="sparse")) == [
            (key, -score, text, rest) for key, score, text, rest in wanted
        ]

        for ranker, same in ((RRF(20), RRFRanker(20)), (Weighted(0.7, 0.3), WeightedRanker(0.7, 0.3))):
            hybrid = Retriever(client, "docs", embedder=EMBEDDER, output_fields=fields, mode="hybrid", ranker=ranker)
            legs = [
                AnnSearchRequest([vectors[0]], "vector", {}, 5, expr='lang == "de"'),
                AnnSearchRequest([questions[0]], "sparse", {}, 5, expr='lang == "de"'),
            ]
            [hits] = theirs.hybrid_search("docs", legs, same, **common)
            assert plain(await hybrid.retrieve(questions[0], 5, filter='lang == "de"')) == as_documents(hits)
    finally:
        theirs.close()


async def test_l2_scores_are_minus_the_distance(lite_server):
    server = await lite_server()
    await asyncio.to_thread(fill, server.uri, "L2")
    async with AsyncMilvusClient(server.uri) as client:
        docs = await Retriever(client, "docs", embedder=EMBEDDER).retrieve(passages()[3], 3)
    assert docs[0].id == 3
    assert 0.0 >= docs[0].score > docs[1].score


async def test_fields_and_diversity(client):
    """Every scalar field comes unless told otherwise; what MMR chooses is less alike than the nearest."""
    retriever = Retriever(client, "docs", embedder=EMBEDDER)
    [doc] = await retriever.retrieve(passages()[4], 1)
    assert doc == Document(4, passages()[4], doc.score, {"lang": "en", "page": 4, "tags": [4, "x"]})
    [doc] = await retriever.retrieve(passages()[4], 1, output_fields=["page"])
    assert doc.metadata == {"page": 4}

    def alike(documents) -> float:
        rows = EMBEDDER.vectors([d.text for d in documents])
        return float((rows @ rows.T).sum())

    nearest = await retriever.retrieve("alpha beta gamma", 6)
    diverse = await retriever.retrieve("alpha beta gamma", 6, mmr=0.3)
    assert diverse[0] == nearest[0]
    assert alike(diverse) < alike(nearest)


BAD = [
    ({"query": ""}, BadQuery, "empty"),
    ({"query": "x", "k": 0}, BadQuery, "k must be"),
    ({"query": "x", "k": 16_385}, BadQuery, "16,384"),
    ({"query": "x", "filter": "lang = = 3"}, BadQuery, "refused it"),
    ({"query": [0.5] * (DIMENSION - 1)}, BadQuery, "shape"),
]


async def test_what_is_wrong_is_said(client):
    """Wrong questions, and collections and embedders that do not fit."""
    for asked, error, says in BAD:
        with pytest.raises(error, match=says):
            await Retriever(client, "docs", embedder=EMBEDDER).retrieve(**asked)
    with pytest.raises(ConfigError, match="'nowhere' does not exist"):
        await Retriever(client, "nowhere", embedder=EMBEDDER).check()
    with pytest.raises(ConfigError, match="vectors of 64 numbers, and the embedder"):
        await Retriever(client, "docs", embedder=HashingEmbedder(32)).check()
    with pytest.raises(
        ConfigError, match="'vec' of collection 'docs' does not exist; fields of type FloatVector: vector"
    ):
        await Retriever(client, "docs", embedder=EMBEDDER, vector_field="vec").check()


async def test_two_hundred_questions_at_once_while_a_server_dies(lite_server):
    """Every one is answered rightly, no thread is made, and at the end the cache answers for the dead."""
    servers = [await lite_server() for _ in range(2)]
    await asyncio.gather(*(asyncio.to_thread(fill, server.uri) for server in servers))
    async with AsyncMilvusClient([server.uri for server in servers]) as client:
        retriever = Retriever(client, "docs", embedder=EMBEDDER, mode="dense", cache=AnswerCache())
        await retriever.check()
        texts = passages()
        threads = threading.active_count()

        async def ask(i: int) -> bool:
            docs = await retriever.retrieve(texts[i], 3, timeout_s=60)
            return docs[0].id == i

        asked = asyncio.gather(*(ask(i) for i in range(200)))
        await asyncio.sleep(0)
        await servers[0].kill()
        assert all(await asked)
        assert threading.active_count() <= threads + 1
        again = await retriever.retrieve("something new", 3)
        assert again.rung in (Rung.FIRST, Rung.FAILOVER, Rung.HEDGE)
        assert servers[1].uri.endswith(again.source.rpartition(":")[2])

        await servers[1].kill()
        old = await retriever.retrieve(texts[7], 3)
        assert (old.rung, old[0].id, old.freshness.stale) == (Rung.CACHED, 7, True)
        with pytest.raises(Unavailable) as caught:
            await retriever.retrieve("quite another thing", 3, mode="sparse")
        for server in servers:
            assert server.uri.removeprefix("http://") in str(caught.value)


async def test_blocking_code_gets_the_same(server, client):
    """From a thread with either client, and from async code with the blocking client."""
    text = passages()[9]
    async_one = Retriever(client, "docs", embedder=EMBEDDER)
    wanted = plain(await async_one.retrieve(text, 3))
    assert plain(await asyncio.to_thread(async_one.retrieve_sync, text, 3)) == wanted
    with pytest.raises(ConfigError, match="await"):
        async_one.retrieve_sync(text, 3)

    def blocking() -> list[list[tuple]]:
        with MilvusClient(server.uri) as other:
            retriever = Retriever(other, "docs", embedder=EMBEDDER)
            awaited = asyncio.run(retriever.retrieve(text, 3))
            return [
                plain(retriever.retrieve_sync(text, 3)),
                plain(retriever.retrieve_many_sync([text], 3)[0]),
                plain(awaited),
            ]

    assert await asyncio.to_thread(blocking) == [wanted] * 3
