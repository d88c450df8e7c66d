"""The collection that an `Indexer` fills and a `Retriever` reads.

Decision made here: what was asked for is compared with what is there, also right after creation, because a server that
does not know a type or a function makes the collection without it, and says nothing. The embedder's fingerprint is a
property of the collection: of all places (descriptions, properties) the only one that both milvus-lite and Milvus 2.3
keep, and that can be set later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from pymilvus import CollectionSchema, DataType, FieldSchema, Function, FunctionType
from pymilvus.client.prepare import Prepare
from pymilvus.client.utils import check_status
from pymilvus.grpc_gen import common_pb2, milvus_pb2

from haclient.errors import AccessDenied, CallError, ConfigError
from haclient.retrieval.chunks import ID, ID_LENGTH, SOURCE, SOURCE_BYTES, SPARSE, TEXT, VECTOR
from haclient.retrieval.embed.embedder import Fingerprint

#: The property that holds ``str(fingerprint)``.
FINGERPRINT_PROPERTY: Final = "haclient.embedder"

#: Milvus' limit, in bytes.
_TEXT_BYTES = 65535
_DENSE_INDEX = {"index_type": "AUTOINDEX", "metric_type": "COSINE"}
_SPARSE_INDEX = {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25"}
_TYPES = {ID: DataType.VARCHAR, TEXT: DataType.VARCHAR, SOURCE: DataType.VARCHAR, VECTOR: DataType.FLOAT_VECTOR}
_log = logging.getLogger("haclient")


def read_fingerprint(description: Mapping[str, Any]) -> Fingerprint | None:
    """Return which model filled a collection, None if it does not say.

    Args:
        description: What ``client.describe_collection(name)`` returned.
    """
    return Fingerprint.find(str(description.get("properties", {}).get(FINGERPRINT_PROPERTY, "")))


async def ensure(milvus: Any, name: str, fingerprint: Fingerprint, *, hybrid: bool, servers: str) -> Mapping[str, Any]:
    """Make sure that a collection is there, fits, is indexed and loaded; returns its description.

    Every step is taken only if it is due, so one that was interrupted goes on where it stopped.

    Args:
        milvus: pymilvus' async handler.
        name: The collection.
        fingerprint: Which vectors it is to hold.
        hybrid: It must have a BM25 function over the text, too.
        servers: What errors call the servers.

    Raises:
        ConfigError: It does not fit, holds another model's vectors, or the server cannot make it.
        MilvusException: What the server refused.
    """
    description = await _describe(milvus, name)
    if description is None:
        description = await _create(milvus, name, fingerprint, hybrid=hybrid)
        if hybrid and not _bm25(description):
            # At once: if anybody loads a sparse field, Milvus 2.3 aborts.
            await milvus.drop_collection(name)
            version = (await milvus._async_stub.GetVersion(milvus_pb2.GetVersionRequest())).version
            raise ConfigError(
                f"hybrid=True cannot work: {servers} runs Milvus {version}, which made collection {name!r} without its "
                "BM25 function (it is dropped again). Leave hybrid=True out, or use Milvus 2.5 or newer"
            )
    _check(description, fingerprint, hybrid=hybrid)
    if read_fingerprint(description) is None:
        await _adopt(milvus, name, fingerprint)
    await _index(milvus, description)
    await _load(milvus, name)
    return description


def text_bytes(description: Mapping[str, Any]) -> int:
    """Return how many bytes a chunk's text may have."""
    return int(_fields(description)[TEXT]["params"]["max_length"])


async def _describe(milvus: Any, name: str) -> Mapping[str, Any] | None:
    # Asked first: pymilvus logs an error for a collection that is not there.
    there = await milvus._async_stub.HasCollection(milvus_pb2.HasCollectionRequest(collection_name=name))
    check_status(there.status)
    if not there.value:
        return None
    description: Mapping[str, Any] = await milvus.describe_collection(name)
    return description


