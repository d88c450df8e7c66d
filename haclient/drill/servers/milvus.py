"""A real Milvus 2.3.5 standalone server, several on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from haclient.drill.servers import milvus_binary
from haclient.drill.servers.lite import check_milvus
from haclient.drill.servers.process import ServerProcess

_PORTS = ("rootCoord", "queryCoord", "dataCoord", "queryNode", "indexNode", "dataNode")


class StandaloneServer(ServerProcess):
    """Milvus with its embedded etcd and rocksmq, in one process: the one to kill or to freeze.

    Args:
        folder: Data, configuration and log.
        port: The proxy's port; 0 takes a free one. All others are free ones, kept through restarts.
        name: What messages call it.
        session_ttl_s: The lease of its own registration (Milvus' default is 30): after kill -9 a restart waits until
            the old one has run out, 60 s with the default, 9 s with 3 s. A longer freeze does no harm.
        auth: Enable authorisation; `token` is then ``root:Milvus``.
        config: Further configuration in dotted keys, for example ``{"quotaAndLimits.enabled": True}``.
        start_timeout_s: How long it may take until it answers.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        port: int = 0,
        name: str = "milvus",
        auth: bool = False,
        session_ttl_s: int = 5,
        config: Mapping[str, Any] | None = None,
        start_timeout_s: float = 120,
    ) -> None:
        super().__init__(folder, port=port, name=name, start_timeout_s=start_timeout_s)
        self.auth = auth
        self.session_ttl_s = session_ttl_s
        self.config = dict(config or {})
        self._ports: dict[str, int] = {}

    @property
    def token(self) -> str:
        """What a client has to show; empty without authorisation."""
        return "root:Milvus" if self.auth else ""

    @property
    def metrics_port(self) -> int:
        """Serves ``/healthz`` and ``/metrics``."""
        return self._ports["metrics"]

    def command(self) -> Sequence[str]:
        """See `ServerProcess.command`."""
        if not self._ports:
            self._ports = {role: self.reserve() for role in (*_PORTS, "internal", "metrics", "etcd", "peer")}
        ports = self._ports
        client, peer = (f"http://127.0.0.1:{ports[part]}" for part in ("etcd", "peer"))
        # The embedded etcd takes its ports only from a file of its own; milvus.yaml changes the client side alone.
        etcd = self.folder / "etcd.yaml"
        etcd.write_text(
            f"name: default\ndata-dir: {self.folder}/data/etcd\nlogger: zap\nlog-outputs: [{self.folder}/etcd.log]\n"
            f"listen-client-urls: {client}\nadvertise-client-urls: {client}\n"
            f"listen-peer-urls: {peer}\ninitial-advertise-peer-urls: {peer}\ninitial-cluster: default={peer}\n"
        )
        milvus_binary.write_config(
            self.folder,
            {
                "etcd": {
                    "endpoints": f"127.0.0.1:{ports['etcd']}",
                    "rootPath": "by-dev",
                    "use": {"embed": True},
                    "data": {"dir": f"{self.folder}/data/etcd"},
                    "config": {"path": str(etcd)},
                },
                "mq": {"type": "rocksmq"},
                "rocksmq": {"path": f"{self.folder}/data/rocksmq"},
                "localStorage": {"path": f"{self.folder}/data"},
                "proxy": {"port": self.port, "internalPort": ports["internal"]},
                "common": {
                    "security": {"authorizationEnabled": self.auth},
                    "session": {"ttl": self.session_ttl_s},
                },
                **{role: {"port": ports[role]} for role in _PORTS},
            },
            self.config,
        )
        return [str(milvus_binary.unpacked() / "milvus"), "run", "standalone"]

    def configure(self, config: Mapping[str, Any]) -> None:
        """Change further configuration in its file, which a running server reads again within 10 s."""
        self.config |= config
        self.command()

    def environment(self) -> Mapping[str, str]:
        """See `ServerProcess.environment`."""
        return milvus_binary.environment(self.folder, self._ports["metrics"], DEPLOY_MODE="STANDALONE")

    async def check(self) -> None:
        """See `ServerProcess.check`."""
        await check_milvus(self.port, self.token)

    def gone(self) -> None:
        """See `ServerProcess.gone`."""
        milvus_binary.remove_marks(self._process.pid if self._process else 0)

    async def close(self) -> None:
        """See `ServerProcess.close`."""
        await super().close()
        self._ports.clear()
