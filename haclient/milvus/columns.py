"""One column of rows: checked against its field, and brought into the one form that every server understands.

Decision made here: a column is refused if the newest or the oldest server would refuse it, and what a lenient one takes
by accident is mended or refused, because 2.3.5 *dies* of some of it (measured: a row of an ARRAY without a typed value,
a ``dim`` above the schema's on a dense vector, a ``dim`` of 0 on a binary or half-precision one at the next flush), and
keeps something else than was meant of the rest (a ``dim`` below the schema's, values of another type).
The form: type and dimension of the schema, no field id (it is of one cluster), nullable columns with ``valid_data``
for every row and values for the valid ones only, as pymilvus sends them (Milvus 2.5 and later, and Lite).

Texts are those of Milvus' own refusals (2.3.5 as measured, later ones where 2.3.5 has no such check).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import compress
from typing import Any, Final

import numpy as np
import orjson

from haclient.milvus.datatypes import DataType
from haclient.milvus.shape import DYNAMIC, INVALID, InvalidWrite, parameter
from haclient.milvus.wireformat import bytes_field

#: Milvus' catch-all code.
UNEXPECTED: Final = 65535

_MOST_JSON: Final = 65_536
_D: Final = DataType

# Where the values of a type are, and what Milvus calls the column and the values.
_SCALARS: Final[dict[int, tuple[str, str, str]]] = {
    _D.Bool: ("bool_data", "", "bool array"),
    _D.Int8: ("int_data", "", "int array"),
    _D.Int16: ("int_data", "", "int array"),
    _D.Int32: ("int_data", "", "int array"),
    _D.Int64: ("long_data", "", "long int array"),
    _D.Float: ("float_data", "", "float32 array"),
    _D.Double: ("double_data", "", "float64(double) array"),
    _D.VarChar: ("string_data", "varchar ", "string array"),
    _D.Text: ("string_data", "text ", "text array"),
    _D.JSON: ("json_data", "json ", "json array"),
    _D.Array: ("array_data", "array ", "array"),
}
_VECTORS: Final[dict[int, tuple[str, str, str]]] = {
    _D.FloatVector: ("float_vector", "float vector ", "float vector"),
    _D.BinaryVector: ("binary_vector", "binary vector ", "binary vector"),
    _D.Float16Vector: ("float16_vector", "float16 vector ", "float16 vector"),
    _D.BFloat16Vector: ("bfloat16_vector", "bfloat16 vector ", "bfloat16 vector"),
    _D.SparseFloatVector: ("sparse_float_vector", "sparse float vector ", "sparse float vector"),
    _D.Int8Vector: ("int8_vector", "int8 vector ", "int8 vector"),
    _D.ArrayOfVector: ("vector_array", "array of vector ", "array of vector"),
}
_RANGES: Final = {_D.Int8: (-(2**7), 2**7 - 1), _D.Int16: (-(2**15), 2**15 - 1)}
_ELEMENTS: Final = {
    _D.Bool: ("bool_data", "bool"),
    _D.Int8: ("int_data", "int"),
    _D.Int16: ("int_data", "int"),
    _D.Int32: ("int_data", "int"),
    _D.Int64: ("long_data", "int64"),
    _D.Float: ("float_data", "float"),
    _D.Double: ("double_data", "double"),
    _D.VarChar: ("string_data", "string"),
}
#: The oneof of a column whose values are a byte string, row after row.
FLAT: Final = frozenset(("binary_vector", "float16_vector", "bfloat16_vector", "int8_vector"))


def invalid(reason: str, *, expected: object = None, actual: object = None) -> InvalidWrite:
    """Make a refusal in the words of Milvus' own for a wrong parameter."""
    values = "" if expected is None else f"[expected={expected}][actual={actual}]"
    return InvalidWrite(INVALID, f"{reason}: invalid parameter{values}")


def check(column: Any, field: Any, count: int) -> None:
    """Check a column (``FieldData``) and bring it into form, in place.

    Args:
        column: The values.
        field: Its ``FieldSchema``.
        count: Number of rows of the request.

    Raises:
        InvalidWrite: Milvus would refuse it.
    """
    valid = _validity(column, field, count)
    column.type = field.data_type
    column.ClearField("field_id")
    column.is_dynamic = field.is_dynamic
    expected = sum(valid) if valid else count
    _slot(column, field, expected)
    found = length(column, field)
    if valid and found == count != expected:
        keep(column, list(compress(range(count), valid)), field)
    elif found != expected:
        raise wrong_count(field.name, found, count)
    _VALUES.get(field.data_type, _anything)(column, field)


def wrong_count(name: str, found: int, count: int) -> InvalidWrite:
    """Make the refusal of a column whose number of rows is not the request's."""
    text = f"the num_rows ({found}) of field ({name}) is not equal to passed num_rows ({count})"
    return invalid(text, expected=count, actual=found)


