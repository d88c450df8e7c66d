"""What a request does to a Milvus: real request bytes in, real reply bytes out, rows in a dict.

Decision made here: it behaves as Milvus 2.3.5 was seen to where that matters to replication. An insert of a key that
is there makes a second row, as does a key that comes twice in one request. A role or database made twice is an error;
the same collection, index or alias made twice is none. Dropping what is not there succeeds, except for roles.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus.methods import named

#: The watermark's collection and whatever else haclient keeps for itself; no two clusters hold the same there.
OWN_PREFIX: Final = "_haclient"

REQUESTS: Final[dict[str, Any]] = {
    name: getattr(milvus_pb2, f"{request}Request")
    for name, request in {
        "AlterAlias": "AlterAlias",
        "CreateAlias": "CreateAlias",
        "CreateCollection": "CreateCollection",
        "CreateDatabase": "CreateDatabase",
        "CreateIndex": "CreateIndex",
        "CreateRole": "CreateRole",
        "Delete": "Delete",
        "DescribeCollection": "DescribeCollection",
        "DropAlias": "DropAlias",
        "DropCollection": "DropCollection",
        "DropDatabase": "DropDatabase",
        "DropIndex": "DropIndex",
        "DropRole": "DropRole",
        "GetLoadState": "GetLoadState",
        "GetVersion": "GetVersion",
        "HasCollection": "HasCollection",
        "Insert": "Insert",
        "ListDatabases": "ListDatabases",
        "LoadCollection": "LoadCollection",
        "Query": "Query",
        "ReleaseCollection": "ReleaseCollection",
        "RenameCollection": "RenameCollection",
        "ShowCollections": "ShowCollections",
        "Upsert": "Upsert",
    }.items()
}
_IN_SCALARS: Final = {5: "long_data", 21: "string_data", 1: "bool_data", 4: "int_data"}
_FLOAT_VECTOR: Final = 101


class Refused(Exception):
    """Milvus says that the request is wrong."""

    def __init__(self, code: int, reason: str, error_code: int = 1) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.error_code = error_code


@dataclass(slots=True)
class Collection:
    """One collection; rows by key, every row a tuple of the schema's fields."""

    schema: Any
    properties: tuple[tuple[str, str], ...]
    names: list[str]
    kinds: list[int]
    key: int
    id: int
    indexes: dict[str, bytes] = field(default_factory=dict)
    loaded: bool = False
    rows: dict[Any, list[tuple[Any, ...]]] = field(default_factory=dict)
    #: What a read that does not ask for more may still see: (timestamp, rows by key) after the last changes.
    earlier: deque[tuple[int, dict[Any, tuple[Any, ...]]]] = field(default_factory=lambda: deque(maxlen=4))


@functools.lru_cache(maxsize=4096)
def parse(name: str, message: bytes) -> Any:
    """Read a request; nobody may change it."""
    return REQUESTS[name].FromString(message)


@functools.lru_cache(maxsize=4096)
def rows_of(name: str, message: bytes) -> dict[str, list[Any]]:
    """Read the columns of an InsertRequest or UpsertRequest."""
    request = parse(name, message)
    columns: dict[str, list[Any]] = {}
    for one in request.fields_data:
        if one.type == _FLOAT_VECTOR:
            flat, dim = one.vectors.float_vector.data, one.vectors.dim
            columns[one.field_name] = [tuple(flat[i : i + dim]) for i in range(0, len(flat), dim)]
        else:
            columns[one.field_name] = list(getattr(one.scalars, _IN_SCALARS[one.type]).data)
    return columns


@functools.lru_cache(maxsize=4096)
def _compiled(expression: str) -> Any:
    return compile(expression.replace("&&", " and ").replace("||", " or "), "<filter>", "eval")


def matches(expression: str, row: dict[str, Any]) -> bool:
    """Say whether a filter takes a row; Milvus' filters that are used here are Python too."""
    return not expression.strip() or bool(eval(_compiled(expression), {"__builtins__": {}}, row))


