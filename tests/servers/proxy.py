"""haclient's proxy in front of servers: as its operator runs it, or its server alone in the process of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from haclient.config import Config
from haclient.drill.servers.process import HOST
from haclient.events import EventBus
from haclient.proxy.server import Server


def behind(*clusters: Sequence[str], **settings: Any) -> dict[str, Any]:
    """A configuration with these clusters, named ``c0``, ``c1`` and so on, each given by its endpoints' URIs."""
    named = [{"name": f"c{number}", "endpoints": list(uris)} for number, uris in enumerate(clusters)]
    return {"cluster": named, **settings}


def listening(port: int = 0) -> socket.socket:
    """A socket for `serving`; several servers, one after the other or at once, may take connections from it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, port))
    sock.listen()
    return sock


@asynccontextmanager
async def serving(config: Mapping[str, Any], sock: socket.socket | None = None) -> AsyncIterator[tuple[Server, str]]:
    """Serve on this event loop; yields the server and its URI.

    Args:
        config: What would stand in its file.
        sock: Where clients connect; left open at the end. None takes any free port.
    """
    server = Server(Config.load(None, config), EventBus(), asyncio.get_running_loop())
    given = sock or listening()
    try:
        await server.start(given)
        yield server, f"http://{HOST}:{given.getsockname()[1]}"
    finally:
        await server.aclose()
        if sock is None:
            given.close()
