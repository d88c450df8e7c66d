"""What a call needs of a server's version.

Decision made here: a server is asked nothing that it is known not to understand, since an old one accepts silently,
loses parts of it, or dies of it later (2.3.5 takes a field of type GEOMETRY or TIMESTAMPTZ, and panics at the next
flush). What is certain stands in the tables below; a version that is newer, or not known yet, is taken to understand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.call import Method
from haclient.milvus.datatypes import DataType, FunctionType
from haclient.milvus.shape import parse_request
from haclient.milvus.status import Flavour

_Version = tuple[int, int]
_D: Final = DataType


class _Need(NamedTuple):
    """One thing that a call asks for.

    Attributes:
        what: Its name, for a person.
        since: First version of a real Milvus that understands it.
        lite: Lite (3.2) understands it.
    """

    what: str
    since: _Version
    lite: bool


_ALWAYS: Final = (0, 0)

#: Types beyond those that everybody knows. 2.3.5 accepts every one of them at creation, whether it knows it or not.
_TYPES: Final[dict[int, tuple[_Version, bool]]] = {
    _D.BinaryVector: (_ALWAYS, False),
    _D.Float16Vector: ((2, 4), False),
    _D.BFloat16Vector: ((2, 4), False),
    _D.SparseFloatVector: ((2, 4), True),
    _D.Int8Vector: ((2, 6), False),
    _D.ArrayOfVector: ((2, 6), False),
    _D.Geometry: ((2, 6), True),
    _D.Timestamptz: ((2, 6), True),
    _D.Text: ((3, 0), False),
    _D.Mol: ((3, 0), False),
    _D.Date: ((3, 0), False),
    _D.Time: ((3, 0), False),
    _D.Decimal: ((3, 0), False),
}
_FUNCTIONS: Final[dict[int, tuple[_Version, bool]]] = {
    FunctionType.BM25: ((2, 5), True),
    FunctionType.TextEmbedding: ((2, 6), True),
    FunctionType.MinHash: ((3, 0), False),
    FunctionType.MolFingerprint: ((3, 0), False),
}
#: Index types; those that are not here differ from build to build. Lite takes any name for an index on vectors.
_INDEXES: Final[dict[str, tuple[_Version, bool]]] = {
    "": (_ALWAYS, False),
    "TRIE": (_ALWAYS, False),
    "STL_SORT": (_ALWAYS, False),
    "INVERTED": ((2, 4), True),
    "BITMAP": ((2, 5), False),
    "NGRAM": ((2, 6), False),
    "RTREE": ((2, 6), False),
    "SPARSE_INVERTED_INDEX": ((2, 4), True),
    "SPARSE_WAND": ((2, 4), True),
    "HNSW_SQ": ((2, 5), True),
    "HNSW_PQ": ((2, 5), True),
    "HNSW_PRQ": ((2, 5), True),
    "IVF_RABITQ": ((2, 6), True),
    "MINHASH_LSH": ((2, 6), False),
}
#: Calls that not every server has.
_CALLS: Final[dict[str, tuple[_Version, bool]]] = {
    **dict.fromkeys(
        (
            "LoadPartitions",
            "ReleasePartitions",
            "FlushAll",
            "CreateCredential",
            "UpdateCredential",
            "DeleteCredential",
            "CreateRole",
            "DropRole",
            "OperateUserRole",
            "OperatePrivilege",
            "CreateResourceGroup",
            "DropResourceGroup",
        ),
        (_ALWAYS, False),
    ),
    **dict.fromkeys(("AlterIndex", "UpdateResourceGroups", "RestoreRBAC"), ((2, 4), False)),
    "AlterDatabase": ((2, 4), True),
    **dict.fromkeys(
        (
            "AlterCollectionField",
            "OperatePrivilegeV2",
            "CreatePrivilegeGroup",
            "DropPrivilegeGroup",
            "OperatePrivilegeGroup",
        ),
        ((2, 5), False),
    ),
    "TruncateCollection": ((2, 6), True),
    **dict.fromkeys(
        (
            "AddCollectionField",
            "AddCollectionStructField",
            "AddCollectionFunction",
            "AlterCollectionFunction",
            "DropCollectionFunction",
            "AlterCollectionSchema",
        ),
        ((2, 6), False),
    ),
    **dict.fromkeys(
        ("AlterRole", "AddUserTags", "DeleteUserTags", "CreateRowPolicy", "DropRowPolicy", "UpdateRowPolicy"),
        ((3, 0), False),
    ),
    **dict.fromkeys(("SetRLSPrincipalTags", "DeleteRLSPrincipalTags"), ((3, 0), False)),
}
#: Property of an auto_id collection that takes keys when they are given.
ALLOW_KEYS: Final = "allow_insert_auto_id"
_BARE_JSON: Final = _Need("a JSON value that is no object", (2, 4), False)
_GIVEN_KEYS: Final = _Need("keys given for a collection that makes its own", (2, 6), False)


def problems(method: Method, message: bytes, versions: Mapping[str, tuple[Flavour, str]]) -> list[str]:
    """Say what a request needs that a cluster does not understand, one sentence each; empty if all do.

    Args:
        method: The RPC.
        message: The request.
        versions: Flavour and version of every cluster, by name; "" for a version that is not known.

    Raises:
        InvalidWrite: The message cannot be read.
    """
    needs = list(_needs(method, message))
    return [problem for need in needs for problem in _lacking(need, versions)]


def bare_json(versions: Mapping[str, tuple[Flavour, str]]) -> list[str]:
    """Say which clusters do not understand rows with `haclient.milvus.mutations.Rows.bare_json`, as `problems` does.

    Measured: 2.3.5 takes objects and null only; Lite refuses null and loses its way over numbers.
    """
    return _lacking(_BARE_JSON, versions)


def given_keys(versions: Mapping[str, tuple[Flavour, str]]) -> list[str]:
    """Say which clusters take no keys for an auto_id collection, not even with `ALLOW_KEYS`, as `problems` does.

    Measured: 2.3.5 refuses them. Lite takes them, and may make the same ones again later.
    """
    return _lacking(_GIVEN_KEYS, versions)


def _lacking(need: _Need, versions: Mapping[str, tuple[Flavour, str]]) -> list[str]:
    found = []
    for cluster, (flavour, version) in versions.items():
        if flavour is Flavour.LITE:
            if not need.lite:
                text = f"Cluster {cluster} runs Milvus Lite {version}, which does not understand {need.what}"
                found.append(f"{text}: do without it, or run a real Milvus there.")
        elif (numbers := _numbers(version)) is not None and numbers < need.since:
            text = f"Cluster {cluster} runs Milvus {version}, and {need.what} needs {'.'.join(map(str, need.since))}"
            found.append(f"{text}: upgrade it, or do without.")
    return found


def _numbers(version: str) -> _Version | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def _needs(method: Method, message: bytes) -> Iterator[_Need]:
    known = _CALLS.get(method.name)
    if known is not None:
        yield _Need(f"the call {method.name}", *known)
    reader = _READERS.get(method.name)
    if reader is not None:
        yield from reader(message)


def _collection(message: bytes) -> Iterator[_Need]:
    schema = parse_request(
        schema_pb2.CollectionSchema, parse_request(milvus_pb2.CreateCollectionRequest, message).schema
    )
    for field in schema.fields:
        yield from _field(field)
    if sum(field.data_type >= _D.BinaryVector for field in schema.fields) > 1:
        yield _Need("more than one vector field", (2, 4), True)
    for struct in schema.struct_array_fields:
        yield _Need(f"the array of structs {struct.name}", (2, 6), False)
    for function in schema.functions:
        yield from _function(function)


def _field(field: Any) -> Iterator[_Need]:
    since, lite = _TYPES.get(field.data_type, (_ALWAYS, True))
    known = {one.value: one.name for one in _D}
    if field.data_type not in known:
        since, lite = (3, 0), False
    name = known.get(field.data_type, str(field.data_type))
    yield _Need(f"the type {name} of field {field.name}", since, lite)
    if field.nullable:
        yield _Need(f"null in field {field.name}", (2, 5), True)
    if field.default_value.WhichOneof("data"):
        yield _Need(f"the default value of field {field.name}", (2, 5), True)


def _function(function: Any) -> Iterator[_Need]:
    since, lite = _FUNCTIONS.get(function.type, ((3, 0), False))
    yield _Need(f"the function {function.name}", since, lite)


def _added_field(message: bytes) -> Iterator[_Need]:
    yield from _field(
        parse_request(schema_pb2.FieldSchema, parse_request(milvus_pb2.AddCollectionFieldRequest, message).schema)
    )


def _added_function(message: bytes) -> Iterator[_Need]:
    yield from _function(parse_request(milvus_pb2.AddCollectionFunctionRequest, message).functionSchema)


def _index(message: bytes) -> Iterator[_Need]:
    given = {pair.key: pair.value for pair in parse_request(milvus_pb2.CreateIndexRequest, message).extra_params}
    kind = given.get("index_type", "").upper()
    since, lite = _INDEXES.get(kind, (_ALWAYS, True))
    yield _Need(f"the index type {kind}" if kind else "an index without an index type", since, lite)


_READERS: Final[dict[str, Callable[[bytes], Iterator[_Need]]]] = {
    "CreateCollection": _collection,
    "AddCollectionField": _added_field,
    "AddCollectionFunction": _added_function,
    "CreateIndex": _index,
}
