"""The parts of the benches whose mistakes would look like good figures."""

import asyncio
import hashlib
import sys
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import proxy_cost
import proxy_soak
import quick_server

PATH = "/milvus.proto.milvus.MilvusService/"


@pytest.fixture
async def stub():
    port = quick_server.Port()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: quick_server.Serving(port), "127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as channel:
        yield port, channel
    server.close()
    await server.wait_closed()


async def test_the_stub_answers_another_grpc_client_and_tells_what_was_inserted(stub):
    port, channel = stub
    message = bytes(range(256)) * 40_000
    assert await channel.unary_unary(PATH + "Insert")(message) == b""
    assert await channel.unary_unary(PATH + "Search")(b"") == quick_server.replies()["Search"]
    prefix = b"\0" + len(message).to_bytes(4, "big")
    assert port.inserted == hashlib.sha256(prefix + message).hexdigest()
    assert port.counts == {"Insert": 1, "Search": 1}
    assert port.open == 0


async def test_the_stub_counts_the_calls_that_are_taken_back(stub):
    port, channel = stub
    port.hold = True
    search = channel.unary_unary(PATH + "Search")
    calls = [search(proxy_cost.search_request()) for _ in range(5)]
    async with asyncio.timeout(10):
        while port.open < 5:
            await asyncio.sleep(0)
        assert await search(b"") == quick_server.replies()["Search"], "a short one is a probe's, and never held"
        for call in calls:
            call.cancel()
        while port.open:
            await asyncio.sleep(0)
    assert port.counts == {"Search": 6, "reset": 5}


@pytest.mark.parametrize("per_request", [0, 8])
def test_growth_is_told_by_its_slope_and_not_by_the_warm_up(per_request):
    warm_up = {50_000: 0, 100_000: 30_000_000}
    samples = [
        (done, warm_up.get(done, 60_000_000) + per_request * done + (65_536 if done % 100_000 else 0))
        for done in range(50_000, 1_000_001, 50_000)
    ]
    assert (proxy_soak.grown(samples) > proxy_soak.NOISE_BYTES) is bool(per_request)


def test_what_is_compared_is_compared_within_a_round():
    # The machine is five times slower in the second round, for everyone.
    rounds = [
        {"direct": {"p50_ms": 1 * slow}, "Envoy": {"p50_ms": 2 * slow}, "haclient": {"p50_ms": 1.5 * slow}}
        for slow in (1, 5, 1)
    ]
    assert proxy_cost.within(rounds, "p50_ms", "haclient", "Envoy") == 0.75
    assert proxy_cost.added(rounds, "p50_ms", "haclient") == 0.5
