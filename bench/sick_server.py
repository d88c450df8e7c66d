"""Stub Milvus servers that are slow, refuse, or hold their answers, and count what reaches them; in one process.

    python bench/sick_server.py --ports 3 [--host 127.0.0.1]      then commands on stdin, see `main`

Settings of each port: ``mode`` is ``ok``, ``unavailable`` (gRPC status), ``not_ready``, ``not_loaded``,
``rate_limited`` (errors in the body), or ``hold`` (answers when ``release`` is commanded); ``workers`` requests are
served at a time, for ``service_s`` seconds with ``spread`` "fixed" or "exponential". A request that its client gives
up is served to its end. Each port has a second one beside it, which resets its connections when a request arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import socket
import struct
from collections import Counter
from typing import Any

import grpc
from harness import commands, run, say
from stub_server import replies

#: Milvus' code and its deprecated one.
BODIES = {"not_ready": (1, 56), "not_loaded": (101, 1), "rate_limited": (8, 49)}


class Port(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        from pymilvus.grpc_gen import milvus_pb2 as pb

        self.counts: Counter[str] = Counter()
        self.mode, self.service_s, self.spread, self.workers = "ok", 0.0, "fixed", 1000
        self.released = asyncio.Event()
        self.holding = 0
        self._random = random.Random(1)
        self._replies = replies()
        self._bodies = {
            mode: pb.SearchResults(status={"code": code, "error_code": legacy, "reason": mode}).SerializeToString()
            for mode, (code, legacy) in BODIES.items()
        }
        self._slots = asyncio.Semaphore(self.workers)

    def set(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            setattr(self, name, value)
        if "workers" in settings:
            self._slots = asyncio.Semaphore(self.workers)

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]

        async def answer(_request: bytes, context: Any) -> bytes:
            self.counts[name] += 1
            mode = self.mode
            if mode == "hold" and name == "Search":
                self.holding += 1
                await self.released.wait()
                self.holding -= 1
            elif mode == "unavailable":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the bench says so")
            elif mode in self._bodies and name in ("Search", "Query"):  # both have their status in field 1
                return self._bodies[mode]
            elif self.service_s and name in ("Search", "Query"):
                await asyncio.shield(self._work())
            return self._replies.get(name, b"")

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _work(self) -> None:
        async with self._slots:
            exponential = self.spread == "exponential"
            await asyncio.sleep(self._random.expovariate(1 / self.service_s) if exponential else self.service_s)


class Resetter(asyncio.Protocol):
    """Resets its connection when a request's body arrives; its first bytes are a Milvus' as far as HTTP/2 goes."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._data = b""
        self._left = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))  # SETTINGS, none

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= self._left + 9:
            size, kind = int.from_bytes(self._data[self._left : self._left + 3]), self._data[self._left + 3]
            if kind == 0:  # DATA; only a search is that long
                self._counts["Search" if size > 1000 else "other"] += 1
                linger = struct.pack("ii", 1, 0)
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._transport.abort()
                self._data = b""
                return
            self._data, self._left = self._data[self._left :], 9 + size


async def main() -> None:
    """Obey: ``set`` settings (of ``ports``, or all), ``counts`` and ``holding`` tell, ``release`` answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, default=1)
    parser.add_argument("--host", default="127.0.0.1")
    args = parser.parse_args()
    handlers = [Port() for _ in range(args.ports)]
    servers, numbers, resetting = [], [], []
    for handler in handlers:
        # By default gRPC drops calls of a burst that Python is too slow to take over.
        limits = ("grpc.server.max_pending_requests", "grpc.server.max_pending_requests_hard_limit")
        server = grpc.aio.server(options=[(limit, 1 << 30) for limit in limits])
        server.add_generic_rpc_handlers((handler,))
        numbers.append(server.add_insecure_port(f"{args.host}:0"))
        await server.start()
        servers.append(server)
    loop = asyncio.get_running_loop()
    for handler in handlers:
        resetter = await loop.create_server(lambda h=handler: Resetter(h.counts), args.host, 0)
        resetting.append(resetter.sockets[0].getsockname()[1])
    orders = await commands()
    gc.collect()
    gc.freeze()  # a full collection would stop all ports at once
    say({"ports": numbers, "resetting": resetting})
    while line := await orders.readline():
        order = json.loads(line)
        if order["do"] == "set":
            for i in order.get("ports", range(args.ports)):
                handlers[i].set(order["settings"])
        elif order["do"] == "release":
            for handler in handlers:
                handler.released.set()
        say(sum(h.holding for h in handlers) if order["do"] == "holding" else [dict(h.counts) for h in handlers])
    for server in servers:
        await server.stop(None)


if __name__ == "__main__":
    run(main())
