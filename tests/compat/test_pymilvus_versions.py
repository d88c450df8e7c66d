"""The drop-in under the pymilvus versions that other libraries bring, each in an environment of its own."""

import asyncio
import json
import subprocess
import textwrap

import pytest

from haclient.drill.launch import LiteServer
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
        "left": 9,
        "connection": True,
        "closed": True,
        "write to several": [True, "WriteRefused"],
        "tasks": 1,
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
        from haclient.call import Reply
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

                    handler = make_handler(request, "somewhere", "")
                    if not hasattr(handler, name):
                        continue  # 2.5 has fewer
                    try:
                        await asyncio.wait_for(getattr(handler, name)(*args), 5)
                    except Exception as error:
                        told[f"{name} {limited}"] = (len(seen), type(error).__name__ != "TimeoutError")
            return told

        told = asyncio.run(main())
        print(json.dumps({k: v for k, v in told.items() if v != (1, True)}), len(told))
        """,
    )
    assert done.returncode == 0, done.stderr
    odd, count = done.stdout.strip().rsplit(" ", 1)
    assert odd == "{}"
    assert int(count) > 15