@functools.lru_cache(maxsize=4096)
def deleted_keys(expression: str) -> tuple[Any, ...] | None:
    """Return the keys that a filter ``key in [..]`` or ``key == x`` lists."""
    name, _, rest = expression.strip().partition(" ")
    if name.isidentifier() and rest.lstrip().startswith(("in", "==")):
        listed = eval(_compiled(rest.lstrip().removeprefix("in").removeprefix("==").strip()), {"__builtins__": {}})
        return tuple(listed) if isinstance(listed, list) else (listed,)
    return None


@functools.lru_cache(maxsize=1024)
def _status(code: int, reason: str, error_code: int) -> Any:
    return common_pb2.Status(code=code, reason=reason, error_code=error_code)


def failure(name: str, code: int, reason: str, error_code: int = 1) -> bytes:
    """Write a reply that is an error."""
    status = _status(code, reason, error_code)
    if named(name).status == 0:
        return _bytes(status)
    return _bytes(milvus_pb2.BoolResponse(status=status))


class Milvus:
    """The contents of one cluster.

    Attributes:
        collections: By (database, name).
        aliases: Collection's name by (database, alias).
        clock: Its newest timestamp.
        twice: Keys that have got a second row.
        draw: Chooses which of the earlier states a read sees that does not ask for the newest; None always the newest.
    """

    def __init__(self, clock: int = 1 << 50) -> None:
        self.databases = {"default"}
        self.collections: dict[tuple[str, str], Collection] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.roles: set[str] = set()
        self.clock = clock
        self.twice: set[Any] = set()
        self.draw: Callable[[], float] | None = None
        self._ids = 0

    def execute(self, name: str, message: bytes, database: str = "") -> bytes:
        """Carry a request out and return the reply.

        Raises:
            Refused: The request is wrong; nothing was changed.
        """
        if name not in REQUESTS:
            raise Refused(12, f"unknown method {name}")
        request = parse(name, message)
        where = getattr(request, "db_name", "") or database or "default"
        if where not in self.databases and name not in ("CreateDatabase", "DropDatabase"):
            raise Refused(800, f"database not found[database={where}]")
        return _HANDLERS[name](self, where, request, message)

    def find(self, database: str, name: str) -> Collection:
        name = self.aliases.get((database, name), name)
        found = self.collections.get((database, name))
        if found is None:
            raise Refused(100, f"collection not found[collection={name}]", 4)
        return found

    def snapshot(self) -> dict[Any, Any]:
        """Return all that must be the same on every cluster."""
        taken: dict[Any, Any] = {
            "databases": sorted(self.databases),
            "aliases": dict(sorted(self.aliases.items())),
            "roles": sorted(self.roles),
        }
        for where, one in sorted(self.collections.items()):
            if not where[1].startswith(OWN_PREFIX):
                rows = {key: sorted(versions) for key, versions in sorted(one.rows.items()) if versions}
                taken[where] = {
                    "schema": (one.schema, one.properties),
                    "indexes": dict(sorted(one.indexes.items())),
                    "loaded": one.loaded,
                    "rows": rows,
                }
        return taken

    # Collections.

    def _create(self, database: str, request: Any, message: bytes) -> bytes:
        schema = schema_pb2.CollectionSchema.FromString(request.schema)
        properties = tuple(sorted((pair.key, pair.value) for pair in request.properties))
        stored = schema.SerializeToString(deterministic=True)
        where = (database, request.collection_name)
        if where in self.aliases:
            raise Refused(
                65535, f"collection name [{where[1]}] conflicts with an existing alias, please choose another"
            )
        before = self.collections.get(where)
        if before is not None:
            if (before.schema, before.properties) != (stored, properties):
                raise Refused(65535, f"create duplicate collection with different parameters, collection: {where[1]}")
            return b""
        self._ids += 1
        key = next(i for i, one in enumerate(schema.fields) if one.is_primary_key)
        names, kinds = [one.name for one in schema.fields], [one.data_type for one in schema.fields]
        self.collections[where] = Collection(stored, properties, names, kinds, key, self._ids)
        return b""

    def _drop(self, database: str, request: Any, message: bytes) -> bytes:
        where = (database, request.collection_name)
        if where in self.aliases:
            raise Refused(65535, f"cannot drop the collection via alias = {where[1]}")
        if where in self.collections:
            if any(a[0] == database and target == where[1] for a, target in self.aliases.items()):
                raise Refused(65535, f"unable to drop the collection [{where[1]}] because it has associated aliases")
            del self.collections[where]
        return b""

    def _rename(self, database: str, request: Any, message: bytes) -> bytes:
        where, to = (database, request.oldName), (database, request.newName)
        if to in self.collections:
            raise Refused(65535, f"duplicated new collection name {to[1]} in database {database} with other collection")
        if where not in self.collections:
            raise Refused(100, f"collection not found[collection={where[1]}]", 4)
        self.collections[to] = self.collections.pop(where)
        return b""

    def _has(self, database: str, request: Any, message: bytes) -> bytes:
        name = self.aliases.get((database, request.collection_name), request.collection_name)
        return _bytes(milvus_pb2.BoolResponse(status=_OK, value=(database, name) in self.collections))

    def _describe(self, database: str, request: Any, message: bytes) -> bytes:
        found = self.find(database, request.collection_name)
        name = self.aliases.get((database, request.collection_name), request.collection_name)
        reply = milvus_pb2.DescribeCollectionResponse(status=_OK, collectionID=found.id, collection_name=name)
        reply.schema.ParseFromString(found.schema)
        reply.schema.name = name
        for number, one in enumerate(reply.schema.fields):
            one.fieldID = 100 + number
        reply.aliases.extend(a for (d, a), target in self.aliases.items() if d == database and target == name)
        reply.db_name = database
        for name, value in found.properties:
            reply.properties.add(key=name, value=value)
        return _bytes(reply)

    def _show(self, database: str, request: Any, message: bytes) -> bytes:
        reply = milvus_pb2.ShowCollectionsResponse(status=_OK)
        for (where, name), one in self.collections.items():
            if where == database and (request.type == 0 or one.loaded):
                reply.collection_names.append(name)
                reply.collection_ids.append(one.id)
                reply.created_timestamps.append(1)
        return _bytes(reply)

    def _index(self, database: str, request: Any, message: bytes) -> bytes:
        found = self.find(database, request.collection_name)
        params = repr(sorted((pair.key, pair.value) for pair in request.extra_params)).encode()
        before = found.indexes.get(request.field_name)
        if before is not None and before != params:
            raise Refused(65535, "CreateIndex failed: at most one distinct index is allowed per field")
        found.indexes[request.field_name] = params
        return b""

    def _drop_index(self, database: str, request: Any, message: bytes) -> bytes:
        found = self.find(database, request.collection_name)
        if found.loaded:
            raise Refused(65535, "index cannot be dropped, collection is loaded, please release it first")
        found.indexes.pop(request.field_name, None)
        return b""

    def _load(self, database: str, request: Any, message: bytes) -> bytes:
        found = self.find(database, request.collection_name)
        if not found.indexes:
            raise Refused(700, f"index not found[collection={request.collection_name}]", 25)
        found.loaded = True
        return b""

    def _load_state(self, database: str, request: Any, message: bytes) -> bytes:
        name = self.aliases.get((database, request.collection_name), request.collection_name)
        found = self.collections.get((database, name))
        states = common_pb2.LoadState
        state = states.LoadStateNotExist if found is None else states.LoadStateNotLoad
        if found is not None and found.loaded:
            state = states.LoadStateLoaded
        return _bytes(milvus_pb2.GetLoadStateResponse(status=_OK, state=state))

    def _release(self, database: str, request: Any, message: bytes) -> bytes:
        self.find(database, request.collection_name).loaded = False
        return b""

    # Rows.

    def _insert(self, database: str, request: Any, message: bytes) -> bytes:
        return self._write(database, request, rows_of("Insert", message), replace=False)

    def _upsert(self, database: str, request: Any, message: bytes) -> bytes:
        return self._write(database, request, rows_of("Upsert", message), replace=True)

    def _write(self, database: str, request: Any, columns: dict[str, list[Any]], replace: bool) -> bytes:
        found = self.find(database, request.collection_name)
        if set(columns) != set(found.names):
            raise Refused(1100, f"invalid parameter[columns={sorted(columns)}]")
        keys = columns[found.names[found.key]]
        if replace:
            for key in keys:
                found.rows.pop(key, None)
        for row in zip(*(columns[name] for name in found.names), strict=True):
            rows = found.rows.setdefault(row[found.key], [])
            rows.append(row)
            if len(rows) > 1:
                self.twice.add(row[found.key])
        reply = self._mutated(found, len(keys))
        ids = reply.IDs
        (ids.str_id if keys and isinstance(keys[0], str) else ids.int_id).data.extend(keys)
        return _bytes(reply)

    def _delete(self, database: str, request: Any, message: bytes) -> bytes:
        found = self.find(database, request.collection_name)
        keys = deleted_keys(request.expr)
        if keys is None:
            keys = tuple(key for key, row in self._matching(found, request.expr, _newest(found)))
        for key in keys:
            found.rows.pop(key, None)
        return _bytes(self._mutated(found, len(keys)))

    def _mutated(self, found: Collection, count: int) -> Any:
        self.clock += 1 << 18
        if self.draw is not None:
            found.earlier.append((self.clock, _newest(found)))
        return milvus_pb2.MutationResult(status=_OK, insert_cnt=count, timestamp=self.clock)

    @staticmethod
    def _matching(found: Collection, expression: str, rows: dict[Any, tuple[Any, ...]]) -> list[tuple[Any, Any]]:
        names = found.names
        return sorted((k, row) for k, row in rows.items() if matches(expression, dict(zip(names, row, strict=True))))

    def _visible(self, found: Collection, request: Any) -> dict[Any, tuple[Any, ...]]:
        """Return what a read sees: all that its timestamp asks for, and perhaps more."""
        newest = _newest(found)
        wanted = request.guarantee_timestamp
        if self.draw is None or request.consistency_level == _STRONG or wanted in (0, _BOUNDED_TIMESTAMP):
            return newest
        seen = [rows for at, rows in found.earlier if at >= wanted]
        return [*seen, newest][int(self.draw() * (len(seen) + 1))]

    def _query(self, database: str, request: Any, message: bytes) -> bytes:
        found = self.find(database, request.collection_name)
        if not found.loaded:
            raise Refused(101, f"collection not loaded[collection={request.collection_name}]")
        params = {pair.key: pair.value for pair in request.query_params}
        hits = self._matching(found, request.expr, self._visible(found, request))
        hits = hits[: int(params.get("limit", "16384"))]
        reply = milvus_pb2.QueryResults(status=_OK, collection_name=request.collection_name)
        if "count(*)" in request.output_fields:
            one = reply.fields_data.add(field_name="count(*)", type=5)
            one.scalars.long_data.data.append(sum(map(len, found.rows.values())))
            return _bytes(reply)
        for number, (name, kind) in enumerate(zip(found.names, found.kinds, strict=True)):
            if name in request.output_fields or "*" in request.output_fields or number == found.key:
                values = [row[number] for _, row in hits]
                one = reply.fields_data.add(field_name=name, type=kind)
                if kind == _FLOAT_VECTOR:
                    one.vectors.dim = len(values[0]) if values else 2
                    one.vectors.float_vector.data.extend(x for vector in values for x in vector)
                else:
                    getattr(one.scalars, _IN_SCALARS[kind]).data.extend(values)
        return _bytes(reply)

    # What concerns more than one collection.

    def _create_alias(self, database: str, request: Any, message: bytes) -> bytes:
        where = (database, request.alias)
        if where in self.collections:
            raise Refused(65535, f"{request.alias} and collection name are the same")
        if (database, request.collection_name) not in self.collections:
            raise Refused(100, f"collection not found[collection={request.collection_name}]", 4)
        if self.aliases.get(where, request.collection_name) != request.collection_name:
            raise Refused(65535, f"{request.alias} is alias to another collection: {self.aliases[where]}")
        self.aliases[where] = request.collection_name
        return b""

    def _alter_alias(self, database: str, request: Any, message: bytes) -> bytes:
        where = (database, request.alias)
        if (database, request.collection_name) not in self.collections:
            raise Refused(100, f"collection not found[collection={request.collection_name}]", 4)
        if where not in self.aliases:
            raise Refused(1600, f"alias not found[database={database}][alias={request.alias}]")
        self.aliases[where] = request.collection_name
        return b""

    def _drop_alias(self, database: str, request: Any, message: bytes) -> bytes:
        self.aliases.pop((database, request.alias), None)
        return b""

    def _create_database(self, database: str, request: Any, message: bytes) -> bytes:
        if request.db_name in self.databases:
            raise Refused(65535, f"database already exist: {request.db_name}")
        self.databases.add(request.db_name)
        return b""

    def _drop_database(self, database: str, request: Any, message: bytes) -> bytes:
        if any(where[0] == request.db_name for where in self.collections):
            raise Refused(
                65535, f"database:{request.db_name} not empty, must drop all collections before drop database"
            )
        self.databases.discard(request.db_name)
        return b""

    def _databases(self, database: str, request: Any, message: bytes) -> bytes:
        return _bytes(milvus_pb2.ListDatabasesResponse(status=_OK, db_names=sorted(self.databases)))

    def _create_role(self, database: str, request: Any, message: bytes) -> bytes:
        if request.entity.name in self.roles:
            raise Refused(65535, f'role [name:"{request.entity.name}" ] already exists', 35)
        self.roles.add(request.entity.name)
        return b""

    def _drop_role(self, database: str, request: Any, message: bytes) -> bytes:
        if request.role_name not in self.roles:
            raise Refused(65535, f"not found the role, maybe the role isn't existed: {request.role_name}", 36)
        self.roles.discard(request.role_name)
        return b""

    def _version(self, database: str, request: Any, message: bytes) -> bytes:
        return _bytes(milvus_pb2.GetVersionResponse(status=_OK, version="v2.3.5"))


