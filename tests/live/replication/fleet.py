"""A replicated fleet to be hurt: clusters, a log, proxies, and processes that write.

Decision made here: clients reach every cluster and every member of etcd through a `ToxicProxy` in this process, so any
of them can be cut off; the harness itself goes past it. Servers, log and proxies live through many trials.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, final

import httpx

from haclient.config import Config
from haclient.drill.servers.etcd import EtcdCluster, EtcdServer
from haclient.drill.servers.lite import LiteServer
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.servers.process import ServerProcess
from haclient.drill.servers.proxy import ProxyServer
from haclient.drill.toxic import ToxicProxy
from haclient.replication.engines import open_log
from haclient.replication.log import MutationLog
from haclient.replication.position import POSITION, Position, Standing
from tests.live.replication.checker import Contents
from tests.live.replication.rows import Names, contents, load_all
from tests.live.replication.worker import Order

Engine = Literal["lite", "three", "milvus", "mixed"]
Log = Literal["sqlite", "etcd1", "etcd3"]
Cluster = LiteServer | StandaloneServer

#: Servers of each engine.
ENGINES: Final[dict[Engine, tuple[type[Cluster], ...]]] = {
    "lite": (LiteServer, LiteServer),
    "three": (LiteServer, LiteServer, LiteServer),
    "milvus": (StandaloneServer, StandaloneServer),
    "mixed": (StandaloneServer, LiteServer, LiteServer),
}
MEMBERS: Final[dict[Log, int]] = {"sqlite": 0, "etcd1": 1, "etcd3": 3}
#: How old a Bounded read may be, seconds.
BOUNDED_S: Final = 5.0
#: Time after which another process takes over from one that has gone silent, seconds.
LEASE_S: Final = 1.5
#: Size of the file system under the log whose disk is to be full.
_DISK_BYTES: Final = 192 << 20
#: How long clusters may take to catch up once all is well, seconds.
PATIENCE_S: Final = 120.0


@final
class Writer(ServerProcess):
    """A process that writes and reads; see `worker`."""

    def __init__(self, folder: Path, order: Order) -> None:
        super().__init__(folder, name=f"w{order.number}")
        self.order = order

    def command(self) -> Sequence[str]:
        file = self.folder / f"{self.name}.json"
        file.write_text(json.dumps(asdict(self.order)))
        return [sys.executable, "-P", "-m", "tests.live.replication.worker", str(file)]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parents[3])}

    async def check(self) -> None:
        if not Path(self.order.history).exists():
            raise FileNotFoundError(self.order.history)


@final
class Fleet:
    """Clusters, log and two proxies; an async context manager.

    Args:
        folder: Data and logs.
        engine: What the clusters are.
        log: What the mutation log is.
        small_disk: Put an SQLite log on a file system that can be filled up; needs root.
        ack: What a write waits for.
    """

    def __init__(self, folder: Path, engine: Engine, log: Log, *, small_disk: bool = False, ack: str = "one") -> None:
        self.folder = folder
        self.engine, self.log_kind, self.ack = engine, log, ack
        self.small_disk = small_disk
        names = "abc"
        self.servers: list[Cluster] = [
            kind(folder / names[number], name=names[number]) for number, kind in enumerate(ENGINES[engine])
        ]
        self.etcd = EtcdCluster(folder / "etcd", MEMBERS[log]) if MEMBERS[log] else None
        self.links: dict[str, ToxicProxy] = {}
        self.log_links: list[ToxicProxy] = []
        self.proxies: list[ProxyServer] = []
        self.writers: list[Writer] = []
        self._stack = AsyncExitStack()
        self._log: MutationLog | None = None
        self._number = 0

    @property
    def disk(self) -> Path:
        """The folder of an SQLite log."""
        return self.folder / "log"

    @property
    def call_timeout_s(self) -> float:
        """Longest limit of the writers' calls, seconds."""
        return 10.0 if self.engine in ("lite", "three") else 20.0

    def config(self, *, direct: bool = False) -> dict[str, Any]:
        """What a client is configured with; ``direct`` goes past the links."""
        uris = [server.uri if direct else self.links[server.name].uri for server in self.servers]
        return {
            "health": {"slow_start_s": 1.0, "failback_dwell_s": 1.0},
            "replication": {
                "mode": "mirror",
                "log": self._log_address(direct),
                "ack": self.ack,
                "bounded_s": BOUNDED_S,
                "lease_s": LEASE_S,
            },
            "cluster": [
                {"name": server.name, "endpoints": [uri]} for server, uri in zip(self.servers, uris, strict=True)
            ],
        }

    def _log_address(self, direct: bool) -> str:
        if self.etcd is None:
            return str(self.disk / "mutations.db")
        members = self.etcd.members if direct else self.log_links
        return "etcd://" + ",".join(member.address for member in members)

    @property
    def log(self) -> MutationLog:
        """The log, for looking at it."""
        assert self._log is not None
        return self._log

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self.etcd is None:
                self.disk.mkdir(parents=True)
                if self.small_disk:
                    stack.enter_context(_small_disk(self.disk))
            else:
                await stack.enter_async_context(self.etcd)
                for member in self.etcd.members:
                    self.log_links.append(await stack.enter_async_context(ToxicProxy(member.port)))
            await asyncio.gather(*map(stack.enter_async_context, self.servers))
            for server in self.servers:
                self.links[server.name] = await stack.enter_async_context(ToxicProxy(server.port))
            await self._open_log()
            stack.push_async_callback(self._close_log)
            self.proxies = [ProxyServer(self.folder / name, self.config(), name=name) for name in ("proxy0", "proxy1")]
            await asyncio.gather(*map(stack.enter_async_context, self.proxies))
            self._stack = stack.pop_all()
        return self

    async def _open_log(self) -> None:
        self._log = open_log(Config.load(None, self.config(direct=True)).replication, time.time)
        await self._log.open()

    async def _close_log(self) -> None:
        await self.log.aclose()

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.stop_writers(kill=True)
        finally:
            await self._stack.aclose()

    async def start(self, server: Cluster) -> None:
        """Start a cluster that was killed; a milvus-lite loads nothing by itself."""
        await server.start()
        if isinstance(server, LiteServer):
            await asyncio.to_thread(load_all, server.uri)

    async def empty(self, server: Cluster) -> None:
        """Take a cluster's data from it."""
        await server.kill()
        await asyncio.to_thread(shutil.rmtree, server.folder / "data")
        await server.start()

    async def lose_log(self) -> None:
        """Take the log's disk away, and begin a new one; nobody but this has it open."""
        await self.log.aclose()
        if self.etcd is None:
            for file in self.disk.glob("mutations.db*"):
                file.unlink()
        else:
            for member in self.etcd.members:
                await member.kill()
                await asyncio.to_thread(shutil.rmtree, member.folder / "data")
            for member in self.etcd.members:
                member.launch()
            await asyncio.gather(*(member.wait_ready() for member in self.etcd.members))
        await self._open_log()

    async def command(self, *arguments: str) -> str:
        """Run ``haclient``; return what it prints.

        Raises:
            RuntimeError: It failed.
        """
        program = [sys.executable, "-P", "-c", "from haclient.cli import main; main()"]
        config = ["--config", str(self.proxies[0].folder / f"{self.proxies[0].name}.toml")]
        process = await asyncio.create_subprocess_exec(
            *program, *arguments, *config, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise RuntimeError(f"haclient {' '.join(arguments)} ended with {process.returncode}: {output.decode()}")
        return output.decode()

    # Those who write.

    async def add_writer(self, folder: Path, trial: str, seed: int, *, through: ProxyServer | None = None) -> None:
        """Start one more process that writes, itself a member of the fleet or through a proxy."""
        config = self.config() if through is None else {"cluster": [{"name": "proxy", "endpoints": [through.uri]}]}
        self._number += 1
        await self._start_writer(
            folder,
            Order(
                number=self._number,
                trial=trial,
                seed=seed,
                history=str(folder / f"{self._number}.history"),
                config=config,
                timeout_s=self.call_timeout_s,
            ),
        )

    async def replace(self, writer: Writer) -> None:
        """Start another process in place of one that is dead."""
        self._number += 1
        order = replace(writer.order, number=self._number, history=str(writer.folder / f"{self._number}.history"))
        await self._start_writer(writer.folder, order)

    async def _start_writer(self, folder: Path, order: Order) -> None:
        writer = Writer(folder, order)
        self.writers.append(writer)
        await writer.start()

    async def stop_writers(self, *, kill: bool = False) -> None:
        """End all of them, their calls under way included."""
        for writer in self.writers:
            if not kill:
                await writer.stop(grace_s=3 * self.call_timeout_s)
            await writer.close()
        self.writers.clear()

    # What is to be found out.

    async def leader(self) -> EtcdServer:
        """The member of etcd that leads."""
        assert self.etcd is not None
        async with httpx.AsyncClient(timeout=2) as client:
            for member in self.etcd.members:
                with contextlib.suppress(httpx.HTTPError):
                    status = (await client.post(f"{member.uri}/v3/maintenance/status", json={})).json()
                    if status.get("leader") == status["header"]["member_id"]:
                        return member
        raise LookupError("etcd has no leader")

    async def positions(self) -> dict[str, Position]:
        """How far each cluster is."""
        facts = await self.log.facts(POSITION)
        return {name.removeprefix(POSITION): Position.decode(fact.value) for name, fact in facts.items()}

    async def caught_up(self) -> str:
        """Wait until every cluster has everything; return what is the matter if one never has, "" otherwise."""
        matter = "nobody has written a position"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while matter:
                    await asyncio.sleep(0.05)
                    matter = await self._behind()
        return matter

    async def _behind(self) -> str:
        head = (await self.log.bounds()).head
        positions = await self.positions()
        for server in self.servers:
            position = positions.get(server.name)
            if position is None:
                return f"{server.name} has no position"
            if position.low < head or position.standing is not Standing.IN_SYNC or position.parked:
                return f"{server.name} is at {position}, the log's head is {head}"
        return ""

    async def contents(self, names: Names) -> dict[str, Contents]:
        """Read every cluster directly."""
        read = (asyncio.to_thread(contents, server.uri, names) for server in self.servers)
        return dict(zip([server.name for server in self.servers], await asyncio.gather(*read), strict=True))


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """A file system in memory, so small that it can be filled up."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
