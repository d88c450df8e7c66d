"""The Haystack adapter on milvus-lite: what Haystack's own tests do not ask."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter
from milvus_haystack import MilvusEmbeddingRetriever

from haclient.drill.servers.lite import LiteServer
from haclient.errors import BadQuery, ConfigError, Unavailable, WriteRefused
from haclient.integrations.haystack import HAMilvusDocumentStore, HAMilvusRetriever
from haclient.integrations.haystack.filters import expression
from haclient.integrations.origin import ORIGIN
from tests.conftest import run
from tests.servers import fill
from tests.servers.shared import LiteFactory

pytestmark = pytest.mark.xdist_group("haystack")

Make = Callable[..., HAMilvusDocumentStore]

ODD = ["it's", 'say "hi"', "back\\slash", "new\nline", "ünï ☃", '"] or id in ["0"]']

DOCUMENTS = [
    Document(
        id=str(key),
        content=f"text of {key}",
        embedding=fill.vector(key, 8),
        meta={
            "number": key,
            "even": key % 2 == 0,
            "share": key / 4,
            "date": f"2024-01-{key + 1:02}",
            **({"odd": ODD[key]} if key < len(ODD) else {}),
        },
    )
    for key in range(10)
]


def compared(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


def grouped(operator: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"operator": operator, "conditions": list(conditions)}


#: What Haystack itself says of `DOCUMENTS` is the truth.
FILTERS = [
    *(compared("meta.number", operator, 4) for operator in ("==", "!=", ">", ">=", "<", "<=")),
    *(compared("meta.odd", operator, text) for operator in ("==", "!=") for text in ODD),
    *(compared("meta.odd", operator, ODD[2:]) for operator in ("in", "not in")),
    *(compared("meta.odd", operator, None) for operator in ("==", "!=")),
    *(compared("meta.even", operator, True) for operator in ("==", "!=")),
    compared("meta.share", ">", 1.25),
    compared("meta.date", "<=", "2024-01-04"),
    compared("meta.number", "in", []),
    compared("meta.nothing", "==", 1),
    compared("meta.nothing", "!=", 1),
    compared("number", "==", 3),
    compared("id", "in", ["1", "7", "77"]),
    compared("id", "!=", "1"),
    compared("content", "==", "text of 5"),
    grouped("AND", compared("meta.number", ">", 2), compared("meta.even", "==", False)),
    grouped("OR", compared("meta.number", ">", 7), compared("meta.odd", "==", ODD[0])),
    grouped("NOT", compared("meta.number", ">", 2), compared("meta.even", "==", False)),
    grouped("NOT", grouped("OR", compared("meta.odd", "in", ODD[:2]), compared("meta.number", ">=", 8))),
    grouped("NOT", grouped("NOT", compared("meta.odd", "==", ODD[1]))),
    grouped(
        "OR",
        grouped("AND", compared("meta.number", "<", 3), compared("meta.odd", "!=", ODD[1])),
        grouped("NOT", compared("meta.odd", "==", None), compared("meta.share", "<", 2)),
    ),
]

WRONG_FILTERS: list[tuple[Any, str]] = [
    ("number > 1", "dictionary"),
    ({"operator": "AND"}, "no 'conditions'"),
    ({"conditions": []}, "no 'operator'"),
    (grouped("XOR", compared("a", "==", 1)), "one of AND, OR, NOT"),
    (grouped("AND"), "at least one"),
    (compared("meta.number", "like", "x%"), "must be one of =="),
    ({"field": "meta.number", "operator": "=="}, "no 'value'"),
    (compared("meta.number", "in", 3), "a list"),
    (compared("meta.number", "==", [3]), "a single value"),
    (compared("meta.number", ">", "3"), "numbers and ISO dates"),
    (compared("meta.number", "==", float("nan")), "finite"),
    (compared("meta.number", "in", [None]), "finite"),
    (compared("number == 1 or id", "!=", ""), "letters, digits and underscores"),
    (compared("meta.deep.field", "==", 1), "letters, digits and underscores"),
]


def ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


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
    """Makes stores of one collection, on the first server unless ``connection_args`` say otherwise."""
    stores: list[HAMilvusDocumentStore] = []
    name = f"haystack_{uuid.uuid4().hex}"

    def make_store(**options: Any) -> HAMilvusDocumentStore:
        stores.append(HAMilvusDocumentStore(name, **{"connection_args": {"uri": servers[0].uri}, **options}))
        return stores[-1]

    yield make_store
    for store in stores:
        store.close()


@pytest.fixture
def filled(make: Make) -> HAMilvusDocumentStore:
    """A store that holds `DOCUMENTS`, and nearest to a question is what points the same way."""
    store = make(index_params={"index_type": "FLAT", "metric_type": "COSINE", "params": {}})
    assert store.write_documents(DOCUMENTS) == len(DOCUMENTS)
    return store


@pytest.fixture
def retriever(filled: HAMilvusDocumentStore, servers: list[LiteServer]) -> Iterator[HAMilvusRetriever]:
    made = HAMilvusRetriever(filled.collection_name, servers[0].uri, top_k=3)
    yield made
    made.close()


class TestFilters:
    def test_haystack_and_milvus_agree(self, filled: HAMilvusDocumentStore) -> None:
        for filters in FILTERS:
            expected = [document.id for document in DOCUMENTS if document_matches_filter(filters, document)]
            assert sorted(ids(filled.filter_documents(filters))) == expected, (filters, expression(filters))
            assert filled.count_documents_by_filter(filters) == len(expected)

    @pytest.mark.parametrize(("filters", "message"), WRONG_FILTERS)
    def test_what_cannot_be_asked_is_refused(self, filters: Any, message: str) -> None:
        with pytest.raises(FilterError, match=message):
            expression(filters)

    def test_other_field_names(self, make: Make) -> None:
        """A store whose collection calls its fields otherwise understands the same filters, in every search."""
        store = make(primary_field="key", text_field="passage", vector_field="v")
        store.write_documents(DOCUMENTS)
        filters = grouped("OR", compared("content", "==", "text of 5"), compared("id", "==", "7"))
        assert sorted(ids(store.filter_documents(filters))) == ["5", "7"]
        found = MilvusEmbeddingRetriever(store).run(fill.vector(7, 8), filters=filters)["documents"]
        assert ids(found) == ["7", "5"]


class TestRetriever:
    async def test_blocking_and_async(self, retriever: HAMilvusRetriever) -> None:
        question = {"query_embedding": fill.vector(6, 8)}
        for answer in (retriever.run(**question), await retriever.run_async(**question)):
            first, *others = answer["documents"]
            assert (first.id, first.content, len(others)) == ("6", "text of 6", 2)
            origin = first.meta.pop(ORIGIN)
            assert first.meta == DOCUMENTS[6].meta
            assert (origin["score"], origin["rung"], origin["stale"]) == (first.score, "first", False)
            assert origin["source"]
            assert first.score > others[0].score > others[1].score

    def test_a_run_says_otherwise(self, retriever: HAMilvusRetriever) -> None:
        few = retriever.run(fill.vector(6, 8), filters=compared("meta.number", "<", 5), top_k=2)["documents"]
        assert len(few) == 2
        assert all(document.meta["number"] < 5 for document in few)
        assert retriever.run(fill.vector(6, 8), filters=compared("id", "==", "77")) == {"documents": []}

    def test_wrong_questions(self, retriever: HAMilvusRetriever, servers: list[LiteServer]) -> None:
        with pytest.raises(BadQuery, match=r"\(2,\).*\(8,\)"):
            retriever.run([1.0, 2.0])
        with pytest.raises(BadQuery, match="k must be"):
            retriever.run(fill.vector(6, 8), top_k=0)
        with pytest.raises(FilterError):
            retriever.run(fill.vector(6, 8), filters={"operator": "AND"})
        nothing = HAMilvusRetriever("nothing", servers[0].uri)
        with pytest.raises(ConfigError, match="'nothing' does not exist"):
            nothing.run(fill.vector(6, 8))
        nothing.close()

    def test_closed_and_used_again(self, retriever: HAMilvusRetriever) -> None:
        assert retriever.run(fill.vector(6, 8))["documents"]
        retriever.close()
        assert retriever.run(fill.vector(6, 8))["documents"]

    def test_a_configuration_file_says_where_the_servers_are(
        self, filled: HAMilvusDocumentStore, servers: list[LiteServer], tmp_path: Path
    ) -> None:
        file = tmp_path / "haclient.toml"
        file.write_text(f'[[cluster]]\nname = "only"\nendpoints = ["{servers[0].uri}"]\n')
        retriever = HAMilvusRetriever(filled.collection_name, config=str(file))
        assert retriever.run(fill.vector(6, 8))["documents"][0].meta[ORIGIN]["source"].startswith("only/")
        retriever.close()

    def test_it_needs_haystack_only(self) -> None:
        text = "import sys, haclient.integrations.haystack; sys.exit('milvus_haystack' in sys.modules)"
        subprocess.run([sys.executable, "-c", text], check=True)


class TestPipelines:
    def test_saved_and_loaded(
        self, filled: HAMilvusDocumentStore, servers: list[LiteServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_TOKEN", "secret value")
        pipeline = Pipeline()
        pipeline.add_component(
            "ours",
            HAMilvusRetriever(
                filled.collection_name,
                [server.uri for server in servers[:1]],
                token=Secret.from_env_var("A_TOKEN"),
                filters=compared("meta.even", "==", False),
                top_k=1,
                options={"timeout_s": 5.0},
            ),
        )
        saved = pipeline.dumps()
        assert "A_TOKEN" in saved
        assert "secret value" not in saved
        loaded = Pipeline.loads(saved, allowed_modules=["haclient.*"])
        assert loaded.dumps() == saved
        found = loaded.run({"ours": {"query_embedding": fill.vector(6, 8)}})["ours"]["documents"]
        assert [document.meta["even"] for document in found] == [False]
        loaded.close()

    def test_a_store_is_saved_and_loaded(self, make: Make, servers: list[LiteServer], monkeypatch: Any) -> None:
        monkeypatch.setenv("A_TOKEN", "secret value")
        store = make(connection_args={"uri": [servers[0].uri], "token": Secret.from_env_var("A_TOKEN")})
        store.write_documents(DOCUMENTS)
        saved = store.to_dict()
        assert "secret value" not in str(saved)
        loaded = HAMilvusDocumentStore.from_dict(saved)
        assert loaded.count_documents() == len(DOCUMENTS)
        loaded.close()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"uri": "http://127.0.0.1:9", "token": "user:hidden"}, "token must be a Secret"),
            ({"uri": "http://user:hidden@127.0.0.1:9"}, r"http://\*\*\*@127.0.0.1:9 holds credentials"),
            ({"uri": ["http://127.0.0.1:9", "http://hidden@127.0.0.1:9"]}, "holds credentials"),
            ({"config": {"cluster": [{"token": "hidden"}]}}, "path of a TOML file"),
        ],
    )
    def test_secrets_in_plain_text_are_refused(self, arguments: dict[str, Any], message: str) -> None:
        """Before anything could be saved, and without showing them."""
        makers: tuple[Callable[[], Any], ...] = (
            lambda: HAMilvusRetriever("docs", **arguments),
            lambda: HAMilvusDocumentStore("docs", connection_args=arguments),
        )
        for make in makers:
            with pytest.raises(ConfigError, match=message) as caught:
                make()
            assert "hidden" not in str(caught.value)

    async def test_a_pipeline_goes_on_while_a_server_is_killed(self, lite_server: LiteFactory) -> None:
        """Blocking and async, through our retriever and through milvus-haystack's: no question fails."""
        a, b = await lite_server(), await lite_server()
        for server in (a, b):
            store = await asyncio.to_thread(HAMilvusDocumentStore, "docs", connection_args={"uri": server.uri})
            await store.write_documents_async(DOCUMENTS)
            store.close()
        both = [a.uri, b.uri]
        store = await asyncio.to_thread(HAMilvusDocumentStore, "docs", connection_args={"uri": both})
        pipeline = Pipeline()
        pipeline.add_component("ours", HAMilvusRetriever("docs", both, top_k=1, options={"timeout_s": 5.0}))
        pipeline.add_component("theirs", MilvusEmbeddingRetriever(store, top_k=1))
        pipeline.add_component("both", DocumentJoiner("concatenate"))
        pipeline.connect("ours", "both")
        pipeline.connect("theirs", "both")
        answered = 0
        under_way = asyncio.Event()

        async def ask(run_pipeline: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
            nonlocal answered
            for i in range(30):
                question = {"query_embedding": fill.vector(i % 10, 8)}
                answer = await run_pipeline({"ours": question, "theirs": question})
                assert ids(answer["both"]["documents"]) == [str(i % 10)]
                answered += 1
                if answered == 10:
                    under_way.set()

        asking = [
            asyncio.create_task(ask(each))
            for each in (pipeline.run_async, lambda data: asyncio.to_thread(pipeline.run, data))
        ]
        try:
            await under_way.wait()
            await a.kill()
            assert not any(task.done() for task in asking)
            await asyncio.gather(*asking)
            assert answered == 60

            await b.kill()
            # Nobody answers: that is an error, not an empty result.
            for component in (pipeline.get_component("ours"), pipeline.get_component("theirs")):
                with pytest.raises(Unavailable, match="attempts"):
                    await asyncio.to_thread(component.run, fill.vector(1, 8))
            with pytest.raises(Unavailable, match="attempts"):
                await store.filter_documents_async()
        finally:
            pipeline.close()
            store.close()


class TestStore:
    def test_policies(self, filled: HAMilvusDocumentStore) -> None:
        """A document is known by its id, whether it is there already or comes twice."""
        changed = Document(id="3", content="changed", embedding=fill.vector(3, 8))
        new = Document(id="new", content="new", embedding=fill.vector(11, 8))
        again = Document(id="new", content="again", embedding=fill.vector(11, 8))

        def contents() -> list[str | None]:
            return [d.content for d in filled.filter_documents(compared("id", "in", ["3", "new"]))]

        with pytest.raises(DuplicateDocumentError, match="nothing was written: 3"):
            filled.write_documents([new, changed], DuplicatePolicy.FAIL)
        with pytest.raises(DuplicateDocumentError, match="comes twice"):
            filled.write_documents([new, again], DuplicatePolicy.FAIL)
        assert contents() == ["text of 3"]
        assert filled.write_documents([new, changed, again], DuplicatePolicy.SKIP) == 1
        assert sorted(map(str, contents())) == ["new", "text of 3"]
        assert filled.write_documents([new, changed, again], DuplicatePolicy.OVERWRITE) == 2
        assert sorted(map(str, contents())) == ["again", "changed"]
        assert filled.count_documents() == 11

    async def test_concurrent_first_writes(self, make: Make) -> None:
        """One of them creates the collection."""
        store = make()
        await asyncio.gather(*(store.write_documents_async([document]) for document in DOCUMENTS))
        assert store.count_documents() == len(DOCUMENTS)

    def test_a_collection_that_another_store_creates_is_found(self, make: Make) -> None:
        reader, writer = make(enable_dynamic_field=False), make(enable_dynamic_field=False)
        assert (reader.count_documents(), reader.filter_documents()) == (0, [])
        writer.write_documents(DOCUMENTS[: len(ODD)])
        assert reader.count_documents() == len(ODD)
        assert reader.filter_documents(FILTERS[0])[0].meta["number"] == 4
        assert make().write_documents(DOCUMENTS[:1]) == 1

    def test_several_clusters_are_read_and_not_written(self, make: Make, servers: list[LiteServer]) -> None:
        for server in servers:
            make(connection_args={"uri": server.uri}).write_documents(DOCUMENTS)
        both = make(connection_args={"uri": [server.uri for server in servers]})
        assert both.count_documents() == len(DOCUMENTS)
        for write in (
            lambda: both.write_documents(DOCUMENTS[:1]),
            lambda: both.delete_documents(["1"]),
            both.delete_all_documents,
        ):
            with pytest.raises(WriteRefused, match="2 clusters"):
                write()
        assert both.count_documents() == len(DOCUMENTS)
