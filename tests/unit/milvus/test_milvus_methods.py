"""The table of methods against pymilvus' own service descriptors."""

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.call import STATUS_IS, STATUS_NONE, Kind
from haclient.milvus.methods import HEALTH, METHODS, SERVICE, TELEMETRY, method, named
from haclient.milvus.requests import DATABASE_FIELD, READS

SERVICES = milvus_pb2.DESCRIPTOR.services_by_name
RPCS = {
    f"/{s.full_name}/{rpc.name}": rpc
    for s in (SERVICES["MilvusService"], *filter(None, [SERVICES.get("ClientTelemetryService")]))
    for rpc in s.methods
}

# In the table, and newer than the stubs of pymilvus 3.0.2; or of gRPC's own service.
NEWER = {
    f"/{SERVICE}/{name}"
    for name in (
        "UpdateRowPolicy",
        "SetRLSPrincipalTags",
        "GetRLSPrincipalTags",
        "ListRLSPrincipals",
        "DeleteRLSPrincipalTags",
    )
} | {f"/{HEALTH}/Check", f"/{HEALTH}/Watch"}

# Methods whose collection is not called collection_name, or names no collection that a call is about.
COLLECTION = {
    "RenameCollection": "oldName",
    "Flush": "collection_names",
    "RestoreExternalSnapshot": "target_collection_name",
    "ShowCollections": None,  # a filter
    "OperatePrivilegeV2": None,  # an object of access, may be *
}


def test_every_rpc_of_the_stubs_is_in_the_table_and_nothing_else():
    assert set(METHODS) - set(RPCS) == NEWER
    assert set(RPCS) <= set(METHODS)
    assert len([path for path in METHODS if path.startswith(f"/{SERVICE}/")]) == 149


@pytest.mark.parametrize("path", sorted(RPCS))
def test_field_numbers_are_those_of_the_descriptors(path):
    rpc, row = RPCS[path], METHODS[path]
    request = {field.name: field.number for field in rpc.input_type.fields}
    name = COLLECTION.get(rpc.name, "collection_name" if "collection_name" in request else "collectionName")
    assert row.collection == request.get(name, 0)
    database = 2 if row.collection == 3 else DATABASE_FIELD.get(rpc.name, 0)
    assert database == request.get("db_name", request.get("dbName", 0))
    if rpc.output_type.full_name == "milvus.proto.common.Status":
        expected = STATUS_IS
    else:
        numbers = [
            field.number
            for field in rpc.output_type.fields
            if field.message_type is not None and field.message_type.full_name == "milvus.proto.common.Status"
        ]
        expected = numbers[0] if numbers else STATUS_NONE
    assert row.status == expected
    assert row.name == rpc.name
    assert row.streaming == (rpc.client_streaming or rpc.server_streaming)


@pytest.mark.parametrize("name", sorted(READS))
def test_consistency_fields_are_those_of_the_descriptors(name):
    request = {field.name: field.number for field in RPCS[f"/{SERVICE}/{name}"].input_type.fields}
    params = {"Search": "search_params", "Query": "query_params", "HybridSearch": "rank_params"}[name]
    assert READS[name] == (
        request["guarantee_timestamp"],
        request["consistency_level"],
        request["use_default_consistency"],
        request[params],
    )


@pytest.mark.parametrize("path", sorted(METHODS))
def test_flags_agree_with_the_kind(path):
    row = METHODS[path]
    if row.hedgeable:
        assert row.kind is Kind.READ
        assert row.idempotent
        assert not row.pinned
        assert not row.streaming
    if row.kind is Kind.WRITE:
        assert not row.idempotent, "the request decides"
    if row.kind in (Kind.READ, Kind.PROBE, Kind.SESSION):
        assert row.idempotent
    assert path.endswith(f"/{row.name}")


@pytest.mark.parametrize(
    ("name", "kind", "idempotent", "hedgeable", "pinned"),
    [
        ("Search", Kind.READ, True, True, False),
        ("DescribeCollection", Kind.READ, True, True, False),
        ("GetFlushState", Kind.READ, True, False, True),
        ("GetImportState", Kind.READ, True, False, True),
        ("Insert", Kind.WRITE, False, False, False),
        ("CreateCollection", Kind.DDL, True, False, False),
        ("DropPartition", Kind.DDL, True, False, False),
        ("CreateDatabase", Kind.DDL, False, False, False),
        ("TruncateCollection", Kind.DDL, False, False, False),
        ("RenameCollection", Kind.DDL, False, False, False),
        ("AddCollectionField", Kind.DDL, False, False, False),
        ("AlterCollection", Kind.DDL, True, False, False),
        ("CreateRole", Kind.ACCESS, False, False, False),
        ("UpdateCredential", Kind.ACCESS, False, False, False),
        ("Flush", Kind.ADMIN, True, False, True),
        ("ManualCompaction", Kind.ADMIN, False, False, True),
        ("UpdateReplicateConfiguration", Kind.ADMIN, False, False, True),
        ("Connect", Kind.SESSION, True, False, False),
        ("AllocTimestamp", Kind.SESSION, True, False, True),
        ("GetVersion", Kind.PROBE, True, False, False),
    ],
)
def test_what_a_method_does_decides_its_flags(name, kind, idempotent, hedgeable, pinned):
    row = named(name)
    assert (row.kind, row.idempotent, row.hedgeable, row.pinned) == (kind, idempotent, hedgeable, pinned)


@pytest.mark.parametrize("path", [f"/{SERVICE}/SearchV9", "/other.Service/Get", "nonsense", ""])
def test_an_unknown_method_is_a_write_that_is_sent_once_and_not_looked_into(path):
    row = method(path)
    assert (row.kind, row.idempotent, row.hedgeable, row.status) == (Kind.WRITE, False, False, STATUS_NONE)
    assert row.path == path


def test_known_methods_are_found_by_path():
    assert method(f"/{SERVICE}/Search") is named("Search")
    assert method(f"/{HEALTH}/Check").kind is Kind.PROBE
    assert method(f"/{TELEMETRY}/ClientHeartbeat").pinned
    with pytest.raises(KeyError):
        named("Nope")
    with pytest.raises(TypeError):
        METHODS["x"] = named("Search")  # type: ignore[index]
