"""The admin API: what it answers, its stream of events, and its server's life."""

import asyncio
import json
import signal
import socket

import httpx
import pytest

from haclient.proxy import admin_events
from haclient.proxy.admin import create_app, serve
from haclient.proxy.report import EventReport, FleetReport, History
from tests.unit.proxy.admin_fakes import FakeBackend, event


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
async def http(backend):
    """Asks the app itself, without a server."""
    transport = httpx.ASGITransport(create_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9091") as client:
        yield client


@pytest.fixture
async def served(backend):
    """Asks a real server."""
    async with (
        serve(create_app(backend), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        yield client
        await backend.tell(None)


# --- answers ------------------------------------------------------------------------------------------------


async def test_health(http, backend):
    """Alive is not ready: a proxy without servers must not be restarted."""
    backend.readiness = (False, "no endpoint is up")
    assert (await http.get("/healthz")).status_code == 200
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": "no endpoint is up"})
    backend.readiness = (True, "")
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reason": ""})


async def test_reports(http, backend):
    """The fleet and its history are told as they are."""
    assert FleetReport.model_validate_json((await http.get("/api/fleet")).content) == backend.fleet()
    for query, every_s in (("", 1.0), ("?every_s=1", 1.0), ("?every_s=60", 60.0)):
        answer = await http.get(f"/api/history{query}")
        assert History.model_validate_json(answer.content) == backend.history(every_s)
    for query in ("every_s=2", "every_s=1.5", "every=60", "every_s=1&every_s=x"):
        assert (await http.get(f"/api/history?{query}")).status_code == 422, query


async def test_metrics(http):
    """Prometheus gets its own format, byte for byte."""
    answer = await http.get("/metrics")
    assert answer.content == b"# TYPE haclient_calls counter\nhaclient_calls_total 3.0\n"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_page(http):
    """One page at ``/``; nothing else is a page, and nothing comes from elsewhere."""
    answer = await http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>" in answer.text
    for path in ("/index.html", "/dashboard", "/docs", "/redoc", "/dashboard/index.html", "/../pyproject.toml"):
        assert (await http.get(path)).status_code == 404, path


@pytest.mark.parametrize(
    ("written", "name"),
    [("e1", "e1"), ("a", "a"), ("unix%3A%2Ftmp%2Fa%20b%3F%23%25.sock", "unix:/tmp/a b?#%.sock"),
     ("unix:/tmp/a%20b%3F%23%25.sock", "unix:/tmp/a b?#%.sock")],
)  # fmt: skip
async def test_drain(http, backend, written, name):
    """Whatever the name is made of."""
    answer = await http.post(f"/api/drain/{written}")
    assert (answer.status_code, answer.json()) == (200, {"name": name, "drained": True})
    assert backend.drained == [name]
    answer = await http.post(f"/api/undrain/{written}")
    assert (answer.status_code, answer.json()) == (200, {"name": name, "drained": False})
    assert backend.drained == []


@pytest.mark.parametrize("path", ["/api/drain/e", "/api/undrain/e2", "/api/drain/"])
async def test_unknown_name(http, backend, path):
    """404, and what there is."""
    answer = await http.post(path)
    assert answer.status_code == 404
    assert "nothing has that name; there are a, e1" in answer.json()["detail"]
    assert backend.drained == []


async def test_only_a_post_drains(http, backend):
    """A link or an image must not."""
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        answer = await http.request(method, "/api/drain/e1")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert backend.drained == []


# --- events -------------------------------------------------------------------------------------------------


async def read(stream):
    """The next event of a stream: its id and what it says; comments are skipped."""
    found = {}
    async for line in stream:
        if not line and found:
            return int(found["id"]), EventReport.model_validate_json(found["data"])
        if line and not line.startswith(":"):
            key, _, value = line.partition(": ")
            assert key not in found
            found[key] = value
    return None


async def test_events(served, backend):
    """Those that are kept, every new one at once, and the end when the proxy stops."""
    async with served.stream("GET", "/api/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        for number in (1, 2, 3):
            assert await read(lines) == (number, event(number))
        await backend.tell(event(4))
        assert await read(lines) == (4, event(4))
        await backend.tell(None)
        assert await read(lines) is None
    await backend.nobody_listens()


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [
        ("?after=2", {}, 3),
        ("", {"Last-Event-ID": "2"}, 3),
        ("?after=1", {"Last-Event-ID": "2"}, 3),
        ("?after=0", {}, 1),
    ],
)
async def test_resume(served, query, headers, first):
    """Where it was left: a browser repeats the address it began with, and adds the last id it has seen."""
    async with served.stream("GET", f"/api/events{query}", headers=headers) as answer:
        assert await read(answer.aiter_lines()) == (first, event(first))


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?after=x", {}), ("?after=-1", {}), ("", {"Last-Event-ID": "x"}), ("?after=1.5", {}), ("?afer=1", {})],
)
async def test_bad_resume(http, backend, query, headers):
    """Refused, and nobody listens then."""
    assert (await http.get(f"/api/events{query}", headers=headers)).status_code == 422
    assert backend.streams == 0


async def test_keep_alive(served, backend, monkeypatch):
    """A comment now and then, so that nothing in between closes a quiet stream; it is there at once, too."""
    assert admin_events.KEEP_ALIVE_S == 15
    monkeypatch.setattr(admin_events, "KEEP_ALIVE_S", 0.01)
    async with served.stream("GET", "/api/events?after=3") as answer:
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith(":")
        await backend.tell(event(4))
        assert await read(lines) == (4, event(4))


@pytest.mark.parametrize("after", [0, 3])
async def test_a_client_that_leaves(served, backend, after):
    """Nothing listens for it any more, whether events were waiting for it or it for them."""
    before = asyncio.all_tasks()
    async with served.stream("GET", f"/api/events?after={after}") as answer:
        if after == 0:
            await read(answer.aiter_lines())
    await backend.nobody_listens()
    async with asyncio.timeout(10):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


async def test_a_client_that_does_not_read(backend, caplog):
    """Holds up neither the others nor the end of the server."""
    text = "x" * 100_000
    backend.kept = [event(i).model_copy(update={"text": text}) for i in range(1, 200)]
    before = asyncio.all_tasks()
    async with serve(create_app(backend), "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        assert backend.streams == 1
    assert backend.streams == 0
    writer.close()
    assert asyncio.all_tasks() == before
    assert not caplog.records


# --- the server ---------------------------------------------------------------------------------------------


async def test_stops_with_streams_open(backend, caplog):
    """The end does not wait for streams that do not end; nothing is left, and nobody listens on the port."""
    before = asyncio.all_tasks()
    async with httpx.AsyncClient() as client:
        async with serve(create_app(backend), "127.0.0.1", 0) as port:
            request = client.build_request("GET", f"http://127.0.0.1:{port}/api/events?after=3")
            answer = await client.send(request, stream=True)
        assert backend.streams == 0
        assert asyncio.all_tasks() == before
        with pytest.raises(httpx.HTTPError):
            await answer.aread()
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{port}/healthz")
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_stops_while_an_answer_hangs(backend):
    """What does not even heed its client's leave is cancelled, and gone when the server is."""
    before = asyncio.all_tasks()
    hanging = asyncio.Event()

    async def metrics():
        hanging.set()
        await asyncio.Event().wait()

    backend.metrics = metrics
    async with serve(create_app(backend), "127.0.0.1", 0) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        await hanging.wait()
    assert asyncio.all_tasks() == before
    writer.close()


async def test_signals_are_left_alone(backend):
    """They are the supervisor's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    async with serve(create_app(backend), "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        assert {number: signal.getsignal(number) for number in before} == before


async def test_logs(backend, caplog):
    """No line per request, and what goes wrong goes the way of all log records."""

    def fleet():
        raise RuntimeError("broken")

    backend.fleet = fleet
    caplog.set_level("DEBUG", "uvicorn")
    async with serve(create_app(backend), "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        caplog.clear()
        await client.get(f"http://127.0.0.1:{port}/healthz")
        assert not [r for r in caplog.records if r.name.startswith("uvicorn")]
        assert (await client.get(f"http://127.0.0.1:{port}/api/fleet")).status_code == 500
        (record,) = [r for r in caplog.records if r.name.startswith("uvicorn")]
        assert (record.levelname, "broken" in record.exc_text) == ("ERROR", True)


async def test_port_taken(backend):
    """Said to who wanted it; the process lives on."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with serve(create_app(backend), "127.0.0.1", taken.getsockname()[1]):
            pass


async def test_ipv6(backend):
    """An address with colons is one."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    async with serve(create_app(backend), "::1", 0) as port, httpx.AsyncClient() as client:
        assert (await client.get(f"http://[::1]:{port}/api/fleet")).status_code == 200


# --- OpenAPI ------------------------------------------------------------------------------------------------


async def test_openapi(http):
    """Everything is described, with a summary, and nothing is loaded from elsewhere."""
    document = (await http.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/", "/healthz", "/readyz", "/metrics", "/api/fleet", "/api/history", "/api/events", "/api/drain/{name}",
        "/api/undrain/{name}",
    }  # fmt: skip
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
    stream = document["paths"]["/api/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    assert "EventReport" in json.dumps(stream)
    text = json.dumps(document)
    for reference in set(text.split('"#/components/schemas/')[1:]):
        assert reference.partition('"')[0] in document["components"]["schemas"]
