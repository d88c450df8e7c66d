"""The fleet that a drill starts itself, and owns to the last process.

Decision made here: everything listens on loopback, on free ports, and is gone with the drill.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, final

from haclient.drill import rows
from haclient.drill.fleet import BOUNDED_S, LEASE_S, ZONE, Fleet, Say, Target
from haclient.drill.scenario import Topology
from haclient.drill.servers import etcd, milvus_binary
from haclient.drill.servers.etcd import EtcdCluster
from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.servers.process import ServerProcess
from haclient.drill.servers.proxy import ProxyServer, toml
from haclient.drill.toxic import ToxicProxy
from haclient.errors import ConfigError

#: ``lite`` is milvus-lite, ``milvus`` the real server 2.3.5, ``mixed`` one of that and else milvus-lite.
Engine = Literal["lite", "milvus", "mixed"]
Cluster = LiteServer | StandaloneServer

#: Members of each kind of log.
MEMBERS: Final = {"": 0, "sqlite": 0, "etcd1": 1, "etcd3": 3}
#: A trial is short: whoever is back takes part again soon.
HEALTH: Final = {"slow_start_s": 1.0, "failback_dwell_s": 1.0}
#: Size of the file system under the log whose disk is to be full.
_DISK_BYTES: Final = 192 << 20


@final
class StartedFleet(Fleet):
    """Clusters, log and proxies; an async context manager.

    Args:
        folder: Data and logs.
        topology: How many of what.
        engine: What the clusters are.
        small_disk: Put an SQLite log on a file system that can be filled up; needs root.
        say: Told what is being done.
        plants: Bugs that the load's processes have; see `haclient.drill.worker.Order`.

    Raises:
        ConfigError: This machine lacks what is needed.
    """

    def __init__(
        self,
        folder: Path,
        topology: Topology,
        engine: Engine = "lite",
        *,
        small_disk: bool = False,
        say: Say = lambda _: None,
        plants: tuple[str, ...] = (),
    ) -> None:
        super().__init__(folder, topology, say, plants)
        if MEMBERS[topology.log] and not etcd.available():
            raise ConfigError(f'log = "{topology.log}" needs etcd (apt-get install etcd-server)')
        if engine != "lite" and not milvus_binary.available():
            raise ConfigError("engine milvus needs the PyPI package milvus 2.3.5 (Linux on x86-64): pip install milvus")
        self.engine = engine
        self.small_disk = small_disk
        self.servers: list[Cluster] = [self._server(number) for number in range(topology.clusters)]
        self.links: dict[str, ToxicProxy] = {}
        self.etcd = EtcdCluster(folder / "etcd", MEMBERS[topology.log]) if MEMBERS[topology.log] else None
        self.log_links: list[ToxicProxy] = []
        self.proxies: list[ProxyServer] = []

    def _server(self, number: int) -> Cluster:
        name = "abcde"[number]
        real = self.engine == "milvus" or (self.engine == "mixed" and number == 0)
        if not real:
            return LiteServer(self.folder / name, name=name)
        # Without it Milvus has nobody who could deny writes.
        return StandaloneServer(self.folder / name, name=name, config={"quotaAndLimits.enabled": True})

    @property
    def disk(self) -> Path:
        """The folder of an SQLite log."""
        return self.folder / "log"

    # Configurations.

    def config(self, *, direct: bool = False) -> dict[str, Any]:
        """See `Fleet.config`."""
        near = len(self.servers) - self.topology.remote
        remote = {"zone": "remote", **({"asynchronous": True} if self.topology.log else {})}
        config: dict[str, Any] = {
            "zone": ZONE,
            "health": HEALTH,
            "cluster": [
                {
                    "name": server.name,
                    "endpoints": [server.uri if direct else self.links[server.name].uri],
                    **({"zone": ZONE} if number < near else remote),
                }
                for number, server in enumerate(self.servers)
            ],
        }
        if self.topology.log:
            config["replication"] = {
                "mode": "mirror",
                "log": self._log_address(direct),
                "ack": self.topology.ack,
                "bounded_s": BOUNDED_S,
                "lease_s": LEASE_S,
            }
        return config

    def client_config(self) -> dict[str, Any]:
        """See `Fleet.client_config`; where there are proxies the load goes through them."""
        if not self.proxies:
            return self.config()
        endpoints = [{"name": proxy.name, "uri": proxy.uri} for proxy in self.proxies]
        return {"health": HEALTH, "cluster": [{"name": "proxies", "endpoints": endpoints}]}

    def _log_address(self, direct: bool) -> str:
        if self.etcd is None:
            return str(self.disk / "mutations.db")
        members = self.etcd.members if direct else self.log_links
        return "etcd://" + ",".join(member.address for member in members)

    # Its life.

    async def build(self, stack: AsyncExitStack) -> None:
        """See `Fleet.build`."""
        if self.etcd is not None:
            self.say(f"starting {len(self.etcd.members)} of etcd")
            await stack.enter_async_context(self.etcd)
            for member in self.etcd.members:
                self.log_links.append(await stack.enter_async_context(ToxicProxy(member.port)))
        elif self.topology.log:
            self.disk.mkdir(parents=True)
            if self.small_disk:
                stack.enter_context(_small_disk(self.disk))
        await self._start_servers(stack)
        self.file.write_text(toml(self.config(direct=True)))
        self.proxies = [
            ProxyServer(self.folder / name, self.config(), name=name)
            for name in (f"proxy{number}" for number in range(self.topology.proxies))
        ]
        self.say(f"starting {len(self.proxies)} proxies") if self.proxies else None
        await asyncio.gather(*map(stack.enter_async_context, self.proxies))

    async def _start_servers(self, stack: AsyncExitStack) -> None:
        started = 0

        async def start(server: Cluster) -> None:
            nonlocal started
            await stack.enter_async_context(server)
            started += 1
            self.say(f"started {started} of {len(self.servers)} clusters")

        self.say(f"starting {len(self.servers)} clusters")
        await asyncio.gather(*map(start, self.servers))
        for server in self.servers:
            self.links[server.name] = link = await stack.enter_async_context(ToxicProxy(server.port))
            self.clusters.append(Target(server.name, server, link, partial(rows.connect, server.uri)))

    async def whole(self) -> str:
        """Say what is the matter with it, "" if nothing is."""
        processes: list[ServerProcess] = [*self.servers, *self.proxies, *(self.etcd.members if self.etcd else ())]
        for process in processes:
            try:
                async with asyncio.timeout(5):
                    await process.check()
            except Exception as error:
                return f"{process.name}: {error!r}"
        return await self.caught_up() if await self._written() else ""

    async def _written(self) -> bool:
        return bool(self.topology.log and (await self.log.bounds()).head)

    async def revive(self, target: Target) -> None:
        """See `Fleet.revive`; a milvus-lite loads nothing by itself."""
        await super().revive(target)
        if isinstance(target.process, LiteServer):
            await target.ask(rows.load_all)

    async def empty(self, server: Cluster) -> None:
        """Take a cluster's data from it."""
        await server.kill()
        await asyncio.to_thread(shutil.rmtree, server.folder / "data")
        await server.start()

    async def lose_log(self) -> None:
        """Take the log's disk away, and begin a new one; nobody but this has it open."""
        await self.close_log()
        if self.etcd is None:
            for file in self.disk.glob("mutations.db*"):
                file.unlink()
        else:
            for member in self.etcd.members:
                await member.kill()
                await asyncio.to_thread(shutil.rmtree, member.folder / "data")
            await self.etcd.heal()
        await self.open_log()

    # Who can be hurt.

    async def _candidates(self, kind: str) -> list[Target]:
        match kind:
            case "proxy":
                return [Target(proxy.name, proxy) for proxy in self.proxies]
            case "log" if self.etcd is not None:
                return [
                    Target(member.name, member, link)
                    for member, link in zip(self.etcd.members, self.log_links, strict=True)
                ]
            case "log" if self.topology.log:
                return [Target("log")]
            case _:
                return await super()._candidates(kind)

    async def leader(self) -> Target:
        """See `Fleet.leader`."""
        if self.etcd is None:
            return await super().leader()
        name = (await self.etcd.leader()).name
        return next(target for target in await self._candidates("log") if target.name == name)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A file system in memory, so small that it can be filled up."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)  # noqa: S603 - our own folder
    if done.returncode:
        raise ConfigError(f"a full disk needs root, to mount a small file system: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607 - as above
