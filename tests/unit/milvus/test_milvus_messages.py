"""Probe requests as bytes, and recorded replies read."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus import messages as m
from haclient.milvus.methods import METHODS
from haclient.milvus.requests import KeyField, inspect, listed_keys_field
from haclient.milvus.status import Flavour

RECORDED = json.loads((Path(__file__).parent / "data" / "replies.json").read_text())
REAL, LITE = "Milvus 2.3.5", "Milvus Lite 3.2.2"


def recorded(server, method, name):
    return next(
        bytes.fromhex(r["message"])
        for r in RECORDED
        if (r["server"], r["method"], r["name"]) == (server, method, name) and r["code"] == 0
    )


def test_what_the_servers_say_they_are():
    real = m.read_connect(recorded(REAL, "Connect", "connect"))
    assert (real.flavour, real.version) == (Flavour.REAL, "2.3.5")
    assert 1.7e9 < m.unix_s(real.identifier) < 2e9
    assert m.read_version(recorded(REAL, "GetVersion", "version")) == m.Server(Flavour.REAL, "2.3.5")
    assert m.read_connect(recorded(LITE, "Connect", "connect")) == m.Server(Flavour.LITE, "")
    assert m.read_version(recorded(LITE, "GetVersion", "version")) == m.Server(Flavour.LITE, "3.2.2")


@pytest.mark.parametrize(
    ("tag", "version"), [("v2.6.4", "2.6.4"), ("2.5.1-gpu", "2.5.1"), ("v2.3.5-lite", "2.3.5"), ("", "")]
)
def test_versions(tag, version):
    reply = milvus_pb2.GetVersionResponse(version=tag).SerializeToString()
    assert m.read_version(reply) == m.Server(Flavour.REAL, version)


def test_collections_as_listed():
    real = m.read_collections(recorded(REAL, "ShowCollections", "show"))
    assert {"good", "unloaded"} <= set(real)
    assert real["good"].id != real["unloaded"].id
    assert real["good"].id > 0
    assert real["good"].created < real["unloaded"].created
    lite = m.read_collections(recorded(LITE, "ShowCollections", "show"))
    assert lite["good"] == m.CollectionId(0, 0)
    with_alias = milvus_pb2.ShowCollectionsResponse(collection_names=["a", "b"], collection_ids=[7]).SerializeToString()
    assert m.read_collections(with_alias) == {"a": m.CollectionId(7, 0), "b": m.CollectionId(0, 0)}


@pytest.mark.parametrize("server", [REAL, LITE])
def test_a_collection_as_described(server):
    found = m.read_collection(recorded(server, "DescribeCollection", "describe"))
    assert (found.name, found.key, found.vectors) == ("good", KeyField("id", auto_id=False), ("v",))
    assert found.consistency_level == 0
    assert (found.id > 0) == (server == REAL)


def test_a_collection_without_a_key_and_with_the_servers_keys():
    schema = schema_pb2.CollectionSchema(name="c", fields=[schema_pb2.FieldSchema(name="v", data_type=101)])
    reply = milvus_pb2.DescribeCollectionResponse(schema=schema, aliases=["x"])
    found = m.read_collection(reply.SerializeToString())
    assert (found.name, found.key, found.aliases) == ("c", None, ("x",))
    reply.schema.fields.add(name="id", data_type=5, is_primary_key=True, autoID=True)
    assert m.read_collection(reply.SerializeToString()).key == KeyField("id", auto_id=True)


def test_load_states():
    assert m.read_load_state(recorded(REAL, "GetLoadState", "load state")) is m.LoadState.LOADED
    assert m.read_load_state(recorded(REAL, "GetLoadState", "load state unloaded")) is m.LoadState.NOT_LOADED
    assert m.read_load_state(recorded(REAL, "GetLoadState", "missing collection")) is m.LoadState.NOT_EXIST


def test_health_and_denials():
    assert m.read_health(recorded(REAL, "CheckHealth", "health")) == m.Health(True, (), False, False)
    states = [milvus_pb2.QuotaState.DenyToWrite]
    reply = milvus_pb2.CheckHealthResponse(isHealthy=True, reasons=["disk"], quota_states=states)
    assert m.read_health(reply.SerializeToString()) == m.Health(True, ("disk",), denies_read=False, denies_write=True)


def test_the_oracles_time():
    assert 1.7e9 < m.unix_s(m.read_timestamp(recorded(REAL, "AllocTimestamp", "alloc"))) < 2e9
    assert m.unix_s(1_700_000_000_123 << 18 | 5) == 1_700_000_000.123


@pytest.mark.parametrize("server", [REAL, LITE])
def test_keys_of_real_answers(server):
    assert m.read_query_keys(recorded(server, "Query", "ok strong query"), "id") == [0, 1, 2]
    assert m.read_query_keys(recorded(server, "Query", "ok strong query"), "nope") == []
    hits = m.read_search_keys(recorded(server, "Search", "ok search"))
    assert hits == [] if server == REAL else hits[0] in (0, 1)


def test_keys_that_are_texts():
    ids = schema_pb2.IDs(str_id=schema_pb2.StringArray(data=["b", "a"]))
    reply = milvus_pb2.SearchResults(results=schema_pb2.SearchResultData(ids=ids)).SerializeToString()
    assert m.read_search_keys(reply) == ["b", "a"]
    scalars = schema_pb2.ScalarField(string_data=schema_pb2.StringArray(data=["a"]))
    field = schema_pb2.FieldData(field_name="id", scalars=scalars)
    assert m.read_query_keys(milvus_pb2.QueryResults(fields_data=[field]).SerializeToString(), "id") == ["a"]


@pytest.mark.parametrize(
    "read",
    [
        m.read_connect,
        m.read_version,
        m.read_health,
        m.read_collections,
        m.read_collection,
        m.read_load_state,
        m.read_timestamp,
        m.read_search_keys,
        lambda message: m.read_query_keys(message, "id"),
    ],
)
def test_bytes_that_are_something_else_raise_value_error(read):
    with pytest.raises(ValueError, match="not a"):
        read(b"\x0a\x05abc")


def test_requests_name_database_and_collection_so_that_our_own_reader_finds_them():
    for request in (
        m.describe_collection("docs", database="d"),
        m.get_load_state("docs", database="d"),
        m.load_collection("docs", database="d"),
        m.read_one("docs", "id", database="d"),
        m.read_keys("docs", "id", [1], database="d"),
        m.search("docs", "v", [1.0], 3, database="d"),
    ):
        facts = inspect(request.method, request.message, ())
        assert (facts.collection, facts.database) == ("docs", "d")
        assert request.metadata == (("dbname", "d"),)
        assert request.method is METHODS[request.method.path]
    assert m.show_collections().metadata == ()
    assert inspect(m.show_collections(database="d").method, m.show_collections(database="d").message).database == "d"


def test_the_deep_read_is_eventual_unless_fresh():
    stale = milvus_pb2.QueryRequest.FromString(m.read_one("docs", "id").message)
    assert (stale.guarantee_timestamp, stale.consistency_level, stale.use_default_consistency) == (1, 3, False)
    assert (stale.expr, list(stale.output_fields)) == ("", ["id"])
    assert [(p.key, p.value) for p in stale.query_params] == [("limit", "1")]
    fresh = milvus_pb2.QueryRequest.FromString(m.read_one("docs", "id", fresh=True).message)
    assert (fresh.guarantee_timestamp, fresh.consistency_level) == (0, 0)


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=20)), max_size=5))
def test_the_canarys_filter_is_a_list_of_keys_whatever_they_hold(keys):
    request = milvus_pb2.QueryRequest.FromString(m.read_keys("docs", "id", keys).message)
    assert listed_keys_field(request.expr) == "id"


def test_the_canarys_search():
    request = milvus_pb2.SearchRequest.FromString(m.search("docs", "v", [1.0, -2.0], 3, params={"x": "y"}).message)
    group = common_pb2.PlaceholderGroup.FromString(request.placeholder_group)
    assert struct.unpack("<2f", group.placeholders[0].values[0]) == (1.0, -2.0)
    params = {pair.key: pair.value for pair in request.search_params}
    assert (params["anns_field"], params["topk"], params["x"], request.nq) == ("v", "3", "y", 1)


def test_plain_requests():
    connect = milvus_pb2.ConnectRequest.FromString(m.connect(host="h", user="u").message)
    assert (connect.client_info.host, connect.client_info.user) == ("h", "u")
    assert milvus_pb2.ShowCollectionsRequest.FromString(m.show_collections(loaded=True).message).type == 1
    assert [r.method.name for r in (m.get_version(), m.check_health(), m.alloc_timestamp())] == [
        "GetVersion",
        "CheckHealth",
        "AllocTimestamp",
    ]