async def _create(milvus: Any, name: str, fingerprint: Fingerprint, *, hybrid: bool) -> Mapping[str, Any]:
    fields = [
        FieldSchema(ID, DataType.VARCHAR, is_primary=True, max_length=ID_LENGTH),
        FieldSchema(TEXT, DataType.VARCHAR, max_length=_TEXT_BYTES, **({"enable_analyzer": True} if hybrid else {})),
        FieldSchema(SOURCE, DataType.VARCHAR, max_length=SOURCE_BYTES),
        FieldSchema(VECTOR, DataType.FLOAT_VECTOR, dim=fingerprint.dimension),
    ]
    functions = []
    if hybrid:
        fields.append(FieldSchema(SPARSE, DataType.SPARSE_FLOAT_VECTOR))
        functions.append(Function("bm25", FunctionType.BM25, input_field_names=[TEXT], output_field_names=[SPARSE]))
    schema = CollectionSchema(fields, functions=functions, enable_dynamic_field=True)
    await milvus.create_collection(name, schema, properties={FINGERPRINT_PROPERTY: str(fingerprint)})
    description = await _describe(milvus, name)
    if description is None:
        raise ConfigError(f"collection {name!r} was created and is not there; does something else drop it?")
    return description


def _check(description: Mapping[str, Any], fingerprint: Fingerprint, *, hybrid: bool) -> None:
    name = description["collection_name"]
    fields = _fields(description)
    wrong = [
        f"no field {field} of type {kind.name}"
        for field, kind in _TYPES.items()
        if fields.get(field, {}).get("type") != kind
    ]
    if description.get("auto_id") or not fields.get(ID, {}).get("is_primary"):
        wrong.append(f"its primary key is not {ID}, made by the client")
    bm25 = _bm25(description)
    if hybrid and not bm25:
        wrong.append("no BM25 function, which hybrid=True needs")
    wrong += [
        f"nothing fills its sparse field {field}"
        for field, facts in fields.items()
        if facts["type"] == DataType.SPARSE_FLOAT_VECTOR and field not in bm25
    ]
    if not wrong and (dimension := int(fields[VECTOR]["params"]["dim"])) != fingerprint.dimension:
        wrong.append(
            f"vectors of {dimension} numbers, and the embedder {fingerprint.model} makes {fingerprint.dimension}"
        )
    if wrong:
        raise ConfigError(
            f"collection {name!r} does not fit: {'; '.join(wrong)}. Name one that is not there yet, and it is made"
        )
    found = read_fingerprint(description)
    if found is not None and str(found) != str(fingerprint):
        raise ConfigError(
            f"this would be mixing two models in collection {name!r}, and answers would be wrong: it was filled with "
            f"{found}, and this is {fingerprint}. Use that model, or fill a new collection"
        )


async def _adopt(milvus: Any, name: str, fingerprint: Fingerprint) -> None:
    """Say on the collection which model fills it from now on."""
    try:
        await milvus.alter_collection_properties(name, {FINGERPRINT_PROPERTY: str(fingerprint)})
    except Exception as error:
        if isinstance(error, CallError) and not isinstance(error, AccessDenied):
            raise
        _log.warning(
            "collection %s cannot be marked with its embedder, so nothing will notice another: %s", name, error
        )


async def _index(milvus: Any, description: Mapping[str, Any]) -> None:
    name = description["collection_name"]
    request = milvus_pb2.DescribeIndexRequest(collection_name=name)
    # "There is none" is an error of its own, with an empty list.
    indexed = {index.field_name for index in (await milvus._async_stub.DescribeIndex(request)).index_descriptions}
    wanted = {VECTOR: _DENSE_INDEX} | dict.fromkeys(_bm25(description), _SPARSE_INDEX)
    for field, index in wanted.items():
        if field not in indexed:
            # Not the handler's method: it waits for an index over rows, with a call that milvus-lite does not know.
            creation = Prepare.create_index_request(name, field, index, index_name=field)
            check_status(await milvus._async_stub.CreateIndex(creation))


async def _load(milvus: Any, name: str) -> None:
    state = await milvus._async_stub.GetLoadState(milvus_pb2.GetLoadStateRequest(collection_name=name))
    check_status(state.status)
    if state.state != common_pb2.LoadStateLoaded:
        await milvus.load_collection(name)


def _fields(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {field["name"]: field for field in description["fields"]}


def _bm25(description: Mapping[str, Any]) -> set[str]:
    """Return the fields that BM25 functions fill."""
    functions = [function for function in description.get("functions", ()) if function["type"] == FunctionType.BM25]
    return {field for function in functions for field in function["output_field_names"]}
