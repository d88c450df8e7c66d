"""What a large fleet and many calls in flight cost.

    python bench/scale.py [--endpoints 2 10 100 1000] [--in-flight 10000] [--seconds 10]

Three parts, each measurement in a process of its own:

1. *Calls*: CPU time of one pick of an endpoint, and of one whole call through the core, with 2 to 1,000 endpoints
   (each a cluster of its own). Transports are fakes in memory that answer in the next turn of the loop, so this is
   the client's own cost without sockets.
2. *Probes*: CPU time and memory of an idle client that looks after that many endpoints with the default intervals, one
   collection in use. First over fakes; then over real connections to one stub server, reached under as many loopback
   addresses (127.x.y.z): what the kernel and the wire add.
3. *In flight*: memory of a process with 10,000 searches under way over real connections to two stub servers that hold
   their answers; about half of it is what importing pymilvus takes. Then they answer, and every search must end well.
   The peak comes then, when the 10,000 answers are kept as well.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from harness import BENCH, Child, commands, finish, run, say, table

VECTOR = [i / 384 for i in range(384)]


def rss_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    return round(psutil.Process().memory_info().rss / 2**20, 1)


# --- fakes ------------------------------------------------------------------------------------------------------


class Handle:
    """A call under way on a fake."""

    __slots__ = ("_timer",)

    def __init__(self, timer: asyncio.Handle) -> None:
        self._timer = timer

    def cancel(self) -> None:
        self._timer.cancel()


class Fake:
    """A `haclient.call.Transport` that answers like a Milvus, in the next turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, replies: dict[str, Any], empty: Any) -> None:
        self._loop = loop
        self._replies = replies
        self._empty = empty

    def start(self, path: str, message: bytes, metadata: Any, timeout_s: float, done: Callable[[Any], None]) -> Handle:
        reply = self._replies.get(path.rpartition("/")[2], self._empty)
        return Handle(self._loop.call_soon(done, reply))

    def ping(self, done: Callable[[float], None]) -> None:
        self._loop.call_soon(done, 0.001)

    async def aclose(self) -> None:
        """Nothing is open."""


def fake_core(count: int) -> Any:
    """A core over fakes: each endpoint a cluster with catalogue ids of its own."""
    from pymilvus.grpc_gen import milvus_pb2 as pb
    from stub_server import replies

    from haclient.call import Reply
    from haclient.config import Config
    from haclient.core import Core
    from haclient.events import EventBus

    loop = asyncio.get_running_loop()
    common = {name: Reply(message) for name, message in replies().items()}

    def connect(_cluster: Any, endpoint: Any, _probe: bool) -> Fake:
        number = (1 << 50) + int(endpoint.host.rpartition(".")[2]) * 256 + endpoint.port
        shown = pb.ShowCollectionsResponse(collection_names=["docs"], collection_ids=[number], created_timestamps=[1])
        return Fake(loop, common | {"ShowCollections": Reply(shown.SerializeToString())}, Reply(b""))

    uris = [f"http://10.0.0.{i % 250 + 1}:{19530 + i // 250}" for i in range(count)]
    rng = random.Random(1)
    core = Core(Config.from_uri(uris), connect, EventBus(), rng, loop)
    core.bus.subscribe(lambda _event: None)
    return core


async def calls(count: int, number: int) -> dict[str, float]:
    """CPU microseconds of a pick and of a call."""
    from pymilvus.grpc_gen import milvus_pb2 as pb

    from haclient.call import Call
    from haclient.milvus.methods import named

    core = fake_core(count)
    before = time.process_time()
    await core.start()
    starting = time.process_time() - before
    method = named("Search")
    message = pb.SearchRequest(collection_name="docs", nq=1, placeholder_group=bytes(1600)).SerializeToString()
    for _ in range(2 * count + 500):  # every endpoint is known
        await core.request(method, message, (), None)
    await core.keeper.aclose()  # probes are the other part
    call = Call(method, message, (), 1e9, "docs", idempotent=True, hedgeable=True)
    pick = core.fleet.balancer.pick
    before = time.process_time()
    for _ in range(number):
        node, permit = pick(call)
        node.gate.record(permit, None)
    picking = time.process_time() - before
    before = time.process_time()
    for _ in range(number):
        await core.request(method, message, (), None)
    calling = time.process_time() - before
    await core.aclose()
    return {"pick_us": picking / number * 1e6, "call_us": calling / number * 1e6, "start_cpu_s": starting}


