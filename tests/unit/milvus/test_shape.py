"""A collection, read from what servers say of it."""

from __future__ import annotations

import pickle

import pytest
from pymilvus.grpc_gen import common_pb2, schema_pb2

from haclient.milvus.shape import MARK, InvalidWrite, read_shape
from tests.servers.write_cases import D, description, schema, schema_field

MARKED = [common_pb2.KeyValuePair(key=MARK, value="true")]


def test_reads_everything() -> None:
    """Name, key, partition key, dynamic flag, functions and aliases are read."""
    made = schema(
        "books",
        schema_field("isbn", D.VarChar, {"max_length": 13}, is_primary_key=True),
        schema_field("shelf", D.Int64, is_partition_key=True),
        schema_field("text", D.VarChar, {"max_length": 100, "enable_analyzer": "true"}),
        schema_field("sparse", D.SparseFloatVector, is_function_output=True),
        enable_dynamic_field=True,
        functions=[schema_pb2.FunctionSchema(name="bm25", type=1, output_field_names=["sparse"])],
    )
    shape = read_shape(description(made, collectionID=7, aliases=["b"], consistency_level=2), "db")
    assert (shape.collection, shape.database, shape.id, shape.aliases) == ("books", "db", 7, ("b",))
    assert (shape.key, shape.key_type, shape.max_length) == ("isbn", "varchar", 13)
    assert (shape.auto_id, shape.native_auto_id, shape.dynamic) == (False, False, True)
    assert (shape.partition_key, shape.computed, shape.consistency_level) == ("shelf", {"sparse"}, 2)
    assert set(shape.fields) == {"isbn", "shelf", "text", "sparse"}


@pytest.mark.parametrize(("native", "marked"), [(False, True), (True, False), (False, False)])
def test_who_makes_the_keys(native: bool, marked: bool) -> None:
    """The mark says that haclient does; the schema's own flag says that the server does."""
    made = schema("c", schema_field("id", D.Int64, is_primary_key=True, autoID=native))
    shape = read_shape(description(made, properties=MARKED if marked else []))
    assert (shape.auto_id, shape.native_auto_id) == (native or marked, native)
    assert (shape.key_type, shape.max_length) == ("int64", 0)


@pytest.mark.parametrize("message", [b"\xff\xff", b"", description(schema("c", schema_field("v", D.FloatVector)))])
def test_no_description(message: bytes) -> None:
    """Bytes that are none, or a schema without a key, are refused."""
    with pytest.raises(ValueError, match=r"not a DescribeCollectionResponse|no primary key"):
        read_shape(message)


def test_refusal_survives_pickling() -> None:
    """Code and text of a refusal are what it is made of."""
    error = pickle.loads(pickle.dumps(InvalidWrite(1100, "no")))
    assert (error.code, error.reason, str(error)) == (1100, "no", "no")
