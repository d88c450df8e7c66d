"""Facts read from requests, with protobuf's own parser as judge."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from haclient.milvus.methods import METHODS, method, named
from haclient.milvus.requests import MAX_FIELDS, Facts, KeyField, fingerprint, inspect, listed_keys_field

names = st.text(max_size=200)
pairs = st.lists(
    st.builds(
        common_pb2.KeyValuePair,
        key=st.sampled_from(["anns_field", "topk", "params", "ignore_growing", "", "i", "iterators", "collection"]),
        value=st.text(max_size=200),
    ),
    max_size=6,
)
consistency = {
    "guarantee_timestamp": st.integers(0, 2**64 - 1),
    "consistency_level": st.integers(0, 4),
    "use_default_consistency": st.booleans(),
}
searches = st.builds(
    milvus_pb2.SearchRequest,
    db_name=names,
    collection_name=names,
    dsl=st.text(max_size=20),
    placeholder_group=st.binary(max_size=20_000),
    search_params=pairs,
    nq=st.integers(0, 3),
    **consistency,
)
queries = st.builds(
    milvus_pb2.QueryRequest, db_name=names, collection_name=names, query_params=pairs, expr=names, **consistency
)
hybrids = st.builds(
    milvus_pb2.HybridSearchRequest,
    db_name=names,
    collection_name=names,
    requests=st.lists(searches, max_size=2),
    rank_params=pairs,
    **consistency,
)
reads = st.one_of(
    st.tuples(st.just("Search"), searches),
    st.tuples(st.just("Query"), queries),
    st.tuples(st.just("HybridSearch"), hybrids),
)
KEY = KeyField("id", auto_id=False)


def vectors(rows=2):
    return schema_pb2.FieldData(
        field_name="v",
        vectors=schema_pb2.VectorField(dim=2, float_vector=schema_pb2.FloatArray(data=[1.0] * 2 * rows)),
    )


@given(reads)
@settings(max_examples=200)
def test_reads_agree_with_the_parsed_message(read):
    name, request = read
    facts = inspect(named(name), request.SerializeToString(), (("dbname", "meta"),))
    assert facts == Facts(
        collection=request.collection_name,
        database=request.db_name or "meta",
        guarantee_timestamp=request.guarantee_timestamp,
        consistency_level=request.consistency_level,
        use_default_consistency=request.use_default_consistency,
        idempotent=True,
        hedgeable=True,
        reads_rows=True,
        inner_timestamp=max((one.guarantee_timestamp for one in getattr(request, "requests", ())), default=0),
    )


@pytest.mark.parametrize("path", sorted(path for path in METHODS if "milvus.MilvusService" in path))
def test_collection_and_database_of_every_method(path):
    """Fill the request's own fields, and find them again."""
    service = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"]
    rpc = service.methods_by_name.get(path.rpartition("/")[2])
    if rpc is None:
        assert inspect(METHODS[path], b"\x1a\x01c").collection == ""
        return
    request = getattr(milvus_pb2, rpc.input_type.name, None)
    if request is None:
        from pymilvus.grpc_gen import feder_pb2

        request = getattr(feder_pb2, rpc.input_type.name)
    message = request()
    row = METHODS[path]
    for field in rpc.input_type.fields:
        if field.number == row.collection:
            value = getattr(message, field.name)
            if isinstance(value, str):
                setattr(message, field.name, "docs")
            else:
                value.append("docs")
        elif field.name in ("db_name", "dbName"):
            setattr(message, field.name, "body")
    facts = inspect(row, message.SerializeToString(), (("dbname", "meta"),))
    assert facts.collection == ("docs" if row.collection else "")
    has_database = any(field.name in ("db_name", "dbName") for field in rpc.input_type.fields)
    assert facts.database == ("body" if has_database else "meta")
    assert not facts.opaque


def test_the_bodys_database_wins_over_the_metadata():
    request = milvus_pb2.SearchRequest(db_name="body", collection_name="c").SerializeToString()
    assert inspect(named("Search"), request, (("dbname", "meta"),)).database == "body"
    assert inspect(named("Search"), b"", (("x", "y"), ("dbname", "meta"))).database == "meta"
    assert inspect(named("Search"), b"").database == ""


