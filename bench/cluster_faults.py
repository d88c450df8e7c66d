"""A real distributed Milvus whose processes are killed: what a client sees that has both proxies, and one that has one.

    python bench/cluster_faults.py [--faults proxy,querynode,coordinator] [--dead 12]

Milvus 2.3.5 with every role a process (two proxies, two query nodes, replica number two), etcd, and an in-memory queue.
For each fault a role is killed (SIGKILL), is dead for some seconds, and is started again; the record goes on until all
is well. Meanwhile, all at the same time and from one process, at fixed rates whether or not earlier reads are answered:

- haclient with both proxies as the endpoints of one cluster;
- pymilvus' AsyncMilvusClient on proxy A, the one that is killed where a proxy is;
- the same client on proxy B.

Each does reads at three levels, with the same timeout. Each answer's first hit is compared with the row asked for. A
gap is the longest time in which no right answer came. Latency is that of right answers, from the intended start;
over_1s counts those that took longer than a second.

What no client can mend: a Strong read waits for the lease of a dead proxy (10 s here), a Bounded one for as much of it
as exceeds Milvus' grace of 5 s; both need the coordinators' clock; and which query node serves a read is the proxy's
choice. Without coordinators no proxy serves for long, at any level. After a query node has come back some answers are
empty, or the best of a part of the rows: Milvus gives them out as successes.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pymilvus
from harness import finish, quantile, table

from haclient import AsyncMilvusClient
from tests.live.steady_load import Load, Question, searching
from tests.servers import fill
from tests.servers.milvus_cluster import DistributedMilvus

ROWS = 500
RATES = {"Eventually": 10.0, "Bounded": 10.0, "Strong": 4.0}
ROLES = {"proxy": "proxy_a", "querynode": "qn1", "coordinator": "coord"}
LATENCIES = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}


def figures(questions: list[Question], start: float, end: float) -> dict[str, Any]:
    """What one client saw between two moments."""
    seen = [q for q in questions if start <= q.due < end]
    good = [q for q in seen if q.right]
    moments = [start, *sorted(q.ended for q in good), max(end, *(q.ended for q in seen))]
    took = sorted(q.took_s * 1e3 for q in good)
    row: dict[str, Any] = {
        "reads": len(seen),
        "failed": sum(q.error is not None for q in seen),
        "empty": sum(q.error is None and not q.got for q in seen),
        "wrong": sum(q.wrong and bool(q.got) for q in seen),
        "over_1s": sum(q.right and q.took_s > 1 for q in seen),
        "gap_s": round(max(b - a for a, b in itertools.pairwise(moments)), 2),
    }
    return row | {name: round(quantile(took, q), 1) if took else None for name, q in LATENCIES.items()}


async def one_fault(cluster: DistributedMilvus, fault: str, dead_s: float, timeout_s: float) -> list[dict[str, Any]]:
    """Kill one role under load; one row for each client and level."""
    role = getattr(cluster, ROLES[fault])
    ours = AsyncMilvusClient(
        config={"cluster": [{"name": "one", "endpoints": cluster.uris}], "timeouts": {"read_s": timeout_s}}
    )
    clients: dict[str, Any] = {"haclient, both proxies": ours}
    for name, uri in zip(("A", "B"), cluster.uris, strict=True):
        clients[f"pymilvus, proxy {name}"] = pymilvus.AsyncMilvusClient(uri, dedicated=True)
    loads = {}
    clock = asyncio.get_running_loop().time
    try:
        for name, client in clients.items():
            for level, rate in RATES.items():
                ask = searching(client, consistency_level=level, timeout=timeout_s)
                await ask(1)
                loads[name, level] = await Load(ask, rate=rate, rows=ROWS).__aenter__()
        await asyncio.sleep(5)
        began = clock()
        await role.kill()
        await asyncio.sleep(dead_s)
        await role.start()
        started_s = clock() - began
        await asyncio.to_thread(fill.wait_settled, cluster.uris, rows=ROWS, timeout_s=300)
        settled_s = clock() - began
        await asyncio.sleep(10)
        end = clock()
    finally:
        for load in loads.values():
            await load.__aexit__(None, None, None)
        for client in clients.values():
            await client.close()
    print(f"{fault}: role back after {started_s:.1f} s, all well after {settled_s:.1f} s", file=sys.stderr)
    return [
        {"fault": fault, "client": name, "level": level, **figures(load.questions, began, end)}
        for (name, level), load in loads.items()
    ]


async def run(faults: list[str], dead_s: float, timeout_s: float) -> list[dict[str, Any]]:
    """Every fault, on a cluster that is whole before each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        async with DistributedMilvus(Path(folder)) as cluster:
            await asyncio.to_thread(fill.fill, cluster.uris[:1], rows=ROWS, replicas=2)
            for fault in faults:
                await cluster.heal()
                await asyncio.to_thread(fill.wait_settled, cluster.uris, rows=ROWS, timeout_s=300)
                rows += await one_fault(cluster, fault, dead_s, timeout_s)
    return rows


def main() -> None:
    """Run, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="proxy,querynode,coordinator")
    parser.add_argument("--dead", type=float, default=12.0, help="seconds for which the role is dead")
    parser.add_argument("--timeout", type=float, default=30.0, help="of each read, seconds")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # pymilvus logs a page for each failed call
    start = time.monotonic()
    rows = asyncio.run(run(arguments.faults.split(","), arguments.dead, arguments.timeout))
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    proxy = [row for row in rows if row["fault"] == "proxy" and row["client"].startswith("haclient")]
    bad = ("failed", "empty", "wrong")
    ours = [row for row in rows if row["fault"] == "querynode" and row["client"].startswith("haclient")]
    targets = {
        "killed proxy: with haclient every read was answered, and rightly": not any(r[b] for r in proxy for b in bad),
        "killed query node: with haclient no read failed at any level": not any(row["failed"] for row in ours),
    }
    finish("cluster_faults", targets, rows=rows, dead_s=arguments.dead, took_s=round(time.monotonic() - start))


if __name__ == "__main__":
    main()
