"""What replicated writes must know of one collection, read from DescribeCollection.

Decision made here: a collection whose keys haclient makes is an ordinary collection with a mark; the user sees an
auto_id one. The mark is a *collection property*, because that is the only place that both kinds of servers keep
(measured: Milvus 2.3.5 also keeps the descriptions of the collection and of its fields, and unknown type parameters;
Lite keeps none of these). It is part of what is copied, so every process and every cluster knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.errors import HAClientError

#: Milvus' code for a wrong parameter.
INVALID: Final = 1100
#: Collection property: haclient makes the keys.
MARK: Final = "haclient.auto_id"
#: Name of the column of dynamic fields; it is no field of the schema.
DYNAMIC: Final = "$meta"


class InvalidWrite(HAClientError, ValueError):
    """A write that Milvus would refuse for good; nothing was written anywhere.

    Attributes:
        code: Milvus' error code.
        reason: The text for the user.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


@final
@dataclass(frozen=True, slots=True)
class Shape:
    """One collection.

    Attributes:
        collection: Its real name, also if an alias was asked for.
        database: Its database, "" for the default one.
        id: Its id on the cluster that described it; 0 on Lite.
        key: Name of the primary key.
        key_type: Type of the key.
        max_length: Most bytes of a varchar key, 0 for an integer.
        auto_id: The user gives no keys: haclient makes them.
        native_auto_id: The server itself makes the keys: the collection cannot be mirrored.
        dynamic: Rows may have fields beyond those of the schema.
        fields: The schema's fields (``schema_pb2.FieldSchema``) by name.
        structs: Its arrays of structs (``schema_pb2.StructArrayFieldSchema``) by name.
        computed: Names of the fields that the server fills by a function.
        partition_key: Name of the field by whose value rows are put into partitions, "" if there is none.
        aliases: Its aliases, as far as the server tells them (Lite does not).
        consistency_level: Its default level.
        schema: The ``schema_pb2.CollectionSchema``, as described.
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
    structs: Mapping[str, Any]
    computed: frozenset[str]
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
    reply = parse(milvus_pb2.DescribeCollectionResponse, description)
    schema = reply.schema
    key = next((field for field in schema.fields if field.is_primary_key), None)
    if key is None:
        raise ValueError(f"the schema of {reply.collection_name or schema.name or 'a collection'} has no primary key")
    marked = is_marked(reply.properties)
    return Shape(
        collection=reply.collection_name or schema.name,
        database=database,
        id=reply.collectionID,
        key=key.name,
        key_type="varchar" if key.data_type == schema_pb2.VarChar else "int64",
        max_length=parameter(key, "max_length") if key.data_type == schema_pb2.VarChar else 0,
        auto_id=marked or key.autoID,
        native_auto_id=key.autoID,
        dynamic=schema.enable_dynamic_field,
        fields={field.name: field for field in schema.fields if not field.is_dynamic},
        structs={field.name: field for field in schema.struct_array_fields},
        computed=frozenset(name for function in schema.functions for name in function.output_field_names),
        partition_key=next((field.name for field in schema.fields if field.is_partition_key), ""),
        aliases=tuple(reply.aliases),
        consistency_level=reply.consistency_level,
        schema=schema,
    )


def is_marked(properties: Iterable[Any]) -> bool:
    """Say whether a collection's properties (``KeyValuePair``) bear the mark."""
    return any(pair.key == MARK and pair.value == "true" for pair in properties)


def parameter(field: Any, name: str) -> int:
    """Return a number among a field's type parameters, 0 if it is not there.

    Raises:
        ValueError: It is no number.
    """
    return int(next((pair.value for pair in field.type_params if pair.key == name), 0))


def parse(kind: Any, message: bytes) -> Any:
    """Parse a message of one of Milvus' protobuf classes.

    Raises:
        ValueError: The bytes are something else.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise ValueError(f"not a {kind.DESCRIPTOR.name}: {error}") from None


def parse_request(kind: Any, message: bytes) -> Any:
    """Parse what a user sent.

    Raises:
        InvalidWrite: The bytes are something else.
    """
    try:
        return parse(kind, message)
    except ValueError as error:
        raise InvalidWrite(INVALID, str(error)) from None
