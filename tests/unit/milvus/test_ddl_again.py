"""Calls that are no rows: where they go, in what form, and refusals that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.call import Kind
from haclient.milvus import ddl
from haclient.milvus.methods import METHODS, SERVICE, method, named
from haclient.milvus.shape import MARK, InvalidWrite, read_shape
from haclient.milvus.status import Flavour
from tests.servers.write_cases import D, creation, description, schema, schema_field

REAL, LITE = Flavour.REAL, Flavour.LITE
KEY = schema_field("id", D.Int64, is_primary_key=True)
AUTO = schema_field("id", D.Int64, is_primary_key=True, autoID=True)
VECTOR = schema_field("v", D.FloatVector, {"dim": 2})


class TestWhere:
    def test_every_change_is_decided(self) -> None:
        """Whatever changes something is mirrored, done at home, or refused with a reason."""
        changes = [one for one in METHODS.values() if one.kind in (Kind.WRITE, Kind.DDL, Kind.ACCESS, Kind.ADMIN)]
        assert len(changes) > 70
        for one in changes:
            where, why = ddl.mirrored(one)
            assert bool(why) == (where != "log"), one.name

    @pytest.mark.parametrize(
        ("where", "names"),
        [
            (
                "log",
                "Insert Delete CreateCollection Flush FlushAll CreateRole AlterDatabase LoadPartitions RestoreRBAC",
            ),
            ("home", "ManualCompaction LoadBalance CreateSnapshot DropSnapshot ExportSnapshot Prewarm"),
            ("refused", "Import TransferNode TransferReplica CreateNamespace RestoreSnapshot ReplicateMessage"),
        ],
    )
    def test_where(self, where: str, names: str) -> None:
        assert {ddl.mirrored(named(name))[0] for name in names.split()} == {where}

    def test_unknown(self) -> None:
        """A call that is not known is refused."""
        assert ddl.mirrored(method(f"/{SERVICE}/DropEverything"))[0] == "refused"


class TestStream:
    @pytest.mark.parametrize(
        ("name", "request_", "stream"),
        [
            ("Insert", milvus_pb2.InsertRequest(collection_name="c"), ("of call", "c")),
            ("DropCollection", milvus_pb2.DropCollectionRequest(db_name="d", collection_name="c"), ("d", "c")),
            ("CreateIndex", milvus_pb2.CreateIndexRequest(db_name="default", collection_name="c"), ("", "c")),
            ("Flush", milvus_pb2.FlushRequest(collection_names=["c"]), ("of call", "c")),
            ("Flush", milvus_pb2.FlushRequest(collection_names=["c", "e"]), ("", "")),
            ("FlushAll", milvus_pb2.FlushAllRequest(), ("", "")),
            ("CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name="d"), ("", "")),
            ("CreateAlias", milvus_pb2.CreateAliasRequest(collection_name="c", alias="a"), ("", "")),
            ("RenameCollection", milvus_pb2.RenameCollectionRequest(oldName="c", newName="e"), ("", "")),
            ("CreateRowPolicy", milvus_pb2.CreateRowPolicyRequest(collection_name="c"), ("", "")),
            ("CreateCredential", milvus_pb2.CreateCredentialRequest(username="u"), ("", "")),
            ("UpdateResourceGroups", milvus_pb2.UpdateResourceGroupsRequest(), ("", "")),
        ],
    )
    def test_stream(self, name: str, request_: Any, stream: tuple[str, str]) -> None:
        """One collection is its own stream, in the request's database or else the call's; all else is the barrier."""
        assert ddl.scope(named(name), request_.SerializeToString(), "of call") == stream

    def test_default_database(self) -> None:
        """It has one name."""
        message = milvus_pb2.InsertRequest(collection_name="c").SerializeToString()
        assert ddl.scope(named("Insert"), message, "default") == ddl.scope(named("Insert"), message, "") == ("", "c")

    def test_broken(self) -> None:
        with pytest.raises(InvalidWrite, match="not a DropCollection: truncated"):
            ddl.scope(named("DropCollection"), b"\x1a\x7f", "")


class TestForm:
    def test_nothing_of_one_cluster(self) -> None:
        """Base and collection id go, the database is written into the body."""
        request = milvus_pb2.AddCollectionFieldRequest(
            base=common_pb2.MsgBase(msgID=3), collection_name="c", collectionID=77, schema=b"x"
        )
        normal = ddl.normalise(named("AddCollectionField"), request.SerializeToString(), "db")
        wanted = milvus_pb2.AddCollectionFieldRequest(db_name="db", collection_name="c", schema=b"x")
        assert milvus_pb2.AddCollectionFieldRequest.FromString(normal) == wanted

    def test_the_body_counts_more(self) -> None:
        request = milvus_pb2.DropCollectionRequest(db_name="mine", collection_name="c")
        normal = ddl.normalise(named("DropCollection"), request.SerializeToString(), "other")
        assert normal == request.SerializeToString()

    def test_a_database_is_not_in_one(self) -> None:
        """What names a database keeps its name."""
        request = milvus_pb2.CreateDatabaseRequest(db_name="new")
        assert (
            ddl.normalise(named("CreateDatabase"), request.SerializeToString(), "other") == request.SerializeToString()
        )

    def test_passwords_stay(self) -> None:
        request = milvus_pb2.CreateCredentialRequest(base=common_pb2.MsgBase(msgID=3), username="u", password="p")
        normal = milvus_pb2.CreateCredentialRequest.FromString(
            ddl.normalise(named("CreateCredential"), request.SerializeToString(), "")
        )
        assert (normal.username, normal.password, normal.HasField("base")) == ("u", "p", False)

    def test_the_mark_cannot_be_taken_off(self) -> None:
        """Nobody sees it, so nobody means it."""
        pairs = [common_pb2.KeyValuePair(key=key, value="false") for key in (MARK, "mmap.enabled")]
        request = milvus_pb2.AlterCollectionRequest(collection_name="c", properties=pairs, delete_keys=["x", MARK])
        normal = milvus_pb2.AlterCollectionRequest.FromString(
            ddl.normalise(named("AlterCollection"), request.SerializeToString(), "")
        )
        assert [pair.key for pair in normal.properties] == ["mmap.enabled"]
        assert list(normal.delete_keys) == ["x"]

    def test_broken(self) -> None:
        with pytest.raises(InvalidWrite, match="not a DropCollectionRequest"):
            ddl.normalise(named("DropCollection"), b"\xff", "")

    def test_newer_than_the_protobuf_classes(self) -> None:
        """A method without a class goes as it is."""
        assert ddl.normalise(named("UpdateRowPolicy"), b"\xff", "db") == b"\xff"


# Recorded from Milvus 2.3.5 and Milvus Lite 3.2.2; see tests/live/test_mutations_live.py.
REPEATED = [
    (REAL, "CreateDatabase", 65535, "database already exist: d1"),
    (REAL, "CreateCredential", 65535, "user already exists: u1"),
    (REAL, "CreateRole", 65535, 'role [name:"r1"] already exists'),
    (REAL, "DropRole", 65535, "not found the role, maybe the role isn't existed or internal system error"),
    (REAL, "CreateResourceGroup", 65535, "resource group already exist"),
    (REAL, "RenameCollection", 65535, "duplicated new collection name default:c3 with other collection name or alias"),
    (LITE, "CreateCollection", 1, "collection 'c1' already exists"),
    (LITE, "CreatePartition", 1, "p"),
    (LITE, "CreateAlias", 1, "alias 'al' already exists"),
    (LITE, "CreateIndex", 35, "index already exists for field 'v'; call drop_index first"),
    (LITE, "CreateDatabase", 6, "database 'd1' already exists"),
    (LITE, "DropPartition", 200, "p"),
    (LITE, "DropIndex", 700, "no index to drop"),
    (LITE, "DropDatabase", 6, "database 'd1' does not exist"),
    (LITE, "RenameCollection", 100, "collection 'c1' does not exist"),
]
MEANT = [
    (REAL, "CreateCollection", 65535, "create duplicate collection with different parameters, collection: c1"),
    (
        REAL,
        "CreateAlias",
        1602,
        "al is alias to another collection: c1: alias already exist[database=default][alias=al]",
    ),
    (REAL, "CreateIndex", 65535, "CreateIndex failed: at most one distinct index is allowed per field"),
    (REAL, "CreatePartition", 100, "collection not found[database=default][collection=gone]"),
    (REAL, "DropPartition", 65535, "partition cannot be dropped, partition is loaded, please release it first"),
    (REAL, "DropIndex", 65535, "index cannot be dropped, collection is loaded, please release it first"),
    (REAL, "DropRole", 65535, "fail to drop the role that it has privileges. Use REVOKE API to revoke privileges"),
    (REAL, "OperatePrivilege", 65535, "not found the role, maybe the role isn't existed or internal system error"),
    (REAL, "OperateUserRole", 65535, "not found the user, maybe the user isn't existed or internal system error"),
    (REAL, "UpdateCredential", 1400, "old password not correct for u1: not authenticated"),
    (REAL, "ReleaseCollection", 100, "collection not found[database=default][collection=gone]"),
    (LITE, "DropIndex", 6, "index cannot be dropped on loaded collection; call release() first"),
    (LITE, "AlterAlias", 100, "alias 'nope' does not exist"),
    (REAL, "CreatePartition", 1, "p"),
]


@pytest.mark.parametrize(("flavour", "name", "code", "reason"), REPEATED)
def test_done_already(flavour: Flavour, name: str, code: int, reason: str) -> None:
    """What servers say to the second of two same calls means that it is done."""
    assert ddl.already(name, code, reason, flavour)


@pytest.mark.parametrize(("flavour", "name", "code", "reason"), MEANT)
def test_meant(flavour: Flavour, name: str, code: int, reason: str) -> None:
    """A refusal for another reason is one."""
    assert not ddl.already(name, code, reason, flavour)


class TestKeysMadeByHaclient:
    @pytest.mark.parametrize(
        "made",
        [
            schema("c", AUTO, VECTOR),
            schema("c", AUTO, VECTOR, autoID=True),
            schema("c", KEY, VECTOR, autoID=True),
            schema("c", schema_field("id", D.VarChar, {"max_length": 20}, is_primary_key=True, autoID=True), VECTOR),
        ],
    )
    def test_there_and_back(self, made: Any) -> None:
        """The server is told to make none, and the user is told that he gives none."""
        sent = milvus_pb2.CreateCollectionRequest.FromString(ddl.create(creation(made)))
        kept = schema_pb2.CollectionSchema.FromString(sent.schema)
        assert not kept.autoID
        assert not any(field.autoID for field in kept.fields)
        told = description(kept, properties=sent.properties)
        shape = read_shape(told)
        assert (shape.auto_id, shape.native_auto_id) == (True, False)
        seen = milvus_pb2.DescribeCollectionResponse.FromString(ddl.described(told))
        assert [field.autoID for field in seen.schema.fields] == [True, False]
        assert seen.schema.autoID
        assert not seen.properties

    def test_created_twice(self) -> None:
        """What went through once goes through again unchanged."""
        once = ddl.create(creation(schema("c", AUTO, VECTOR)))
        assert ddl.create(once) is once

    def test_left_alone(self) -> None:
        """A collection with the user's keys is created and described as it is, byte for byte."""
        message, told = creation(schema("c", KEY, VECTOR)), description(schema("c", KEY, VECTOR))
        assert ddl.create(message) is message
        assert ddl.described(told) is told
        talks_of_it = description(schema("c", KEY, VECTOR, description=MARK))
        assert ddl.described(talks_of_it) is talks_of_it

    @pytest.mark.parametrize(
        ("made", "reason"),
        [
            (schema("c", AUTO, VECTOR, external_source="s3://x"), "external"),
            (schema("c", AUTO, VECTOR, enable_namespace=True), "Namespaces"),
            (
                schema("c", schema_field("id", D.VarChar, {"max_length": 18}, is_primary_key=True, autoID=True)),
                "too short for keys",
            ),
        ],
    )
    def test_refused(self, made: Any, reason: str) -> None:
        """What cannot be mirrored is refused at creation."""
        with pytest.raises(InvalidWrite, match=reason):
            ddl.create(creation(made))

    @pytest.mark.parametrize(
        "message", [b"\xff", milvus_pb2.CreateCollectionRequest(schema=b"\xff").SerializeToString()]
    )
    def test_broken(self, message: bytes) -> None:
        with pytest.raises(InvalidWrite, match="not a C"):
            ddl.create(message)


