"""A collection's rows by pages of keys: read from one cluster, and written to another one as they were read.

Decisions made here:

* A page is asked for by key (``key > last``), never by offset, and says nothing about the end: servers answer with more
  rows than the limit, and with fewer although there are more. The end is a page without rows.
* Columns stay protobuf, as they came: nothing is lost, and the bulk (vectors) is copied by C code. What a server cannot
  take back the way it gave it out is mended in `rows_message`: an empty array without a type kills Milvus 2.3.5, null
  cells have no place in an insert, ``$meta`` has to be marked as dynamic, what a function computes is not written.
* Every column is asked for by name: ``*`` means other things to other servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus.expressions import in_list, literal
from haclient.milvus.messages import Key, Request
from haclient.milvus.methods import named
from haclient.milvus.shape import DYNAMIC, Shape, parse
from haclient.milvus.timestamps import SESSION, STRONG
from haclient.milvus.wireformat import embed

#: Most rows that a server gives at once (``quotaAndLimits.limits.maxQueryResultWindow``).
MOST_ROWS: Final = 16_384
_LOWEST: Final = -(1 << 63)
_HIGHEST: Final = (1 << 63) - 1
_FIELDS_DATA: Final = 5

#: The list that a cell of an array field has its elements in, by the type of the elements.
_ELEMENTS: Final = {
    schema_pb2.Bool: "bool_data",
    schema_pb2.Int8: "int_data",
    schema_pb2.Int16: "int_data",
    schema_pb2.Int32: "int_data",
    schema_pb2.Int64: "long_data",
    schema_pb2.Float: "float_data",
    schema_pb2.Double: "double_data",
    schema_pb2.VarChar: "string_data",
}


@final
class Page:
    """Rows with consecutive keys.

    Attributes:
        columns: ``schema_pb2.FieldData`` by name.
        keys: The rows' keys, in the order of the rows.
        size: Bytes of the answer it came in.
    """

    __slots__ = ("columns", "keys", "size")

    def __init__(self, columns: Iterable[Any], key: str, size: int = 0) -> None:
        self.columns: dict[str, Any] = {column.field_name: column for column in columns}
        self.size = size
        self.keys: list[Key] = []
        if key in self.columns:
            scalars = self.columns[key].scalars
            self.keys = [*scalars.long_data.data, *scalars.string_data.data]


def stored(shape: Shape) -> list[str]:
    """Return the names of all columns that a client writes, ``$meta`` included, in alphabetical order."""
    names = (shape.fields.keys() - shape.computed) | shape.structs.keys()
    return sorted(names | ({DYNAMIC} if shape.dynamic else set()))


def page_query(
    shape: Shape,
    after: Key | None,
    limit: int,
    *,
    through: Key | None = None,
    partition: str = "",
    timestamp: int = 0,
) -> Request | None:
    """Ask for the rows with the lowest keys above a key.

    Args:
        shape: The collection.
        after: Highest key of the page before; None for the first page.
        limit: Number of rows; the answer may hold more.
        through: Highest key wanted; None for no limit.
        partition: Its name, "" for all of them.
        timestamp: What the answer must be as fresh as, of this cluster's own clock; 0 for everything written.

    Returns:
        The request, or None if no key can be above ``after``.
    """
    lowest = _from(shape.key, after, text=shape.key_type == "varchar")
    if lowest is None:
        return None
    expression = lowest if through is None else f"{lowest} and {shape.key} <= {literal(through)}"
    message = _query(shape, expression, partition, timestamp)
    pairs = {"limit": str(min(limit, MOST_ROWS)), "iterator": "True", "reduce_stop_for_best": "True"}
    for name, value in pairs.items():
        message.query_params.add(key=name, value=value)
    return Request(named("Query"), message.SerializeToString())


def rows_query(shape: Shape, keys: Sequence[Key], *, partition: str = "", timestamp: int = 0) -> Request:
    """Ask for the rows with these keys, of which a server may have any; arguments as in `page_query`."""
    message = _query(shape, in_list(shape.key, keys), partition, timestamp)
    return Request(named("Query"), message.SerializeToString())


def _query(shape: Shape, expression: str, partition: str, timestamp: int) -> Any:
    return milvus_pb2.QueryRequest(
        db_name=shape.database,
        collection_name=shape.collection,
        expr=expression,
        output_fields=stored(shape),
        partition_names=[partition] if partition else [],
        guarantee_timestamp=timestamp,
        consistency_level=SESSION if timestamp else STRONG,
    )


def _from(key: str, after: Key | None, *, text: bool) -> str | None:
    """Write the lower bound; Milvus 2.3.5 cannot read the lowest integer there is, so it is never written."""
    if text:
        return f'{key} >= ""' if after is None else f"{key} > {literal(after)}"
    if after is None:
        return f"{key} <= {_HIGHEST}"
    assert isinstance(after, int)
    return f"{key} >= {after + 1}" if after < _HIGHEST else None


def read_page(reply: bytes, shape: Shape) -> Page:
    """Read the answer to `page_query` or `rows_query`.

    Raises:
        ValueError: The bytes are something else, or a column is missing.
    """
    page = Page(parse(milvus_pb2.QueryResults, reply).fields_data, shape.key, len(reply))
    if page.keys and (missing := set(stored(shape)).difference(page.columns)):
        raise ValueError(f"{shape.collection}: the server left out {', '.join(sorted(missing))}")
    return page


def rows_message(page: Page, shape: Shape, partition: str = "") -> bytes:
    """Make the request that writes a page's rows: an UpsertRequest, whose bytes are an InsertRequest too.

    The page's columns are mended in place, which does not change what they say.
    """
    head: bytes = milvus_pb2.UpsertRequest(
        db_name=shape.database,
        collection_name=shape.collection,
        partition_name=partition,
        num_rows=len(page.keys),
    ).SerializeToString()
    columns = [_mend(column, shape.fields.get(name)) for name, column in page.columns.items()]
    return head + b"".join(embed(_FIELDS_DATA, column.SerializeToString()) for column in columns)


def _mend(column: Any, field: Any) -> Any:
    column.field_id = 0  # of the cluster that it was read from
    column.is_dynamic = column.field_name == DYNAMIC
    if column.type == schema_pb2.Array and field is not None:
        cells = column.scalars.array_data
        cells.element_type = field.element_type
        elements = _ELEMENTS.get(field.element_type)
        for cell in cells.data:
            if elements is not None and cell.WhichOneof("data") is None:
                getattr(cell, elements).SetInParent()
    if column.valid_data and column.HasField("scalars"):
        _compact(column)
    return column


def _compact(column: Any) -> None:
    """Take the place-holders of null cells out: a reply has one for each, a write has none."""
    valid = column.valid_data[:]
    kind = column.scalars.WhichOneof("data")
    if kind is None or all(valid):
        return
    cells = getattr(column.scalars, kind)
    if len(cells.data) == len(valid):
        kept = [cell for cell, ok in zip(cells.data, valid, strict=True) if ok]
        del cells.data[:]
        cells.data.extend(kept)
