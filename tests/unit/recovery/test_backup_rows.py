"""Rows as Parquet: nothing is lost, and other programs can read them."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from every_type import (
    DIM,
    ELEMENTS,
    PLAIN,
    VECTORS,
    D,
    Made,
    column_of,
    dynamic_column,
    field_of,
    ids,
    plain_columns,
    shape_of,
    struct_columns,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem
from pymilvus.grpc_gen import schema_pb2

from haclient.milvus.digest import row_hashes
from haclient.milvus.pages import Page
from haclient.milvus.shape import Shape
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.rows import FORMAT_KEY, SCHEMA_KEY, TYPE_KEY, from_arrow, read_rows, to_arrow, write_rows
from haclient.recovery.store import Store, open_store

ROUND = settings(max_examples=25, deadline=None)


def through_a_file(made_of: Shape, columns: list[Any]) -> list[Any]:
    """Write columns to a file, and read them back in one batch."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "b").mkdir()
        store = Store("a folder that is not synced", LocalFileSystem(), folder, None)
        with write_rows(store, "b/rows.parquet", made_of) as writer:
            writer.add(columns)
        (batch,) = read_rows(store, "b", writer.described("rows.parquet", ""), made_of)
        return from_arrow(made_of, batch)


def as_bytes(columns: list[Any]) -> list[bytes]:
    """Compare by bytes: what is no number equals nothing, not even itself."""
    return [column.SerializeToString(deterministic=True) for column in columns]


def comes_back(made: Made) -> None:
    found = through_a_file(made.shape, made.answered)
    assert as_bytes(found) == as_bytes(made.written)
    hashes = row_hashes(Page(made.answered, "id"))
    assert row_hashes(Page(found, "id")) == hashes
    # Batches that were split are parts of larger ones.
    part = from_arrow(made.shape, to_arrow(made.shape, made.answered).slice(1))
    assert row_hashes(Page(part, "id")) == {key: value for key, value in hashes.items() if key}
    # The form of writes is taken as well as that of answers.
    assert as_bytes(from_arrow(made.shape, to_arrow(made.shape, found))) == as_bytes(made.written)


@pytest.mark.parametrize("kind", PLAIN, ids=D.Name)
@given(data=st.data())
@ROUND
def test_every_type_comes_back_as_it_was(kind: int, data: st.DataObject) -> None:
    comes_back(data.draw(plain_columns(kind)))


@pytest.mark.parametrize("element", ELEMENTS, ids=D.Name)
@given(data=st.data())
@ROUND
def test_arrays_of_every_type_come_back_and_empty_ones_have_a_type(element: int, data: st.DataObject) -> None:
    comes_back(data.draw(plain_columns(D.Array, element)))


@pytest.mark.parametrize("element", VECTORS, ids=D.Name)
@given(data=st.data())
@ROUND
def test_arrays_of_vectors_come_back(element: int, data: st.DataObject) -> None:
    comes_back(data.draw(plain_columns(D.ArrayOfVector, element)))


@given(made=struct_columns())
@ROUND
def test_arrays_of_structs_come_back(made: Made) -> None:
    comes_back(made)


# Answers of servers that are not as they should be.


def test_columns_are_found_by_name_and_a_missing_one_is_no_null_column() -> None:
    made_of = shape_of(field_of(D.VarChar))
    text = column_of(field_of(D.VarChar), ["a", "b"], [True, True], full=True, typed=True)
    assert to_arrow(made_of, [text, ids(1, 2)]).equals(to_arrow(made_of, [ids(1, 2), text]))
    with pytest.raises(ValueError, match="docs: the column it is missing"):
        to_arrow(made_of, [ids(1, 2)])


def holding(kind: int, fill_in: Any) -> Any:
    column = schema_pb2.FieldData(field_name="it", type=kind)
    fill_in(column)
    return column


