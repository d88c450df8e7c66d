"""A client's HTTP/1.1 connection: framing, limits, and time, on a transport in memory and in virtual time."""

import asyncio
from collections.abc import Callable

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclient.config import ProxyLimits
from haclient.proxy.admission import Admission
from haclient.proxy.http1 import Http1Connection
from haclient.proxy.rest import HttpResponse
from tests.virtual_time import run

LIMITS = ProxyLimits(header_bytes=2048, request_s=5.0, reply_s=4.0, idle_s=60.0, memory_bytes=1 << 20, calls=2)
MOST_BYTES = 300_000
GET = b"GET /v1/vector/collections HTTP/1.1\r\nhost: p\r\n\r\n"


def post(body=b"{}", *headers, path=b"/v2/vectordb/entities/search"):
    lines = [b"POST " + path + b" HTTP/1.1", b"host: p", b"content-length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


class Transport:
    """What a connection writes; slow on request."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.state = "open"
        self.ended = self.reading_paused = False
        self.slow = False
        self.protocol: Http1Connection | None = None

    def write(self, data) -> None:
        assert (self.state, self.ended) == ("open", False), "written after the end"
        self.written += data
        if self.slow:
            self.protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def close(self, state="closed") -> None:
        if self.state == "open":
            self.state = state
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close("aborted")


class Handler:
    """Answers with what it was asked; `hold` makes it wait."""

    def __init__(self) -> None:
        self.requests = []
        self.cancelled = 0
        self.hold: asyncio.Event | None = None
        self.answer: Callable | None = None

    async def __call__(self, request):
        self.requests.append(request)
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.answer is not None:
            return self.answer(request)
        return HttpResponse(200, (("content-type", "text/plain"),), request.target.encode() + b"|" + request.body)


class Peer:
    """A connection, and the client's side of it."""

    def __init__(self, limits=LIMITS) -> None:
        loop = asyncio.get_running_loop()
        self.handler = Handler()
        self.admission = Admission(limits, loop)
        self.transport = Transport()
        self.closed = 0
        ids = iter(range(1, 1000))
        self.connection = self.transport.protocol = Http1Connection(
            loop, limits, MOST_BYTES, self.handler, self.admission, lambda: f"made-{next(ids)}", self._closed
        )
        self.connection.connection_made(self.transport)

    def _closed(self, connection) -> None:
        assert connection is self.connection
        self.closed += 1

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.data_received(part)
            await settle()

    def responses(self, *verbs: str) -> list[tuple[int, bytes, dict[str, str]]]:
        """Status, body and headers of all that was written, read by an independent client."""
        verbs = verbs or ("POST",) * 100
        client = h11.Connection(h11.CLIENT)
        client.receive_data(bytes(self.transport.written))
        found = []
        for verb in verbs:
            if not client.trailing_data[0]:
                break
            client.send(h11.Request(method=verb, target="/", headers=[("host", "p"), ("content-length", "0")]))
            client.send(h11.EndOfMessage())
            status, body, headers = 0, b"", {}
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    status, headers = event.status_code, {k.decode(): v.decode() for k, v in event.headers}
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    assert isinstance(event, h11.InformationalResponse), event
            found.append((status, body, headers))
            if client.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                assert not client.trailing_data[0]
                break
            client.start_next_cycle()
        return found

    def statuses(self) -> list[int]:
        return [status for status, _, _ in self.responses()]

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.transport.abort()
        await settle()
        self.admission.close()
        assert self.closed == 1, "whoever counts connections must be told once"
        assert (self.admission.calls, self.admission.memory_bytes) == (0, 0), "something is held for ever"


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def in_virtual_time(scenario):
    def test():
        run(scenario())

    test.__doc__ = scenario.__doc__
    return test


@in_virtual_time
async def test_one_after_the_other():
    """A connection is kept, and each answer carries the id of its request, given or made."""
    async with Peer() as peer:
        await peer.say(post(b"one", b"client-request-id: mine"), post(b"two"))
        first, second = peer.responses()
        assert first[:2] == (200, b"/v2/vectordb/entities/search|one")
        assert first[2]["client-request-id"] == "mine"
        assert second[:2] == (200, b"/v2/vectordb/entities/search|two")
        assert second[2]["client-request-id"] == "made-1"
        assert dict(peer.handler.requests[1].headers)["client-request-id"] == "made-1", "it goes on to the server"
        assert peer.transport.state == "open"


@in_virtual_time
async def test_ids_that_are_none():
    async with Peer() as peer:
        await peer.say(post(b"", b"client-request-id: " + b"x" * 200), post(b"", b"client-request-id: a b"))
        assert [headers["client-request-id"] for _, _, headers in peer.responses()] == ["made-1", "made-2"]


@in_virtual_time
async def test_pipelining():
    """Requests are answered in order, one at a time; who sends too many is not read until they are answered."""
    async with Peer() as peer:
        peer.handler.hold = asyncio.Event()
        await peer.say(post(b"0"))
        assert peer.connection.busy
        for i in range(1, 60):
            await peer.say(post(b"%d" % i))
        assert len(peer.handler.requests) == 1
        assert peer.transport.reading_paused
        peer.handler.hold.set()
        for _ in range(100):
            await settle()
        assert [body for _, body, _ in peer.responses()] == [b"/v2/vectordb/entities/search|%d" % i for i in range(60)]
        assert not peer.transport.reading_paused
        assert not peer.connection.busy


@in_virtual_time
async def test_chunks_and_trailers():
    async with Peer() as peer:
        head = b"POST /v1/vector/insert HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n"
        await peer.say(head + b"3\r\nabc\r\n", b"2;ext=1\r\nd", b"e\r\n0\r\nx: y\r\n\r\n" + GET)
        assert [request.body for request in peer.handler.requests] == [b"abcde", b""]
        assert peer.statuses() == [200, 200]


@in_virtual_time
async def test_expect_continue():
    """The client is told to go on, but not if the body would be too large."""
    async with Peer() as peer:
        await peer.say(
            b"POST /v1/vector/insert HTTP/1.1\r\nhost: p\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
        )
        assert peer.transport.written.startswith(b"HTTP/1.1 100 ")
        await peer.say(b"{}")
        assert peer.responses()[0][:2] == (200, b"/v1/vector/insert|{}")
    async with Peer() as peer:
        await peer.say(b"POST / HTTP/1.1\r\nhost: p\r\ncontent-length: 999999\r\nexpect: 100-continue\r\n\r\n")
        assert peer.statuses() == [413]


@in_virtual_time
async def test_verbs_without_a_body():
    async with Peer() as peer:
        peer.handler.answer = lambda request: HttpResponse(204 if request.verb == "OPTIONS" else 200, (), b"body")
        await peer.say(GET.replace(b"GET", b"HEAD"), GET.replace(b"GET", b"OPTIONS"), GET)
        assert [(status, body) for status, body, _ in peer.responses("HEAD", "OPTIONS", "GET")] == [
            (200, b""),
            (204, b""),
            (200, b"body"),
        ]


@in_virtual_time
async def test_old_clients_and_those_that_say_close():
    for request in (b"GET / HTTP/1.0\r\n\r\n", GET[:-2] + b"connection: close\r\n\r\n"):
        async with Peer() as peer:
            await peer.say(request)
            assert peer.responses()[0][2]["connection"] == "close"
            assert peer.transport.state == "closed"


@in_virtual_time
async def test_requests_for_another_protocol():
    """A client that would rather speak another one is answered in this one."""
    async with Peer() as peer:
        await peer.say(
            GET[:-2] + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
        )
        peer.handler.answer = lambda _: HttpResponse(404, (), b"")
        await peer.say(b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n", GET)
        assert peer.statuses() == [200, 404, 404]
        assert [request.target for request in peer.handler.requests][:2] == ["/v1/vector/collections", "other:443"]


BAD = {
    "nonsense": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nhost: p\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{} ", 400),
    "negative length": (b"POST / HTTP/1.1\r\nhost: p\r\ncontent-length: -2\r\n\r\n", 400),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nhost: p\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunks and length": (
        b"POST / HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\ncontent-length: 0\r\n\r\n0\r\n\r\n",
        400,
    ),
    "old chunks": (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown coding": (b"POST / HTTP/1.1\r\nhost: p\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "space before colon": (b"GET / HTTP/1.1\r\nhost : p\r\n\r\n", 400),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nhost: p\r\nx: a\rb: c\r\n\r\n", 400),
    "bad chunk size": (b"POST / HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n", 400),
    "bad chunk end": (b"POST / HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdX", 400),
    "large headers": (b"GET / HTTP/1.1\r\nhost: p\r\nx: " + b"y" * 3000 + b"\r\n\r\n", 431),
    "large target": (b"GET /" + b"y" * 3000 + b" HTTP/1.1\r\nhost: p\r\n\r\n", 431),
    "endless headers": (b"GET / HTTP/1.1\r\nx: " + b"y" * 3000, 431),
    "large body": (b"POST / HTTP/1.1\r\nhost: p\r\ncontent-length: 300001\r\n\r\n", 413),
    "large chunks": (
        b"POST / HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n493e1\r\n" + b"y" * 300_001,
        413,
    ),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("smuggled", [b"", GET])
def test_refused(what, smuggled):
    """It is answered, nothing behind it is taken for a request, and the connection closes."""
    raw, status = BAD[what]

    async def scenario():
        async with Peer() as peer:
            await peer.say(raw + smuggled)
            assert peer.statuses() == [status]
            assert peer.responses()[0][2]["connection"] == "close"
            assert not peer.handler.requests
            await peer.say(GET)
            await asyncio.sleep(LIMITS.request_s)
            assert peer.transport.state == "aborted", "the client had time to read why"
            assert peer.statuses() == [status]

    run(scenario())


class TestTime:
    def test_nothing_comes(self):
        async def scenario():
            async with Peer() as peer:
                await asyncio.sleep(LIMITS.request_s + 1)
                assert peer.transport.state == "closed"
                assert not peer.transport.written

        run(scenario())

    def test_slow_head(self):
        """A byte now and then does not keep a connection."""

        async def scenario():
            async with Peer() as peer:
                for at in range(len(GET)):
                    if peer.transport.ended:
                        break
                    await peer.say(GET[at : at + 1])
                    await asyncio.sleep(1.0)
                assert peer.statuses() == [408]
                assert at < 10

        run(scenario())

    @pytest.mark.parametrize("step", [1, 20_000])
    def test_slow_body(self, step):
        """A body may take long if enough of it comes all the time."""

        async def scenario():
            async with Peer() as peer:
                body = b"x" * 200_000
                await peer.say(post(body)[: -len(body)])
                for at in range(0, len(body), step):
                    if peer.transport.ended:
                        break
                    await peer.say(body[at : at + step])
                    await asyncio.sleep(1.0)
                assert peer.statuses() == ([200] if step > 1 else [408])

        run(scenario())

    def test_rest(self):
        async def scenario():
            async with Peer() as peer:
                await peer.say(GET)
                await asyncio.sleep(LIMITS.idle_s - 1)
                await peer.say(GET)
                await asyncio.sleep(LIMITS.idle_s - 1)
                assert peer.transport.state == "open"
                await asyncio.sleep(2)
                assert peer.transport.state == "closed"

        run(scenario())

    def test_calls_have_their_own_deadlines(self):
        async def scenario():
            async with Peer() as peer:
                peer.handler.hold = asyncio.Event()
                await peer.say(GET)
                await asyncio.sleep(1000)
                peer.handler.hold.set()
                await settle()
                assert peer.statuses() == [200]

        run(scenario())

    @pytest.mark.parametrize("every_s", [3.0, 5.0])
    def test_slow_reader(self, every_s):
        """Each part of a reply is to be taken in time; meanwhile it counts as held."""

        async def scenario():
            async with Peer() as peer:
                peer.transport.slow = True
                peer.handler.answer = lambda _: HttpResponse(200, (), b"x" * 700_000)
                await peer.say(GET)
                assert peer.admission.memory_bytes == 700_000
                for _ in range(6):
                    await asyncio.sleep(every_s)
                    peer.connection.resume_writing()
                    await settle()
                if every_s < LIMITS.reply_s:
                    assert peer.responses("GET")[0][1] == b"x" * 700_000
                    assert peer.transport.state == "open"
                else:
                    assert peer.transport.state == "aborted"

        run(scenario())


class TestLoad:
    def test_too_many_calls(self):
        """A request that is refused for that costs nobody the connection."""

        async def scenario():
            async with Peer() as peer:
                assert not peer.admission.admit()
                assert not peer.admission.admit()
                await peer.say(post(b"refused"))
                peer.admission.release(1, 0)
                await peer.say(post(b"welcome"))
                first, second = peer.responses()
                assert (first[0], first[2]["retry-after"]) == (429, "1")
                assert b"2 calls under way" in first[1]
                assert second[:2] == (200, b"/v2/vectordb/entities/search|welcome")
                peer.admission.release(1, 0)

        run(scenario())

    def test_too_much_memory(self):
        async def scenario():
            async with Peer() as peer:
                assert not peer.admission.hold((1 << 20) - 100_000)
                body = b"x" * 150_000
                raw = post(body)
                await peer.say(raw[:90_000])
                assert not peer.transport.written
                await peer.say(raw[90_000:])
                assert peer.statuses() == [429]
                assert peer.admission.memory_bytes == (1 << 20) - 100_000
                peer.admission.release(0, (1 << 20) - 100_000)

        run(scenario())


class TestEnd:
    def test_the_client_goes_away(self):
        """In the middle of a call, the call is cancelled, and only then the connection is over."""

        async def scenario():
            async with Peer() as peer:
                peer.handler.hold = asyncio.Event()
                await peer.say(GET)
                peer.transport.close()
                await settle()
                assert peer.handler.cancelled == 1
                assert not peer.transport.written

        run(scenario())

    def test_the_client_goes_away_in_a_request(self):
        async def scenario():
            async with Peer() as peer:
                await peer.say(post(b"x" * 1000)[:-500])
                assert peer.admission.memory_bytes == 500
                peer.transport.close()

        run(scenario())

    def test_drain_at_rest(self):
        async def scenario():
            async with Peer() as peer:
                await peer.say(GET)
                peer.connection.begin_drain()
                assert peer.transport.state == "closed"

        run(scenario())

    @pytest.mark.parametrize("begun", [10, len(GET)])
    def test_drain_in_a_request(self, begun):
        """What has begun is answered, and the client told not to go on."""

        async def scenario():
            async with Peer() as peer:
                await peer.say(GET[:begun])
                peer.connection.begin_drain()
                assert peer.transport.state == "open" or begun == len(GET)
                await peer.say(GET[begun:])
                if begun < len(GET):
                    assert peer.responses("GET")[0][2]["connection"] == "close"
                    assert peer.transport.state == "closed"

        run(scenario())

    def test_drain_in_a_call(self):
        async def scenario():
            async with Peer() as peer:
                peer.handler.hold = asyncio.Event()
                await peer.say(GET)
                peer.connection.begin_drain()
                peer.handler.hold.set()
                await settle()
                assert peer.responses("GET")[0][2]["connection"] == "close"
                assert peer.transport.state == "closed"

        run(scenario())

    def test_a_fault_of_ours(self):
        """The client is told, without what went wrong; the loop's handler is told what."""

        async def scenario():
            loop = asyncio.get_running_loop()
            async with Peer() as peer:

                def fail(_):
                    raise RuntimeError("secret")

                peer.handler.answer = fail
                await peer.say(GET, GET)
                assert peer.statuses() == [500, 500]
                assert b"secret" not in peer.transport.written
                peer.handler.answer = lambda _: HttpResponse(200, (("bad name", "x"),), b"")
                await peer.say(GET)
                assert peer.statuses() == [500, 500, 500]
            assert len(loop.errors) == 3
            loop.errors.clear()

        run(scenario())


REQUESTS = [GET, post(b"{}"), post(b"x" * 5000), GET.replace(b"GET", b"OPTIONS")]
REQUESTS.append(
    b"POST /c HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n"
    + b"y" * 16
    + b"\r\n0\r\n\r\n"
)


@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6), st.data())
def test_any_slicing(requests, data):
    """How the bytes come in pieces makes no difference."""
    raw = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]

    async def scenario(parts):
        async with Peer() as peer:
            await peer.say(*(part for part in parts if part))
            for _ in requests:
                await settle()
            return bytes(peer.transport.written), [(r.verb, r.target, r.body) for r in peer.handler.requests]

    written, seen = run(scenario(pieces))
    assert (written, seen) == run(scenario([raw]))
    assert len(seen) == len(requests)


FRAGMENTS = st.sampled_from(
    [
        *(
            b"GET ",
            b"POST / HTTP/1.1\r\n",
            b"host: p\r\n",
            b"\r\n",
            b"\n",
            b"content-length: 5\r\n",
            b"0\r\n\r\n",
            b"\0",
        ),
        *(
            b"transfer-encoding: ",
            b"chunked\r\n",
            b"5\r\nabcde\r\n",
            b"expect: 100-continue\r\n",
            b"HTTP/1.0\r\n",
            b" ",
        ),
        *(b"connection: close\r\n", GET, post()),
    ]
)


@given(st.lists(FRAGMENTS | st.binary(max_size=20), max_size=15))
def test_any_bytes(pieces):
    """Whatever comes, the connection answers in HTTP or waits, lets nothing in twice, and ends when its time is up."""

    async def scenario():
        async with Peer() as peer:
            await peer.say(*pieces)
            statuses = peer.statuses()
            assert len(peer.handler.requests) <= len(statuses) <= len(peer.handler.requests) + 1
            await asyncio.sleep(LIMITS.idle_s + LIMITS.request_s)
            assert peer.transport.state != "open"

    run(scenario())
