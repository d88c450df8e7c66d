"""What replicated writes cost, beside writing to each cluster oneself; how fast a cluster catches up.

    python bench/write_cost.py [--engine milvus|lite] [--only rates acks catch_up reseed] [--quick]

Two clusters on this machine (real Milvus 2.3.5 where it is installed, else milvus-lite), each collection indexed and
loaded. One writer, one batch at a time, rows of 384 floats. Whoever is compared takes turns within each round, on the
same servers; ratios are medians over rounds.

rates      rows a second of haclient (ack=one, SQLite) and of pymilvus writing to one cluster after the other
acks       latency and rows a second by ack level and log engine (SQLite; etcd of three members that call fsync)
catch_up   one cluster is down while rows are written; how fast it gets them when it is back
reseed     one cluster is filled anew from the other one: everything that the other parts have written, and more
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import BENCH, Child, cpu_s, finish, quantile, run, table

from haclient.drill.servers import etcd, milvus_binary
from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.milvus import StandaloneServer

PARTS = ("rates", "acks", "catch_up", "reseed")
ACKS = ("log", "one", "quorum", "all")
#: Rows of one batch, and how many batches are one turn.
BATCHES = {1: 200, 100: 40, 1000: 15}
#: Rows of a batch while ack levels are compared, and while a cluster is away.
SMALL = 10


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of a writer cost.

    Attributes:
        rows: Rows written.
        s: Until the last was acknowledged, seconds.
        everywhere_s: Until every cluster had them, seconds.
        cpu_s: CPU seconds of the writer.
        servers_s: CPU seconds of the servers.
        latencies_ms: Of each batch.
    """

    rows: int
    s: float
    everywhere_s: float
    cpu_s: float
    servers_s: float
    latencies_ms: list[float]

    @property
    def rate(self) -> float:
        return self.rows / self.s


class Writer:
    """A client in a process of its own; a context manager.

    Args:
        rig: Whose clusters it writes to.
        kind: ``haclient`` or ``pymilvus``.
        config: What `writer.py` takes.
    """

    def __init__(self, rig: Rig, kind: str, config: Any) -> None:
        self.kind = kind
        self._rig = rig
        self._child = Child(str(BENCH / "writer.py"), kind, json.dumps(config))
        self._rows = 0
        self._collection = ""
        self._auto_id = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.close()

    def create(self, name: str, auto_id: bool = False) -> None:
        """Make a collection and write to it from now on."""
        self._collection, self._auto_id = name, auto_id
        self._child.ask(do="create", collection=name, auto_id=auto_id)

    def turn(self, batch: int, count: int, ack: str = "one") -> Turn:
        """Write, and wait until every cluster has it."""
        begun = self._rig.servers_s()
        got = self._insert(batch, count, ack)
        settled = self.settle()
        spent = self._rig.servers_s() - begun
        return Turn(batch * count, got["s"], got["s"] + settled, got["cpu_s"], spent, got["latencies_ms"])

    def write(self, batch: int, count: int) -> float:
        """Write, and wait for one cluster alone; return the rate, rows a second."""
        return batch * count / float(self._insert(batch, count, "one")["s"])

    def settle(self) -> float:
        """Wait until every cluster has everything, seconds: one more row, acknowledged by all, comes last in each."""
        return 0.0 if self.kind == "pymilvus" else float(self._insert(1, 1, "all")["s"])

    def _insert(self, batch: int, count: int, ack: str) -> Any:
        order = {"collection": self._collection, "auto_id": self._auto_id, "batch": batch, "count": count, "ack": ack}
        got = self._child.ask(do="insert", first=self._rows, **order)
        self._rows += batch * count
        return got


