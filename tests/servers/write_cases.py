"""Rows right and wrong, with what each kind of server makes of them: one table for unit tests and for real servers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import orjson
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus import batch, ddl, expressions, mutations
from haclient.milvus.methods import named
from haclient.milvus.shape import Shape, read_shape
from haclient.milvus.status import Flavour

D = schema_pb2.DataType
SLOTS = {
    D.Bool: "bool_data",
    D.Int8: "int_data",
    D.Int16: "int_data",
    D.Int32: "int_data",
    D.Int64: "long_data",
    D.Float: "float_data",
    D.Double: "double_data",
    D.VarChar: "string_data",
    D.JSON: "json_data",
    D.Array: "array_data",
}
VECTORS = {
    D.FloatVector: "float_vector",
    D.BinaryVector: "binary_vector",
    D.Float16Vector: "float16_vector",
    D.BFloat16Vector: "bfloat16_vector",
    D.Int8Vector: "int8_vector",
}


def schema_field(name: str, kind: int, params: Mapping[str, Any] | None = None, **more: Any) -> Any:
    pairs = [common_pb2.KeyValuePair(key=key, value=str(value)) for key, value in (params or {}).items()]
    return schema_pb2.FieldSchema(name=name, data_type=kind, type_params=pairs, **more)


#: Every type that both 2.3.5 and Lite know.
FIELDS = (
    schema_field("id", D.Int64, is_primary_key=True),
    schema_field("b", D.Bool),
    schema_field("i8", D.Int8),
    schema_field("i16", D.Int16),
    schema_field("i32", D.Int32),
    schema_field("f", D.Float),
    schema_field("d", D.Double),
    schema_field("t", D.VarChar, {"max_length": 10}),
    schema_field("j", D.JSON),
    schema_field("ai", D.Array, {"max_capacity": 3}, element_type=D.Int64),
    schema_field("at", D.Array, {"max_capacity": 2, "max_length": 4}, element_type=D.VarChar),
    schema_field("v", D.FloatVector, {"dim": 2}),
)


def schema(name: str, *fields: Any, **more: Any) -> Any:
    return schema_pb2.CollectionSchema(name=name, fields=fields or FIELDS, **more)


def description(made: Any, **more: Any) -> bytes:
    """DescribeCollection's answer for a schema."""
    reply = milvus_pb2.DescribeCollectionResponse(schema=made, collection_name=made.name, **more)
    return bytes(reply.SerializeToString())


def creation(made: Any, **more: Any) -> bytes:
    """A CreateCollectionRequest."""
    request = milvus_pb2.CreateCollectionRequest(collection_name=made.name, shards_num=1, **more)
    request.schema = made.SerializeToString()
    return bytes(request.SerializeToString())


def column(name: str, kind: int, values: Any, dim: int = 0, *, valid: Any = (), dynamic: bool = False) -> Any:
    made = schema_pb2.FieldData(type=kind, field_name=name, is_dynamic=dynamic, valid_data=valid)
    if kind == D.SparseFloatVector:
        made.vectors.sparse_float_vector.contents.extend(values)
        made.vectors.sparse_float_vector.dim = made.vectors.dim = dim
    elif kind == D.FloatVector:
        made.vectors.dim = dim
        made.vectors.float_vector.data.extend(values)
    elif kind in VECTORS:
        made.vectors.dim = dim
        setattr(made.vectors, VECTORS[kind], values)
    else:
        values_of = getattr(made.scalars, SLOTS[kind])
        values_of.SetInParent()
        values_of.data.extend(values)
    return made


def array(slot: str, values: Any) -> Any:
    row = schema_pb2.ScalarField()
    if slot:
        getattr(row, slot).SetInParent()
        getattr(row, slot).data.extend(values)
    return row


def meta(*values: bytes, name: str = "$meta", dynamic: bool = True) -> Any:
    return column(name, D.JSON, values, dynamic=dynamic)


