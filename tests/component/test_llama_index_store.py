"""LlamaIndex' vector store over our clients: its contract, blocking and async, and what stock does not do.

Runs in an environment of its own (`test_llama_index`): its package wants one version of pymilvus. On the Milvus at
``HACLIENT_TEST_URI`` if that is set, else on a milvus-lite.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.vector_stores.milvus", reason="runs in an environment of its own: test_llama_index")

from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from haclient.drill.servers.lite import LiteServer
from haclient.errors import ConfigError, Unavailable, WriteRefused
from haclient.integrations.llama_index import HAMilvusVectorStore
from haclient.integrations.origin import ORIGIN
from tests.conftest import run
from tests.servers import fill
from tests.servers.shared import LiteFactory

DIMENSION = 8
ODD = ["it's", 'say "hi"', "back\\slash", "new\nline", "ünï ☃", '"] or id in ["n0"]']
#: The asynchronous twin of each method.
ASYNC = {
    "add": "async_add",
    "get_nodes": "aget_nodes",
    "query": "aquery",
    "delete": "adelete",
    "delete_nodes": "adelete_nodes",
    "clear": "aclear",
}

Make = Callable[..., HAMilvusVectorStore]
Do = Callable[..., Awaitable[Any]]


class Embedding(MockEmbedding):
    """The text ``text of N`` has the vector of row N."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return fill.vector(int("".join(filter(str.isdigit, text)) or 0), DIMENSION)

    _get_query_embedding = _get_text_embedding

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embedding(text)

    _aget_query_embedding = _aget_text_embedding


MODEL = Embedding(embed_dim=DIMENSION)


def node(key: int, document: str = "a document") -> TextNode:
    return TextNode(
        id_=f"n{key}",
        text=f"text of {key}",
        metadata={"number": key, "kind": ["odd", "even"][key % 2 == 0], "share": key / 4},
        embedding=fill.vector(key, DIMENSION),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)},
    )


NODES = [node(key) for key in range(10)]


def one(key: str, operator: FilterOperator, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=operator, value=value)


def some(
    *filters: MetadataFilter | MetadataFilters, condition: FilterCondition = FilterCondition.AND
) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=condition)


