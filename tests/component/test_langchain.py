"""The LangChain adapter: LangChain's own standard tests on milvus-lite, and what they do not ask."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymilvus
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_milvus import BM25BuiltInFunction, Milvus
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from haclient.drill.servers.lite import LiteServer
from haclient.errors import BadQuery, ConfigError, Unavailable, WriteRefused
from haclient.integrations.langchain import HAMilvusRetriever, HAMilvusVectorStore, LangChainEmbedder
from haclient.integrations.origin import ORIGIN
from haclient.retrieval.retriever import Retriever
from tests.conftest import run
from tests.servers.shared import LiteFactory

pytestmark = pytest.mark.xdist_group("langchain")

TEXTS = [f"passage {i}" for i in range(8)]
ODD_IDS = ["it's", 'say "hi"', "back\\slash", "new\nline", "tab\t", "ünï ☃", "' or pk != '", '"] or pk in ["plain']

Make = Callable[..., HAMilvusVectorStore]


class Named(DeterministicFakeEmbedding):
    """An embedding model that says its name; equal texts have equal vectors."""

    size: int = 6
    model_name: str = "tiny"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiteServer]]:
    made = [LiteServer(tmp_path_factory.mktemp(name), name=name) for name in ("a", "b")]
    try:
        for server in made:
            run(server.start())
        yield made
    finally:
        for server in made:
            run(server.close())


@pytest.fixture
def make(servers: list[LiteServer]) -> Iterator[Make]:
    """Makes stores of one collection, on the first server unless ``uri`` says otherwise."""
    stores: list[HAMilvusVectorStore] = []
    name = f"langchain_{uuid.uuid4().hex}"

    def make_store(model: Embeddings | None = None, uri: Any = None, **options: Any) -> HAMilvusVectorStore:
        arguments = {"collection_name": name, "connection_args": {"uri": uri or servers[0].uri}, **options}
        stores.append(HAMilvusVectorStore(model or DeterministicFakeEmbedding(size=6), **arguments))
        return stores[-1]

    yield make_store
    for store in stores:
        store.client.close()


@pytest.fixture
def store(make: Make) -> HAMilvusVectorStore:
    """An empty store."""
    return make()


class TestVectorStore(VectorStoreIntegrationTests):
    """LangChain's standard tests of vector stores."""

    @pytest.fixture
    def vectorstore(self, store: HAMilvusVectorStore) -> HAMilvusVectorStore:
        return store


class TestRetriever(RetrieversIntegrationTests):
    """LangChain's standard tests of retrievers."""

    @pytest.fixture(autouse=True)
    def _fill(self, store: HAMilvusVectorStore) -> None:
        store.add_texts(TEXTS)
        self.core = store.as_ha_retriever().retriever

    @property
    def retriever_constructor(self) -> type[HAMilvusRetriever]:
        return HAMilvusRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.core}

    @property
    def retriever_query_example(self) -> str:
        return TEXTS[3]


async def test_a_chain_goes_on_while_a_server_is_killed(lite_server: LiteFactory) -> None:
    """Blocking and async, through the retriever and through the store: no question fails."""
    a, b = await asyncio.gather(lite_server(), lite_server())
    model = DeterministicFakeEmbedding(size=6)
    for server in (a, b):
        filled = await HAMilvusVectorStore.afrom_texts(TEXTS, model, ids=TEXTS, connection_args={"uri": server.uri})
        await asyncio.to_thread(filled.client.close)
    store = await asyncio.to_thread(HAMilvusVectorStore, model, connection_args={"uri": [a.uri, b.uri]})
    first = RunnableLambda(lambda documents: documents[0].page_content)
    ours, stock = store.as_ha_retriever(k=2) | first, store.as_retriever(search_kwargs={"k": 2}) | first
    answered, enough = 0, math.inf
    under_way = asyncio.Event()

    async def ask(question: Callable[[str], Any]) -> None:
        nonlocal answered
        while answered < enough:
            text = TEXTS[answered % len(TEXTS)]
            assert await question(text) == text
            answered += 1
            if answered >= 20:
                under_way.set()

    def blocking(chain: Any) -> Callable[[str], Any]:
        return lambda text: asyncio.to_thread(chain.invoke, text)

    try:
        async with asyncio.TaskGroup() as group:
            for question in (ours.ainvoke, stock.ainvoke, blocking(ours), blocking(stock)):
                group.create_task(ask(question))
            await under_way.wait()
            await a.kill()
            enough = answered + 80

        await b.kill()
        # Nobody answers: that is an error, not an empty result.
        store.timeout = 1
        with pytest.raises(Unavailable, match="attempts"):
            await store.asimilarity_search(TEXTS[0])
        with pytest.raises(Unavailable, match="attempts"):
            await store.asearch_by_metadata('pk != ""')
        with pytest.raises(Unavailable, match="attempts"):
            await store.as_ha_retriever().ainvoke(TEXTS[0])
    finally:
        await asyncio.to_thread(store.client.close)


