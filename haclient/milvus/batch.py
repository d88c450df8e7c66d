"""Several writes of the log made into one request, and the keys that a write is about.

Decision made here: InsertRequest and UpsertRequest have the same fields under the same numbers but for what the log has
none of (``namespace``, 9 and 10; ``partial_update``, 9; ``field_ops``, 11), so the bytes of an entry are both. Messages
with the same columns are merged column by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus import expressions
from haclient.milvus.columns import FLAT
from haclient.milvus.messages import Key
from haclient.milvus.shape import parse
from haclient.milvus.status import Flavour
from haclient.milvus.wireformat import BYTES, bytes_field, fields

# Field numbers of all three requests, and of FieldData.
_PARTITION, _COLUMN, _EXPRESSION = 4, 5, 5
_NAME = 2

_Head = tuple[bool, bytes, frozenset[bytes]]


def keys_of(method: str, message: bytes, key: str) -> list[Key]:
    """Return the keys that an entry of the log writes or deletes.

    Args:
        method: ``Insert``, ``Upsert`` or ``Delete``.
        message: The entry's message.
        key: Name of the primary key.

    Raises:
        ValueError: The message is none of the log's.
    """
    if method == "Delete":
        expression = (bytes_field(message, _EXPRESSION) or b"").decode()
        keys = expressions.listed(expression, key, {})
        if keys is None:
            raise ValueError(f"not a list of keys: {expression[:200]!r}")
        return keys
    name = key.encode()
    for number, kind, a, b in fields(message):
        # Only the key's column is parsed: the vectors are skipped.
        if number == _COLUMN and kind == BYTES and bytes_field(message, _NAME, a, b) == name:
            scalars = parse(schema_pb2.FieldData, message[a:b]).scalars
            return [*scalars.long_data.data, *scalars.string_data.data]
    raise ValueError(f"rows without their key {key!r}")


def partition_of(message: bytes) -> str:
    """Return the partition that an entry's rows go to, "" if it names none."""
    return (bytes_field(message, _PARTITION) or b"").decode()


def mergeable(one: tuple[str, bytes], other: tuple[str, bytes]) -> bool:
    """Say whether two entries (method, message) of one stream can become one request.

    Rows with rows and deletes with deletes, of the same partition and, for rows, with the same columns. Whether a key
    repeats, and whether the batch gets too big, is for the caller to say.
    """
    return _head(*one) == _head(*other)


def _head(method: str, message: bytes) -> _Head:
    """Return what messages that are merged have in common: whether they delete, the partition, the columns."""
    partition, names = b"", set()
    for number, kind, a, b in fields(message):
        if kind != BYTES:
            continue
        if number == _PARTITION:
            partition = message[a:b]
        elif number == _COLUMN and method != "Delete":
            names.add(bytes_field(message, _NAME, a, b) or b"")
    return method == "Delete", partition, frozenset(names)


def merge(entries: Sequence[tuple[str, bytes]], key: str) -> bytes:
    """Merge entries (method, message), each mergeable with the first, into one message; a single one as it is.

    Args:
        entries: At least one.
        key: Name of the primary key.

    Returns:
        Rows in their order, an InsertRequest and an UpsertRequest alike; or one DeleteRequest of all keys, each once.
    """
    if len(entries) == 1:
        return entries[0][1]
    if entries[0][0] == "Delete":
        request = parse(milvus_pb2.DeleteRequest, entries[0][1])
        keys = dict.fromkeys(one for method, message in entries for one in keys_of(method, message, key))
        request.expr = expressions.in_list(key, keys)
        return bytes(request.SerializeToString())
    request = parse(milvus_pb2.UpsertRequest, entries[0][1])
    columns = [_Column(column) for column in request.fields_data]
    by_name = {column.data.field_name: column for column in columns}
    for _, message in entries[1:]:
        more = parse(milvus_pb2.UpsertRequest, message)
        request.num_rows += more.num_rows
        for column in more.fields_data:
            by_name[column.field_name].append(column)
    for column in columns:
        column.finish()
    return bytes(request.SerializeToString())


class _Column:
    """A column that grows: protobuf's own merging, but for values that it would replace."""

    __slots__ = ("_flat", "_slot", "_structs", "data")

    def __init__(self, data: Any) -> None:
        self.data = data
        slot = data.vectors.WhichOneof("data") if data.HasField("vectors") else None
        self._slot: Final = slot if slot in FLAT else ""
        self._flat = [getattr(data.vectors, self._slot)] if self._slot else []
        self._structs = {one.field_name: _Column(one) for one in data.struct_arrays.fields}

    def append(self, data: Any) -> None:
        if self._structs:
            self.data.valid_data.extend(data.valid_data)
            for one in data.struct_arrays.fields:
                self._structs[one.field_name].append(one)
            return
        if self._slot:
            self._flat.append(getattr(data.vectors, self._slot))
        # Of sparse vectors it is the highest index so far; of all others it is the same.
        dimension = max(self.data.vectors.sparse_float_vector.dim, data.vectors.sparse_float_vector.dim)
        self.data.MergeFrom(data)
        if dimension:
            self.data.vectors.sparse_float_vector.dim = dimension

    def finish(self) -> None:
        if self._slot:
            setattr(self.data.vectors, self._slot, b"".join(self._flat))
        for column in self._structs.values():
            column.finish()


def replaces_rows(flavour: Flavour) -> str:
    """Return the method (``Insert`` or ``Upsert``) that replaces whole rows by key on this kind of server.

    Measured: on a real Milvus an Insert of a key that is there keeps both rows and an Upsert replaces the row, dynamic
    fields and all. On Lite it is the other way round: an Insert replaces the row, an Upsert keeps old dynamic fields
    and columns that it does not name.
    """
    return "Insert" if flavour is Flavour.LITE else "Upsert"
