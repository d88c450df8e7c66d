"""The values of each Milvus type as Arrow has them, and back.

Decision made here: a type is written as what it is wherever that loses nothing, so that other programs can read it:
vectors as lists of numbers of a fixed length, sparse ones as lists of pairs, arrays of structs as structs of lists,
JSON as text. bfloat16 is written as float32, of which it is the upper half. Only binary vectors are bytes. Values that
a type cannot hold, or of another kind than the type's, are refused, not converted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pymilvus.grpc_gen import schema_pb2

from haclient.milvus.datatypes import DataType as D
from haclient.milvus.shape import parameter
from haclient.milvus.wireformat import BYTES, bytes_field, varint

#: A ``pyarrow.Array``; pyarrow has no types.
_Array = Any


@final
@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one type travel; nulls are not its business.

    Attributes:
        type: The Arrow type.
        part: Where a ``FieldData`` has them: ``scalars``, ``vectors`` or ``struct_arrays``.
        encode: Makes an array of a ``ScalarField``, ``VectorField`` or ``StructArrayField``.
        decode: Fills one from an array without nulls.
    """

    type: pa.DataType
    part: str
    encode: Callable[[Any], _Array]
    decode: Callable[[_Array, Any], None]


_SCALARS: Final[dict[int, tuple[str, pa.DataType]]] = {
    D.Bool: ("bool_data", pa.bool_()),
    D.Int8: ("int_data", pa.int8()),
    D.Int16: ("int_data", pa.int16()),
    D.Int32: ("int_data", pa.int32()),
    D.Int64: ("long_data", pa.int64()),
    D.Float: ("float_data", pa.float32()),
    D.Double: ("double_data", pa.float64()),
    D.String: ("string_data", pa.string()),
    D.VarChar: ("string_data", pa.string()),
    D.Text: ("string_data", pa.string()),
    D.Timestamptz: ("string_data", pa.string()),
    D.Geometry: ("geometry_wkt_data", pa.string()),
    D.Mol: ("mol_smiles_data", pa.string()),
    D.JSON: ("json_data", pa.string()),
}
# What a number of a vector is in protobuf, and in Arrow.
_VECTORS: Final[dict[int, tuple[str, pa.DataType]]] = {
    D.FloatVector: ("float_vector", pa.float32()),
    D.Float16Vector: ("float16_vector", pa.float16()),
    D.BFloat16Vector: ("bfloat16_vector", pa.float32()),
    D.Int8Vector: ("int8_vector", pa.int8()),
}
_PAIR: Final = np.dtype([("index", "<u4"), ("value", "<f4")])
_STRUCT: Final = pa.struct([pa.field("index", pa.uint32(), False), pa.field("value", pa.float32(), False)])
_PAIRS: Final = pa.list_(pa.field("element", _STRUCT, False))


def codec(field: Any) -> Codec:
    """Return how a field's values travel.

    Args:
        field: A ``FieldSchema`` or ``StructArrayFieldSchema``.

    Raises:
        ValueError: It is of a type that this version does not know.
    """
    if isinstance(field, schema_pb2.StructArrayFieldSchema):
        return _structs(field)
    kind = field.data_type
    if kind in _SCALARS:
        return _scalars(*_SCALARS[kind])
    if kind == D.Array and field.element_type in _SCALARS:
        return _arrays(field.element_type)
    if kind == D.ArrayOfVector:
        return _vector_arrays(field)
    made = _vectors(kind, parameter(field, "dim"))
    if made is None:
        name = schema_pb2.DataType.Name(kind) if kind in schema_pb2.DataType.values() else f"type {kind}"
        raise ValueError(f"{field.name}: {name} cannot be backed up yet; update haclient")
    return made


def _slot(values: Any, wanted: str) -> Any:
    """Return where values are, None if there are none at all.

    Raises:
        ValueError: They are of another kind.
    """
    found = values.WhichOneof("data")
    if found is None:
        return None
    if found != wanted:
        raise ValueError(f"holds {found} instead of {wanted}")
    return getattr(values, found)


# Scalars.


def _scalars(slot: str, kind: pa.DataType) -> Codec:
    def encode(values: Any) -> _Array:
        held = _slot(values, slot)
        if held is None:
            return pa.array([], kind)
        if slot == "json_data":
            return _texts(held.data)
        if pa.types.is_floating(kind):
            return _packed(held, kind)
        return pa.array(list(held.data), kind)

    def decode(array: _Array, values: Any) -> None:
        held = getattr(values, slot)
        held.SetInParent()
        if pa.types.is_floating(kind):
            held.MergeFromString(_unpacked(array))
        else:
            held.data.extend(array.cast(pa.binary()).to_pylist() if slot == "json_data" else array.to_pylist())

    return Codec(kind, "scalars", encode, decode)


