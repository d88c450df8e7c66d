"""What a unary call costs its client: `haclient.wire` against grpc.aio.

    python bench/wire_cost.py [--calls 6000] [--rounds 3]

A stub server (grpc.aio, its own process) answers a recorded Search (1,640 bytes) with a recorded reply (327 bytes).
Each client runs in its own process, all its threads counted; clients take turns and the cheapest of the
rounds counts, since another program on the machine can only add. Only the ratios mean anything elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

DATA = Path(__file__).with_name("data")
REQUEST = (DATA / "search_request.bin").read_bytes()
REPLY = (DATA / "search_reply.bin").read_bytes()
PATH = "/milvus.proto.milvus.MilvusService/Search"


def run(coroutine, loop: str):
    if loop == "uvloop":
        import uvloop

        return uvloop.run(coroutine)
    return asyncio.run(coroutine)


async def serve() -> None:
    import grpc

    class Handler(grpc.GenericRpcHandler):
        def service(self, _details):
            return grpc.unary_unary_rpc_method_handler(self.answer)

        async def answer(self, _request, _context):
            return REPLY

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def measure(call, in_flight: int, calls: int) -> float:
    """CPU microseconds per call."""

    async def caller() -> None:
        for _ in range(calls // in_flight):
            await call()

    for _ in range(200):
        await call()
    before = time.process_time()
    await asyncio.gather(*[caller() for _ in range(in_flight)])
    return (time.process_time() - before) / (calls // in_flight * in_flight) * 1e6


async def wire(port: int, calls: int) -> dict[int, float]:
    from haclient.wire import Channel, Target

    channel = Channel(Target(host="127.0.0.1", port=port))
    loop = asyncio.get_running_loop()

    def call():
        future = loop.create_future()
        channel.start(PATH, REQUEST, (), 30.0, future.set_result)
        return future

    assert (await call()).message == REPLY
    cost = {n: await measure(call, n, calls) for n in (1, 32)}
    await channel.aclose()
    return cost


async def grpc_aio(port: int, calls: int) -> dict[int, float]:
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(PATH)

        async def call():
            return await method(REQUEST, timeout=30.0)

        assert await call() == REPLY
        return {n: await measure(call, n, calls) for n in (1, 32)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run(serve(), "uvloop")
        return
    if options.worker:
        client, loop, port = options.worker
        function = {"wire": wire, "grpc.aio": grpc_aio}[client]
        print(json.dumps(run(function(int(port), options.calls), loop)))
        return
    me = [sys.executable, __file__]
    server = subprocess.Popen([*me, "--serve"], stdout=subprocess.PIPE, text=True)
    best: dict[tuple[str, str, str], float] = {}
    try:
        port = server.stdout.readline().strip()
        for _ in range(options.rounds):
            for loop in ("asyncio", "uvloop"):
                for client in ("grpc.aio", "wire"):
                    command = [*me, "--calls", str(options.calls), "--worker", client, loop, port]
                    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                    for in_flight, cost in result.items():
                        key = (loop, in_flight, client)
                        best[key] = min(cost, best.get(key, cost))
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()
    rows = []
    print(f"{'loop':8} {'in flight':>9} {'grpc.aio':>9} {'wire':>9} {'ratio':>6}   (CPU µs per call of the client)")
    for loop in ("asyncio", "uvloop"):
        for in_flight in ("1", "32"):
            theirs, ours = (best[loop, in_flight, client] for client in ("grpc.aio", "wire"))
            print(f"{loop:8} {in_flight:>9} {theirs:9.0f} {ours:9.0f} {theirs / ours:6.1f}")
            rows.append(
                {
                    "loop": loop,
                    "in_flight": int(in_flight),
                    "grpc_aio_us": round(theirs, 1),
                    "wire_us": round(ours, 1),
                    "ratio": round(theirs / ours, 2),
                }
            )
    print(json.dumps({"bench": "wire_cost", "calls": options.calls, "rounds": options.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
