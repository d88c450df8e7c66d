"""What `haclient.milvus.mutations` takes and refuses, against Milvus 2.3.5; and what 2.3.5 does with repeated calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.drill.servers.milvus import StandaloneServer
from haclient.milvus import batch, ddl, gates, mutations
from haclient.milvus.methods import named
from haclient.milvus.shape import read_shape
from haclient.milvus.status import Flavour
from tests.servers import write_cases as cases
from tests.servers.write_cases import D, Raw, column, creation, insert, meta, schema, schema_field

pytestmark = [pytest.mark.live, pytest.mark.slow]

KEY = schema_field("id", D.Int64, is_primary_key=True)
VECTOR = schema_field("v", D.FloatVector, {"dim": 2})
MADE = (
    *("rows", "dynamic_rows", "marked", "marked_text", "texts", "numbers", "merged", "c"),
    *("again", "renamed", "lossy", "told", "one_many"),
)


@pytest.fixture
async def real(standalone: StandaloneServer) -> AsyncIterator[Raw]:
    raw = Raw(standalone.uri)
    try:
        yield raw
    finally:
        for name in MADE:
            await raw.status("DropCollection", milvus_pb2.DropCollectionRequest(collection_name=name))
        await raw.aclose()


async def test_table(real: Raw) -> None:
    """What is refused is refused by 2.3.5 too, but for what it is known to let through; what is taken is taken."""
    await cases.check_table(real, "real", ("Insert", "Upsert"))


async def test_upsert_replaces_rows(real: Raw) -> None:
    """An Upsert replaces a row with its dynamic fields, a second Insert of a key adds a row."""
    await cases.prepare(real, schema("c", KEY, VECTOR, enable_dynamic_field=True))
    bare = [column("id", D.Int64, [1]), column("v", D.FloatVector, [3.0, 4.0], 2)]
    assert batch.replaces_rows(Flavour.REAL) == "Upsert"
    assert cases.good(await real.status("Insert", insert("Insert", [*bare, meta(b'{"old": 1}')], 1, "c")))
    assert cases.good(await real.status("Upsert", insert("Upsert", bare, 1, "c")))
    found = await cases.query(real, "c", "id in [1]", "$meta")
    assert list(found["$meta"].scalars.json_data.data) == [b"{}"]
    assert cases.good(await real.status("Insert", insert("Insert", bare, 1, "c")))
    assert list((await cases.query(real, "c", "", "count(*)"))["count(*)"].scalars.long_data.data) == [2]


async def test_the_mark_survives(real: Raw) -> None:
    """The mark is kept, also when other properties are changed; then the server takes the keys that haclient makes."""
    await cases.check_mark(real)


async def test_deletes(real: Raw) -> None:
    """Keys with anything in them are written, found by pages, and deleted; more than fit on a page."""
    await cases.check_deletes(real, rows=9_000)


async def test_merged_batches(real: Raw) -> None:
    """A merged batch is taken, and holds what its parts held."""
    await cases.check_merge(real, "Upsert")


async def test_answers(real: Raw) -> None:
    """The answers that haclient makes are those of a real server, but for the timestamp."""
    shape = await cases.prepare(
        real, schema("told", schema_field("id", D.VarChar, {"max_length": 9}, is_primary_key=True), VECTOR)
    )
    given = [column("id", D.VarChar, ["a", "b"]), column("v", D.FloatVector, [1.0, 2.0, 3.0, 4.0], 2)]
    requests: list[tuple[str, bytes, list[Any]]] = [
        ("Insert", insert("Insert", given, 2, "told"), ["a", "b"]),
        ("Upsert", insert("Upsert", given, 2, "told"), ["a", "b"]),
        ("Delete", mutations.delete_keys(shape, ["a", "none"], "", "")[0], ["a", "none"]),
    ]
    for method, message, keys in requests:
        told = milvus_pb2.MutationResult.FromString(await real.call(method, message))
        assert mutations.answer(method, keys, 2, told.timestamp) == told.SerializeToString()


async def test_repeated_calls(real: Raw) -> None:
    """Whatever 2.3.5 says to the second of two same calls is known to be no failure."""
    role = milvus_pb2.CreateRoleRequest(entity=milvus_pb2.RoleEntity(name="again"))
    user = milvus_pb2.CreateCredentialRequest(username="again", password="cHdkMTIzNDU2")
    made = [
        ("CreateRole", role),
        ("CreateCredential", user),
        ("OperateUserRole", milvus_pb2.OperateUserRoleRequest(username="again", role_name="again", type=0)),
        ("OperateUserRole", milvus_pb2.OperateUserRoleRequest(username="again", role_name="again", type=1)),
        ("DropRole", milvus_pb2.DropRoleRequest(role_name="again")),
        ("DeleteCredential", milvus_pb2.DeleteCredentialRequest(username="again")),
        ("CreateResourceGroup", milvus_pb2.CreateResourceGroupRequest(resource_group="again")),
        ("DropResourceGroup", milvus_pb2.DropResourceGroupRequest(resource_group="again")),
    ]
    for name, request in (*cases.CALLS, *cases.DROPS, *made):
        for repeated in (False, True):
            status = await real.status(name, request)
            done = repeated and ddl.already(name, status.code, status.reason, Flavour.REAL)
            assert cases.good(status) or done, (name, status)


LOSSY = [
    schema_field("x", D.Int64, nullable=True),
    schema_field("x", D.Int64, default_value=schema_pb2.ValueField(long_data=5)),
    schema_field("x", D.SparseFloatVector),
    schema_field("x", D.Geometry),
]


@pytest.mark.parametrize("field", LOSSY, ids=["nullable", "default", "sparse", "geometry"])
async def test_what_2_3_5_loses_is_gated(real: Raw, field: Any) -> None:
    """A schema with more than 2.3.5 knows is accepted by it, so it is gated; a loss shows in its description."""
    wanted = creation(schema("lossy", KEY, field, VECTOR))
    assert gates.problems(named("CreateCollection"), wanted, {"real": (Flavour.REAL, "2.3.5")})
    assert cases.good(await real.status("CreateCollection", wanted))
    told = await real.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name="lossy"))
    kept = next(one for one in read_shape(told).schema.fields if one.name == "x")
    lost = field.nullable and not kept.nullable
    assert bool(ddl.differences(wanted, told)) == lost


async def test_a_function_is_lost(real: Raw) -> None:
    """BM25 is dropped without a word: the difference is told."""
    text = schema_field("t", D.VarChar, {"max_length": 9, "enable_analyzer": "true"})
    function = schema_pb2.FunctionSchema(name="f", type=1, input_field_names=["t"], output_field_names=["s"])
    wanted = creation(schema("lossy", KEY, text, schema_field("s", D.SparseFloatVector), functions=[function]))
    assert cases.good(await real.status("CreateCollection", wanted))
    told = await real.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name="lossy"))
    assert ddl.differences(wanted, told) == ["function f is missing instead of BM25 of t in s"]


async def test_a_whole_schema_has_no_differences(real: Raw) -> None:
    """What 2.3.5 knows it keeps, and describes as it was wanted."""
    wanted = creation(schema("lossy", enable_dynamic_field=True, description="text"), consistency_level=2)
    assert cases.good(await real.status("CreateCollection", wanted))
    told = await real.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name="lossy"))
    assert ddl.differences(wanted, told) == []
    assert ddl.existing_differences(told, told) == []


async def test_rows_of_bytes(real: Raw) -> None:
    """Binary vectors merged from several entries come back as they were given."""
    shape = read_shape(await _binary(real))
    entries = []
    for key in range(5):
        given = [column("id", D.Int64, [key]), column("v", D.BinaryVector, bytes([key, 255 - key]))]
        rows = mutations.rows("Upsert", insert("Upsert", given, 1, "one_many"), shape, "", lambda _: ())
        entries.append((rows.method, rows.message))
    assert cases.good(await real.status("Upsert", batch.merge(entries, "id")))
    found = await cases.query(real, "one_many", "id >= 0", "id", "v")
    keys = found["id"].scalars.long_data.data
    assert found["v"].vectors.binary_vector == b"".join(bytes([key, 255 - key]) for key in keys)


async def _binary(real: Raw) -> bytes:
    """Make a collection of binary vectors, and describe it."""
    made = schema("one_many", KEY, schema_field("v", D.BinaryVector, {"dim": 16}))
    assert cases.good(await real.status("CreateCollection", creation(made)))
    pairs = [("index_type", "BIN_FLAT"), ("metric_type", "HAMMING")]
    params = [common_pb2.KeyValuePair(key=key, value=value) for key, value in pairs]
    index = milvus_pb2.CreateIndexRequest(collection_name="one_many", field_name="v", extra_params=params)
    assert cases.good(await real.status("CreateIndex", index))
    load = milvus_pb2.LoadCollectionRequest(collection_name="one_many", replica_number=1)
    assert cases.good(await real.status("LoadCollection", load))
    return await real.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name="one_many"))
