"""What `haclient.milvus.mutations` takes and refuses, against Milvus Lite; and what Lite does with repeated calls."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.drill.servers.lite import LiteServer
from haclient.milvus import batch, ddl
from haclient.milvus.methods import named
from haclient.milvus.shape import read_shape
from haclient.milvus.status import Flavour
from tests.servers import write_cases as cases
from tests.servers.write_cases import D, Raw, column, creation, meta, schema, schema_field

KEY = schema_field("id", D.Int64, is_primary_key=True)
VECTOR = schema_field("v", D.FloatVector, {"dim": 2})


@pytest.fixture
async def lite(tmp_path: Path) -> AsyncIterator[tuple[LiteServer, Raw]]:
    async with LiteServer(tmp_path / "lite") as server:
        raw = Raw(server.uri)
        try:
            yield server, raw
        finally:
            await raw.aclose()


async def test_table(lite: tuple[LiteServer, Raw]) -> None:
    """What is refused is refused by Lite too, but for what it is known to let through; what is taken is taken.

    Inserts only: they are what it gets.
    """
    await cases.check_table(lite[1], "lite", ("Insert",))


async def test_replaces_rows(lite: tuple[LiteServer, Raw]) -> None:
    """An Insert replaces a row with its dynamic fields and null columns; an Upsert would keep them."""
    raw = lite[1]
    made = schema("c", KEY, schema_field("n", D.Int64, nullable=True), VECTOR, enable_dynamic_field=True)
    assert cases.good(await raw.status("CreateCollection", creation(made)))
    bare = [column("id", D.Int64, [1]), column("v", D.FloatVector, [3.0, 4.0], 2)]
    full = [*bare, column("n", D.Int64, [5]), meta(b'{"old": 1}')]
    assert batch.replaces_rows(Flavour.LITE) == "Insert"
    for method, left in (("Insert", (b"{}", [])), ("Upsert", (b'{"old": 1}', [5]))):
        for given in (full, bare):
            request = milvus_pb2.InsertRequest(collection_name="c", num_rows=1, fields_data=given)
            assert cases.good(await raw.status("Insert" if given is full else method, request))
        found = await cases.query(raw, "c", "id in [1]", "n", "$meta")
        numbers = [] if list(found["n"].valid_data) == [False] else list(found["n"].scalars.long_data.data)
        assert (found["$meta"].scalars.json_data.data[0], numbers) == left


async def test_the_mark_survives(lite: tuple[LiteServer, Raw]) -> None:
    """The mark is kept by Lite, also when it is killed and when other properties are changed; then it writes keys."""
    server, raw = lite
    await cases.check_mark(raw)
    await server.kill()
    await server.start()
    again = Raw(server.uri)
    told = await again.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name="marked"))
    await again.aclose()
    assert read_shape(told).auto_id


async def test_deletes(lite: tuple[LiteServer, Raw]) -> None:
    """Keys with anything in them are written, found by pages, and deleted."""
    await cases.check_deletes(lite[1], rows=300)


async def test_merged_batches(lite: tuple[LiteServer, Raw]) -> None:
    """A merged batch is taken, and holds what its parts held."""
    await cases.check_merge(lite[1], "Insert")


async def test_repeated_calls(lite: tuple[LiteServer, Raw]) -> None:
    """Whatever Lite says to the second of two same calls is known to be no failure."""
    raw = lite[1]
    for name, request in itertools.chain(cases.CALLS, cases.DROPS):
        for repeated in (False, True):
            status = await raw.status(name, request)
            assert cases.good(status) or (repeated and ddl.already(name, status.code, status.reason, Flavour.LITE)), (
                name,
                status,
            )


async def test_differences(lite: tuple[LiteServer, Raw]) -> None:
    """A schema that Lite keeps has no differences, whatever Lite leaves out of its description."""
    made = schema("kept", *cases.FIELDS, schema_field("n", D.Int64, nullable=True), description="text")
    wanted = creation(made, consistency_level=2)
    assert cases.good(await lite[1].status("CreateCollection", wanted))
    told = await lite[1].call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name="kept"))
    assert ddl.differences(wanted, told) == []
    assert ddl.mirrored(named("CreateCollection"))[0] == "log"
