"""What a cluster holds besides rows, read from one cluster and made anew on another one.

Decision made here: descriptions are taken over as they are, field by field of the protobuf message, so that what this
version does not know of is copied too. Only what is of one cluster alone (ids, states, timestamps) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus.messages import Request
from haclient.milvus.methods import named
from haclient.milvus.shape import Shape, parameter, parse

#: The partition that every collection has.
DEFAULT_PARTITION: Final = "_default"
#: The database that every server has; its other name is "".
DEFAULT_DATABASE: Final = "default"
#: Most bytes of a text.
_LONGEST_TEXT: Final = "65535"
#: Kinds of indexes that need no parameters.
_WITHOUT_PARAMETERS: Final = frozenset(("FLAT", "AUTOINDEX", "SPARSE_INVERTED_INDEX"))
#: What DescribeIndex says of the state of an index, not of what it is to be.
_DERIVED: Final = frozenset(("index_state", "pending_index_rows"))


def request(name: str, message: Any) -> Request:
    """Make a request of a protobuf message."""
    return Request(named(name), message.SerializeToString())


# Databases.


def list_databases() -> Request:
    """Ask for the names of all databases."""
    return request("ListDatabases", milvus_pb2.ListDatabasesRequest())


def read_databases(reply: bytes) -> list[str]:
    """Read ListDatabases' answer; the default database is ""."""
    names = parse(milvus_pb2.ListDatabasesResponse, reply).db_names
    return sorted("" if name == DEFAULT_DATABASE else name for name in names)


