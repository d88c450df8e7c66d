"""Several writes of the log made into one request, and back into keys.

Decision made here: InsertRequest and UpsertRequest have the same fields under the same numbers (but for ``namespace``, 9
and 10), so one is made of the other by renaming the method; and messages with the same columns are merged column by
column.
"""

from __future__ import annotations

from collections.abc import Sequence

from haclient.milvus.messages import Key
from haclient.milvus.status import Flavour


def keys_of(method: str, message: bytes, key: str) -> list[Key]:
    """Return the keys that an entry of the log writes or deletes.

    Args:
        method: ``Insert``, ``Upsert`` or ``Delete``.
        message: The entry's message.
        key: Name of the primary key.

    Raises:
        ValueError: The message is none of the log's.
    """
    raise NotImplementedError


def mergeable(one: tuple[str, bytes], other: tuple[str, bytes]) -> bool:
    """Say whether two entries (method, message) of one stream can become one request.

    Rows with rows and deletes with deletes, of the same partition and, for rows, with the same columns. Whether a key
    repeats, and whether the batch gets too big, is for the caller to say.
    """
    raise NotImplementedError


def merge(entries: Sequence[tuple[str, bytes]], key: str) -> bytes:
    """Merge entries (method, message), each mergeable with the first, into one message; a single one as it is.

    Rows become an UpsertRequest (bytes that are an InsertRequest too, see `as_insert`), in order; deletes one
    DeleteRequest of all their keys.
    """
    raise NotImplementedError


def as_upsert(message: bytes) -> bytes:
    """Return the bytes of an InsertRequest of the log as an UpsertRequest."""
    raise NotImplementedError


def as_insert(message: bytes) -> bytes:
    """Return the bytes of an UpsertRequest of the log as an InsertRequest."""
    raise NotImplementedError


def replaces_rows(flavour: Flavour) -> str:
    """Return the method (``Insert`` or ``Upsert``) that replaces whole rows by key on this kind of server."""
    raise NotImplementedError
