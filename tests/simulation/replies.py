"""Requests and replies as bytes, made once.

Decision made here: the simulation is as fast as its servers are simple, so they build no message: every request is a
prefix with a mark behind it, every reply is a constant.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.call import Method, Reply
from haclient.milvus import messages
from haclient.milvus.methods import named

COLLECTION: Final = "docs"
CANARY_FILTER: Final = "id in [1, 2, 3]"
CANARY_KEYS: Final = (1, 2, 3)

SEARCH: Final = named("Search")
QUERY: Final = named("Query")
INSERT: Final = named("Insert")
UPSERT: Final = named("Upsert")
DELETE: Final = named("Delete")
DESCRIBE: Final = named("DescribeCollection")

NAMES: Final = {
    named(name).path: name
    for name in (
        "Connect",
        "GetVersion",
        "ShowCollections",
        "DescribeCollection",
        "Search",
        "Query",
        "Insert",
        "Upsert",
        "Delete",
    )
}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_HEAD: Final = b"\x1a" + bytes([len(COLLECTION)]) + COLLECTION.encode()


def request(method: Method, op_id: int, timestamp: int = 0, page: bool = False) -> bytes:
    """One request of the application; its number can be read again from the bytes by `op_of`."""
    mark = b"#%07d#" % op_id
    if method is SEARCH:
        at = b"\x58" + _varint(timestamp) if timestamp else b""
        return _HEAD + b"\x32" + bytes([len(mark)]) + mark + at
    if method is QUERY:
        at = b"\x40" + _varint(timestamp) if timestamp else b""
        pair = b"\n\x08iterator\x12\x04True"
        return _HEAD + b"\x22" + bytes([len(mark)]) + mark + at + (b"\x4a" + bytes([len(pair)]) + pair if page else b"")
    if method is DELETE:
        expression = b"id in [%d]" % (10_000_000 + op_id)
        return _HEAD + b"\x2a" + bytes([len(expression)]) + expression
    if method is DESCRIBE:
        return b"\x1a" + bytes([len(COLLECTION)]) + COLLECTION.encode()
    return _HEAD + b"\x2a" + bytes([len(mark)]) + mark


def op_of(message: bytes) -> int:
    """The number of a request whose other fields were rewritten on the way; -1 if it has none."""
    at = message.find(b"#")
    if at < 0 or message[at + 8 : at + 9] != b"#":
        return -1
    return int(message[at + 1 : at + 8])


def _body(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def status(code: int, text: str, error_code: int = 1) -> Reply:
    """An error inside a gRPC-OK reply, as every method carries it (status is field 1)."""
    body = _body(common_pb2.Status(code=code, error_code=error_code, reason=text))
    return Reply(b"\n" + _varint(len(body)) + body)


OK: Final = b"\n\x00"
NOT_LOADED: Final = status(101, "collection not loaded[collection=docs]", 5)
NOT_FOUND: Final = status(100, "collection not found[collection=docs]", 4)
RATE_LIMITED: Final = status(
    8, "request is rejected by grpc RateLimiter middleware, please retry later: rate limit", 49
)
WRITE_DENIED: Final = status(9, "deny to write the message: quota exceeded[reason=memory quota exceeded]", 53)
ODD: Final = status(65535, "fail to do something nobody has heard of")
OFFLINE: Final = status(65535, "fail to search on QueryNode 7: node offline")
MISTAKE: Final = status(65535, "vector dimension mismatch, expected vector size(byte) 1536, actual 16")
NOT_READY: Final = Reply(b"", 2, "service not ready[rootcoord=Initializing]")
UNAVAILABLE: Final = Reply(b"", 14, "upstream connect error")
UNAUTHENTICATED: Final = Reply(b"", 16, "auth check failure, please check username and password are correct")

CONNECTED: Final = Reply(
    _body(
        milvus_pb2.ConnectResponse(
            status=common_pb2.Status(), server_info=common_pb2.ServerInfo(build_tags="2.3.5"), identifier=451
        )
    )
)
VERSION: Final = Reply(_body(milvus_pb2.GetVersionResponse(status=common_pb2.Status(), version="2.3.5")))
NO_COLLECTIONS: Final = Reply(_body(milvus_pb2.ShowCollectionsResponse(status=common_pb2.Status())))


def described(collection_id: int, auto_id: bool) -> Reply:
    field = schema_pb2.FieldSchema(name="id", is_primary_key=True, autoID=auto_id, data_type=5, fieldID=100)
    vector = schema_pb2.FieldSchema(name="vector", data_type=101, fieldID=101)
    schema = schema_pb2.CollectionSchema(name=COLLECTION, fields=[field, vector])
    message = milvus_pb2.DescribeCollectionResponse(
        status=common_pb2.Status(), schema=schema, collectionID=collection_id, collection_name=COLLECTION
    )
    return Reply(_body(message))


def listed(collection_id: int) -> Reply:
    message = milvus_pb2.ShowCollectionsResponse(
        status=common_pb2.Status(), collection_names=[COLLECTION], collection_ids=[collection_id]
    )
    return Reply(_body(message))


def rows(keys: tuple[int, ...]) -> Reply:
    field = schema_pb2.FieldData(
        field_name="id", type=5, scalars=schema_pb2.ScalarField(long_data=schema_pb2.LongArray(data=keys))
    )
    return Reply(_body(milvus_pb2.QueryResults(status=common_pb2.Status(), fields_data=[field])))


@functools.cache
def catalogue(cluster: int, auto_id: bool) -> tuple[Reply, Reply]:
    """What a cluster says of its one collection: (DescribeCollection, ShowCollections)."""
    collection_id = (1 << 58) + cluster
    return described(collection_id, auto_id), listed(collection_id)


RIGHT_ROWS: Final = rows(CANARY_KEYS)
WRONG_ROWS: Final = rows((7,))
CANARY: Final = messages.read_where(COLLECTION, "id", CANARY_FILTER).message


@functools.cache
def hit(server: int, wrong: bool) -> Reply:
    """A read's success; says which server gave it."""
    return Reply(OK + b"\x1a\x04" + b"%02d" % server + (b"!!" if wrong else b"ok"))


def mutation(timestamp: int) -> Reply:
    """A write's success (MutationResult: timestamp is field 9)."""
    return Reply(OK + b"\x48" + _varint(timestamp))


def speed_up() -> None:
    """Let the core's own probe requests be built once; they depend on their arguments only."""
    for name in ("connect", "show_collections", "read_one", "describe_collection", "read_where"):
        made = getattr(messages, name)
        if not hasattr(made, "cache_info"):
            setattr(messages, name, functools.lru_cache(maxsize=256)(made))
    for name in ("read_connect", "read_collections", "read_collection"):
        read = getattr(messages, name)
        if not hasattr(read, "cache_info"):
            setattr(messages, name, functools.lru_cache(maxsize=256)(read))
