"""What ``haclient proxy`` keeps: memory over many requests, connections, a huge insert, calls taken back.

    python bench/proxy_soak.py [--requests 1000000] [--only memory connections insert cancel]

One worker in front of two stub servers that count what reaches them; a proxy of its own for each part. The clients
are all in this process, on our own wire.

memory        searches and queries, new connections every 50,000; the worker's memory must not grow after a warm-up
connections   2,000 at once, each with a call every four seconds
insert        one message of 200 MB; the server that got it tells the SHA-256 of what arrived
cancel        10,000 searches that are not answered, taken back; every one must be reset at the server behind
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression
from typing import Any

import peers
import psutil
from harness import BENCH, Child, finish, quantile, run, table

from haclient.call import Outcome, Reply
from haclient.drill.measure import open_loop
from haclient.drill.servers.process import HOST
from haclient.wire import Channel, ChannelOptions, Target
from haclient.wire.grpc import message_prefix

SERVICE = "/milvus.proto.milvus.MilvusService/"
MIB = 1 << 20
#: Requests between two looks at the memory.
STEP = 50_000
#: Growth of memory that is noise: the allocator takes a mebibyte at a time.
NOISE_BYTES = 2 * MIB
#: Calls taken back at once, on as many connections as keep each below the proxy's limit on resets.
CANCELLED_AT_ONCE, CANCELLED_PER_CONNECTION = 2_000, 100


@dataclass(frozen=True, slots=True)
class Part:
    """What one part found."""

    figures: dict[str, Any]
    targets: dict[str, bool]


class Rig:
    """A proxy in front of two stubs, and what can be seen of them."""

    def __init__(self, proxy: peers.HAClient, stubs: Child) -> None:
        self.proxy = proxy
        self.stubs = stubs
        _, worker = peers.processes(proxy)
        self.worker = psutil.Process(worker)
        self.search = (BENCH / "data" / "search_request.bin").read_bytes()

    def channel(self) -> Channel:
        return Channel(Target(host=HOST, port=self.proxy.port), ChannelOptions(connect_timeout_s=60))

    @property
    def memory(self) -> int:
        """Bytes the worker holds."""
        return int(self.worker.memory_info().rss)

    @property
    def peak(self) -> int:
        """The most it has held since `forget_peak`."""
        status = Path(f"/proc/{self.worker.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

    def forget_peak(self) -> None:
        Path(f"/proc/{self.worker.pid}/clear_refs").write_text("5")

    def reported(self) -> dict[str, int]:
        """What the worker says it has: connections, calls under way, bytes of messages held."""
        (worker,) = self.proxy.fleet()["workers"]
        return {key: worker[key] for key in ("connections", "calls", "memory_bytes")}

    def seen(self, *what: str) -> int:
        """Sum over the stubs of what they have counted."""
        return sum(port["counts"].get(name, 0) for port in self.stubs.ask(do="seen") for name in what)

    @property
    def open(self) -> int:
        """Calls under way at the stubs."""
        return sum(port["open"] for port in self.stubs.ask(do="seen"))


def call(channel: Channel, method: str, message: bytes, timeout_s: float = 60) -> asyncio.Future[Outcome]:
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    metadata = (
        ("client-request-unixmsec", str(time.time_ns() // 1_000_000)),
        ("client-request-id", f"{random.getrandbits(64):x}"),
    )
    channel.start(SERVICE + method, message, metadata, timeout_s, done.set_result)
    return done


def answered(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Reply) and outcome.code == 0


async def until(reached: Callable[[], bool], timeout_s: float = 20) -> bool:
    """Look until it is so; False if it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.2)
    return True


async def close(channels: Sequence[Channel]) -> None:
    await asyncio.gather(*(channel.aclose() for channel in channels))


# --- the parts --------------------------------------------------------------------------------------------------------


