"""The sync client's life: threads, servers that die, interrupts, forks, closing, being dropped, a program's end."""

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from client_bench import COLLECTION, fill, vectors
from pymilvus import MilvusException
from pymilvus.orm.connections import connections

import haclient
from haclient import MilvusClient
from haclient.config import Config
from haclient.drill.servers.lite import LiteServer
from haclient.drill.toxic import ToxicProxy
from haclient.portal import portal

QUICK = {"health": {"interval_s": 0.3, "deep_interval_s": 0.3}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    lite = LiteServer(tmp_path_factory.mktemp("lite"))
    asyncio.run(lite.start())
    fill(lite.uri)
    yield lite
    asyncio.run(lite.close())


@pytest.fixture
def mortal(tmp_path):
    """A server of the test's own, to be killed."""
    lite = LiteServer(tmp_path / "mortal")
    asyncio.run(lite.start())
    fill(lite.uri)
    yield lite
    asyncio.run(lite.close())


@pytest.fixture
def black_hole(server):
    """A proxy that takes requests and never answers."""
    proxy = ToxicProxy(server.port)
    portal().run(proxy.accept())
    yield proxy
    portal().run(proxy.aclose())


def nearest(client, row=3, **options):
    hits = client.search(COLLECTION, data=[vectors()[row].tolist()], limit=1, anns_field="v", **options)
    return int(hits[0][0]["id"])


def until(condition, within_s=40.0):
    limit = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        time.sleep(0.01)


def portals_tasks():
    return portal().call(lambda: asyncio.all_tasks() - {asyncio.current_task()})


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


# Threads.


def test_fifty_threads_share_a_client_from_its_first_call_on(server):
    before = threading.active_count()
    with MilvusClient(server.uri) as client, ThreadPoolExecutor(50) as pool:
        rows = [i % 40 for i in range(500)]
        assert list(pool.map(lambda row: nearest(client, row), rows)) == rows
        assert len(client.fleet.endpoints) == 1
    # milvus-lite and pymilvus were there before; the portal is all that is new.
    assert threading.active_count() <= before + 1


def test_no_read_fails_while_a_server_is_killed(server, mortal):
    rows = [i % 40 for i in range(400)]
    asked = threading.Semaphore(0)

    def ask(row):
        asked.release()
        return nearest(client, row)

    config = Config.from_uri([server.uri, mortal.uri], **QUICK)
    with MilvusClient(config=config) as client, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, row) for row in rows]
        for _ in range(100):
            asked.acquire()
        asyncio.run(mortal.kill())
        assert [answer.result() for answer in answers] == rows
        until(lambda: client.fleet.endpoints[1].state == "down")
        assert nearest(client) == 3


def test_the_deadline_holds_without_an_answer(black_hole):
    with MilvusClient(black_hole.uri) as client:
        nearest(client)
        black_hole.black_hole()
        with pytest.raises(MilvusException) as caught:
            nearest(client, timeout=0.5)
    assert isinstance(caught.value, haclient.DeadlineExceeded)


# What is ours.


def test_looking_draining_and_listening(server, mortal):
    heard = []
    with MilvusClient([server.uri, mortal.uri]) as client:
        assert {e.state for e in client.fleet.endpoints} <= {"up", "unknown"}
        assert [e.state for e in client.refresh().endpoints] == ["up", "up"]
        client.drain(mortal.address)
        unsubscribe = client.subscribe(heard.append)
        for row in range(10):
            nearest(client, row)
        unsubscribe()
        assert {e.endpoint for e in heard if type(e).__name__ == "CallFinished"} == {server.address}
        client.drain(server.address)
        with pytest.raises(haclient.Unavailable, match="every endpoint is drained"):
            nearest(client)
        client.undrain(server.address)
        assert nearest(client) == 3
        with pytest.raises(haclient.ConfigError, match="no endpoint or cluster is named 'nosuch'"):
            client.drain("nosuch")
        assert server.address in repr(client)


def test_threads_that_begin_and_end_to_listen_at_once_do_not_lose_one_another(server):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    client = MilvusClient(server.uri)
    heard = set()

    def listen(number):
        client.subscribe(lambda _: None)()
        client.subscribe(lambda _: heard.add(number))

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(listen, range(400)))
    finally:
        sys.setswitchinterval(interval)
    with client:
        nearest(client)
    assert heard == set(range(400))


def test_a_listener_may_look_but_not_call(server):
    """It runs on the portal's thread, which would wait for itself."""
    seen = []

    def listener(event):
        if type(event).__name__ == "CallFinished" and not seen:
            seen.append(client.fleet.endpoints[0].address)
            seen.append(repr(client))
            try:
                nearest(client)
            except haclient.ConfigError as error:
                seen.append(str(error))

    with MilvusClient(server.uri) as client:
        client.subscribe(listener)
        assert nearest(client) == 3
    assert seen[0] == server.address
    assert server.address in seen[1]
    assert "would wait for itself" in seen[2]


def test_what_is_not_started_says_so(server):
    client = MilvusClient(server.uri)
    assert "MilvusClient not started" in repr(client)
    assert client.fleet.endpoints == ()
    with pytest.raises(haclient.ConfigError, match="not been used yet"):
        client.drain("x")
    client.close()
    assert "closed" in repr(client)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"uri": "ftp://a"}, "ftp"), ({"config": "/nosuch/file.toml"}, "/nosuch/file.toml"), ({"uri": 5}, "uri")],
)
def test_what_is_wrong_is_said_at_once(options, words):
    with pytest.raises(haclient.ConfigError, match=words) as caught:
        MilvusClient(**options)
    assert isinstance(caught.value, MilvusException)