@pytest.mark.parametrize(
    ("key", "value", "page"),
    [
        ("iterator", "True", True),
        ("iterator", "true", True),
        ("iterator", "1", True),
        ("iterator", "False", False),
        ("iterator", "", False),
        ("collection_id", "0", True),
        ("search_iter_id", "x", True),
        ("search_iter_v2", "True", True),
        ("search_iter_last_bound", "0.5", True),
        ("session_ts", "5", True),
        ("iterator_session_ts", "5", True),
        ("query_iter_last_pk", "5", True),
        ("iterators", "True", False),
        ("topk", "iterator", False),
    ],
)
@pytest.mark.parametrize("name", ["Search", "Query"])
def test_pages_of_iterators_are_pinned_and_never_hedged(name, key, value, page):
    request = {"Search": milvus_pb2.SearchRequest, "Query": milvus_pb2.QueryRequest}[name](collection_name="c")
    pairs_ = request.search_params if name == "Search" else request.query_params
    pairs_.add(key="limit", value="10")
    pairs_.add(key=key, value=value)
    facts = inspect(named(name), request.SerializeToString())
    assert (facts.is_iterator, facts.pinned, facts.hedgeable) == (page, page, not page)
    assert facts.idempotent, "the same page may be asked again, of the same cluster"


def test_an_iterator_inside_a_hybrid_search_pins_it():
    request = milvus_pb2.HybridSearchRequest(collection_name="c", requests=[milvus_pb2.SearchRequest()])
    assert inspect(named("HybridSearch"), request.SerializeToString()).hedgeable
    request.requests[0].search_params.add(key="iterator", value="False")
    request.requests[0].placeholder_group = b"\n\x08iterator\x12\x04True"
    assert inspect(named("HybridSearch"), request.SerializeToString()).hedgeable
    request.requests[0].search_params.add(key="iterator", value="True")
    assert inspect(named("HybridSearch"), request.SerializeToString()).pinned


@pytest.mark.parametrize(
    ("change", "key", "idempotent", "needs_key"),
    [
        ({}, KEY, True, False),
        ({}, KeyField("id", auto_id=True), False, False),
        ({}, None, False, True),
        ({"partial_update": True}, KEY, False, False),
        ({"partial_update": True}, None, False, False),
    ],
)
def test_an_upsert_is_idempotent_if_it_is_whole_rows_with_the_clients_keys(change, key, idempotent, needs_key):
    request = milvus_pb2.UpsertRequest(db_name="d", collection_name="c", fields_data=[vectors()], num_rows=2, **change)
    facts = inspect(named("Upsert"), request.SerializeToString(), key=key)
    assert (facts.collection, facts.database) == ("c", "d")
    assert (facts.idempotent, facts.needs_key) == (idempotent, needs_key)
    assert not facts.hedgeable


def test_an_upsert_with_field_operations_is_not_idempotent():
    request = milvus_pb2.UpsertRequest(collection_name="c").SerializeToString() + b"\x5a\x02\x08\x01"
    assert not inspect(named("Upsert"), request, key=KEY).idempotent


def test_an_insert_is_never_idempotent():
    request = milvus_pb2.InsertRequest(collection_name="c", fields_data=[vectors()]).SerializeToString()
    facts = inspect(named("Insert"), request, key=KEY)
    assert (facts.collection, facts.idempotent, facts.needs_key) == ("c", False, False)


def test_an_import_is_idempotent_with_its_own_key_only():
    request = milvus_pb2.ImportRequest(collection_name="c", db_name="d").SerializeToString()
    assert inspect(named("Import"), request) == Facts(collection="c", database="d")
    assert inspect(named("Import"), request + b"\x4a\x03abc").idempotent


