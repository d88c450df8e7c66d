"""Timestamps never reach a cluster that did not give them out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus.methods import named
from haclient.milvus.requests import inspect
from haclient.milvus.status import Flavour
from haclient.milvus.timestamps import (
    BOUNDED,
    CUSTOMIZED,
    EVENTUALLY,
    SESSION,
    STRONG,
    TOKEN,
    Timestamps,
    covering,
    effective_level,
    zero_schema_timestamp,
)

OF_A, OF_B, UNKNOWN = 460_000_000_000_000_001, 460_000_000_000_000_002, 460_000_000_000_000_003
CLASSES = {
    "Search": milvus_pb2.SearchRequest,
    "Query": milvus_pb2.QueryRequest,
    "HybridSearch": milvus_pb2.HybridSearchRequest,
}


def known():
    stamps = Timestamps()
    for cluster, timestamp in (("a", OF_A), ("b", OF_B)):
        written = milvus_pb2.MutationResult(timestamp=timestamp, insert_cnt=1).SerializeToString()
        assert stamps.observe_write(cluster, "", "docs", written) == timestamp
    return stamps


def request(name, timestamp, level=SESSION, default=False):
    return CLASSES[name](
        collection_name="docs",
        guarantee_timestamp=timestamp,
        consistency_level=level,
        use_default_consistency=default,
    )


def sent(stamps, name, message, cluster, **options):
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    facts = inspect(named(name), raw)
    out = stamps.for_cluster(named(name), raw, facts, cluster, **{"clusters": 2, **options})
    return out, CLASSES[name].FromString(out), raw


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_clusters_own_timestamp_passes_uncopied(name):
    out, _, raw = sent(known(), name, request(name, OF_A), "a")
    assert out is raw


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("timestamp", [OF_B, UNKNOWN, 3, 2**63])
@pytest.mark.parametrize("default", [True, False])
def test_any_other_timestamp_becomes_strong(name, timestamp, default):
    _, read, _ = sent(known(), name, request(name, timestamp, default=default), "a")
    assert read == request(name, 0, STRONG, default=False)


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("timestamp", [0, 1, 2])
@pytest.mark.parametrize("level", [STRONG, SESSION, BOUNDED, EVENTUALLY])
def test_special_values_pass_uncopied(name, timestamp, level):
    out, _, raw = sent(known(), name, request(name, timestamp, level), "a")
    assert out is raw


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_one_cluster_is_left_alone(name):
    out, _, raw = sent(known(), name, request(name, OF_B), "a", clusters=1)
    assert out is raw


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_targets_own_time_of_the_write_keeps_a_session_cheap(name):
    _, read, _ = sent(known(), name, request(name, OF_A, default=True), "b", applied=OF_B)
    assert read == request(name, OF_B, SESSION, default=False)


@pytest.mark.parametrize("level", [BOUNDED, EVENTUALLY])
def test_a_level_that_ignores_the_timestamp_stays_cheap(level):
    _, read, _ = sent(known(), "Query", request("Query", OF_A, level), "b")
    assert read == request("Query", 1, level)
    _, read, _ = sent(known(), "Query", request("Query", OF_A, 0, default=True), "b", default_level=level)
    assert read == request("Query", 1, 0, default=True)


def test_a_default_level_of_session_or_unknown_becomes_strong():
    for level in (SESSION, None):
        _, read, _ = sent(known(), "Query", request("Query", OF_A, 0, default=True), "b", default_level=level)
        assert read == request("Query", 0, STRONG)


def test_a_strong_read_with_a_time_is_a_session_of_old_clients():
    """consistency_level 0 is also the absence of a level: the server takes the timestamp then."""
    _, read, _ = sent(known(), "Query", request("Query", OF_A, STRONG), "b")
    assert read.guarantee_timestamp == 0


def test_the_searches_inside_a_hybrid_search_are_rewritten_each():
    whole = request("HybridSearch", OF_B)
    whole.rank_params.add(key="strategy", value="rrf")
    for timestamp in (OF_A, OF_B, 1):
        one = request("Search", timestamp)
        one.placeholder_group = b"x" * 300
        whole.requests.append(one)
    _, read, _ = sent(known(), "HybridSearch", whole, "b")
    assert read.guarantee_timestamp == OF_B
    assert [one.guarantee_timestamp for one in read.requests] == [0, OF_B, 1]
    assert [one.consistency_level for one in read.requests] == [STRONG, SESSION, SESSION]
    for one in whole.requests:
        one.guarantee_timestamp = one.consistency_level = 0
    for one in read.requests:
        one.guarantee_timestamp = one.consistency_level = 0
    assert read == whole, "nothing else changed, and the order of the searches is kept"


@given(
    st.sampled_from(sorted(CLASSES)),
    st.sampled_from([OF_A, OF_B, UNKNOWN, 0, 1, 2, 5]),
    st.integers(0, 4),
    st.booleans(),
    st.sampled_from("ab"),
    st.sampled_from([None, 0, 1, 2, 3, 4]),
    st.sampled_from([0, OF_A, OF_B]),
)
def test_no_foreign_timestamp_ever_leaves(name, timestamp, level, default, cluster, default_level, applied):
    own = {"a": OF_A, "b": OF_B}[cluster]
    applied = applied and own
    whole = request(name, timestamp, level, default)
    if name == "HybridSearch":
        whole.requests.append(request("Search", timestamp, level, default))
    _, read, _ = sent(known(), name, whole, cluster, default_level=default_level, applied=applied)
    stamps = [read.guarantee_timestamp] + [one.guarantee_timestamp for one in getattr(read, "requests", [])]
    assert all(stamp in (0, 1, 2, own) for stamp in stamps)
    assert read.collection_name == "docs"


def test_a_page_of_an_iterator_keeps_its_snapshot_unless_it_is_anothers():
    page = request("Query", UNKNOWN)
    page.query_params.add(key="iterator", value="True")
    out, _, raw = sent(known(), "Query", page, "a")
    assert out is raw
    page.guarantee_timestamp = OF_B
    assert sent(known(), "Query", page, "a")[1].guarantee_timestamp == 0


def test_other_methods_and_opaque_requests_pass():
    stamps = known()
    raw = milvus_pb2.DescribeCollectionRequest(collection_name="c", time_stamp=OF_A).SerializeToString()
    row = named("DescribeCollection")
    assert stamps.for_cluster(row, raw, inspect(row, raw), "b", clusters=2) is raw
    bad = b"\x58\xff"
    assert stamps.for_cluster(named("Search"), bad, inspect(named("Search"), bad), "b", clusters=2) is bad


def test_a_hybrid_search_with_a_malformed_search_inside_passes():
    bad = b"\x2a\x02\x58\xff" + milvus_pb2.HybridSearchRequest(guarantee_timestamp=OF_A).SerializeToString()
    row = named("HybridSearch")
    assert known().for_cluster(row, bad, inspect(row, bad), "b", clusters=2) is bad


def test_owner_and_latest():
    stamps = known()
    assert (stamps.owner(OF_A), stamps.owner(OF_B), stamps.owner(UNKNOWN)) == ("a", "b", None)
    stamps.observe_write("a", "", "docs", milvus_pb2.MutationResult(timestamp=OF_A - 5).SerializeToString())
    assert stamps.latest("a", "", "docs") == OF_A
    assert stamps.latest("a", "", "other") == 0


def test_the_same_timestamp_from_two_clusters_belongs_to_neither():
    stamps = known()
    stamps.learn("b", OF_A)
    assert stamps.owner(OF_A) is None
    assert sent(stamps, "Query", request("Query", OF_A), "a")[1].guarantee_timestamp == 0
    stamps.learn("a", OF_A)
    assert stamps.owner(OF_A) is None


def test_a_page_with_a_shared_timestamp_is_not_trusted():
    stamps = known()
    stamps.learn("b", OF_A)
    page = request("Query", OF_A)
    page.query_params.add(key="iterator", value="True")
    assert sent(stamps, "Query", page, "a")[1].guarantee_timestamp == 0


def test_replies_without_a_timestamp_teach_nothing():
    stamps = Timestamps()
    assert stamps.observe_write("a", "", "c", b"\n\x00") == 0
    assert stamps.observe_write("a", "", "c", b"\xff") == 0
    stamps.learn("a", 2)
    assert stamps.owner(2) is None
    assert stamps.latest("a", "", "c") == 0


def test_the_oldest_are_forgotten():
    stamps = Timestamps(limit=3)
    for i in range(5):
        stamps.observe_write("a", "", f"c{i}", milvus_pb2.MutationResult(timestamp=100 + i).SerializeToString())
    assert [stamps.owner(100 + i) for i in range(5)] == [None, None, "a", "a", "a"]
    assert [stamps.latest("a", "", f"c{i}") for i in range(5)] == [0, 0, 102, 103, 104]


@pytest.mark.parametrize(("name", "kind"), [("Insert", milvus_pb2.InsertRequest), ("Upsert", milvus_pb2.UpsertRequest)])
def test_the_schema_timestamp_is_removed_and_nothing_else(name, kind):
    whole = kind(collection_name="c", num_rows=3, schema_timestamp=OF_A, namespace="n")
    out = kind.FromString(zero_schema_timestamp(named(name), whole.SerializeToString()))
    whole.schema_timestamp = 0
    assert out == whole
    raw = whole.SerializeToString()
    assert zero_schema_timestamp(named(name), raw) is raw


def test_the_schema_timestamp_of_other_or_broken_requests_is_left():
    query = milvus_pb2.QueryRequest(guarantee_timestamp=OF_A).SerializeToString()
    assert zero_schema_timestamp(named("Query"), query) is query
    assert zero_schema_timestamp(named("Insert"), b"\x40\x05\xff") == b"\x40\x05\xff"


# What is mirrored.


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("clusters", [1, 2])
@pytest.mark.parametrize("level", [STRONG, SESSION, CUSTOMIZED])
@pytest.mark.parametrize("iterator", [False, True])
def test_a_token_never_reaches_a_server(name, clusters, level, iterator):
    whole = request(name, TOKEN | 5, level)
    if iterator and name == "Query":
        whole.query_params.add(key="iterator", value="True")
    if name == "HybridSearch":
        whole.requests.append(request("Search", TOKEN | 5, level))
    _, read, _ = sent(known(), name, whole, "a", clusters=clusters)
    assert (read.guarantee_timestamp, read.consistency_level) == (0, STRONG)
    assert all((one.guarantee_timestamp, one.consistency_level) == (0, STRONG) for one in getattr(read, "requests", []))
    _, read, _ = sent(known(), name, whole, "a", clusters=clusters, applied=OF_A)
    assert (read.guarantee_timestamp, read.consistency_level) == (OF_A, SESSION)
    assert all(one.guarantee_timestamp == OF_A for one in getattr(read, "requests", []))


@pytest.mark.parametrize("level", [BOUNDED, EVENTUALLY])
def test_a_token_that_the_level_ignores_costs_nothing(level):
    _, read, _ = sent(known(), "Query", request("Query", TOKEN | 5, level), "a", clusters=1)
    assert read == request("Query", 1, level)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_what_a_session_must_see_it_sees_without_a_timestamp_of_its_own(name):
    _, read, _ = sent(known(), name, request(name, 1, SESSION), "a", applied=OF_A, required=True)
    assert read == request(name, OF_A, SESSION)
    _, read, _ = sent(known(), name, request(name, 1, SESSION), "a", required=True)
    assert read == request(name, 0, STRONG)
    for level in (BOUNDED, EVENTUALLY):
        out, _, raw = sent(known(), name, request(name, 1, level), "a", applied=OF_A, required=True)
        assert out is raw


@pytest.mark.parametrize(
    ("sent_as", "default_level", "level"),
    [
        ((0, STRONG, False), None, STRONG),
        ((1, STRONG, False), None, EVENTUALLY),
        ((2, STRONG, False), None, BOUNDED),
        ((OF_A, STRONG, False), None, CUSTOMIZED),
        ((OF_A, SESSION, False), None, SESSION),
        ((OF_A, BOUNDED, False), STRONG, BOUNDED),
        ((1, STRONG, True), BOUNDED, BOUNDED),
        ((OF_A, STRONG, True), None, None),
    ],
)
def test_the_level_by_which_a_server_answers(sent_as, default_level, level):
    assert effective_level(*sent_as, default_level) == level


@pytest.mark.parametrize("name", ["Insert", "Upsert", "Delete"])
def test_the_timestamp_that_covers_a_write(name):
    """2.3.5 answers a delete without one."""
    told = milvus_pb2.MutationResult(timestamp=OF_A).SerializeToString()
    untold = milvus_pb2.MutationResult(delete_cnt=1).SerializeToString()
    assert covering(named(name), told, Flavour.REAL) == OF_A
    assert covering(named(name), untold, Flavour.REAL) is None
    assert covering(named(name), b"\xff", Flavour.REAL) is None
    assert covering(named(name), untold, Flavour.LITE) == 0


def test_what_changes_no_rows_needs_no_timestamp():
    assert covering(named("LoadCollection"), b"", Flavour.REAL) == 0