# Closing.


def test_closing_leaves_nothing(server):
    before = portals_tasks()
    client = MilvusClient(server.uri)
    nearest(client)
    assert portals_tasks() - before
    client.close()
    assert not portals_tasks() - before
    assert client._using not in connections._alias_handlers
    assert client._using not in connections._alias_config
    client.close()
    with pytest.raises(MilvusException, match="closed"):
        nearest(client)


def test_closing_ends_the_calls_of_other_threads(black_hole):
    client = MilvusClient(black_hole.uri)
    nearest(client)
    black_hole.black_hole()
    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(nearest, client, timeout=60) for _ in range(5)]
        until(lambda: client.fleet.endpoints[0].in_flight == 5)
        began = time.monotonic()
        client.close()
        assert all(isinstance(call.exception(), MilvusException) for call in calls)
        assert time.monotonic() - began < 50


def test_a_client_dropped_without_close_leaves_nothing(server):
    before = portals_tasks()
    client = MilvusClient(server.uri)
    nearest(client)
    using, gone = client._using, weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    assert using not in connections._alias_handlers
    until(lambda: not portals_tasks() - before)


def test_many_clients_leave_no_trace(server):
    with MilvusClient(server.uri) as client:
        nearest(client)
    before, threads = (
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        threading.active_count(),
    )
    for _ in range(20):
        with MilvusClient(server.uri) as client:
            nearest(client)
    del client
    gc.collect()
    portals_tasks()
    assert threading.active_count() == threads
    assert open_files() <= before + 3


def test_a_db_file_is_an_embedded_server(tmp_path):
    pytest.importorskip("milvus_lite")
    with MilvusClient(str(tmp_path / "milvus.db")) as client, ThreadPoolExecutor(5) as pool:
        assert [f.result() for f in [pool.submit(client.list_collections) for _ in range(5)]] == [[]] * 5
        client.create_collection("docs", dimension=4)
        client.insert("docs", [{"id": i, "vector": [i, 0.0, 0, 1]} for i in range(9)])
        assert client.search("docs", data=[[3.0, 0, 0, 1]], limit=1)[0][0]["id"] == 3


# Processes of their own.


def program(text, *args):
    """Run a program; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        # Python 3.12 warns of every fork of a process with threads.
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-c",
            textwrap.dedent(PRELUDE) + textwrap.dedent(text),
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


PRELUDE = """
    import json, os, signal, sys, threading
    from client_bench import COLLECTION, vectors
    from haclient import MilvusClient

    def nearest(client, row=3, **options):
        hits = client.search(COLLECTION, data=[vectors()[row].tolist()], limit=1, anns_field="v", **options)
        return int(hits[0][0]["id"])

    client = MilvusClient(sys.argv[1])
"""


@pytest.mark.parametrize("end", ["client.close()", "pass", "raise SystemExit(0)", "del client"])
def test_a_program_ends_at_once_and_silently(server, end):
    code, out, err = program(f"print(nearest(client))\n{end}", server.uri)
    assert (code, out.strip(), err) == (0, "3", "")


def test_a_program_ends_while_its_threads_are_calling(server):
    text = """
    def call():
        while True:
            nearest(client)

    for _ in range(4):
        threading.Thread(target=call, daemon=True).start()
    print(nearest(client))
    """
    code, out, err = program(text, server.uri)
    assert (code, out.strip(), err) == (0, "3", "")


def test_an_interrupt_ends_a_call_and_the_client_goes_on(black_hole):
    text = """
    import time
    print(nearest(client))
    sys.stdin.readline()

    def interrupt():
        while not client.fleet.endpoints[0].in_flight:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        nearest(client, timeout=60)
    except KeyboardInterrupt:
        print("interrupted")
    while client.fleet.endpoints[0].in_flight:
        time.sleep(0.01)
    print("nothing in flight")
    client.close()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(text), black_hole.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    ) as process:
        assert process.stdout.readline() == "3\n"
        black_hole.black_hole()
        out, err = process.communicate("go\n", timeout=60)
    assert (process.returncode, out) == (0, "interrupted\nnothing in flight\n"), err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.parametrize("end", ["client.close()", "pass"])
def test_after_a_fork_both_sides_work(server, end):
    """The child also looks at the fleet, which is its own, and may close the client or just end."""
    text = f"""
    results = [nearest(client, 3)]
    heard = []
    client.subscribe(lambda e: heard.append(str(e)) if type(e).__name__ == "EndpointChanged" else None)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = [client.fleet.endpoints == (), nearest(client, 5), nearest(client, 6), len(client.fleet.endpoints)]
        os.write(write, json.dumps(told).encode())
        {end}
        sys.exit(0)
    results += [nearest(client, i) for i in range(20)]
    _, status = os.waitpid(child, 0)
    results += [os.waitstatus_to_exitcode(status), json.loads(os.read(read, 1000))]
    results += [nearest(client, i) for i in range(5)]
    print(json.dumps([results, heard]))
    """
    code, out, err = program(text, server.uri)
    assert (code, err) == (0, "")
    assert json.loads(out) == [[3, *range(20), 0, [True, 5, 6, 1], *range(5)], []]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_that_only_closes_or_drops_the_client_does_no_harm(server):
    text = """
    results = [nearest(client, 3)]
    for end in (client.close, lambda: globals().pop("client")):
        child = os.fork()
        if child == 0:
            end()
            sys.exit(0)
        results += [os.waitpid(child, 0)[1], nearest(client, 4)]
    print(results)
    client.close()
    """
    code, out, err = program(text, server.uri)
    assert (code, out.strip(), err) == (0, "[3, 0, 4, 0, 4]", "")
