"""The drop-in beside pymilvus' own AsyncMilvusClient on real Milvus 2.3.5: the same answers, the same errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pymilvus
import pytest
from pymilvus import DataType, MilvusException

from haclient import AsyncMilvusClient
from haclient.events import AttemptFinished, CallFinished
from tests.live.steady_load import opened, until_up
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus
from tests.servers.shared import ROWS, StandalonePair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Do = Callable[[Any], Awaitable[Any]]
NAME = "dropin"
VECTOR = fill.vector(3)


def plain(value: Any) -> Any:
    """What an answer says, without what differs from call to call."""
    if isinstance(value, dict):
        volatile = ("cost", "timestamp", "created_timestamp", "update_timestamp", "collection_id", "segmentID")
        return {str(k): plain(v) for k, v in value.items() if k not in volatile}
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, list | tuple | set) or hasattr(value, "__iter__"):
        return [plain(each) for each in value]
    return repr(value) if "object at" not in repr(value) else str(type(value))


async def outcome(do: Do, client: Any) -> tuple[str, Any]:
    """What came of it: the answer, or the error's code and text."""
    try:
        return "answer", plain(await do(client))
    except MilvusException as error:
        return "error", (error.code, error.message)
    except grpc.RpcError as error:
        return "rpc error", error.code()
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.fixture
async def both(standalone_pair: StandalonePair) -> AsyncIterator[tuple[AsyncMilvusClient, Any]]:
    """The drop-in and pymilvus' own client on the same server."""
    own = pymilvus.AsyncMilvusClient(standalone_pair.a.uri)
    async with opened(standalone_pair.a.uri) as (client, _):
        yield client, own
    await own.close()


def schema_of(client: Any) -> Any:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("kind", DataType.VARCHAR, max_length=20)
    schema.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4, max_length=20)
    schema.add_field("facts", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=4)
    return schema


def rows_of(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": key,
            "kind": "even" if key % 2 == 0 else "odd",
            "tags": ["a", "b"],
            "facts": {"n": key, "deep": [1, {"x": None}]},
            "vector": [float(key), 1.0, 0.0, float(-key)],
            "extra": key * 2,
        }
        for key in range(start, start + count)
    ]


def index_of(client: Any) -> Any:
    params = client.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="L2")
    return params


READS: dict[str, Do] = {
    "list_collections": lambda c: c.list_collections(),
    "has_collection": lambda c: c.has_collection(fill.COLLECTION),
    "has no collection": lambda c: c.has_collection("nothing"),
    "describe_collection": lambda c: c.describe_collection(fill.COLLECTION),
    "list_partitions": lambda c: c.list_partitions(fill.COLLECTION),
    "has_partition": lambda c: c.has_partition(fill.COLLECTION, "_default"),
    "partition stats": lambda c: c.get_partition_stats(fill.COLLECTION, "_default"),
    "collection stats": lambda c: c.get_collection_stats(fill.COLLECTION),
    "load state": lambda c: c.get_load_state(fill.COLLECTION),
    "list_indexes": lambda c: c.list_indexes(fill.COLLECTION),
    "describe_index": lambda c: c.describe_index(fill.COLLECTION, "vector"),
    "list_aliases": lambda c: c.list_aliases(fill.COLLECTION),
    "list_databases": lambda c: c.list_databases(),
    "list_users": lambda c: c.list_users(),
    "list_roles": lambda c: c.list_roles(),
    "list_resource_groups": lambda c: c.list_resource_groups(),
    "describe_replica": lambda c: c.describe_replica(fill.COLLECTION),
    "get_server_version": lambda c: c.get_server_version(),
    "search": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=5, output_fields=["text"]),
    "search many": lambda c: c.search(fill.COLLECTION, data=[fill.vector(k) for k in range(20)], limit=3),
    "search filtered": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=5, filter="id > 100"),
    "search strong": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=1, consistency_level="Strong"),
    "search range": lambda c: c.search(
        fill.COLLECTION, data=[VECTOR], limit=9, search_params={"params": {"radius": 0.3, "range_filter": 1.0}}
    ),
    "search nothing": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=1, filter="id < 0"),
    "search grouped": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=3, group_by_field="text"),
    "query": lambda c: c.query(fill.COLLECTION, filter="id in [1, 2, 3]", output_fields=["*"]),
    "query ids": lambda c: c.query(fill.COLLECTION, ids=[4, 5], output_fields=["text"]),
    "count": lambda c: c.query(fill.COLLECTION, output_fields=["count(*)"]),
    "query paged": lambda c: c.query(fill.COLLECTION, filter="id >= 0", limit=5, offset=7, output_fields=["id"]),
    "get": lambda c: c.get(fill.COLLECTION, ids=[7, 8]),
    "get nothing": lambda c: c.get(fill.COLLECTION, ids=[-1]),
}

