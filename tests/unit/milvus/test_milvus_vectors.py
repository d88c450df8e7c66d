"""Search requests joined from bytes say what pymilvus' own requests say."""

from __future__ import annotations

import json

import numpy as np
import pymilvus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pymilvus.client.abstract import RRFRanker
from pymilvus.client.prepare import Prepare
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.milvus import vectors
from haclient.milvus.methods import named
from haclient.milvus.requests import inspect
from haclient.milvus.vectors import LEVELS, Leg, Target

ROWS = np.random.default_rng(7).normal(size=(3, 24)).astype(np.float32)


def parsed(message: bytes):
    return milvus_pb2.SearchRequest.FromString(message)


def params(message) -> dict[str, str]:
    return {pair.key: pair.value for pair in message.search_params}


def theirs(rows, **options):
    return leg("vector", rows, {"params": {"ef": 64}}, 5, **options)


def leg(field, data, param, limit, **options):
    # By name: pymilvus 2.5 takes them in another order.
    return Prepare.search_requests_with_expr(
        collection_name="docs", anns_field=field, param=param, limit=limit, data=data, **options
    )


@pytest.mark.parametrize("level", list(LEVELS))
def test_a_request_says_what_pymilvus_own_says(level):
    target = Target("docs", "", ("text", "page"), ("p1", "p2"), level)
    head = vectors.search_head(target, Leg("vector", 5, 'lang == "en"', {"ef": 64}))
    ours = parsed(vectors.search_request(head, vectors.floats(ROWS), 3, vectors.guarantee(level)))
    gts = {"Strong": 0, "Bounded": 2, "Eventually": 1, "Session": 1}[level]
    other = theirs(
        list(ROWS),
        expr='lang == "en"',
        partition_names=["p1", "p2"],
        output_fields=["text", "page"],
        use_default_consistency=False,
        consistency_level=LEVELS[level],
        guarantee_timestamp=gts,
    )
    got, wanted = params(ours), params(other)
    assert json.loads(got.pop("params")) == json.loads(wanted.pop("params")) == {"ef": 64}
    wanted.pop("ignore_growing", None)  # its default
    assert got == wanted
    ours.ClearField("search_params")
    other.ClearField("search_params")
    assert ours == other


def test_the_collections_own_level_goes_with_the_clients_last_write():
    head = vectors.search_head(Target("docs"), Leg("vector", 5))
    ours = parsed(vectors.search_request(head, vectors.floats(ROWS), 3, vectors.guarantee("", 450_000_000_000)))
    assert ours.use_default_consistency
    assert ours.guarantee_timestamp == 450_000_000_000
    assert vectors.guarantee("") == vectors.guarantee("Session") == 1


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(1, 4), st.integers(1, 1200)),
        elements=st.floats(-1e3, 1e3, width=32),
    )
)
def test_vectors_are_serialised_as_pymilvus_does_bit_for_bit(rows):
    ours = vectors.floats(rows)
    assert ours == Prepare._prepare_placeholder_str([row.astype(np.float32) for row in rows])


def test_a_row_of_a_larger_array_is_serialised_whatever_its_memory_order():
    columns = np.asfortranarray(ROWS)
    assert vectors.floats(columns) == vectors.floats(ROWS)
    assert vectors.floats(columns[1:2]) == vectors.floats(ROWS[1:2].copy())


@given(st.lists(st.dictionaries(st.integers(0, 2**32 - 2), st.floats(0, 1e6, width=32), min_size=1), min_size=1))
def test_sparse_vectors_are_sorted_by_index(rows):
    group = common_pb2.PlaceholderGroup.FromString(vectors.sparse(rows))
    assert group.placeholders[0].type == common_pb2.PlaceholderType.SparseFloatVector
    for row, value in zip(rows, group.placeholders[0].values, strict=True):
        pairs = np.frombuffer(value, dtype=[("i", "<u4"), ("v", "<f4")])
        assert pairs["i"].tolist() == sorted(row)
        assert pairs["v"].tolist() == [np.float32(row[i]) for i in sorted(row)]


def test_texts_go_as_texts():
    asked = ["eine Frage", "こんにちは"]
    assert vectors.texts(asked) == Prepare._prepare_placeholder_str(asked)


def test_a_hybrid_request_says_what_pymilvus_own_says():
    target = Target("docs", "", ("text",))
    heads = [vectors.sub_head(target, Leg("vector", 7, "a > 1")), vectors.sub_head(target, Leg("sparse", 7, "a > 1"))]
    groups = [vectors.floats(ROWS[:1]), vectors.texts(["what"])]
    searches = [vectors.search_request(head, group, 1) for head, group in zip(heads, groups, strict=True)]
    ranker = {"strategy": "rrf", "params": {"k": 60}}
    message = vectors.hybrid_request(vectors.hybrid_head(target, 7, ranker), searches, vectors.guarantee("Bounded"))
    ours = milvus_pb2.HybridSearchRequest.FromString(message)
    legs = [leg(field, data, {}, 7, expr="a > 1") for field, data in (("vector", list(ROWS[:1])), ("sparse", ["what"]))]
    other = Prepare.hybrid_search_request_with_ranker("docs", legs, ranker_of_theirs(), 7, output_fields=["text"])
    assert {p.key: json.loads(p.value) if p.key != "strategy" else p.value for p in ours.rank_params} == {
        p.key: json.loads(p.value) if p.key != "strategy" else p.value for p in other.rank_params
    }
    for mine, wanted in zip(ours.requests, other.requests, strict=True):
        assert mine.placeholder_group == wanted.placeholder_group
        assert (mine.dsl, mine.nq, mine.dsl_type) == (wanted.dsl, wanted.nq, wanted.dsl_type)
        assert params(mine)["anns_field"] == params(wanted)["anns_field"]
        assert params(mine)["topk"] == params(wanted)["topk"]
    assert list(ours.output_fields) == ["text"]
    assert ours.guarantee_timestamp == 2


def ranker_of_theirs():
    # pymilvus 2.5 takes what a ranker says of itself.
    return RRFRanker() if pymilvus.__version__ >= "2.6" else RRFRanker().dict()


def test_the_core_finds_in_it_what_it_needs_to_know():
    head = vectors.search_head(Target("docs", "db", level="Bounded"), Leg("vector", 5))
    message = vectors.search_request(head, vectors.floats(ROWS), 3, vectors.guarantee("Bounded"))
    facts = inspect(named("Search"), message)
    assert (facts.collection, facts.database, facts.guarantee_timestamp) == ("docs", "db", 2)
    assert facts.hedgeable
    assert not facts.opaque
