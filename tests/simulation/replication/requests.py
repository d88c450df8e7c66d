"""The requests of users, as pymilvus writes them.

Every row carries a version that no other row has, and every delete by keys a key that no row has, so whatever is found
in the log or in a cluster can be traced back to the operation that put it there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

KEY: Final = "k"
VERSION: Final = "version"
ROLE: Final = "reader"
_INT64: Final = schema_pb2.DataType.Int64
_VARCHAR: Final = schema_pb2.DataType.VarChar
_VECTOR: Final = schema_pb2.DataType.FloatVector


@functools.cache
def create_collection(name: str, auto_id: bool = False, text_key: bool = False, database: str = "") -> bytes:
    schema = schema_pb2.CollectionSchema(name=name)
    key = schema.fields.add(name=KEY, is_primary_key=True, autoID=auto_id, data_type=_VARCHAR if text_key else _INT64)
    if text_key:
        key.type_params.add(key="max_length", value="64")
    schema.fields.add(name=VERSION, data_type=_INT64)
    schema.fields.add(name="v", data_type=_VECTOR).type_params.add(key="dim", value="2")
    request = milvus_pb2.CreateCollectionRequest(
        base=common_pb2.MsgBase(msg_type=common_pb2.MsgType.CreateCollection),
        db_name=database,
        collection_name=name,
        schema=schema.SerializeToString(),
        shards_num=1,
    )
    return _bytes(request)


@functools.cache
def create_index(name: str, database: str = "", metric: str = "L2") -> bytes:
    request = milvus_pb2.CreateIndexRequest(db_name=database, collection_name=name, field_name="v", index_name="v")
    for pair in (("index_type", "FLAT"), ("metric_type", metric), ("params", "{}")):
        request.extra_params.add(key=pair[0], value=pair[1])
    return _bytes(request)


@functools.cache
def about(method: str, name: str, database: str = "") -> bytes:
    """A request that only names a collection: drop, load, release."""
    kind = getattr(milvus_pb2, f"{method}Request")
    return _bytes(kind(db_name=database, collection_name=name))


@functools.cache
def alias(method: str, name: str, collection: str = "") -> bytes:
    """CreateAlias, AlterAlias, DropAlias."""
    kind = getattr(milvus_pb2, f"{method}Request")
    return _bytes(kind(alias=name, collection_name=collection) if collection else kind(alias=name))


@functools.cache
def database(method: str, name: str) -> bytes:
    """CreateDatabase, DropDatabase."""
    return _bytes(getattr(milvus_pb2, f"{method}Request")(db_name=name))


@functools.cache
def role(method: str) -> bytes:
    """CreateRole, DropRole."""
    if method == "CreateRole":
        return _bytes(milvus_pb2.CreateRoleRequest(entity=milvus_pb2.RoleEntity(name=ROLE)))
    return _bytes(milvus_pb2.DropRoleRequest(role_name=ROLE))


def rows(method: str, name: str, keys: Sequence[Any] | None, versions: Sequence[int], database: str = "") -> bytes:
    """Insert or Upsert; without keys the server is to make them."""
    kind = milvus_pb2.InsertRequest if method == "Insert" else milvus_pb2.UpsertRequest
    request = kind(db_name=database, collection_name=name, num_rows=len(versions))
    request.base.msg_type = common_pb2.MsgType.Insert
    if keys is not None:
        request.fields_data.add(field_name=KEY, type=_INT64).scalars.long_data.data.extend(keys)
    request.fields_data.add(field_name=VERSION, type=_INT64).scalars.long_data.data.extend(versions)
    vector = request.fields_data.add(field_name="v", type=_VECTOR).vectors
    vector.dim = 2
    vector.float_vector.data.extend(float(x) for version in versions for x in (version, 1))
    return _bytes(request)


def delete(name: str, expression: str, database: str = "") -> bytes:
    return _bytes(milvus_pb2.DeleteRequest(db_name=database, collection_name=name, expr=expression))


@functools.lru_cache(maxsize=1024)
def query(name: str, level: int, timestamp: int) -> bytes:
    """All rows of a collection."""
    request = milvus_pb2.QueryRequest(
        collection_name=name,
        expr=f"{VERSION} >= 0",
        output_fields=[KEY, VERSION],
        consistency_level=level,
        guarantee_timestamp=timestamp,
    )
    return _bytes(request)


def _bytes(request: Any) -> bytes:
    written: bytes = request.SerializeToString()
    return written
