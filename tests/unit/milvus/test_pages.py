"""Pages of rows: what is asked, and that what a server gives can be given to another one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus.pages import page_query, read_page, rows_message, rows_query, stored
from haclient.milvus.shape import Shape, read_shape

D = schema_pb2.DataType
LOWEST, HIGHEST = -(2**63), 2**63 - 1


def shape(*, text_key: bool = False, dynamic: bool = True, more: Any = None) -> Shape:
    reply = milvus_pb2.DescribeCollectionResponse(collection_name="docs")
    schema = reply.schema
    schema.enable_dynamic_field = dynamic
    key = schema.fields.add(name="id", is_primary_key=True, data_type=D.VarChar if text_key else D.Int64)
    if text_key:
        key.type_params.add(key="max_length", value="64")
    schema.fields.add(name="numbers", data_type=D.Array, element_type=D.Int32)
    schema.fields.add(name="words", data_type=D.Array, element_type=D.VarChar)
    schema.fields.add(name="maybe", data_type=D.Int64, nullable=True)
    schema.fields.add(name="vector", data_type=D.FloatVector).type_params.add(key="dim", value="2")
    schema.fields.add(name="sparse", data_type=D.SparseFloatVector, is_function_output=True)
    function = schema.functions.add(name="bm25")
    function.output_field_names.append("sparse")
    if more is not None:
        more(schema)
    return read_shape(reply.SerializeToString(), "db1")


def reply_of(keys: list[int], *, meta: bytes = b"{}") -> bytes:
    """Rows as Milvus 2.3.5 gives them: empty arrays without a type, place-holders of null cells, field ids."""
    reply = milvus_pb2.QueryResults()
    column = reply.fields_data.add(field_name="id", type=D.Int64, field_id=100)
    column.scalars.long_data.data.extend(keys)
    for name, kind, slot in (("numbers", D.Int32, "int_data"), ("words", D.VarChar, "string_data")):
        column = reply.fields_data.add(field_name=name, type=D.Array, field_id=101)
        column.scalars.array_data.element_type = kind
        for i in range(len(keys)):
            cell = column.scalars.array_data.data.add()
            if i % 2:
                getattr(cell, slot).data.extend([7] if slot == "int_data" else ["x"])
    column = reply.fields_data.add(field_name="maybe", type=D.Int64, field_id=102)
    column.valid_data.extend(i % 2 == 0 for i in range(len(keys)))
    column.scalars.long_data.data.extend(range(len(keys)))
    column = reply.fields_data.add(field_name="vector", type=D.FloatVector, field_id=103)
    column.vectors.dim = 2
    column.vectors.float_vector.data.extend(np.arange(2 * len(keys), dtype=np.float32))
    column = reply.fields_data.add(field_name="$meta", type=D.JSON, field_id=104)
    column.scalars.json_data.data.extend([meta] * len(keys))
    return bytes(reply.SerializeToString())


def parsed(query: Any) -> Any:
    assert query is not None
    return milvus_pb2.QueryRequest.FromString(query.message)


@pytest.mark.parametrize(
    ("text_key", "after", "through", "expression"),
    [
        (False, None, None, f"id <= {HIGHEST}"),
        (False, -5, None, "id >= -4"),
        (False, LOWEST, None, f"id >= {LOWEST + 1}"),
        (False, 3, 9, "id >= 4 and id <= 9"),
        (True, None, None, 'id >= ""'),
        (True, "", None, 'id > ""'),
        (True, 'q"\\\n\r', None, 'id > "q\\"\\\\\\n\\r"'),
        (True, "a", "b", 'id > "a" and id <= "b"'),
    ],
)
def test_a_page_is_asked_for_by_key_in_words_that_all_servers_read(
    text_key: bool, after: Any, through: Any, expression: str
) -> None:
    asked = parsed(page_query(shape(text_key=text_key), after, 10, through=through, partition="p1"))
    assert asked.expr == expression
    assert list(asked.partition_names) == ["p1"]
    assert {pair.key: pair.value for pair in asked.query_params}["limit"] == "10"


def test_behind_the_highest_number_there_is_no_page() -> None:
    assert page_query(shape(), HIGHEST, 10) is None


def test_every_column_that_a_client_writes_is_asked_for_by_name() -> None:
    assert stored(shape()) == ["$meta", "id", "maybe", "numbers", "vector", "words"]
    assert stored(shape(dynamic=False)) == ["id", "maybe", "numbers", "vector", "words"]


def test_a_read_waits_for_everything_unless_it_is_told_for_what() -> None:
    strong, fresh = parsed(rows_query(shape(), [1])), parsed(rows_query(shape(), [1], timestamp=99))
    assert (strong.guarantee_timestamp, strong.consistency_level) == (0, 0)
    assert (fresh.guarantee_timestamp, fresh.consistency_level) == (99, 1)


def test_rows_can_be_written_as_they_were_read() -> None:
    told = shape()
    page = read_page(reply_of([5, 1, 3]), told)
    assert page.keys == [5, 1, 3]
    for request in (milvus_pb2.UpsertRequest, milvus_pb2.InsertRequest):
        message = request.FromString(rows_message(page, told, "p1"))
        assert (message.db_name, message.collection_name, message.partition_name, message.num_rows) == (
            *("db1", "docs", "p1"),
            3,
        )
        columns = {column.field_name: column for column in message.fields_data}
        assert [cell.WhichOneof("data") for cell in columns["numbers"].scalars.array_data.data] == ["int_data"] * 3
        assert [cell.WhichOneof("data") for cell in columns["words"].scalars.array_data.data] == ["string_data"] * 3
        assert list(columns["maybe"].valid_data) == [True, False, True]
        assert list(columns["maybe"].scalars.long_data.data) == [0, 2]
        assert list(columns["vector"].vectors.float_vector.data) == list(range(6))
        assert columns["$meta"].is_dynamic
        assert not any(column.field_id for column in message.fields_data)


def test_a_column_that_the_server_left_out_is_an_error_not_a_loss() -> None:
    reply = milvus_pb2.QueryResults.FromString(reply_of([1]))
    del reply.fields_data[3]
    with pytest.raises(ValueError, match="left out maybe"):
        read_page(reply.SerializeToString(), shape())


def test_an_answer_without_rows_is_an_empty_page() -> None:
    assert read_page(milvus_pb2.QueryResults().SerializeToString(), shape()).keys == []


@given(st.binary(max_size=60))
def test_what_is_no_page_is_a_value_error(message: bytes) -> None:
    with suppress(ValueError):
        read_page(message, shape())