def columns(**replaced: Any) -> list[Any]:
    """Two good rows, with columns replaced, left out (None) or added."""
    good = {
        "id": column("id", D.Int64, [1, 2]),
        "b": column("b", D.Bool, [True, False]),
        "i8": column("i8", D.Int8, [-128, 127]),
        "i16": column("i16", D.Int16, [1, 2]),
        "i32": column("i32", D.Int32, [1, 2]),
        "f": column("f", D.Float, [1.5, -2.5]),
        "d": column("d", D.Double, [1.5, -2.5]),
        "t": column("t", D.VarChar, ["x" * 10, ""]),
        "j": column("j", D.JSON, [b'{"a": 1}', b"{}"]),
        "ai": column("ai", D.Array, [array("long_data", [1, 2]), array("long_data", [])]),
        "at": column("at", D.Array, [array("string_data", ["a"]), array("string_data", ["b", "c"])]),
        "v": column("v", D.FloatVector, [1.0, 2.0, 3.0, 4.0], 2),
    }
    good["ai"].scalars.array_data.element_type = D.Int64
    good["at"].scalars.array_data.element_type = D.VarChar
    return [one for one in {**good, **replaced}.values() if one is not None]


def insert(method: str, given: list[Any], count: int = 2, collection: str = "rows", **more: Any) -> bytes:
    kind = milvus_pb2.UpsertRequest if method == "Upsert" else milvus_pb2.InsertRequest
    return bytes(kind(collection_name=collection, fields_data=given, num_rows=count, **more).SerializeToString())


@dataclass(frozen=True)
class Case:
    """Rows, and what is made of them.

    Attributes:
        name: Of the test.
        given: The columns.
        count: ``num_rows``.
        refused: Part of the text of the refusal, "" if they are taken.
        lenient: Servers that take what is refused: ``real`` (2.3.5), ``lite``; ``dies`` is not sent to 2.3.5 at all.
        dynamic: The collection has dynamic fields.
    """

    name: str
    given: list[Any]
    refused: str = ""
    count: int = 2
    lenient: frozenset[str] = field(default_factory=frozenset)
    dynamic: bool = False


def _case(name: str, given: list[Any], refused: str = "", lenient: str = "", **more: Any) -> Case:
    return Case(name, given, refused, lenient=frozenset(lenient.split()), **more)


def _changed(name: str, change: Callable[[Any], None]) -> list[Any]:
    given = columns()
    change(next(one for one in given if one.field_name == name))
    return given


def _typed(kind: int) -> Callable[[Any], None]:
    return lambda one: setattr(one, "type", kind)


def _dim(dim: int) -> Callable[[Any], None]:
    return lambda one: setattr(one.vectors, "dim", dim)


_BIG = b'{"a": "' + b"x" * 65_536 + b'"}'

