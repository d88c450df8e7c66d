"""What a request costs in a proxy: HAProxy, nginx, Envoy and ``haclient proxy``, side by side in one run.

    python bench/proxy_cost.py [--rounds 15]        stub servers, so that the proxies alone are measured
    python bench/proxy_cost.py --milvus             two real Milvus 2.3.5 (PyPI package ``milvus``)

Every proxy stands in front of the same two servers, with one worker or thread; see `peers.py`.
haclient runs as it comes: status peek, breaker, armed hedge, metrics, request ids. One client in a process of its own
(gRPC's C-core, with the metadata that pymilvus sends) asks the same search of each. They take turns in short slices,
and what is compared is compared within a round, so that what else the machine does falls on all alike; the
median of the rounds counts. CPU time is that of all of a proxy's processes. "Added" is against the servers asked
directly. Only the ratios mean anything elsewhere.

Then haclient with two workers is measured beside one worker, several connections to each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import peers
from harness import BENCH, Child, commands, finish, quantile, run, say, table

from haclient.drill.servers.process import HOST, ServerProcess
from tests.servers.envoy import EnvoyServer

SEARCH, CONNECT = (f"/milvus.proto.milvus.MilvusService/{name}" for name in ("Search", "Connect"))
IN_FLIGHT = (1, 32)
#: Client connections when workers are compared; SO_REUSEPORT spreads connections, not requests.
CONNECTIONS = 16
ROWS, DIMENSION = 10_000, 384


# --- the client, in a process of its own -----------------------------------------------------------------------------


def search_request() -> bytes:
    """The recorded search (384 floats, 10 hits), of the collection that both kinds of servers have."""
    from pymilvus.grpc_gen import common_pb2
    from pymilvus.grpc_gen import milvus_pb2 as pb

    request = pb.SearchRequest.FromString((BENCH / "data" / "search_request.bin").read_bytes())
    request.collection_name = "docs"
    for key, value in (("anns_field", "vector"), ("metric_type", "COSINE")):
        request.search_params.append(common_pb2.KeyValuePair(key=key, value=value))
    return request.SerializeToString()


class Connection:
    """One connection, on which pymilvus would have said hello."""

    def __init__(self, address: str) -> None:
        import grpc

        # Channels to one address would otherwise share their connection.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._search = self._channel.unary_unary(SEARCH)
        self._request = search_request()
        self._identifier = ""

    async def open(self) -> None:
        from pymilvus.grpc_gen import milvus_pb2 as pb

        hello = self._channel.unary_unary(CONNECT, response_deserializer=pb.ConnectResponse.FromString)
        self._identifier = str((await hello(pb.ConnectRequest().SerializeToString())).identifier)
        reply = pb.SearchResults.FromString(await self.search())
        if reply.status.error_code or not reply.results.scores:
            raise RuntimeError(f"no hits: {reply.status}")
        for _ in range(50):
            await self.search()

    async def search(self) -> bytes:
        metadata = (
            ("dbname", ""),
            ("client-request-id", ""),
            ("client-request-unixmsec", str(int(time.time() * 1000))),
            ("identifier", self._identifier),
        )
        return await self._search(self._request, metadata=metadata)


async def measure(connections: list[Connection], in_flight: int, calls: int) -> dict[str, float]:
    latencies: list[float] = []

    async def caller(search: Any) -> None:
        for _ in range(calls // in_flight):
            start = time.perf_counter()
            await search()
            latencies.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(caller(connections[i % len(connections)].search) for i in range(in_flight)))
    seconds = time.perf_counter() - began
    latencies.sort()
    return {
        "calls": len(latencies),
        "p50_ms": quantile(latencies, 0.5) * 1e3,
        "p99_ms": quantile(latencies, 0.99) * 1e3,
        "rate": len(latencies) / seconds,
    }


async def client() -> None:
    """Obey: ``calls`` to ``ports`` over so many ``connections`` (at least one to each)."""
    import gc

    opened: dict[tuple[Any, ...], list[Connection]] = {}
    orders = await commands()
    say("ready")
    while line := await orders.readline():
        order = json.loads(line)
        key = (*order["ports"], order["connections"])
        if key not in opened:
            ports = order["ports"] * max(1, order["connections"] // len(order["ports"]))
            opened[key] = [Connection(f"{HOST}:{port}") for port in ports]
            await asyncio.gather(*(connection.open() for connection in opened[key]))
            gc.collect()
            gc.freeze()
        say(await measure(opened[key], order["in_flight"], order["calls"]))


# --- the contest ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who is asked: a proxy, or the servers themselves.

    Attributes:
        own: Process ids whose CPU time is its cost.
        extra: Those of its supervisor, told apart.
    """

    name: str
    ports: list[int]
    own: list[int]
    extra: list[int]
    connections: int = 1

    @classmethod
    def proxy(cls, name: str, server: ServerProcess, connections: int = 1) -> Contestant:
        main, *workers = peers.processes(server)
        if isinstance(server, peers.HAClient):
            return cls(name, [server.port], workers, [main], connections)
        return cls(name, [server.port], [main, *workers], [], connections)

    def slice(self, caller: Child, in_flight: int, calls: int) -> dict[str, float]:
        before, extra = peers.cpu_s(*self.own), peers.cpu_s(*self.extra)
        order = {"ports": self.ports, "connections": self.connections, "in_flight": in_flight, "calls": calls}
        figures = caller.ask(do="measure", **order)
        figures["worker_us"] = (peers.cpu_s(*self.own) - before) / figures["calls"] * 1e6
        figures["supervisor_us"] = (peers.cpu_s(*self.extra) - extra) / figures["calls"] * 1e6
        figures["cpu_us"] = figures["worker_us"] + figures["supervisor_us"]
        return figures


