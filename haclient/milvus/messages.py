"""Requests that haclient makes itself (probes, topology), and their replies read.

Decision made here: these few are built and parsed with pymilvus' protobuf classes, and only with messages and fields
that pymilvus 2.5, 2.6 and 3.0 share. They are rare; the calls of the application never come through here.

A request names its database both in the body and in the ``dbname`` metadata: servers of early 2.3 read the metadata
only, later ones prefer the body. Every ``read_*`` raises ValueError for bytes that are not the message expected;
errors in the status are for `haclient.milvus.status`, which has to be asked first.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.call import STATUS_IS, Metadata, Method
from haclient.milvus import expressions, timestamps
from haclient.milvus.methods import named
from haclient.milvus.requests import KeyField
from haclient.milvus.status import Flavour
from haclient.milvus.wireformat import embed

Key = expressions.Key
#: Milvus' catch-all code.
_UNEXPECTED = 65535


@final
@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready for a transport."""

    method: Method
    message: bytes
    metadata: Metadata = ()


@final
@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself.

    Attributes:
        flavour: Which family of error numbers it speaks.
        version: For example ``2.3.5``; "" if it does not say.
        identifier: Connect's answer: a timestamp of this cluster that later calls carry; 0 from GetVersion.
    """

    flavour: Flavour
    version: str
    identifier: int = 0


@final
@dataclass(frozen=True, slots=True)
class CollectionId:
    """A collection as ShowCollections lists it; ids and timestamps are of one cluster (0 on Lite)."""

    id: int
    created: int


@final
@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as DescribeCollection tells it.

    Attributes:
        id: Its id on this cluster.
        name: Its real name, also if an alias was asked for.
        aliases: Its aliases.
        key: Its primary key; None if the schema names none.
        vectors: Names of its vector fields.
        consistency_level: Its default level.
    """

    id: int
    name: str
    aliases: tuple[str, ...]
    key: KeyField | None
    vectors: tuple[str, ...]
    consistency_level: int


@final
@dataclass(frozen=True, slots=True)
class Health:
    """CheckHealth's answer; a cluster can be healthy and deny reads or writes."""

    is_healthy: bool
    reasons: tuple[str, ...]
    denies_read: bool
    denies_write: bool


class LoadState(enum.Enum):
    """GetLoadState's answer, by its numbers."""

    NOT_EXIST = 0
    NOT_LOADED = 1
    LOADING = 2
    LOADED = 3


def _request(name: str, message: Any, database: str) -> Request:
    metadata = (("dbname", database),) if database else ()
    return Request(named(name), message.SerializeToString(), metadata)


def refusal(method: Method, reason: str, code: int = _UNEXPECTED) -> bytes:
    """Make the answer of a method that says no for good, in its ``common.Status``.

    Args:
        method: One whose response has a status.
        reason: Text for a person.
        code: Milvus' error code.
    """
    status: bytes = common_pb2.Status(
        error_code=common_pb2.UnexpectedError, code=code, reason=reason
    ).SerializeToString()
    return status if method.status == STATUS_IS else embed(method.status, status)


def _parse(message_class: Any, message: bytes) -> Any:
    try:
        return message_class.FromString(message)
    except DecodeError as error:
        raise ValueError(f"not a {message_class.DESCRIPTOR.name}: {error}") from None


def connect(*, database: str = "", host: str = "", user: str = "") -> Request:
    """Ask who the server is; proves root coordinator, timestamp oracle and database, not that it can read."""
    info = common_pb2.ClientInfo(sdk_type="Python", sdk_version="haclient", host=host, user=user)
    return _request("Connect", milvus_pb2.ConnectRequest(client_info=info), database)


def read_connect(message: bytes) -> Server:
    """Read Connect's answer."""
    reply = _parse(milvus_pb2.ConnectResponse, message)
    flavour, version = _version(reply.server_info.build_tags)
    return Server(flavour, version, reply.identifier)