def _validity(column: Any, field: Any, count: int) -> list[bool]:
    """Return which rows have a value; [] of a field in which each must have one."""
    valid = list(column.valid_data)
    fillable = field.nullable or field.HasField("default_value")
    if fillable and not valid:
        column.valid_data.extend([True] * count)
        return [True] * count
    if fillable and len(valid) == count:
        return valid
    if fillable or not all(valid):
        text = f"the length of valid_data of field({field.name}) is wrong"
        raise invalid(text, expected=count if fillable else 0, actual=len(valid))
    column.ClearField("valid_data")
    return []


def _slot(column: Any, field: Any, expected: int) -> None:
    """See that the values are where the type has them."""
    table, part = (_VECTORS, "vectors") if field.data_type in _VECTORS else (_SCALARS, "scalars")
    if field.data_type not in table:
        return
    name, kind, need = table[field.data_type]
    values = getattr(column, part)
    where = values.WhichOneof("data")
    if where != name and (expected or where):
        raise invalid(
            f"{kind}field '{field.name}' is illegal, array type mismatch", expected=f"need {need}", actual="got nil"
        )
    if name in FLAT:
        setattr(values, name, getattr(values, name))
    else:
        getattr(values, name).SetInParent()


def length(column: Any, field: Any) -> int:
    """Return for how many rows a column has values.

    Raises:
        InvalidWrite: The values of a dense vector are no whole number of rows.
    """
    where = payload(column)
    if where is None:
        return 0
    values, slot = where
    width = row_width(slot, field)
    if width:
        size = len(values.float_vector.data) if slot == "float_vector" else len(getattr(values, slot))
        _same_dimension(values, field)
        if size % width:
            unit = "data" if slot == "float_vector" else "bytes"
            raise InvalidWrite(UNEXPECTED, f"the length({size}) of float {unit} should divide the dim({width})")
        return size // width
    return len(_items(values, slot))


def payload(column: Any) -> tuple[Any, str] | None:
    """Return the ``ScalarField`` or ``VectorField`` of a column, and which of its kinds of values is set."""
    part = column.WhichOneof("field")
    if part not in ("scalars", "vectors"):
        return None
    values = getattr(column, part)
    slot = values.WhichOneof("data")
    return (values, slot) if slot else None


def _items(values: Any, slot: str) -> Any:
    inner = getattr(values, slot)
    return inner.contents if slot == "sparse_float_vector" else inner.data


def row_width(slot: str, field: Any) -> int:
    """Return how many floats or bytes a row of a dense vector has; 0 of any other kind of values."""
    if slot != "float_vector" and slot not in FLAT:
        return 0
    dimension = parameter(field, "dim")
    halves = {"binary_vector": 1, "float16_vector": 16, "bfloat16_vector": 16}.get(slot, 8)
    return dimension * halves // 8 if slot != "float_vector" else dimension


def _same_dimension(values: Any, field: Any) -> None:
    wanted = parameter(field, "dim")
    if values.dim not in (0, wanted):
        text = f"the dim ({values.dim}) of field data({field.name}) is not equal to schema dim ({wanted})"
        raise invalid(text, expected=wanted, actual=values.dim)
    values.dim = wanted


def keep(column: Any, rows: Sequence[int], field: Any) -> None:
    """Keep only some of a column's values, by their index; ``valid_data`` is left alone."""
    where = payload(column)
    if where is None:
        return
    values, slot = where
    width = row_width(slot, field)
    if slot in FLAT:
        flat = getattr(values, slot)
        setattr(values, slot, b"".join(flat[row * width : (row + 1) * width] for row in rows))
        return
    items = _items(values, slot)
    if width:
        kept = [value for row in rows for value in items[row * width : (row + 1) * width]]
    else:
        kept = [items[row] for row in rows]
    del items[:]
    items.extend(kept)


# What each type asks of its values.


def _anything(column: Any, field: Any) -> None:
    """Accept: a type that haclient knows nothing of is for the servers to check."""


def _integers(column: Any, field: Any) -> None:
    _in_range(column.scalars.int_data.data, field.data_type)


def _in_range(values: Sequence[int], kind: int) -> None:
    low, high = _RANGES[_D(kind)] if kind in _RANGES else (0, 0)
    for at, value in enumerate(values if high else ()):
        if not low <= value <= high:
            text = f"the {at}th element ({value}) out of range: [{low}, {high}]"
            raise invalid(text, expected="integer doesn't overflow", actual="out of range")


def _floats(column: Any, field: Any) -> None:
    _finite(column.scalars.float_data, "<f4")


def _doubles(column: Any, field: Any) -> None:
    _finite(column.scalars.double_data, "<f8")


def _float_vectors(column: Any, field: Any) -> None:
    _finite(column.vectors.float_vector, "<f4")


def _halves(column: Any, field: Any) -> None:
    _all_finite(np.frombuffer(column.vectors.float16_vector, "<f2").astype("<f4"))


