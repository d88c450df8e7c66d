"""haclient's proxy in front of servers: as its operator runs it, or its server alone in the process of the test."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from haclient.config import Config
from haclient.drill.launch import check_milvus
from haclient.drill.process import HOST, ServerProcess
from haclient.events import EventBus
from haclient.proxy.server import Server


def behind(*clusters: Sequence[str], **settings: Any) -> dict[str, Any]:
    """A configuration with these clusters, named ``c0``, ``c1`` and so on, each given by its endpoints' URIs."""
    named = [{"name": f"c{number}", "endpoints": list(uris)} for number, uris in enumerate(clusters)]
    return {"cluster": named, **settings}


class ProxyServer(ServerProcess):
    """``haclient proxy``, without an admin API.

    Args:
        folder: Configuration and log.
        config: What would stand in its file.
        port: The port it serves on; 0 takes a free one, which it keeps through restarts.
        name: What messages call it.
    """

    def __init__(self, folder: Path | str, config: Mapping[str, Any], *, port: int = 0, name: str = "proxy") -> None:
        super().__init__(folder, port=port, name=name)
        self.config = config

    def command(self) -> Sequence[str]:
        file = self.folder / f"{self.name}.toml"
        file.write_text("\n".join(_toml(self.config)))
        command = [sys.executable, "-P", "-c", "from haclient.cli import main; main()", "proxy"]
        return [*command, "--config", str(file), "--listen", self.address, "--admin", ""]

    async def check(self) -> None:
        await check_milvus(self.port)


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


def _toml(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Write it line by line; JSON and TOML write strings, numbers, booleans and lists of them alike."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _toml(value, f"{prefix}{key}.")
        elif key != "cluster":
            yield f"{prefix}{key} = {json.dumps(value)}"
    for cluster in table.get("cluster", ()):
        yield "[[cluster]]"
        yield from _toml(cluster)
