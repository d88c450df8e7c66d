"""Everything but rows: which calls are mirrored, in whose order, in what form, and when "no" means "done already".

Decision made here: a call goes into the log if clusters that were the same are the same after it. Jobs that change no
answer (compaction, balance, snapshots taken) are done on one cluster. What would make clusters differ behind the log's
back (files imported into one of them, Milvus' own replication, a snapshot restored, nodes moved) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.call import Kind, Method
from haclient.milvus.columns import invalid
from haclient.milvus.methods import METHODS
from haclient.milvus.requests import DATABASE_FIELD
from haclient.milvus.shape import INVALID, MARK, InvalidWrite, is_marked, parameter, parse, parse_request
from haclient.milvus.status import Flavour
from haclient.milvus.wireformat import BYTES, fields

#: Where a call goes: into the log, to one cluster only, or nowhere.
Where = Literal["log", "home", "refused"]

_NAMESPACES: Final = "Namespaces are not mirrored: use a partition key."
_REPLICATED: Final = "Milvus' own replication would write behind the log's back: use one or the other."
_NODES: Final = "It moves nodes of one cluster: send it to that cluster itself."
_FILES: Final = "It names files that one cluster can read: send it to each cluster itself."
_RESTORED: Final = (
    "It would bring rows into one cluster behind the log's back: restore it on one cluster, and reseed the others."
)
_REFUSED: Final[dict[str, str]] = {
    "Import": "It would bring rows into one cluster behind the log's back: insert them.",
    "CreateNamespace": _NAMESPACES,
    "DropNamespace": _NAMESPACES,
    "BatchUpdateManifest": _FILES,
    "AddFileResource": _FILES,
    "RemoveFileResource": _FILES,
    "TransferNode": _NODES,
    "TransferReplica": _NODES,
    "ReplicateMessage": _REPLICATED,
    "CreateReplicateStream": _REPLICATED,
    "UpdateReplicateConfiguration": _REPLICATED,
    "RestoreSnapshot": _RESTORED,
    "RestoreExternalSnapshot": _RESTORED,
    "RefreshExternalCollection": _RESTORED,
}
#: Jobs that make what was acknowledged durable or visible: wanted on every cluster.
_FLUSHES: Final = frozenset(("Flush", "FlushAll"))


def mirrored(method: Method) -> tuple[Where, str]:
    """Say what becomes of a call that changes something (WRITE, DDL, ACCESS, ADMIN), and why if it is not the log."""
    if method.path not in METHODS:
        return "refused", "haclient does not know this call, so it cannot mirror it: send it to each cluster itself."
    reason = _REFUSED.get(method.name)
    if reason:
        return "refused", reason
    if method.kind in (Kind.WRITE, Kind.DDL, Kind.ACCESS) or method.name in _FLUSHES:
        return "log", ""
    return "home", "It is a job of one cluster, and changes no answer."


# The stream.

_DATABASES: Final = frozenset(("CreateDatabase", "DropDatabase", "AlterDatabase"))
#: Calls that name a collection and concern more than that one.
_BARRIERS: Final = _DATABASES | {"CreateAlias", "DropAlias", "AlterAlias", "RenameCollection"}


def scope(method: Method, message: bytes, database: str) -> tuple[str, str]:
    """Return the stream of a mirrored call: (database, collection as named), or ("", "") for what concerns several.

    Args:
        method: The RPC.
        message: The user's request.
        database: Of the call, "" for the default one; what the request says itself counts more.

    Raises:
        InvalidWrite: The message cannot be read.
    """
    if method.kind is Kind.ACCESS or method.name in _BARRIERS or not method.collection:
        return "", ""
    place = 2 if method.collection == 3 else DATABASE_FIELD.get(method.name, 0)
    names: set[str] = set()
    try:
        for number, kind, a, b in fields(message):
            if kind == BYTES and number == method.collection:
                names.add(message[a:b].decode())
            elif kind == BYTES and number == place and b > a:
                database = message[a:b].decode()
    except ValueError as error:
        raise InvalidWrite(INVALID, f"not a {method.name}: {error}") from None
    if len(names) != 1:
        return "", ""  # Flush of several
    return default_as_empty(database), names.pop()


def default_as_empty(database: str) -> str:
    """Return the one name of a database: ``default`` is another one of ""."""
    return "" if database == "default" else database


# The form.


def normalise(method: Method, message: bytes, database: str) -> bytes:
    """Take what is of one cluster or one client out of a request and write its database into it.

    A method that is newer than the protobuf classes installed goes as it is.

    Raises:
        InvalidWrite: The message cannot be read.
    """
    described = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"].methods_by_name.get(method.name)
    if described is None:
        return message
    request = parse_request(getattr(milvus_pb2, described.input_type.name), message)
    known = described.input_type.fields_by_name
    for name in ("base", "collectionID"):
        if name in known:
            request.ClearField(name)
    if "db_name" in known and method.name not in _DATABASES:
        request.db_name = default_as_empty(request.db_name or database)
    if method.name == "AlterCollection":
        _keep_mark(request)
    return bytes(request.SerializeToString(deterministic=True))


def _keep_mark(request: Any) -> None:
    """See that a user cannot take the mark from a collection: who sees none may send all properties he sees."""
    properties = [pair for pair in request.properties if pair.key != MARK]
    names = [name for name in request.delete_keys if name != MARK]
    del request.properties[:], request.delete_keys[:]
    request.properties.extend(properties)
    request.delete_keys.extend(names)


# Refusals that are none.

_EXISTS: Final = r"already exists?\b"
_ABSENT: Final = r"not exist|not found|no index to drop"
_ALREADY: Final[dict[str, re.Pattern[str]]] = {
    name: re.compile(text, re.IGNORECASE)
    for name, text in {
        "CreateCollection": _EXISTS,
        "CreatePartition": _EXISTS,
        "CreateAlias": rf"^(?!.*another collection).*{_EXISTS}",
        "CreateDatabase": _EXISTS,
        "CreateIndex": _EXISTS,
        "CreateCredential": _EXISTS,
        "CreateRole": _EXISTS,
        "CreateResourceGroup": _EXISTS,
        "CreatePrivilegeGroup": _EXISTS,
        "CreateRowPolicy": _EXISTS,
        "AddCollectionField": rf"{_EXISTS}|duplicate[d]? field",
        "AddCollectionStructField": rf"{_EXISTS}|duplicate[d]? field",
        "AddCollectionFunction": rf"{_EXISTS}|duplicate[d]? function",
        "DropCollection": _ABSENT,
        "DropPartition": _ABSENT,
        "DropAlias": _ABSENT,
        "DropDatabase": _ABSENT,
        "DropIndex": _ABSENT,
        "DropRole": _ABSENT,
        "DropResourceGroup": _ABSENT,
        "DropPrivilegeGroup": _ABSENT,
        "DropRowPolicy": _ABSENT,
        "DropCollectionFunction": _ABSENT,
        "DeleteCredential": _ABSENT,
        "RenameCollection": rf"duplicated new collection name|{_ABSENT}",
    }.items()
}
#: What Lite says with a name alone: a partition that is there, and one that is not.
_LITE: Final = {("CreatePartition", 1), ("DropPartition", 200)}


def already(method_name: str, code: int, reason: str, flavour: Flavour) -> bool:
    """Say whether a server's refusal of a repeated call means that everything is as wanted already.

    Measured: 2.3.5 answers OK to most repetitions (grants and revocations too), but for CreateDatabase,
    CreateCredential, CreateRole, DropRole, CreateResourceGroup and RenameCollection; Lite refuses all but
    DropCollection, DropAlias, AlterAlias, load and release. A repeated UpdateCredential ("old password not correct") is
    never taken for done: it could be another password.
    """
    if flavour is Flavour.LITE and (method_name, code) in _LITE:
        return True
    text = _ALREADY.get(method_name)
    return text is not None and text.search(reason) is not None


# Collections whose keys haclient makes.

#: Characters of the longest key as text.
_KEY_DIGITS: Final = 19


def create(message: bytes) -> bytes:
    """Return a CreateCollectionRequest with which haclient makes the keys of an auto_id collection.

    Raises:
        InvalidWrite: The schema cannot be read, or cannot be mirrored.
    """
    request = parse_request(milvus_pb2.CreateCollectionRequest, message)
    schema = parse_request(schema_pb2.CollectionSchema, request.schema)
    if schema.external_source:
        raise invalid(f"{schema.name}: the rows of an external collection are not in Milvus, so they are not mirrored")
    if schema.enable_namespace:
        raise invalid(f"{schema.name}: {_NAMESPACES}")
    key = next((field for field in schema.fields if field.is_primary_key), None)
    if key is None or not (key.autoID or schema.autoID):
        return message
    if key.data_type == schema_pb2.VarChar and 0 < parameter(key, "max_length") < _KEY_DIGITS:
        raise invalid(f"the max_length of {key.name} is too short for keys made for it: at least {_KEY_DIGITS}")
    key.autoID = schema.autoID = False
    if not is_marked(request.properties):
        request.properties.append(common_pb2.KeyValuePair(key=MARK, value="true"))
    request.schema = schema.SerializeToString()
    return bytes(request.SerializeToString())


_MARK_BYTES: Final = MARK.encode()


def described(reply: bytes) -> bytes:
    """Return DescribeCollection's answer as the user is to see it: auto_id again, without the mark.

    The same object comes back if there is no mark.
    """
    if _MARK_BYTES not in reply:
        return reply
    try:
        told = milvus_pb2.DescribeCollectionResponse.FromString(reply)
    except DecodeError:
        return reply
    if not is_marked(told.properties):
        return reply
    for properties in (told.properties, told.schema.properties):
        kept = [pair for pair in properties if pair.key != MARK]
        del properties[:]
        properties.extend(kept)
    told.schema.autoID = True
    for field in told.schema.fields:
        field.autoID = field.is_primary_key
    return bytes(told.SerializeToString())


# Comparison.

#: Type parameters that say what rows may be and how text is found; others are about memory and disk.
_PARAMETERS: Final = ("dim", "max_length", "max_capacity", "enable_analyzer", "enable_match", "analyzer_params")
#: Lite does not tell how long the texts in an array may be, so that this is missing is no difference.
_ELEMENTS: Final = "max_length of the elements"
#: Properties that say which rows there are.
_PROPERTIES: Final = (MARK, "collection.ttl.seconds")


def differences(wanted: bytes, description: bytes) -> list[str]:
    """Say what a server has not kept of a collection that was created.

    What it adds is its own business, and so are texts (descriptions), layout (shards, clustering keys, memory mapping)
    and the default consistency level: Lite keeps none of these, and no row depends on them.

    Args:
        wanted: The CreateCollectionRequest, as sent.
        description: The server's answer to DescribeCollection.
    """
    request = parse(milvus_pb2.CreateCollectionRequest, wanted)
    told = parse(milvus_pb2.DescribeCollectionResponse, description)
    one = _facts(parse(schema_pb2.CollectionSchema, request.schema), request.properties)
    other = _facts(told.schema, told.properties)
    return [
        f"{what} is {other.get(what, 'missing')} instead of {value}"
        for what, value in one.items()
        if _differ(what, value, other.get(what))
    ]


def existing_differences(one: bytes, other: bytes) -> list[str]:
    """Say in what two clusters' descriptions of a collection differ, apart from what is of one cluster alone."""
    first, second = (
        _facts(told.schema, told.properties)
        for told in (parse(milvus_pb2.DescribeCollectionResponse, description) for description in (one, other))
    )
    return [
        f"{what} is {first.get(what, 'missing')} on one and {second.get(what, 'missing')} on the other"
        for what in dict.fromkeys((*first, *second))
        if _differ(what, first.get(what), second.get(what))
    ]


