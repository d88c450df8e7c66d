"""The drop-in under the pymilvus versions that other libraries bring, each in an environment of its own."""

import asyncio
import json
import subprocess
import textwrap

import pytest

from haclient.drill.servers.lite import LiteServer
from tests import environments
from tests.environments import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: The newest release of each line; 2.5 still needs setuptools' pkg_resources.
VERSIONS = {
    "2.5": ["pymilvus>=2.5,<2.6", "setuptools<81"],
    "2.6": ["pymilvus>=2.6,<2.7"],
    "3.0": ["pymilvus>=3.0,<3.1"],
}

SMOKE = """
import asyncio, json, sys
import pymilvus
from pymilvus import DataType, MilvusClient, MilvusException
import haclient
from haclient import AsyncMilvusClient
from haclient.retrieval import Retriever

uri = sys.argv[1]
name = "c" + pymilvus.__version__.replace(".", "_")
plain = MilvusClient(uri)
schema = MilvusClient.create_schema(auto_id=False)
schema.add_field("id", DataType.INT64, is_primary=True)
schema.add_field("v", DataType.FLOAT_VECTOR, dim=4)
plain.create_collection(name, schema=schema)
index = plain.prepare_index_params()
index.add_index("v", index_type="FLAT", metric_type="L2")
plain.create_index(name, index)
plain.load_collection(name)

def error(e):
    return [isinstance(e, MilvusException), getattr(e, "code", None), type(e).__name__]

async def main():
    told = {}
    client = AsyncMilvusClient(uri, "", "", "", "", 5)
    await client.insert(name, [{"id": i, "v": [float(i), 0, 0, 1]} for i in range(10)])
    hits = await client.search(name, data=[[3.1, 0, 0, 1]], limit=2, anns_field="v")
    told["search"] = [hit["id"] for hit in hits[0]]
    told["query"] = [row["id"] for row in await client.query(name, filter="id in [1, 2]", output_fields=["id"])]
    told["get"] = [row["id"] for row in await client.get(name, ids=[5], output_fields=["id"])]
    [found] = await Retriever(client, name, text_field="id").retrieve([3.0, 0, 0, 1], 1)
    told["retrieved"] = [found.id, found.text, found.score]
    await client.upsert(name, [{"id": 3, "v": [9.0, 9, 9, 9]}])
    await client.delete(name, ids=[4])
    told["left"] = len(await client.query(name, filter="id >= 0", output_fields=["id"], limit=100))
    try:
        await client.search("nosuch", data=[[0.0] * 4], limit=1)
    except MilvusException as e:
        told["unknown"] = error(e)
    connection = client._get_connection()
    if asyncio.iscoroutine(connection):
        connection = await connection
    told["connection"] = connection is client._handler and isinstance(client._using, str)
    await client.close()
    try:
        await client.query(name, filter="id in [1]")
    except MilvusException as e:
        told["closed"] = "closed" in str(e)
    dead = AsyncMilvusClient(["http://127.0.0.1:9", "http://127.0.0.1:10"])
    try:
        await dead.query(name, filter="id in [1]", timeout=3)
    except MilvusException as e:
        told["dead"] = error(e)[0::2] + [len(e.attempts)]
    try:
        await dead.drop_collection(name, timeout=3)
    except MilvusException as e:
        told["write to several"] = error(e)[0::2]
    await dead.close()
    told["tasks"] = len(asyncio.all_tasks())
    return told

print(json.dumps(asyncio.run(main())))
"""