async def memory(rig: Rig, args: argparse.Namespace) -> Part:
    step = min(STEP, args.requests // 8)
    samples: list[tuple[int, int]] = []
    failed = 0
    began = time.monotonic()
    for done in range(step, args.requests + 1, step):
        channels = [rig.channel() for _ in range(8)]
        failed += sum(await asyncio.gather(*(_requests(rig, channels[i % 8], step // 32) for i in range(32))))
        await close(channels)
        samples.append((done, rig.memory))
        print(f"  {done:,} requests: {rig.memory / MIB:.1f} MiB", file=sys.stderr)
    growth = grown(samples)
    figures = {
        "requests": args.requests,
        "failed": failed,
        "requests/s": round(args.requests / (time.monotonic() - began)),
        "MiB at the start of the count": round(counted(samples)[0][1] / MIB, 1),
        "MiB at the end": round(samples[-1][1] / MIB, 1),
        "growth by slope, KiB": round(growth / 1024),
    }
    flat = f"memory flat over {args.requests:,} requests (growth by slope at most {NOISE_BYTES // MIB} MiB)"
    return Part(figures, {flat: growth <= NOISE_BYTES, "every request answered": not failed})


async def _requests(rig: Rig, channel: Channel, count: int) -> int:
    """How many of so many requests, one after the other, were not answered."""
    methods = ["Search"] * 9 + ["Query"]
    return sum(
        [not answered(await call(channel, methods[i % 10], rig.search if i % 10 < 9 else b"")) for i in range(count)]
    )


def counted(samples: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """The samples after the warm-up, their first quarter."""
    return samples[len(samples) // 4 :]


def grown(samples: Sequence[tuple[int, int]]) -> float:
    """Growth from the first to the last counted sample, by the slope of the line through all of them."""
    after = counted(samples)
    slope = linear_regression(*zip(*after, strict=True)).slope
    return slope * (after[-1][0] - after[0][0])


async def connections(rig: Rig, args: argparse.Namespace) -> Part:
    count = args.connections
    _raise_fd_limit()
    before = rig.memory
    channels = [rig.channel() for _ in range(count)]

    def ask(number: int) -> asyncio.Future[Outcome]:
        return call(channels[number % count], "Search", rig.search)

    records = await open_loop(ask, rate=count / 4, seconds=12)
    failed = Counter(_failure(record.answer) for record in records if not answered(record.answer))
    if failed:
        print(f"what failed: {dict(failed)}", file=sys.stderr)
    latencies = sorted(record.latency_s for record in records)
    standing = await until(lambda: rig.reported()["connections"] == count)
    each = (rig.memory - before) / count
    await close(channels)
    gone = await until(lambda: not any(rig.reported().values()))
    figures = {
        "connections": count,
        "calls": len(records),
        "failed": failed.total(),
        "KiB per connection": round(each / 1024, 1),
        "p50 ms": round(quantile(latencies, 0.5) * 1e3),
        "p99 ms": round(quantile(latencies, 0.99) * 1e3),
    }
    targets = {
        f"{count:,} connections at once, every call answered": standing and not failed,
        "no connection left after they were closed": gone,
    }
    return Part(figures, targets)


def _failure(outcome: Outcome | None) -> str:
    return f"{outcome.code} {outcome.details[:120]}" if isinstance(outcome, Reply) else repr(outcome)


def _raise_fd_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def insert(rig: Rig, args: argparse.Namespace) -> Part:
    message = insert_request(args.insert_mb * 1_000_000)
    expected = hashlib.sha256(message_prefix(len(message)))
    expected.update(message)
    channel = rig.channel()
    await call(channel, "Search", rig.search)
    before = rig.memory
    rig.forget_peak()
    start = time.monotonic()
    outcome = await call(channel, "Insert", message, 120)
    took = time.monotonic() - start
    peak = rig.peak
    await close([channel])
    await until(lambda: not any(rig.reported().values()))
    arrived = [port["inserted"] for port in rig.stubs.ask(do="seen")]
    figures = {
        "MB": round(len(message) / 1e6),
        "seconds": round(took, 2),
        "peak above the start, times the message": round((peak - before) / len(message), 2),
        "kept afterwards, MiB": round((rig.memory - before) / MIB, 1),
    }
    if not answered(outcome):
        print(f"the insert: {outcome}", file=sys.stderr)
    exact = answered(outcome) and arrived.count(expected.hexdigest()) == 1
    return Part(figures, {f"an insert of {args.insert_mb} MB arrives once, byte for byte": exact})


def insert_request(size: int) -> bytes:
    """An insert of so many bytes of binary vectors."""
    from pymilvus.grpc_gen import milvus_pb2 as pb

    vectors = {"dim": 4_096, "binary_vector": random.Random(1).randbytes(size // 512 * 512)}
    field = {"field_name": "vector", "type": 100, "vectors": vectors}
    return pb.InsertRequest(collection_name="docs", num_rows=size // 512, fields_data=[field]).SerializeToString()


async def cancel(rig: Rig, args: argparse.Namespace) -> Part:
    rig.stubs.ask(do="hold", on=True)
    samples: list[tuple[int, int]] = []
    searches, done, settled = rig.seen("Search"), 0, True
    for _ in range(max(2, args.cancels // CANCELLED_AT_ONCE)):
        await _take_back(rig)
        done += CANCELLED_AT_ONCE
        settled &= await until(lambda: rig.open == 0)
        settled &= await until(lambda: rig.reported()["calls"] == rig.reported()["memory_bytes"] == 0)
        samples.append((done, rig.memory))
        print(f"  {done:,} taken back: {rig.memory / MIB:.1f} MiB", file=sys.stderr)
    reached, reset, gone = rig.seen("Search") - searches, rig.seen("reset"), rig.seen("gone")
    rig.stubs.ask(do="hold", on=False)
    channel = rig.channel()
    well = answered(await call(channel, "Search", rig.search))
    await close([channel])
    growth = grown(samples)
    figures = {
        "taken back": done,
        "reached the servers (hedges too)": reached,
        "reset there": reset,
        "ended with their connection": gone,
        "growth by slope, KiB": round(growth / 1024),
    }
    targets = {
        f"{done:,} calls taken back: each was reset at the server": reset == reached >= done and not gone,
        "... no call, no message held is left": settled,
        f"... memory flat (growth by slope at most {NOISE_BYTES // MIB} MiB)": growth <= NOISE_BYTES,
        "... and the next call is answered": well,
    }
    return Part(figures, targets)


async def _take_back(rig: Rig) -> None:
    """Send a batch of searches, wait until all are at the servers, and cancel them."""
    channels = [rig.channel() for _ in range(CANCELLED_AT_ONCE // CANCELLED_PER_CONNECTION)]
    before = rig.open
    handles = [
        channel.start(SERVICE + "Search", rig.search, (), 120, lambda outcome: print(outcome, file=sys.stderr))
        for channel in channels
        for _ in range(CANCELLED_PER_CONNECTION)
    ]
    await until(lambda: rig.open - before >= CANCELLED_AT_ONCE)
    for handle in handles:
        handle.cancel()
    await until(lambda: rig.open == before)
    await close(channels)


PARTS: dict[str, Callable[[Rig, argparse.Namespace], Awaitable[Part]]] = {
    part.__name__: part for part in (memory, connections, insert, cancel)
}


async def main(args: argparse.Namespace, folder: Path) -> None:
    parts: dict[str, Part] = {}
    for name in args.only:
        print(name, file=sys.stderr)
        stubs = Child(str(BENCH / "quick_server.py"), "--ports", "2")
        try:
            async with peers.HAClient(folder / name, stubs.hello) as proxy, asyncio.timeout(args.limit):
                parts[name] = await PARTS[name](Rig(proxy, stubs), args)
        finally:
            stubs.close()
    rows = [[name, what, value] for name, part in parts.items() for what, value in part.figures.items()]
    print(table(["part", "figure", "value"], rows))
    targets = {what: met for part in parts.values() for what, met in part.targets.items()}
    finish("proxy_soak", targets, parts={name: part.figures for name, part in parts.items()})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--insert-mb", type=int, default=200)
    parser.add_argument("--cancels", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=1_800, help="seconds that a part may take")
    parser.add_argument("--keep", type=Path, help="keep configurations and logs in this folder")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    where = given.keep or Path(tempfile.mkdtemp(prefix="haclient-proxy-soak-"))
    try:
        run(main(given, where), "uvloop")
    finally:
        if given.keep is None:
            shutil.rmtree(where, ignore_errors=True)
