"""How much load clients add while every server fails.

    python bench/overload.py [--seconds 10] [--rate 200]

Two stub servers fail in every way a Milvus does, and searches are offered at a fixed rate. What counts is how many of
them reach the servers, retries and hedges included. Beside haclient runs pymilvus' AsyncMilvusClient with its own
policy (75 retries with exponential back-off, on one server). Each client has servers of its own.

    unavailable    gRPC status UNAVAILABLE
    not ready      "not ready" in the reply's body (code 1)
    not loaded     "collection not loaded" in the reply's body (code 101)
    over quota     "rate limit exceeded" in the reply's body (code 8)
    silent         requests are taken and never answered; the calls' timeout is 1 s
    resetting      connections are reset when a request arrives
    refusing       nothing listens: nothing can reach a server, so haclient's attempts are counted instead

A load lasts ``--seconds``; retries get as long again to go on, then what is left is cancelled. haclient's probes are
counted apart: they do not grow with the load.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from caller import read
from harness import BENCH, Child, finish, table

from haclient.drill.servers.process import ReservedPort

MODES = {
    "unavailable": "unavailable",
    "not ready": "not_ready",
    "not loaded": "not_loaded",
    "over quota": "rate_limited",
    "silent": "hold",
    "resetting": "reset",
    "refusing": "",
}
KINDS = ("haclient", "pymilvus")
#: Calls, within a second, before the servers fail.
WARM = 20


def trial(title: str, mode: str, args: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Put both clients under load while their servers fail in one way."""
    clients: dict[str, Child] = {}
    servers = Child(str(BENCH / "sick_server.py"), "--ports", "3")
    empty = [ReservedPort() for _ in range(3)]
    try:
        ports = {"": [port.number for port in empty], "reset": servers.hello["resetting"]}.get(
            mode, servers.hello["ports"]
        )
        working = mode not in ("", "reset")
        uris = [f"http://127.0.0.1:{port}" for port in ports]
        warm = {"rate": WARM, "seconds": 1, "grace_s": 2}
        for kind, own in zip(KINDS, (uris[:2], uris[2:]), strict=True):
            clients[kind] = Child(str(BENCH / "caller.py"), kind, *own)
            assert clients[kind].hello
            if working:
                clients[kind].ask(do="load", out=str(folder / "warm"), **warm)
                clients[kind].ask(do="wait")
        if working:
            servers.ask(do="set", settings={"mode": mode})
        spent = {kind: -client.cpu_s for kind, client in clients.items()}
        order: dict[str, Any] = {"rate": args.rate, "seconds": args.seconds, "grace_s": args.seconds}
        if mode == "hold":
            order["timeout"] = 1.0
        start = {
            kind: client.ask(do="load", out=str(folder / f"{title} {kind}"), **order)
            for kind, client in clients.items()
        }
        events = {}
        for kind, client in clients.items():
            now = client.ask(do="wait")
            events[kind] = {name: count - start[kind].get(name, 0) for name, count in now.items()}
            spent[kind] += client.cpu_s
        time.sleep(0.2)
        counts = servers.ask(do="counts")
    finally:
        for child in (*clients.values(), servers):
            child.close()
        for port in empty:
            port.close()
    rows = {}
    for kind, own in zip(KINDS, ((0, 1), (2,)), strict=True):
        new = [counts[i] for i in own]
        searches, every = sum(c.get("Search", 0) for c in new), sum(sum(c.values()) for c in new)
        # pymilvus has no probes; what it sends beside searches are new introductions after a failure.
        reached = searches if kind == "haclient" else every
        # The warm-up counts on both sides: a budget remembers the calls before the fault too.
        offered = round(args.rate * args.seconds) + (WARM if working else 0)
        record = read(folder / f"{title} {kind}")
        failed = sorted(s.latency * 1e3 for s in record if s.outcome != "ok")
        probes = every - reached if mode else None
        if not mode and kind == "haclient":
            reached = events[kind]["attempts"]
        rows[kind] = {
            "offered": offered,
            "reached": reached,
            "ratio": round(reached / offered, 3),
            "probes": probes,
            "ended": len(record),
            "p50_of_failures_ms": round(failed[len(failed) // 2], 1) if failed else None,
            "cpu_us": round(spent[kind] / offered * 1e6),
            "events": events[kind],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--only", choices=MODES)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="haclient-overload-"))
    figures = {}
    try:
        for title, mode in MODES.items():
            if args.only in (None, title):
                figures[title] = trial(title, mode, args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Requests that reached failing servers, per request offered ({args.rate:g} a second, {args.seconds:g} s):\n")
    rows = []
    for title, by_kind in figures.items():
        ours, theirs = by_kind["haclient"], by_kind["pymilvus"]
        mark = " (attempts)" if title == "refusing" else ""
        wait = (ours["p50_of_failures_ms"], theirs["p50_of_failures_ms"])
        ratios = (f"{ours['ratio']:.2f}{mark}", f"{theirs['ratio']:.2f}")
        rows.append([title, *ratios, *wait, ours["cpu_us"], theirs["cpu_us"], ours["probes"]])
    headings = [
        "servers",
        "haclient",
        "pymilvus",
        "error after ms",
        "pymilvus",
        "CPU us per call",
        "pymilvus",
        "probes",
    ]
    print(table(headings, rows))
    worst = max(by_kind["haclient"]["ratio"] for by_kind in figures.values())
    finish("overload", {"at most 1.2 times the offered load": worst <= 1.2}, worst_ratio=worst, trials=figures)


if __name__ == "__main__":
    main()
