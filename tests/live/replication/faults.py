"""What is done to a fleet under load: each fault is a context, hurt at its start and healed at its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.servers.plaincall import PlainCallFailed
from haclient.drill.servers.process import ServerProcess
from haclient.drill.toxic import ToxicProxy
from tests.live.replication.fleet import LEASE_S, Cluster, Fleet, Log

Hurt = Callable[[Fleet, random.Random], AbstractAsyncContextManager[None]]
#: Time for a server that was stopped to answer, seconds.
_REVIVAL_S: Final = 5.0
_BLOCK: Final = 4_096
_ANY_LOG: Final[tuple[Log, ...]] = ("sqlite", "etcd1", "etcd3")


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        hurt: Makes the context.
        logs: The logs that can have it.
        root: Whether it needs root.
    """

    hurt: Hurt
    logs: tuple[Log, ...] = _ANY_LOG
    root: bool = False

    def fits(self, log: Log) -> bool:
        """Whether it can be done here, to a fleet with this log."""
        return log in self.logs and (not self.root or os.geteuid() == 0)


@asynccontextmanager
async def nothing(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """Only the load."""
    yield


# --- servers ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of a cluster."""
    server = rng.choice(fleet.servers)
    await server.kill()
    yield
    await fleet.start(server)


@asynccontextmanager
async def kill_every_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of all clusters at once."""
    await asyncio.gather(*(server.kill() for server in fleet.servers))
    yield
    await asyncio.gather(*(fleet.start(server) for server in fleet.servers))


@asynccontextmanager
async def kill_servers_in_turn(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of one cluster after the other, each back before the next."""
    for server in rng.sample(fleet.servers, len(fleet.servers)):
        await server.kill()
        await fleet.start(server)
        await asyncio.sleep(rng.uniform(0.0, 2.0))
    yield


@asynccontextmanager
async def stop_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """SIGSTOP of a cluster: what it was sent it does late."""
    server = rng.choice(fleet.servers)
    server.freeze()
    yield
    server.thaw()
    await _revived(fleet, server)


async def _revived(fleet: Fleet, server: Cluster) -> None:
    """Wait until a server is well that was stopped; a Milvus whose own lease ran out meanwhile ends some time later."""
    if isinstance(server, StandaloneServer):
        await asyncio.sleep(2 * server.session_ttl_s)
    try:
        async with asyncio.timeout(_REVIVAL_S):
            await server.check()
    except (OSError, PlainCallFailed, TimeoutError):
        await server.kill()
        await fleet.start(server)


@asynccontextmanager
async def empty_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """A cluster comes back with an empty disk, and is copied from another one while writes go on."""
    server = rng.choice(fleet.servers)
    await fleet.empty(server)
    yield
    await fleet.command("reseed", server.name, "--yes")


# --- those who write and apply ----------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_writer(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of a process that writes and applies; another one begins."""
    writer = rng.choice(fleet.writers)
    await writer.kill()
    yield
    await fleet.replace(writer)


@asynccontextmanager
async def kill_proxy(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of a proxy."""
    proxy = rng.choice(fleet.proxies)
    await proxy.kill()
    yield
    await proxy.start()


@asynccontextmanager
async def stop_writer(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """SIGSTOP of a process that writes and applies, for longer than its lease; then it goes on where it was."""
    process: ServerProcess = rng.choice([*fleet.writers, *fleet.proxies])
    process.freeze()
    await asyncio.sleep(2 * LEASE_S)
    yield
    process.thaw()


# --- the network ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _cut(link: ToxicProxy, how: Callable[[], None]) -> AsyncIterator[None]:
    how()
    yield
    await link.heal()


def _cluster_link(fleet: Fleet, rng: random.Random) -> ToxicProxy:
    return rng.choice(list(fleet.links.values()))


@asynccontextmanager
async def partition_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """Nothing passes between clients and a cluster; then it arrives, late."""
    link = _cluster_link(fleet, rng)
    async with _cut(link, link.partition):
        yield


@asynccontextmanager
async def one_way_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """A cluster hears and is not heard, or the other way round."""
    link = _cluster_link(fleet, rng)
    async with _cut(link, lambda: link.one_way(rng.choice(("up", "down")))):
        yield


@asynccontextmanager
async def reset_server(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """Connections to a cluster break in the middle of a reply, again and again."""
    link = _cluster_link(fleet, rng)
    async with _cut(link, lambda: link.cut_after(rng.randint(1, 2_000))):
        yield


@asynccontextmanager
async def partition_log(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """Nothing passes between clients and one member of etcd."""
    link = rng.choice(fleet.log_links)
    async with _cut(link, rng.choice((link.partition, link.black_hole))):
        yield


@asynccontextmanager
async def one_way_log(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """One member of etcd hears its clients and is not heard, or the other way round."""
    link = rng.choice(fleet.log_links)
    async with _cut(link, lambda: link.one_way(rng.choice(("up", "down")))):
        yield


@asynccontextmanager
async def reset_log(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """Connections to one member of etcd break in the middle of a reply, again and again."""
    link = rng.choice(fleet.log_links)
    async with _cut(link, lambda: link.cut_after(rng.randint(1, 2_000))):
        yield


# --- the log ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_leader(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of the member of etcd that leads."""
    leader = await fleet.leader()
    await leader.kill()
    yield
    await leader.start()


@asynccontextmanager
async def stop_leader(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """SIGSTOP of the member of etcd that leads."""
    leader = await fleet.leader()
    leader.freeze()
    yield
    leader.thaw()
    await leader.wait_ready()


@asynccontextmanager
async def kill_log(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """kill -9 of every member of etcd."""
    assert fleet.etcd is not None
    await asyncio.gather(*(member.kill() for member in fleet.etcd.members))
    yield
    for member in fleet.etcd.members:
        member.launch()
    await asyncio.gather(*(member.wait_ready() for member in fleet.etcd.members))


@asynccontextmanager
async def full_disk(fleet: Fleet, rng: random.Random) -> AsyncIterator[None]:
    """No room is left where the log is."""
    ballast = fleet.disk / "ballast"
    # What its journal has allocated already would be room for long.
    with contextlib.closing(sqlite3.connect(fleet.disk / "mutations.db", timeout=10, check_same_thread=False)) as log:
        await asyncio.to_thread(log.execute, "PRAGMA wal_checkpoint(TRUNCATE)")
    _fill(ballast)
    yield
    ballast.unlink()


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(_BLOCK))


FAULTS: Final[dict[str, Fault]] = {
    "none": Fault(nothing),
    "kill-server": Fault(kill_server),
    "kill-every-server": Fault(kill_every_server),
    "kill-servers-in-turn": Fault(kill_servers_in_turn),
    "stop-server": Fault(stop_server),
    "empty-server": Fault(empty_server),
    "kill-writer": Fault(kill_writer),
    "kill-proxy": Fault(kill_proxy),
    "stop-writer": Fault(stop_writer),
    "partition-server": Fault(partition_server),
    "one-way-server": Fault(one_way_server),
    "reset-server": Fault(reset_server),
    "partition-log": Fault(partition_log, ("etcd1", "etcd3")),
    "one-way-log": Fault(one_way_log, ("etcd1", "etcd3")),
    "reset-log": Fault(reset_log, ("etcd1", "etcd3")),
    "kill-leader": Fault(kill_leader, ("etcd3",)),
    "stop-leader": Fault(stop_leader, ("etcd3",)),
    "kill-log": Fault(kill_log, ("etcd1", "etcd3")),
    "full-disk": Fault(full_disk, ("sqlite",), root=True),
}