async def probes(count: int, seconds: float, port: int) -> dict[str, float]:
    """CPU share and memory of looking after so many endpoints; over the wire to ``port`` if it is given."""
    from haclient import AsyncMilvusClient

    logging.getLogger("haclient").setLevel(logging.CRITICAL)
    empty = rss_mb()
    began = time.process_time(), time.monotonic()
    if port:
        uris = [f"http://127.{1 + i // 62500}.{i // 250 % 250}.{i % 250 + 1}:{port}" for i in range(count)]
        client = AsyncMilvusClient(uris)
        await client.search("docs", data=[VECTOR], limit=10)
        view, close = (lambda: client.fleet), client.close
    else:
        from pymilvus.grpc_gen import milvus_pb2 as pb

        from haclient.milvus.methods import named

        core = fake_core(count)
        message = pb.SearchRequest(collection_name="docs", nq=1).SerializeToString()
        await core.request(named("Search"), message, (), None)
        view, close = core.view, core.aclose
    first = {"first_call_s": time.monotonic() - began[1], "first_call_cpu_s": time.process_time() - began[0]}
    await asyncio.sleep(4 if seconds > 3 else 1)
    before = time.process_time(), time.monotonic()
    worst = 0.0
    while (left := seconds - (time.monotonic() - before[1])) > 0:
        due = time.monotonic() + min(0.01, left)
        await asyncio.sleep(min(0.01, left))
        worst = max(worst, time.monotonic() - due)
    spent, took = time.process_time() - before[0], time.monotonic() - before[1]
    figures = {
        **first,
        "cpu_pct": 100 * spent / took,
        "late_max_ms": worst * 1e3,
        "rss_mb": rss_mb() - empty,
        "down": sum(endpoint.state == "down" for cluster in view().clusters for endpoint in cluster.endpoints),
    }
    await close()
    return figures