_OK: Final = common_pb2.Status()
#: A cluster's own staleness is part of the bound; here it has none.
_BOUNDED_TIMESTAMP: Final = 2
_STRONG: Final = common_pb2.ConsistencyLevel.Strong


def _newest(found: Collection) -> dict[Any, tuple[Any, ...]]:
    return {key: versions[0] for key, versions in found.rows.items() if versions}


def _bytes(reply: Any) -> bytes:
    written: bytes = reply.SerializeToString()
    return written


_HANDLERS: Final[dict[str, Callable[[Milvus, str, Any, bytes], bytes]]] = {
    "AlterAlias": Milvus._alter_alias,
    "CreateAlias": Milvus._create_alias,
    "CreateCollection": Milvus._create,
    "CreateDatabase": Milvus._create_database,
    "CreateIndex": Milvus._index,
    "CreateRole": Milvus._create_role,
    "Delete": Milvus._delete,
    "DescribeCollection": Milvus._describe,
    "DropAlias": Milvus._drop_alias,
    "DropCollection": Milvus._drop,
    "DropDatabase": Milvus._drop_database,
    "DropIndex": Milvus._drop_index,
    "DropRole": Milvus._drop_role,
    "GetLoadState": Milvus._load_state,
    "GetVersion": Milvus._version,
    "HasCollection": Milvus._has,
    "Insert": Milvus._insert,
    "ListDatabases": Milvus._databases,
    "LoadCollection": Milvus._load,
    "Query": Milvus._query,
    "ReleaseCollection": Milvus._release,
    "RenameCollection": Milvus._rename,
    "ShowCollections": Milvus._show,
    "Upsert": Milvus._upsert,
}