def _differ(what: str, one: str | None, other: str | None) -> bool:
    return one != other and not (what.startswith(_ELEMENTS) and None in (one, other))


def _facts(schema: Any, properties: Any) -> dict[str, str]:
    """Return what rows depend on, in words."""
    facts = {"the dynamic field": "on" if schema.enable_dynamic_field else "off"}
    fields_of = [(field, "") for field in schema.fields if not field.is_dynamic]
    fields_of += [(field, f"{struct.name}.") for struct in schema.struct_array_fields for field in struct.fields]
    for field, prefix in fields_of:
        facts.update(_field_facts(field, f"field {prefix}{field.name}", schema.autoID))
    for function in schema.functions:
        kind = schema_pb2.FunctionType.Name(function.type)
        made = f"{kind} of {', '.join(function.input_field_names)}"
        facts[f"function {function.name}"] = f"{made} in {', '.join(function.output_field_names)}"
    given = {pair.key: pair.value for pair in properties}
    facts.update({f"property {name}": given[name] for name in _PROPERTIES if name in given})
    return facts


def _field_facts(field: Any, what: str, auto_id: bool) -> Iterator[tuple[str, str]]:
    yield what, _type_name(field.data_type)
    if field.is_primary_key:
        yield f"the key of {what}", "made by the server" if field.autoID or auto_id else "given"
    if field.data_type in (schema_pb2.Array, schema_pb2.ArrayOfVector):
        yield f"the elements of {what}", _type_name(field.element_type)
    if field.nullable:
        yield f"null in {what}", "allowed"
    if field.is_partition_key:
        yield f"the partition key {what}", "on"
    kind = field.default_value.WhichOneof("data")
    if kind:
        yield f"the default of {what}", repr(getattr(field.default_value, kind))
    given: Mapping[str, str] = {pair.key: pair.value for pair in field.type_params}
    for name in _PARAMETERS:
        value = _canonical(given.get(name, ""))
        if value:
            elements = name == "max_length" and field.data_type == schema_pb2.Array
            yield f"{_ELEMENTS if elements else name} of {what}", value


def _type_name(number: int) -> str:
    try:
        return str(schema_pb2.DataType.Name(number))
    except ValueError:
        return f"type {number}"


def _canonical(value: str) -> str:
    """Write a parameter in one way: servers write JSON and truth values in their own; false is as good as absent."""
    try:
        parsed = orjson.loads(value.lower() if value.lower() in ("true", "false") else value)
    except ValueError:
        return value
    return "" if parsed is False else orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS).decode()
