"""The same programs run by pymilvus' sync and async clients and its ORM, and what they were answered.

Milvus can be asked by all of them at the same time, each with names of its own, since most of what the programs take
is Milvus' own waiting.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pymilvus
from pymilvus import AnnSearchRequest, Collection, MilvusException, RRFRanker, connections, db, utility

from tests.live.test_dropin import MISTAKES, READS, index_of, plain, rows_of, schema_of
from tests.servers import fill

Do = Callable[[Any], Awaitable[Any]]
Answers = dict[str, Any]
#: Nearest to row 4 of `rows_of`, with no two rows equally far away.
QUERY = [4.2, 1.0, 0.0, -4.2]


class InThreads:
    """A blocking client whose methods are awaited; each runs in a thread."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name in ("create_schema", "prepare_index_params"):
            return method
        return functools.partial(asyncio.to_thread, method)


@asynccontextmanager
async def client_of(surface: str, uri: str, **options: Any) -> AsyncIterator[Any]:
    """pymilvus' client, sync or async."""
    if surface == "sync":
        client = InThreads(await asyncio.to_thread(pymilvus.MilvusClient, uri, dedicated=True, **options))
    else:
        client = pymilvus.AsyncMilvusClient(uri, **options)
    try:
        yield client
    finally:
        await client.close()


async def told(do: Awaitable[Any]) -> Any:
    """What came of it: the answer, or the error's type, code and text."""
    try:
        return plain(await do)
    except MilvusException as error:
        return type(error).__name__, error.code, error.compatible_code, _words(error.message)
    except grpc.RpcError as error:
        return type(error).__name__, error.code(), _words(error.details())
    except Exception as error:
        return type(error).__name__, _words(str(error))


def _words(text: str) -> str:
    """Milvus puts addresses, times and ids into some texts: the text but for the numbers in it."""
    return "".join(each for each in text if not each.isdigit())


async def story(client: Any, steps: Mapping[str, Do]) -> Answers:
    """What each step answered. Milvus lists names in any order."""
    answers = {name: await told(do(client)) for name, do in steps.items()}
    names = {step for step, got in answers.items() if isinstance(got, list) and all(isinstance(n, str) for n in got)}
    return {step: sorted(got) if step in names else got for step, got in answers.items()}


def differing(ours: Answers, theirs: Answers) -> str:
    """The steps that were answered differently, one a line; by surface and step."""

    def written(surface: Answers) -> dict[str, str]:
        return {step: json.dumps(answer, default=str, sort_keys=True) for step, answer in surface.items()}

    lines = []
    for surface in theirs:
        got, wanted = written(ours[surface]), written(theirs[surface])
        lines += [
            f"{surface}: {step}: {got[step]} instead of {wanted[step]}" for step in wanted if got[step] != wanted[step]
        ]
    return "\n".join(lines)


def pages(client: Any, kind: str, collection: str = fill.COLLECTION, **arguments: Any) -> list[list[int]]:
    """The keys on each page of an iterator; blocking."""
    if kind == "query":
        iterator = client.query_iterator(collection, batch_size=70, output_fields=["id"], **arguments)
    else:
        iterator = client.search_iterator(collection, data=[fill.vector(3)], batch_size=70, limit=180, **arguments)
    got = []
    while page := iterator.next():
        got.append([row["id"] for row in page])
    iterator.close()
    return got


async def rounds(client: Any, kind: str) -> list[list[int]]:
    """`pages` of either client."""
    if isinstance(client, InThreads):
        return await asyncio.to_thread(pages, client.client, kind)
    iterator = await getattr(client, f"{kind}_iterator")(
        fill.COLLECTION,
        batch_size=70,
        **({"output_fields": ["id"]} if kind == "query" else {"data": [fill.vector(3)], "limit": 180}),
    )
    got = []
    while page := await iterator.next():
        got.append([row["id"] for row in page])
    return got


