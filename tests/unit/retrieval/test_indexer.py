"""The indexer on a Milvus in memory: what is written, deleted, left alone, refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusException

from haclient.errors import ConfigError, EmbeddingError, Unavailable
from haclient.retrieval.embed.embedder import Fingerprint
from haclient.retrieval.indexer import Indexer, IndexReport, Source
from haclient.retrieval.schema import FINGERPRINT_PROPERTY, read_fingerprint
from tests.unit.retrieval.indexer_fakes import DIMENSION, FakeEmbedder, FakeMilvus, make_indexer


@pytest.fixture
def milvus() -> FakeMilvus:
    return FakeMilvus()


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder) -> Indexer:
    return make_indexer(monkeypatch, milvus, embedder, batch_rows=4)


def texts(milvus: FakeMilvus) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in milvus.rows.values():
        found.setdefault(row["source"], set()).add(row["text"])
    return found


def counts(report: IndexReport) -> tuple[int, int, int, int]:
    return report.added, report.unchanged, report.removed, report.replaced


# --- what is written ------------------------------------------------------------------------------------------------


async def test_rows_carry_text_source_vector_and_metadata(index: Indexer, milvus: FakeMilvus) -> None:
    await index.add([Source("a", "one\n\ntwo", {"lang": "en", "page": 3})])
    assert texts(milvus) == {"a": {"one", "two"}}
    for number, row in milvus.rows.items():
        assert row["id"] == number
        assert len(number) == 32
        assert (row["lang"], row["page"]) == ("en", 3)
        assert row["vector"].shape == (DIMENSION,)


async def test_a_repeat_changes_nothing(index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder) -> None:
    sources = [Source(f"s{i}", f"one {i}\n\ntwo {i}") for i in range(9)]
    first = await index.add(sources)
    before = list(embedder.embedded)
    milvus.log.clear()
    again = await index.add(sources)
    assert counts(first) == (18, 0, 0, 0)
    assert counts(again) == (0, 18, 0, 0)
    assert embedder.embedded == before
    assert {step.split()[0] for step in milvus.log} == {"query"}


async def test_a_changed_source_loses_its_old_chunks_after_it_got_the_new_ones(
    index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    await index.add([Source("a", "one\n\ntwo\n\nthree"), Source("b", "one")])
    embedder.embedded.clear()
    milvus.log.clear()
    report = await index.add([Source("a", "zero\n\none\n\nthree"), Source("b", "one")])
    assert counts(report) == (1, 3, 1, 1)
    assert embedder.embedded == ["zero"], "chunks that only moved are left alone"
    assert texts(milvus) == {"a": {"zero", "one", "three"}, "b": {"one"}}
    assert milvus.log[-2:] == ["upsert 1", "delete 1"]


async def test_changed_metadata_makes_new_rows(index: Indexer, milvus: FakeMilvus) -> None:
    await index.add([Source("a", "one", {"lang": "en", "x": 1})])
    assert counts(await index.add([Source("a", "one", {"x": 1, "lang": "en"})])) == (0, 1, 0, 0), "order says nothing"
    assert counts(await index.add([Source("a", "one", {"x": 1, "lang": "de"})])) == (1, 0, 1, 1)
    assert [row["lang"] for row in milvus.rows.values()] == ["de"]


async def test_the_same_text_in_two_sources_is_two_rows_and_twice_in_one_source_is_one(
    index: Indexer, milvus: FakeMilvus
) -> None:
    report = await index.add([Source("a", "same\n\nsame"), Source("b", "same")])
    assert report.added == len(milvus.rows) == 2


async def test_sources_not_named_are_left_alone_and_remove_takes_one_out(index: Indexer, milvus: FakeMilvus) -> None:
    await index.add([Source("a", "1\n\n2\n\n3\n\n4\n\n5"), Source("b", "6")])
    await index.add([Source("c", "7")])
    assert await index.remove(["a", "nothing"]) == 5
    assert texts(milvus) == {"b": {"6"}, "c": {"7"}}
    assert await index.remove([]) == 0
    with pytest.raises(TypeError, match=r"write \['b'\]"):
        await index.remove("b")


# --- interruptions --------------------------------------------------------------------------------------------------


async def test_a_run_that_died_goes_on_where_it_stopped(
    index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    sources = [Source(f"s{i}", "\n\n".join(f"{i} {j}" for j in range(3))) for i in range(10)]

    cause = OSError("refused")

    def die(_: Any) -> None:
        if len(embedder.embedded) >= 12:
            raise Unavailable("no endpoint could answer") from cause

    embedder.before = die
    with pytest.raises(Unavailable) as raised:
        await index.add(sources)
    assert "into collection 'docs'" in raised.value.__notes__[0]
    assert (raised.value.__cause__, raised.value.__context__) == (cause, None)
    there = len(milvus.rows)
    assert 0 < there < 30
    embedder.before = None
    report = await index.add(sources)
    assert counts(report) == (30 - there, there, 0, 0)
    assert len(embedder.embedded) == 30
    assert sum(len(found) for found in texts(milvus).values()) == 30


async def test_a_run_that_died_between_writing_and_deleting_deletes_later(index: Indexer, milvus: FakeMilvus) -> None:
    await index.add([Source("a", "one\n\ntwo")])
    milvus.refuse = lambda step: Unavailable("gone") if step.startswith("delete") else None
    with pytest.raises(Unavailable):
        await index.add([Source("a", "one\n\nnew")])
    assert texts(milvus) == {"a": {"one", "two", "new"}}
    milvus.refuse = lambda step: None
    assert counts(await index.add([Source("a", "one\n\nnew")])) == (0, 2, 1, 1)
    assert texts(milvus) == {"a": {"one", "new"}}


async def test_a_source_is_done_only_when_all_of_it_is(
    index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    """One source of three batches whose last batch fails: its chunks count, the source does not."""
    told: list[IndexReport] = []
    milvus.refuse = lambda step: MilvusException(1100, "too long") if step == "upsert 2" else None
    with pytest.raises(MilvusException, match="too long") as raised:
        await index.add([Source("long", "\n\n".join(map(str, range(10))))], progress=told.append)
    assert "while indexing 'long' into collection 'docs'" in raised.value.__notes__
    assert (told[-1].added, told[-1].sources) == (8, 0)


async def test_cancelling_leaves_no_task_and_no_thread(index: Indexer, embedder: FakeEmbedder) -> None:
    reached = asyncio.Event()

    def hang(_: Any) -> Any:
        reached.set()
        return asyncio.Event().wait()

    embedder.before = hang
    run = asyncio.create_task(index.add([Source(f"s{i}", "1\n\n2\n\n3\n\n4") for i in range(20)]))
    await reached.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for thread in threading.enumerate():
        if thread.name.startswith("haclient-indexer"):
            thread.join(timeout=10)
            assert not thread.is_alive()


# --- streaming ------------------------------------------------------------------------------------------------------


async def test_sources_are_read_no_further_than_needed(index: Indexer, embedder: FakeEmbedder) -> None:
    read: list[int] = []
    open_ = asyncio.Event()
    waiting = 0

    def block(_: Any) -> Any:
        nonlocal waiting
        waiting += 1
        return open_.wait()

    def sources() -> Iterator[Source]:
        for i in range(100):
            read.append(i)
            yield Source(f"s{i}", "one\n\ntwo")

    embedder.before = block
    run = asyncio.create_task(index.add(sources()))
    # Two batches of two sources are under way and a third is ready; nothing moves any more.
    while len(read) < 6:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert (waiting, len(read)) == (2, 6)
    open_.set()
    report = await run
    assert (report.sources, report.added) == (100, 200)


async def test_an_ordinary_iterable_is_read_in_one_thread_that_is_not_the_loops(index: Indexer) -> None:
    threads = set()

    def sources() -> Iterator[Source]:
        for i in range(30):
            threads.add(threading.get_ident())
            yield Source(f"s{i}", "text")

    await index.add(sources())
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_an_async_iterable_is_read_on_the_loop(index: Indexer, milvus: FakeMilvus) -> None:
    async def sources() -> AsyncIterator[Source]:
        for i in range(5):
            assert threading.current_thread() is threading.main_thread()
            yield Source(f"s{i}", "text")

    report = await index.add(sources())
    assert (report.sources, report.total, len(milvus.rows)) == (5, None, 5)


async def test_progress_grows_to_the_report(index: Indexer) -> None:
    told: list[IndexReport] = []
    report = await index.add([Source(f"s{i}", "1\n\n2\n\n3") for i in range(7)], progress=told.append)
    assert told[-1] == report
    assert [one.added for one in told] == sorted(one.added for one in told)
    assert {one.total for one in told} == {7}
    assert (report.sources, report.added) == (7, 21)
    assert report.rate == pytest.approx(21 / report.seconds)


async def test_what_the_caller_raises_comes_out_as_it_is(index: Indexer) -> None:
    def sources() -> Iterator[Source]:
        yield Source("a", "1\n\n2\n\n3\n\n4")
        raise FileNotFoundError("b.txt")

    with pytest.raises(FileNotFoundError, match=r"b\.txt"):
        await index.add(sources())

    def stop(_: IndexReport) -> None:
        raise KeyError("progress")

    with pytest.raises(KeyError, match="progress"):
        await index.add([Source("c", "text")], progress=stop)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Source("bad", ""), "'bad' has no text"),
        (Source("bad", " \n\n\t"), "'bad' has no text"),
        (Source("", "text"), "a source's id must be a name"),
        (Source("b\nad", "text"), "without control characters, got 'b\\nad'"),
        (Source("ä" * 513, "text"), "more than 1024 bytes"),
        (Source("bad", "text", {"vector": 1, "id": 2}), "'bad': metadata cannot be called id, vector"),
        (Source("bad", "text", {"when": object()}), "'bad': its metadata is no JSON"),
        (Source("bad", "text", {"n": float("nan")}), "'bad': its metadata is no JSON"),
        (Source("bad", "text", {3: "x"}), "'bad': names of metadata are text, got 3"),  # type: ignore[dict-item]
        (Source("bad", "text", {"m": "x" * 70_000}), "'bad': its metadata has more than 65536 bytes"),
        (Source("bad", "fine\n\n" + "ä" * 32_768), "'bad': a chunk has 65536 bytes, and the collection takes 65535"),
        (Source("bad", "half a surrogate \ud800"), "'bad': its text cannot be written as UTF-8"),
        (Source("bad\ud800", "text"), "cannot be written as UTF-8"),
        (Source("good", "text"), "another source of this run has the same id"),
    ],
)
async def test_a_bad_source_is_reported_and_the_others_go_on(
    index: Indexer, milvus: FakeMilvus, source: Source, reason: str
) -> None:
    report = await index.add([Source("good", "text"), source, Source("also", "text")])
    [failure] = report.failed
    assert failure.source == source.id
    assert reason in failure.reason
    assert texts(milvus) == {"good": {"text"}, "also": {"text"}}
    assert (report.sources, report.added) == (2, 2)


async def test_a_source_gone_bad_keeps_what_the_collection_has_of_it(index: Indexer, milvus: FakeMilvus) -> None:
    await index.add([Source("a", "text")])
    await index.add([Source("a", "")])
    assert texts(milvus) == {"a": {"text"}}


async def test_something_else_than_a_source_is_a_type_error(index: Indexer) -> None:
    with pytest.raises(TypeError, match="sources are of type Source, got str"):
        await index.add(["text"])  # type: ignore[list-item]


async def test_a_splitter_that_fails_names_the_source(
    monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    def fail(_: str) -> list[str]:
        raise IndexError("splitter")

    with pytest.raises(IndexError) as raised:
        await make_indexer(monkeypatch, milvus, embedder, splitter=fail).add([Source("a", "text")])
    assert raised.value.__notes__ == ["while cutting source 'a'"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:-1],
        lambda rows: rows[:, :-1],
        lambda rows: np.where(np.arange(rows.shape[1]) == 0, np.nan, rows),
        lambda rows: None,
    ],
    ids=["a row too few", "a number too few", "NaN", "nothing"],
)
async def test_garbage_from_the_embedder_is_not_written(
    index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder, spoil: Any
) -> None:
    embedder.spoil = spoil
    with pytest.raises(EmbeddingError, match="fake answered"):
        await index.add([Source("a", "one\n\ntwo")])
    assert milvus.rows == {}


@pytest.mark.parametrize(
    ("name", "options"),
    [("batch_rows", {"batch_rows": 0}), ("in_flight", {"in_flight": -1})],
)
def test_wrong_numbers_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder, name: str, options: Any
) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
        make_indexer(monkeypatch, milvus, embedder, **options)


# --- the collection -------------------------------------------------------------------------------------------------


async def test_a_collection_is_made_with_index_and_fingerprint_and_then_loaded(
    index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    await index.add([])
    assert milvus.log == ["create", "index vector", "load"]
    assert milvus.indexes["vector"]["metric_type"] == "COSINE"
    assert milvus.description is not None
    assert read_fingerprint(milvus.description) == embedder.print
    milvus.log.clear()
    await index.add([])
    assert milvus.log == []


@pytest.mark.parametrize("done", [1, 2])
async def test_a_creation_that_was_interrupted_is_finished(index: Indexer, milvus: FakeMilvus, done: int) -> None:
    milvus.refuse = lambda step: Unavailable("gone") if len(milvus.log) > done else None
    with pytest.raises(Unavailable):
        await index.add([])
    milvus.refuse = lambda step: None
    await index.add([])
    assert milvus.loaded
    assert list(milvus.indexes) == ["vector"]


async def test_a_hybrid_collection_has_a_bm25_index_too(
    monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    await make_indexer(monkeypatch, milvus, embedder, hybrid=True).add([Source("a", "text")])
    assert milvus.indexes["sparse"]["metric_type"] == "BM25"
    assert all("sparse" not in row for row in milvus.rows.values()), "the server makes it"


async def test_a_server_that_drops_bm25_silently_is_found_out_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    milvus.knows_bm25 = False
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:19530 runs Milvus v2\.3\.5"):
        await make_indexer(monkeypatch, milvus, embedder, hybrid=True).add([Source("a", "text")])
    assert milvus.log == ["create", "drop"]


async def test_two_models_are_not_mixed(monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, index: Indexer) -> None:
    await index.add([Source("a", "text")])
    with pytest.raises(ConfigError, match=r"mixing two models .* model=fake .* model=other"):
        await make_indexer(monkeypatch, milvus, FakeEmbedder("other")).add([Source("b", "text")])
    with pytest.raises(ConfigError, match="vectors of 8 numbers, and the embedder fake makes 16"):
        await make_indexer(monkeypatch, milvus, FakeEmbedder(dimension=16)).add([Source("b", "text")])
    assert set(texts(milvus)) == {"a"}


async def test_a_model_whose_name_has_blanks_is_recognised(monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus) -> None:
    embedder = FakeEmbedder("my own model")
    for _ in range(2):
        await make_indexer(monkeypatch, milvus, embedder).add([Source("a", "text")])
    assert len(milvus.rows) == 1


async def test_a_collection_without_a_fingerprint_gets_one(
    index: Indexer, milvus: FakeMilvus, embedder: FakeEmbedder
) -> None:
    await index.add([])
    assert milvus.description is not None
    milvus.description["properties"].clear()
    await index.add([])
    assert read_fingerprint(milvus.description) == embedder.print


async def test_where_it_cannot_get_one_a_warning_says_so(
    index: Indexer, milvus: FakeMilvus, caplog: pytest.LogCaptureFixture
) -> None:
    await index.add([])
    assert milvus.description is not None
    milvus.description["properties"].clear()
    milvus.refuse = lambda step: MilvusException(65535, "not allowed") if step == "alter" else None
    with caplog.at_level(logging.WARNING, "haclient"):
        assert (await index.add([Source("a", "text")])).added == 1
    assert "collection docs cannot be marked with its embedder" in caplog.text
    milvus.refuse = lambda step: Unavailable("gone") if step == "alter" else None
    with pytest.raises(Unavailable):
        await index.add([Source("b", "text")])


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: d["fields"].pop(1), "no field text of type VARCHAR"),
        (lambda d: d["fields"][3].update(type=100), "no field vector of type FLOAT_VECTOR"),
        (lambda d: d.update(auto_id=True), "its primary key is not id"),
        (lambda d: d["fields"][0].pop("is_primary"), "its primary key is not id"),
        (lambda d: d["fields"].append({"name": "odd", "type": 104}), "nothing fills its sparse field odd"),
    ],
)
async def test_a_collection_that_does_not_fit_is_not_touched(
    index: Indexer, milvus: FakeMilvus, spoil: Any, complaint: str
) -> None:
    await index.add([])
    spoil(milvus.description)
    milvus.loaded = False
    milvus.log.clear()
    with pytest.raises(ConfigError, match=complaint):
        await index.add([Source("a", "text")])
    assert milvus.log == []


async def test_a_dense_collection_is_no_hybrid_one(
    monkeypatch: pytest.MonkeyPatch, milvus: FakeMilvus, embedder: FakeEmbedder, index: Indexer
) -> None:
    await index.add([])
    with pytest.raises(ConfigError, match="no BM25 function, which hybrid=True needs"):
        await make_indexer(monkeypatch, milvus, embedder, hybrid=True).add([])


def test_a_fingerprint_is_read_from_a_description_only_if_it_has_one() -> None:
    fingerprint = Fingerprint("m", 3, normalised=False)
    assert read_fingerprint({"properties": {FINGERPRINT_PROPERTY: str(fingerprint)}}) == fingerprint
    assert read_fingerprint({"properties": {}}) is None
    assert read_fingerprint({}) is None
