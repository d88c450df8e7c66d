"""The client's life: where it finds its servers, loops, forks, closing, being dropped."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from client_bench import COLLECTION, fill, nearest
from pymilvus import MilvusException
from pymilvus.orm.connections import connections

import haclient
from haclient import AsyncMilvusClient
from haclient.drill.servers.lite import LiteServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    lite = LiteServer(tmp_path_factory.mktemp("lite"))
    asyncio.run(lite.start())
    fill(lite.uri)
    yield lite
    asyncio.run(lite.close())


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("HACLIENT_URI", "HACLIENT_CONFIG", "MILVUS_URI"):
        monkeypatch.delenv(name, raising=False)


# Where the servers are.


async def addresses(**options):
    async with AsyncMilvusClient(**options) as client:
        assert await nearest(client) == 3
        return [e.address for e in client.fleet.endpoints]


async def test_a_uri_a_list_and_commas(server):
    dead = "http://127.0.0.1:9"
    for uri in (f"{server.uri},{dead}", f"{server.uri}, {dead}", [server.uri, dead], (server.uri, dead)):
        assert await addresses(uri=uri) == [server.address, "127.0.0.1:9"]


@pytest.mark.parametrize("name", ["HACLIENT_URI", "MILVUS_URI"])
async def test_the_environment_names_them(server, name, monkeypatch):
    monkeypatch.setenv(name, server.uri)
    assert await addresses() == [server.address]


async def test_the_environment_names_a_file(server, monkeypatch, tmp_path):
    file = tmp_path / "haclient.toml"
    file.write_text(f'[[cluster]]\nname = "east"\nendpoints = ["{server.uri}"]\n')
    monkeypatch.setenv("HACLIENT_CONFIG", str(file))
    async with AsyncMilvusClient() as client:
        assert await nearest(client) == 3
        assert client.fleet.clusters[0].name == "east"


async def test_an_argument_wins_over_the_environment(server, monkeypatch):
    monkeypatch.setenv("HACLIENT_URI", "http://127.0.0.1:9")
    assert await addresses(uri=server.uri) == [server.address]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"uri": "http://a,,http://b:0"}, "port"),
        ({"uri": "ftp://a"}, "ftp"),
        ({"config": "/nosuch/file.toml"}, "/nosuch/file.toml"),
        ({"config": {"cluster": [], "colour": "red"}}, "colour"),
        ({"uri": "http://a", "timeout": -1}, "connect_s"),
        ({"uri": 5}, "uri"),
        ({"uri": []}, "uri"),
    ],
)
def test_what_is_wrong_is_said_at_once(options, words):
    with pytest.raises(haclient.ConfigError, match=words) as caught:
        AsyncMilvusClient(**options)
    assert isinstance(caught.value, MilvusException)


# An embedded file.


@pytest.mark.both_loops
async def test_a_db_file_is_an_embedded_server(tmp_path):
    """Also if many first calls come at once: one server, one core."""
    pytest.importorskip("milvus_lite")
    client = AsyncMilvusClient(str(tmp_path / "milvus.db"))
    results = await asyncio.gather(*(client.list_collections() for _ in range(10)))
    assert results == [[]] * 10
    assert len(client.fleet.endpoints) == 1
    await client.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_db_file_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(haclient.ConfigError, match="the folder of this file does not exist"):
        AsyncMilvusClient(str(tmp_path / "nosuch" / "milvus.db"))


# Closing.


@pytest.mark.both_loops
async def test_closing_leaves_nothing(server):
    client = AsyncMilvusClient(server.uri)
    await nearest(client)
    assert len(asyncio.all_tasks()) > 1
    assert client._using in connections._alias_handlers
    await client.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert client._using not in connections._alias_handlers
    assert "closed" in repr(client)
    await client.close()


@pytest.mark.both_loops
async def test_use_after_close_says_so(server):
    client = AsyncMilvusClient(server.uri)
    await nearest(client)
    await client.close()
    with pytest.raises(MilvusException, match="closed"):
        await nearest(client)


async def test_closing_a_client_never_used():
    client = AsyncMilvusClient("http://127.0.0.1:9")
    assert "not started" in repr(client)
    assert client.fleet.endpoints == ()
    await client.close()
    assert len(asyncio.all_tasks()) == 1


async def test_closing_with_calls_under_way_ends_them(server, toxic):
    proxy = await toxic(server.port)
    client = AsyncMilvusClient(proxy.uri)
    await nearest(client)
    proxy.black_hole()
    calls = [asyncio.ensure_future(nearest(client)) for _ in range(5)]
    await asyncio.sleep(0)
    await client.close()
    began = time.monotonic()
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 15)
    assert all(isinstance(r, MilvusException) for r in results), results
    assert time.monotonic() - began < 12


async def test_a_client_dropped_without_close_leaves_nothing(server):
    client = AsyncMilvusClient(server.uri)
    await nearest(client)
    using = client._using
    del client
    gc.collect()
    limit = time.monotonic() + 20
    while len(asyncio.all_tasks()) > 1:
        assert time.monotonic() < limit, asyncio.all_tasks()
        await asyncio.sleep(0.01)
    assert using not in connections._alias_handlers


async def test_several_clients_do_not_disturb_one_another(server):
    clients = [AsyncMilvusClient(server.uri) for _ in range(4)]
    assert len({c._using for c in clients}) == 4
    await asyncio.gather(*(nearest(c) for c in clients))
    await clients[0].close()
    await asyncio.gather(*(nearest(c) for c in clients[1:]))
    for client in clients[1:]:
        await client.close()


async def test_a_hundred_clients_leave_no_trace(server):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(30):
        async with AsyncMilvusClient(server.uri) as client:
            await nearest(client)
    del client
    gc.collect()
    await asyncio.sleep(0)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


# Event loops.


def test_a_second_loop_beside_a_living_one_is_refused(server):
    client = AsyncMilvusClient(server.uri)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(nearest(client))
        with pytest.raises(haclient.ConfigError, match=r"another event loop.*one client per loop"):
            asyncio.run(nearest(client))
        assert loop.run_until_complete(nearest(client)) == 3
        loop.run_until_complete(client.close())
    finally:
        loop.close()


def test_made_outside_a_loop_used_inside(server):
    client = AsyncMilvusClient(server.uri)

    async def use():
        async with client:
            return await nearest(client)

    assert asyncio.run(use()) == 3


# Processes of their own.


def program(text, *args, python=sys.executable, **env):
    """Run a program; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [python, "-X", "dev", "-c", textwrap.dedent(text), *args],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__), **env},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("end", ["await client.close()", "pass"])