SYNC = """
import json, sys, warnings
import pymilvus
from concurrent.futures import ThreadPoolExecutor
from pymilvus import MilvusException
from haclient import MilvusClient

uri = sys.argv[1]
name = "s" + pymilvus.__version__.replace(".", "_")
V = [3.1, 0, 0, 1]

def rows(pages):
    got = []
    while page := pages.next():
        got += [row["id"] for row in page]
    pages.close()
    return got

def use(client):
    told = {}
    client.create_collection(name, dimension=4, metric_type="L2")
    client.insert(name, [{"id": i, "vector": [float(i), 0, 0, 1]} for i in range(20)])
    client.upsert(name, [{"id": 3, "vector": [9.0, 9, 9, 9]}])
    client.delete(name, ids=[4])
    told["search"] = [hit["id"] for hit in client.search(name, data=[V], limit=3)[0]]
    told["query"] = [row["id"] for row in client.query(name, filter="id in [1, 2]", output_fields=["id"])]
    told["get"] = [row["id"] for row in client.get(name, ids=[5], output_fields=["id"])]
    told["count"] = client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"]
    told["query iterator"] = rows(client.query_iterator(name, batch_size=6, filter="id >= 0", output_fields=["id"]))
    told["search iterator"] = rows(client.search_iterator(name, data=[V], batch_size=6, limit=15))
    told["background"] = client._get_connection().delete(name, "id in [19]", _async=True).result().delete_count
    with ThreadPoolExecutor(8) as pool:
        told["threads"] = sum(pool.map(lambda _: len(client.search(name, data=[V], limit=2)[0]), range(40)))
    client.create_database(name)
    try:
        client.use_database(name)  # newer ones ask first whether it exists, which milvus-lite cannot answer
        told["other database"] = client.list_collections()
        client.use_database("default")
    except Exception:
        told["other database"] = "unknown"
    client.drop_database(name)
    try:
        client.search("nosuch", data=[V], limit=1)
    except MilvusException as e:
        told["unknown"] = [type(e).__name__, e.code]
    return told

def orm(client):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collection = pymilvus.Collection(name, using=client._using)
        hits = collection.search([V], "vector", {"metric_type": "L2"}, limit=7)
        return [len(hits[0]), len(collection.indexes), pymilvus.connections.has_connection(client._using)]

plain = pymilvus.MilvusClient(uri)
theirs = use(plain)
plain.drop_collection(name)
ours = MilvusClient(uri, "", "", "", "", 5)
told = {"differs": {key: (value, theirs[key]) for key, value in use(ours).items() if value != theirs[key]}}
told["steps"] = len(theirs)
told["orm"] = orm(ours)
told["connection"] = ours._get_connection() is ours._handler
ours.close()
try:
    ours.query(name, filter="id in [1]")
except MilvusException as e:
    told["closed"] = "closed" in str(e)
with MilvusClient(["http://127.0.0.1:9", "http://127.0.0.1:10"]) as dead:
    for what, call in (("read", dead.has_collection), ("write", dead.drop_collection)):
        try:
            call(name, timeout=3)
        except MilvusException as e:
            told[what] = type(e).__name__
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    lite = LiteServer(tmp_path_factory.mktemp("lite"))
    asyncio.run(lite.start())
    yield lite
    asyncio.run(lite.close())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return environments.folder(tmp_path_factory)


def python_with(folder, version):
    return environment(folder / f"pymilvus-{version}", VERSIONS[version])


def run(python, text, *args):
    return subprocess.run(
        [str(python), "-c", textwrap.dedent(text), *args], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_smoke(folder, server, version):
    python = python_with(folder, version)
    done = run(python, SMOKE, server.uri)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("unknown")[:2] == [True, 100]
    assert told.pop("dead")[:2] == [True, "Unavailable"]
    assert told == {
        "search": [3, 4],
        "query": [1, 2],
        "get": [5],
        "retrieved": [3, "3", 0.0],
        "left": 9,
        "connection": True,
        "closed": True,
        "write to several": [True, "WriteRefused"],
        "tasks": 1,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_sync_client_does_as_pymilvus_own(folder, server, version):
    python = python_with(folder, version)
    done = run(python, SYNC, server.uri)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "differs": {},
        "steps": 10,
        "orm": [7, 1, True],
        "connection": True,
        "closed": True,
        "read": "Unavailable",
        "write": "WriteRefused",
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_pymilvus_retries_nothing(folder, version):
    """Neither a transport error nor "rate limit exceeded" is tried 75 times, or even twice."""
    python = python_with(folder, version)
    done = run(
        python,
        """
        import asyncio, json
        import grpc
        from pymilvus.grpc_gen import common_pb2, milvus_pb2
        from haclient.blocking import make_blocking_handler
        from haclient.call import Reply
        from haclient.portal import portal
        from haclient.seam import make_handler

        CALLS = {
            "drop_collection": ("docs",), "has_collection": ("docs",), "describe_collection": ("docs",),
            "list_collections": (), "load_collection": ("docs",), "release_collection": ("docs",),
            "get_collection_stats": ("docs",), "create_partition": ("docs", "p"), "drop_partition": ("docs", "p"),
            "create_alias": ("docs", "a"), "drop_alias": ("a",), "delete": ("docs", "id in [1]"),
            "query": ("docs", "id in [1]"),
        }
        LIMITED = Reply(common_pb2.Status(code=8, error_code=49, reason="rate limit exceeded").SerializeToString())
        STATUS = common_pb2.Status.FromString(LIMITED.message)
        LIMITED_1 = Reply(milvus_pb2.BoolResponse(status=STATUS).SerializeToString())
        IS_STATUS = ("drop_collection", "load_collection", "release_collection", "create_partition", "drop_partition",
                     "create_alias", "drop_alias")

        async def main():
            told = {}
            for name, args in CALLS.items():
                for limited in (False, True):
                    seen = []

                    async def request(method, message, metadata, timeout_s):
                        seen.append(method.name)
                        if limited:
                            return LIMITED if name in IS_STATUS else LIMITED_1
                        return Reply(b"", 14, "down")

                    def submit(*call):
                        return portal().submit(request(*call))

                    blocking = make_blocking_handler(submit, "somewhere", "")
                    work = asyncio.to_thread(getattr(blocking, name), *args)
                    told[f"blocking {name} {limited}"] = await once(work, seen)
                    seen.clear()
                    handler = make_handler(request, "somewhere", "")
                    if hasattr(handler, name):  # 2.5 has fewer
                        told[f"{name} {limited}"] = await once(getattr(handler, name)(*args), seen)
            return told

        async def once(work, seen):
            try:
                await asyncio.wait_for(work, 5)
            except TimeoutError:
                return len(seen), False
            except Exception:
                pass  # refused, as it should be
            return len(seen), True

        told = asyncio.run(main())
        print(json.dumps({k: v for k, v in told.items() if v != (1, True)}), len(told))
        """,
    )
    assert done.returncode == 0, done.stderr
    odd, count = done.stdout.strip().rsplit(" ", 1)
    assert odd == "{}"
    assert int(count) > 40
