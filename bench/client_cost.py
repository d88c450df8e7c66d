"""What a search costs the application: `haclient.AsyncMilvusClient` against pymilvus' own.

    python bench/client_cost.py [--calls 4000] [--rounds 5]

Both send the same search (one vector of 384 floats, 10 hits) to stub servers that answer at once. haclient runs with
everything on: two clusters, probes, breaker, hedging, retries, a listener for metrics. Each client runs in a process of
its own whose whole CPU time is counted (all threads, probes included); clients take turns, and the median of
the rounds counts. Only the ratios mean anything elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time

from stub_server import stub_servers

VECTOR = [i / 384 for i in range(384)]


async def measure(client, in_flight: int, calls: int) -> float:
    """CPU microseconds per search."""

    async def caller(count: int) -> None:
        for _ in range(count):
            await client.search("docs", data=[VECTOR], limit=10, output_fields=["id"])

    await asyncio.gather(*(caller(200 // in_flight) for _ in range(in_flight)))
    before = time.process_time()
    await asyncio.gather(*(caller(calls // in_flight) for _ in range(in_flight)))
    return (time.process_time() - before) / calls * 1e6


async def child(kind: str, uris: list[str], calls: int) -> None:
    if kind == "pymilvus":
        from pymilvus import AsyncMilvusClient

        client = AsyncMilvusClient(uris[0])
    else:
        from haclient import AsyncMilvusClient
        from haclient.listeners.prometheus import PrometheusListener

        client = AsyncMilvusClient(uris)
        client.subscribe(PrometheusListener())
    print(json.dumps({str(n): await measure(client, n, calls) for n in (1, 16)}))
    await client.close()


def run(kind: str, loop: str, uris: list[str], calls: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, "--loop", loop, "--calls", str(calls), *uris]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uris", nargs="*")
    parser.add_argument("--child")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.child:
        work = child(args.child, args.uris, args.calls)
        if args.loop == "uvloop":
            import uvloop

            uvloop.run(work)
        else:
            asyncio.run(work)
        return
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    with stub_servers(2) as uris:
        for _ in range(args.rounds):
            for kind in ("pymilvus", "haclient"):
                for loop in ("asyncio", "uvloop"):
                    runs.setdefault((kind, loop), []).append(run(kind, loop, uris, args.calls))
    median = {
        f"{kind} {loop} {n}": statistics.median(r[n] for r in runs[kind, loop])
        for kind, loop in runs
        for n in ("1", "16")
    }
    print(f"{'CPU us per search':24s} {'in flight':>9s} {'pymilvus':>9s} {'haclient':>9s} {'ratio':>6s}")
    ratios = {}
    for loop in ("asyncio", "uvloop"):
        for n in ("1", "16"):
            theirs, ours = median[f"pymilvus {loop} {n}"], median[f"haclient {loop} {n}"]
            ratios[f"{loop}_{n}"] = round(ours / theirs, 3)
            print(f"{loop:24s} {n:>9s} {theirs:9.0f} {ours:9.0f} {ours / theirs:6.2f}")
    print(json.dumps({"bench": "client_cost", "cpu_us": {k: round(v) for k, v in median.items()}, "ratio": ratios}))


if __name__ == "__main__":
    main()