class Rig:
    """Two clusters, and what is written to them.

    Args:
        folder: Data and logs.
        engine: ``milvus`` or ``lite``.
        rounds: Turns of each writer.
        scale: Batches of a turn, beside a whole one's.
    """

    def __init__(self, folder: Path, engine: str, rounds: int, scale: float) -> None:
        kind = StandaloneServer if engine == "milvus" else LiteServer
        self.folder, self.engine, self.rounds, self.scale = folder, engine, rounds, scale
        self.servers = [kind(folder / name, name=name) for name in ("a", "b")]
        self._names = itertools.count(1)

    def haclient(self, log: str | Path) -> Writer:
        clusters = [{"name": server.name, "endpoints": [server.uri]} for server in self.servers]
        return Writer(self, "haclient", {"cluster": clusters, "replication": {"mode": "mirror", "log": str(log)}})

    def pymilvus(self, clusters: int = 2) -> Writer:
        return Writer(self, "pymilvus", [server.uri for server in self.servers[:clusters]])

    def name(self) -> str:
        """A collection that is not there yet."""
        return f"bench{next(self._names)}"

    def count(self, batch: int) -> int:
        """Batches of one turn."""
        return max(3, int(BATCHES[batch] * self.scale))

    def servers_s(self) -> float:
        """CPU seconds of both clusters so far."""
        return sum(cpu_s(server.pid) for server in self.servers if server.pid)


def rates(rig: Rig) -> tuple[dict[str, Any], dict[str, bool]]:
    """Compare rows a second at ack=one with writing to each cluster oneself."""
    rows, figures = [], {}
    with rig.haclient(rig.folder / "rates.db") as ours, rig.pymilvus() as theirs:
        for auto_id, batch in itertools.product((True, False), BATCHES):
            for writer in (ours, theirs):
                writer.create(rig.name(), auto_id)
                writer.turn(batch, 3)
            turns = [[writer.turn(batch, rig.count(batch)) for writer in (theirs, ours)] for _ in range(rig.rounds)]
            ratio = statistics.median(mine.rate / plain.rate for plain, mine in turns)
            everywhere = statistics.median(plain.everywhere_s / mine.everywhere_s for plain, mine in turns)
            keys = "auto_id" if auto_id else "own keys"
            for number, name in enumerate(("pymilvus, each in turn", "haclient, ack=one")):
                mine = [turn[number] for turn in turns]
                thousands = sum(one.rows for one in mine) / 1e3
                spent = [sum(each) / thousands * 1e3 for each in ([t.cpu_s for t in mine], [t.servers_s for t in mine])]
                compared = [round(ratio, 2), round(everywhere, 2)] if number else [None, None]
                first = [keys, batch] if number == 0 else ["", ""]
                rate = round(statistics.median(one.rate for one in mine))
                rows.append([*first, name, rate, *compared, *(round(one, 1) for one in spent)])
            figures[f"{keys}, {batch}"] = {"ratio": round(ratio, 3), "everywhere": round(everywhere, 3)}
    heads = ("keys", "rows in a batch", "writer", "rows/s", "ratio", "ratio until all have it")
    print(table([*heads, "CPU ms per 1,000 rows", "of the servers"], rows))
    least = min(figures[f"{keys}, 1000"]["ratio"] for keys in ("auto_id", "own keys"))
    return figures, {"batches of 1,000 rows at ack=one: at least 0.9 times pymilvus' rate": least >= 0.9}


