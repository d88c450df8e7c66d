"""What a version is known not to understand."""

from __future__ import annotations

from typing import Any

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus import gates
from haclient.milvus.methods import METHODS, named
from haclient.milvus.shape import InvalidWrite
from haclient.milvus.status import Flavour
from tests.servers.write_cases import D, creation, schema, schema_field

OLD, NEW, LITE = (Flavour.REAL, "2.3.5"), (Flavour.REAL, "3.0.1"), (Flavour.LITE, "3.2.2")
KEY = schema_field("id", D.Int64, is_primary_key=True)
VECTOR = schema_field("v", D.FloatVector, {"dim": 2})


def lacking(name: str, message: bytes) -> set[str]:
    """The clusters with a problem."""
    found = gates.problems(named(name), message, {"old": OLD, "new": NEW, "lite": LITE})
    return {one.split()[1] for one in found}


def create(*fields: Any, **more: Any) -> set[str]:
    return lacking("CreateCollection", creation(schema("c", KEY, *fields, **more)))


@pytest.mark.parametrize(
    ("field", "clusters"),
    [
        (VECTOR, set()),
        (schema_field("j", D.JSON), set()),
        (schema_field("x", D.BinaryVector, {"dim": 8}), {"lite"}),
        (schema_field("x", D.Float16Vector, {"dim": 8}), {"old", "lite"}),
        (schema_field("x", D.Int8Vector, {"dim": 8}), {"old", "lite"}),
        (schema_field("x", D.SparseFloatVector), {"old"}),
        (schema_field("x", D.Geometry), {"old"}),
        (schema_field("x", D.Timestamptz), {"old"}),
        (schema_field("x", D.Text), {"old", "lite"}),
        (schema_field("x", D.Int64, nullable=True), {"old"}),
        (schema_field("x", D.Int64, default_value=schema_pb2.ValueField(long_data=5)), {"old"}),
    ],
)
def test_fields(field: Any, clusters: set[str]) -> None:
    """Types, null and default values are refused where they would be lost, or would kill."""
    assert create(field) == clusters
    added = milvus_pb2.AddCollectionFieldRequest(collection_name="c", schema=field.SerializeToString())
    assert lacking("AddCollectionField", added.SerializeToString()) == {"old", "lite"}


def test_unheard_of() -> None:
    """A type that even haclient does not know is left to the newest."""
    assert create(schema_pb2.FieldSchema(name="x", data_type=99)) == {"old", "lite"}


def test_more() -> None:
    """Functions, several vectors, arrays of structs."""
    bm25 = schema_pb2.FunctionSchema(name="f", type=1, output_field_names=["s"])
    assert create(VECTOR, functions=[bm25]) == {"old"}
    assert create(VECTOR, schema_field("w", D.FloatVector, {"dim": 2})) == {"old"}
    assert create(VECTOR, struct_array_fields=[schema_pb2.StructArrayFieldSchema(name="s")]) == {"old", "lite"}
    function = milvus_pb2.AddCollectionFunctionRequest(functionSchema=bm25).SerializeToString()
    assert lacking("AddCollectionFunction", function) == {"old", "lite"}


@pytest.mark.parametrize(
    ("kind", "clusters"),
    [
        ("HNSW", set()),
        ("AUTOINDEX", set()),
        ("DISKANN", set()),
        ("", {"lite"}),
        ("Trie", {"lite"}),
        ("INVERTED", {"old"}),
        ("BITMAP", {"old", "lite"}),
        ("SPARSE_INVERTED_INDEX", {"old"}),
        ("IVF_RABITQ", {"old"}),
    ],
)
def test_indexes(kind: str, clusters: set[str]) -> None:
    """Kinds of indexes that one cluster would refuse while another one builds them."""
    pairs = [common_pb2.KeyValuePair(key="index_type", value=kind)] if kind else []
    request = milvus_pb2.CreateIndexRequest(collection_name="c", field_name="v", extra_params=pairs)
    assert lacking("CreateIndex", request.SerializeToString()) == clusters


@pytest.mark.parametrize(
    ("name", "clusters"),
    [
        ("DropCollection", set()),
        ("LoadPartitions", {"lite"}),
        ("CreateRole", {"lite"}),
        ("AlterDatabase", {"old"}),
        ("AlterCollectionField", {"old", "lite"}),
        ("TruncateCollection", {"old"}),
        ("CreateRowPolicy", {"old", "lite"}),
    ],
)
def test_calls(name: str, clusters: set[str]) -> None:
    """Calls that a server does not have; their content is not looked at."""
    assert lacking(name, b"\xff") == clusters


def test_words() -> None:
    """Cluster, version, what, and what to do."""
    message = creation(schema("c", KEY, VECTOR, schema_field("g", D.Geometry)))
    assert gates.problems(named("CreateCollection"), message, {"paris": OLD, "rome": NEW}) == [
        "Cluster paris runs Milvus 2.3.5, and the type Geometry of field g needs 2.6: upgrade it, or do without."
    ]


@pytest.mark.parametrize("version", ["", "master-2026", "2.6.0", "12.0"])
def test_assumed_to_understand(version: str) -> None:
    """A version that is not known, or newer."""
    message = creation(schema("c", KEY, VECTOR, schema_field("g", D.Geometry)))
    for flavour in (Flavour.REAL, Flavour.UNKNOWN):
        assert gates.problems(named("CreateCollection"), message, {"a": (flavour, version)}) == []


def test_bare_json() -> None:
    found = gates.bare_json({"old": OLD, "new": NEW, "lite": LITE})
    assert [one.split()[1] for one in found] == ["old", "lite"]


def test_broken() -> None:
    with pytest.raises(InvalidWrite, match="not a CreateCollectionRequest"):
        gates.problems(named("CreateCollection"), b"\xff", {"old": OLD})


def test_every_call_exists() -> None:
    """A misspelt name would gate nothing."""
    known = {one.name for one in METHODS.values()}
    assert known >= gates._CALLS.keys() | gates._READERS.keys()
