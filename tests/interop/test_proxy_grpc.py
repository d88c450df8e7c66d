"""grpc's C-core, sync and aio, against the proxy, in front of a C-core server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from pymilvus.grpc_gen.milvus_pb2 import ConnectResponse, InsertRequest, MutationResult

from haclient.drill.servers.process import ReservedPort
from haclient.proxy.server import Server
from tests.interop.test_wire_grpc import Service
from tests.servers.proxy import behind, listening, serving

MILVUS = "/milvus.proto.milvus.MilvusService"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
#: A method that the proxy reads, and one that it knows nothing of.
KNOWN, UNKNOWN = f"{MILVUS}/GetMetrics", "/a.B/Echo"
both_ways = pytest.mark.parametrize("path", [KNOWN, UNKNOWN])

#: A unary call, awaited, of either kind of channel.
Ask = Callable[..., Any]


class Upstream(Service):
    """`Service`, and a Milvus without collections, whose Search gives no answer.

    Attributes:
        seen: Metadata and time left of each GetMetrics.
        introduced: The numbers that it gave to those who called Connect.
    """

    def __init__(self, first: int = 1) -> None:
        super().__init__()
        self.seen: list[tuple[dict[str, Any], float | None]] = []
        self.introduced: list[int] = []
        self._numbers = itertools.count(first)

    def service(self, details: Any) -> Any:
        if not details.method.startswith(MILVUS):
            return super().service(details)
        name = details.method.rpartition("/")[2]
        chosen = {
            "Connect": self.introduce,
            "GetMetrics": self.metrics,
            "Search": self.hang,
            "Insert": self.size,
            "RunAnalyzer": self.fail,
        }.get(name, self.nothing)
        return grpc.unary_unary_rpc_method_handler(chosen)

    async def nothing(self, request: bytes, context: Any) -> bytes:
        return b""

    async def introduce(self, request: bytes, context: Any) -> bytes:
        self.introduced.append(next(self._numbers))
        return ConnectResponse(status={}, identifier=self.introduced[-1]).SerializeToString()

    async def metrics(self, request: bytes, context: Any) -> bytes:
        """A GetMetricsResponse whose text is the request."""
        self.seen.append((dict(context.invocation_metadata()), context.time_remaining()))
        await context.send_initial_metadata((("first", "1"), ("first-bin", b"\0\1")))
        context.set_trailing_metadata((("last", "2"), ("last-bin", b"\0\2")))
        return request

    async def size(self, request: bytes, context: Any) -> bytes:
        """A MutationResult whose insert_cnt is the size of the request."""
        return MutationResult(status={}, insert_cnt=len(request)).SerializeToString()


class SyncChannel:
    """C-core's blocking channel; calls are made in threads, which are not the event loop's own."""

    def __init__(self, target: str, options: Any, compression: Any) -> None:
        self.channel = grpc.insecure_channel(target, options, compression)
        self.threads = ThreadPoolExecutor(16)

    async def ask(self, path: str, message: bytes, **arguments: Any) -> Any:
        """The answer, and the call."""
        call = functools.partial(self.channel.unary_unary(path).with_call, message, **arguments)
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def close(self) -> None:
        self.channel.close()
        await asyncio.to_thread(self.threads.shutdown)


class AioChannel:
    """C-core's asyncio channel."""

    def __init__(self, target: str, options: Any, compression: Any) -> None:
        self.channel = grpc.aio.insecure_channel(target, options, compression)

    async def ask(self, path: str, message: bytes, **arguments: Any) -> Any:
        call = self.channel.unary_unary(path)(message, **arguments)
        return await call, call

    async def close(self) -> None:
        await self.channel.close()


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    service = Upstream()
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield service, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
async def proxy(upstream: tuple[Upstream, str]) -> AsyncIterator[tuple[Server, str]]:
    async with serving(behind([f"http://{upstream[1]}"])) as (server, uri):
        yield server, uri.removeprefix("http://")