CASES = [
    _case("good", columns()),
    _case("in another order", columns()[::-1]),
    _case("without a column", columns(t=None), "fieldSchema(t) has no corresponding fieldData"),
    _case("without a vector", columns(v=None), "fieldSchema(v) has no corresponding fieldData"),
    _case("without the key", columns(id=None), "fieldSchema(id) has no corresponding fieldData"),
    _case("unknown column", columns(z=column("z", D.Int64, [1, 2])), "fieldName z not exist"),
    _case("column twice", columns(z=column("t", D.VarChar, ["", ""])), "duplicated field t", "lite"),
    _case("wrong values", columns(i32=column("i32", D.Int64, [1, 2])), "need int array", "real lite"),
    _case("wrong values for a text", columns(t=column("t", D.Int64, [1, 2])), "need string array"),
    _case("float for a double", columns(d=column("d", D.Float, [1, 2])), "need float64(double) array", "real lite"),
    _case("wrong type, right values", _changed("t", _typed(D.String))),
    _case("no type", _changed("t", _typed(0))),
    _case("another field's id", _changed("t", lambda one: setattr(one, "field_id", 999))),
    _case("dynamic flag on a field", _changed("j", lambda one: setattr(one, "is_dynamic", True))),
    _case("too few values", columns(t=column("t", D.VarChar, ["a"])), "the num_rows (1) of field (t)"),
    _case("too many values", columns(b=column("b", D.Bool, [True] * 3)), "the num_rows (3) of field (b)"),
    _case("no values", columns(t=column("t", D.VarChar, [])), "the num_rows (0) of field (t)"),
    _case("too few vectors", columns(v=column("v", D.FloatVector, [1, 2], 2)), "the num_rows (1) of field (v)"),
    _case("half a vector", columns(v=column("v", D.FloatVector, [1, 2, 3], 2)), "should divide the dim(2)"),
    _case("dimension left out", _changed("v", _dim(0))),
    _case("dimension too small", _changed("v", _dim(1)), "the dim (1) of field data(v)", "real"),
    _case("dimension too big", _changed("v", _dim(4)), "the dim (4) of field data(v)", "dies"),
    _case("no rows said", columns(), "num_rows should be greater than 0", "lite", count=0),
    _case("no rows", [], "num_rows should be greater than 0", "lite", count=0),
    _case("rows without columns", [], "fieldSchema(id) has no"),
    _case("more rows said", columns(), "is not equal to passed num_rows (3)", count=3),
    _case("text too long", columns(t=column("t", D.VarChar, ["x" * 11, ""])), "the length (11) of 0th string"),
    _case(
        "text of too many bytes",
        columns(t=column("t", D.VarChar, ["", "ü" * 6])),
        "the length (12) of 1th string",
        "lite",
    ),
    _case("int8 out of range", columns(i8=column("i8", D.Int8, [1, 128])), "the 1th element (128) out of range"),
    _case("int16 out of range", columns(i16=column("i16", D.Int16, [-40000, 1])), "(-40000) out of range"),
    _case("NaN in a vector", columns(v=column("v", D.FloatVector, [1, math.nan, 1, 1], 2)), "value 'NaN'", "lite"),
    _case("infinity in a vector", columns(v=column("v", D.FloatVector, [1, 1, 1, -math.inf], 2)), "'-Inf'", "lite"),
    _case("NaN in a float", columns(f=column("f", D.Float, [math.nan, 1])), "value 'NaN'", "real lite"),
    _case("infinity in a double", columns(d=column("d", D.Double, [math.inf, 1])), "value '+Inf'", "real lite"),
    _case(
        "null where none may be",
        _changed("i32", lambda one: one.valid_data.extend([True, False])),
        "valid_data",
        "real",
    ),
    _case("valid_data for nothing", _changed("i32", lambda one: one.valid_data.extend([True, True]))),
    _case("broken JSON", columns(j=column("j", D.JSON, [b"{}", b'{"a":'])), "row 1: no JSON", "lite"),
    _case("JSON too long", columns(j=column("j", D.JSON, [_BIG, b"{}"])), "json field (j) exceeds max length", "lite"),
    _case(
        "array too long",
        columns(ai=column("ai", D.Array, [array("long_data", [1] * 4)] * 2)),
        "the length (4) of 0th array exceeds max capacity (3)",
        "real",  # an Upsert is not checked
    ),
    _case("array without element type", columns(ai=column("ai", D.Array, [array("long_data", [1])] * 2))),
    _case(
        "array of other values",
        columns(ai=column("ai", D.Array, [array("long_data", [1]), array("int_data", [1])])),
        "expected=int64 array][actual=*schemapb.ScalarField_IntData array",
        "lite",
    ),
    _case(
        "array of long texts",
        columns(at=column("at", D.Array, [array("string_data", ["x" * 5])] * 2)),
        "(5)",
        "real lite",
    ),
    _case("array rows without values", columns(ai=column("ai", D.Array, [array("", []), array("", [])]))),
    _case("highest key", columns(id=column("id", D.Int64, [2**63 - 1, 1])), "servers cannot list", "real lite"),
    _case("lowest key", columns(id=column("id", D.Int64, [-(2**63), 1])), "servers cannot list", "real lite"),
    _case("key twice", columns(id=column("id", D.Int64, [5, 5]))),
    _case("dynamic fields where none are", columns(z=meta(b"{}", b"{}")), "fieldName $meta not exist", "lite"),
    _case("dynamic fields", columns(z=meta(b'{"x": 1}', b"{}")), dynamic=True),
    _case("no dynamic fields", columns(), dynamic=True),
    _case("dynamic fields by another name", columns(z=meta(b'{"x": 1}', b"{}", name="")), dynamic=True),
    _case(
        "dynamic fields without flag",
        columns(z=meta(b"{}", b"{}", dynamic=False)),
        "$meta not exist",
        "lite",
        dynamic=True,
    ),
    _case(
        "two columns of dynamic fields",
        columns(y=meta(b"{}", b"{}"), z=meta(b"{}", b"{}")),
        "duplicated",
        "lite",
        dynamic=True,
    ),
    _case("broken dynamic fields", columns(z=meta(b'{"x":', b"{}")), "row 0: no JSON", "lite", dynamic=True),
    _case("a list of dynamic fields", columns(z=meta(b"[1]", b"{}")), "into an object", "lite", dynamic=True),
    _case("null as dynamic fields", columns(z=meta(b"null", b"{}")), dynamic=True),
    _case(
        "a field of the schema as dynamic",
        columns(z=meta(b'{"t": 1}', b"{}")),
        "static field name: t",
        "real",
        dynamic=True,
    ),
    _case("$meta in itself", columns(z=meta(b'{"$meta": 1}', b"{}")), "cannot set json key", "lite", dynamic=True),
    _case("too few dynamic fields", columns(z=meta(b"{}")), "the num_rows (1) of field ($meta)", dynamic=True),
    _case(
        "dynamic fields too long",
        columns(z=meta(_BIG, b"{}")),
        "dynamic field exceeds max length",
        "lite",
        dynamic=True,
    ),
    _case(
        "text as dynamic fields",
        columns(z=column("$meta", D.VarChar, ["{}"] * 2, dynamic=True)),
        "need json",
        "lite",
        dynamic=True,
    ),
]


