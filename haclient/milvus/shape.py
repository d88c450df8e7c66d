"""What replicated writes must know of one collection, read from DescribeCollection.

Decision made here: a collection whose keys haclient makes is an ordinary collection whose key field carries a mark; the
user sees an auto_id one. The mark is in the schema itself, so every process, and every cluster copied from another one,
knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from haclient.errors import HAClientError


class InvalidWrite(HAClientError, ValueError):
    """A write that Milvus would refuse for good; nothing was written anywhere.

    Attributes:
        code: Milvus' error code.
        reason: The text for the user.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """One collection.

    Attributes:
        collection: Its real name, also if an alias was asked for.
        database: Its database, "" for the default one.
        id: Its id on the cluster that described it.
        key: Name of the primary key.
        key_type: Type of the key.
        max_length: Most bytes of a varchar key, 0 for an integer.
        auto_id: The user gives no keys: haclient makes them.
        native_auto_id: The server itself makes the keys: the collection cannot be mirrored.
        dynamic: Rows may have fields beyond those of the schema.
        fields: The schema's fields (``schema_pb2.FieldSchema``) by name.
        partition_key: Name of the field by whose value rows are put into partitions, "" if there is none.
        aliases: Its aliases.
        consistency_level: Its default level.
        schema: The ``schema_pb2.CollectionSchema``, as described: with the mark.
    """

    collection: str
    database: str
    id: int
    key: str
    key_type: Literal["int64", "varchar"]
    max_length: int
    auto_id: bool
    native_auto_id: bool
    dynamic: bool
    fields: Mapping[str, Any]
    partition_key: str
    aliases: tuple[str, ...]
    consistency_level: int
    schema: Any


def read_shape(description: bytes, database: str = "") -> Shape:
    """Read DescribeCollection's answer.

    Args:
        description: The answer's bytes, as a server gives it (not as `haclient.milvus.ddl.described` rewrites it).
        database: The database that was asked.

    Raises:
        ValueError: The bytes are something else, or the schema has no primary key.
    """
    raise NotImplementedError