TEXT = {"max_length": 10, "enable_analyzer": "true", "analyzer_params": '{"type": "english"}'}
BM25 = schema_pb2.FunctionSchema(name="f", type=1, input_field_names=["t"], output_field_names=["s"])
RICH = (
    KEY,
    schema_field("t", D.VarChar, TEXT),
    schema_field("n", D.Int64, nullable=True, is_partition_key=True),
    schema_field("d", D.Int64, default_value=schema_pb2.ValueField(long_data=5)),
    schema_field("a", D.Array, {"max_capacity": 3}, element_type=D.Int8),
    schema_field("s", D.SparseFloatVector),
    VECTOR,
)


def rich() -> Any:
    return schema("c", *RICH, functions=[BM25], enable_dynamic_field=True)


def _alter(name: str, change: Callable[[Any], None]) -> Any:
    made = rich()
    change(next(field for field in made.fields if field.name == name))
    return made


LOSSES = [
    (_alter("n", lambda one: one.ClearField("nullable")), "null in field n is missing instead of allowed"),
    (_alter("n", lambda one: one.ClearField("is_partition_key")), "the partition key field n is missing"),
    (_alter("d", lambda one: one.ClearField("default_value")), "the default of field d is missing instead of 5"),
    (
        _alter("a", lambda one: setattr(one, "element_type", D.Int64)),
        "the elements of field a is Int64 instead of Int8",
    ),
    (_alter("s", lambda one: setattr(one, "data_type", 0)), "field s is None instead of SparseFloatVector"),
    (_alter("t", lambda one: one.type_params.pop()), "analyzer_params of field t is missing"),
    (
        _alter("id", lambda one: setattr(one, "autoID", True)),
        "the key of field id is made by the server instead of given",
    ),
    (schema("c", *RICH, enable_dynamic_field=True), "function f is missing instead of BM25 of t in s"),
    (schema("c", *RICH, functions=[BM25]), "the dynamic field is off instead of on"),
    (schema("c", *RICH[1:], functions=[BM25], enable_dynamic_field=True), "field id is missing instead of Int64"),
]