@pytest.mark.parametrize(
    ("kind", "fill_in", "words"),
    [
        (D.VarChar, lambda it: it.scalars.long_data.data.append(1), "holds long_data instead of string_data"),
        (D.VarChar, lambda it: it.vectors.float_vector.data.append(1), "holds vectors instead of scalars"),
        (D.Int8, lambda it: it.scalars.int_data.data.append(128), "128"),
        (D.FloatVector, lambda it: it.vectors.float_vector.data.extend([1.0] * 17), "17 values"),
        (D.BinaryVector, lambda it: setattr(it.vectors, "binary_vector", b"123"), "3 values"),
        (D.SparseFloatVector, lambda it: it.vectors.sparse_float_vector.contents.append(b"12345"), "pairs"),
        (D.Int64, lambda it: it.scalars.long_data.data.extend([1, 2, 3]), "3"),
    ],
)
def test_values_that_the_type_cannot_hold_are_refused(kind: int, fill_in: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_arrow(shape_of(field_of(kind)), [ids(1), holding(kind, fill_in)])


def test_a_type_of_the_future_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="it: Decimal cannot be backed up yet; update haclient"):
        to_arrow(shape_of(field_of(D.Decimal)), [ids(1)])


def test_rows_are_not_read_as_those_of_another_collection() -> None:
    rows = to_arrow(
        shape_of(field_of(D.VarChar)), [ids(1), holding(D.VarChar, lambda it: it.scalars.string_data.data.append("a"))]
    )
    for other in (field_of(D.Int64), field_of(D.VarChar, name="else")):
        with pytest.raises(BackupDamaged, match="these are not rows of docs"):
            from_arrow(shape_of(other), rows)


# Dynamic fields, keys, sizes.


def test_dynamic_fields_come_back_byte_by_byte() -> None:
    meta = dynamic_column([b'{"a": 1}', b"{}"])
    found = through_a_file(shape_of(dynamic=True), [ids(1, 2), meta])
    assert as_bytes(found) == as_bytes([meta, ids(1, 2)])


def test_a_file_tells_its_keys_and_its_rows(tmp_path: Path) -> None:
    store, made_of = open_store(str(tmp_path)), shape_of(text_key=True)
    with write_rows(store, "b/rows.parquet", made_of) as writer:
        for keys in (["é", "a"], ["", "z\x00"]):
            column = schema_pb2.FieldData(field_name="id", type=D.VarChar)
            column.scalars.string_data.data.extend(keys)
            writer.add([column])
    file = writer.described("rows.parquet", "p")
    assert (file.rows, file.first, file.last, file.partition) == (4, "", "é", "p")
    assert file.bytes == (tmp_path / "b" / "rows.parquet").stat().st_size


def test_batches_are_bounded_by_bytes_not_by_rows(tmp_path: Path) -> None:
    store, made_of = open_store(str(tmp_path)), shape_of(field_of(D.VarChar))
    sizes = [10, 5_000, 10, 10, 9_000, 10]
    text = column_of(field_of(D.VarChar), ["x" * size for size in sizes], [True] * 6, full=True, typed=True)
    with write_rows(store, "b/rows.parquet", made_of) as writer:
        writer.add([ids(*range(6)), text])
    batches = list(read_rows(store, "b", writer.described("rows.parquet", ""), made_of, max_bytes=6_000))
    assert [row for batch in batches for row in batch.column("id").to_pylist()] == list(range(6))
    assert all(batch.nbytes <= 6_000 or batch.num_rows == 1 for batch in batches)
    assert len(batches) > 1


def test_a_file_without_rows_is_one_too(tmp_path: Path) -> None:
    store, made_of = open_store(str(tmp_path)), shape_of()
    with write_rows(store, "b/rows.parquet", made_of) as writer:
        writer.add([ids()])
    file = writer.described("rows.parquet", "")
    assert (file.rows, file.first, file.last) == (0, None, None)
    assert list(read_rows(store, "b", file, made_of)) == []


