"""Search requests, straight from numpy to bytes.

Decision made here: all of a request but its vectors is the same from one question to the next, so it is built once,
by pymilvus' protobuf classes (`search_head`, `hybrid_head`), and kept by the caller. What is left per question is
joining a few byte strings: protobuf fields may come in any order
(https://protobuf.dev/programming-guides/encoding/#order).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.milvus.timestamps import BOUNDED, EVENTUALLY, EVENTUALLY_TIMESTAMP, SESSION, STRONG
from haclient.milvus.wireformat import BYTES, embed, varint

FloatRows = npt.NDArray[np.float32]
SparseRow = Mapping[int, float]

#: Consistency levels a read can ask for, by the names that pymilvus uses.
LEVELS: Final = {"Strong": STRONG, "Session": SESSION, "Bounded": BOUNDED, "Eventually": EVENTUALLY}
#: guarantee_timestamp that stands for "within the server's bound".
_BOUNDED_TIMESTAMP: Final = 2

# Field numbers of SearchRequest; HybridSearchRequest has its guarantee_timestamp and its searches elsewhere.
_PLACEHOLDERS, _SEARCH_TIMESTAMP, _NQ = 6, 11, 12
_HYBRID_SEARCHES, _HYBRID_TIMESTAMP = 5, 8
# PlaceholderValue.type (common.proto).
_FLOATS, _SPARSE, _TEXT = 101, 104, 21
_FLOAT32 = np.dtype("<f4")


@final
@dataclass(frozen=True, slots=True)
class Leg:
    """One approximate search: which field, how.

    Attributes:
        vector_field: Its name.
        limit: Number of hits.
        filter: Boolean expression, "" for none.
        params: Search parameters of the index, for example ``{"ef": 64}``.
    """

    vector_field: str
    limit: int
    filter: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Target:
    """What every search of one request shares.

    Attributes:
        collection: Collection or alias.
        database: "" for the default one.
        output_fields: Fields that the hits carry.
        partitions: Names of partitions, all if empty.
        level: Consistency level, one of `LEVELS`; "" for the collection's own.
    """

    collection: str
    database: str = ""
    output_fields: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    level: str = ""


def search_head(target: Target, leg: Leg) -> bytes:
    """Serialise a SearchRequest without vectors and timestamp."""
    message = _search(target, leg)
    message.output_fields.extend(target.output_fields)
    _set_level(message, target)
    return bytes(message.SerializeToString())


def sub_head(target: Target, leg: Leg) -> bytes:
    """Serialise one of the searches inside a HybridSearchRequest, without vectors."""
    return bytes(_search(target, leg).SerializeToString())


def hybrid_head(target: Target, limit: int, ranker: Mapping[str, Any]) -> bytes:
    """Serialise a HybridSearchRequest without its searches and timestamp.

    Args:
        target: Where.
        limit: Number of hits after merging.
        ranker: ``strategy`` and ``params``, as the server takes them.
    """
    message = milvus_pb2.HybridSearchRequest(
        db_name=target.database,
        collection_name=target.collection,
        partition_names=target.partitions,
        output_fields=target.output_fields,
    )
    for key, value in {**ranker, "limit": limit, "round_decimal": -1, "offset": 0}.items():
        message.rank_params.add(key=key, value=_text(value))
    _set_level(message, target)
    return bytes(message.SerializeToString())


def search_request(head: bytes, group: bytes, count: int, timestamp: int = 0) -> bytes:
    """Join a request.

    Args:
        head: From `search_head` or `sub_head`.
        group: From `floats`, `sparse` or `texts`.
        count: How many questions are in the group.
        timestamp: From `guarantee`.
    """
    return b"".join((head, _length(_PLACEHOLDERS, len(group)), group, _tail(count, timestamp)))


def hybrid_request(head: bytes, searches: Sequence[bytes], timestamp: int = 0) -> bytes:
    """Join a HybridSearchRequest from `hybrid_head` and one `search_request` per leg."""
    stamp = varint(_HYBRID_TIMESTAMP << 3) + varint(timestamp) if timestamp else b""
    return b"".join((head, *(embed(_HYBRID_SEARCHES, search) for search in searches), stamp))


def floats(rows: FloatRows) -> bytes:
    """Serialise the PlaceholderGroup of float vectors, shape ``[count, dimension]``."""
    if rows.dtype != _FLOAT32:
        rows = rows.astype(_FLOAT32)
    return _group(_FLOATS, [row.tobytes() for row in rows] if len(rows) > 1 else [rows.tobytes()])


def sparse(rows: Sequence[SparseRow]) -> bytes:
    """Serialise the PlaceholderGroup of sparse vectors: pairs of uint32 index and float32 value, by index."""
    return _group(_SPARSE, [b"".join(struct.pack("<If", i, row[i]) for i in sorted(row)) for row in rows])


def texts(rows: Sequence[str]) -> bytes:
    """Serialise the PlaceholderGroup of texts, for a field that the server computes from text (BM25)."""
    return _group(_TEXT, [text.encode() for text in rows])


def guarantee(level: str, last_write: int = 0) -> int:
    """Return the guarantee_timestamp that goes with a consistency level, as pymilvus' clients send it.

    Args:
        level: One of `LEVELS`, or "" for the collection's own.
        last_write: Timestamp of this client's last write to the collection, 0 if there is none.
    """
    if level == "Strong":
        return 0
    if level == "Bounded":
        return _BOUNDED_TIMESTAMP
    if level == "Eventually":
        return EVENTUALLY_TIMESTAMP
    return last_write or EVENTUALLY_TIMESTAMP


def _search(target: Target, leg: Leg) -> Any:
    message = milvus_pb2.SearchRequest(
        db_name=target.database,
        collection_name=target.collection,
        partition_names=target.partitions,
        dsl=leg.filter,
        dsl_type=common_pb2.DslType.BoolExprV1,
        use_default_consistency=True,
    )
    # The metric is left out: the index knows it.
    pairs = {"anns_field": leg.vector_field, "topk": leg.limit, "round_decimal": -1, "params": dict(leg.params)}
    for key, value in pairs.items():
        message.search_params.add(key=key, value=_text(value))
    return message


def _set_level(message: Any, target: Target) -> None:
    message.use_default_consistency = not target.level
    if target.level:
        message.consistency_level = LEVELS[target.level]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _group(kind: int, values: Sequence[bytes]) -> bytes:
    """Serialise PlaceholderGroup{placeholders=1: PlaceholderValue{tag=1 "$0", type=2, values=3}}."""
    start = b"\n\x02$0\x10" + varint(kind)
    if len(values) == 1:
        before = _length(3, len(values[0]))
        size = len(start) + len(before) + len(values[0])
        return b"".join((_length(1, size), start, before, values[0]))
    return embed(1, b"".join((start, *(embed(3, value) for value in values))))


# The same few numbers in all requests of an application.


@lru_cache(maxsize=1024)
def _length(number: int, size: int) -> bytes:
    """Return what stands before ``size`` bytes of a field."""
    return varint(number << 3 | BYTES) + varint(size)


@lru_cache(maxsize=1024)
def _tail(count: int, timestamp: int) -> bytes:
    stamp = varint(_SEARCH_TIMESTAMP << 3) + varint(timestamp) if timestamp else b""
    return varint(_NQ << 3) + varint(count) + stamp