def test_a_program_ends_without_warnings(server, loop, end):
    code, out, err = program(
        f"""
        import asyncio, sys
        from haclient import AsyncMilvusClient
        from client_bench import nearest
        import {loop}
        async def main():
            client = AsyncMilvusClient(sys.argv[1])
            print(await nearest(client))
            {end}
        {loop}.run(main())
        """,
        server.uri,
    )
    assert (code, out.strip()) == (0, "3"), err
    assert not any(words in err for words in ("was never", "was destroyed", "Traceback", "Exception ignored")), err
    if end != "pass":
        assert "unclosed" not in err, err


def test_one_client_on_one_loop_after_another(server):
    """Each loop ends without closing the client; Python may warn of its sockets, rightly, and all goes on."""
    code, out, err = program(
        """
        import asyncio, sys
        from haclient import AsyncMilvusClient
        from client_bench import nearest
        client = AsyncMilvusClient(sys.argv[1])
        print([asyncio.run(nearest(client, row)) for row in (3, 4, 5)])
        """,
        server.uri,
    )
    assert (code, out.strip()) == (0, "[3, 4, 5]"), err
    assert "Traceback" not in err, err


def test_after_a_fork_the_child_works_and_the_parent_is_unharmed(server):
    code, out, err = program(
        """
        import asyncio, json, os, sys
        from haclient import AsyncMilvusClient
        from client_bench import nearest

        async def main():
            client = AsyncMilvusClient(sys.argv[1])
            results = [await nearest(client, 3)]
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.write(write, json.dumps(asyncio.run(twice(client))).encode())
                    status = 0
                finally:
                    os._exit(status)
            os.close(write)
            loop = asyncio.get_running_loop()
            for i in range(20):
                results.append(await nearest(client, i))
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            results.append(os.waitstatus_to_exitcode(status))
            results.append(json.loads(os.read(read, 1000)))
            for i in range(5):
                results.append(await nearest(client, i))
            await client.close()
            print(json.dumps(results))

        async def twice(client):
            got = [await nearest(client, 5), await nearest(client, 6)]
            await client.close()
            return got

        asyncio.run(main())
        """,
        server.uri,
    )
    assert code == 0, err
    assert json.loads(out) == [3, *range(20), 0, [5, 6], *range(5)], err


def test_importing_haclient_is_cheap_and_changes_nothing_of_pymilvus():
    code, out, err = program(
        """
        import sys
        import haclient
        assert "pymilvus" not in sys.modules
        import pymilvus
        from pymilvus.client.async_grpc_handler import AsyncGrpcHandler
        before = dict(vars(AsyncGrpcHandler))
        haclient.AsyncMilvusClient
        assert dict(vars(AsyncGrpcHandler)) == before
        print("ok")
        """
    )
    assert (code, out.strip()) == (0, "ok"), err


def test_collection_name_is_the_benchs():
    assert COLLECTION == "docs"