MORE: dict[str, Do] = {
    "query iterator": lambda c: rounds(c, "query"),
    "search iterator": lambda c: rounds(c, "search"),
    "hybrid": lambda c: c.hybrid_search(
        fill.COLLECTION,
        [AnnSearchRequest([fill.vector(n)], "vector", {}, 9) for n in (1, 2)],
        RRFRanker(),
        limit=5,
        output_fields=["text"],
    ),
    "wrong dimension in an insert": lambda c: c.insert(fill.COLLECTION, [{**fill.row(1), "vector": [0.5]}]),
    "unknown database": lambda c: c.list_collections(db_name="nothing"),
    "duplicate": lambda c: c.create_collection(fill.COLLECTION, dimension=4),
    "unknown alias": lambda c: c.describe_alias("nothing"),
    "unknown user": lambda c: c.describe_user("nothing"),
}


def life(name: str) -> dict[str, Do]:
    """A collection's life from create to drop, with an alias, a partition, a database, a user and a role of its own."""

    async def own(names: Awaitable[list[str]]) -> list[str]:
        return [each for each in await names if each.startswith(name)]

    return {
        "create": lambda c: c.create_collection(name, schema=schema_of(c), consistency_level="Strong"),
        "describe": lambda c: c.describe_collection(name),
        "insert": lambda c: c.insert(name, rows_of(0, 30)),
        "insert nothing": lambda c: c.insert(name, []),
        "upsert": lambda c: c.upsert(name, rows_of(25, 10)),
        "flush": lambda c: c.flush(name),
        "search not loaded": lambda c: c.search(name, data=[QUERY], limit=1, timeout=5),
        "create index": lambda c: c.create_index(name, index_of(c)),
        "describe index": lambda c: c.describe_index(name, "vector"),
        "load": lambda c: c.load_collection(name),
        "load state": lambda c: c.get_load_state(name),
        "count": lambda c: c.query(name, output_fields=["count(*)"]),
        "search": lambda c: c.search(name, data=[QUERY], limit=3, output_fields=["*"]),
        "query json": lambda c: c.query(name, filter='facts["n"] < 3', output_fields=["facts", "extra", "tags"]),
        "delete ids": lambda c: c.delete(name, ids=[1, 2]),
        "delete filter": lambda c: c.delete(name, filter='kind == "odd"'),
        "count after delete": lambda c: c.query(name, output_fields=["count(*)"]),
        "stats": lambda c: c.get_collection_stats(name),
        "partition": lambda c: c.create_partition(name, "p"),
        "insert into partition": lambda c: c.insert(name, rows_of(100, 5), partition_name="p"),
        "query partition": lambda c: c.query(name, filter="id >= 100", partition_names=["p"], output_fields=["kind"]),
        "list partitions": lambda c: c.list_partitions(name),
        "release partition": lambda c: c.release_partitions(name, ["p"]),
        "drop partition": lambda c: c.drop_partition(name, "p"),
        "alias": lambda c: c.create_alias(name, f"{name}_too"),
        "search alias": lambda c: c.search(f"{name}_too", data=[QUERY], limit=1),
        "describe alias": lambda c: c.describe_alias(f"{name}_too"),
        "drop alias": lambda c: c.drop_alias(f"{name}_too"),
        "release": lambda c: c.release_collection(name),
        "search released": lambda c: c.search(name, data=[QUERY], limit=1),
        "query released": lambda c: c.query(name, filter="id > 0"),
        "drop index": lambda c: c.drop_index(name, "vector"),
        "rename": lambda c: c.rename_collection(name, f"{name}_new"),
        "create database": lambda c: c.create_database(f"{name}_db"),
        "list databases": lambda c: own(c.list_databases()),
        "drop database": lambda c: c.drop_database(f"{name}_db"),
        "create user": lambda c: c.create_user(name, "Secret123"),
        "create user again": lambda c: c.create_user(name, "Secret123"),
        "create role": lambda c: c.create_role(name),
        "create role again": lambda c: c.create_role(name),
        "grant privilege": lambda c: c.grant_privilege(name, "Collection", "Search", "*"),
        "describe role": lambda c: c.describe_role(name),
        "grant role": lambda c: c.grant_role(name, name),
        "describe user": lambda c: c.describe_user(name),
        "list users": lambda c: own(c.list_users()),
        "revoke privilege": lambda c: c.revoke_privilege(name, "Collection", "Search", "*"),
        "revoke role": lambda c: c.revoke_role(name, name),
        "drop role": lambda c: c.drop_role(name),
        "drop role again": lambda c: c.drop_role(name),
        "drop user": lambda c: c.drop_user(name),
        "drop": lambda c: c.drop_collection(f"{name}_new"),
        "drop again": lambda c: c.drop_collection(f"{name}_new"),
        "gone": lambda c: c.has_collection(f"{name}_new"),
    }