def _texts(cells: Sequence[bytes]) -> _Array:
    """Return bytes as text without looking whether they are UTF-8: Milvus does not look either."""
    whole = pa.array(list(cells), pa.binary())
    return pa.Array.from_buffers(pa.string(), len(whole), whole.buffers())


def _packed(held: Any, kind: pa.DataType) -> _Array:
    """Return a FloatArray or DoubleArray: its packed values (#1) are an array of their own as they are."""
    data = bytes_field(held.SerializeToString(), 1) or b""
    return pa.Array.from_buffers(kind, len(data) * 8 // kind.bit_width, [None, pa.py_buffer(data)])


def _unpacked(array: _Array) -> bytes:
    data: bytes = array.to_numpy(zero_copy_only=False).tobytes()
    return varint(1 << 3 | BYTES) + varint(len(data)) + data


# Arrays of scalars.


def _arrays(element_type: int) -> Codec:
    slot, kind = _SCALARS[element_type]
    element = _scalars(slot, kind)
    lists = pa.list_(pa.field("element", kind, False))

    def encode(values: Any) -> _Array:
        held = _slot(values, "array_data")
        if held is None:
            return pa.array([], lists)
        whole = schema_pb2.ScalarField()
        lengths = []
        for cell in held.data:
            inner = _slot(cell, slot)
            lengths.append(0 if inner is None else len(inner.data))
            whole.MergeFrom(cell)
        return _lists(lists, lengths, element.encode(whole))

    def decode(array: _Array, values: Any) -> None:
        held = values.array_data
        held.SetInParent()
        held.element_type = element_type
        for cell in array.to_pylist():
            # Milvus 2.3.5 dies of an empty array without a type.
            inner = getattr(held.data.add(), slot)
            inner.SetInParent()
            inner.data.extend(cell)

    return Codec(lists, "scalars", encode, decode)


def _lists(kind: Any, lengths: Sequence[int] | npt.NDArray[np.int32], values: _Array) -> _Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)


# Vectors.


def _vectors(kind: int, dimension: int) -> Codec | None:
    if kind == D.SparseFloatVector:
        return Codec(_PAIRS, "vectors", _encode_sparse, _decode_sparse)
    if kind == D.BinaryVector and dimension:
        return _binary(dimension)
    if kind not in _VECTORS or not dimension:
        return None
    slot, number = _VECTORS[kind]
    lists = pa.list_(pa.field("element", number, False), dimension)

    def encode(values: Any) -> _Array:
        held = _slot(values, slot)
        if held is None:
            return pa.array([], lists)
        if slot == "float_vector":
            flat = _packed(held, number)
        else:
            data = _widened(held) if slot == "bfloat16_vector" else held
            flat = pa.Array.from_buffers(number, len(data) * 8 // number.bit_width, [None, pa.py_buffer(data)])
        _whole(len(flat), dimension, values.dim)
        return pa.FixedSizeListArray.from_arrays(flat, type=lists)

    def decode(array: _Array, values: Any) -> None:
        values.dim = dimension
        flat = _flat(array)
        if slot == "float_vector":
            values.float_vector.SetInParent()
            values.float_vector.MergeFromString(_unpacked(flat))
        else:
            data = flat.to_numpy(zero_copy_only=False)
            setattr(values, slot, _narrowed(data) if slot == "bfloat16_vector" else data.tobytes())

    return Codec(lists, "vectors", encode, decode)


def _flat(array: Any) -> _Array:
    return array.flatten()


def _whole(found: int, width: int, dimension: int) -> None:
    """See that the values are a whole number of rows, and of the schema's dimension if they tell one."""
    if found % width:
        raise ValueError(f"holds {found} values, which is no multiple of {width}")
    if dimension % width:
        raise ValueError(f"is of dimension {dimension} instead of {width}")


def _widened(data: bytes) -> bytes:
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).tobytes()


def _narrowed(values: Any) -> bytes:
    bits = values.view("<u4")
    if (bits & 0xFFFF).any():
        raise ValueError("holds numbers that are no bfloat16")
    return bytes((bits >> 16).astype("<u2").tobytes())