class Raw:
    """One server, asked in bytes."""

    def __init__(self, uri: str) -> None:
        self._channel = grpc.aio.insecure_channel(uri.removeprefix("http://"))

    async def call(self, method: str, message: Any) -> bytes:
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return bytes(await self._channel.unary_unary(named(method).path)(body, timeout=60))

    async def status(self, method: str, message: Any) -> Any:
        """The ``common.Status`` of the answer."""
        reply = await self.call(method, message)
        if named(method).status == 0:
            return common_pb2.Status.FromString(reply)
        # Every other answer here has it first, as MutationResult does.
        return milvus_pb2.MutationResult.FromString(reply).status

    async def aclose(self) -> None:
        await self._channel.close()


# What real servers make of it.


def good(status: Any) -> bool:
    return not status.code and not status.error_code


async def check_table(raw: Raw, server: str, methods: tuple[str, ...]) -> None:
    """Send every case: in the form of the log what is taken, as it was given what is refused."""
    for name, dynamic in (("rows", False), ("dynamic_rows", True)):
        made = schema(name, enable_dynamic_field=dynamic)
        assert good(await raw.status("CreateCollection", creation(made)))
        told = await raw.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name=name))
        shape = read_shape(told)
        assert set(shape.fields) == {one.name for one in FIELDS}
        for case in (one for one in CASES if one.dynamic is dynamic):
            for method in methods:
                if case.refused and "dies" in case.lenient and server == "real":
                    continue
                given = insert(method, case.given, case.count, name)
                if case.refused:
                    status = await raw.status(method, given)
                    let_through = server in case.lenient or "dies" in case.lenient
                    assert not good(status) or let_through, (case.name, method)
                else:
                    rows = mutations.rows(method, given, shape, "", lambda _: ())
                    status = await raw.status(method, rows.message)
                    assert good(status), (case.name, method, status.reason)


async def prepare(raw: Raw, made: Any, **more: Any) -> Shape:
    """Create a collection, index its vector and load it."""
    name = made.name
    assert good(await raw.status("CreateCollection", ddl.create(creation(made, **more))))
    index = milvus_pb2.CreateIndexRequest(collection_name=name, field_name="v")
    for key, value in (("index_type", "FLAT"), ("metric_type", "L2")):
        index.extra_params.add(key=key, value=value)
    assert good(await raw.status("CreateIndex", index))
    load = milvus_pb2.LoadCollectionRequest(collection_name=name, replica_number=1)
    assert good(await raw.status("LoadCollection", load))
    told = await raw.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name=name))
    return read_shape(told)