def create_database(name: str) -> Request:
    """Create a database."""
    return request("CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name=name))


def drop_database(name: str) -> Request:
    """Drop an empty database."""
    return request("DropDatabase", milvus_pb2.DropDatabaseRequest(db_name=name))


# Collections.


def create_collection(description: bytes, database: str) -> Request:
    """Create the collection that a cluster has described (DescribeCollection)."""
    told = parse(milvus_pb2.DescribeCollectionResponse, description)
    for one in _fields(told.schema):
        one.ClearField("fieldID")
        one.ClearField("state")
        if one.element_type == schema_pb2.VarChar and not parameter(one, "max_length"):
            # Lite does not tell how long the texts in an array may be, and Milvus wants to know.
            one.type_params.add(key="max_length", value=_LONGEST_TEXT)
    message = milvus_pb2.CreateCollectionRequest(
        db_name=database,
        collection_name=told.collection_name or told.schema.name,
        schema=told.schema.SerializeToString(),
        shards_num=told.shards_num,
        consistency_level=told.consistency_level,
        properties=told.properties,
    )
    if any(field.is_partition_key for field in told.schema.fields):
        message.num_partitions = told.num_partitions
    return request("CreateCollection", message)


def _fields(schema: Any) -> Iterator[Any]:
    yield from schema.fields
    for struct in schema.struct_array_fields:
        yield from struct.fields


def drop_collection(collection: str, database: str) -> Request:
    """Drop a collection."""
    message = milvus_pb2.DropCollectionRequest(db_name=database, collection_name=collection)
    return request("DropCollection", message)


def flush(collection: str, database: str) -> Request:
    """Seal what has been written to a collection, so that its statistics are right."""
    return request("Flush", milvus_pb2.FlushRequest(db_name=database, collection_names=[collection]))


def count_inserted(collection: str, database: str) -> Request:
    """Ask for the statistics of a collection: rows ever inserted and flushed, those deleted since included."""
    message = milvus_pb2.GetCollectionStatisticsRequest(db_name=database, collection_name=collection)
    return request("GetCollectionStatistics", message)


def read_inserted(reply: bytes) -> int:
    """Read the number of rows from GetCollectionStatistics' answer."""
    stats = parse(milvus_pb2.GetCollectionStatisticsResponse, reply).stats
    return int(next((pair.value for pair in stats if pair.key == "row_count"), 0))


def count_rows(shape: Shape, partition: str = "") -> Request:
    """Count the rows that can be read now, Strong; a key that is there twice counts twice."""
    message = milvus_pb2.QueryRequest(
        db_name=shape.database,
        collection_name=shape.collection,
        output_fields=["count(*)"],
        partition_names=[partition] if partition else [],
    )
    return request("Query", message)


def read_count(reply: bytes) -> int:
    """Read `count_rows`' answer."""
    columns = parse(milvus_pb2.QueryResults, reply).fields_data
    return int(columns[0].scalars.long_data.data[0]) if columns else 0


# Partitions.


def list_partitions(collection: str, database: str) -> Request:
    """Ask for the partitions of a collection."""
    message = milvus_pb2.ShowPartitionsRequest(db_name=database, collection_name=collection)
    return request("ShowPartitions", message)


def read_partitions(reply: bytes) -> list[str]:
    """Read ShowPartitions' answer."""
    return sorted(parse(milvus_pb2.ShowPartitionsResponse, reply).partition_names)


def create_partition(collection: str, partition: str, database: str) -> Request:
    """Create a partition."""
    message = milvus_pb2.CreatePartitionRequest(db_name=database, collection_name=collection, partition_name=partition)
    return request("CreatePartition", message)


def drop_partition(collection: str, partition: str, database: str) -> Request:
    """Drop a partition, with its rows."""
    message = milvus_pb2.DropPartitionRequest(db_name=database, collection_name=collection, partition_name=partition)
    return request("DropPartition", message)


# Indexes.


@final
@dataclass(frozen=True, slots=True)
class Index:
    """One index.

    Attributes:
        name: Its name.
        field: The field that it is of.
        params: Its parameters, sorted.
    """

    name: str
    field: str
    params: tuple[tuple[str, str], ...]


def read_indexes(reply: bytes) -> list[Index]:
    """Read DescribeIndex' answer."""
    told = parse(milvus_pb2.DescribeIndexResponse, reply).index_descriptions
    return [
        Index(
            one.index_name,
            one.field_name,
            tuple(sorted((pair.key, pair.value) for pair in one.params if pair.key not in _DERIVED)),
        )
        for one in told
    ]


def untold(index: Index) -> Index:
    """Return the index to make in place of one of milvus-lite, which does not tell the parameters that its kind needs.

    The same one comes back if it needs none. A vector gets the server's own choice, for the same metric.
    """
    params = dict(index.params)
    if params.get("metric_type") == "NONE":  # of a scalar field
        return Index(index.name, index.field, tuple(one for one in index.params if one[0] != "metric_type"))
    if params.get("index_type") in _WITHOUT_PARAMETERS:
        return index
    return Index(index.name, index.field, tuple(sorted((params | {"index_type": "AUTOINDEX"}).items())))


def create_index(collection: str, index: Index, database: str) -> Request:
    """Create an index."""
    message = milvus_pb2.CreateIndexRequest(
        db_name=database, collection_name=collection, field_name=index.field, index_name=index.name
    )
    for key, value in index.params:
        message.extra_params.add(key=key, value=value)
    return request("CreateIndex", message)


# Aliases.


def list_aliases(collection: str, database: str) -> Request:
    """Ask for the aliases of a collection."""
    message = milvus_pb2.ListAliasesRequest(db_name=database, collection_name=collection)
    return request("ListAliases", message)


def read_aliases(reply: bytes) -> list[str]:
    """Read ListAliases' answer."""
    return sorted(parse(milvus_pb2.ListAliasesResponse, reply).aliases)


def create_alias(collection: str, alias: str, database: str) -> Request:
    """Create an alias."""
    message = milvus_pb2.CreateAliasRequest(db_name=database, collection_name=collection, alias=alias)
    return request("CreateAlias", message)


def drop_alias(alias: str, database: str) -> Request:
    """Drop an alias."""
    return request("DropAlias", milvus_pb2.DropAliasRequest(db_name=database, alias=alias))


# Loading.


def list_replicas(collection: str, database: str) -> Request:
    """Ask for the replicas of a loaded collection."""
    return request("GetReplicas", milvus_pb2.GetReplicasRequest(db_name=database, collection_name=collection))


def read_replicas(reply: bytes) -> int:
    """Read the number of replicas from GetReplicas' answer."""
    return len(parse(milvus_pb2.GetReplicasResponse, reply).replicas)


def load(collection: str, database: str, replicas: int = 1) -> Request:
    """Load a collection."""
    message = milvus_pb2.LoadCollectionRequest(db_name=database, collection_name=collection, replica_number=replicas)
    return request("LoadCollection", message)


def release(collection: str, database: str) -> Request:
    """Release a collection."""
    message = milvus_pb2.ReleaseCollectionRequest(db_name=database, collection_name=collection)
    return request("ReleaseCollection", message)


# Read back from the log.


def dropped_database(message: bytes) -> str:
    """Return the name of the database that a DropDatabaseRequest drops."""
    return str(parse(milvus_pb2.DropDatabaseRequest, message).db_name)


def renamed(message: bytes, database: str) -> list[tuple[str, str]]:
    """Return (database, collection) of both names of a RenameCollectionRequest."""
    told = parse(milvus_pb2.RenameCollectionRequest, message)
    before = told.db_name or database
    return [(before, told.oldName), (told.newDBName or before, told.newName)]
