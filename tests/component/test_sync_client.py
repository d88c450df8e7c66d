"""The sync drop-in beside pymilvus' own MilvusClient, on the same milvus-lite: the same answers and the same errors."""

import asyncio
import random
import warnings
from contextlib import contextmanager

import grpc
import pymilvus
import pytest
from pymilvus import MilvusException
from test_client_dropin import DIM, MISTAKES, READS, Q, comparable, indexes, plain, rows, schema

import haclient
from haclient import AsyncMilvusClient, MilvusClient
from haclient.drill.servers.lite import LiteServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    lite = LiteServer(tmp_path_factory.mktemp("lite"))
    asyncio.run(lite.start())
    yield lite
    asyncio.run(lite.close())


@pytest.fixture(scope="module")
def pair(server):
    """(pymilvus' client, ours) on one server."""
    theirs = pymilvus.MilvusClient(server.uri)
    with MilvusClient(server.uri) as ours:
        yield theirs, ours
    theirs.close()


@pytest.fixture(scope="module")
def collection(pair):
    theirs, _ = pair
    theirs.create_collection("shared", schema=schema(theirs), index_params=indexes(theirs))
    theirs.insert("shared", rows())
    return "shared"


def outcome(client, action, name):
    try:
        return plain(action(client, name))
    except Exception as error:
        return error


@contextmanager
def deprecated():
    """The ORM, which pymilvus 3 is about to drop and other libraries still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.mark.parametrize("what", READS)
def test_reads_answer_the_same(pair, collection, what):
    theirs, ours = pair
    expected = outcome(theirs, READS[what], collection)
    if isinstance(expected, AttributeError):
        pytest.skip(f"this pymilvus has no {what}")
    assert outcome(ours, READS[what], collection) == expected
    assert not isinstance(expected, Exception), expected


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_fail_the_same(pair, collection, what):
    """Code and message, and the type if it is Milvus' own error; nothing is tried twice."""
    theirs, ours = pair
    expected = outcome(theirs, MISTAKES[what], collection)
    if isinstance(expected, AttributeError):
        pytest.skip("this pymilvus has no such method")
    heard = []
    unsubscribe = ours.subscribe(heard.append)
    got = outcome(ours, MISTAKES[what], collection)
    unsubscribe()
    if isinstance(expected, Exception):
        kind = grpc.RpcError if isinstance(expected, grpc.RpcError) else type(expected)
        assert isinstance(got, kind), (got, expected)
        assert comparable(got) == comparable(expected)
    else:
        assert got == expected
    assert [e.attempts for e in heard if type(e).__name__ == "CallFinished" and e.attempts > 1] == []
    assert ours.fleet.endpoints[0].state == "up"


def life(client, name):
    """A collection's life, step by step."""
    client.create_collection(name, schema=schema(client))
    try:
        client.create_index(name, indexes(client))
    except grpc.RpcError as error:
        # pymilvus waits for the index by AllocTimestamp, which milvus-lite does not have.
        yield "created", error.code(), error.details()
    client.load_collection(name)
    yield client.insert(name, rows())
    yield client.upsert(name, [{**rows(1)[0], "text": "changed"}])
    yield client.get(name, ids=[0], output_fields=["text"])
    yield client.delete(name, ids=[1, 2])
    yield client.delete(name, filter="n == 6")
    yield client.query(name, filter="id >= 0", output_fields=["id"], limit=100)
    client.create_partition(name, "p1")
    yield client.insert(name, [{**rows(1)[0], "id": 500}], partition_name="p1")
    yield client.query(name, filter="id >= 0", output_fields=["id"], partition_names=["p1"])
    client.create_alias(name, f"{name}_alias")
    yield client.search(f"{name}_alias", data=[Q], limit=3, anns_field="v")
    client.drop_alias(f"{name}_alias")
    client.flush(name)
    client.release_collection(name)
    try:
        client.search(name, data=[Q], limit=3, anns_field="v")
    except MilvusException as error:
        yield "released", error.code
    client.load_collection(name)
    yield client.search(name, data=[Q], limit=3, anns_field="v")
    client.drop_collection(name)
    yield client.has_collection(name)


def test_writes_and_ddl_do_the_same(pair):
    number = random.randrange(10**9)
    theirs, ours = (
        [str(plain(step)).replace(name, "NAME") for step in life(client, name)]
        for client, name in zip(pair, (f"theirs{number}", f"ours{number}"), strict=True)
    )
    assert ours == theirs
    assert len(ours) >= 11


def pages(iterator):
    got = []
    while page := iterator.next():
        got.append(plain(list(page)))
    iterator.close()
    return got