def test_several_clusters_are_read_and_not_written(make: Make, servers: list[LiteServer]) -> None:
    for server in servers:
        make(uri=server.uri).add_texts(TEXTS, ids=TEXTS)
    both = make(uri=[server.uri for server in servers])
    assert both.similarity_search(TEXTS[1], k=1)[0].id == TEXTS[1]
    refused = r'not sent\. There are 2 clusters .* replication\.mode = "none"'
    with pytest.raises(WriteRefused, match=refused):
        both.add_texts(["new"])
    with pytest.raises(WriteRefused, match=refused):
        both.delete(TEXTS[:1])
    assert [document.id for document in both.get_by_ids(TEXTS)] == TEXTS


def test_a_configuration_file_says_where_the_servers_are(
    make: Make, servers: list[LiteServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "haclient.toml"
    file.write_text(f'[[cluster]]\nname = "only"\nendpoints = ["{servers[0].uri}"]\n')
    make(connection_args={"config": str(file)}).add_texts(TEXTS)
    monkeypatch.setenv("HACLIENT_CONFIG", str(file))
    for store in (make(connection_args={"config": str(file)}), make(connection_args=None)):
        assert store.as_ha_retriever(k=1).invoke(TEXTS[0])[0].metadata[ORIGIN]["source"].startswith("only/")


async def test_documents_say_where_they_came_from(store: HAMilvusVectorStore) -> None:
    await store.aadd_texts(TEXTS, [{"number": i} for i in range(8)], ids=TEXTS)
    retriever = store.as_ha_retriever(k=3, filter="number < 4")
    for found in (await retriever.ainvoke(TEXTS[2]), await asyncio.to_thread(retriever.invoke, TEXTS[2])):
        assert [document.metadata["number"] < 4 for document in found] == [True] * 3
        assert (found[0].id, found[0].page_content) == (TEXTS[2], TEXTS[2])
        origin = found[0].metadata[ORIGIN]
        assert origin["source"]
        assert (origin["rung"], origin["stale"]) == ("first", False)
        scores = [document.metadata[ORIGIN]["score"] for document in found]
        assert scores == sorted(scores, reverse=True)
    # What is asked with a question wins over what the retriever was made with.
    best = found[0].metadata[ORIGIN]["score"]
    assert [d.id for d in await retriever.ainvoke(TEXTS[2], k=8, filter="number > 5")] != []
    assert [d.id for d in await retriever.ainvoke(TEXTS[2], threshold=best)] == [TEXTS[2]]


class LoopBound(Embeddings):
    """A model whose async methods work on one event loop only, and whose blocking ones block."""

    def __init__(self) -> None:
        self.model = DeterministicFakeEmbedding(size=6)
        self.loop: asyncio.AbstractEventLoop | None = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        assert asyncio._get_running_loop() is None
        return self.model.embed_query(text)

    async def aembed_query(self, text: str) -> list[float]:
        assert asyncio.get_running_loop() is self.loop
        return self.model.embed_query(text)


async def test_a_model_is_asked_where_the_question_is(make: Make) -> None:
    """Async ones keep connections that belong to a loop, and the core may live on another."""
    model = LoopBound()
    store = await asyncio.to_thread(make, model)
    await asyncio.to_thread(store.add_texts, TEXTS)
    retriever = store.as_ha_retriever(k=1)
    model.loop = asyncio.get_running_loop()
    assert (await retriever.ainvoke(TEXTS[1]))[0].page_content == TEXTS[1]
    model.loop = None
    assert (await asyncio.to_thread(retriever.invoke, TEXTS[2]))[0].page_content == TEXTS[2]


async def test_one_store_serves_several_loops(store: HAMilvusVectorStore) -> None:
    await store.aadd_texts(TEXTS)
    searches = (asyncio.to_thread(run, store.asimilarity_search(text, k=1)) for text in TEXTS[:3])
    found = [*await asyncio.gather(*searches), await store.asimilarity_search(TEXTS[3], k=1)]
    assert [documents[0].page_content for documents in found] == TEXTS[:4]


async def test_the_first_rows_may_come_from_several_tasks(store: HAMilvusVectorStore) -> None:
    await asyncio.gather(*(store.aadd_texts([text], ids=[text]) for text in TEXTS))
    assert [document.id for document in await store.aget_by_ids(TEXTS)] == TEXTS


def test_any_text_can_be_an_id(store: HAMilvusVectorStore) -> None:
    ids = ["plain", *ODD_IDS]
    store.add_texts(ids, ids=ids)
    assert [(document.id, document.page_content) for document in store.get_by_ids(ids)] == [(i, i) for i in ids]
    for key in ODD_IDS:
        store.delete([key])
        assert store.get_by_ids([key, "plain", "plain"]) == [Document(id="plain", page_content="plain")]


def test_any_metadata_is_kept(store: HAMilvusVectorStore) -> None:
    kinds: list[dict[str, Any]] = [{}, {"lang": "en"}, {"lang": 3, "deep": {"a": [1, None]}}, {"tags": ["x"], "n": 1.5}]
    store.add_texts(TEXTS[:4], kinds, ids=TEXTS[:4])
    assert [document.metadata for document in store.get_by_ids(TEXTS[:4])] == kinds
    for text, metadata in zip(TEXTS[:4], kinds, strict=True):
        assert store.similarity_search(text, k=1) == [Document(id=text, page_content=text, metadata=metadata)]
        origin = store.as_ha_retriever(k=1).invoke(text)[0].metadata
        assert {key: value for key, value in origin.items() if key != ORIGIN} == metadata
    assert store.search_by_metadata('lang == "en"') == store.get_by_ids(TEXTS[1:2])
    assert store.search_by_metadata('lang == "en"', fields=[])[0].metadata == {}


@pytest.mark.parametrize("key", ["pk", "text", "vector"])
def test_metadata_cannot_overwrite_a_field(store: HAMilvusVectorStore, key: str) -> None:
    store.add_texts(TEXTS[:1], ids=TEXTS[:1])
    with pytest.raises(ValueError, match=f"metadata has a key '{key}'"):
        store.add_texts(["new"], [{key: "x"}])
    assert store.search_by_metadata('pk != ""') == store.get_by_ids(TEXTS)


def test_a_collection_of_the_stock_store_is_taken_over(make: Make, servers: list[LiteServer]) -> None:
    """One with server-made integer keys and fixed metadata fields, as it makes them by default."""
    ours = make()
    stock = Milvus(
        DeterministicFakeEmbedding(size=6),
        collection_name=ours.collection_name,
        connection_args={"uri": servers[0].uri},
        auto_id=True,
    )
    assert type(stock.client) is pymilvus.MilvusClient  # ours has changed nothing for others
    keys = [str(key) for key in stock.add_texts(TEXTS[:2], [{"n": 1}, {"n": 2}])]
    stock.client.close()
    store = make()
    assert store.similarity_search(TEXTS[1], k=1) == [Document(id=keys[1], page_content=TEXTS[1], metadata={"n": 2})]
    assert [document.page_content for document in store.get_by_ids([keys[1], "unknown", keys[0]])] == TEXTS[1::-1]
    [added] = store.add_texts([TEXTS[2]], [{"n": 3}])
    store.delete([keys[0], "unknown"])
    assert {document.id for document in store.search_by_metadata("n > 0")} == {keys[1], added}


def test_the_model_is_known_to_the_collection(make: Make) -> None:
    """Questions embedded by another model are refused, whoever asks them."""
    store = make(Named())
    store.add_texts(TEXTS)
    assert len(make(Named()).as_ha_retriever().invoke(TEXTS[0])) == 4
    with pytest.raises(ConfigError, match=r"model=tiny .* this one is .*model=other"):
        make(Named(model_name="other")).as_ha_retriever().invoke(TEXTS[0])


def test_the_other_ways_to_search(store: HAMilvusVectorStore) -> None:
    store.add_texts(TEXTS, ids=TEXTS)
    vector = DeterministicFakeEmbedding(size=6).embed_query(TEXTS[5])
    assert store.similarity_search_by_vector(vector, k=1)[0].id == TEXTS[5]
    assert store.max_marginal_relevance_search(TEXTS[5], k=3)[0].id == TEXTS[5]
    document, score = store.similarity_search_with_score(TEXTS[5], k=1)[0]
    assert (document.id, score) == (TEXTS[5], 0.0)
    assert store.similarity_search_with_relevance_scores(TEXTS[5], k=1)[0][1] == 1.0


@pytest.mark.filterwarnings("ignore:The 'ranker_type':DeprecationWarning")  # langchain-milvus about its own default
async def test_hybrid_search(make: Make) -> None:
    indexes = [
        {"index_type": "FLAT", "metric_type": "L2", "params": {}},
        {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25", "params": {}},
    ]
    searches = [{"metric_type": index["metric_type"], "params": {}} for index in indexes]
    store = await asyncio.to_thread(
        make,
        builtin_function=BM25BuiltInFunction(),
        vector_field=["dense", "sparse"],
        index_params=indexes,
        search_params=searches,
    )
    await store.aadd_texts(["red apples", "green pears", "blue plums"], ids=["a", "b", "c"])
    # The fake model knows no meaning: only the word leads there.
    assert [d.id for d in await store.as_ha_retriever(k=1, mode="sparse").ainvoke("PEARS")] == ["b"]
    assert len(await store.as_ha_retriever(k=3).ainvoke("pears")) == 3
    found = await asyncio.to_thread(store.similarity_search, "green pears", k=1)
    assert [document.id for document in found] == ["b"]


def test_wrong_arguments_are_named(make: Make, store: HAMilvusVectorStore) -> None:
    with pytest.raises(ConfigError, match="prot: unknown key"):
        make(connection_args={"uri": "http://localhost:1", "prot": 1})
    with pytest.raises(ValueError, match="1 ids for 2 texts"):
        store.add_texts(TEXTS[:2], ids=["a"])
    with pytest.raises(ValueError, match="1 metadatas for 2 texts"):
        store.add_texts(TEXTS[:2], [{}])
    with pytest.raises(ValueError, match="'a' is given to 2 texts"):
        store.add_texts(TEXTS[:2], ids=["a", "a"])
    with pytest.raises(TypeError, match="ids are texts, got 1"):
        store.add_texts(TEXTS[:1], ids=[1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="give ids, or an expression"):
        store.delete()
    assert store.add_texts([]) == store.add_embeddings([], []) == store.get_by_ids([]) == []
    store.add_texts(TEXTS)
    retriever = store.as_ha_retriever()
    with pytest.raises(BadQuery, match="k must be"):
        retriever.invoke("x", k=0)
    with pytest.raises(BadQuery, match="empty"):
        retriever.invoke("  ")
    with pytest.raises(TypeError, match="limit"):
        retriever.invoke("x", limit=3)


async def test_an_embedder_of_its_own(store: HAMilvusVectorStore) -> None:
    """The adapter serves whatever takes an embedder; rows that are no vectors are refused."""
    embedder = LangChainEmbedder(DeterministicFakeEmbedding(size=6), model="mine")
    assert str(await embedder.fingerprint()).startswith("haclient-embedder model=mine dimension=6")
    assert (await embedder.embed(TEXTS)).shape == (8, 6)
    assert (await embedder.embed([])).shape == (0, 6)
    await store.aadd_texts(TEXTS)
    found = await Retriever(store.client, store.collection_name, embedder=embedder).retrieve(TEXTS[4], 1)
    assert found[0].text == TEXTS[4]