def test_hashes_of_rows_are_the_same_after_a_file() -> None:
    made_of = shape_of(field_of(D.Array, element=D.Int32), dynamic=True)
    array = column_of(field_of(D.Array, element=D.Int32), [[], [1]], [True] * 2, full=True, typed=False)
    columns = [ids(1, 2), array, dynamic_column([b"{}", b'{"a":1}'])]
    assert row_hashes(Page(through_a_file(made_of, columns), "id")) == row_hashes(Page(columns, "id"))


# Other programs.


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Return a file with a column of most types."""
    numbers = np.arange(DIM, dtype="<f4") / 4
    cells = {
        D.VarChar: ("text", "é"),
        D.JSON: ("facts", b'{"a": [1, 2]}'),
        D.Bool: ("flag", True),
        D.Double: ("weight", 0.5),
        D.FloatVector: ("floats", numbers.tobytes()),
        D.Float16Vector: ("halves", numbers.astype("<f2").tobytes()),
        D.BFloat16Vector: ("brains", (numbers.view("<u4") >> 16).astype("<u2").tobytes()),
        D.Int8Vector: ("bytes", bytes(range(DIM))),
        D.BinaryVector: ("bits", b"\x01\x80"),
        D.SparseFloatVector: ("sparse", bytes.fromhex("050000000000003f")),
    }
    fields = [field_of(kind, name=name, nullable=kind != D.FloatVector) for kind, (name, _) in cells.items()]
    columns = [
        column_of(field, [cells[field.data_type][1]] * 2, [True, not field.nullable], full=False, typed=True)
        for field in fields
    ]
    fields.append(field_of(D.Array, name="words", element=D.VarChar))
    columns.append(column_of(fields[-1], [["a", "b"], []], [True, True], full=True, typed=False))
    store, made_of = open_store(str(tmp_path)), shape_of(*fields)
    with write_rows(store, "rows.parquet", made_of) as writer:
        writer.add([ids(1, 2), *columns])
    return tmp_path / "rows.parquet"


VECTOR = [i / 4 for i in range(DIM)]


def test_duckdb_reads_it(written: Path) -> None:
    with duckdb.connect() as base:
        rows = base.read_parquet(str(written)).order("id")
        first, second = (dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall())
        near = f"SELECT list_inner_product(floats, {VECTOR}::FLOAT[]) FROM '{written}' WHERE facts->>'$.a[1]' = '2'"
        assert base.sql(near).fetchall() == [(sum(value * value for value in VECTOR),)]
    assert (first["text"], first["flag"], first["weight"], first["words"]) == ("é", True, 0.5, ["a", "b"])
    assert [list(first[name]) for name in ("floats", "halves", "brains")] == [VECTOR] * 3
    assert (list(first["bytes"]), first["bits"]) == (list(range(DIM)), b"\x01\x80")
    assert first["sparse"] == [{"index": 5, "value": 0.5}]
    assert {name for name, value in second.items() if value is None} == first.keys() - {"id", "words", "floats"}
    assert second["words"] == []


def test_pandas_reads_it(written: Path) -> None:
    frame = pd.read_parquet(written).set_index("id")
    assert [list(frame.at[1, name]) for name in ("floats", "halves", "brains")] == [VECTOR] * 3
    assert (frame.at[1, "text"], list(frame.at[1, "words"]), frame.at[1, "bits"]) == ("é", ["a", "b"], b"\x01\x80")
    assert frame.loc[2].drop(["words", "floats"]).isna().all()


def test_a_file_says_what_it_is(written: Path) -> None:
    schema = pq.read_schema(written)
    assert schema.metadata[FORMAT_KEY] == b"1"
    told = schema_pb2.CollectionSchema.FromString(base64.b64decode(schema.metadata[SCHEMA_KEY]))
    assert told.name == "docs"
    assert schema.field("brains").metadata[TYPE_KEY] == b"BFloat16Vector"
    assert pq.ParquetFile(written).metadata.row_group(0).column(0).compression == "ZSTD"
