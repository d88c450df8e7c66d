"""Entries of the log, merged."""

from __future__ import annotations

from typing import Any

import pytest
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus import batch, mutations
from haclient.milvus.shape import Shape, read_shape
from haclient.milvus.status import Flavour
from tests.servers.write_cases import D, array, column, description, meta, schema, schema_field

PARTS = [schema_field("n", D.Array, {"max_capacity": 2}, element_type=D.Int64)]
SHAPE: Shape = read_shape(
    description(
        schema(
            "c",
            schema_field("id", D.Int64, is_primary_key=True),
            schema_field("t", D.VarChar, {"max_length": 10}),
            schema_field("n", D.Int64, nullable=True),
            schema_field("a", D.Array, {"max_capacity": 3}, element_type=D.Int64),
            schema_field("v", D.FloatVector, {"dim": 2}),
            schema_field("b", D.BinaryVector, {"dim": 8}, nullable=True),
            schema_field("h", D.Float16Vector, {"dim": 1}),
            schema_field("s", D.SparseFloatVector),
            enable_dynamic_field=True,
            struct_array_fields=[schema_pb2.StructArrayFieldSchema(name="x", fields=PARTS)],
        )
    )
)


def sparse(index: int) -> bytes:
    return index.to_bytes(4, "little") + b"\0\0\x80\x3f"


def rows(first: int, count: int, **more: Any) -> bytes:
    """Rows whose values say which they are; every second one has nulls."""
    keys = range(first, first + count)
    odd = [key for key in keys if key % 2]
    valid = [key % 2 == 1 for key in keys]
    struct = schema_pb2.FieldData(field_name="x", type=D.ArrayOfStruct)
    struct.struct_arrays.fields.append(column("n", D.Array, [array("long_data", [key, 1]) for key in keys]))
    given = [
        column("id", D.Int64, keys),
        column("t", D.VarChar, [f"t{key}" for key in keys]),
        column("n", D.Int64, odd, valid=valid),
        column("a", D.Array, [array("long_data", [key] * (key % 3)) for key in keys]),
        column("v", D.FloatVector, [float(key + part) for key in keys for part in (0, 1)], 2),
        column("b", D.BinaryVector, bytes(odd), 8, valid=valid),
        column("h", D.Float16Vector, b"".join(bytes([key, 0]) for key in keys), 1),
        column("s", D.SparseFloatVector, [sparse(key) for key in keys], keys[-1] + 1),
        meta(*(b'{"k": %d}' % key for key in keys)),
        struct,
    ]
    request = milvus_pb2.InsertRequest(collection_name="c", fields_data=given, num_rows=count, **more)
    return mutations.rows("Insert", request.SerializeToString(), SHAPE, "", lambda _: ()).message


@pytest.mark.parametrize("sizes", [[1, 2], [3, 1, 4, 2], [1] * 5])
def test_merged_is_as_if_given_at_once(sizes: list[int]) -> None:
    """Every kind of column: rows given in parts and merged are the same bytes as rows given together."""
    parts, first = [], 10
    for size in sizes:
        parts.append(("Upsert", rows(first, size)))
        first += size
    merged = milvus_pb2.UpsertRequest.FromString(batch.merge(parts, "id"))
    assert merged == milvus_pb2.UpsertRequest.FromString(rows(10, sum(sizes)))
    assert batch.keys_of("Upsert", merged.SerializeToString(), "id") == list(range(10, first))


def test_a_single_one_is_left_alone() -> None:
    message = rows(1, 2)
    assert batch.merge([("Insert", message)], "id") is message


def test_columns_in_another_order() -> None:
    """Columns are merged by their names."""
    turned = milvus_pb2.UpsertRequest.FromString(rows(3, 1))
    given = [turned.fields_data[0], *list(turned.fields_data)[:0:-1]]
    other = milvus_pb2.UpsertRequest(num_rows=1, collection_name="c", fields_data=given).SerializeToString()
    assert batch.merge([("Upsert", rows(2, 1)), ("Upsert", other)], "id") == batch.merge(
        [("Upsert", rows(2, 1)), ("Upsert", rows(3, 1))], "id"
    )


def test_mergeable() -> None:
    """Rows of one partition with the same columns; deletes of one partition; never both."""
    one = ("Upsert", rows(1, 1))
    assert batch.mergeable(one, ("Insert", rows(2, 3)))
    assert not batch.mergeable(one, ("Upsert", rows(2, 1, partition_name="p")))
    fewer = milvus_pb2.UpsertRequest.FromString(one[1])
    del fewer.fields_data[2]
    assert not batch.mergeable(one, ("Upsert", fewer.SerializeToString()))
    delete, other = (mutations.delete_keys(SHAPE, [1], name, "")[0] for name in ("", "p"))
    assert batch.mergeable(("Delete", delete), ("Delete", delete))
    assert not batch.mergeable(("Delete", delete), ("Delete", other))
    assert not batch.mergeable(one, ("Delete", delete))


def test_deletes() -> None:
    """All keys, each once; everything else stays."""
    parts = [("Delete", mutations.delete_keys(SHAPE, keys, "p", "db")[0]) for keys in ([3, 1], [2], [1])]
    merged = milvus_pb2.DeleteRequest.FromString(batch.merge(parts, "id"))
    assert merged.expr == "id in [3, 1, 2]"
    assert (merged.partition_name, merged.db_name, merged.collection_name) == ("p", "db", "c")


@pytest.mark.parametrize(("method", "message"), [("Delete", b"\x2a\x06id > 3"), ("Upsert", b""), ("Upsert", b"\xff")])
def test_none_of_the_log(method: str, message: bytes) -> None:
    with pytest.raises(ValueError, match=r"list of keys|without their key|truncated"):
        batch.keys_of(method, message, "id")


def test_inserts_and_upserts_are_the_same_bytes() -> None:
    """Their descriptors agree in everything that an entry of the log has."""
    one, other = (
        {field.number: (field.name, field.type) for field in kind.DESCRIPTOR.fields}
        for kind in (milvus_pb2.InsertRequest, milvus_pb2.UpsertRequest)
    )
    differ = {number for number in one.keys() | other.keys() if one.get(number) != other.get(number)}
    assert differ <= {9, 10, 11}
    message = rows(1, 2)
    assert not {9, 10, 11} & {field.number for field, _ in milvus_pb2.UpsertRequest.FromString(message).ListFields()}


def test_what_replaces_rows() -> None:
    """Upsert on real servers, Insert on Lite."""
    assert [batch.replaces_rows(flavour) for flavour in Flavour] == ["Upsert", "Insert", "Upsert"]