KEYS_ONLY = [
    "id in [1]",
    "id in [1, 2,3 , -4]",
    "id in []",
    " id  in[1,2] ",
    "id IN [1]",
    "id == 5",
    "id==-5",
    'id in ["a", "b"]',
    "id in ['a', 'b']",
    'id == "a"',
    r'id in ["a\"b", "c\\"]',
    r"id in ['it\'s']",
    'id in ["a] or (id > 0"]',
    'id in ["é", "\n"]',
    "id in {keys}",
    "id in [1, 2, ]",
]
NOT_KEYS_ONLY = [
    "",
    "id > 5",
    "id in [1] or price > 3",
    "id in [1] and true",
    "not id in [1]",
    "id not in [1]",
    "id in [1",
    "id in 1]",
    "id in [1.5]",
    "id in [a]",
    "id == other",
    "id == 1 or 1 == 1",
    'id in ["a" "b"]',
    'id in ["a", "b]',
    'id in ["a"] or id in ["b"]',
    "id in ['a\"]",
    "id in [1]; drop",
    '$meta["id"] in [1]',
    'meta["id"] == 1',
    "1 in [1]",
    "id in [1,,2]",
    "id in [,]",
    "id != 5",
    "id in {a} or true",
    "in [1]",
]


@pytest.mark.parametrize("expression", KEYS_ONLY)
def test_a_delete_by_keys_is_idempotent_if_they_are_keys(expression):
    message = milvus_pb2.DeleteRequest(collection_name="c", expr=expression).SerializeToString()
    assert listed_keys_field(expression) == "id"
    assert inspect(named("Delete"), message, key=KEY).idempotent
    assert not inspect(named("Delete"), message, key=KeyField("other", auto_id=False)).idempotent
    unknown = inspect(named("Delete"), message)
    assert (unknown.idempotent, unknown.needs_key) == (False, True)


@pytest.mark.parametrize("expression", NOT_KEYS_ONLY)
def test_a_delete_by_anything_else_is_not_idempotent(expression):
    message = milvus_pb2.DeleteRequest(collection_name="c", expr=expression).SerializeToString()
    facts = inspect(named("Delete"), message, key=KEY)
    assert (facts.collection, facts.idempotent, facts.needs_key) == ("c", False, False)


@given(st.text(alphabet="id in[]\"'\\,1-=x{}", max_size=40))
def test_a_filter_taken_for_keys_only_has_no_operator_outside_its_literals(expression):
    if listed_keys_field(expression) is None:
        return
    bare, quote, skip = "", "", False
    for letter in expression:
        if skip:
            skip = False
        elif quote:
            skip = letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            bare += letter
    assert not quote
    assert bare.count("[") + bare.count("{") <= 1
    assert bare.count("==") + bare.count("=") in (0, 3)
    assert len(bare.replace(",", " ").replace("[", " ").split()) >= 1


def test_a_hundred_thousand_keys_are_read_and_a_near_miss_is_refused_quickly():
    listed = "id in [" + ", ".join(f'"key {i}"' for i in range(100_000)) + "]"
    assert listed_keys_field(listed) == "id"
    assert listed_keys_field(listed + " or") is None
    assert listed_keys_field("id in [" + '"' * 100_001) is None
    assert listed_keys_field("id" * 50_000 + " " * 50_000) is None


@given(st.sampled_from(sorted(METHODS)), st.binary(max_size=200))
def test_no_bytes_make_inspection_or_fingerprint_raise(path, message):
    facts = inspect(METHODS[path], message)
    if facts.opaque:
        assert (facts.idempotent, facts.hedgeable, facts.collection) == (False, False, "")
    assert len(fingerprint(METHODS[path], message)) == 16


@given(reads, st.randoms(use_true_random=False))
def test_damaged_requests_never_raise(read, rng: random.Random):
    name, request = read
    message = bytearray(request.SerializeToString() or b"\0")
    for _ in range(rng.randint(1, 3)):
        message[rng.randrange(len(message))] = rng.randrange(256)
    del message[rng.randint(0, len(message)) :]
    facts = inspect(named(name), bytes(message))
    assert facts.idempotent is not facts.opaque
    assert len(fingerprint(named(name), bytes(message))) == 16


@pytest.mark.parametrize("name", ["Search", "Query", "HybridSearch", "Upsert", "Delete", "Import", "DropCollection"])
def test_an_opaque_request_is_sent_once(name):
    for message in (b"\x1a\x05abc", b"\x1a", b"\x0b", b"\x0a\xff", b"\x1a\x01c\x40"):
        assert inspect(named(name), message, key=KEY) == Facts(opaque=True)


