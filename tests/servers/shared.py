"""What the shared fixtures of `tests/conftest.py` give to tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pymilvus import MilvusException

from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.toxic import ToxicProxy
from tests.servers import fill

#: Rows of `fill.COLLECTION` on each server of `standalone_pair` and `distributed`.
ROWS = 500

LiteFactory = Callable[..., Awaitable[LiteServer]]
ToxicFactory = Callable[..., Awaitable[ToxicProxy]]


@dataclass(frozen=True)
class StandalonePair:
    """Two real Milvus, each a cluster of its own, with the same `ROWS` rows in `fill.COLLECTION`."""

    a: StandaloneServer
    b: StandaloneServer

    @property
    def both(self) -> tuple[StandaloneServer, StandaloneServer]:
        return self.a, self.b

    @property
    def uris(self) -> list[str]:
        return [self.a.uri, self.b.uri]

    async def start(self) -> None:
        await asyncio.gather(*(server.start() for server in self.both))

    async def heal(self) -> None:
        """Thaw, start what is dead, load, fill again where rows were changed, and drop what other tests have left.

        A Milvus 2.3.5 that has more to load is slower for long after its next start.
        """
        for again in (True, False):
            for server in self.both:
                server.thaw()
            await self.start()
            try:
                await asyncio.gather(*(asyncio.to_thread(_heal_data, server.uri) for server in self.both))
            except (TimeoutError, MilvusException):
                # One whose lease ran out while it was frozen ends some seconds later, or hangs while it shuts down.
                if not again:
                    raise
                await asyncio.gather(*(server.kill() for server in self.both))
            else:
                return

    async def close(self) -> None:
        for server in self.both:
            await server.close()


def _heal_data(uri: str) -> None:
    _drop_others(uri)
    if fill.count(uri) != ROWS:
        fill.fill([uri], rows=ROWS)


def _drop_others(uri: str) -> None:
    client = fill.connect(uri)
    try:
        for name in set(client.list_collections()) - {fill.COLLECTION}:
            for alias in client.list_aliases(name)["aliases"]:
                client.drop_alias(alias)
            client.drop_collection(name)
    finally:
        client.close()
