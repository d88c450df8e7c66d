"""The requests that make a collection of a backup anew, under whatever name.

Decision made here: what a target cannot hold as it was is refused before anything is written, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.errors import ConfigError
from haclient.milvus import ddl, gates, structure
from haclient.milvus.messages import Request
from haclient.milvus.methods import named
from haclient.milvus.shape import InvalidWrite, parse
from haclient.milvus.status import Flavour
from haclient.recovery.lineage import Life
from haclient.replication.log import Stream


def creation(
    life: Life, to: Stream, versions: Mapping[str, tuple[Flavour, str]], *, mirrored: bool, given_keys: bool
) -> Request:
    """Return the request that creates a collection.

    Args:
        life: The collection.
        to: Its new database and name.
        versions: Flavour and version of each cluster of the target.
        mirrored: haclient makes the keys of auto_id collections there.
        given_keys: Make an auto_id collection one whose keys the application gives.

    Raises:
        ConfigError: The target cannot hold it.
    """
    message = life.created
    if life.copy is not None:
        message = structure.create_collection(life.copy.description, to[0]).message
    request = parse(milvus_pb2.CreateCollectionRequest, message)
    schema = parse(schema_pb2.CollectionSchema, request.schema)
    request.db_name, request.collection_name = to
    schema.name = to[1]
    name = f"{life.stream[0] or 'default'}.{life.stream[1]}"
    if not mirrored and any(field.autoID for field in schema.fields):
        _allow_keys(request, schema, name, gates.given_keys(versions), given_keys=given_keys)
    request.schema = schema.SerializeToString()
    message = request.SerializeToString()
    try:
        message = ddl.create(message) if mirrored else message
        lacking = gates.problems(named("CreateCollection"), message, versions)
    except InvalidWrite as error:
        raise ConfigError(f"{name} cannot be restored: {error}") from error
    if lacking:
        raise ConfigError(f"{name} cannot be restored. {' '.join(lacking)}")
    return Request(named("CreateCollection"), message)


def _allow_keys(request: Any, schema: Any, name: str, lacking: list[str], *, given_keys: bool) -> None:
    """See that a collection whose keys the servers made can have the same ones again."""
    if given_keys:
        schema.autoID = False
        for field in schema.fields:
            field.autoID = False
    elif lacking:
        raise ConfigError(
            f"{name} cannot be restored: the servers made its keys. {' '.join(lacking)} Or restore it with "
            "--given-keys, as a collection whose keys the application gives; or to a fleet whose writes are mirrored, "
            "where haclient makes them"
        )
    elif all(pair.key != gates.ALLOW_KEYS for pair in request.properties):
        request.properties.append(common_pb2.KeyValuePair(key=gates.ALLOW_KEYS, value="true"))


def forbid_keys(life: Life, to: Stream) -> Request | None:
    """Return the request that takes the property of `creation` back; None if it was there before."""
    assert life.copy is not None
    if any(key == gates.ALLOW_KEYS for key in life.copy.readable.get("properties", ())):
        return None
    message = milvus_pb2.AlterCollectionRequest(db_name=to[0], collection_name=to[1], delete_keys=[gates.ALLOW_KEYS])
    return Request(named("AlterCollection"), message.SerializeToString())


def renamed(method: str, message: bytes, to: Stream) -> Request:
    """Return a request about a collection of the log as one about another name."""
    described = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"].methods_by_name[method]
    request = parse(getattr(milvus_pb2, described.input_type.name), message)
    request.db_name, request.collection_name = to
    return Request(named(method), request.SerializeToString())