ITERATORS = {
    "query": lambda c, n: c.query_iterator(n, batch_size=7, filter="n != 3", output_fields=["text"]),
    "query, limited": lambda c, n: c.query_iterator(n, batch_size=7, limit=20, output_fields=["id"]),
    "search": lambda c, n: c.search_iterator(n, data=[Q], batch_size=7, limit=30, anns_field="v", output_fields=["n"]),
}


@pytest.mark.parametrize("what", ITERATORS)
def test_iterators_give_the_same_pages(pair, collection, what):
    expected, got = (outcome(client, lambda c, n: pages(ITERATORS[what](c, n)), collection) for client in pair)
    if isinstance(expected, Exception):
        assert comparable(got) == comparable(expected)
    else:
        assert got == expected
        assert len(got) > 1


def test_calls_in_the_background(pair, collection):
    """What ``_async=True`` gives is pymilvus' own future, of searches and of writes."""
    conn = pair[1]._get_connection()
    wanted = pair[0].search(collection, data=[Q], limit=4, anns_field="v")[0]
    searches = [
        conn.search(collection, data=[Q], anns_field="v", param={}, limit=4, output_fields=[], _async=True)
        for _ in range(20)
    ]
    assert [[hit["id"] for hit in each.result()[0]] for each in searches] == [[hit["id"] for hit in wanted]] * 20
    heard = []
    future = conn.delete(collection, "id in [999]", _async=True, _callback=heard.append)
    future.done()
    assert future.result().delete_count in (0, 1)
    assert len(heard) == 1


def test_pymilvus_orm_stands_on_it(pair, collection):
    """What LangChain, LlamaIndex and Haystack do with a client: its alias, its connection, the ORM."""
    from pymilvus import Collection, connections, utility

    theirs, ours = pair
    assert isinstance(ours._using, str)
    assert ours._get_connection() is connections._fetch_handler(ours._using)
    with deprecated():
        assert connections.has_connection(ours._using)
        assert utility.has_collection(collection, using=ours._using)
        orm = Collection(collection, using=ours._using)
        hits = orm.search([Q], "v", {"metric_type": "L2"}, limit=5, expr="n < 5", output_fields=["text"])
        wanted = theirs.search(collection, data=[Q], limit=5, anns_field="v", filter="n < 5")
        assert hits[0].ids == [hit["id"] for hit in wanted[0]]
        orm.upsert([{**rows(1)[0], "id": 700}])
        assert [row["id"] for row in orm.query("id == 700")] == [700]
        assert orm.delete("id in [700]").delete_count == 1
        assert len(pages(orm.query_iterator(batch_size=30, output_fields=["id"]))) > 1
        assert len(orm.indexes) == 2


async def test_a_sync_and_an_async_client_side_by_side(server, collection):
    """As langchain-milvus keeps them: aliases of their own, one loop each."""
    sync = MilvusClient(server.uri)
    async with AsyncMilvusClient(server.uri) as client:
        assert sync._using != client._using
        hits = await client.search(collection, data=[Q], limit=3, anns_field="v")
        assert plain(sync.search(collection, data=[Q], limit=3, anns_field="v")) == plain(hits)
    sync.close()


def test_databases(pair, server):
    theirs, ours = pair
    name = f"db{random.randrange(10**9)}"
    ours.create_database(name)
    assert name in theirs.list_databases()
    with MilvusClient(server.uri, db_name=name) as inside:
        inside.create_collection("only_here", dimension=DIM)
        assert inside.list_collections() == ["only_here"]
        assert "only_here" not in ours.list_collections()
        with deprecated():
            assert pymilvus.Collection("only_here", using=inside._using).is_empty
        inside.drop_collection("only_here")
    ours.drop_database(name)
    assert name not in theirs.list_databases()


def test_switching_to_another_database_does_the_same(server):
    """``use_database`` asks Milvus first, which milvus-lite cannot answer; pymilvus 2.5 just switches."""
    with MilvusClient(server.uri) as ours:
        theirs = pymilvus.MilvusClient(server.uri)
        expected, got = (outcome(client, lambda c, n: c.use_database(n), "default") for client in (theirs, ours))
        assert comparable(got) == comparable(expected)
        theirs.close()


def test_errors_of_our_own_are_milvus_exceptions():
    with MilvusClient("http://127.0.0.1:9") as client:
        with pytest.raises(MilvusException) as caught:
            client.list_collections(timeout=2)
        assert isinstance(caught.value, haclient.Unavailable)
        assert "127.0.0.1:9" in str(caught.value)
        assert caught.value.attempts
