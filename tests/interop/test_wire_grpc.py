"""Our client against grpc's C-core server."""

import asyncio

import grpc
import pytest

from haclient.call import Reply
from haclient.errors import AttemptTimeout, ConnectionLost, StreamReset
from haclient.wire import Channel, Target


class Service(grpc.GenericRpcHandler):
    def __init__(self):
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    def service(self, details):
        name = details.method.rsplit("/", 1)[1]
        return {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "Meta": grpc.unary_unary_rpc_method_handler(self.meta),
            "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
            "Slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "Many": grpc.unary_stream_rpc_method_handler(self.many),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
        }.get(name)

    async def echo(self, request, context):
        return request

    async def fail(self, request, context):
        context.set_trailing_metadata((("why", "because"), ("data-bin", b"\0\1")))
        await context.abort(grpc.StatusCode.NOT_FOUND, "no süch\nthing 100%")

    async def meta(self, request, context):
        await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))
        return repr(sorted(tuple(pair) for pair in context.invocation_metadata())).encode()

    async def hang(self, request, context):
        self.entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def slow(self, request, context):
        self.entered.set()
        await asyncio.sleep(0.3)
        return request

    async def many(self, request, context):
        for number in range(int(request)):
            yield b"%d" % number

    async def both(self, requests, context):
        async for request in requests:
            yield request * 2


@pytest.fixture
async def served():
    service = Service()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = Channel(Target(host="127.0.0.1", port=port))
    yield channel, service, server
    await channel.aclose()
    await server.stop(None)


def start(channel, method, message=b"", metadata=(), timeout_s=30.0):
    future = asyncio.get_running_loop().create_future()
    handle = channel.start(f"/a.B/{method}", message, metadata, timeout_s, future.set_result)
    return future, handle


async def call(*args, **options):
    return await start(*args, **options)[0]


async def test_unary(served):
    channel, _, _ = served
    assert await call(channel, "Echo", b"hello") == Reply(b"hello")
    assert await call(channel, "Echo", b"") == Reply(b"")
    replies = await asyncio.gather(*[call(channel, "Echo", b"%d" % n) for n in range(1_000)])
    assert [reply.message for reply in replies] == [b"%d" % n for n in range(1_000)]


async def test_errors_and_trailers(served):
    channel, _, _ = served
    reply = await call(channel, "Fail")
    assert (reply.code, reply.details) == (5, "no süch\nthing 100%")
    assert set(reply.trailers) >= {("why", "because"), ("data-bin", "AAE")}
    assert (await call(channel, "Nothing")).code == 12


async def test_metadata(served):
    channel, _, _ = served
    reply = await call(channel, "Meta", metadata=(("authorization", "token"), ("x", "a b"), ("y-bin", "AAE")))
    seen = reply.message.decode()
    for pair in ("('authorization', 'token')", "('x', 'a b')", r"('y-bin', b'\x00\x01')"):
        assert pair in seen
    assert ("first", "1") in reply.headers
    assert ("last", "2") in reply.trailers


async def test_large_messages(served):
    channel, _, _ = served
    body = bytes(range(256)) * 200_000
    assert (await call(channel, "Echo", body, timeout_s=60.0)).message == body


async def test_deadline(served):
    channel, service, _ = served
    outcome = await call(channel, "Hang", timeout_s=0.1)
    assert isinstance(outcome, AttemptTimeout) or outcome.code == 4
    await service.cancelled.wait()


async def test_cancelling_reaches_the_server(served):
    channel, service, _ = served
    future, handle = start(channel, "Hang")
    await service.entered.wait()
    handle.cancel()
    await service.cancelled.wait()
    assert not future.done()
    assert (await call(channel, "Echo", b"still")).message == b"still"


async def test_server_streaming(served):
    channel, _, _ = served
    async with channel.stream("/a.B/Many", (), 30.0) as stream:
        await stream.send(b"5000")
        await stream.done_sending()
        got = [message async for message in stream]
    assert got == [b"%d" % n for n in range(5_000)]
    assert stream.status.code == 0


async def test_bidirectional_streaming(served):
    channel, _, _ = served
    async with channel.stream("/a.B/Both", (), 30.0) as stream:
        for number in range(100):
            await stream.send(b"%d." % number)
            assert await anext(stream) == b"%d." % number * 2
        await stream.done_sending()
        assert [message async for message in stream] == []
        assert stream.status == Reply(b"")


async def test_shutdown_lets_calls_end(served):
    channel, service, server = served
    future, _ = start(channel, "Slow", b"late")
    await service.entered.wait()
    stopping = asyncio.ensure_future(server.stop(5))
    assert (await future).message == b"late"
    await stopping


async def test_shutdown_at_once(served):
    channel, service, server = served
    future, _ = start(channel, "Hang")
    await service.entered.wait()
    await server.stop(0)
    outcome = await future
    assert isinstance(outcome, ConnectionLost | StreamReset) or outcome.code in (1, 14), outcome
    if not isinstance(outcome, Reply):
        assert outcome.sent


async def test_ping(served):
    channel, _, _ = served
    future = asyncio.get_running_loop().create_future()
    channel.ping(future.set_result)
    assert 0 < await future < 30
