"""What a search costs the application: haclient's clients, async and sync, against pymilvus' own.

    python bench/client_cost.py [--calls 320] [--rounds 15]

Both send the same search (one vector of 384 floats, 10 hits) to stub servers that answer at once. haclient runs with
everything on: two clusters, probes, breaker, hedging, retries, a Prometheus listener. Each client runs in a process of
its own whose whole CPU time is counted (all threads, probes included). The clients take turns in short slices and
the median slice counts, so that what else the machine does falls on all alike. Only the ratios mean
anything elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from stub_server import stub_servers

VECTOR = [i / 384 for i in range(384)]


#: What the application runs on; the sync clients are called by as many threads as searches are in flight.
LOOPS = ("asyncio", "uvloop", "threads")
IN_FLIGHT = (1, 16)


async def measure(client, in_flight: int, calls: int) -> float:
    """CPU microseconds per search."""

    async def caller() -> None:
        for _ in range(calls // in_flight):
            await client.search("docs", data=[VECTOR], limit=10, output_fields=["id"])

    before = time.process_time()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return (time.process_time() - before) / calls * 1e6


def measure_threads(client, pool: ThreadPoolExecutor, in_flight: int, calls: int) -> float:
    """CPU microseconds per search."""

    def caller(_: int) -> None:
        for _ in range(calls // in_flight):
            client.search("docs", data=[VECTOR], limit=10, output_fields=["id"])

    before = time.process_time()
    list(pool.map(caller, range(in_flight)))
    return (time.process_time() - before) / calls * 1e6


def make(kind: str, client: str, uris: list[str]):
    """Make a client of this name; ours with a listener to everything."""
    if kind == "pymilvus":
        import pymilvus

        return getattr(pymilvus, client)(uris[0])
    import haclient
    from haclient.listeners.prometheus import PrometheusListener

    made = getattr(haclient, client)(uris)
    made.subscribe(PrometheusListener())
    return made


async def child(kind: str, uris: list[str], calls: int) -> None:
    """Measure one slice for every number of searches in flight read from standard input."""
    client = make(kind, "AsyncMilvusClient", uris)
    await measure(client, 1, calls)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(await measure(client, int(line), calls), flush=True)
    await client.close()


def child_threads(kind: str, uris: list[str], calls: int) -> None:
    """The same for a sync client."""
    client = make(kind, "MilvusClient", uris)
    with ThreadPoolExecutor(max(IN_FLIGHT)) as pool:
        measure_threads(client, pool, max(IN_FLIGHT), calls)
        for line in sys.stdin:
            print(measure_threads(client, pool, int(line), calls), flush=True)
    client.close()


class Contestant:
    """One client in a process of its own."""

    def __init__(self, kind: str, loop: str, uris: list[str], calls: int) -> None:
        command = [sys.executable, __file__, "--child", kind, "--loop", loop, "--calls", str(calls), *uris]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.slices: dict[int, list[float]] = {n: [] for n in IN_FLIGHT}

    def run(self, in_flight: int) -> None:
        print(in_flight, file=self.process.stdin, flush=True)
        self.slices[in_flight].append(float(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uris", nargs="*")
    parser.add_argument("--child")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--calls", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if args.child:
        if args.loop == "threads":
            child_threads(args.child, args.uris, args.calls)
        elif args.loop == "uvloop":
            import uvloop

            uvloop.run(child(args.child, args.uris, args.calls))
        else:
            asyncio.run(child(args.child, args.uris, args.calls))
        return
    with stub_servers(2) as uris:
        contestants = {
            (kind, loop): Contestant(kind, loop, uris, args.calls)
            for kind in ("pymilvus", "haclient")
            for loop in LOOPS
        }
        for _ in range(args.rounds):
            for in_flight in IN_FLIGHT:
                for contestant in contestants.values():
                    contestant.run(in_flight)
        for contestant in contestants.values():
            contestant.close()
    report({key: {n: statistics.median(c.slices[n]) for n in IN_FLIGHT} for key, c in contestants.items()})


def report(median: dict[tuple[str, str], dict[int, float]]) -> None:
    print(f"{'CPU us per search':20s} {'in flight':>9s} {'pymilvus':>9s} {'haclient':>9s} {'ratio':>6s}")
    ratios = {}
    for loop in LOOPS:
        for n in IN_FLIGHT:
            theirs, ours = median["pymilvus", loop][n], median["haclient", loop][n]
            ratios[f"{loop}_{n}"] = round(ours / theirs, 3)
            print(f"{loop:20s} {n:9d} {theirs:9.0f} {ours:9.0f} {ours / theirs:6.2f}")
    cpu = {f"{kind}_{loop}_{n}": round(us) for (kind, loop), one in median.items() for n, us in one.items()}
    print(json.dumps({"bench": "client_cost", "cpu_us": cpu, "ratio": ratios}))


if __name__ == "__main__":
    main()
