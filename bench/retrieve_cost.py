"""What a retrieval costs the application: `haclient.retrieval.Retriever` against pymilvus' AsyncMilvusClient.

    python bench/retrieve_cost.py [--calls 320] [--rounds 15]

Both ask the same (one vector of 384 floats, 10 hits) of stub servers that answer at once, and read key, score and text
of every hit. haclient runs as it comes: two clusters, probes, breaker, hedging, retries; a third contestant also feeds
Prometheus metrics. Each client runs in a process of its own whose whole CPU time is counted. They take turns in short
slices, and the median slice counts, so that what else the machine does falls on all alike.

What they have read is compared value by value first.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import statistics
import time

import harness
from stub_server import stub_servers

K = 10
LOOPS = ("asyncio", "uvloop")
IN_FLIGHT = (1, 16)
TARGET = 0.35


async def pymilvus_search(uris: list[str]):
    import numpy as np
    from pymilvus import AsyncMilvusClient

    client = AsyncMilvusClient(uris[0])
    vector = np.arange(384, dtype=np.float32) / 384

    async def search() -> list[tuple]:
        hits = (await client.search("docs", data=[vector], limit=K, output_fields=["text"]))[0]
        return [(hit["id"], hit["distance"], hit["entity"]["text"]) for hit in hits]

    return search


async def haclient_search(uris: list[str], *, metrics: bool = False):
    import numpy as np

    from haclient import AsyncMilvusClient
    from haclient.listeners.prometheus import PrometheusListener
    from haclient.retrieval import Retriever

    client = AsyncMilvusClient(uris)
    if metrics:
        client.subscribe(PrometheusListener())
    retriever = Retriever(client, "docs", output_fields=["text"])
    vector = np.arange(384, dtype=np.float32) / 384

    async def search() -> list[tuple]:
        return [(one.id, one.score, one.text) for one in await retriever.retrieve(vector, K)]

    return search


CONTESTANTS = {
    "pymilvus": pymilvus_search,
    "haclient": haclient_search,
    "haclient+metrics": functools.partial(haclient_search, metrics=True),
}


async def child(kind: str, uris: list[str]) -> None:
    search = await CONTESTANTS[kind](uris)
    found = hashlib.sha256(repr(await search()).encode()).hexdigest()
    harness.say(found)
    commands = await harness.commands()

    async def caller(count: int) -> None:
        for _ in range(count):
            await search()

    while line := await commands.readline():
        ask = harness.json.loads(line)
        before = time.process_time()
        await asyncio.gather(*(caller(ask["calls"] // ask["in_flight"]) for _ in range(ask["in_flight"])))
        harness.say((time.process_time() - before) / ask["calls"] * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("uris", nargs="*")
    parser.add_argument("--child")
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--calls", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if args.child:
        harness.run(child(args.child, args.uris), args.loop)
        return
    with stub_servers(2) as uris:
        clients = {
            (kind, loop): harness.Child(__file__, "--child", kind, "--loop", loop, *uris)
            for kind in CONTESTANTS
            for loop in LOOPS
        }
        if len({client.hello for client in clients.values()}) != 1:
            raise SystemExit("they have not all read the same")
        slices: dict[tuple[str, str, int], list[float]] = {}
        for round_ in range(args.rounds + 1):
            for n in IN_FLIGHT:
                for (kind, loop), client in clients.items():
                    cost = client.ask(in_flight=n, calls=args.calls)
                    if round_:  # the first is the warm-up
                        slices.setdefault((kind, loop, n), []).append(cost)
        for client in clients.values():
            client.close()
    report({key: statistics.median(costs) for key, costs in slices.items()})


def report(median: dict[tuple[str, str, int], float]) -> None:
    rows, ratios = [], {}
    for loop in LOOPS:
        for n in IN_FLIGHT:
            costs = {kind: median[kind, loop, n] for kind in CONTESTANTS}
            for kind in ("haclient", "haclient+metrics"):
                ratios[f"{kind}_{loop}_{n}"] = round(costs[kind] / costs["pymilvus"], 3)
            ratio = ratios[f"haclient_{loop}_{n}"]
            rows.append([loop, n, *(round(cost) for cost in costs.values()), ratio])
    headings = ["loop", "in flight", *(f"{kind}, us CPU" for kind in CONTESTANTS), "haclient : pymilvus"]
    print(harness.table(headings, rows))
    met = all(ratios[f"haclient_{loop}_16"] <= TARGET for loop in LOOPS)
    target = f"at 16 in flight a retrieval costs at most {TARGET} of what pymilvus' search does, with the same results"
    harness.finish("retrieve_cost", {target: met}, ratio=ratios)


if __name__ == "__main__":
    main()
