"""Columns of every type, as servers answer with them, and as they are to be written."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus.shape import DYNAMIC, Shape, read_shape

D = schema_pb2.DataType
DIM = 16

I32 = st.integers(-(2**31), 2**31 - 1)
F32 = st.floats(width=32)
TEXT = st.text(max_size=8)
ELEMENTS: dict[int, tuple[str, st.SearchStrategy[Any]]] = {
    D.Bool: ("bool_data", st.booleans()),
    D.Int8: ("int_data", st.integers(-128, 127)),
    D.Int16: ("int_data", st.integers(-(2**15), 2**15 - 1)),
    D.Int32: ("int_data", I32),
    D.Int64: ("long_data", st.integers(-(2**63), 2**63 - 1)),
    D.Float: ("float_data", F32),
    D.Double: ("double_data", st.floats()),
    D.VarChar: ("string_data", TEXT),
}
SCALARS = ELEMENTS | {
    D.String: ("string_data", TEXT),
    D.Text: ("string_data", TEXT),
    D.JSON: ("json_data", st.sampled_from([b"{}", b"null", b'{"a": 1.50}', b'{"a":1.5}', b'"\xc3\xa9"', b"\xff", b""])),
    D.Geometry: ("geometry_wkt_data", st.sampled_from(["POINT (1 2)", "LINESTRING (0 0, 1 1)"])),
    D.Timestamptz: ("string_data", st.sampled_from(["2025-01-02T03:04:05Z", "2025-01-02T03:04:05.000001+08:00"])),
    D.Mol: ("mol_smiles_data", st.sampled_from(["CCO", "c1ccccc1"])),
}
# A cell is the bytes of a row.
VECTORS: dict[int, tuple[str, int]] = {
    D.FloatVector: ("float_vector", 4 * DIM),
    D.BinaryVector: ("binary_vector", DIM // 8),
    D.Float16Vector: ("float16_vector", 2 * DIM),
    D.BFloat16Vector: ("bfloat16_vector", 2 * DIM),
    D.Int8Vector: ("int8_vector", DIM),
}
PLAIN = [*SCALARS, *VECTORS, D.SparseFloatVector]


@dataclass
class Made:
    """A collection with one column beside the key, in both forms."""

    shape: Shape
    answered: list[Any]
    written: list[Any]


def shape_of(*fields: Any, structs: list[Any] | None = None, dynamic: bool = False, text_key: bool = False) -> Shape:
    told = milvus_pb2.DescribeCollectionResponse(collection_name="docs")
    told.schema.name = "docs"
    told.schema.enable_dynamic_field = dynamic
    key = told.schema.fields.add(name="id", is_primary_key=True, data_type=D.VarChar if text_key else D.Int64)
    if text_key:
        key.type_params.add(key="max_length", value="64")
    told.schema.fields.extend(fields)
    told.schema.struct_array_fields.extend(structs or [])
    return read_shape(told.SerializeToString())


def field_of(kind: int, *, name: str = "it", element: int = 0, nullable: bool = False) -> Any:
    field = schema_pb2.FieldSchema(name=name, data_type=kind, element_type=element, nullable=nullable)
    if kind in VECTORS or element in VECTORS:
        field.type_params.add(key="dim", value=str(DIM))
    return field


def ids(*keys: int) -> Any:
    column = schema_pb2.FieldData(field_name="id", type=D.Int64)
    column.scalars.long_data.data.extend(keys)
    return column


def sparse_cells() -> st.SearchStrategy[bytes]:
    pairs = st.dictionaries(st.integers(0, 2**32 - 2), F32, max_size=4)
    return pairs.map(lambda row: b"".join(struct.pack("<If", index, row[index]) for index in sorted(row)))


def cells(field: Any) -> st.SearchStrategy[Any]:
    """Draw one cell."""
    kind = field.data_type
    if kind == D.Array:
        return st.lists(ELEMENTS[field.element_type][1], max_size=4)
    if kind == D.ArrayOfVector:
        width = VECTORS[field.element_type][1]
        return st.lists(st.binary(min_size=width, max_size=width), max_size=3)
    if kind == D.SparseFloatVector:
        return sparse_cells()
    if kind in VECTORS:
        return st.binary(min_size=VECTORS[kind][1], max_size=VECTORS[kind][1])
    return SCALARS[kind][1]


def put(column: Any, field: Any, values: list[Any], *, typed: bool = True) -> None:
    """Put cells into a column; an empty array of an answer may have no type."""
    kind = field.data_type
    if kind == D.Array:
        held = column.scalars.array_data
        held.SetInParent()
        held.element_type = field.element_type if typed else 0
        for value in values:
            cell = held.data.add()
            inner = getattr(cell, ELEMENTS[field.element_type][0])
            if value or typed:
                inner.SetInParent()
            inner.data.extend(value) if value else None
    elif kind == D.ArrayOfVector:
        held = column.vectors.vector_array
        held.SetInParent()
        column.vectors.dim = held.dim = DIM
        held.element_type = field.element_type
        for value in values:
            put_vectors(held.data.add(), field.element_type, value)
    elif kind in VECTORS:
        put_vectors(column.vectors, kind, values)
    elif kind == D.SparseFloatVector:
        held = column.vectors.sparse_float_vector
        held.SetInParent()
        held.contents.extend(values)
        held.dim = max((struct.unpack_from("<I", value, len(value) - 8)[0] + 1 for value in values if value), default=0)
    else:
        held = getattr(column.scalars, SCALARS[kind][0])
        held.SetInParent()
        held.data.extend(values)


def put_vectors(vectors: Any, kind: int, values: list[bytes]) -> None:
    vectors.dim = DIM
    slot = VECTORS[kind][0]
    if slot == "float_vector":
        vectors.float_vector.SetInParent()
        data = b"".join(values)
        # Not through Python's floats: they would change some of the values that are no numbers.
        if data:
            vectors.float_vector.MergeFromString(b"\n" + length(len(data)) + data)
    else:
        setattr(vectors, slot, b"".join(values))


def length(size: int) -> bytes:
    return bytes([size & 0x7F | 0x80, size >> 7]) if size > 0x7F else bytes([size])


def column_of(field: Any, values: list[Any], valid: list[bool], *, full: bool, typed: bool) -> Any:
    """Build a column; ``full`` puts something in the place of null cells, as some servers do."""
    column = schema_pb2.FieldData(field_name=field.name, type=field.data_type)
    kept = values if full else [value for value, ok in zip(values, valid, strict=True) if ok]
    put(column, field, kept, typed=typed)
    if field.nullable:
        column.valid_data.extend(valid)
    return column


@st.composite
def plain_columns(draw: st.DrawFn, kind: int, element: int = 0) -> Made:
    field = field_of(kind, element=element, nullable=draw(st.booleans()))
    values = draw(st.lists(cells(field), min_size=1, max_size=6))
    some = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    valid = draw(some) if field.nullable else [True] * len(values)
    full, typed = draw(st.booleans()), draw(st.booleans())
    answered = column_of(field, values, valid, full=full, typed=typed)
    answered.field_id = 101
    written = column_of(field, values, valid, full=False, typed=True)
    key = ids(*range(len(values)))
    return Made(shape_of(field), [answered, key], [key, written])


@st.composite
def struct_columns(draw: st.DrawFn) -> Made:
    parts = [
        field_of(D.Array, name="words", element=D.VarChar),
        field_of(D.Array, name="numbers", element=D.Int8),
        field_of(D.ArrayOfVector, name="vectors", element=D.FloatVector),
        field_of(D.ArrayOfVector, name="halves", element=D.Float16Vector),
    ]
    struct_field = schema_pb2.StructArrayFieldSchema(name="it", fields=parts)
    count = draw(st.integers(1, 4))
    column = schema_pb2.FieldData(field_name="it", type=D.ArrayOfStruct)
    for part in parts:
        values = draw(st.lists(cells(part), min_size=count, max_size=count))
        column.struct_arrays.fields.append(column_of(part, values, [True] * count, full=True, typed=True))
    key = ids(*range(count))
    return Made(shape_of(structs=[struct_field]), [key, column], [key, column])


def dynamic_column(texts: list[bytes]) -> Any:
    column = schema_pb2.FieldData(field_name=DYNAMIC, type=D.JSON, is_dynamic=True)
    column.scalars.json_data.data.extend(texts)
    return column