@pytest.mark.parametrize("name", ["Search", "Query", "HybridSearch", "Upsert", "Delete", "DropCollection"])
def test_a_name_that_is_not_utf8_makes_a_request_opaque(name):
    assert inspect(named(name), b"\x1a\x02\xff\xff", key=KEY).opaque


def test_unknown_fields_of_every_width_are_skipped():
    tail = b"\xa9\x06" + b"\xff" * 8 + b"\xad\x06" + b"\xff" * 4 + b"\x31" + b"\x01" * 8 + b"\x35" + b"\xff" * 4
    message = tail + milvus_pb2.SearchRequest(collection_name="c", guarantee_timestamp=7).SerializeToString()
    facts = inspect(named("Search"), message)
    assert (facts.collection, facts.guarantee_timestamp, facts.opaque) == ("c", 7, False)


@pytest.mark.parametrize("name", ["Search", "DropCollection", "Upsert"])
def test_a_request_of_very_many_fields_is_opaque(name):
    assert not inspect(named(name), b"\x22\x00" * (MAX_FIELDS - 1)).opaque
    assert inspect(named(name), b"\x22\x00" * (MAX_FIELDS + 1)).opaque


def test_a_message_of_an_unknown_method_is_not_looked_into():
    assert inspect(method("/x.Y/Z"), b"\x1a\x01c\xff") == Facts()


def search(timestamp=0, vector=1.0, level=0, base=0, collection="c"):
    return milvus_pb2.SearchRequest(
        base=common_pb2.MsgBase(msgID=base),
        collection_name=collection,
        placeholder_group=struct.pack("<f", vector),
        guarantee_timestamp=timestamp,
        consistency_level=level,
    )


def test_a_fingerprint_ignores_time_and_consistency_and_nothing_else():
    one = fingerprint(named("Search"), search().SerializeToString())
    assert one == fingerprint(named("Search"), search(timestamp=2**60, level=2, base=9).SerializeToString())
    assert one != fingerprint(named("Search"), search(vector=2.0).SerializeToString())
    assert one != fingerprint(named("Search"), search(collection="d").SerializeToString())
    assert one != fingerprint(named("Query"), search().SerializeToString())


def test_a_fingerprint_ignores_the_times_inside_a_hybrid_search():
    def hybrid(timestamp, vector=1.0):
        inner = [search(timestamp, vector), search(timestamp, 3.0)]
        request = milvus_pb2.HybridSearchRequest(collection_name="c", requests=inner, guarantee_timestamp=timestamp)
        return fingerprint(named("HybridSearch"), request.SerializeToString())

    assert hybrid(0) == hybrid(2**60)
    assert hybrid(0) != hybrid(0, vector=2.0)


def test_a_fingerprint_ignores_the_schema_timestamp_of_a_write():
    def upsert(timestamp, rows=2):
        request = milvus_pb2.UpsertRequest(collection_name="c", fields_data=[vectors(rows)], schema_timestamp=timestamp)
        return fingerprint(named("Upsert"), request.SerializeToString())

    assert upsert(0) == upsert(5)
    assert upsert(0) != upsert(0, rows=3)


def test_an_opaque_message_is_hashed_whole():
    assert fingerprint(named("Search"), b"\x1a\x05abc") != fingerprint(named("Search"), b"\x1a\x05abd")


def test_searches_that_differ_in_their_vectors_only_are_read_once():
    """The same facts, whatever the vectors; other ones as soon as anything else differs."""

    def search(vectors, database="", **fields):
        message = milvus_pb2.SearchRequest(collection_name="docs", placeholder_group=vectors, **fields)
        return inspect(named("Search"), message.SerializeToString(), (("dbname", database), ("traceparent", "x")))

    first = search(b"\x01" * 50)
    assert search(b"\x02" * 5_000) is first
    assert search(b"\x02" * 50, "books").database == "books"
    assert search(b"\x02" * 50, guarantee_timestamp=77).guarantee_timestamp == 77
    page = search(b"\x02" * 50, search_params=[common_pb2.KeyValuePair(key="iterator", value="True")])
    assert page.is_iterator
    assert not page.hedgeable
    assert (first.collection, first.is_iterator, first.hedgeable, first.guarantee_timestamp) == ("docs", False, True, 0)