FILTERS = [
    *(
        some(one("number", operator, 4))
        for operator in (
            FilterOperator.EQ,
            FilterOperator.NE,
            FilterOperator.GT,
            FilterOperator.GTE,
            FilterOperator.LT,
            FilterOperator.LTE,
        )
    ),
    some(one("number", FilterOperator.IN, [1, 7, 77])),
    some(one("number", FilterOperator.NIN, [1, 7, 77])),
    some(one("kind", FilterOperator.IN, ["odd", "it's"])),
    some(one("share", FilterOperator.GT, 1.25), one("kind", FilterOperator.EQ, "even")),
    some(one("number", FilterOperator.LT, 2), one("number", FilterOperator.GT, 7), condition=FilterCondition.OR),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if given := os.environ.get("HACLIENT_TEST_URI"):
        yield given
        return
    server = LiteServer(tmp_path_factory.mktemp("lite"))
    try:
        run(server.start())
        yield server.uri
    finally:
        run(server.close())


@pytest.fixture
def make(uri: str) -> Iterator[Make]:
    """Makes stores of one collection."""
    stores: list[HAMilvusVectorStore] = []
    name = f"llama_index_{uuid.uuid4().hex}"

    def make_store(where: Any = uri, **options: Any) -> HAMilvusVectorStore:
        # Milvus 2.3 gives deletes no time, so that only Strong sees them at once.
        wanted = {"collection_name": name, "dim": DIMENSION, "similarity_metric": "COSINE"}
        stores.append(HAMilvusVectorStore(where, **wanted, consistency_level="Strong", **options))
        return stores[-1]

    yield make_store
    for store in stores:
        store.close()


@pytest.fixture
def store(make: Make) -> HAMilvusVectorStore:
    return make()


@pytest.fixture(params=["blocking", "async"])
def do(request: pytest.FixtureRequest, store: HAMilvusVectorStore) -> Do:
    """Call a method of the store, or its asynchronous twin."""

    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(store, name if request.param == "blocking" else ASYNC[name])
        answer = method(*arguments, **options)
        return await answer if inspect.isawaitable(answer) else answer

    return call


def asked(key: int, k: int = 3, **options: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=fill.vector(key, DIMENSION), similarity_top_k=k, **options)


class TestContract:
    async def test_nodes_come_back_as_they_were(self, do: Do) -> None:
        assert await do("add", NODES) == [each.node_id for each in NODES]
        (found,) = await do("get_nodes", ["n3"])
        assert (found.node_id, found.text, found.metadata) == ("n3", "text of 3", NODES[3].metadata)
        assert found.ref_doc_id == "a document"
        assert found.embedding == pytest.approx(NODES[3].embedding)
        assert await do("get_nodes", ["nothing"]) == []

    async def test_added_twice_is_there_once(self, do: Do) -> None:
        await do("add", NODES)
        changed = node(3)
        changed.text = "changed"
        await do("add", [changed])
        found = await do("get_nodes", filters=FILTERS[1])
        assert len(found) == 9
        assert [each.text for each in await do("get_nodes", ["n3"])] == ["changed"]

    async def test_the_nearest_come_first(self, do: Do) -> None:
        await do("add", NODES)
        found = await do("query", asked(6))
        assert (found.ids[0], len(found.ids)) == ("n6", 3)
        assert found.similarities == sorted(found.similarities, reverse=True)
        assert [each.node_id for each in found.nodes] == found.ids
        assert found.nodes[0].text == "text of 6"
        assert len((await do("query", asked(6, 100))).ids) == 10

    async def test_filters_mean_what_llama_index_says(self, do: Do) -> None:
        await do("add", NODES)
        fields = {each.node_id: each.metadata for each in NODES}
        for filters in FILTERS:
            matches = build_metadata_filter_fn(lambda key: fields[key], filters)
            expected = [each.node_id for each in NODES if matches(each.node_id)]
            assert sorted((await do("query", asked(6, 20, filters=filters))).ids) == expected, filters
            assert sorted(each.node_id for each in await do("get_nodes", filters=filters)) == expected
        both = some(some(*FILTERS[10].filters, condition=FilterCondition.OR), one("kind", FilterOperator.EQ, "odd"))
        assert sorted((await do("query", asked(6, 20, filters=both))).ids) == ["n1", "n9"]

    async def test_documents_and_nodes_of_any_name(self, do: Do) -> None:
        """Names are put into Milvus' expressions, whatever is in them."""
        await do("add", [node(key, name) for key, name in enumerate(ODD)])
        for key, name in enumerate(ODD):
            assert (await do("query", asked(0, 9, doc_ids=[name]))).ids == [f"n{key}"]
        await do("delete", ODD[0])
        await do("delete", ODD[5])
        left = (await do("query", asked(0, 9, doc_ids=ODD))).ids
        assert sorted(left) == ["n1", "n2", "n3", "n4"]
        await do("add", [TextNode(id_=name, text=name, embedding=fill.vector(1, DIMENSION)) for name in ODD])
        assert sorted((await do("query", asked(0, 20, node_ids=ODD))).ids) == sorted(ODD)
        await do("delete_nodes", ODD)
        assert (await do("query", asked(0, 20, node_ids=ODD))).ids == []

    async def test_delete(self, do: Do) -> None:
        await do("add", [*NODES, node(11, "another")])
        await do("delete_nodes", ["n1", "n2", "nothing"])
        await do("delete_nodes", filters=some(one("number", FilterOperator.LT, 5)))
        assert len((await do("query", asked(6, 20))).ids) == 6
        await do("delete", "a document")
        await do("delete", "nothing")
        assert (await do("query", asked(6, 20))).ids == ["n11"]

    async def test_clear(self, do: Do, store: HAMilvusVectorStore) -> None:
        await do("clear")
        assert not store.client.has_collection(store.collection_name)

    async def test_most_diverse(self, do: Do) -> None:
        await do("add", NODES)
        found = await do("query", asked(6, 4, mode=VectorStoreQueryMode.MMR), mmr_threshold=0.1)
        assert found.ids[0] == "n6"
        assert len(set(found.ids)) == 4

    async def test_what_it_cannot_do_it_says(self, do: Do) -> None:
        with pytest.raises(ValueError, match="does not support"):
            await do("query", asked(1, mode=VectorStoreQueryMode.LINEAR_REGRESSION))
        with pytest.raises(ValueError, match="enable_sparse"):
            await do("query", asked(1, mode=VectorStoreQueryMode.HYBRID))

    async def test_one_store_sees_what_it_wrote_either_way(self, store: HAMilvusVectorStore) -> None:
        store.add(NODES[:5])
        await store.async_add(NODES[5:])
        assert len((await store.aquery(asked(0, 20))).ids) == len(store.query(asked(0, 20)).ids) == 10


class TestIndex:
    @pytest.fixture
    def index(self, store: HAMilvusVectorStore) -> VectorStoreIndex:
        documents = [Document(text=f"text of {key}", metadata={"number": key}, id_=f"d{key}") for key in range(5)]
        context = StorageContext.from_defaults(vector_store=store)
        return VectorStoreIndex.from_documents(
            documents, storage_context=context, embed_model=MODEL, transformations=[]
        )

    async def test_from_documents_to_an_answer(self, index: VectorStoreIndex) -> None:
        engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=2)
        for answer in (await asyncio.to_thread(engine.query, "text of 3"), await engine.aquery("text of 3")):
            assert answer.source_nodes[0].text == "text of 3"
            assert "text of 3" in str(answer)

    def test_changed_and_deleted(self, index: VectorStoreIndex, store: HAMilvusVectorStore) -> None:
        index.update_ref_doc(Document(text="text of 8", id_="d3"))
        index.delete_ref_doc("d4")
        found = index.as_retriever(similarity_top_k=9).retrieve("text of 8")
        assert (found[0].text, len(found)) == ("text of 8", 4)

    async def test_our_retriever_on_its_collection(self, index: VectorStoreIndex, store: HAMilvusVectorStore) -> None:
        """The same nodes as LlamaIndex' own retriever finds, which also say where they came from."""
        ours = store.as_ha_retriever(MODEL, similarity_top_k=3, filter="number < 4")
        theirs = index.as_retriever(similarity_top_k=3, filters=some(one("number", FilterOperator.LT, 4)))
        for found in (await ours.aretrieve("text of 3"), await asyncio.to_thread(ours.retrieve, "text of 3")):
            origins = [each.node.metadata.pop(ORIGIN) for each in found]
            stock = await theirs.aretrieve("text of 3")
            assert [each.node_id for each in found] == [each.node_id for each in stock]
            assert [each.score for each in found] == pytest.approx([each.score for each in stock])
            assert [each.node.metadata for each in found] == [each.node.metadata for each in stock]
            assert found[0].node.ref_doc_id == "d3"
            assert (origins[0]["rung"], origins[0]["score"]) == ("first", found[0].score)