def get_version() -> Request:
    """Ask for the version; proves nothing, the server does not look at itself."""
    return _request("GetVersion", milvus_pb2.GetVersionRequest(), "")


def read_version(message: bytes) -> Server:
    """Read GetVersion's answer."""
    return Server(*_version(_parse(milvus_pb2.GetVersionResponse, message).version))


def _version(tag: str) -> tuple[Flavour, str]:
    """Read a build tag: ``v2.3.5-lite`` is a real server (of the package milvus), ``milvus_lite-3.2.2`` is Lite."""
    flavour = Flavour.LITE if tag.startswith("milvus_lite") else Flavour.REAL
    version = tag.removeprefix("milvus_lite").lstrip("-")
    return flavour, version.removeprefix("v").partition("-")[0]


def check_health() -> Request:
    """Ask the coordinators for their health; up to five minutes blind to a lost query node."""
    return _request("CheckHealth", milvus_pb2.CheckHealthRequest(), "")


def read_health(message: bytes) -> Health:
    """Read CheckHealth's answer."""
    reply = _parse(milvus_pb2.CheckHealthResponse, message)
    states = set(reply.quota_states)
    return Health(
        reply.isHealthy,
        tuple(reply.reasons),
        denies_read=milvus_pb2.QuotaState.DenyToRead in states,
        denies_write=milvus_pb2.QuotaState.DenyToWrite in states,
    )


def show_collections(*, database: str = "", loaded: bool = False) -> Request:
    """List the collections of a database, or only those that are loaded."""
    kind = milvus_pb2.ShowType.InMemory if loaded else milvus_pb2.ShowType.All
    return _request("ShowCollections", milvus_pb2.ShowCollectionsRequest(db_name=database, type=kind), database)


def read_collections(message: bytes) -> dict[str, CollectionId]:
    """Read ShowCollections' answer: what each collection's name stands for on this cluster."""
    reply = _parse(milvus_pb2.ShowCollectionsResponse, message)
    count = len(reply.collection_names)
    ids = [*reply.collection_ids, *[0] * count]
    created = [*reply.created_timestamps, *[0] * count]
    return {name: CollectionId(ids[i], created[i]) for i, name in enumerate(reply.collection_names)}


def describe_collection(collection: str, *, database: str = "") -> Request:
    """Ask for a collection's id and schema."""
    message = milvus_pb2.DescribeCollectionRequest(db_name=database, collection_name=collection)
    return _request("DescribeCollection", message, database)


def read_collection(message: bytes) -> Collection:
    """Read DescribeCollection's answer."""
    reply = _parse(milvus_pb2.DescribeCollectionResponse, message)
    keys = [field for field in reply.schema.fields if field.is_primary_key]
    return Collection(
        id=reply.collectionID,
        name=reply.collection_name or reply.schema.name,
        aliases=tuple(reply.aliases),
        key=KeyField(keys[0].name, keys[0].autoID) if keys else None,
        vectors=tuple(field.name for field in reply.schema.fields if field.data_type >= schema_pb2.BinaryVector),
        consistency_level=reply.consistency_level,
    )


def get_load_state(collection: str, *, database: str = "") -> Request:
    """Ask whether a collection is loaded; metadata only, see `read_one` for the truth."""
    message = milvus_pb2.GetLoadStateRequest(db_name=database, collection_name=collection)
    return _request("GetLoadState", message, database)


def read_load_state(message: bytes) -> LoadState:
    """Read GetLoadState's answer."""
    return LoadState(_parse(milvus_pb2.GetLoadStateResponse, message).state)


def load_collection(collection: str, *, database: str = "") -> Request:
    """Load a collection with the number of replicas it had."""
    message = milvus_pb2.LoadCollectionRequest(db_name=database, collection_name=collection)
    return _request("LoadCollection", message, database)


def alloc_timestamp() -> Request:
    """Ask the cluster's oracle for its time; UNIMPLEMENTED on Lite."""
    return _request("AllocTimestamp", milvus_pb2.AllocTimestampRequest(), "")


