"""The indexer on milvus-lite: either client, a process killed half-way, a server that dies, several clusters."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from haclient import AsyncMilvusClient, MilvusClient
from haclient.errors import Unavailable, WriteRefused
from haclient.retrieval.embed.embedder import Fingerprint, Vectors
from haclient.retrieval.indexer import Indexer, IndexReport, Source
from haclient.retrieval.retriever import Retriever
from haclient.retrieval.schema import read_fingerprint
from tests.servers import fill
from tests.servers.shared import LiteFactory

pytestmark = pytest.mark.timeout(120)

WORDS = ["lock", "river", "paper", "stone", "cloud", "train", "bread", "glass"]


class WordEmbedder:
    """Counts a few words; counts what it embeds, and calls ``before`` each time."""

    def __init__(self) -> None:
        self.embedded = 0

    async def fingerprint(self) -> Fingerprint:
        return Fingerprint("words", len(WORDS), normalised=False)

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        await self.before()
        self.embedded += len(texts)
        rows = [[text.count(word) + 0.01 for word in WORDS] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), len(WORDS))

    async def before(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


def sources(count: int = 60) -> list[Source]:
    return [
        Source(
            f"file {i}", f"{WORDS[i % 8]} {i}\n\n{WORDS[i % 7]} {WORDS[i % 5]} {i}", {"number": i, "even": i % 2 == 0}
        )
        for i in range(count)
    ]


def make_indexer(client: Any, embedder: WordEmbedder, name: str = "docs", **options: Any) -> Indexer:
    return Indexer(client, name, embedder=embedder, splitter=lambda text: text.split("\n\n"), batch_rows=8, **options)


def rows(uri: str, name: str = "docs") -> dict[str, Any]:
    """Every row, by id, read with plain pymilvus."""
    client = fill.connect(uri)
    try:
        found = client.query(name, filter='id >= ""', output_fields=["*"], consistency_level="Strong")
        return {row["id"]: {**row, "vector": [float(x) for x in row["vector"]]} for row in found}
    finally:
        client.close()


async def test_what_is_indexed_is_found(lite_server: LiteFactory) -> None:
    server = await lite_server()
    embedder = WordEmbedder()
    async with AsyncMilvusClient(server.uri) as client:
        report = await make_indexer(client, embedder).add(sources())
        assert (report.sources, report.added, report.failed) == (60, 120, ())
        found = await Retriever(client, "docs", embedder=embedder).retrieve("river 9", k=3, filter="even == false")
        assert "river" in found[0].text
        assert found[0].metadata["source"].startswith("file ")
        assert all(document.metadata["number"] % 2 for document in found)
        assert read_fingerprint(await client.describe_collection("docs")) == await embedder.fingerprint()


async def test_hybrid_collections_answer_to_words(lite_server: LiteFactory) -> None:
    server = await lite_server()
    embedder = WordEmbedder()
    async with AsyncMilvusClient(server.uri) as client:
        await make_indexer(client, embedder, hybrid=True).add([*sources(), Source("odd one", "zygote")])
        retriever = Retriever(client, "docs", embedder=embedder)
        for mode in ("sparse", "hybrid"):
            assert (await retriever.retrieve("zygote", k=1, mode=mode))[0].metadata["source"] == "odd one"


async def test_a_sync_client_does_the_same_from_blocking_and_from_async_code(lite_server: LiteFactory) -> None:
    server = await lite_server()
    embedder = WordEmbedder()

    def blocking() -> IndexReport:
        with MilvusClient(server.uri) as client:
            index = make_indexer(client, embedder)
            report = index.add_sync(sources())
            assert index.remove_sync(["file 0"]) == 2
            return report

    assert (await asyncio.to_thread(blocking)).added == 120
    client = MilvusClient(server.uri)
    try:
        again = await make_indexer(client, embedder).add(sources())
    finally:
        await asyncio.to_thread(client.close)
    assert (again.added, again.unchanged) == (2, 118)


#: Indexes, and dies without a word after so many chunks.
DYING = """
import asyncio, os, signal, sys
from haclient import AsyncMilvusClient
from tests.component.test_indexer_lite import WordEmbedder, make_indexer, sources

class Dying(WordEmbedder):
    async def before(self):
        if self.embedded >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    await make_indexer(AsyncMilvusClient(sys.argv[1]), Dying()).add(sources())

asyncio.run(main())
"""


async def test_a_run_killed_half_way_embeds_only_what_is_missing_and_ends_in_the_same_rows(
    lite_server: LiteFactory,
) -> None:
    server = await lite_server()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, server.uri, "40")
    assert await process.wait() == -signal.SIGKILL
    there = rows(server.uri)
    assert 0 < len(there) < 120
    embedder, whole = WordEmbedder(), WordEmbedder()
    async with AsyncMilvusClient(server.uri) as client:
        report = await make_indexer(client, embedder).add(sources())
        await make_indexer(client, whole, "whole").add(sources())
    assert embedder.embedded == report.added == 120 - len(there)
    assert report.unchanged == len(there)
    assert whole.embedded == 120
    assert json.dumps(rows(server.uri), sort_keys=True) == json.dumps(rows(server.uri, "whole"), sort_keys=True)


async def test_a_server_that_dies_ends_the_run_and_the_next_one_finishes(lite_server: LiteFactory) -> None:
    server = await lite_server()
    embedder = WordEmbedder()

    class Killing(WordEmbedder):
        async def before(self) -> None:
            if self.embedded == 40:
                await server.kill()

    cluster = {"name": "one", "endpoints": [{"name": "one", "uri": server.uri}]}
    config = {"cluster": [cluster], "timeouts": {"write_s": 3.0, "read_s": 3.0}, "health": {"load_collections": True}}
    async with AsyncMilvusClient(config=config) as client:
        with pytest.raises(Unavailable) as raised:
            await make_indexer(client, Killing()).add(sources())
        assert "while indexing 'file" in raised.value.__notes__[0]
        await server.start()
        await client.refresh()
        assert read_fingerprint(await client.describe_collection("docs")) == await embedder.fingerprint()
        report = await make_indexer(client, embedder).add(sources())
    assert report.added + report.unchanged == 120
    assert report.unchanged >= 24
    assert embedder.embedded == report.added
    assert len(rows(server.uri)) == 120


async def test_several_clusters_without_replication_refuse_the_write(lite_server: LiteFactory) -> None:
    servers = [await lite_server(), await lite_server()]
    async with AsyncMilvusClient([server.uri for server in servers]) as client:
        with pytest.raises(WriteRefused):
            await make_indexer(client, WordEmbedder()).add(sources())
    for server in servers:
        plain = fill.connect(server.uri)
        assert plain.list_collections() == []
        plain.close()


async def test_ids_and_texts_with_odd_letters_come_back_as_they_were(lite_server: LiteFactory) -> None:
    server = await lite_server()
    odd = [Source(name, f"text of {name}") for name in ODD]
    async with AsyncMilvusClient(server.uri) as client:
        index = make_indexer(client, WordEmbedder())
        assert (await index.add(odd)).added == len(odd)
        assert (await index.add(odd)).unchanged == len(odd)
        assert {row["source"] for row in rows(server.uri).values()} == set(ODD)
        assert await index.remove(ODD) == len(odd)


ODD = ['a"b', "back\\slash", "'single'", "snö ☃ 🎉", "{curly} [brackets] %s", "C:\\new\\table", "a\u2028b", "a or b"]
