"""A connection that ends while it is being made: its descriptor is closed once.

uvloop closed it, and the socket object closed the same number again when it was collected. By then it could be the
descriptor of another connection, which heard nothing any more, or of a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest

from haclient.drill.servers.process import HOST
from haclient.wire import dial as module
from haclient.wire.dial import Target, dial

pytestmark = pytest.mark.both_loops


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Target]:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, HOST, 0)
    async with server:
        yield Target(host=HOST, port=server.sockets[0].getsockname()[1])


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets that were connected."""
    made: list[socket.socket] = []
    connect = module._connect

    async def connected(*args: object) -> socket.socket:
        made.append(await connect(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(module, "_connect", connected)
    return made


class Aborting(asyncio.Protocol):
    """Ends the connection before whoever makes it gets it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


async def test_the_connection_ends_while_it_is_made(sockets: list[socket.socket]) -> None:
    async with listening() as target:
        await dial(asyncio.get_running_loop(), target, Aborting)
        for _ in range(10):
            await asyncio.sleep(0)
    assert [sock.fileno() for sock in sockets] == [-1]


async def test_the_one_who_makes_it_is_cancelled_meanwhile(sockets: list[socket.socket]) -> None:
    class Cancelling(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            dialling.cancel()

    async with listening() as target:
        dialling = asyncio.ensure_future(dial(asyncio.get_running_loop(), target, Cancelling))
        with pytest.raises(asyncio.CancelledError):
            await dialling
        for _ in range(10):
            await asyncio.sleep(0)
    assert [sock.fileno() for sock in sockets] == [-1]