def read_timestamp(message: bytes) -> int:
    """Read AllocTimestamp's answer."""
    return int(_parse(milvus_pb2.AllocTimestampResponse, message).timestamp)


def unix_s(timestamp: int) -> float:
    """Return the wall-clock time of a cluster's timestamp, in seconds since 1970."""
    return (timestamp >> 18) / 1e3


def read_one(collection: str, key: str, *, database: str = "", fresh: bool = False) -> Request:
    """Read any one row's key: the deep probe, through shard leader and query node.

    Args:
        collection: Collection or alias.
        key: Name of the primary key.
        database: "" for the default one.
        fresh: Strong instead of Eventually: also proves that the log moves on (about 200 ms on 2.3.5).
    """
    message = _query(collection, "", key, database, fresh=fresh)
    message.query_params.add(key="limit", value="1")
    return _request("Query", message, database)


def read_keys(collection: str, key: str, keys: Sequence[Key], *, database: str = "", fresh: bool = False) -> Request:
    """Read the rows with these keys: a canary that knows what must be there."""
    return _request("Query", _query(collection, expressions.in_list(key, keys), key, database, fresh=fresh), database)


def read_where(collection: str, key: str, expression: str, *, database: str = "") -> Request:
    """Read the keys of the rows that match an expression, Eventually: a canary in the user's own words."""
    message = _query(collection, expression, key, database, fresh=False)
    message.query_params.add(key="limit", value="1000")
    return _request("Query", message, database)


def _query(collection: str, expr: str, key: str, database: str, *, fresh: bool) -> Any:
    return milvus_pb2.QueryRequest(
        db_name=database,
        collection_name=collection,
        expr=expr,
        output_fields=[key],
        guarantee_timestamp=0 if fresh else timestamps.EVENTUALLY_TIMESTAMP,
        consistency_level=timestamps.STRONG if fresh else timestamps.EVENTUALLY,
    )


def search(
    collection: str,
    field: str,
    vector: Sequence[float],
    limit: int,
    *,
    database: str = "",
    params: Mapping[str, str] | None = None,
) -> Request:
    """Search one float vector, Eventually: a canary through the index, whose hits are known.

    Args:
        collection: Collection or alias.
        field: Name of a float vector field.
        vector: The query.
        limit: Number of hits.
        database: "" for the default one.
        params: Further search parameters; the index knows its metric.
    """
    value = common_pb2.PlaceholderValue(
        tag="$0", type=common_pb2.PlaceholderType.FloatVector, values=[struct.pack(f"<{len(vector)}f", *vector)]
    )
    message = milvus_pb2.SearchRequest(
        db_name=database,
        collection_name=collection,
        dsl_type=common_pb2.DslType.BoolExprV1,
        placeholder_group=common_pb2.PlaceholderGroup(placeholders=[value]).SerializeToString(),
        nq=1,
        guarantee_timestamp=timestamps.EVENTUALLY_TIMESTAMP,
        consistency_level=timestamps.EVENTUALLY,
    )
    pairs = {"anns_field": field, "topk": str(limit), "params": "{}", "round_decimal": "-1", **(params or {})}
    for name, text in pairs.items():
        message.search_params.add(key=name, value=text)
    return _request("Search", message, database)


def read_query_keys(message: bytes, key: str) -> list[Key]:
    """Read the primary keys from a Query's answer, in its order."""
    for field in _parse(milvus_pb2.QueryResults, message).fields_data:
        if field.field_name == key:
            return _keys(field.scalars.long_data.data, field.scalars.string_data.data)
    return []


def read_search_keys(message: bytes) -> list[Key]:
    """Read the primary keys of the hits from a Search's answer, best first."""
    found = _parse(milvus_pb2.SearchResults, message).results.ids
    return _keys(found.int_id.data, found.str_id.data)


def _keys(numbers: Sequence[int], texts: Sequence[str]) -> list[Key]:
    return [*numbers, *texts]
