"""What a collection looks like, read from DescribeCollection and DescribeIndex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus.messages import Request
from haclient.milvus.methods import named


@final
@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Attributes:
        name: Its name.
        kind: Its type, as ``schema.proto`` names it (``VarChar``, ``FloatVector``, ...).
        is_key: It is the primary key.
        dimension: Of a dense vector field, else 0.
        description: Free text.
        made_from: Fields that the server computes it from (BM25), empty if the client writes it.
    """

    name: str
    kind: str
    is_key: bool = False
    dimension: int = 0
    description: str = ""
    made_from: tuple[str, ...] = ()

    @property
    def is_vector(self) -> bool:
        """Whether it can be searched by similarity."""
        return self.kind.endswith("Vector")


@final
@dataclass(frozen=True, slots=True)
class Schema:
    """One collection.

    Attributes:
        collection: Its name (not the alias that was asked for).
        fields: Its fields, in order.
        is_dynamic: Rows may have fields beyond these.
        description: Free text.
        properties: Key-value properties.
        level: Its consistency level, by name.
        metrics: Metric of each indexed vector field.
    """

    collection: str
    fields: tuple[Field, ...]
    is_dynamic: bool = False
    description: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    level: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Field | None:
        """Return the field of that name."""
        return next((one for one in self.fields if one.name == name), None)

    def vectors(self, kind: str) -> list[Field]:
        """Return the vector fields of one kind."""
        return [one for one in self.fields if one.kind == kind]


def describe_index(collection: str, *, database: str = "") -> Request:
    """Ask for all indexes of a collection."""
    message = milvus_pb2.DescribeIndexRequest(db_name=database, collection_name=collection)
    metadata = (("dbname", database),) if database else ()
    return Request(named("DescribeIndex"), message.SerializeToString(), metadata)


def read_schema(description: bytes, indexes: bytes = b"") -> Schema:
    """Read DescribeCollection's answer, and DescribeIndex's.

    Raises:
        ValueError: The bytes are something else.
    """
    try:
        reply = milvus_pb2.DescribeCollectionResponse.FromString(description)
        listed = milvus_pb2.DescribeIndexResponse.FromString(indexes)
    except DecodeError as error:
        raise ValueError(f"not a description of a collection: {error}") from None
    sources = _sources(reply.schema)
    metrics = {}
    for index in listed.index_descriptions:
        params = {pair.key: pair.value for pair in index.params}
        if "metric_type" in params:
            metrics[index.field_name] = params["metric_type"]
    return Schema(
        collection=reply.collection_name or reply.schema.name,
        fields=tuple(_field(one, sources) for one in reply.schema.fields),
        is_dynamic=reply.schema.enable_dynamic_field,
        description=reply.schema.description,
        properties={pair.key: pair.value for pair in reply.properties},
        level=common_pb2.ConsistencyLevel.Name(reply.consistency_level),
        metrics=metrics,
    )


def _sources(schema: Any) -> dict[str, tuple[str, ...]]:
    """Map each field that a function fills to the fields that the function reads."""
    return {out: tuple(one.input_field_names) for one in schema.functions for out in one.output_field_names}


def _field(one: Any, sources: Mapping[str, tuple[str, ...]]) -> Field:
    dimension = next((int(pair.value) for pair in one.type_params if pair.key == "dim"), 0)
    try:
        kind = schema_pb2.DataType.Name(one.data_type)
    except ValueError:
        kind = f"type {one.data_type}"  # of a newer server
    return Field(one.name, kind, one.is_primary_key, dimension, one.description, sources.get(one.name, ()))
