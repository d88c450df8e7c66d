"""The retriever: what it asks, what it returns, and what it does when it is not answered."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import Action, Attempt, Reply
from haclient.errors import (
    AccessDenied,
    BadQuery,
    ConfigError,
    DeadlineExceeded,
    EmbeddingError,
    Overloaded,
    Unavailable,
)
from haclient.events import Degraded, Retrieved
from haclient.milvus.requests import inspect
from haclient.milvus.timestamps import EVENTUALLY, STRONG
from haclient.retrieval import RRF, AnswerCache, Freshness, Relax, Retriever, Rung, Weighted
from haclient.retrieval.embed.embedder import Fingerprint
from tests.unit.retrieval.fake_host import (
    FakeClient,
    FakeEmbedder,
    description,
    hits,
    indexes,
    too_late,
    unavailable,
)

VECTOR = [0.5, 0.5, 0.5, 0.5]


def refused(code: int, reason: str) -> bytes:
    return milvus_pb2.SearchResults(status={"code": code, "reason": reason}).SerializeToString()


def made(*script, **options) -> tuple[Retriever, FakeClient]:
    client = FakeClient(*script)
    return Retriever(client, "docs", embedder=options.pop("embedder", FakeEmbedder()), **options), client


# What is asked and what comes back.


async def test_documents_say_what_they_are_and_where_they_are_from():
    retriever, client = made(hits("one", "two"))
    docs = await retriever.retrieve("what?", 2, filter='lang == "en"')
    assert [(d.id, d.text, d.score, d.metadata) for d in docs] == [(0, "one", 1.0, {}), (1, "two", 0.5, {})]
    assert (docs.source, docs.rung, docs.freshness) == ("a/a1", Rung.FIRST, Freshness("Bounded"))
    [asked] = client.host.asked
    assert (asked.dsl, asked.nq, list(asked.output_fields)) == ('lang == "en"', 1, ["text", "lang"])


async def test_nothing_found_is_an_empty_result_and_no_error():
    retriever, _ = made(hits())
    docs = await retriever.retrieve("what?")
    assert len(docs) == 0
    assert not docs.freshness.stale


async def test_the_collection_is_looked_up_once():
    retriever, client = made(hits("one"))
    for _ in range(3):
        await retriever.retrieve("what?")
    assert client.host.looked == 1


async def test_several_questions_go_in_one_request():
    retriever, client = made(lambda request: hits("one", questions=request.nq))
    answers = await retriever.retrieve_many(["a", "b", "c"], 1)
    assert [docs[0].text for docs in answers] == ["one"] * 3
    assert [request.nq for request in client.host.asked] == [3]
    assert await retriever.retrieve_many([]) == []


async def test_a_vector_needs_no_embedder():
    retriever, client = made(hits("one"), embedder=None)
    await retriever.retrieve(VECTOR)
    await retriever.retrieve(np.array(VECTOR))
    groups = {request.placeholder_group for request in client.host.asked}
    assert len(groups) == 1
    assert np.array(VECTOR, np.float32).tobytes() in groups.pop()


async def test_distances_become_scores():
    retriever, client = made(hits("near", "far", scores=[0.25, 4.0]))
    client.host.indexed = indexes(vector="L2", sparse="BM25")
    assert [d.score for d in await retriever.retrieve("what?")] == [-0.25, -4.0]


async def test_a_threshold_cuts_what_scores_less():
    retriever, _ = made(hits("one", "two", "three"))
    assert [d.text for d in await retriever.retrieve("what?", threshold=0.5)] == ["one", "two"]


async def test_mmr_fetches_candidates_with_vectors_and_chooses():
    rows = [[1, 0, 0, 0], [0.99, 0.01, 0, 0], [0.6, 0.8, 0, 0]]
    retriever, client = made(hits("one", "copy", "other", vectors=rows))
    docs = await retriever.retrieve("what?", 2, mmr=0.3)
    assert [d.text for d in docs] == ["one", "other"]
    assert "vector" not in docs[0].metadata
    [asked] = client.host.asked
    assert "vector" in asked.output_fields
    assert {p.key: p.value for p in asked.search_params}["topk"] == "20"


async def test_sparse_mode_sends_the_text_for_the_server_to_embed():
    retriever, client = made(hits("one", scores=[-1.5]), mode="sparse")
    docs = await retriever.retrieve("what words?")
    assert docs[0].score == 1.5
    assert b"what words?" in client.host.asked[0].placeholder_group


@pytest.mark.parametrize(
    ("ranker", "strategy", "params"),
    [(RRF(10), "rrf", {"k": 10}), (Weighted(0.7, 0.3), "weighted", {"weights": [0.7, 0.3], "norm_score": True})],
)
async def test_hybrid_mode_merges_both_searches(ranker, strategy, params):
    retriever, client = made(hits("one"), mode="hybrid", ranker=ranker)
    await retriever.retrieve("what?", 3)
    [asked] = client.host.asked
    given = {pair.key: pair.value for pair in asked.rank_params}
    assert given["strategy"] == strategy
    assert eval(given["params"], {"true": True}) == params
    assert [{p.key: p.value for p in leg.search_params}["anns_field"] for leg in asked.requests] == ["vector", "sparse"]


class Sparse:
    def __init__(self, rows):
        self.rows = rows

    async def embed_sparse(self, texts):
        return self.rows


async def test_a_sparse_field_that_the_server_does_not_make_takes_a_sparse_embedder():
    retriever, client = made(hits("one"), mode="sparse", sparse_embedder=Sparse([{7: 0.5}]))
    client.host.described = description(functions=[])
    await retriever.retrieve("what?")
    assert b"\x07\x00\x00\x00\x00\x00\x00\x3f" in client.host.asked[0].placeholder_group


@pytest.mark.parametrize("rows", [[], [{1: math.nan}]])
async def test_garbage_of_a_sparse_embedder_is_refused(rows):
    retriever, client = made(hits("one"), mode="sparse", sparse_embedder=Sparse(rows))
    client.host.described = description(functions=[])
    with pytest.raises(EmbeddingError, match="sparse"):
        await retriever.retrieve("what?")
    assert not client.host.asked


async def test_rerank_sees_candidates_and_decides():
    seen = []

    def backwards(question, documents):
        seen.append((question, len(documents)))
        return documents[::-1]

    retriever, client = made(hits("one", "two", "three"), rerank=backwards)
    docs = await retriever.retrieve("what?", 2, candidates=3)
    assert [d.text for d in docs] == ["three", "two"]
    assert seen == [("what?", 3)]
    assert {p.key: p.value for p in client.host.asked[0].search_params}["topk"] == "3"


async def test_without_anybody_to_choose_no_candidates_are_fetched():
    retriever, client = made(hits("one", "two"))
    await retriever.retrieve("what?", 2, candidates=50)
    assert {p.key: p.value for p in client.host.asked[0].search_params}["topk"] == "2"


async def test_rerank_may_be_async():
    async def first(question, documents):
        return documents[:1]

    retriever, _ = made(hits("one", "two"), rerank=first)
    assert [d.text for d in await retriever.retrieve("what?")] == ["one"]


async def test_the_facts_handed_to_the_core_are_those_it_would_find():
    retriever, client = made(hits("one"))
    given = []
    answer = client.host.answer

    async def spy(method, message, metadata=(), timeout_s=None, facts=None):
        if method.name == "Search":
            given.append((facts, inspect(method, message, metadata)))
        return await answer(method, message, metadata, timeout_s, facts)

    client.host.answer = spy
    await retriever.retrieve("what?")
    await retriever.retrieve("what else?")
    assert len(given) == 2
    assert all(facts == found for facts, found in given)


async def test_the_facts_are_those_of_the_level_that_is_asked_for_in_the_end():
    """By them the core chooses who may answer."""
    retriever, client = made(unavailable(), consistency="Strong", relax=Relax(after_s=0.5))
    levels = []
    answer = client.host.answer

    async def spy(method, message, metadata=(), timeout_s=None, facts=None):
        if method.name == "Search":
            levels.append((facts or inspect(method, message, metadata)).consistency_level)
        return await answer(method, message, metadata, timeout_s, facts)

    client.host.answer = spy
    with pytest.raises(Unavailable):
        await retriever.retrieve("what?")
    assert levels == [STRONG, EVENTUALLY]


# What does not fit.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"described": description(fields=[{"name": "id", "data_type": 5}])}, "no float or sparse vector field"),
        ({"indexed": indexes(sparse="BM25")}, "'vector' of collection 'docs' has no index"),
        (
            {
                "described": description(
                    fields=[
                        {"name": "text", "data_type": 21},
                        {"name": "v", "data_type": 101, "type_params": [{"key": "dim", "value": "8"}]},
                    ],
                    functions=[],
                ),
                "indexed": indexes(v="COSINE"),
            },
            "holds vectors of 8 numbers, and the embedder fake makes 4",
        ),
        (
            {"described": description(fields=[{"name": "v", "data_type": 101}, {"name": "w", "data_type": 101}])},
            "several fields of type FloatVector: give vector_field=, one of v, w",
        ),
        (
            {"described": description(fields=[{"name": "body", "data_type": 21}, {"name": "v", "data_type": 101}])},
            "no field 'text'",
        ),
    ],
)
async def test_a_collection_that_does_not_fit_is_refused_with_the_reason(change, says):
    retriever, client = made(hits("one"))
    for name, value in change.items():
        setattr(client.host, name, value)
    with pytest.raises(ConfigError, match=says):
        await retriever.check()
    with pytest.raises(ConfigError, match=says):
        await retriever.retrieve("what?")
    assert not client.host.asked


async def test_two_models_are_not_mixed():
    retriever, client = made(hits("one"))
    other = description()
    other.properties.add(key="haclient.embedder", value=str(Fingerprint("other", 4, True)))
    client.host.described = other
    with pytest.raises(ConfigError, match="filled by another embedder"):
        await retriever.check()
    other.properties[0].value = str(Fingerprint("fake", 4, True))
    await retriever.check()


async def test_a_missing_collection_is_said_to_be_missing_and_looked_for_again():
    retriever, client = made(hits("one"))
    there = client.host.described
    client.host.described = milvus_pb2.DescribeCollectionResponse(status={"code": 100, "reason": "not found"})
    with pytest.raises(ConfigError, match="collection 'docs' does not exist"):
        await retriever.retrieve("what?")
    client.host.described = there
    assert len(await retriever.retrieve("what?")) == 1


async def test_a_server_without_sparse_vectors_is_named_as_the_reason():
    retriever, client = made(hits("one"))
    dense_only = description()
    del dense_only.schema.fields[4]
    client.host.described = dense_only
    for mode in ("sparse", "hybrid"):
        with pytest.raises(BadQuery, match=r"Milvus 2\.3 knows no sparse vectors"):
            await retriever.retrieve("what?", mode=mode)
    assert not client.host.asked


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (Reply(refused(65535, "field lang2 not exist")), BadQuery, "a/a1 refused it: field lang2 not exist"),
        (Reply(b"", 12, "unknown method"), BadQuery, "does not know this call"),
        (Reply(b"", 16, "no token"), AccessDenied, "no token"),
        (Reply(b"", 7, "not yours"), AccessDenied, "not yours"),
    ],
)
async def test_what_a_server_refuses_is_the_questions_fault_and_is_said_in_its_words(reply, error, says):
    retriever, _ = made(reply, cache=AnswerCache())
    with pytest.raises(error, match=says):
        await retriever.retrieve("what?", filter="lang2 > 1")


async def test_a_refused_question_does_not_cost_the_cache():
    """It makes the retriever look at the collection again, which cannot be done while nobody answers."""
    retriever, client = made(hits("one"), refused(1100, "filter"), unavailable(), cache=AnswerCache())
    await retriever.retrieve("what?")
    with pytest.raises(BadQuery):
        await retriever.retrieve("what?", filter="nonsense")
    client.host.described = unavailable()
    docs = await retriever.retrieve("what?")
    assert (docs.rung, docs[0].text) == (Rung.CACHED, "one")


async def test_after_a_refusal_the_collection_is_looked_up_anew():
    retriever, client = made(hits("one"), refused(1100, "dim"), hits("one"))
    await retriever.retrieve("what?")
    with pytest.raises(BadQuery):
        await retriever.retrieve("what?")
    await retriever.retrieve("what?")
    assert client.host.looked == 2
    with pytest.raises(BadQuery, match="ask them apart"):
        await retriever.retrieve_many(["what?", VECTOR])
    await retriever.retrieve("what?")
    assert client.host.looked == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"k": [1]},
        {"timeout_s": 0},
        {"filter": {"a": 1}},
        {"mode": "x"},
        {"partitions": "p"},
        {"output_fields": "text"},
    ],
)
async def test_bad_options_are_refused_before_anything_is_sent(wrong):
    retriever, client = made(hits("one"))
    with pytest.raises(BadQuery):
        await retriever.retrieve("what?", **wrong)
    assert not client.host.asked


async def test_texts_and_vectors_do_not_mix_and_a_text_needs_an_embedder():
    retriever, client = made(hits("one"))
    with pytest.raises(BadQuery, match="ask them apart"):
        await retriever.retrieve_many(["what?", VECTOR])
    without, _ = made(hits("one"), embedder=None)
    with pytest.raises(BadQuery, match="no embedder"):
        await without.retrieve("what?")
    with pytest.raises(BadQuery, match="needs the question as a text"):
        await retriever.retrieve(VECTOR, mode="hybrid")
    assert not client.host.asked


# The ladder.


async def test_the_rung_says_who_answered():
    retriever, client = made(hits("one"))
    failed = Attempt("a1", "a", 0.0, 0.1, Action.FAILOVER)
    won = Attempt("b1", "b", 0.1, 0.2, Action.OK)
    client.host.attempts = [won]
    await retriever.check()
    client.host.attempts = [failed, won]
    docs = await retriever.retrieve("what?")
    assert (docs.rung, docs.source) == (Rung.FAILOVER, "b/b1")
    won.hedge = True
    assert (await retriever.retrieve("what?")).rung is Rung.HEDGE


async def test_unavailable_is_an_error_that_names_what_was_tried():
    retriever, _ = made(unavailable())
    with pytest.raises(Unavailable, match="a/a1"):
        await retriever.retrieve("what?")


def level(request) -> str:
    return (
        "default"
        if request.use_default_consistency
        else {0: "Strong", 2: "Bounded", 3: "Eventually"}[request.consistency_level]
    )


async def test_less_consistency_is_asked_for_only_if_allowed_and_after_its_time():
    def stuck(request):
        return too_late() if level(request) == "Strong" else hits("old")

    strict, client = made(stuck, consistency="Strong")
    with pytest.raises(DeadlineExceeded):
        await strict.retrieve("what?")
    assert [level(request) for request in client.host.asked] == ["Strong"]

    retriever, client = made(stuck, consistency="Strong", relax=Relax(after_s=0.5))
    docs = await retriever.retrieve("what?", timeout_s=5.0)
    assert docs.rung is Rung.RELAXED
    assert docs.freshness == Freshness("Eventually", stale=True)
    assert [level(request) for request in client.host.asked] == ["Strong", "Eventually"]
    assert client.host.timeouts[0] == 0.5
    assert 4.0 < client.host.timeouts[1] <= 5.0
    assert [e.rung for e in client.host.events if isinstance(e, Degraded)] == ["relaxed"]


async def test_what_was_asked_for_already_is_not_asked_for_again_as_less():
    retriever, client = made(unavailable(), consistency="Eventually", relax=Relax())
    with pytest.raises(Unavailable):
        await retriever.retrieve("what?")
    assert len(client.host.asked) == 1


async def test_the_cache_answers_when_nobody_else_does_and_says_so():
    retriever, client = made(hits("one"), unavailable(), cache=AnswerCache())
    await retriever.retrieve("what?")
    docs = await retriever.retrieve("what?")
    assert docs[0].text == "one"
    assert docs.rung is Rung.CACHED
    assert docs.freshness.stale
    assert docs.source == "a/a1"
    outcomes = [(e.outcome, e.rung) for e in client.host.events if isinstance(e, Retrieved)]
    assert outcomes == [("ok", "first"), ("ok", "cached")]
    with pytest.raises(Unavailable):
        await retriever.retrieve("what?", 5)


async def test_a_near_duplicate_is_answered_from_the_cache():
    table = {"one": [1, 0, 0, 0], "nearly one": [1, 0.05, 0, 0], "two": [0, 1, 0, 0]}
    retriever, _ = made(hits("one"), unavailable(), embedder=FakeEmbedder(**table), cache=AnswerCache())
    await retriever.retrieve("one")
    docs = await retriever.retrieve("nearly one")
    assert docs[0].text == "one"
    assert 0.99 < docs.similarity < 1.0
    with pytest.raises(Unavailable):
        await retriever.retrieve("two")


async def test_without_permission_nothing_old_is_given():
    retriever, _ = made(hits("one"), unavailable())
    await retriever.retrieve("what?")
    with pytest.raises(Unavailable):
        await retriever.retrieve("what?")


@pytest.mark.parametrize("failure", [EmbeddingError("NaN"), unavailable(), Overloaded("full"), TimeoutError()])
async def test_a_dead_embedder_leaves_the_cache_by_the_very_words(failure):
    embedder = FakeEmbedder()
    retriever, client = made(hits("one"), embedder=embedder, cache=AnswerCache(), memo=0)
    await retriever.retrieve("what?")
    embedder.table = {"what?": failure, "else?": failure}
    docs = await retriever.retrieve("what?")
    assert docs.rung is Rung.CACHED
    expected = DeadlineExceeded if isinstance(failure, TimeoutError) else type(failure)
    with pytest.raises(expected):
        await retriever.retrieve("else?")
    assert len(client.host.asked) == 1


async def test_answers_that_are_stale_or_empty_are_not_kept():
    retriever, _ = made(hits(), unavailable(), cache=AnswerCache())
    await retriever.retrieve("what?")
    with pytest.raises(Unavailable):
        await retriever.retrieve("what?")


async def test_of_several_questions_all_come_from_the_cache_or_none():
    retriever, _ = made(lambda r: hits("x", questions=r.nq), unavailable(), cache=AnswerCache(similarity=1.0))
    await retriever.retrieve_many(["a", "b"])
    assert [docs.rung for docs in await retriever.retrieve_many(["b", "a"])] == [Rung.CACHED] * 2
    with pytest.raises(Unavailable):
        await retriever.retrieve_many(["a", "c"])


@pytest.mark.parametrize("garbage", [[math.nan, 0, 0, 0], [1.0, 2.0]])
async def test_garbage_of_an_embedder_is_refused_and_not_kept(garbage):
    embedder = FakeEmbedder(**{"what?": garbage})
    retriever, client = made(hits("one"), embedder=embedder)
    with pytest.raises(EmbeddingError):
        await retriever.retrieve("what?")
    assert not client.host.asked
    embedder.table = {}
    assert len(await retriever.retrieve("what?")) == 1


async def test_an_embedder_that_never_answers_does_not_hold_the_caller():
    class Stuck(FakeEmbedder):
        async def embed(self, texts, *, queries=False):
            await asyncio.Event().wait()

    retriever, client = made(hits("one"), embedder=Stuck())
    with pytest.raises(DeadlineExceeded, match="embedder"):
        await retriever.retrieve("what?", timeout_s=0.01)
    assert not client.host.asked


async def test_the_first_question_waits_for_the_model_to_be_loaded():
    class Loading(FakeEmbedder):
        async def fingerprint(self):
            await asyncio.sleep(0.6)
            return await super().fingerprint()

    retriever, _ = made(hits("one"), embedder=Loading(), memo=0)
    assert len(await retriever.retrieve("what?", timeout_s=0.5)) == 1


async def test_a_cancelled_question_is_counted_as_such():
    client = FakeClient(hits("one"))
    blocked = asyncio.Event()

    async def never(*_args):
        blocked.set()
        await asyncio.Event().wait()

    retriever = Retriever(client, "docs", embedder=FakeEmbedder())
    await retriever.check()
    client.host.answer = never
    task = asyncio.ensure_future(retriever.retrieve("what?"))
    await blocked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [e.outcome for e in client.host.events if isinstance(e, Retrieved)] == ["cancelled"]


async def test_an_answer_that_cannot_be_read_is_an_outage_and_no_crash():
    retriever, _ = made(b"\xff\xff")
    with pytest.raises(Unavailable, match="cannot be read"):
        await retriever.retrieve("what?")


@pytest.mark.parametrize("wrong", [{"timeout_s": 0.0}, {"timeout_s": -1.0}])
async def test_wrong_arguments_are_refused_at_once(wrong):
    with pytest.raises(ConfigError):
        Retriever(FakeClient(), "docs", **wrong)
    with pytest.raises(ConfigError, match="empty"):
        Retriever(FakeClient(), "")


@pytest.mark.parametrize("wrong", [{"after_s": 0.0}, {"level": "weak"}])
def test_relaxing_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="Relax"):
        Relax(**wrong)
