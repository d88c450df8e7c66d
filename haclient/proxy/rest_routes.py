"""What Milvus' RESTful API means: each route stands for an RPC, and an answer's ``code`` is that RPC's code.

Decision made here: REST has no table of its own. A route takes what it does to the server from the RPC it stands for
(`haclient.milvus.methods`), and an error is judged by the table of codes that gRPC's are judged by
(`haclient.milvus.status`). A path that is not listed (a newer server's) is a write that is never repeated, unless
its verb is safe (RFC 9110 section 9.2.1).

How HTTP travels in the core's values: a call's message is the body, its method's ``path`` the target, and its
metadata starts with the pseudo-header ``:method``; a reply's message is the body, and its headers start with
``:status``. gRPC metadata never starts with a colon, so nothing else is needed to tell the two apart. There is no
timestamp to rewrite for a cluster: REST bodies name a ``consistencyLevel``, and no session.

Routes: milvus internal/distributed/proxy/httpserver, 2.3 (v1) to master (v2); answers recorded from 2.3.5, which has v1
only, on gRPC's port, over HTTP/1.1 (there is none over HTTP/2). Milvus Lite has neither.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

import orjson

from haclient.call import STATUS_NONE, Action, Kind, Method, Reply
from haclient.fleet.look import Dialect
from haclient.fleet.probe import MILVUS
from haclient.milvus import status
from haclient.milvus.methods import named
from haclient.milvus.status import CATCH_ALL, OK, Flavour, Status, Verdict

#: Pseudo-headers, as HTTP/2 has them.
VERB: Final = ":method"
STATUS: Final = ":status"

V2: Final = "/v2/vectordb/"
V1: Final = "/v1/vector/"
#: Words only: no dots, no escapes and no empty segments, which servers resolve in different ways.
_PATH: Final = re.compile(r"/(?:v2/vectordb|v1/vector)(?:/[A-Za-z0-9_-]+)+")

_V2: Final = {
    "collections": {
        "list": "ShowCollections",
        "has": "HasCollection",
        "describe": "DescribeCollection",
        "get_stats": "GetCollectionStatistics",
        "get_load_state": "GetLoadState",
        "get_compaction_state": "GetCompactionState",
        "create": "CreateCollection",
        "drop": "DropCollection",
        "rename": "RenameCollection",
        "truncate": "TruncateCollection",
        "load": "LoadCollection",
        "refresh_load": "LoadCollection",
        "release": "ReleaseCollection",
        "flush": "Flush",
        "compact": "ManualCompaction",
        "alter_properties": "AlterCollection",
        "drop_properties": "AlterCollection",
        "add_function": "AddCollectionFunction",
        "alter_function": "AlterCollectionFunction",
        "drop_function": "DropCollectionFunction",
        "add_function_field": "AlterCollectionSchema",
        "drop_function_field": "AlterCollectionSchema",
    },
    "collections/fields": {
        "add": "AlterCollectionSchema",
        "drop": "AlterCollectionSchema",
        "alter_properties": "AlterCollectionField",
    },
    "collections/struct_fields": {"add": "AddCollectionStructField"},
    "entities": {
        "search": "Search",
        "query": "Query",
        "get": "Query",
        "hybrid_search": "HybridSearch",
        "advanced_search": "HybridSearch",
        "insert": "Insert",
        "upsert": "Upsert",
        "delete": "Delete",
    },
    "partitions": {
        "list": "ShowPartitions",
        "has": "HasPartition",
        "get_stats": "GetPartitionStatistics",
        "create": "CreatePartition",
        "drop": "DropPartition",
        "load": "LoadPartitions",
        "release": "ReleasePartitions",
    },
    "indexes": {
        "list": "DescribeIndex",
        "describe": "DescribeIndex",
        "create": "CreateIndex",
        "drop": "DropIndex",
        "alter_properties": "AlterIndex",
        "drop_properties": "AlterIndex",
    },
    "aliases": {
        "list": "ListAliases",
        "describe": "DescribeAlias",
        "create": "CreateAlias",
        "drop": "DropAlias",
        "alter": "AlterAlias",
    },
    "databases": {
        "list": "ListDatabases",
        "describe": "DescribeDatabase",
        "create": "CreateDatabase",
        "drop": "DropDatabase",
        "alter": "AlterDatabase",
        "alter_properties": "AlterDatabase",
        "drop_properties": "AlterDatabase",
    },
    "users": {
        "list": "ListCredUsers",
        "describe": "SelectUser",
        "create": "CreateCredential",
        "update_password": "UpdateCredential",
        "drop": "DeleteCredential",
        "grant_role": "OperateUserRole",
        "revoke_role": "OperateUserRole",
    },
    "roles": {
        "list": "SelectRole",
        "describe": "SelectGrant",
        "create": "CreateRole",
        "alter": "AlterRole",
        "drop": "DropRole",
        "grant_privilege": "OperatePrivilege",
        "revoke_privilege": "OperatePrivilege",
        "grant_privilege_v2": "OperatePrivilegeV2",
        "revoke_privilege_v2": "OperatePrivilegeV2",
    },
    "privilege_groups": {
        "list": "ListPrivilegeGroups",
        "create": "CreatePrivilegeGroup",
        "drop": "DropPrivilegeGroup",
        "add_privileges_to_group": "OperatePrivilegeGroup",
        "remove_privileges_from_group": "OperatePrivilegeGroup",
    },
    "resource_groups": {
        "list": "ListResourceGroups",
        "describe": "DescribeResourceGroup",
        "create": "CreateResourceGroup",
        "drop": "DropResourceGroup",
        "alter": "UpdateResourceGroups",
        "transfer_replica": "TransferReplica",
    },
    "jobs/import": {
        "list": "ListImportTasks",
        "describe": "GetImportState",
        "get_progress": "GetImportState",
        "create": "Import",
        "commit": "Import",
        "abort": "Import",
    },
    "jobs/snapshot": {
        "list": "ListRestoreSnapshotJobs",
        "describe": "GetRestoreSnapshotState",
        "export": "ExportSnapshot",
        "restore_external": "RestoreExternalSnapshot",
    },
    "jobs/external_collection": {
        "list": "ListRefreshExternalCollectionJobs",
        "describe": "GetRefreshExternalCollectionProgress",
        "refresh": "RefreshExternalCollection",
    },
    "file_resources": {"list": "ListFileResources", "add": "AddFileResource", "remove": "RemoveFileResource"},
    "segments": {"describe": "GetPersistentSegmentInfo"},
    "quotacenter": {"describe": "GetMetrics"},
    "common": {"run_analyzer": "RunAnalyzer"},
}
_V1: Final = {
    ("GET", "collections"): "ShowCollections",
    ("GET", "collections/describe"): "DescribeCollection",
    ("POST", "collections/create"): "CreateCollection",
    ("POST", "collections/drop"): "DropCollection",
    ("POST", "search"): "Search",
    ("POST", "query"): "Query",
    ("POST", "get"): "Query",
    ("POST", "insert"): "Insert",
    ("POST", "upsert"): "Upsert",
    ("POST", "delete"): "Delete",
}
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))


def _method(rpc: str, name: str, path: str) -> Method:
    # The names differ from the RPCs', by which the core finds out what a message means in Protobuf.
    return replace(named(rpc), name=name, path=path, collection=0, status=STATUS_NONE)


def _table() -> dict[tuple[str, str], tuple[Method, str]]:
    table = {}
    for category, actions in _V2.items():
        for action, rpc in actions.items():
            name = f"{category}/{action}"
            table["POST", V2 + name] = _method(rpc, name, V2 + name), rpc
    for (verb, name), rpc in _V1.items():
        table[verb, V1 + name] = _method(rpc, f"vector/{name}", V1 + name), rpc
    drop = "POST", V1 + "collections/drop"
    table[drop] = replace(table[drop][0], idempotent=False), table[drop][1]  # the second time it is an error, unlike v2
    return table


#: By verb and path: the method, and the name of the RPC that it stands for.
ROUTES: Final = _table()


def is_rest(path: str) -> bool:
    """Say whether a path is one of Milvus' RESTful API, as far as its form goes."""
    return _PATH.fullmatch(path) is not None


