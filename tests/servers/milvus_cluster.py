"""A real distributed Milvus 2.3.5 on one machine: every role a process, two proxies, two query nodes.

It is the real binary with the real etcd; the message queue is `tests.servers.pulsar`, in memory, so it does not
test Pulsar's own faults and must not be restarted alone. All roles share one folder as object storage.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from haclient.drill.servers import etcd, milvus_binary
from haclient.drill.servers.lite import check_milvus
from haclient.drill.servers.plaincall import call
from haclient.drill.servers.process import HOST, ServerProcess

_STORED = ("insert_log", "delta_log", "stats_log", "index_files")


class Broker(ServerProcess):
    """The message queue."""

    def command(self) -> Sequence[str]:
        return [sys.executable, "-P", str(Path(__file__).parent / "pulsar.py"), HOST, str(self.port)]

    async def check(self) -> None:
        _, writer = await asyncio.open_connection(HOST, self.port)
        writer.transport.abort()


class Role(ServerProcess):
    """One process of the cluster; `port` is where it serves gRPC (the root coordinator's for ``coord``)."""

    def __init__(self, cluster: DistributedMilvus, name: str, *arguments: str) -> None:
        super().__init__(cluster.folder / name, name=name, start_timeout_s=90)
        self.cluster = cluster
        self.arguments = arguments
        self._more: dict[str, int] = {}

    def extra_port(self, what: str) -> int:
        """A further port of this role, for example ``metrics``; kept through restarts."""
        if what not in self._more:
            self._more[what] = self.reserve()
        return self._more[what]

    def command(self) -> Sequence[str]:
        (self.folder / "run").mkdir(exist_ok=True)
        self.cluster.write_config()
        return [str(milvus_binary.unpacked() / "milvus"), "run", *self.arguments, "-alias", self.name]

    def environment(self) -> Mapping[str, str]:
        own: dict[str, str] = {}
        if "querynode" in self.arguments:
            # A query node that starts empties its scratch folder, so each has one of its own; what is stored
            # is shared by links.
            scratch, store = self.folder / "scratch", self.cluster.folder / "store"
            scratch.mkdir(exist_ok=True)
            for part in _STORED:
                (store / part).mkdir(parents=True, exist_ok=True)
                link = scratch / part
                if not link.is_symlink():
                    link.symlink_to(store / part)
            own = {"QUERYNODE_PORT": str(self.port), "LOCALSTORAGE_PATH": str(scratch)}
        elif "proxy" in self.arguments:
            own = {"PROXY_PORT": str(self.port), "PROXY_INTERNALPORT": str(self.extra_port("internal"))}
        return milvus_binary.environment(
            self.cluster.folder, self.extra_port("metrics"), **own, MILVUS_RUN_DIR=str(self.folder / "run")
        )

    async def check(self) -> None:
        """A proxy answers real calls; of the others ``/healthz`` says OK before they serve, so ports count too."""
        if "proxy" in self.arguments:
            await check_milvus(self.port, self.cluster.token)
            return
        ports = [self.port, *(port for what, port in self._more.items() if what.endswith("coord"))]
        for port in ports:
            _, writer = await asyncio.open_connection(HOST, port)
            writer.transport.abort()
        reader, writer = await asyncio.open_connection(HOST, self.extra_port("metrics"))
        try:
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            answer = await reader.read(65536)
        finally:
            writer.transport.abort()
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            raise ConnectionError(f"{self.name}: {answer[:200]!r}")

    def gone(self) -> None:
        milvus_binary.remove_marks(self._process.pid if self._process else 0)

    async def close(self) -> None:
        await super().close()
        self._more.clear()


class DistributedMilvus:
    """The cluster; an async context manager.

    Roles are attributes with the interface of every server (kill, start, restart, freeze, thaw):
    ``etcd``, ``broker``, ``coord``, ``datanode``, ``indexnode``, ``qn1``, ``qn2``, ``proxy_a``, ``proxy_b``.

    Args:
        folder: Everything is in it.
        auth: Enable authorisation; `token` is then ``root:Milvus``.
        session_ttl_s: Lease of each role's registration. After kill -9 of one proxy a Strong read through the
            other stalls for about so long; a role that was frozen for longer ends by itself (code 0) once thawed.
    """

    def __init__(self, folder: Path | str, *, auth: bool = False, session_ttl_s: int = 10) -> None:
        self.folder = Path(folder).absolute()
        self.auth = auth
        self.session_ttl_s = session_ttl_s
        self.etcd = etcd.EtcdServer(self.folder / "etcd")
        self.broker = Broker(self.folder / "broker", name="broker")
        coordinators = ("-rootcoord=true", "-querycoord=true", "-datacoord=true", "-indexcoord=true")
        self.coord = Role(self, "coord", "mixture", *coordinators)
        self.datanode = Role(self, "datanode", "datanode")
        self.indexnode = Role(self, "indexnode", "indexnode")
        self.qn1 = Role(self, "qn1", "querynode")
        self.qn2 = Role(self, "qn2", "querynode")
        self.proxy_a = Role(self, "proxy_a", "proxy")
        self.proxy_b = Role(self, "proxy_b", "proxy")

    @property
    def token(self) -> str:
        return "root:Milvus" if self.auth else ""

    @property
    def proxies(self) -> list[Role]:
        return [self.proxy_a, self.proxy_b]

    @property
    def uris(self) -> list[str]:
        return [proxy.uri for proxy in self.proxies]

    @property
    def servers(self) -> list[ServerProcess]:
        """All processes, in the order in which they start."""
        workers = [self.datanode, self.indexnode, self.qn1, self.qn2, *self.proxies]
        return [self.etcd, self.broker, self.coord, *workers]

    async def start(self) -> None:
        """Start whatever does not run, and wait until all answers."""
        for server in self.servers[:3]:  # each needs the one before
            await server.start()
        waiting = [server for server in self.servers if not server.alive]
        for server in waiting:
            server.launch()
        for server in waiting:
            await server.wait_ready()

    async def heal(self) -> None:
        """Thaw what is frozen and start what is dead."""
        for server in self.servers:
            server.thaw()
        await self.start()

    async def close(self) -> None:
        for server in reversed(self.servers):
            await server.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def write_config(self) -> None:
        coord = self.coord
        milvus_binary.write_config(
            self.folder,
            {
                "etcd": {"endpoints": self.etcd.address, "rootPath": "c1", "use": {"embed": False}},
                "localStorage": {"path": str(self.folder / "store")},
                "mq": {"type": "pulsar"},
                "pulsar": {
                    "address": HOST,
                    "port": self.broker.port,
                    "webport": self.broker.port,
                    "maxMessageSize": 5242880,
                    "tenant": "public",
                    "namespace": "default",
                    "requestTimeout": 60,
                },
                "rootCoord": {"port": coord.port},
                "dataCoord": {"port": coord.extra_port("datacoord")},
                "queryCoord": {"port": coord.extra_port("querycoord")},
                "dataNode": {"port": self.datanode.port},
                "indexNode": {"port": self.indexnode.port},
                "common": {
                    "session": {"ttl": self.session_ttl_s},
                    "security": {"authorizationEnabled": self.auth},
                },
            },
            {},
        )


async def collection_id(port: int, name: str) -> bytes:
    """DescribeCollection's reply, whole, through one proxy: equal on two proxies of one cluster only."""
    return await call(HOST, port, "DescribeCollection", b"\x1a" + bytes([len(name)]) + name.encode())
