"""Where in a collection a retriever finds what it needs, and whether its embedder fits.

Decision made here: everything is looked up and compared once, before the first search, because what does not fit would
otherwise show as an error deep in a server, or not at all: vectors of another model give wrong answers without any.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, final

from haclient.call import Action, Call, Metadata, Method, Reply
from haclient.core import winner
from haclient.errors import AccessDenied, BadQuery, ConfigError
from haclient.milvus import messages, schema
from haclient.milvus.requests import Facts
from haclient.milvus.schema import Field, Schema
from haclient.retrieval.embed.embedder import Embedder, Fingerprint
from haclient.retrieval.schema import read_fingerprint

_UNAUTHENTICATED, _PERMISSION_DENIED, _UNIMPLEMENTED = 16, 7, 12
#: Milvus' ErrCollectionNotFound, and what old servers say instead.
_NOT_FOUND = (4, 100)


class Answers(Protocol):
    """Answers one call; `haclient.host.Host.answer`."""

    def __call__(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        facts: Facts | None = None,
        /,
    ) -> Coroutine[Any, Any, tuple[Reply, Call]]:
        """Return the reply, and the call with its attempts."""


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user said of the collection; "" and None where it is to be found out."""

    collection: str
    database: str
    text_field: str
    vector_field: str
    sparse_field: str
    output_fields: tuple[str, ...] | None


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """What was found.

    Attributes:
        level: The collection's consistency level.
        output_fields: Fields that the hits carry unless a question says otherwise.
        dense: The dense vector field, None if there is none.
        sparse: The sparse one.
        dense_metric: Of its index.
        sparse_metric: Of its index.
    """

    level: str
    output_fields: tuple[str, ...]
    dense: Field | None
    sparse: Field | None
    dense_metric: str
    sparse_metric: str


async def find_layout(answer: Answers, wanted: Wanted, embedder: Embedder | None) -> Layout:
    """Look the collection up and compare it with the embedder.

    Raises:
        ConfigError: They do not fit; says what does not, and what to do.
        CallError: No server answered.
    """
    described = await read(answer, messages.describe_collection(wanted.collection, database=wanted.database))
    indexes = await read(answer, schema.describe_index(wanted.collection, database=wanted.database))
    found = schema.read_schema(described, indexes)
    return _compare(found, wanted, await embedder.fingerprint() if embedder is not None else None)


async def read(answer: Answers, request: messages.Request) -> bytes:
    """Ask for metadata and return the reply's body."""
    reply, call = await answer(request.method, request.message, request.metadata)
    if winner(call) is not None:
        return reply.message
    last = call.attempts[-1]
    if request.method.name == "DescribeIndex" and last.action is Action.FAIL_FAST:
        return b""  # no index at all, which `_compare` reports
    if last.code in _NOT_FOUND:
        raise ConfigError(f"collection {call.collection!r} does not exist: {last.reason}")
    raise refusal(call, reply)


def refusal(call: Call, reply: Reply) -> Exception:
    """Make the error of a request that a server has refused for the request's own sake."""
    last = call.attempts[-1]
    what = f"{call.method.name} {call.collection}"
    if reply.code in (_UNAUTHENTICATED, _PERMISSION_DENIED):
        return AccessDenied(f"{what}: {reply.details}", call.attempts, code=reply.code)
    if reply.code == _UNIMPLEMENTED:
        return BadQuery(f"{what}: {last.cluster}/{last.endpoint} does not know this call; it needs a newer Milvus")
    return BadQuery(f"{what}: {last.cluster}/{last.endpoint} refused it: {last.reason}")


def _compare(found: Schema, wanted: Wanted, fingerprint: Fingerprint | None) -> Layout:
    name = found.collection or wanted.collection
    dense = _pick(found, name, wanted.vector_field, "FloatVector", "vector_field")
    sparse = _pick(found, name, wanted.sparse_field, "SparseFloatVector", "sparse_field")
    if dense is None and sparse is None:
        kinds = ", ".join(f"{one.name} ({one.kind})" for one in found.fields)
        raise ConfigError(f"collection {name!r} has no float or sparse vector field to search; it has {kinds}")
    if wanted.text_field and found.find(wanted.text_field) is None and not found.is_dynamic:
        names = ", ".join(one.name for one in found.fields)
        raise ConfigError(
            f"collection {name!r} has no field {wanted.text_field!r}; give text_field=..., one of {names}"
        )
    for field in (dense, sparse):
        if field is not None and field.name not in found.metrics:
            raise ConfigError(f"field {field.name!r} of collection {name!r} has no index, so it cannot be searched")
    if dense is not None and fingerprint is not None:
        _fit(found, name, dense, fingerprint)
    dense_metric, sparse_metric = (found.metrics[one.name] if one is not None else "" for one in (dense, sparse))
    fields = _default_fields(found) if wanted.output_fields is None else wanted.output_fields
    return Layout(found.level, fields, dense, sparse, dense_metric, sparse_metric)


def _fit(found: Schema, name: str, dense: Field, fingerprint: Fingerprint) -> None:
    if dense.dimension != fingerprint.dimension:
        raise ConfigError(
            f"field {dense.name!r} of collection {name!r} holds vectors of {dense.dimension} numbers, and the embedder "
            f"{fingerprint.model} makes {fingerprint.dimension}; use the model that filled the collection"
        )
    filled = read_fingerprint({"properties": found.properties})
    if filled is not None and str(filled) != str(fingerprint):
        raise ConfigError(
            f"collection {name!r} was filled by another embedder, and two models must not be mixed: it says {filled}, "
            f"and this one is {fingerprint}"
        )


def _pick(found: Schema, name: str, wanted: str, kind: str, argument: str) -> Field | None:
    """Return the field asked for, or the only one of its kind."""
    having = found.vectors(kind)
    if not wanted:
        if len(having) > 1:
            names = ", ".join(one.name for one in having)
            raise ConfigError(
                f"collection {name!r} has several fields of type {kind}: give {argument}=, one of {names}"
            )
        return having[0] if having else None
    field = found.find(wanted)
    if field is None or field.kind != kind:
        what = f"is a {field.kind}" if field is not None else "does not exist"
        names = ", ".join(one.name for one in having) or "none (a server that knows no such type drops it silently)"
        raise ConfigError(f"field {wanted!r} of collection {name!r} {what}; fields of type {kind}: {names}")
    return field


def _default_fields(found: Schema) -> tuple[str, ...]:
    """Return every scalar field, and the dynamic ones."""
    names = [one.name for one in found.fields if not one.is_vector and not one.is_key]
    return (*names, "$meta") if found.is_dynamic else tuple(names)
