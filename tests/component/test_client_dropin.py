"""The drop-in beside pymilvus' own client, on the same milvus-lite: the same answers and the same errors."""

import asyncio
import inspect
import random
import re
import warnings
from collections import UserDict
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pymilvus
import pytest
from pymilvus import AnnSearchRequest, DataType, MilvusException, RRFRanker

import haclient
from haclient import AsyncMilvusClient
from haclient.drill.servers.lite import LiteServer

DIM, ROWS = 8, 60
PYMILVUS = tuple(int(part) for part in pymilvus.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(PYMILVUS < (2, 6), reason="2.5's async client has few methods; see tests/compat")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    lite = LiteServer(tmp_path_factory.mktemp("lite"))
    asyncio.run(lite.start())
    yield lite
    asyncio.run(lite.close())


@asynccontextmanager
async def pair(server, **options):
    """Yield (pymilvus' client, ours) on one server."""
    theirs = pymilvus.AsyncMilvusClient(server.uri, **options)
    try:
        async with AsyncMilvusClient(server.uri, **options) as ours:
            yield theirs, ours
    finally:
        await theirs.close()


def rows(count=ROWS, seed=3):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, DIM)).astype(np.float32)
    return [
        {"id": i, "v": v.tolist(), "w": v[::-1].tolist(), "text": f"passage {i}", "n": i % 7}
        for i, v in enumerate(vectors)
    ]


def schema(client):
    made = client.create_schema(auto_id=False, enable_dynamic_field=True)
    made.add_field("id", DataType.INT64, is_primary=True)
    made.add_field("v", DataType.FLOAT_VECTOR, dim=DIM)
    made.add_field("w", DataType.FLOAT_VECTOR, dim=DIM)
    made.add_field("text", DataType.VARCHAR, max_length=200)
    made.add_field("n", DataType.INT64)
    return made


def indexes(client):
    made = client.prepare_index_params()
    for field in ("v", "w"):
        made.add_index(field, index_type="FLAT", metric_type="L2")
    return made


#: Differ from one collection, call or moment to the next.
VOLATILE = {"cost", "created_timestamp", "created_utc_timestamp", "update_timestamp", "collection_id", "timestamp"}
LISTS = {"HybridExtraList", "SearchResult", "OmitZeroDict", "Hits"}


def plain(value):
    """What can be compared of a result."""
    if isinstance(value, (dict, UserDict)):
        return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, (list, tuple)) or type(value).__name__ in LISTS:
        return [plain(v) for v in value]
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if isinstance(value, float):
        return round(value, 4)
    return value if isinstance(value, (str, int, bool, type(None), bytes)) else str(value)


@pytest.fixture(scope="module")
def collection(server):
    client = pymilvus.MilvusClient(server.uri)
    client.create_collection("shared", schema=schema(client), index_params=indexes(client))
    client.insert("shared", rows())
    client.close()
    return "shared"


Q = rows(1, seed=9)[0]["v"]

READS = {
    "search": lambda c, n: c.search(n, data=[Q], limit=5, anns_field="v", output_fields=["text", "n"]),
    "search-many": lambda c, n: c.search(n, data=[r["v"] for r in rows(4)], limit=3, anns_field="v"),
    "search-filter": lambda c, n: c.search(n, data=[Q], limit=5, anns_field="v", filter="n == 3", output_fields=["*"]),
    "search-param": lambda c, n: c.search(
        n,
        data=[Q],
        limit=5,
        anns_field="v",
        search_params={"metric_type": "L2", "params": {}},
        consistency_level="Strong",
    ),
    "search-range": lambda c, n: c.search(
        n, data=[Q], limit=9, anns_field="v", search_params={"params": {"radius": 20.0, "range_filter": 2.0}}
    ),
    "hybrid": lambda c, n: c.hybrid_search(
        n,
        [AnnSearchRequest([Q], "v", {}, 5), AnnSearchRequest([Q], "w", {}, 5)],
        RRFRanker(),
        limit=5,
        output_fields=["text"],
    ),
    "query": lambda c, n: c.query(n, filter="n in [1, 2]", output_fields=["id", "text"], limit=20),
    "query-count": lambda c, n: c.query(n, filter="", output_fields=["count(*)"]),
    "get": lambda c, n: c.get(n, ids=[3, 5, 999], output_fields=["text"]),
    "has": lambda c, n: c.has_collection(n),
    "has-not": lambda c, n: c.has_collection("nosuch"),
    "describe": lambda c, n: c.describe_collection(n),
    "list": lambda c, n: c.list_collections(),
    "stats": lambda c, n: c.get_collection_stats(n),
    "partitions": lambda c, n: c.list_partitions(n),
    "has-partition": lambda c, n: c.has_partition(n, "_default"),
    "partition-stats": lambda c, n: c.get_partition_stats(n, "_default"),
    "indexes": lambda c, n: c.list_indexes(n),
    "index": lambda c, n: c.describe_index(n, "v"),
    "load-state": lambda c, n: c.get_load_state(n),
    "aliases": lambda c, n: c.list_aliases(n),
    "databases": lambda c, n: c.list_databases(),
    "version": lambda c, n: c.get_server_version(),
}

