"""Real etcd (Debian's etcd-server) on loopback ports: one, or a cluster."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import httpx

from haclient.drill.servers.process import HOST, ServerProcess


def available() -> bool:
    """Whether the program is installed."""
    return shutil.which("etcd") is not None


@final
@dataclass(frozen=True)
class EtcdTLS:
    """PEM files with which an etcd serves; it lets in those only whose certificates the authority signed."""

    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a client needs; the server's own certificate does for it."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(str(self.cert), str(self.key))
        return context


class EtcdServer(ServerProcess):
    """One etcd; its data are in the folder and survive a restart.

    Args:
        folder: Data and log.
        name: Its name in the cluster.
        peers: All members of its cluster, itself included; filled in by `EtcdCluster`.
        sync: Whether it calls fsync, which tests that kill processes only do not need.
        options: Further options of the program.
        tls: Serve clients with TLS.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        name: str = "etcd",
        sync: bool = False,
        options: Sequence[str] = (),
        tls: EtcdTLS | None = None,
        start_timeout_s: float = 30,
    ) -> None:
        super().__init__(folder, port=port, name=name, start_timeout_s=start_timeout_s)
        self.options = options
        self.tls = tls
        self.peers: list[EtcdServer] = [self]
        self.sync = sync
        self._peer_port = 0

    @property
    def peer_port(self) -> int:
        """Where members of the cluster talk to it."""
        self._peer_port = self._peer_port or self.reserve()
        return self._peer_port

    @property
    def uri(self) -> str:
        """Where clients find it."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    def command(self) -> Sequence[str]:
        """See `ServerProcess.command`."""
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
            *(self._tls_options(self.tls) if self.tls else []),
            *self.options,
        ]

    @staticmethod
    def _tls_options(tls: EtcdTLS) -> list[str]:
        return [f"--cert-file={tls.cert}", f"--key-file={tls.key}", "--client-cert-auth", f"--trusted-ca-file={tls.ca}"]

    async def check(self) -> None:
        """``/health`` is a linearizable read: it needs a quorum."""
        async with self._client() as client:
            answer = await client.get("/health")
        if answer.json().get("health") != "true":
            raise ConnectionError(f"etcd: {answer.text}")

    async def call(self, path: str, message: dict[str, Any], token: str = "") -> Any:
        """Ask its JSON gateway something, behind the back of whoever uses it."""
        async with self._client() as client:
            answer = await client.post(path, json=message, headers={"authorization": token} if token else {})
        return answer.raise_for_status().json()

    async def leads(self) -> bool:
        """Whether it is the leader."""
        status = await self.call("/v3/maintenance/status", {})
        return bool(status.get("leader") == status["header"]["member_id"])

    def _client(self) -> httpx.AsyncClient:
        verify = self.tls.context() if self.tls else False
        return httpx.AsyncClient(base_url=self.uri, verify=verify, timeout=5, trust_env=False)

    async def close(self) -> None:
        """See `ServerProcess.close`."""
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
        """Where clients find the members."""
        return [member.uri for member in self.members]

    @property
    def log(self) -> str:
        """What the configuration takes for a log in it."""
        return "etcd://" + ",".join(member.address for member in self.members)

    async def leader(self) -> EtcdServer:
        """The member that leads."""
        for member in self.members:
            if member.alive and not member.frozen and await member.leads():
                return member
        raise LookupError("etcd has no leader")

    async def heal(self) -> None:
        """Thaw the frozen members, start the dead ones, and wait until all serve."""
        for member in self.members:
            member.thaw()
            if not member.alive:
                member.launch()
        for member in self.members:
            await member.wait_ready()

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
        """See `ServerProcess.close`."""
        for member in self.members:
            await member.close()