def acks(rig: Rig, logs: dict[str, str]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Compare ack levels and log engines."""
    count = rig.count(1)
    rows, figures = [], {}

    def note(who: str, what: str, turns: list[Turn]) -> None:
        latencies = sorted(ms for turn in turns for ms in turn.latencies_ms)
        rate = round(statistics.median(turn.rate for turn in turns))
        p50, p99 = (round(quantile(latencies, q), 2) for q in (0.5, 0.99))
        cpu = round(sum(t.cpu_s for t in turns) / sum(t.rows for t in turns) * 1e6, 1)
        rows.append([who, what, p50, p99, rate, cpu])
        figures[f"{who}, {what}"] = {"p50_ms": p50, "p99_ms": p99, "rows_s": rate}

    with ExitStack() as stack:
        plain = {f"{n} in turn" if n > 1 else "one": stack.enter_context(rig.pymilvus(n)) for n in (1, 2)}
        ours = {name: stack.enter_context(rig.haclient(log)) for name, log in logs.items()}
        turns: dict[tuple[str, str], list[Turn]] = defaultdict(list)
        for writer in (*plain.values(), *ours.values()):
            writer.create(rig.name(), auto_id=True)
            writer.turn(SMALL, 5)
        for _ in range(rig.rounds):
            for what, writer in plain.items():
                turns["pymilvus", what].append(writer.turn(SMALL, count))
            for (name, writer), level in itertools.product(ours.items(), ACKS):
                turns[f"haclient, {name}", level].append(writer.turn(SMALL, count, level))
        for (who, what), every in turns.items():
            note(who, what, every)
    heads = ["writer", "clusters or ack", "p50 ms", "p99 ms", "rows/s", "CPU ms per 1,000 rows"]
    print(f"\nBatches of {SMALL} rows:\n\n{table(heads, rows)}")
    return figures, {}


async def catch_up(rig: Rig) -> tuple[dict[str, Any], dict[str, bool]]:
    """Take one cluster away while rows are written, and bring it back."""
    away = rig.servers[1]
    count = rig.count(1) * 5
    with rig.haclient(rig.folder / "catch_up.db") as writer:
        await asyncio.to_thread(writer.create, rig.name(), True)
        await asyncio.to_thread(writer.turn, SMALL, 5)
        await away.kill()
        live = await asyncio.to_thread(writer.write, SMALL, count)
        await away.start()
        took_s = await asyncio.to_thread(writer.settle)
    rate = SMALL * count / took_s
    rows = [[SMALL * count, round(live), round(took_s, 1), round(rate), round(rate / live, 1)]]
    heads = ["rows missed", "live rows/s", "caught up in s", "rows/s", "times the live rate"]
    print(f"\nOne cluster away while batches of {SMALL} rows are written one at a time:\n\n{table(heads, rows)}")
    figures = {"live_rows_s": round(live), "rows_s": round(rate), "ratio": round(rate / live, 2)}
    return figures, {"a cluster catches up at least 5 times as fast as rows were written": rate >= 5 * live}


async def reseed(rig: Rig) -> tuple[dict[str, Any], dict[str, bool]]:
    """Fill one cluster from the other one, as an operator does."""
    log = rig.folder / "reseed.db"
    with rig.haclient(log) as writer:
        await asyncio.to_thread(writer.create, rig.name())
        await asyncio.to_thread(writer.turn, 1000, rig.count(1000))
    clusters = "\n".join(f'[[cluster]]\nname = "{one.name}"\nendpoints = ["{one.uri}"]' for one in rig.servers)
    file = rig.folder / "haclient.toml"
    file.write_text(f'{clusters}\n[replication]\nmode = "mirror"\nlog = "{log}"\n')
    command = [sys.executable, "-m", "haclient.cli", "reseed", "b", "--yes", "--json", "--config", str(file)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    figures = {"rows": told["rows"], "seconds": round(told["seconds"], 1)}
    figures["rows_s"] = round(told["rows"] / told["seconds"])
    print(f"\nOne cluster filled anew: {figures['rows']} rows in {figures['seconds']} s, {figures['rows_s']} rows/s\n")
    return figures, {}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine", choices=("milvus", "lite"), default="milvus" if milvus_binary.available() else "lite"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="few rows, for a look")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="haclient-writes-"))
    rig = Rig(folder, args.engine, 2 if args.quick else args.rounds, 0.2 if args.quick else 1.0)
    figures: dict[str, Any] = {}
    targets: dict[str, bool] = {}

    def note(part: str, found: tuple[dict[str, Any], dict[str, bool]]) -> None:
        figures[part] = found[0]
        targets.update(found[1])

    print(f"Two {'Milvus 2.3.5' if args.engine == 'milvus' else 'milvus-lite'}, rows of 384 floats\n", flush=True)
    try:
        async with AsyncExitStack() as stack:
            for server in rig.servers:
                await stack.enter_async_context(server)
            if "rates" in args.only:
                note("rates", await asyncio.to_thread(rates, rig))
            if "acks" in args.only:
                logs = {"SQLite": str(folder / "acks.db")}
                if etcd.available():
                    members = etcd.EtcdCluster(folder / "etcd")
                    for member in members.members:
                        member.sync = True
                    await stack.enter_async_context(members)
                    logs["etcd of 3"] = "etcd://" + ",".join(member.address for member in members.members)
                note("acks", await asyncio.to_thread(acks, rig, logs))
            if "catch_up" in args.only:
                note("catch_up", await catch_up(rig))
            if "reseed" in args.only:
                note("reseed", await reseed(rig))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    finish("write_cost", targets, engine=args.engine, **figures)


if __name__ == "__main__":
    run(main())