def orm_life(name: str, alias: str) -> dict[str, Callable[[], Any]]:
    """The same through the ORM, whose methods block."""
    collection = Collection(name, schema_of(pymilvus.MilvusClient), using=alias, consistency_level="Strong")
    rows = rows_of(0, 40)

    def search(query: list[float], field: str = "vector") -> list[Any]:
        hits = collection.search([query], field, {"metric_type": "L2"}, 4, output_fields=["kind"])[0]
        return [(hit.id, hit.distance, hit.entity.get("kind")) for hit in hits]

    return {
        "insert": lambda: collection.insert(rows).primary_keys,
        "upsert": lambda: collection.upsert(rows[:5]).primary_keys,
        "flush": collection.flush,
        "index": lambda: collection.create_index("vector", {"index_type": "FLAT", "metric_type": "L2"}),
        "indexes": lambda: [each.params for each in collection.indexes],
        "load": collection.load,
        "search": lambda: search(QUERY),
        "search wrongly": lambda: search([1.0]),
        "search nowhere": lambda: search(QUERY, "nothing"),
        "query": lambda: collection.query("id in [7, 8]", output_fields=["facts", "tags"]),
        "query wrongly": lambda: collection.query("id >>> 7"),
        "delete": lambda: collection.delete("id in [7]").delete_count,
        "entities": lambda: len(collection.query("id >= 0")),
        "page": lambda: [row["id"] for row in collection.query_iterator(batch_size=30, expr="id > 3").next()],
        "partition": lambda: collection.create_partition("p").name,
        "partitions": lambda: sorted(each.name for each in collection.partitions),
        "alias": lambda: utility.create_alias(name, f"{name}_too", using=alias),
        "aliases": lambda: utility.list_aliases(name, using=alias),
        "alias gone": lambda: utility.drop_alias(f"{name}_too", using=alias),
        "progress": lambda: utility.loading_progress(name, using=alias),
        "has": lambda: utility.has_collection(name, using=alias),
        "default database": lambda: "default" in db.list_database(using=alias),
        "unknown": lambda: utility.drop_collection("nothing", using=alias),
        "release": collection.release,
        "drop": collection.drop,
        "gone": lambda: utility.has_collection(name, using=alias),
    }


async def reads(uri: str) -> Answers:
    """What both clients answer to reads and to mistakes of all kinds."""

    async def one(surface: str) -> Answers:
        async with client_of(surface, uri) as client:
            return await story(client, {**READS, **MISTAKES, **MORE})

    return dict(zip(("sync", "async"), await asyncio.gather(one("sync"), one("async")), strict=True))


async def lives(uri: str, mark: str, *, in_turn: bool = False) -> Answers:
    """What all three are answered in a collection's life from create to drop.

    Args:
        uri: Where.
        mark: Makes the names.
        in_turn: One after the other: milvus-lite trips over its own files when several change its catalogue.
    """

    async def one(surface: str) -> Answers:
        # Milvus wants to know whose a privilege is, whether or not it checks who that is.
        async with client_of(surface, uri, token="root:Milvus") as client:
            return await story(client, life(f"{mark}_{surface}"))

    async def orm() -> Answers:
        alias = f"{mark}_orm"
        await asyncio.to_thread(connections.connect, alias, uri=uri)
        try:
            steps = await asyncio.to_thread(orm_life, alias, alias)
            return await story(None, {name: lambda _, do=do: asyncio.to_thread(do) for name, do in steps.items()})
        finally:
            await asyncio.to_thread(connections.disconnect, alias)

    programs = [one("sync"), one("async"), orm()]
    answers = [await program for program in programs] if in_turn else await asyncio.gather(*programs)
    plainly = json.dumps(dict(zip(("sync", "async", "orm"), answers, strict=True)), default=str)
    return json.loads(plainly.replace(mark, "MARK"))
