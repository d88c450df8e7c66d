"""What milvus-lite does not tell of a collection is made up such that every server takes it."""

from __future__ import annotations

from typing import Any

import pytest
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus import ddl
from haclient.milvus.structure import Index, create_collection, untold

D = schema_pb2.DataType


def described(max_length: str = "") -> bytes:
    told = milvus_pb2.DescribeCollectionResponse(collection_name="docs")
    told.schema.fields.add(name="id", is_primary_key=True, data_type=D.Int64)
    words = told.schema.fields.add(name="words", data_type=D.Array, element_type=D.VarChar)
    told.schema.fields.add(name="numbers", data_type=D.Array, element_type=D.Int64)
    if max_length:
        words.type_params.add(key="max_length", value=max_length)
    return bytes(told.SerializeToString())


@pytest.mark.parametrize(("told", "wanted"), [("", "65535"), ("40", "40")])
def test_texts_in_arrays_have_a_longest_length(told: str, wanted: str) -> None:
    request: Any = milvus_pb2.CreateCollectionRequest.FromString(create_collection(described(told), "").message)
    _, words, numbers = schema_pb2.CollectionSchema.FromString(request.schema).fields
    assert {pair.key: pair.value for pair in words.type_params} == {"max_length": wanted}
    assert not numbers.type_params
    assert ddl.differences(request.SerializeToString(), described(told)) == []


def params(kind: str, metric: str) -> tuple[tuple[str, str], ...]:
    return (("index_type", kind), ("metric_type", metric))


@pytest.mark.parametrize(
    ("told", "made"),
    [
        (params("FLAT", "L2"), params("FLAT", "L2")),
        (params("SPARSE_INVERTED_INDEX", "BM25"), params("SPARSE_INVERTED_INDEX", "BM25")),
        (params("HNSW", "IP"), params("AUTOINDEX", "IP")),
        (params("INVERTED", "NONE"), (("index_type", "INVERTED"),)),
    ],
)
def test_an_index_whose_parameters_are_not_told_is_the_servers_choice(told: Any, made: Any) -> None:
    assert untold(Index("i", "field", told)) == Index("i", "field", made)