async def query(raw: Raw, collection: str, expression: str, *output: str) -> dict[str, Any]:
    """The columns of a Strong query, by name."""
    request = milvus_pb2.QueryRequest(collection_name=collection, expr=expression, output_fields=output)
    reply = milvus_pb2.QueryResults.FromString(await raw.call("Query", request))
    assert good(reply.status), reply.status
    return {one.field_name: one for one in reply.fields_data}


async def check_mark(raw: Raw) -> None:
    """Both kinds of keys: the server keeps the mark, and takes the keys that haclient makes."""
    vector = schema_field("v", D.FloatVector, {"dim": 2})
    for name, kind, params in (("marked", D.Int64, {}), ("marked_text", D.VarChar, {"max_length": 20})):
        made = schema(name, schema_field("id", kind, params, is_primary_key=True, autoID=True), vector, autoID=True)
        shape = await prepare(raw, made)
        assert (shape.auto_id, shape.native_auto_id) == (True, False)
        ttl = common_pb2.KeyValuePair(key="collection.ttl.seconds", value="1000000")
        change = milvus_pb2.AlterCollectionRequest(collection_name=name, properties=[ttl])
        assert good(await raw.status("AlterCollection", change))
        told = await raw.call("DescribeCollection", milvus_pb2.DescribeCollectionRequest(collection_name=name))
        assert read_shape(told).auto_id
        assert ddl.differences(ddl.create(creation(made)), told) == []
        given = insert("Insert", [column("v", D.FloatVector, [1.0, 2.0, 3.0, 4.0], 2)], 2, name)
        rows = mutations.rows("Insert", given, shape, "", lambda count: range(2**62, 2**62 + count))
        # Once inserted, once more as after a lost answer.
        for method in (rows.method, batch.replaces_rows(Flavour.LITE if not shape.id else Flavour.REAL)):
            assert good(await raw.status(method, rows.message))
        listed = expressions.in_list("id", rows.keys)
        found = (await query(raw, name, listed, "id"))["id"].scalars
        assert sorted([*found.long_data.data, *found.string_data.data]) == list(rows.keys)


#: Keys that literals could get wrong.
AWKWARD = [
    "",
    "'",
    '"',
    "\\",
    "a\\",
    '\\"',
    r"\u0041",
    r"\\u0041",
    r"\x41",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "{x}",
    "]",
    "%_",
    "é",
    "中",
    "😀",
    "\\中",
]


async def check_deletes(raw: Raw, rows: int) -> None:
    """Write texts and numbers as keys; resolve an expression by pages; delete exactly these keys."""
    vector = schema_field("v", D.FloatVector, {"dim": 2})
    texts = await prepare(
        raw, schema("texts", schema_field("id", D.VarChar, {"max_length": 20}, is_primary_key=True), vector)
    )
    numbers = await prepare(raw, schema("numbers", schema_field("id", D.Int64, is_primary_key=True), vector))
    wanted: list[tuple[Shape, list[Any]]] = [
        (texts, AWKWARD),
        (numbers, [*range(-rows, rows), 2**63 - 2, -(2**63) + 1]),
    ]
    for shape, keys in wanted:
        kind = D.VarChar if shape is texts else D.Int64
        given = [column("id", kind, keys), column("v", D.FloatVector, [1.0, 2.0] * len(keys), 2)]
        message = mutations.rows(
            "Upsert", insert("Upsert", given, len(keys), shape.collection), shape, "", lambda _: ()
        ).message
        assert good(await raw.status("Upsert", message))
        assert sorted(await pages(raw, shape, 'id >= ""' if shape is texts else f"id > -{rows} or id < 0")) == sorted(
            keys
        )
        kept, gone = keys[::2], keys[1::2]
        for request in mutations.delete_keys(shape, gone, "", ""):
            assert good(await raw.status("Delete", request))
        assert sorted(
            await pages(raw, shape, 'id >= ""' if shape is texts else "id >= -9223372036854775807")
        ) == sorted(kept)


