"""What a backup and a restore take: rows and megabytes a second, size, and a kill in the middle of each.

    python bench/backup.py [--rows N] [--dimension D] [--servers lite,milvus]

It starts each kind of server twice, fills one of them, and runs the commands as an operator does, in processes of their
own (so their start counts): once as they are, and once killed with SIGKILL when about half is done and given again. In
the end all rows of both servers are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.milvus import StandaloneServer

MAKE: dict[str, Callable[[Path], Any]] = {"lite": LiteServer, "milvus": StandaloneServer}
BATCH = 2_000
#: Time between two looks at how far a process is, seconds.
LOOK_S = 0.02


def fill(uri: str, rows: int, dimension: int) -> int:
    """Create the collection ``docs`` with rows as a RAG application has them; returns their bytes, uncompressed."""
    client = MilvusClient(uri, dedicated=True, timeout=60)
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("text", DataType.VARCHAR, max_length=400)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
    client.create_collection("docs", schema=schema)
    rng, size = np.random.default_rng(1), 0
    for at in range(0, rows, BATCH):
        vectors = rng.standard_normal((min(BATCH, rows - at), dimension), dtype=np.float32)
        texts = [f"chunk {at + i} " + "of a text that was embedded " * 6 for i in range(len(vectors))]
        client.insert("docs", [{"id": at + i, "text": texts[i], "vector": one} for i, one in enumerate(vectors)])
        size += vectors.nbytes + sum(map(len, texts)) + 8 * len(vectors)
    client.flush("docs")
    params = client.prepare_index_params()
    params.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_index("docs", params)
    client.load_collection("docs")
    client.close()
    return size


async def command(*line: str, kill_when: Callable[[], bool] = lambda: False) -> tuple[float, bool, Any]:
    """Run ``haclient``, or kill it when something is so; returns seconds, whether it was killed, what it printed."""
    whole = [sys.executable, "-c", "from haclient.cli import main; main()", *line, "--json"]
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *whole, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    reading = asyncio.create_task(process.communicate())
    while not reading.done():
        if kill_when():
            process.kill()
            break
        await asyncio.wait([reading], timeout=LOOK_S)
    printed, error = await reading
    seconds = time.monotonic() - began
    if process.returncode == -signal.SIGKILL:
        return seconds, True, None
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)}: {error.decode()}")
    return seconds, False, json.loads(printed)


def files(place: Path) -> dict[Path, int]:
    """Files of rows that are whole, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in place.rglob("*.parquet")}


def journal(place: Path) -> int:
    """Files of a restore that are done."""
    found = [json.loads(path.read_text()) for path in place.glob("restore-*.json")]
    return sum(len(done["files"]) for one in found for done in one["collections"].values())


async def same(one: str, other: str, folder: Path) -> bool:
    """Compare all rows of two servers with ``haclient verify``."""
    config = folder / "both.toml"
    lines = [f'[[cluster]]\nname = "{name}"\nendpoints = ["{uri}"]\n' for name, uri in (("a", one), ("b", other))]
    config.write_text("\n".join(lines))
    _, _, found = await command("verify", "docs", "--config", str(config))
    return bool(found["well"])


async def measure(kind: str, rows: int, dimension: int, folder: Path) -> None:
    """Measure one kind of server and print its rows of the table."""
    servers = [MAKE[kind](folder / name) for name in ("from", "to")]
    try:
        for server in servers:
            await server.start()
        source, target = (server.uri for server in servers)
        raw = await asyncio.to_thread(fill, source, rows, dimension)
        place, cut = folder / "backups", folder / "cut"

        def show(what: str, seconds: float, note: str = "") -> None:
            rates = f"{rows / seconds:10,.0f} rows/s{raw / seconds / 1e6:8.1f} MB/s"
            print(f"{kind:8}{what:28}{seconds:8.1f} s{rates}  {note}", flush=True)

        seconds, _, made = await command("backup", str(place), "--uri", source, "--no-reread")
        show("backup", seconds, f"{made['bytes'] / 1e6:.1f} MB of {raw / 1e6:.1f} MB, {made['bytes'] / raw:.0%}")
        seconds, _, _ = await command("backup", str(folder / "twice"), "--uri", source)
        show("backup, read twice", seconds)
        half = max(len(files(place)) // 2, 1)
        first, killed, _ = await command(
            "backup", str(cut), "--uri", source, "--no-reread", kill_when=lambda: len(files(cut)) >= half
        )
        whole = files(cut)
        second, _, _ = await command("backup", str(cut), "--uri", source, "--no-reread")
        kept = sum(files(cut).get(path) == at for path, at in whole.items())
        show(
            "  killed, and again", first + second, f"{kept} of {len(files(cut))} files kept" if killed else "not killed"
        )
        first, killed, _ = await command(
            "restore", str(place), "--uri", target, kill_when=lambda: journal(place) >= half
        )
        done = journal(place)
        second, _, _ = await command("restore", str(place), "--uri", target)
        show(
            "restore, killed, and again",
            first + second,
            f"{done} of {len(files(place))} files kept" if killed else "not killed",
        )
        print(
            f"{kind:8}  {'the same rows by haclient verify' if await same(source, target, folder) else 'NOT THE SAME'}"
        )
        seconds, _, _ = await command("restore", str(place), "--uri", target, "--drop-existing")
        show("restore, read back", seconds)
        seconds, _, _ = await command("restore", str(place), "--uri", target, "--drop-existing", "--no-verify")
        show("restore, not read back", seconds)
        print(
            f"{kind:8}  {'the same rows by haclient verify' if await same(source, target, folder) else 'NOT THE SAME'}"
        )
    finally:
        for server in servers:
            await server.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--servers", default="lite,milvus")
    given = parser.parse_args()
    print(f"{given.rows:,} rows x {given.dimension}")
    for kind in given.servers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            await measure(kind, given.rows, given.dimension, Path(folder))


if __name__ == "__main__":
    asyncio.run(main())