class TestDifferences:
    @pytest.mark.parametrize(("kept", "loss"), LOSSES)
    def test_losses(self, kept: Any, loss: str) -> None:
        """What a server has dropped or changed is named."""
        found = ddl.differences(creation(rich()), description(kept))
        assert any(one.startswith(loss) for one in found), found
        assert any(
            loss.split(" is ")[0] in one for one in ddl.existing_differences(description(rich()), description(kept))
        )

    def test_the_mark(self) -> None:
        """Losing it would make every server's keys the user's."""
        wanted = ddl.create(creation(schema("c", AUTO, VECTOR)))
        assert ddl.differences(wanted, description(schema("c", KEY, VECTOR))) == [
            f"property {MARK} is missing instead of true"
        ]

    def test_what_a_server_adds_or_says_in_its_own_way(self) -> None:
        """Ids, defaults, properties, JSON with other blanks, True for true: none of it is a difference."""
        told = rich()
        for at, field in enumerate(told.fields):
            field.fieldID = 100 + at
            field.description = "added"
            field.type_params.add(key="mmap.enabled", value="false")
            for pair in field.type_params:
                pair.value = {"true": "True", '{"type": "english"}': '{"type":"english"}'}.get(pair.value, pair.value)
            if field.name == "s":
                field.is_function_output = True
        told.fields.append(schema_field("$meta", D.JSON, is_dynamic=True))
        more = {
            "properties": [common_pb2.KeyValuePair(key="timezone", value="UTC")],
            "collectionID": 5,
            "shards_num": 2,
        }
        assert ddl.differences(creation(rich(), consistency_level=2), description(told, **more)) == []
        assert ddl.existing_differences(description(rich()), description(told, **more)) == []

    def test_existing(self) -> None:
        """Two clusters' descriptions: a field of one alone, and rows that expire on one alone, are differences."""
        more = schema("c", *RICH, schema_field("x", D.Bool), functions=[BM25], enable_dynamic_field=True)
        ttl = [common_pb2.KeyValuePair(key="collection.ttl.seconds", value="60")]
        assert ddl.existing_differences(description(rich()), description(more, properties=ttl)) == [
            "field x is missing on one and Bool on the other",
            "property collection.ttl.seconds is missing on one and 60 on the other",
        ]