async def in_flight(count: int, uris: list[str]) -> dict[str, float]:
    """Memory with ``count`` searches under way; tells when they are, and waits to be told that answers may come."""
    from haclient import AsyncMilvusClient

    for name in ("haclient", "pymilvus"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    orders = await commands()
    figures = {"imported_mb": rss_mb()}
    client = AsyncMilvusClient(uris)
    await client.refresh()
    await asyncio.sleep(1)
    figures["started_mb"] = rss_mb()
    before = time.process_time()
    tasks = []
    for i in range(count):
        tasks.append(asyncio.create_task(client.search("docs", data=[VECTOR], limit=10, timeout=300)))
        if i % 50 == 0:
            await asyncio.sleep(0)
    say("sent")
    await orders.readline()
    figures["flying_mb"] = rss_mb()
    figures["under_way"] = sum(not task.done() for task in tasks)
    say("measured")
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    figures["answered"] = sum(not isinstance(answer, BaseException) for answer in answers)
    figures["cpu_us_per_call"] = (time.process_time() - before) / count * 1e6
    figures["peak_mb"] = round(peak_mb(), 1)
    errors = [str(answer)[:300] for answer in answers if isinstance(answer, BaseException)]
    del tasks, answers
    figures["after_mb"] = rss_mb()
    await client.close()
    say(figures | {"errors": errors[:3]})
    return figures


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- putting it together ----------------------------------------------------------------------------------------


def child(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def hold(count: int) -> dict[str, Any]:
    """Run the third part."""
    servers = Child(str(BENCH / "sick_server.py"), "--ports", "2")
    client = None
    try:
        servers.ask(do="set", settings={"mode": "hold"})
        uris = [f"http://127.0.0.1:{port}" for port in servers.hello["ports"]]
        client = Child(__file__, "--child", "in_flight", str(count), *uris)
        assert client.hello == "sent"
        held, limit = 0, time.monotonic() + 120
        while held < count and time.monotonic() < limit:
            time.sleep(0.5)
            held = servers.ask(do="holding")
        figures = {"held_by_servers": held, "measured": client.ask(do="measure")}
        servers.ask(do="release")
        return figures | client.answer()
    finally:
        for process in filter(None, (client, servers)):
            process.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, nargs="*", default=[2, 10, 100, 1000])
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="how long probes are watched")
    parser.add_argument("--in-flight", type=int, default=10_000)
    parser.add_argument("--child", nargs="+")
    args = parser.parse_args()
    if args.child:
        part, count, *rest = args.child
        if part == "in_flight":
            run(in_flight(int(count), rest))
        elif part == "calls":
            print(json.dumps(run(calls(int(count), int(rest[0])))))
        else:
            print(json.dumps(run(probes(int(count), float(rest[0]), int(rest[1])))))
        return
    figures: dict[str, Any] = {"calls": {}, "probes": {}}
    for count in args.endpoints:
        rounds = [child("calls", count, args.calls) for _ in range(args.rounds)]
        figures["calls"][count] = {key: round(min(r[key] for r in rounds), 2) for key in rounds[0]}
    print("CPU us, the cheapest of the rounds; transports are fakes in memory:\n")
    rows = [[n, f["pick_us"], f["call_us"], f["start_cpu_s"]] for n, f in figures["calls"].items()]
    print(table(["endpoints", "one pick", "one call", "start, CPU s"], rows), flush=True)

    server = Child(str(BENCH / "sick_server.py"), "--host", "0.0.0.0")
    try:
        port = server.hello["ports"][0]
        for count in args.endpoints:
            for kind, where in (("fakes", 0), ("wire", port)):
                one = child("probes", count, args.seconds, where)
                figures["probes"][f"{count} {kind}"] = {key: round(value, 2) for key, value in one.items()}
    finally:
        server.close()
    print("\nAn idle client that looks after its endpoints:\n")
    keys = ("cpu_pct", "late_max_ms", "rss_mb", "first_call_s", "first_call_cpu_s", "down")
    rows = [[*name.split(), *(f[key] for key in keys)] for name, f in figures["probes"].items()]
    headings = ["endpoints", "over", "CPU % of a core", "loop late, max ms", "memory MB", "first call s"]
    print(table([*headings, "first call, CPU s", "down"], rows), flush=True)

    flying = figures["in_flight"] = hold(args.in_flight)
    print(f"\n{args.in_flight} searches in flight over real connections:\n")
    keys = ("imported_mb", "started_mb", "flying_mb", "peak_mb", "after_mb", "held_by_servers", "answered")
    headings = ["imported MB", "started MB", "in flight MB", "peak MB", "after MB", "held by servers", "answered"]
    print(table([*headings, "CPU us per call"], [[*(flying[key] for key in keys), round(flying["cpu_us_per_call"])]]))
    picks = [f["pick_us"] for f in figures["calls"].values()]
    spent = [f["call_us"] for f in figures["calls"].values()]
    finish(
        "scale",
        {
            "the cost of a pick is flat (within 2 times)": max(picks) <= 2 * min(picks),
            "the cost of a call is flat (within 1.5 times)": max(spent) <= 1.5 * min(spent),
            f"a process with {args.in_flight} searches in flight takes less than 300 MB": flying["flying_mb"] < 300,
            "every one of them is answered": flying["answered"] == args.in_flight,
        },
        **figures,
    )


if __name__ == "__main__":
    main()
