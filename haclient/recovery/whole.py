"""Rows in the form in which a server gives them back.

Decision made here: a row that was written without some of its columns is completed before it is hashed. Where servers
put something into words of their own (times, geometry) or fill in a default, its hash proves nothing, and only the
number of rows is compared.
"""

from __future__ import annotations

from typing import Final

from pymilvus.grpc_gen import schema_pb2

from haclient.milvus.datatypes import DataType
from haclient.milvus.pages import Page
from haclient.milvus.shape import DYNAMIC, Shape
from haclient.recovery.rows import null_column

_REWORDED: Final = frozenset(
    (DataType.Geometry, DataType.Timestamptz, DataType.Mol, DataType.Date, DataType.Time, DataType.Decimal)
)


def is_reworded(shape: Shape) -> bool:
    """Say whether servers give rows of a collection back in other words than they were written in."""
    return any(field.data_type in _REWORDED for field in shape.fields.values())


def complete(page: Page, shape: Shape) -> bool:
    """Add the columns that rows were written without; say whether their hashes are those of what is given back."""
    exact, count = True, len(page.keys)
    for name, field in shape.fields.items():
        if name in shape.computed:
            continue
        if field.HasField("default_value"):
            exact = exact and name in page.columns and all(page.columns[name].valid_data)
        if name not in page.columns:
            page.columns[name] = null_column(field, count)
    if shape.dynamic and DYNAMIC not in page.columns:
        column = schema_pb2.FieldData(field_name=DYNAMIC, type=DataType.JSON, is_dynamic=True)
        column.scalars.json_data.data.extend([b"{}"] * count)
        page.columns[DYNAMIC] = column
    return exact