@pytest.mark.skipif("HACLIENT_TEST_URI" in os.environ, reason="starts servers of its own")
class TestSeveralServers:
    async def test_questions_go_on_while_a_server_is_killed(self, lite_server: LiteFactory) -> None:
        """Blocking and async, through the store and through the retriever: no question fails."""
        a, b = await lite_server(), await lite_server()
        options: dict[str, Any] = {"collection_name": "docs", "dim": DIMENSION, "similarity_metric": "COSINE"}
        for server in (a, b):
            filled = await asyncio.to_thread(HAMilvusVectorStore, server.uri, **options)
            await filled.async_add(NODES)
            filled.close()
        store = await asyncio.to_thread(HAMilvusVectorStore, [a.uri, b.uri], **options)
        index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
        retrievers = (store.as_ha_retriever(MODEL, timeout_s=5.0), index.as_retriever())
        answered = 0
        under_way = asyncio.Event()

        async def ask(question: Callable[[str], Awaitable[Any]]) -> None:
            nonlocal answered
            for i in range(30):
                found = await question(f"text of {i % 10}")
                assert found[0].text == f"text of {i % 10}"
                answered += 1
                if answered == 20:
                    under_way.set()

        def blocking(retriever: Any) -> Callable[[str], Awaitable[Any]]:
            return lambda text: asyncio.to_thread(retriever.retrieve, text)

        ways = [*(each.aretrieve for each in retrievers), *map(blocking, retrievers)]
        asking = [asyncio.create_task(ask(each)) for each in ways]
        try:
            await under_way.wait()
            await a.kill()
            assert not any(task.done() for task in asking)
            await asyncio.gather(*asking)
            assert answered == 120

            with pytest.raises(WriteRefused, match="2 clusters"):
                await store.async_add(NODES[:1])
            await b.kill()
            # Nobody answers: that is an error, not an empty result.
            for way in ways:
                with pytest.raises(Unavailable, match="attempts"):
                    await way("text of 1")
        finally:
            store.close()

    def test_a_configuration_file_says_where_the_servers_are(self, make: Make, uri: str, tmp_path: Path) -> None:
        file = tmp_path / "haclient.toml"
        file.write_text(f'[[cluster]]\nname = "only"\nendpoints = ["{uri}"]\n')
        store = make(None, config=file)
        store.add(NODES)
        (found,) = store.as_ha_retriever(MODEL, similarity_top_k=1).retrieve("text of 3")
        assert found.metadata[ORIGIN]["source"].startswith("only/")

    def test_a_wrong_address(self) -> None:
        with pytest.raises(ConfigError, match="scheme"):
            HAMilvusVectorStore("ftp://127.0.0.1:1", dim=4)