def _binary(dimension: int) -> Codec:
    width = dimension // 8
    kind = pa.binary(width)

    def encode(values: Any) -> _Array:
        data = _slot(values, "binary_vector") or b""
        _whole(len(data), width, 0)
        return pa.Array.from_buffers(kind, len(data) // width, [None, pa.py_buffer(data)])

    def decode(array: _Array, values: Any) -> None:
        values.dim = dimension
        values.binary_vector = b"".join(array.to_pylist())

    return Codec(kind, "vectors", encode, decode)


def _encode_sparse(values: Any) -> _Array:
    held = _slot(values, "sparse_float_vector")
    cells = held.contents if held is not None else []
    if any(len(cell) % _PAIR.itemsize for cell in cells):
        raise ValueError("holds a sparse vector that is no sequence of pairs")
    pairs = np.frombuffer(b"".join(cells), _PAIR)
    columns = [pa.array(pairs["index"].copy()), pa.array(pairs["value"].copy())]
    structs = pa.StructArray.from_arrays(columns, fields=list(_STRUCT))
    return _lists(_PAIRS, [len(cell) // _PAIR.itemsize for cell in cells], structs)


def _decode_sparse(array: Any, values: Any) -> None:
    index, value = array.flatten().flatten()
    pairs = np.empty(len(index), _PAIR)
    pairs["index"], pairs["value"] = index.to_numpy(), value.to_numpy()
    data, ends = pairs.tobytes(), np.cumsum(array.value_lengths().to_numpy()) * _PAIR.itemsize
    held = values.sparse_float_vector
    held.SetInParent()
    held.dim = int(pairs["index"].max()) + 1 if len(pairs) else 0
    start = 0
    for end in ends.tolist():
        held.contents.append(data[start:end])
        start = end


# Arrays of vectors, and of structs.


def _vector_arrays(field: Any) -> Codec:
    dimension = parameter(field, "dim")
    element = _vectors(field.element_type, dimension)
    if element is None:
        raise ValueError(f"{field.name}: arrays of such vectors cannot be backed up yet; update haclient")
    lists = pa.list_(pa.field("element", element.type, False))

    def encode(values: Any) -> _Array:
        held = _slot(values, "vector_array")
        cells = [element.encode(cell) for cell in held.data] if held is not None else []
        return _lists(lists, [len(cell) for cell in cells], pa.concat_arrays([pa.array([], element.type), *cells]))

    def decode(array: Any, values: Any) -> None:
        held = values.vector_array
        held.SetInParent()
        values.dim = held.dim = dimension
        held.element_type = field.element_type
        whole, start = array.flatten(), 0
        for count in array.value_lengths().to_pylist():
            element.decode(whole.slice(start, count), held.data.add())
            start += count

    return Codec(lists, "vectors", encode, decode)


def _structs(struct: Any) -> Codec:
    parts = [(field, codec(field), field.nullable) for field in struct.fields]
    fields = [pa.field(field.name, part.type, nullable) for field, part, nullable in parts]

    def encode(values: Any) -> _Array:
        held = {column.field_name: column for column in values.fields}
        if not held:
            return pa.array([], pa.struct(fields))
        if missing := {field.name for field in fields}.difference(held):
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return pa.StructArray.from_arrays([to_array(held[field.name], part) for field, part, _ in parts], fields=fields)

    def decode(array: Any, values: Any) -> None:
        for (field, part, nullable), cells in zip(parts, array.flatten(), strict=True):
            fill(values.fields.add(field_name=field.name, type=field.data_type), part, cells, nullable=nullable)

    return Codec(pa.struct(fields), "struct_arrays", encode, decode)


# Columns.


def to_array(column: Any, part: Codec) -> _Array:
    """Return a column (``FieldData``), its null cells null, whether or not they have a place in the data.

    Raises:
        ValueError: Its values are not such as the type has.
    """
    held = column.WhichOneof("field")
    if held not in (None, part.part):
        raise ValueError(f"holds {held} instead of {part.part}")
    values = part.encode(getattr(column, part.part))
    valid = np.array(column.valid_data, dtype=bool)
    if valid.all():
        return values
    if len(values) not in (len(valid), int(valid.sum())):
        raise ValueError(f"has {len(values)} values for {len(valid)} rows, {int(valid.sum())} of them not null")
    places = np.arange(len(valid)) if len(values) == len(valid) else np.cumsum(valid) - 1
    return values.take(pa.array(places, mask=~valid))


def fill(column: Any, part: Codec, array: _Array, *, nullable: bool) -> None:
    """Fill a column from an array; null cells get no place in the data."""
    part.decode(array.drop_null() if array.null_count else array, getattr(column, part.part))
    if nullable or array.null_count:
        column.valid_data.extend(array.is_valid().to_pylist())
