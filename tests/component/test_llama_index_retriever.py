"""The LlamaIndex retriever over a collection that LlamaIndex has not filled.

Runs in an environment of its own (`test_llama_index`).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="runs in an environment of its own: test_llama_index")

from llama_index.core import MockEmbedding
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from haclient import MilvusClient
from haclient.drill.servers.lite import LiteServer
from haclient.errors import BadQuery, EmbeddingError
from haclient.integrations.llama_index import HAMilvusRetriever, LlamaIndexEmbedder
from haclient.integrations.origin import ORIGIN
from haclient.retrieval.retriever import Retriever
from tests.conftest import run
from tests.servers import fill


class Embedding(MockEmbedding):
    """The text ``text of N`` has the vector of row N."""

    def __init__(self) -> None:
        super().__init__(embed_dim=fill.DIMENSION, model_name="tiny")

    def _get_text_embedding(self, text: str) -> list[float]:
        assert asyncio._get_running_loop() is None, "a model that blocks, blocks the event loop"
        return fill.vector(int("".join(filter(str.isdigit, text)) or 0))

    _get_query_embedding = _get_text_embedding


class Broken(Embedding):
    def _get_query_embedding(self, query: str) -> list[float]:
        raise RuntimeError("api key sk-123 is not valid")


class Fixed(BaseRetriever):
    """Another retriever of the same nodes."""

    def __init__(self, keys: list[int]) -> None:
        super().__init__()
        self.keys = keys

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(id_=str(key), text=f"text of {key}"), score=1.0) for key in self.keys]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusClient]:
    server = LiteServer(tmp_path_factory.mktemp("lite"))
    try:
        run(server.start())
        fill.fill([server.uri], rows=20)
        with MilvusClient(server.uri) as connected:
            yield connected
    finally:
        run(server.close())


def make(client: MilvusClient, model: BaseEmbedding | None = None, **options: Any) -> HAMilvusRetriever:
    embedder = LlamaIndexEmbedder(model or Embedding())
    return HAMilvusRetriever(Retriever(client, fill.COLLECTION, embedder=embedder), **options)


async def test_blocking_and_async(client: MilvusClient) -> None:
    retriever = make(client, similarity_top_k=2)
    for found in (await retriever.aretrieve("text of 6"), await asyncio.to_thread(retriever.retrieve, "text of 6")):
        first, second = found
        assert (first.node_id, first.text) == ("6", "text of 6")
        assert first.score == pytest.approx(1.0)
        assert second.score is not None
        assert first.score > second.score
        origin = first.metadata[ORIGIN]
        assert origin["source"]
        assert (origin["score"], origin["rung"], origin["stale"]) == (first.score, "first", False)


async def test_where_a_node_came_from_does_not_make_it_another_node(client: MilvusClient) -> None:
    """Fused with other questions' and other retrievers' answers, a node is there once; no language model reads it."""
    ours = make(client, similarity_top_k=5)
    fused = QueryFusionRetriever([ours, Fixed([6, 7]), make(client, similarity_top_k=3)], num_queries=1, llm=MockLLM())
    found = await fused.aretrieve("text of 6")
    assert len({each.node_id for each in found}) == len(found)
    node = (await ours.aretrieve("text of 6"))[0].node
    assert node.hash == TextNode(text="text of 6").hash
    assert node.get_content(MetadataMode.LLM) == node.get_content(MetadataMode.EMBED) == "text of 6"


async def test_the_end_of_a_pipeline_knows_where_its_nodes_came_from(client: MilvusClient) -> None:
    engine = RetrieverQueryEngine.from_args(make(client, similarity_top_k=1), llm=MockLLM())
    answer = await engine.aquery("text of 6")
    assert "text of 6" in str(answer)
    assert "first" not in str(answer)
    assert answer.source_nodes[0].metadata[ORIGIN]["rung"] == "first"


async def test_a_question_with_its_embedding_needs_no_model(client: MilvusClient) -> None:
    retriever = HAMilvusRetriever(Retriever(client, fill.COLLECTION))
    bundle = QueryBundle("whatever", embedding=fill.vector(9))
    assert (await retriever.aretrieve(bundle))[0].node_id == "9"
    with pytest.raises(BadQuery, match="no embedder"):
        await retriever.aretrieve("text of 9")


async def test_options(client: MilvusClient) -> None:
    retriever = make(client, similarity_top_k=9, filter="id < 4", threshold=0.99)
    assert [each.node_id for each in await retriever.aretrieve("text of 3")] == ["3"]
    assert await retriever.aretrieve("text of 6") == []
    with pytest.raises(BadQuery, match="k must be"):
        await make(client, similarity_top_k=0).aretrieve("text of 6")
    with pytest.raises(BadQuery, match="empty"):
        await retriever.aretrieve(" ")


async def test_an_embedding_model_that_fails(client: MilvusClient) -> None:
    with pytest.raises(EmbeddingError, match="tiny failed: RuntimeError") as caught:
        await make(client, Broken()).aretrieve("text of 6")
    assert "sk-123" not in str(caught.value)


async def test_the_embedder_says_which_model_it_is() -> None:
    embedder = LlamaIndexEmbedder(Embedding())
    fingerprint = await embedder.fingerprint()
    assert (fingerprint.model, fingerprint.dimension, fingerprint.normalised) == ("tiny", fill.DIMENSION, True)
    rows = await embedder.embed(["text of 1", "text of 2"])
    np.testing.assert_allclose(rows, [fill.vector(1), fill.vector(2)], rtol=1e-6)
    assert (await embedder.embed([])).shape == (0, fill.DIMENSION)


def test_it_needs_the_core_only() -> None:
    text = "import sys, haclient.integrations.llama_index; sys.exit('llama_index.vector_stores.milvus' in sys.modules)"
    subprocess.run([sys.executable, "-c", text], check=True)