MISTAKES: dict[str, Do] = {
    "search no collection": lambda c: c.search("nothing", data=[VECTOR], limit=1),
    "query no collection": lambda c: c.query("nothing", filter="id > 0"),
    "describe no collection": lambda c: c.describe_collection("nothing"),
    "wrong dimension": lambda c: c.search(fill.COLLECTION, data=[[1.0, 2.0]], limit=1),
    "wrong metric": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=1, search_params={"metric_type": "L2"}),
    "limit too large": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=20_000),
    "limit of zero": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=0),
    "no such field": lambda c: c.query(fill.COLLECTION, filter="nothing > 1"),
    "no such output field": lambda c: c.query(fill.COLLECTION, filter="id > 1", output_fields=["nothing"]),
    "bad filter": lambda c: c.query(fill.COLLECTION, filter="id >>> 1"),
    "no such vector field": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=1, anns_field="nothing"),
    "no such partition": lambda c: c.search(fill.COLLECTION, data=[VECTOR], limit=1, partition_names=["nothing"]),
    "missing field": lambda c: c.insert(fill.COLLECTION, [{"id": 1}]),
    "wrong type": lambda c: c.insert(fill.COLLECTION, [{"id": "one", "text": "x", "vector": VECTOR}]),
    "load no collection": lambda c: c.load_collection("nothing"),
    "describe_database": lambda c: c.describe_database("default"),
    "use_database": lambda c: c.use_database("default"),
    "no such role": lambda c: c.describe_role("nothing"),
    "run_analyzer": lambda c: c.run_analyzer(["text"]),
}