MISTAKES = {
    "unknown collection": lambda c, n: c.search("nosuch", data=[Q], limit=5),
    "unknown collection, query": lambda c, n: c.query("nosuch", filter="id > 0"),
    "unknown collection, describe": lambda c, n: c.describe_collection("nosuch"),
    "unknown collection, insert": lambda c, n: c.insert("nosuch", [{"id": 1}]),
    "wrong dimension": lambda c, n: c.search(n, data=[[0.1, 0.2]], limit=5, anns_field="v"),
    "wrong dimension, insert": lambda c, n: c.insert(n, [{**rows(1)[0], "v": [0.1]}]),
    "bad filter": lambda c, n: c.query(n, filter="n ==== 3"),
    "bad filter, search": lambda c, n: c.search(n, data=[Q], limit=5, anns_field="v", filter="n in ("),
    "unknown field in a filter": lambda c, n: c.query(n, filter="nosuch_field[0 == 3"),
    "unknown vector field": lambda c, n: c.search(n, data=[Q], limit=5, anns_field="nosuch"),
    "missing field": lambda c, n: c.insert(n, [{"id": 1000}]),
    "wrong type": lambda c, n: c.insert(n, [{**rows(1)[0], "n": "seven"}]),
    "limit of nothing": lambda c, n: c.search(n, data=[Q], limit=0, anns_field="v"),
    "limit of too much": lambda c, n: c.search(n, data=[Q], limit=10_000_000, anns_field="v"),
    "unknown partition": lambda c, n: c.search(n, data=[Q], limit=5, anns_field="v", partition_names=["nosuch"]),
    "collection exists": lambda c, n: c.create_collection(n, dimension=4),
    "unknown alias": lambda c, n: c.describe_alias("nosuch"),
    "unknown database": lambda c, n: c.drop_database("nosuch"),
    "unimplemented": lambda c, n: c.list_users(),
    "unimplemented, roles": lambda c, n: c.list_roles(),
    "no data": lambda c, n: c.search(n, data=None, limit=5),
    "delete nothing": lambda c, n: c.delete(n),
}


async def outcome(client, action, name):
    try:
        result = action(client, name)
        return plain(await result if inspect.isawaitable(result) else result)
    except Exception as error:
        return error


@pytest.mark.both_loops
@pytest.mark.parametrize("what", READS)
async def test_reads_answer_the_same(server, collection, what):
    async with pair(server) as (theirs, ours):
        expected = await outcome(theirs, READS[what], collection)
        if isinstance(expected, AttributeError):
            pytest.skip(f"this pymilvus has no {what}")
        assert await outcome(ours, READS[what], collection) == expected
        assert not isinstance(expected, Exception), expected


@pytest.mark.parametrize("what", MISTAKES)
async def test_mistakes_fail_the_same(server, collection, what):
    """Type, code and message; and nothing is tried twice or taken for the server's fault."""
    async with pair(server) as (theirs, ours):
        expected = await outcome(theirs, MISTAKES[what], collection)
        if isinstance(expected, AttributeError):
            pytest.skip("this pymilvus has no such method")
        heard = []
        ours.subscribe(heard.append)
        got = await outcome(ours, MISTAKES[what], collection)
        assert type(got) is type(expected), (got, expected)
        if isinstance(expected, Exception):
            assert comparable(got) == comparable(expected)
        else:
            assert got == expected
        assert [e.attempts for e in heard if type(e).__name__ == "CallFinished" and e.attempts > 1] == []
        assert ours.fleet.endpoints[0].state == "up"


def comparable(error):
    if isinstance(error, grpc.RpcError):
        return error.code(), error.details()
    code = getattr(error, "code", None)
    return code, re.sub(r"(client_request_id|request_id|time|\d{4}-\d\d-\d\d)[^,}\]]*", "", str(error))


