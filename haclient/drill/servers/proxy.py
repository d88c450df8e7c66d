"""haclient's proxy, as its operator runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from haclient.drill.servers.lite import check_milvus
from haclient.drill.servers.process import ServerProcess


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
        """See `ServerProcess.command`."""
        file = self.folder / f"{self.name}.toml"
        file.write_text(toml(self.config))
        command = [sys.executable, "-P", "-c", "from haclient.cli import main; main()", "proxy"]
        return [*command, "--config", str(file), "--listen", self.address, "--admin", ""]

    async def check(self) -> None:
        """See `ServerProcess.check`."""
        await check_milvus(self.port)


def toml(config: Mapping[str, Any]) -> str:
    """Write a configuration as its file has it."""
    return "\n".join(_lines(config)) + "\n"


def _lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Write it line by line; JSON and TOML write strings, numbers, booleans and lists of them alike."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{key}.")
        elif key != "cluster":
            yield f"{prefix}{key} = {json.dumps(value)}"
    for cluster in table.get("cluster", ()):
        yield "[[cluster]]"
        yield from _lines(cluster)
