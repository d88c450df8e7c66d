"""Real etcd (Debian's etcd-server) on loopback ports: one, or a cluster."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from haclient.drill.process import HOST, ServerProcess


def available() -> bool:
    """Whether the program is installed."""
    return shutil.which("etcd") is not None


class EtcdServer(ServerProcess):
    """One etcd; its data are in the folder and survive a restart.

    Args:
        folder: Data and log.
        name: Its name in the cluster.
        peers: All members of its cluster, itself included; filled in by `EtcdCluster`.
        sync: Whether it calls fsync, which tests that kill processes only do not need.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        name: str = "etcd",
        sync: bool = False,
        start_timeout_s: float = 30,
    ) -> None:
        super().__init__(folder, port=port, name=name, start_timeout_s=start_timeout_s)
        self.peers: list[EtcdServer] = [self]
        self.sync = sync
        self._peer_port = 0

    @property
    def peer_port(self) -> int:
        self._peer_port = self._peer_port or self.reserve()
        return self._peer_port

    def command(self) -> Sequence[str]:
        own = f"http://{HOST}:{self.peer_port}"
        members = ",".join(f"{member.name}=http://{HOST}:{member.peer_port}" for member in self.peers)
        data = self.folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        return [
            "etcd",
            f"--name={self.name}",
            f"--data-dir={data}",
            f"--listen-client-urls={self.uri}",
            f"--advertise-client-urls={self.uri}",
            f"--listen-peer-urls={own}",
            f"--initial-advertise-peer-urls={own}",
            f"--initial-cluster={members}",
            *([] if self.sync else ["--unsafe-no-fsync"]),
        ]

    async def check(self) -> None:
        """``/health`` is a linearizable read: it needs a quorum."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(b"GET /health HTTP/1.0\r\n\r\n")
            answer = await reader.read(4096)
        finally:
            writer.transport.abort()
        if b'"health":"true"' not in answer.replace(b" ", b""):
            raise ConnectionError(f"etcd: {answer!r}")

    async def close(self) -> None:
        await super().close()
        self._peer_port = 0


class EtcdCluster:
    """Several members; an async context manager. Single ones are killed and started through `members`."""

    def __init__(self, folder: Path | str, size: int = 3) -> None:
        self.members = [EtcdServer(Path(folder) / f"etcd{i}", name=f"etcd{i}") for i in range(size)]
        for member in self.members:
            member.peers = self.members

    @property
    def uris(self) -> list[str]:
        return [member.uri for member in self.members]

    async def __aenter__(self) -> Self:
        try:
            for member in self.members:  # none answers before a quorum runs
                member.launch()
            for member in self.members:
                await member.wait_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        for member in self.members:
            await member.close()