@pytest.mark.both_loops
async def test_writes_and_ddl_do_the_same(server):
    """The same life of a collection, told by both clients on two names."""

    async def life(client, name):
        told = []

        async def note(what):
            told.append(plain(await what))

        await note(client.create_collection(name, schema=schema(client)))
        try:
            await client.create_index(name, indexes(client))
        except grpc.aio.AioRpcError as error:
            # pymilvus waits for the index by AllocTimestamp, which milvus-lite does not have.
            told.append(("created", error.code(), error.details()))
        await note(client.load_collection(name))
        await note(client.insert(name, rows()))
        await note(client.upsert(name, [{**rows(1)[0], "text": "changed"}]))
        await note(client.get(name, ids=[0], output_fields=["text"]))
        await note(client.delete(name, ids=[1, 2]))
        await note(client.delete(name, filter="n == 6"))
        await note(client.query(name, filter="id >= 0", output_fields=["id"], limit=100))
        await note(client.create_partition(name, "p1"))
        await note(client.insert(name, [{**rows(1)[0], "id": 500}], partition_name="p1"))
        await note(client.query(name, filter="id >= 0", output_fields=["id"], partition_names=["p1"]))
        await note(client.list_partitions(name))
        await note(client.create_alias(name, f"{name}_alias"))
        await note(client.search(f"{name}_alias", data=[Q], limit=3, anns_field="v"))
        await note(client.drop_alias(f"{name}_alias"))
        await note(client.flush(name))
        await note(client.release_collection(name))
        try:
            await client.search(name, data=[Q], limit=3, anns_field="v")
        except MilvusException as error:
            told.append(("released", error.code))
        await note(client.load_collection(name))
        await note(client.search(name, data=[Q], limit=3, anns_field="v"))
        await note(client.has_partition(name, "p1"))
        await note(client.rename_collection(name, f"{name}_new"))
        await note(client.drop_collection(f"{name}_new"))
        await note(client.has_collection(f"{name}_new"))
        return str(told).replace(name, "NAME")

    async with pair(server) as (theirs, ours):
        number = random.randrange(10**9)
        assert await life(ours, f"ours{number}") == await life(theirs, f"theirs{number}")


async def test_databases(server):
    async with pair(server) as (theirs, ours):
        name = f"db{random.randrange(10**9)}"
        await ours.create_database(name)
        assert name in await theirs.list_databases()
        async with AsyncMilvusClient(server.uri, db_name=name) as inside:
            own = inside.create_schema(auto_id=False)
            own.add_field("id", DataType.INT64, is_primary=True)
            own.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
            await inside.create_collection("only_here", schema=own)
            assert await inside.list_collections() == ["only_here"]
            assert "only_here" not in await ours.list_collections()
            await inside.insert("only_here", [{"id": 1, "vector": [1.0, 0, 0, 0]}])
            assert (await inside.query("only_here", filter="id == 1", output_fields=["id"]))[0]["id"] == 1
            await inside.drop_collection("only_here")
        await ours.drop_database(name)
        assert name not in await theirs.list_databases()


async def test_pymilvus_own_helpers_work(server, collection):
    """What LangChain, LlamaIndex and Haystack do with a client: its alias, its connection, the ORM."""
    async with AsyncMilvusClient(server.uri) as client:
        assert isinstance(client._using, str)
        connection = client._get_connection()
        if inspect.isawaitable(connection):
            connection = await connection
        assert connection is client._handler
        from pymilvus import connections

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert connections.has_connection(client._using)
        handler = connections._fetch_handler(client._using)
        assert handler is client._handler
    assert client._using not in connections._alias_handlers
    assert client._using not in connections._alias_config


async def test_positional_construction(server):
    client = AsyncMilvusClient(server.uri, "", "", "default", "", 5)
    try:
        assert isinstance(await client.list_collections(), list)
    finally:
        await client.close()


async def test_the_errors_of_our_own_are_milvus_exceptions():
    client = AsyncMilvusClient("http://127.0.0.1:9", config=None)
    try:
        with pytest.raises(MilvusException) as caught:
            await client.list_collections(timeout=2)
        assert isinstance(caught.value, haclient.Unavailable)
        assert "127.0.0.1:9" in str(caught.value)
        assert "refused" in str(caught.value)
    finally:
        await client.close()
