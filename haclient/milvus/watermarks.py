"""The collection in which every cluster says how far it is: requests that write and read it, and their answers.

Decision made here: a mark is rows of an ordinary collection, one for the cluster and one for each stream of which
there is more to say, all written by one Upsert into one shard, so that they are seen together or not at all. The
vector is there because Milvus wants one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus import timestamps
from haclient.milvus.expressions import in_list
from haclient.milvus.messages import Request
from haclient.milvus.methods import named
from haclient.milvus.shape import parse

COLLECTION: Final = "_haclient_watermark"
_KEY: Final = "stream"
_NUMBERS: Final = ("seq", "low", "at", "stamp")
_VECTOR: Final = "vector"
_LONGEST_KEY: Final = 1_024
#: Rows that one Query returns at most.
_MOST: Final = 16_384


class Row(NamedTuple):
    """One row of a mark.

    Attributes:
        stream: "database/collection", or "/" for the cluster itself.
        seq: Up to which entry the stream is applied; for the cluster, the end of the log as known then.
        low: Up to which entry the cluster is done; -1 if it is not whole, or the stream has stopped at an entry.
        at: Wall time of the writer, milliseconds since 1970.
        stamp: The cluster's own timestamp of the stream, 0 if unknown.
    """

    stream: str
    seq: int
    low: int
    at: int
    stamp: int = 0


def make() -> list[Request]:
    """Return the requests that make the collection, index it and load it; each does no harm when repeated."""
    schema = schema_pb2.CollectionSchema(name=COLLECTION, description="how far haclient has written here")
    key = schema.fields.add(name=_KEY, data_type=schema_pb2.VarChar, is_primary_key=True)
    key.type_params.add(key="max_length", value=str(_LONGEST_KEY))
    for name in _NUMBERS:
        schema.fields.add(name=name, data_type=schema_pb2.Int64)
    schema.fields.add(name=_VECTOR, data_type=schema_pb2.FloatVector).type_params.add(key="dim", value="2")
    create = milvus_pb2.CreateCollectionRequest(
        collection_name=COLLECTION,
        schema=schema.SerializeToString(),
        shards_num=1,
        consistency_level=common_pb2.ConsistencyLevel.Eventually,
    )
    index = milvus_pb2.CreateIndexRequest(collection_name=COLLECTION, field_name=_VECTOR, index_name=_VECTOR)
    for name, value in (("index_type", "FLAT"), ("metric_type", "L2"), ("params", "{}")):
        index.extra_params.add(key=name, value=value)
    load = milvus_pb2.LoadCollectionRequest(collection_name=COLLECTION, replica_number=1)
    return [_request("CreateCollection", create), _request("CreateIndex", index), _request("LoadCollection", load)]


def write(rows: Sequence[Row]) -> Request:
    """Return the request that writes rows."""
    message = milvus_pb2.UpsertRequest(collection_name=COLLECTION, num_rows=len(rows))
    keys = message.fields_data.add(field_name=_KEY, type=schema_pb2.VarChar)
    keys.scalars.string_data.data.extend(row.stream for row in rows)
    for name in _NUMBERS:
        column = message.fields_data.add(field_name=name, type=schema_pb2.Int64)
        column.scalars.long_data.data.extend(getattr(row, name) for row in rows)
    vector = message.fields_data.add(field_name=_VECTOR, type=schema_pb2.FloatVector)
    vector.vectors.dim = 2
    vector.vectors.float_vector.data.extend([0.0] * (2 * len(rows)))
    return _request("Upsert", message)


def remove(streams: Iterable[str]) -> Request:
    """Return the request that removes rows."""
    message = milvus_pb2.DeleteRequest(collection_name=COLLECTION, expr=in_list(_KEY, streams))
    return _request("Delete", message)


def read(*, fresh: bool = False) -> Request:
    """Return the request that reads all rows; ``fresh`` waits for what was written just before."""
    message = milvus_pb2.QueryRequest(
        collection_name=COLLECTION,
        expr=f'{_KEY} != ""',
        output_fields=[_KEY, *_NUMBERS],
        guarantee_timestamp=0 if fresh else timestamps.EVENTUALLY_TIMESTAMP,
        consistency_level=timestamps.STRONG if fresh else timestamps.EVENTUALLY,
    )
    message.query_params.add(key="limit", value=str(_MOST))
    return _request("Query", message)


def read_rows(reply: bytes) -> list[Row]:
    """Read the answer to `read`.

    Raises:
        ValueError: It is something else.
    """
    columns = {column.field_name: column.scalars for column in parse(milvus_pb2.QueryResults, reply).fields_data}
    if not columns:
        return []
    try:
        numbers = [columns[name].long_data.data for name in _NUMBERS]
        return [Row(*row) for row in zip(columns[_KEY].string_data.data, *numbers, strict=True)]
    except KeyError as error:
        raise ValueError(f"a mark without {error}") from None


def hide(reply: bytes) -> bytes:
    """Leave the collection out of ShowCollections' answer; the same bytes come back if it is not in."""
    if COLLECTION.encode() not in reply:
        return reply
    message = parse(milvus_pb2.ShowCollectionsResponse, reply)
    names = message.collection_names
    count, at = len(names), list(names).index(COLLECTION)
    for _, value in message.ListFields():
        if hasattr(value, "pop") and len(value) == count:  # a list of something of each collection
            value.pop(at)
    hidden: bytes = message.SerializeToString()
    return hidden


def _request(name: str, message: Any) -> Request:
    return Request(named(name), message.SerializeToString())
