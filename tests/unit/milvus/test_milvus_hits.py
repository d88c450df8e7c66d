"""Hits read lazily are the hits that pymilvus reads, value by value."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.client.search_result import SearchResult
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus.hits import SearchAnswer

TYPES = schema_pb2.DataType
COUNT = 5


def scalar(name, kind, slot, data, valid=()):
    values = (
        {"array_data": {"data": data, "element_type": TYPES.Int64}} if slot == "array_data" else {slot: {"data": data}}
    )
    return schema_pb2.FieldData(type=kind, field_name=name, scalars=values, valid_data=valid)


def answer(*fields, counts=(COUNT,), keys=None, output=(), scores=None) -> bytes:
    total = sum(counts)
    ids = {"str_id": {"data": keys}} if keys else {"int_id": {"data": range(total)}}
    data = schema_pb2.SearchResultData(
        num_queries=len(counts),
        top_k=max(counts, default=0),
        fields_data=fields,
        scores=scores or [1.0 / (i + 1) for i in range(total)],
        ids=ids,
        topks=counts,
        output_fields=output,
        primary_field_name="key",
    )
    return milvus_pb2.SearchResults(results=data).SerializeToString()


def as_pymilvus(message: bytes):
    """All hits as pymilvus reads them."""
    found = SearchResult(milvus_pb2.SearchResults.FromString(message).results)
    return [(hit["key"], hit["distance"], dict(hit["entity"])) for hits in found for hit in hits]


def ours(message: bytes):
    found = SearchAnswer(message)
    return list(zip(found.keys, found.scores, found.rows(), strict=True))


EVERY_SCALAR = (
    scalar("yes", TYPES.Bool, "bool_data", [True, False, True, True, False]),
    scalar("small", TYPES.Int8, "int_data", [-1, 2, 3, 4, 5]),
    scalar("long", TYPES.Int64, "long_data", [2**63 - 1, -(2**63), 0, 1, 2]),
    scalar("float", TYPES.Float, "float_data", [0.1, 1e30, -0.0, 3.5, 1.0]),
    scalar("double", TYPES.Double, "double_data", [0.1, 1e300, -0.0, 3.5, 1.0]),
    scalar("text", TYPES.VarChar, "string_data", ["a", "", "ü", "日本", '"']),
    scalar("json", TYPES.JSON, "json_data", [b"1", b"null", b'{"a": [1.5]}', b'"x"', b"[]"]),
    scalar(
        "list", TYPES.Array, "array_data", [schema_pb2.ScalarField(long_data={"data": [i, i]}) for i in range(COUNT)]
    ),
)


def test_every_scalar_type_is_read_as_pymilvus_does():
    message = answer(*EVERY_SCALAR)
    assert ours(message) == as_pymilvus(message)


@pytest.mark.parametrize("slot", ["string_data", "long_data", "double_data"])
def test_null_cells_are_none(slot):
    data = {"string_data": ["a", "", "b", "", "c"], "long_data": [1, 0, 2, 0, 3], "double_data": [1.0, 0, 2.0, 0, 3.0]}
    kind = {"string_data": TYPES.VarChar, "long_data": TYPES.Int64, "double_data": TYPES.Double}[slot]
    message = answer(scalar("maybe", kind, slot, data[slot], [True, False, True, False, True]))
    assert ours(message) == as_pymilvus(message)
    assert [row["maybe"] for row in SearchAnswer(message).rows()][1] is None


def dynamic(rows) -> schema_pb2.FieldData:
    field = scalar("$meta", TYPES.JSON, "json_data", [json.dumps(row).encode() for row in rows])
    field.is_dynamic = True
    return field


ROWS = [{"page": i, "tags": ["x", "y"], "title": f"t{i}"} for i in range(COUNT)]


def test_dynamic_fields_stand_among_the_others():
    message = answer(*EVERY_SCALAR[:2], dynamic(ROWS))
    assert ours(message) == as_pymilvus(message)
    assert ours(message)[3][2]["title"] == "t3"


def test_of_the_dynamic_fields_only_those_asked_for_come():
    message = answer(*EVERY_SCALAR[:1], dynamic(ROWS), output=["yes", "page"])
    assert ours(message) == as_pymilvus(message)
    assert ours(message)[0][2] == {"yes": True, "page": 0}


@pytest.mark.parametrize("output", [[], ["yes", "$meta"]])
def test_all_dynamic_fields_come_if_none_is_named(output):
    message = answer(*EVERY_SCALAR[:1], dynamic(ROWS), output=output)
    assert ours(message) == as_pymilvus(message)
    assert ours(message)[0][2] == {"yes": True, **ROWS[0]}


def test_without_output_fields_a_hit_is_key_and_score():
    message = answer(keys=["a", "b", "c", "d", "e"])
    assert ours(message) == as_pymilvus(message)
    assert SearchAnswer(message).keys == ["a", "b", "c", "d", "e"]


def test_hits_of_several_questions_come_one_after_the_other():
    found = SearchAnswer(answer(counts=(2, 0, 3)))
    assert found.counts == [2, 0, 3]
    assert found.keys == [0, 1, 2, 3, 4]


def vector_field(**vectors):
    dim = vectors.pop("dim")
    kind = vectors.pop("kind")
    valid = vectors.pop("valid", ())
    return schema_pb2.FieldData(type=kind, field_name="v", vectors={"dim": dim, **vectors}, valid_data=valid)


def test_vectors_are_numpy_rows_with_the_bits_that_pymilvus_gives():
    values = np.random.default_rng(3).normal(size=COUNT * 4).astype(np.float32)
    message = answer(vector_field(dim=4, kind=TYPES.FloatVector, float_vector={"data": values}))
    rows = SearchAnswer(message).vectors("v")
    assert rows.tobytes() == values.tobytes()
    assert [row["v"].tolist() for row in SearchAnswer(message).rows()] == [
        list(e["v"]) for *_, e in as_pymilvus(message)
    ]


def test_null_vectors_take_no_place_in_the_data():
    field = vector_field(
        dim=2, kind=TYPES.FloatVector, float_vector={"data": [1, 2, 3, 4]}, valid=[True, False, True, False, False]
    )
    cells = [row["v"] for row in SearchAnswer(answer(field)).rows()]
    assert [None if cell is None else cell.tolist() for cell in cells] == [[1, 2], None, [3, 4], None, None]


@pytest.mark.parametrize(
    ("slot", "kind", "width"),
    [("binary_vector", TYPES.BinaryVector, 2), ("float16_vector", TYPES.Float16Vector, 32)],
)
def test_vectors_of_bytes_are_cut_by_their_width(slot, kind, width):
    data = bytes(range(width)) * COUNT
    message = answer(vector_field(dim=16, kind=kind, **{slot: data}))
    assert [row["v"] for row in SearchAnswer(message).rows()] == [bytes(range(width))] * COUNT


def test_sparse_vectors_are_mappings():
    row = np.array([(3, 0.5), (7, 1.5)], dtype=[("i", "<u4"), ("v", "<f4")]).tobytes()
    message = answer(
        vector_field(dim=8, kind=TYPES.SparseFloatVector, sparse_float_vector={"contents": [row] * COUNT, "dim": 8})
    )
    assert SearchAnswer(message).rows()[4]["v"] == {3: 0.5, 7: 1.5}
    assert ours(message) == as_pymilvus(message)


def test_counts_that_do_not_fit_the_hits_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        SearchAnswer(answer(counts=(5,), scores=[1.0]))


@given(st.binary(max_size=64))
def test_other_bytes_are_refused_or_have_no_more_hits_than_keys(message):
    try:
        found = SearchAnswer(message)
    except ValueError:
        return
    assert sum(found.counts) == len(found.keys) == len(found.scores)
