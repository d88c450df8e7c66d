"""LangChain on real Milvus 2.3.5: its own standard tests, and what one client wrote another reads."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from haclient.drill.servers.milvus import StandaloneServer
from haclient.integrations.langchain import HAMilvusRetriever, HAMilvusVectorStore

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


class Named(DeterministicFakeEmbedding):
    """A model that says its name, so that the collection is marked with it."""

    size: int = 6
    model_name: str = "tiny"


@pytest.fixture
def store(standalone: StandaloneServer) -> Iterator[HAMilvusVectorStore]:
    """An empty store on one server."""
    made = HAMilvusVectorStore(
        Named(),
        collection_name=f"langchain_{uuid.uuid4().hex}",
        connection_args={"uri": standalone.uri},
    )
    yield made
    made.drop()
    made.client.close()


class TestVectorStore(VectorStoreIntegrationTests):
    """LangChain's standard tests of vector stores."""

    @pytest.fixture
    def vectorstore(self, store: HAMilvusVectorStore) -> HAMilvusVectorStore:
        return store


class TestRetriever(RetrieversIntegrationTests):
    """LangChain's standard tests of retrievers."""

    @pytest.fixture(autouse=True)
    def _fill(self, store: HAMilvusVectorStore) -> None:
        store.add_texts(["one", "two", "three", "four", "five"])
        self.core = store.as_ha_retriever().retriever

    @property
    def retriever_constructor(self) -> type[HAMilvusRetriever]:
        return HAMilvusRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.core}

    @property
    def retriever_query_example(self) -> str:
        return "two"


async def test_what_is_written_is_read_at_once(store: HAMilvusVectorStore) -> None:
    """Blocking or async, each sees what the other wrote; Milvus' default would show it some time later."""
    retriever = store.as_ha_retriever(k=1)
    for i in range(5):
        store.add_texts([f"a{i}"], ids=["a"])
        assert await store.aget_by_ids(["a"]) == [Document(id="a", page_content=f"a{i}")]
        await store.aadd_texts([f"b{i}"], ids=["b"])
        assert store.similarity_search(f"b{i}", k=1) == [Document(id="b", page_content=f"b{i}")]
        await store.adelete(["a"])
        assert store.get_by_ids(["a", "b"]) == [Document(id="b", page_content=f"b{i}")]
        await store.aadd_texts([f"c{i}"], ids=["c"])
        assert [document.page_content for document in await retriever.ainvoke(f"c{i}")] == [f"c{i}"]


def test_ids_and_metadata_of_any_kind(store: HAMilvusVectorStore) -> None:
    ids = ["it's", 'say "hi"', "back\\slash", "new\nline", "ünï ☃", "' or pk != '", '"] or pk in ["plain', "plain"]
    kinds: list[dict[str, Any]] = [{}, {"lang": "en"}, {"lang": 3, "deep": {"a": [1, None]}}, {"tags": ["x"]}]
    metadatas = [kinds[i % len(kinds)] for i in range(len(ids))]
    store.add_texts(ids, metadatas, ids=ids)
    assert "model=tiny" in str(store.client.describe_collection(store.collection_name)["properties"])
    whole = [Document(id=i, page_content=i, metadata=m) for i, m in zip(ids, metadatas, strict=True)]
    assert store.get_by_ids(ids) == whole
    for document in whole:
        assert store.similarity_search(document.page_content, k=1) == [document]
    assert {document.id for document in store.search_by_metadata('lang == "en"')} == {ids[1], ids[5]}
    store.delete(ids[:-1])
    assert store.get_by_ids(ids) == whole[-1:]