Rounds = list[dict[str, dict[str, float]]]


def contest(contestants: list[Contestant], caller: Child, in_flight: int, args: argparse.Namespace) -> Rounds:
    """Let them take turns; each round begins with another one."""
    calls = args.calls if in_flight > 1 else max(50, args.calls // 8)
    rounds: Rounds = []
    for one in contestants:
        one.slice(caller, in_flight, calls)  # connects and warms up
    for number in range(args.rounds):
        turn = number % len(contestants)
        order = contestants[turn:] + contestants[:turn]
        rounds.append({one.name: one.slice(caller, in_flight, calls) for one in order})
    return rounds


def within(rounds: Rounds, figure: str, name: str, other: str) -> float:
    """Median over the rounds of one's figure divided by another's."""
    return median(one[name][figure] / one[other][figure] for one in rounds)


def added(rounds: Rounds, figure: str, name: str) -> float:
    """Median over the rounds of what one's figure is above that of the servers asked directly."""
    return median(one[name][figure] - one["direct"][figure] for one in rounds)


async def measure_all(args: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> None:
    ports = await start_servers(args, folder, stack)
    running: dict[str, ServerProcess] = {}
    for name, server in proxies(folder, ports, same_data=not args.milvus).items():
        if name not in args.without:
            print(f"starting {name}", file=sys.stderr)
            running[name] = await stack.enter_async_context(server)
    caller = Child(str(Path(__file__)), "--client")
    stack.callback(caller.close)
    single = [Contestant.proxy(name, server) for name, server in running.items() if name != "2 workers"]
    results: dict[int, Rounds] = {}
    for in_flight in IN_FLIGHT:
        print(f"{in_flight} in flight", file=sys.stderr)
        results[in_flight] = contest([Contestant("direct", ports, [], []), *single], caller, in_flight, args)
    workers: Rounds = []
    if {"haclient", "2 workers"} <= running.keys():
        print("2 workers", file=sys.stderr)
        pair = [Contestant.proxy(name, running[name], CONNECTIONS) for name in ("haclient", "2 workers")]
        workers = contest(pair, caller, max(IN_FLIGHT), args)
    report(args, results, workers)


def proxies(folder: Path, ports: list[int], *, same_data: bool) -> dict[str, ServerProcess]:
    """Those that can run here."""
    found: dict[str, ServerProcess] = {
        "HAProxy": peers.HAProxy(folder / "haproxy", ports),
        "nginx": peers.Nginx(folder / "nginx", ports),
        "Envoy": EnvoyServer(folder / "envoy", ports),
        "haclient": peers.HAClient(folder / "haclient", ports, same_data=same_data),
        "2 workers": peers.HAClient(folder / "two", ports, same_data=same_data, workers=2),
    }
    for name, what in peers.missing().items():
        print(f"{name} is left out: needs {what}", file=sys.stderr)
        del found[name]
    return found


async def start_servers(args: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> list[int]:
    if not args.milvus:
        stubs = Child(str(BENCH / "quick_server.py"), "--ports", "2")
        stack.callback(stubs.close)
        return [int(port) for port in stubs.hello]
    from haclient.drill.servers.milvus import StandaloneServer
    from tests.servers import fill

    servers = [await stack.enter_async_context(StandaloneServer(folder / name, name=name)) for name in ("one", "two")]
    print("filling", file=sys.stderr)
    fill.fill([server.uri for server in servers], rows=ROWS, dimension=DIMENSION)
    return [server.port for server in servers]


# --- the report -------------------------------------------------------------------------------------------------------


def rows_of(results: dict[int, Rounds]) -> Iterable[list[Any]]:
    for in_flight, rounds in results.items():
        for name in rounds[0]:
            if name == "direct":
                cost: list[Any] = [None, None, None]
                extra = [median(one[name][figure] for one in rounds) for figure in ("p50_ms", "p99_ms")]
            else:
                against = within(rounds, "cpu_us", name, "Envoy") if "Envoy" in rounds[0] else None
                cost = [median(one[name][figure] for one in rounds) for figure in ("cpu_us", "supervisor_us")]
                cost = [round(cost[0], 1), round(cost[1], 1) or None, against and round(against, 2)]
                extra = [added(rounds, figure, name) for figure in ("p50_ms", "p99_ms")]
            rate = median(one[name]["rate"] for one in rounds)
            yield [in_flight, name, *cost, *(round(ms, 3) for ms in extra), round(rate)]


def report(args: argparse.Namespace, results: dict[int, Rounds], workers: Rounds) -> None:
    behind = f"two Milvus 2.3.5, {ROWS} x {DIMENSION}, FLAT" if args.milvus else "two stub servers"
    rows = list(rows_of(results))
    print(f"A search through a proxy in front of {behind}; medians of {args.rounds} rounds.")
    print('The latencies of "direct" are whole; the others\' are what they add to it.\n')
    headings = ["in flight", "through", "CPU us per request", "of it supervisor", "x Envoy's CPU"]
    print(table([*headings, "p50 ms", "p99 ms", "requests/s"], rows))
    targets: dict[str, bool] = {}
    against: dict[str, float] = {}
    print()
    if {"Envoy", "haclient"} <= results[1][0].keys():
        for in_flight, rounds in results.items():
            cpu = within(rounds, "cpu_us", "haclient", "Envoy")
            later_us = median(one["haclient"]["p50_ms"] - one["Envoy"]["p50_ms"] for one in rounds) * 1e3
            print(f"{in_flight} in flight, haclient has {cpu:.2f} times Envoy's CPU and {later_us:+.0f} us on its p50.")
            against |= {f"cpu_x_envoy_{in_flight}": round(cpu, 3), f"p50_over_envoy_us_{in_flight}": round(later_us, 1)}
            targets[f"CPU per request at most Envoy's, {in_flight} in flight"] = cpu <= 1
            targets[f"added p50 at most Envoy's, {in_flight} in flight"] = later_us <= 0
    if workers:
        more = within(workers, "worker_us", "2 workers", "haclient")
        print(f"Two workers have {more:.2f} times the CPU per request of one.")
        against["cpu_2_workers_x_1"] = round(more, 3)
        targets["CPU per request with 2 workers at most 1.1 times that of one"] = more <= 1.1
    keys = ("in_flight", "name", "cpu_us", "supervisor_us", "x_envoy", "added_p50_ms", "added_p99_ms", "rate")
    figures = [dict(zip(keys, row, strict=True)) for row in rows]
    finish("proxy_cost", targets, milvus=args.milvus, rounds=args.rounds, rows=figures, against=against)


async def main(args: argparse.Namespace) -> None:
    folder = args.keep or Path(tempfile.mkdtemp(prefix="haclient-proxy-cost-"))
    try:
        async with AsyncExitStack() as stack:
            await measure_all(args, folder, stack)
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=1_600, help="calls of a slice, 32 in flight")
    parser.add_argument("--milvus", action="store_true")
    parser.add_argument("--without", nargs="*", default=[], help="proxies to leave out")
    parser.add_argument("--keep", type=Path, help="keep configurations and logs in this folder")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    if given.client:
        run(client(), "uvloop")
    else:
        run(main(given))
