"""A collection's rows by pages of keys: read from one cluster, and written to another one as they were read.

Decisions made here:

* A page is asked for by key (``key > last``), never by offset, and says nothing about the end: servers answer with more
  rows than the limit, and with fewer although there are more. The end is a page without rows.
* Columns stay protobuf, as they came: nothing is lost, and the bulk (vectors) is copied by C code. What a server cannot
  take back the way it gave it out is brought into the form of writes (`haclient.milvus.columns`): empty arrays without
  a type kill Milvus 2.3.5, null cells have no place in a write. What a function computes is neither read nor written.
* Every column is asked for by name: ``*`` means other things to other servers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus import columns
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


@final
class Page:
    """Rows with consecutive keys.

    Attributes:
        columns: ``schema_pb2.FieldData`` by name.
        keys: The rows' keys, in the order of the rows.
        size: Bytes of the answer it came in.
    """

    __slots__ = ("columns", "keys", "size")

    def __init__(self, fields_data: Iterable[Any], key: str, size: int = 0) -> None:
        self.columns: dict[str, Any] = {column.field_name: column for column in fields_data}
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

    The page's columns are brought into form in place, which does not change what they say.

    Raises:
        InvalidWrite: A row is such as no server should have.
    """
    head: bytes = milvus_pb2.UpsertRequest(
        db_name=shape.database,
        collection_name=shape.collection,
        partition_name=partition,
        num_rows=len(page.keys),
    ).SerializeToString()
    for name, column in page.columns.items():
        if name in shape.fields:
            columns.check(column, shape.fields[name], len(page.keys))
        else:
            column.ClearField("field_id")
            column.is_dynamic = name == DYNAMIC
    return head + b"".join(embed(_FIELDS_DATA, column.SerializeToString()) for column in page.columns.values())