def route(verb: str, path: str) -> tuple[Method, str]:
    """Look a route up.

    Args:
        verb: HTTP's method, for example ``POST``.
        path: Without the query.

    Returns:
        The method, and the name of the RPC that it stands for, "" if the route is not known.
    """
    found = ROUTES.get((verb, path))
    if found is not None:
        return found
    if verb in _SAFE:
        return Method("REST", path, Kind.READ, idempotent=True, status=STATUS_NONE), ""
    return Method("REST", path, Kind.WRITE, pinned=True, status=STATUS_NONE), ""


# Every success starts like this (v2; v1 says 200, which is also the code of "partition not found"), and need not be
# parsed: Go writes the keys of a JSON object in order.
_SUCCESS: Final = re.compile(rb'\s*\{\s*"code"\s*:\s*(?:0\s*[,}]|200\s*,\s*"data")')
_NOT_FOUND, _TIMEOUT, _TOO_MANY, _INTERNAL, _UNAVAILABLE = 404, 408, 429, 500, 503
#: The request is at fault, or not allowed, whatever the code beside it (often the catch-all).
_REFUSED: Final = frozenset((400, 401, 403))


def http_status(reply: Reply) -> int:
    """Return the HTTP status of a reply, 0 if it is one of gRPC's."""
    headers = reply.headers
    return int(headers[0][1]) if headers and headers[0][0] == STATUS else 0


