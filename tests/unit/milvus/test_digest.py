"""Hashes of rows: the same for the same row however a server writes it, others for any other row."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import schema_pb2

from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.pages import Page

D = schema_pb2.DataType


def column(name: str, kind: int, slot: str, values: list[Any], valid: list[bool] | None = None) -> Any:
    made = schema_pb2.FieldData(field_name=name, type=kind)
    getattr(made.scalars, slot).data.extend(values)
    made.valid_data.extend(valid or [])
    return made


def vectors(name: str, rows: list[list[float]]) -> Any:
    made = schema_pb2.FieldData(field_name=name, type=D.FloatVector)
    made.vectors.dim = len(rows[0])
    made.vectors.float_vector.data.extend(value for row in rows for value in row)
    return made


def array(name: str, cells: list[list[int] | None]) -> Any:
    """None is an empty cell without a type, as Milvus 2.3.5 gives it."""
    made = schema_pb2.FieldData(field_name=name, type=D.Array)
    for values in cells:
        cell = made.scalars.array_data.data.add()
        if values is not None:
            cell.int_data.SetInParent()
            cell.int_data.data.extend(values)
    return made


def hashed(*columns: Any) -> dict[Any, bytes]:
    return row_hashes(Page(columns, "id"))


def ids(*keys: int) -> Any:
    return column("id", D.Int64, "long_data", list(keys))


def meta(*texts: bytes) -> Any:
    return column("$meta", D.JSON, "json_data", list(texts))


def test_neither_the_order_of_columns_nor_that_of_rows_matters() -> None:
    text = column("text", D.VarChar, "string_data", ["one", "two"])
    turned = column("text", D.VarChar, "string_data", ["two", "one"])
    assert hashed(ids(1, 2), text) == hashed(text, ids(1, 2)) == hashed(ids(2, 1), turned)
    assert list(hashed(ids(2, 1), turned)) == [1, 2]


def test_json_is_compared_by_what_it_says() -> None:
    one = meta(b'{"b": 1.0, "a": [1, 2.5e+300]}', b"{}")
    other = meta(b'{"a":[1,2.5e300],"b":1.0}', b"")
    assert hashed(ids(1, 2), one) == hashed(ids(1, 2), other)
    assert hashed(ids(1, 2), one) != hashed(ids(1, 2), meta(b'{"b":1,"a":[1,2.5e300]}', b"{}"))


def test_what_is_no_json_is_compared_as_it_is() -> None:
    assert hashed(ids(1), meta(b"{nan")) != hashed(ids(1), meta(b"{nam"))


def test_an_empty_array_is_the_same_with_and_without_a_type() -> None:
    assert hashed(ids(1, 2), array("a", [[], [3]])) == hashed(ids(1, 2), array("a", [None, [3]]))
    assert hashed(ids(1, 2), array("a", [[0], [3]])) != hashed(ids(1, 2), array("a", [None, [3]]))


@pytest.mark.parametrize("slot", ["long_data", "string_data"])
def test_a_null_is_the_same_with_and_without_a_place_holder_and_is_no_value(slot: str) -> None:
    values: list[Any] = [5, 0, 7] if slot == "long_data" else ["5", "", "7"]
    valid = [True, False, True]
    full, packed = column("n", D.Int64, slot, values, valid), column("n", D.Int64, slot, [values[0], values[2]], valid)
    assert hashed(ids(1, 2, 3), full) == hashed(ids(1, 2, 3), packed)
    zero = column("n", D.Int64, slot, values, [True, True, True])
    differing = [key for key, row in hashed(ids(1, 2, 3), full).items() if hashed(ids(1, 2, 3), zero)[key] != row]
    assert differing == [2]


def test_numbers_are_compared_by_their_bits() -> None:
    assert hashed(ids(1), vectors("v", [[0.1, 0.0]])) != hashed(ids(1), vectors("v", [[0.1, -0.0]]))
    near = np.nextafter(np.float32(0.1), np.float32(1))
    assert hashed(ids(1), vectors("v", [[0.1, 0.0]])) != hashed(ids(1), vectors("v", [[float(near), 0.0]]))


def test_a_value_cannot_move_from_one_cell_to_the_next() -> None:
    def pair(first: str, second: str) -> dict[Any, bytes]:
        return hashed(
            ids(1),
            column("a", D.VarChar, "string_data", [first]),
            column("b", D.VarChar, "string_data", [second]),
        )

    assert pair("xy", "z") != pair("x", "yz") != pair("", "xyz")


def structs(words: list[list[str]], numbers: list[list[float]]) -> Any:
    """One array of structs a row: a word and a vector of one number in each."""
    made = schema_pb2.FieldData(field_name="structs", type=D.ArrayOfStruct)
    cells = made.struct_arrays.fields.add(field_name="word", type=D.Array).scalars.array_data
    for texts in words:
        inner = cells.data.add()
        inner.string_data.SetInParent()
        inner.string_data.data.extend(texts)
    arrays = made.struct_arrays.fields.add(field_name="vector", type=D.ArrayOfVector).vectors.vector_array
    for values in numbers:
        arrays.data.add(dim=1).float_vector.data.extend(values)
    return made


def test_arrays_of_structs_are_compared_by_each_field_of_each_row() -> None:
    one = hashed(ids(1, 2), structs([["a", "b"], []], [[0.5, 1.5], []]))
    turned = structs([["a", "b"], []], [[0.5, 1.5], []])
    fields = list(turned.struct_arrays.fields)
    del turned.struct_arrays.fields[:]
    turned.struct_arrays.fields.extend(reversed(fields))
    assert hashed(ids(1, 2), turned) == one
    for other in (structs([["a", "c"], []], [[0.5, 1.5], []]), structs([["a", "b"], []], [[0.5, 1.25], []])):
        found = hashed(ids(1, 2), other)
        assert [key for key in one if found[key] != one[key]] == [1]


def test_a_kind_of_data_that_is_not_known_is_an_error_and_not_taken_for_the_same() -> None:
    made = schema_pb2.FieldData(field_name="vectors", type=D.ArrayOfVector)
    cell = made.vectors.vector_array.data.add()
    cell.sparse_float_vector.contents.append(b"")
    with pytest.raises(ValueError, match="vectors: arrays of sparse_float_vector cannot be compared yet"):
        hashed(ids(1), made)


@given(st.lists(st.tuples(st.integers(0, 1000), st.text(max_size=5)), unique_by=lambda one: one[0], min_size=1))
def test_the_digest_of_a_set_is_the_sum_of_its_parts_in_any_order(rows: list[tuple[int, str]]) -> None:
    page = hashed(ids(*(key for key, _ in rows)), column("t", D.VarChar, "string_data", [text for _, text in rows]))
    all_of = list(page.values())
    random.Random(len(rows)).shuffle(all_of)
    cut = len(all_of) // 2
    assert digest(all_of) == digest(list(page.values())) == digest(all_of[:cut]) + digest(all_of[cut:])
    assert digest(all_of[1:]) != digest(all_of)
    assert digest([*all_of, all_of[0]]) != digest(all_of)


def test_the_digest_of_nothing_is_zero() -> None:
    assert hashed() == {}
    assert digest([]) == Digest() == Digest(0, 0)
