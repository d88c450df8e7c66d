"""Engines of the mutation log under one name each, for tests that every engine must pass."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from haclient.config import Replication
from haclient.drill.servers import etcd
from haclient.drill.servers.etcd import EtcdServer
from haclient.replication.engines import open_log
from haclient.replication.log import Mutation, MutationLog
from tests.servers.memory_log import MemoryLog, MemoryStore

ENGINES = ("memory", "sqlite", "etcd")

_numbers = itertools.count(1)


class Opener(Protocol):
    """Opens one more handle of a store."""

    async def __call__(self) -> MutationLog: ...


class Engine(Protocol):
    """Makes a new, empty store."""

    def __call__(self, **settings: object) -> Callable[[], MutationLog]: ...


def missing(engine: str) -> str:
    """What an engine lacks on this machine, "" if nothing."""
    if engine != "etcd":
        return ""
    if not etcd.available():
        return "needs etcd (apt-get install etcd-server)"
    if importlib.util.find_spec("haclient.replication.etcd") is None:
        return "needs haclient.replication.etcd"
    return ""


@contextmanager
def engine(name: str, folder: Path) -> Iterator[Engine]:
    """Run what an engine needs; gives a maker of stores, each of which is a maker of handles."""
    if reason := missing(name):
        pytest.skip(reason)
    if name == "memory":
        yield _memory
    elif name == "sqlite":
        yield lambda **settings: _settled(log=str(folder / f"log{next(_numbers)}.db"), **settings)
    else:
        server = EtcdServer(folder)
        try:
            asyncio.run(server.start())
            address = f"etcd://{server.address}"
            yield lambda **settings: _settled(log=address, etcd_prefix=f"/log{next(_numbers)}/", **settings)
        finally:
            asyncio.run(server.close())


def _memory(**settings: object) -> Callable[[], MutationLog]:
    store = MemoryStore(**settings)  # type: ignore[arg-type]
    return lambda: MemoryLog(store)


def _settled(**settings: object) -> Callable[[], MutationLog]:
    return lambda: open_log(Replication(mode="mirror", **settings), time.time)


def mutation(number: int, message: bytes = b"rows", stream: tuple[str, str] = ("", "docs")) -> Mutation:
    """A write whose operation is its number."""
    return Mutation(number.to_bytes(16, "big"), "Upsert", stream, message)