def lacks_route(http: int, body: bytes) -> bool:
    """Say whether an answer means that the server has no such route: 404, and nothing in Milvus' own words."""
    return http == _NOT_FOUND and _read(body) is None


def classify(method: Method, reply: Reply, flavour: Flavour) -> Verdict:
    """Decide what a reply asks for; see `haclient.milvus.status.classify`, which judges all of gRPC's."""
    http = http_status(reply)
    if not http:
        return status.classify(method, reply, flavour)
    body = reply.message
    if http == 200 and _SUCCESS.match(body):
        return OK
    said = _read(body)
    if said is None:
        return _without_code(http, body)
    # Milvus Lite serves no REST, so the numbers are Milvus'. 503 (with proxy.http.standardErrorStatus) stands for what
    # gRPC's status calls retriable.
    code, reason = said
    refusal = Status(code, reason=reason, retriable=http == _UNAVAILABLE, input_error=http in _REFUSED)
    return status.judge(method.kind, refusal, Flavour.REAL) if code else OK


def _read(body: bytes) -> tuple[int, str] | None:
    """Return code and message of an answer in Milvus' words, else None."""
    try:
        answer: Any = orjson.loads(body)
    except ValueError:
        return None
    code = answer.get("code") if isinstance(answer, dict) else None
    return (code, str(answer.get("message") or "")) if isinstance(code, int) else None


def _without_code(http: int, body: bytes) -> Verdict:
    """Judge what Milvus itself does not say: a gateway's answer, or that to a preflight request."""
    if http < 300 and not body:
        return OK
    reason = f"HTTP {http}: {body[:200].decode('utf-8', 'replace')}"
    if http < 300:
        return Verdict(Action.FAILOVER, f"the reply is not one of Milvus' ({reason})", ambiguous=True, code=CATCH_ALL)
    if http == _TOO_MANY:
        return Verdict(Action.BACK_OFF, reason, rejected=True, code=http)
    if http == _TIMEOUT or http >= _INTERNAL:
        return Verdict(Action.FAILOVER, reason, ambiguous=http <= _INTERNAL, code=http)
    return Verdict(Action.FAIL_FAST, reason, code=http)


#: What servers speak that are asked over gRPC and over REST.
MILVUS_AND_REST: Final = Dialect(classify, MILVUS.look)