def alike(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    if one[0] == other[0] == "error":
        # Milvus puts addresses, times and request ids into some texts: the same text but for the numbers in it.
        return one[1][0] == other[1][0] and _words(one[1][1]) == _words(other[1][1])
    return _canonical(one[1]) == _canonical(other[1]) and one[0] == other[0]


def _canonical(answer: Any) -> str:
    if isinstance(answer, list) and all(isinstance(name, str) for name in answer):
        answer = sorted(answer)  # Milvus lists names in any order
    return json.dumps(answer, default=str, sort_keys=True)


def _words(text: str) -> str:
    return "".join(each for each in text if not each.isdigit())


@pytest.mark.live
class TestBesidePymilvus:
    """Everything 2.3.5 can do, through both clients."""

    async def test_reads(self, both: tuple[Any, Any]) -> None:
        """Reads of all kinds give equal answers, and equal errors where 2.3.5 cannot do them."""
        differing = []
        for name, do in READS.items():
            ours, theirs = await outcome(do, both[0]), await outcome(do, both[1])
            if not alike(ours, theirs):
                differing.append((name, ours, theirs))
        assert not differing, "\n".join(map(str, differing))

    async def test_mistakes(self, both: tuple[Any, Any]) -> None:
        """A user's mistake gives the same error: type, code and text."""
        differing = []
        for name, do in MISTAKES.items():
            ours, theirs = await outcome(do, both[0]), await outcome(do, both[1])
            assert ours[0] != "answer", (name, ours)
            if not alike(ours, theirs):
                differing.append((name, ours, theirs))
        assert not differing, "\n".join(map(str, differing))

    async def test_mistakes_trip_nothing(self, standalone_pair: StandalonePair) -> None:
        """Mistakes are told at once and once: no retries, no endpoint taken out."""
        async with opened(standalone_pair.a.uri) as (client, watch):
            await until_up(client, standalone_pair.a.address)
            for do in MISTAKES.values():
                mark = watch.mark()
                await outcome(do, client)
                assert all(call.attempts == 1 for call in watch.of(CallFinished, after_number=mark))
                assert client.fleet.endpoints[0].state == "up"

    async def test_life_of_a_collection(self, both: tuple[Any, Any]) -> None:
        """The same program from create to drop, run by each in turn, gives equal answers at every step."""
        assert await program(both[0]) == await program(both[1])

    async def test_read_your_writes(self, both: tuple[Any, Any]) -> None:
        """With Session consistency each client sees what it has just written."""
        for client in both:
            await client.create_collection(NAME, schema=schema_of(client), index_params=index_of(client))
            for key in range(20):
                await client.insert(NAME, rows_of(key, 1))
                found = await client.query(NAME, filter=f"id == {key}", consistency_level="Session")
                assert [row["id"] for row in found] == [key]
            await client.drop_collection(NAME)


async def program(client: Any) -> list[tuple[str, Any]]:
    """A collection's life; what each step answered."""
    steps: dict[str, Do] = {
        "create": lambda c: c.create_collection(NAME, schema=schema_of(c), consistency_level="Strong"),
        "create again": lambda c: c.create_collection(NAME, schema=schema_of(c), consistency_level="Strong"),
        "describe": lambda c: c.describe_collection(NAME),
        "insert": lambda c: c.insert(NAME, rows_of(0, 30)),
        "insert nothing": lambda c: c.insert(NAME, []),
        "upsert": lambda c: c.upsert(NAME, rows_of(25, 10)),
        "flush": lambda c: c.flush(NAME),
        "search not loaded": lambda c: c.search(NAME, data=[[1.0, 1.0, 0.0, -1.0]], limit=1, timeout=5),
        "create_index": lambda c: c.create_index(NAME, index_of(c)),
        "list_indexes": lambda c: c.list_indexes(NAME),
        "describe_index": lambda c: c.describe_index(NAME, "vector"),
        "load": lambda c: c.load_collection(NAME),
        "load state": lambda c: c.get_load_state(NAME),
        "count": lambda c: c.query(NAME, output_fields=["count(*)"]),
        "search": lambda c: c.search(NAME, data=[[3.0, 1.0, 0.0, -3.0]], limit=3, output_fields=["*"]),
        "query json": lambda c: c.query(NAME, filter='facts["n"] < 3', output_fields=["facts", "extra", "tags"]),
        "query array": lambda c: c.query(NAME, filter='array_contains(tags, "a") and id < 2'),
        "delete ids": lambda c: c.delete(NAME, ids=[1, 2]),
        "delete filter": lambda c: c.delete(NAME, filter='kind == "odd"'),
        "count after delete": lambda c: c.query(NAME, output_fields=["count(*)"]),
        "partition": lambda c: c.create_partition(NAME, "p"),
        "insert into partition": lambda c: c.insert(NAME, rows_of(100, 5), partition_name="p"),
        "query partition": lambda c: c.query(NAME, filter="id >= 100", partition_names=["p"], output_fields=["kind"]),
        "alias": lambda c: c.create_alias(NAME, "other_name"),
        "search alias": lambda c: c.search("other_name", data=[[100.0, 1.0, 0.0, -100.0]], limit=1),
        "describe alias": lambda c: c.describe_alias("other_name"),
        "drop alias": lambda c: c.drop_alias("other_name"),
        "release partition": lambda c: c.release_partitions(NAME, ["p"]),
        "drop partition": lambda c: c.drop_partition(NAME, "p"),
        "refresh": lambda c: c.refresh_load(NAME),
        "rename": lambda c: c.rename_collection(NAME, NAME + "_new"),
        "rename back": lambda c: c.rename_collection(NAME + "_new", NAME),
        "release": lambda c: c.release_collection(NAME),
        "drop index": lambda c: c.drop_index(NAME, "vector"),
        "create db": lambda c: c.create_database("dropin_db"),
        "drop db": lambda c: c.drop_database("dropin_db"),
        "create user": lambda c: c.create_user("dropin", "Secret123"),
        "create role": lambda c: c.create_role("dropin_role"),
        "create role again": lambda c: c.create_role("dropin_role"),
        "grant role": lambda c: c.grant_role("dropin", "dropin_role"),
        "describe user": lambda c: c.describe_user("dropin"),
        "revoke role": lambda c: c.revoke_role("dropin", "dropin_role"),
        "drop role": lambda c: c.drop_role("dropin_role"),
        "drop user": lambda c: c.drop_user("dropin"),
        "drop": lambda c: c.drop_collection(NAME),
        "drop again": lambda c: c.drop_collection(NAME),
        "gone": lambda c: c.has_collection(NAME),
    }
    story = []
    for name, do in steps.items():
        kind, value = await outcome(do, client)
        if name == "search not loaded":
            value = value[0]  # ours lists the attempts
        elif kind == "error":
            value = (value[0], _words(value[1]))
        story.append((name, kind, value))
    return story


@pytest.mark.cluster
async def test_session_through_two_proxies(distributed: DistributedMilvus) -> None:
    """Written through whichever proxy, read through whichever: a session reads its own writes."""
    async with opened(config={"cluster": [{"name": "one", "endpoints": distributed.uris}]}) as (client, watch):
        await until_up(client, *(proxy.address for proxy in distributed.proxies))
        await client.create_collection(NAME, schema=schema_of(client), index_params=index_of(client))
        try:
            for key in range(60):
                await client.upsert(NAME, rows_of(key, 1))
                found = await client.query(NAME, filter=f"id == {key}", consistency_level="Session")
                assert [row["id"] for row in found] == [key]
            used = {e.endpoint for e in watch.of(AttemptFinished, method="Query")}
            assert used == {proxy.address for proxy in distributed.proxies}
            await asyncio.gather(*(client.upsert(NAME, rows_of(k, 1)) for k in range(100, 130)))
            found = await client.query(NAME, filter="id >= 100", consistency_level="Session", output_fields=["id"])
            assert len(found) == 30
            assert await client.query(fill.COLLECTION, output_fields=["count(*)"]) == [{"count(*)": ROWS}]
        finally:
            await client.drop_collection(NAME)
