"""Fixtures for all tests: real servers, and event loops.

Servers are bound to no event loop, so those that live as long as the test run are started and healed by plain
fixtures on a loop of their own: a test that runs on uvloop gets the same servers as one that does not.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

from haclient.drill.servers import etcd, milvus_binary
from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.toxic import ToxicProxy
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus
from tests.servers.shared import ROWS, LiteFactory, StandalonePair, ToxicFactory

T = TypeVar("T")

# Haystack reports each run of a pipeline to its makers otherwise; read when it is imported.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: run this async test on asyncio's own loop and on uvloop")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    factories: dict[str, Callable[[], Any]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops") and importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factories["uvloop"] = uvloop.new_event_loop
    return factories


def missing_for(mark: str) -> str:
    """What a test with this mark lacks on this machine, "" if nothing."""
    if mark in ("live", "cluster") and not milvus_binary.available():
        return "needs the PyPI package milvus 2.3.5 (Linux on x86-64)"
    if mark == "cluster" and not etcd.available():
        return "needs etcd (apt-get install etcd-server)"
    return ""


# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("haclient", deadline=None)
hypothesis.settings.load_profile("haclient")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in ("live", "cluster"):
            if item.get_closest_marker(mark):
                # One worker has the servers; the others need none. What breaks nothing has one of its own, on the
                # worker that has less to do.
                breaks_nothing = "standalone" in getattr(item, "fixturenames", ())
                item.add_marker(pytest.mark.xdist_group("cluster" if breaks_nothing else mark))
            if item.get_closest_marker(mark) and (reason := missing_for(mark)):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=_turn)


#: Servers that tests share, in the order of their turns.
_SHARED = ("distributed", "standalone", "standalone_pair")


def _turn(item: pytest.Item) -> int:
    """What takes longest begins first, and tests of the same servers follow each other, so that those can end early."""
    if not any(item.get_closest_marker(mark) for mark in ("live", "cluster")):
        return len(_SHARED) + 1
    used = getattr(item, "fixturenames", ())
    return next((turn for turn, name in enumerate(_SHARED) if name in used), len(_SHARED))


def no_more(request: pytest.FixtureRequest) -> bool:
    """Whether this test is the last one that uses the fixture; even idle, real servers take time from other tests."""
    items = request.session.items
    rest = items[items.index(request.node) + 1 :]
    return not any(request.fixturename in getattr(item, "fixturenames", ()) for item in rest)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of its own, without touching the one of the test."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(work)


@pytest.fixture
async def lite_server(tmp_path: Path) -> AsyncIterator[LiteFactory]:
    """``await lite_server()`` starts one more milvus-lite; all end with the test. Arguments go to `LiteServer`."""
    servers: list[LiteServer] = []

    async def make(folder: Path | str | None = None, **options: Any) -> LiteServer:
        name = f"lite{len(servers)}"
        server = LiteServer(folder or tmp_path / name, **{"name": name, **options})
        servers.append(server)
        await server.start()
        return server

    try:
        yield make
    finally:
        for server in servers:
            await server.close()


@pytest.fixture
async def toxic(request: pytest.FixtureRequest) -> AsyncIterator[ToxicFactory]:
    """``await toxic(port)`` puts one more `ToxicProxy` in front of a port; all end with the test."""
    proxies: list[ToxicProxy] = []

    async def make(target_port: int, **options: Any) -> ToxicProxy:
        proxy = ToxicProxy(target_port, **options)
        proxies.append(proxy)
        await proxy.accept()
        return proxy

    try:
        yield make
    finally:
        for proxy in proxies:
            await proxy.aclose()


@pytest.fixture(scope="session")
def _standalone_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandalonePair]:
    if reason := missing_for("live"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("standalone")
    pair = StandalonePair(StandaloneServer(folder / "a", name="a"), StandaloneServer(folder / "b", name="b"))
    try:
        run(pair.heal())
        yield pair
    finally:
        run(pair.close())


@pytest.fixture
def standalone_pair(request: pytest.FixtureRequest, _standalone_pair: StandalonePair) -> Iterator[StandalonePair]:
    """Two real Milvus with data, whole at the start of each test whatever the last one did to them."""
    yield _standalone_pair
    run(_standalone_pair.close() if no_more(request) else _standalone_pair.heal())


@pytest.fixture(scope="session")
def _standalone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneServer]:
    if reason := missing_for("live"):
        pytest.skip(reason)
    server = StandaloneServer(tmp_path_factory.mktemp("standalone") / "c", name="c")
    try:
        run(server.start())
        fill.fill([server.uri], rows=ROWS)
        yield server
    finally:
        run(server.close())


@pytest.fixture
def standalone(request: pytest.FixtureRequest, _standalone: StandaloneServer) -> Iterator[StandaloneServer]:
    """One real Milvus with data, for tests that break nothing and drop what they create."""
    yield _standalone
    if no_more(request):
        run(_standalone.close())


@pytest.fixture(scope="session")
def _distributed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistributedMilvus]:
    if reason := missing_for("cluster"):
        pytest.skip(reason)
    cluster = DistributedMilvus(tmp_path_factory.mktemp("cluster"))
    try:
        run(cluster.start())
        fill.fill(cluster.uris[:1], rows=ROWS, replicas=2)
        yield cluster
    finally:
        run(cluster.close())


@pytest.fixture
def distributed(request: pytest.FixtureRequest, _distributed: DistributedMilvus) -> Iterator[DistributedMilvus]:
    """A distributed Milvus with `ROWS` rows in two replicas, whole at the start of each test."""
    yield _distributed
    if no_more(request):
        run(_distributed.close())
        return
    run(_distributed.heal())
    try:
        fill.wait_settled(_distributed.uris, rows=ROWS)
    except TimeoutError:
        # A role whose lease ran out while it was frozen ends by itself once it is thawed.
        run(_distributed.heal())
        fill.wait_settled(_distributed.uris, rows=ROWS)
