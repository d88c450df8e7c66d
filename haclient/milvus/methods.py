"""The table of Milvus' RPCs: what each does to the server, and where collection and status sit.

Decision made here: `Method.idempotent` is about the state *and* the answer. A method is idempotent if a real
Milvus server, asked twice, ends in the same state and says OK both times; so a retry after a lost answer never
turns a success into an error. Hence:

* Drop, Release, Load, CreateCollection, CreatePartition, CreateAlias and CreateIndex are (measured on 2.3.5: OK
  twice for the same arguments, an error only for different ones), and so is every Alter that declares the wanted
  state. Milvus Lite answers some of these with an error the second time; the state is right all the same.
* CreateDatabase, CreateRole and the other access methods, AddCollectionField, RenameCollection, snapshots are
  not: the second time is an error. UpdateCredential checks the old password, so it is not either.
* TruncateCollection is not: a late second one deletes rows written in between.
* Insert, Upsert, Delete, Import are not by the method alone; `haclient.milvus.requests` looks at the request.
* Flush and FlushAll are (costly, harmless), but their answers name segments of one cluster: pinned.

A method that is not in the table (a newer server's, or another service's) is a write that is not repeated, and its
reply is not looked into: field 1 of an unknown response may be anything, and misreading it would count a healthy
endpoint as failing. Nothing is lost by that, as such a call is not retried once it was sent.

Field numbers: milvus-proto of pymilvus 3.0.2, checked against its descriptors by the tests. The five
``*RLSPrincipal*`` and UpdateRowPolicy methods are newer than that; they are listed without a collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from haclient.call import STATUS_IS, STATUS_NONE, Kind, Method

SERVICE: Final = "milvus.proto.milvus.MilvusService"
TELEMETRY: Final = "milvus.proto.milvus.ClientTelemetryService"
HEALTH: Final = "grpc.health.v1.Health"
#: Beside the answer to ShowCollections of a haclient proxy with several clusters: the ids in it are those of any one of
#: them, and so prove nothing.
SEVERAL_CLUSTERS: Final = ("haclient-clusters", "several")


class _Class(NamedTuple):
    kind: Kind
    idempotent: bool = False
    hedgeable: bool = False
    pinned: bool = False
    streaming: bool = False


READ: Final = _Class(Kind.READ, idempotent=True, hedgeable=True)
READ_PINNED: Final = _Class(Kind.READ, idempotent=True, pinned=True)
WRITE: Final = _Class(Kind.WRITE)
DDL_AGAIN: Final = _Class(Kind.DDL, idempotent=True)
DDL_ONCE: Final = _Class(Kind.DDL)
ACCESS: Final = _Class(Kind.ACCESS)
ADMIN: Final = _Class(Kind.ADMIN, pinned=True)
ADMIN_AGAIN: Final = _Class(Kind.ADMIN, idempotent=True, pinned=True)
PROBE: Final = _Class(Kind.PROBE, idempotent=True)
SESSION: Final = _Class(Kind.SESSION, idempotent=True)
SESSION_PINNED: Final = _Class(Kind.SESSION, idempotent=True, pinned=True)
STREAM: Final = _Class(Kind.ADMIN, pinned=True, streaming=True)
WATCH: Final = _Class(Kind.PROBE, idempotent=True, streaming=True)

IS: Final = STATUS_IS
NONE: Final = STATUS_NONE

# RPC, class, field number of the collection in the request (0: none), field number of the status in the response
_MILVUS: Final[tuple[tuple[str, _Class, int, int], ...]] = (
    ("CreateCollection", DDL_AGAIN, 3, IS),
    ("DropCollection", DDL_AGAIN, 3, IS),
    ("HasCollection", READ, 3, 1),
    ("LoadCollection", DDL_AGAIN, 3, IS),
    ("ReleaseCollection", DDL_AGAIN, 3, IS),
    ("DescribeCollection", READ, 3, 1),
    ("BatchDescribeCollection", READ, 2, 1),
    ("GetCollectionStatistics", READ, 3, 1),
    ("ShowCollections", READ, 0, 1),
    ("AlterCollection", DDL_AGAIN, 3, IS),
    ("AlterCollectionField", DDL_AGAIN, 3, IS),
    ("AddCollectionFunction", DDL_ONCE, 3, IS),
    ("AlterCollectionFunction", DDL_AGAIN, 3, IS),
    ("DropCollectionFunction", DDL_ONCE, 3, IS),
    ("TruncateCollection", DDL_ONCE, 3, 1),
    ("CreatePartition", DDL_AGAIN, 3, IS),
    ("DropPartition", DDL_AGAIN, 3, IS),
    ("HasPartition", READ, 3, 1),
    ("LoadPartitions", DDL_AGAIN, 3, IS),
    ("Prewarm", ADMIN, 3, 1),
    ("DescribePrewarmTask", READ_PINNED, 0, 1),
    ("ReleasePartitions", DDL_AGAIN, 3, IS),
    ("GetPartitionStatistics", READ, 3, 1),
    ("ShowPartitions", READ, 3, 1),
    ("CreateNamespace", DDL_ONCE, 3, 1),
    ("DescribeNamespace", READ, 3, 1),
    ("ListNamespaces", READ, 3, 1),
    ("DropNamespace", DDL_ONCE, 3, 1),
    ("HasNamespace", READ, 3, 1),
    ("GetNamespaceStats", READ, 3, 1),
    ("GetLoadingProgress", READ, 2, 1),
    ("GetLoadState", READ, 2, 1),
    ("CreateAlias", DDL_AGAIN, 3, IS),
    ("DropAlias", DDL_AGAIN, 0, IS),
    ("AlterAlias", DDL_AGAIN, 3, IS),
    ("DescribeAlias", READ, 0, 1),
    ("ListAliases", READ, 3, 1),
    ("CreateIndex", DDL_AGAIN, 3, IS),
    ("AlterIndex", DDL_AGAIN, 3, IS),
    ("DescribeIndex", READ, 3, 1),
    ("GetIndexStatistics", READ, 3, 1),
    ("GetIndexState", READ, 3, 1),
    ("GetIndexBuildProgress", READ, 3, 1),
    ("DropIndex", DDL_AGAIN, 3, IS),
    ("Insert", WRITE, 3, 1),
    ("Delete", WRITE, 3, 1),
    ("Upsert", WRITE, 3, 1),
    ("Search", READ, 3, 1),
    ("HybridSearch", READ, 3, 1),
    ("Flush", ADMIN_AGAIN, 3, 1),
    ("Query", READ, 3, 1),
    ("CalcDistance", READ, 0, 1),
    ("FlushAll", ADMIN_AGAIN, 0, 1),
    ("AddCollectionField", DDL_ONCE, 3, IS),
    ("AddCollectionStructField", DDL_ONCE, 3, IS),
    ("GetFlushState", READ_PINNED, 4, 1),
    ("GetFlushAllState", READ_PINNED, 0, 1),
    ("GetPersistentSegmentInfo", READ_PINNED, 3, 1),
    ("GetQuerySegmentInfo", READ_PINNED, 3, 1),
    ("GetReplicas", READ, 4, 1),
    ("Dummy", SESSION, 0, NONE),
    ("RegisterLink", SESSION, 0, 2),
    ("GetMetrics", READ_PINNED, 0, 1),
    ("GetComponentStates", PROBE, 0, 3),
    ("LoadBalance", ADMIN, 5, IS),
    ("GetCompactionState", READ_PINNED, 0, 1),
    ("ManualCompaction", ADMIN, 4, 1),
    ("GetCompactionStateWithPlans", READ_PINNED, 3, 1),
    ("Import", WRITE, 1, 1),
    ("GetImportState", READ_PINNED, 0, 1),
    ("ListImportTasks", READ, 1, 1),
    ("CreateCredential", ACCESS, 0, IS),
    ("UpdateCredential", ACCESS, 0, IS),
    ("DeleteCredential", ACCESS, 0, IS),
    ("ListCredUsers", READ, 0, 1),
    ("CreateRole", ACCESS, 0, IS),
    ("AlterRole", ACCESS, 0, IS),
    ("DropRole", ACCESS, 0, IS),
    ("OperateUserRole", ACCESS, 0, IS),
    ("SelectRole", READ, 0, 1),
    ("SelectUser", READ, 0, 1),
    ("OperatePrivilege", ACCESS, 0, IS),
    ("OperatePrivilegeV2", ACCESS, 0, IS),
    ("SelectGrant", READ, 0, 1),
    ("GetVersion", PROBE, 0, 1),
    ("CheckHealth", PROBE, 0, 1),
    ("CreateResourceGroup", ACCESS, 0, IS),
    ("DropResourceGroup", ACCESS, 0, IS),
    ("UpdateResourceGroups", DDL_AGAIN, 0, IS),
    ("TransferNode", ADMIN, 0, IS),
    ("TransferReplica", ADMIN, 4, IS),
    ("ListResourceGroups", READ, 0, 1),
    ("DescribeResourceGroup", READ, 0, 1),
    ("RenameCollection", DDL_ONCE, 3, IS),
    ("ListIndexedSegment", READ_PINNED, 2, 1),
    ("DescribeSegmentIndexData", READ_PINNED, 2, 1),
    ("Connect", SESSION, 0, 1),
    ("AllocTimestamp", SESSION_PINNED, 0, 1),
    ("CreateDatabase", DDL_ONCE, 0, IS),
    ("DropDatabase", DDL_AGAIN, 0, IS),
    ("ListDatabases", READ, 0, 1),
    ("AlterDatabase", DDL_AGAIN, 0, IS),
    ("DescribeDatabase", READ, 0, 1),
    ("ReplicateMessage", ADMIN, 0, 1),
    ("BackupRBAC", READ, 0, 1),
    ("RestoreRBAC", ACCESS, 0, IS),
    ("CreatePrivilegeGroup", ACCESS, 0, IS),
    ("DropPrivilegeGroup", ACCESS, 0, IS),
    ("ListPrivilegeGroups", READ, 0, 1),
    ("OperatePrivilegeGroup", ACCESS, 0, IS),
    ("RunAnalyzer", READ, 7, 1),
    ("AddFileResource", ACCESS, 0, IS),
    ("RemoveFileResource", ACCESS, 0, IS),
    ("ListFileResources", READ, 0, 1),
    ("AddUserTags", ACCESS, 0, IS),
    ("DeleteUserTags", ACCESS, 0, IS),
    ("GetUserTags", READ, 0, 1),
    ("ListUsersWithTag", READ, 0, 1),
    ("CreateRowPolicy", ACCESS, 3, IS),
    ("DropRowPolicy", ACCESS, 3, IS),
    ("ListRowPolicies", READ, 3, 1),
    ("UpdateRowPolicy", ACCESS, 0, IS),
    ("SetRLSPrincipalTags", ACCESS, 0, IS),
    ("GetRLSPrincipalTags", READ, 0, 1),
    ("ListRLSPrincipals", READ, 0, 1),
    ("DeleteRLSPrincipalTags", ACCESS, 0, IS),
    ("UpdateReplicateConfiguration", ADMIN, 0, IS),
    ("GetReplicateConfiguration", READ_PINNED, 0, 1),
    ("GetReplicateInfo", READ_PINNED, 0, NONE),
    ("CreateReplicateStream", STREAM, 0, NONE),
    ("DumpMessages", STREAM, 0, 1),
    ("ComputePhraseMatchSlop", READ, 0, 1),
    ("CreateSnapshot", ADMIN, 5, IS),
    ("DropSnapshot", ADMIN, 4, IS),
    ("ListSnapshots", READ, 3, 1),
    ("DescribeSnapshot", READ, 4, 1),
    ("RestoreSnapshot", ADMIN, 4, 1),
    ("RestoreExternalSnapshot", ADMIN, 3, 1),
    ("ExportSnapshot", ADMIN, 4, 1),
    ("GetExportSnapshotState", READ_PINNED, 0, 1),
    ("GetRestoreSnapshotState", READ_PINNED, 0, 1),
    ("ListRestoreSnapshotJobs", READ_PINNED, 3, 1),
    ("PinSnapshotData", ADMIN, 4, 1),
    ("UnpinSnapshotData", ADMIN, 0, IS),
    ("AlterCollectionSchema", DDL_ONCE, 3, 1),
    ("BatchUpdateManifest", DDL_ONCE, 3, IS),
    ("RefreshExternalCollection", ADMIN, 3, 1),
    ("GetRefreshExternalCollectionProgress", READ_PINNED, 0, 1),
    ("ListRefreshExternalCollectionJobs", READ_PINNED, 3, 1),
)

_OTHERS: Final[tuple[tuple[str, str, _Class, int], ...]] = (
    (TELEMETRY, "ClientHeartbeat", SESSION_PINNED, 1),
    (TELEMETRY, "GetClientTelemetry", READ_PINNED, 1),
    (TELEMETRY, "PushClientCommand", ADMIN, 1),
    (TELEMETRY, "DeleteClientCommand", ADMIN, 1),
    (HEALTH, "Check", PROBE, NONE),
    (HEALTH, "Watch", WATCH, NONE),
)


def _make(service: str, name: str, what: _Class, collection: int, status: int) -> Method:
    return Method(
        name=name,
        path=f"/{service}/{name}",
        kind=what.kind,
        idempotent=what.idempotent,
        hedgeable=what.hedgeable,
        pinned=what.pinned,
        collection=collection,
        status=status,
        streaming=what.streaming,
    )


def _table() -> dict[str, Method]:
    made = [_make(SERVICE, *row) for row in _MILVUS]
    made += [_make(service, name, what, 0, status) for service, name, what, status in _OTHERS]
    return {one.path: one for one in made}


METHODS: Final[Mapping[str, Method]] = MappingProxyType(_table())
"""Every known method by its ``:path``."""

_get: Final = METHODS.get


def method(path: str) -> Method:
    """Look up a method; one that is not known is a write that is never repeated.

    Args:
        path: The HTTP/2 ``:path``, for example ``/milvus.proto.milvus.MilvusService/Search``.
    """
    found = _get(path)
    if found is not None:
        return found
    return Method(name=path.rpartition("/")[2], path=path, kind=Kind.WRITE, status=NONE)


def named(name: str) -> Method:
    """Look up a method of MilvusService by its name alone, for example ``Search``.

    Raises:
        KeyError: There is no such method.
    """
    return METHODS[f"/{SERVICE}/{name}"]