@pytest.fixture(params=[SyncChannel, AioChannel], ids=["sync", "aio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Makes channels of either kind."""
    channels = []

    def make(target: str, *options: Any, compression: Any = None) -> Any:
        channels.append(request.param(target, [*UNLIMITED, *options], compression))
        return channels[-1]

    yield make
    for channel in channels:
        await channel.close()


@pytest.fixture
async def aio(proxy: tuple[Server, str]) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(proxy[1], UNLIMITED) as channel:
        yield channel


def metrics(text: bytes) -> bytes:
    """A GetMetricsResponse, which the stub also takes as a request."""
    return b"\x12" + bytes([len(text)]) + text


@both_ways
async def test_unary(proxy: tuple[Server, str], connect: Any, path: str) -> None:
    channel = connect(proxy[1])
    wanted = [metrics(b"%d" % number) for number in range(300)]
    answers = await asyncio.gather(*[channel.ask(path, message) for message in wanted])
    assert [answer for answer, _ in answers] == wanted


async def test_metadata(upstream: tuple[Upstream, str], proxy: tuple[Server, str], connect: Any) -> None:
    """What the client says reaches the server, what the server says reaches the client, text and binary."""
    sent = (("mine", "a b"), ("mine-bin", b"\0\xff"), ("authorization", "secret"), ("dbname", "other"))
    _, call = await connect(proxy[1]).ask(KNOWN, b"", metadata=sent, timeout=20)
    seen, left_s = upstream[0].seen[-1]
    assert {key: seen[key] for key, _ in sent} == dict(sent)
    assert seen["client-request-id"]
    assert 15 < left_s < 21
    first, last = call.initial_metadata(), call.trailing_metadata()
    if asyncio.iscoroutine(first):
        first, last = await first, await last
    assert {("first", "1"), ("first-bin", b"\0\1")} <= {tuple(pair) for pair in first}
    assert {("last", "2"), ("last-bin", b"\0\2")} == {tuple(pair) for pair in last}


@pytest.mark.parametrize("path", [f"{MILVUS}/RunAnalyzer", "/a.B/Fail", "/a.B/Unheard", "/x/y"])
async def test_errors_pass_unchanged(
    upstream: tuple[Upstream, str], proxy: tuple[Server, str], connect: Any, path: str
) -> None:
    """Status, text and trailers of a failure, as directly; also of methods that nobody knows."""
    told = []
    for target in (proxy[1], upstream[1]):
        with pytest.raises(grpc.RpcError) as caught:
            await connect(target).ask(path, b"")
        trailers = {tuple(pair) for pair in caught.value.trailing_metadata() if pair[0] != "client-request-id"}
        told.append((caught.value.code(), caught.value.details(), trailers))
    assert told[0] == told[1]


@pytest.mark.parametrize("path", [f"{MILVUS}/Search", "/a.B/Hang"])
async def test_deadline(upstream: tuple[Upstream, str], proxy: tuple[Server, str], connect: Any, path: str) -> None:
    """It ends the call in time, and upstream, too."""
    with pytest.raises(grpc.RpcError) as caught:
        await connect(proxy[1]).ask(path, b"", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await upstream[0].cancelled.wait()
    assert proxy[0].calls == 0


@pytest.mark.parametrize("path", [f"{MILVUS}/Search", "/a.B/Hang"])
async def test_cancelling_reaches_the_server(
    upstream: tuple[Upstream, str], proxy: tuple[Server, str], aio: Any, path: str
) -> None:
    call = aio.unary_unary(path)(b"")
    await upstream[0].entered.wait()
    call.cancel()
    await upstream[0].cancelled.wait()
    assert proxy[0].calls == 0


async def test_cancelling_of_a_blocking_call(upstream: tuple[Upstream, str], proxy: tuple[Server, str]) -> None:
    channel = grpc.insecure_channel(proxy[1])
    future = channel.unary_unary(f"{MILVUS}/Search").future(b"")
    await upstream[0].entered.wait()
    future.cancel()
    await upstream[0].cancelled.wait()
    await asyncio.to_thread(channel.close)


@both_ways
async def test_compression(proxy: tuple[Server, str], connect: Any, path: str) -> None:
    channel = connect(proxy[1], compression=grpc.Compression.Gzip)
    message = metrics(b"a" * 100)
    assert (await channel.ask(path, message))[0] == message
    assert (await channel.ask(path, message, compression=grpc.Compression.Deflate))[0] == message


async def test_large_messages(proxy: tuple[Server, str], connect: Any) -> None:
    """50 MB there and back, and 50 MB that the proxy looks into."""
    channel = connect(proxy[1])
    body = os.urandom(1_000_000) * 50
    assert (await channel.ask(UNKNOWN, body, timeout=60))[0] == body
    request = InsertRequest(collection_name="docs", num_rows=1, hash_keys=[1])
    request.fields_data.add(field_name="vector").vectors.float_vector.data.extend([0.5] * 12_500_000)
    answer, _ = await channel.ask(f"{MILVUS}/Insert", request.SerializeToString(), timeout=60)
    assert MutationResult.FromString(answer).insert_cnt == request.ByteSize()


async def test_server_streaming(aio: Any) -> None:
    got = [message async for message in aio.unary_stream("/a.B/Many")(b"5000")]
    assert got == [b"%d" % number for number in range(5_000)]


async def test_bidirectional_streaming(proxy: tuple[Server, str], aio: Any) -> None:
    call = aio.stream_stream("/a.B/Both")()
    for number in range(200):
        await call.write(b"%d." % number)
        assert await call.read() == b"%d." % number * 2
    assert proxy[0].calls == 1
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_wait_for_ready(upstream: tuple[Upstream, str], connect: Any) -> None:
    """A call that waits is answered when the proxy has come."""
    with ReservedPort() as port:
        asking = asyncio.ensure_future(
            connect(f"127.0.0.1:{port.number}").ask(KNOWN, metrics(b"x"), wait_for_ready=True)
        )
        with contextlib.closing(listening(port.number)) as sock:
            async with serving(behind([f"http://{upstream[1]}"]), sock):
                assert (await asking)[0] == metrics(b"x")


async def test_keepalive_pings_are_welcome(proxy: tuple[Server, str], connect: Any) -> None:
    """Clients send them every ten seconds, far more often than C-core's own servers take by default."""
    often = (
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
    )
    channel = connect(proxy[1], *often, ("grpc.keepalive_permit_without_calls", 1))
    loop = asyncio.get_running_loop()
    connections: set[Any] = set()
    until = loop.time() + 1
    while loop.time() < until:
        await channel.ask(KNOWN, metrics(b"x"))
        connections |= set(proxy[0]._connections)
    assert len(connections) == 1


async def test_a_drain_costs_no_call(upstream: tuple[Upstream, str], connect: Any) -> None:
    """One server takes the place of another, as in a rolling restart, under calls that do not wait for it."""
    config = behind([f"http://{upstream[1]}"])
    with contextlib.closing(listening()) as sock:
        async with serving(config, sock) as (first, uri):
            channel = connect(uri.removeprefix("http://"))
            asked = 0

            async def ask_on() -> None:
                nonlocal asked
                while not over.is_set():
                    assert (await channel.ask(KNOWN, metrics(b"x")))[0] == metrics(b"x")
                    asked += 1

            async def more() -> None:
                seen = asked
                while asked < seen + 100 and not any(task.done() for task in asking):
                    await asyncio.sleep(0.01)

            over = asyncio.Event()
            asking = [asyncio.create_task(ask_on()) for _ in range(8)]
            await more()
            async with serving(config, sock) as (second, _):
                assert await first.drain(10) == 0
                await more()
                assert (first.connections, second.connections) == (0, 1)
                over.set()
                await asyncio.gather(*asking)


async def test_connections_end_for_their_age(upstream: tuple[Upstream, str], connect: Any) -> None:
    config = behind([f"http://{upstream[1]}"], proxy={"limits": {"age_s": 0.5}})
    async with serving(config) as (server, uri):
        channel = connect(uri.removeprefix("http://"))
        connections: set[Any] = set()
        while len(connections) < 3:
            answers = await asyncio.gather(*[channel.ask(KNOWN, metrics(b"x")) for _ in range(8)])
            assert [answer for answer, _ in answers] == [metrics(b"x")] * 8
            connections |= set(server._connections)
