"""Stub Milvus servers that cost next to nothing: on our own wire, with recorded replies; several ports, one process.

    python bench/quick_server.py --ports 2      then commands on stdin, see `main`

They count what reaches them and what is taken back, can hold searches unanswered, and tell the SHA-256 of the last
insert, so that a proxy in front of them can be checked for leaks and for every byte.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import hashlib
import json
from collections import Counter
from typing import Any

from harness import commands, run, say
from stub_server import replies

from haclient.errors import WireError
from haclient.wire import Limits, frames
from haclient.wire.connection import Connection
from haclient.wire.grpc import message_prefix
from haclient.wire.headers import RawHeaders, encode_fields
from haclient.wire.writer import Stream

HEAD = encode_fields(((":status", "200"), ("content-type", "application/grpc")))
TRAILERS = encode_fields((("grpc-status", "0"), ("grpc-message", "")))
#: Only a client's own search is that long; the probes of a proxy are always answered.
HELD_BYTES = 1_000


class Port:
    """What one port has seen.

    Attributes:
        counts: Calls by method, and those ``reset`` or ``gone`` with their connection before they were answered.
        open: Calls under way.
        hold: Searches get no answer.
        inserted: SHA-256 of the last insert.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.open = 0
        self.hold = False
        self.inserted = ""
        self._replies = replies()

    def reply(self, method: str) -> bytes:
        message = self._replies.get(method, b"")
        return message_prefix(len(message)) + message

    def seen(self) -> dict[str, Any]:
        return {"counts": self.counts, "open": self.open, "inserted": self.inserted}


class Serving(Connection[str]):
    """A connection of one client."""

    peer_parity = 1

    def __init__(self, port: Port) -> None:
        super().__init__(asyncio.get_running_loop(), Limits(), _method, "stub")
        self.port = port
        self._preface = frames.PREFACE

    def start_up(self) -> None:
        limits = self.limits
        window = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        wanted = {
            frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            frames.MAX_FRAME_SIZE: limits.max_frame_bytes,
        }
        self.write(frames.settings(wanted) + frames.window_update(0, window))

    def data_received(self, data: bytes) -> None:
        if self._preface:
            size = min(len(self._preface), len(data))
            if data[:size] != self._preface[:size]:
                self.abort()
                return
            self._preface, data = self._preface[size:], data[size:]
        super().data_received(data)

    def on_headers(self, stream_id: int, value: str, end: bool) -> None:
        self.last_peer_id = stream_id
        stream = Served(self, stream_id, value)
        self.streams[stream_id] = stream
        self.port.counts[value] += 1
        self.port.open += 1


class Served(Stream):
    """One call."""

    __slots__ = ("_connection", "_method", "_sha", "_size")

    def __init__(self, connection: Serving, stream_id: int, method: str) -> None:
        super().__init__()
        self.id = stream_id
        self.send_window = connection.peer_initial_window
        self.recv_window = connection.limits.stream_window_bytes
        self._connection = connection
        self._method = method
        self._size = 0
        self._sha = hashlib.sha256() if method == "Insert" else None

    def on_data(self, data: bytes, size: int, end: bool) -> None:
        self._size += len(data)
        if self._sha is not None:
            self._sha.update(data)
        if end:
            self._answer()
        elif self.recv_window << 1 < self._connection.limits.stream_window_bytes:
            self._connection.refill_stream(self, self._connection.limits.stream_window_bytes - self.recv_window)

    def _answer(self) -> None:
        connection, port = self._connection, self._connection.port
        if self._sha is not None:
            port.inserted = self._sha.hexdigest()
        if port.hold and self._method == "Search" and self._size > HELD_BYTES:
            return
        body = port.reply(self._method)
        connection.write(frames.frame(frames.HEADERS, frames.END_HEADERS, self.id, HEAD))
        connection.send_data(self, (body,), len(body), False)
        if self.outgoing is None:
            self.on_sendable()

    def on_sendable(self) -> None:
        connection = self._connection
        if connection.streams.pop(self.id, None) is not None:
            flags = frames.END_HEADERS | frames.END_STREAM
            connection.write(frames.frame(frames.HEADERS, flags, self.id, TRAILERS))
            connection.port.open -= 1

    def on_reset(self, code: int) -> None:
        self._connection.port.counts["reset"] += 1
        self._connection.port.open -= 1

    def on_gone(self, error: WireError) -> None:
        self._connection.port.counts["gone"] += 1
        self._connection.port.open -= 1


def _method(fields: RawHeaders) -> str:
    """The method's name of a request's header block."""
    return next(value for name, value in fields if name == b":path").decode().rpartition("/")[2]


async def main() -> None:
    """Obey: ``hold`` searches or not (``on``), ``seen`` tells what each port has seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, default=1)
    args = parser.parse_args()
    ports = [Port() for _ in range(args.ports)]
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda p=port: Serving(p), "127.0.0.1", 0) for port in ports]
    orders = await commands()
    gc.collect()
    gc.freeze()
    say([server.sockets[0].getsockname()[1] for server in servers])
    while line := await orders.readline():
        order = json.loads(line)
        if order["do"] == "hold":
            for port in ports:
                port.hold = order["on"]
        say([port.seen() for port in ports])
    for server in servers:
        server.close()


if __name__ == "__main__":
    run(main(), "uvloop")