def _brain_floats(column: Any, field: Any) -> None:
    # The upper half of a float32.
    bits = np.frombuffer(column.vectors.bfloat16_vector, "<u2").astype("<u4") << 16
    _all_finite(bits.view("<f4"))


def _finite(values: Any, kind: str) -> None:
    """Check a FloatArray or DoubleArray: its packed values (#1) are an array of their own as they are."""
    _all_finite(np.frombuffer(bytes_field(values.SerializeToString(), 1) or b"", kind))


def _all_finite(values: np.typing.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        found = values[~np.isfinite(values)][0]
        name = "NaN" if np.isnan(found) else "+Inf" if found > 0 else "-Inf"
        raise InvalidWrite(UNEXPECTED, f"value '{name}' is not a number or infinity")


def _strings(column: Any, field: Any) -> None:
    _fit(column.scalars.string_data.data, parameter(field, "max_length"))


def _fit(values: Sequence[str], most: int) -> None:
    """Check texts against a limit in bytes; 0 is none (Lite does not tell that of an array's elements)."""
    for at, value in enumerate(values if most else ()):
        if len(value) * 4 > most and (size := len(value.encode())) > most:
            text = f"the length ({size}) of {at}th string exceeds max length ({most})"
            raise invalid(text, expected="valid length string", actual="string length exceeds max length")


def _json(column: Any, field: Any) -> None:
    name = "dynamic field" if field.is_dynamic else f"json field ({field.name})"
    for at, value in enumerate(column.scalars.json_data.data):
        if len(value) > _MOST_JSON:
            what = "dynamic field" if field.is_dynamic else "json string"
            text = f"the length ({len(value)}) of {name} exceeds max length ({_MOST_JSON})"
            raise invalid(text, expected=f"valid length {what}", actual="length exceeds max length")
        try:
            orjson.loads(value)
        except ValueError as error:
            raise invalid(f"{name}, row {at}: no JSON: {error}") from None


def check_dynamic(column: Any, names: Set[str]) -> None:
    """Check a checked column of dynamic fields: objects, without the names of fields of the schema."""
    values = column.scalars.json_data.data
    for at, value in enumerate(values):
        parsed = orjson.loads(value)
        if parsed is None:
            # A real server takes it for no fields, Lite for a text.
            values[at] = b"{}"
        elif not isinstance(parsed, dict):
            raise InvalidWrite(UNEXPECTED, f"dynamic field, row {at}: cannot unmarshal {value[:40]!r} into an object")
        elif DYNAMIC in parsed:
            raise InvalidWrite(UNEXPECTED, f"cannot set json key to: {DYNAMIC}")
        elif clash := names & parsed.keys():
            raise invalid(f"dynamic field name cannot include the static field name: {min(clash)}")


def _arrays(column: Any, field: Any) -> None:
    slot, kind = _ELEMENTS.get(field.element_type, ("", ""))
    column.scalars.array_data.element_type = field.element_type
    if not slot:
        return
    capacity, most = parameter(field, "max_capacity"), parameter(field, "max_length")
    for at, row in enumerate(column.scalars.array_data.data):
        found = row.WhichOneof("data")
        if found not in (None, slot):
            actual = f"*schemapb.ScalarField_{found.title().replace('_', '')} array"
            raise invalid("insert data does not match", expected=f"{kind} array", actual=actual)
        getattr(row, slot).SetInParent()
        values = getattr(row, slot).data
        if capacity and len(values) > capacity:
            text = f"the length ({len(values)}) of {at}th array exceeds max capacity ({capacity})"
            raise invalid(text, expected="valid length array", actual="array length exceeds max capacity")
        if slot == "string_data":
            _fit(values, most)
        elif slot == "int_data":
            _in_range(values, field.element_type)


def _sparse(column: Any, field: Any) -> None:
    for row in column.vectors.sparse_float_vector.contents:
        if len(row) % 8:
            raise invalid(f"invalid data length in sparse float vector: {len(row)}")
        pairs = np.frombuffer(row, np.dtype([("index", "<u4"), ("value", "<f4")]))
        indices = pairs["index"].astype(np.int64)
        if (np.diff(indices) <= 0).any():
            raise invalid("unsorted or same indices in sparse float vector")
        if len(indices) and indices[-1] == 2**32 - 1:
            raise invalid(f"invalid index in sparse float vector: {indices[-1]}")
        _all_finite(pairs["value"])
        if (pairs["value"] < 0).any():
            raise invalid("negative value in sparse float vector")


_VALUES: Final[dict[int, Any]] = {
    _D.Int8: _integers,
    _D.Int16: _integers,
    _D.Int32: _integers,
    _D.Float: _floats,
    _D.Double: _doubles,
    _D.VarChar: _strings,
    _D.JSON: _json,
    _D.Array: _arrays,
    _D.FloatVector: _float_vectors,
    _D.Float16Vector: _halves,
    _D.BFloat16Vector: _brain_floats,
    _D.SparseFloatVector: _sparse,
}