async def pages(raw: Raw, shape: Shape, expression: str) -> list[Any]:
    """All keys of an expression, page by page."""
    found: list[Any] = []
    while True:
        request = mutations.keys_query(shape, expression, "", "", found[-1] if found else None)
        reply = await raw.call("Query", request)
        status = milvus_pb2.QueryResults.FromString(reply).status
        assert good(status), status
        page = mutations.keys_of_reply(reply, shape)
        if not page:
            return found
        found += page


async def check_merge(raw: Raw, method: str) -> None:
    """Merge rows that came one by one, and read them back."""
    fields = [
        schema_field("id", D.Int64, is_primary_key=True),
        schema_field("t", D.VarChar, {"max_length": 9}),
        *FIELDS[9:],
    ]
    shape = await prepare(raw, schema("merged", *fields, enable_dynamic_field=True))
    entries = []
    for key in range(20):
        given = [
            column("id", D.Int64, [key]),
            column("t", D.VarChar, [f"t{key}"]),
            column("ai", D.Array, [array("long_data", [key] * (key % 3))]),
            column("at", D.Array, [array("string_data", ["x"])]),
            column("v", D.FloatVector, [float(key), 1.0], 2),
            meta(b'{"k": %d}' % key),
        ]
        rows = mutations.rows("Upsert", insert("Upsert", given, 1, "merged"), shape, "", lambda _: ())
        entries.append((rows.method, rows.message))
    assert good(await raw.status(method, batch.merge(entries, "id")))
    found = await query(raw, "merged", "id >= 0", "id", "t", "ai", "v", "$meta")
    keys = list(found["id"].scalars.long_data.data)
    assert sorted(keys) == list(range(20))
    assert list(found["t"].scalars.string_data.data) == [f"t{key}" for key in keys]
    assert list(found["v"].vectors.float_vector.data)[::2] == [float(key) for key in keys]
    assert [list(row.long_data.data) for row in found["ai"].scalars.array_data.data] == [
        [key] * (key % 3) for key in keys
    ]
    assert [orjson.loads(one) for one in found["$meta"].scalars.json_data.data] == [{"k": key} for key in keys]


_INDEX = milvus_pb2.CreateIndexRequest(
    collection_name="again",
    field_name="v",
    index_name="ix",
    extra_params=[
        common_pb2.KeyValuePair(key=key, value=value) for key, value in (("index_type", "FLAT"), ("metric_type", "L2"))
    ],
)
_AGAIN = {"collection_name": "again"}
#: Calls in an order in which every one is carried out; the second of each finds it done.
CALLS = [
    ("CreateCollection", creation(schema("again"))),
    ("CreatePartition", milvus_pb2.CreatePartitionRequest(partition_name="p", **_AGAIN)),
    ("CreateAlias", milvus_pb2.CreateAliasRequest(alias="alias_of_again", **_AGAIN)),
    ("CreateIndex", _INDEX),
    ("LoadCollection", milvus_pb2.LoadCollectionRequest(replica_number=1, **_AGAIN)),
    ("CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name="again")),
]
DROPS = [
    ("ReleaseCollection", milvus_pb2.ReleaseCollectionRequest(**_AGAIN)),
    ("DropIndex", milvus_pb2.DropIndexRequest(field_name="v", index_name="ix", **_AGAIN)),
    ("DropAlias", milvus_pb2.DropAliasRequest(alias="alias_of_again")),
    ("DropPartition", milvus_pb2.DropPartitionRequest(partition_name="p", **_AGAIN)),
    ("RenameCollection", milvus_pb2.RenameCollectionRequest(oldName="again", newName="renamed")),
    ("DropCollection", milvus_pb2.DropCollectionRequest(collection_name="renamed")),
    ("DropDatabase", milvus_pb2.DropDatabaseRequest(db_name="again")),
]
