"""A user's write, turned into what goes into the mutation log: checked, complete, and the same for every cluster.

Decision made here: whatever every server would refuse is refused before the append, by the schema. What is left to
refuse for a server is then of that server alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from haclient.milvus.messages import Key
from haclient.milvus.shape import InvalidWrite, Shape

__all__ = [
    "Deletion",
    "InvalidWrite",
    "Rows",
    "answer",
    "delete_keys",
    "deletion",
    "keys_of_reply",
    "keys_query",
    "rows",
]


@final
@dataclass(frozen=True, slots=True)
class Rows:
    """An insert or upsert in the form of the log.

    Attributes:
        method: ``Insert`` if haclient made the keys, else ``Upsert``.
        message: The serialised InsertRequest or UpsertRequest.
        keys: The rows' keys, in their order.
        count: Number of rows.
    """

    method: str
    message: bytes
    keys: Sequence[Key]
    count: int


def rows(
    method_name: str, message: bytes, shape: Shape, database: str, new_keys: Callable[[int], Sequence[int]]
) -> Rows:
    """Turn an InsertRequest or UpsertRequest into what goes into the log.

    Args:
        method_name: ``Insert`` or ``Upsert``.
        message: The user's request.
        shape: The collection that it is for.
        database: The collection's database, "" for the default one.
        new_keys: Makes this many new keys, in ascending order; asked once, for an auto_id collection only.

    Raises:
        InvalidWrite: Milvus would refuse it.
    """
    raise NotImplementedError


@final
@dataclass(frozen=True, slots=True)
class Deletion:
    """What a DeleteRequest asks for.

    Attributes:
        keys: The keys, if the expression is nothing but a list of them; None if it has to be resolved.
        expression: The expression.
        partition: Name of the partition, "" for all.
        values: The expression's template values (``schema_pb2.TemplateValue``) by name.
    """

    keys: list[Key] | None
    expression: str
    partition: str
    values: Mapping[str, Any]


def deletion(message: bytes, shape: Shape) -> Deletion:
    """Read a DeleteRequest.

    Raises:
        InvalidWrite: Milvus would refuse it.
    """
    raise NotImplementedError


def delete_keys(shape: Shape, keys: Sequence[Key], partition: str, database: str) -> list[bytes]:
    """Make DeleteRequests of bounded size that delete exactly these keys; none for no keys."""
    raise NotImplementedError


def keys_query(
    shape: Shape,
    expression: str,
    partition: str,
    database: str,
    after: Key | None = None,
    values: Mapping[str, Any] | None = None,
) -> bytes:
    """Make one page of the Strong QueryRequest that resolves an expression to keys, in ascending order of the key.

    Args:
        shape: The collection.
        expression: Of the DeleteRequest.
        partition: Of the DeleteRequest.
        database: "" for the default one.
        after: Highest key of the page before, None for the first page.
        values: Template values of the expression.
    """
    raise NotImplementedError


def keys_of_reply(reply: bytes, shape: Shape) -> list[Key]:
    """Read the keys of a page's QueryResults, ascending; the pages end with the first that has none.

    Raises:
        ValueError: The bytes are something else.
    """
    raise NotImplementedError


def answer(method_name: str, keys: Sequence[Key], count: int, timestamp: int) -> bytes:
    """Make the MutationResult that the user gets.

    Args:
        method_name: ``Insert``, ``Upsert`` or ``Delete``: what the user called.
        keys: The keys written; of a delete none are told.
        count: Number of rows; of a delete, of keys.
        timestamp: The session token.
    """
    raise NotImplementedError
