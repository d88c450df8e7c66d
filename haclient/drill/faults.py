"""What is done to a fleet under load: each kind of fault is a context, hurt at its start and healed at its end.

Decision made here: a fault is told whom to hurt and nothing else of the fleet, so the same few cover servers, proxies,
processes of the application, members of the log, and all clusters at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, final

from pymilvus import MilvusException

from haclient.client import AsyncMilvusClient
from haclient.drill import rows
from haclient.drill.fleet import DrillError, Fleet, LoadProcess, Target
from haclient.drill.scenario import FaultPlan
from haclient.drill.servers.etcd import EtcdServer
from haclient.drill.servers.milvus import StandaloneServer
from haclient.drill.servers.plaincall import PlainCallFailed
from haclient.drill.servers.process import ServerProcess
from haclient.drill.started import StartedFleet
from haclient.drill.toxic import ToxicProxy
from haclient.errors import ConfigError, HAClientError

#: What a fault has to be able to do: ``shell``: signals to processes, disks; ``link``: what is between the load and who
#: is hurt; ``call``: calls to a cluster, past haclient; ``load``: words to the load's own processes.
Means = Literal["shell", "link", "call", "load"]
#: Time for a server that was stopped to answer, seconds.
_REVIVAL_S: Final = 5.0
_BLOCK: Final = 4_096
#: What denies writes to a Milvus; it looks at its file every few seconds.
_DENY: Final = "quotaAndLimits.limitWriting.forceDeny"
_LOOK_S: Final = 0.3
#: What is in the query that kills, and the time between two of them, seconds.
_POISON: Final = "poisoned-request"
_POISON_EVERY_S: Final = 0.25


@final
@dataclass(frozen=True, slots=True)
class Harm:
    """Whom a fault hurts, and how.

    Attributes:
        fleet: Where.
        targets: Whom.
        settings: Of the fault, by the plan.
        rng: Of its choices.
    """

    fleet: Fleet
    targets: Sequence[Target]
    settings: Mapping[str, float]
    rng: random.Random

    @property
    def processes(self) -> list[ServerProcess]:
        """The targets' processes."""
        return [target.process for target in self.targets if target.process is not None]

    @property
    def links(self) -> list[ToxicProxy]:
        """What the load reaches the targets through."""
        return [target.link for target in self.targets if target.link is not None]

    def setting(self, name: str, default: float) -> float:
        """Return a setting."""
        return self.settings.get(name, default)


Hurt = Callable[[Harm], AbstractAsyncContextManager[None]]


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault.

    Attributes:
        hurt: Makes the context.
        means: What it has to be able to do.
        targets: The kinds of target that it can hurt.
        settings: The settings that it takes.
        engines: The servers that can have it.
        logs: The logs that can have it; empty is any, and none.
    """

    hurt: Hurt
    means: Means
    targets: tuple[str, ...] = ("cluster", "clusters", "site")
    settings: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("lite", "milvus", "mixed", "staging")
    logs: tuple[str, ...] = ()


def check(plan: FaultPlan) -> Fault:
    """Return the fault that is planned.

    Raises:
        ConfigError: There is none such, or not with this target or these settings.
    """
    fault = FAULTS.get(plan.kind)
    if fault is None:
        raise ConfigError(f"fault {plan.kind!r} is not known; write one of {', '.join(FAULTS)}")
    if plan.target.partition(":")[0] not in fault.targets:
        raise ConfigError(f"fault {plan.kind}: target {plan.target!r}: write one of {', '.join(fault.targets)}")
    for name in plan.settings:
        if name not in fault.settings:
            known = f"write one of {', '.join(fault.settings)}" if fault.settings else "it has none"
            raise ConfigError(f"fault {plan.kind}: setting {name!r} is not known; {known}")
    return fault


# --- processes --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def crash(harm: Harm) -> AsyncIterator[None]:
    """Kill -9, and later a start; of a process of the load, another one."""
    await asyncio.gather(*(process.kill() for process in harm.processes))
    yield
    members = [process for process in harm.processes if isinstance(process, EtcdServer)]
    for member in members:  # a majority has to be there before one answers
        member.launch()
    await asyncio.gather(*(member.wait_ready() for member in members))
    await asyncio.gather(*(harm.fleet.revive(target) for target in harm.targets if target.process not in members))


@asynccontextmanager
async def hang(harm: Harm) -> AsyncIterator[None]:
    """SIGSTOP: connections are accepted, nothing is answered, and what was sent is done late."""
    for process in harm.processes:
        process.freeze()
    yield
    for process in harm.processes:
        process.thaw()
    await asyncio.gather(*(_revived(harm.fleet, target) for target in harm.targets))


async def _revived(fleet: Fleet, target: Target) -> None:
    """Wait until a process is well that was stopped; a Milvus whose lease ran out meanwhile ends some time later."""
    process = target.process
    if process is None or isinstance(process, LoadProcess):
        return
    if isinstance(process, StandaloneServer):
        await asyncio.sleep(2 * process.session_ttl_s)
    try:
        async with asyncio.timeout(_REVIVAL_S):
            await process.check()
    except (OSError, PlainCallFailed, TimeoutError):
        await process.kill()
        await fleet.revive(target)


@asynccontextmanager
async def empty_disk(harm: Harm) -> AsyncIterator[None]:
    """A cluster comes back with an empty disk; later it is copied from another one while the load goes on."""
    fleet = _started(harm.fleet)
    await asyncio.gather(*(fleet.empty(server) for server in fleet.servers if server in harm.processes))
    yield
    for target in harm.targets:
        await fleet.command("reseed", target.name, "--yes")


@asynccontextmanager
async def rolling(harm: Harm) -> AsyncIterator[None]:
    """An upgrade: each cluster in turn is drained, stopped, started, put back, and catches up before the next."""
    fleet = harm.fleet
    for target in harm.targets:
        fleet.drain(target.name)
        await asyncio.sleep(harm.setting("drained_s", 0.5))
        assert target.process is not None
        await target.process.stop()
        await fleet.revive(target)
        fleet.drain()
        if matter := await fleet.caught_up():
            raise DrillError(f"{target.name} has not caught up after its restart: {matter}")
    yield


# --- the network ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _cut(harm: Harm, how: Callable[[ToxicProxy], Any]) -> AsyncIterator[None]:
    for link in harm.links:
        how(link)
    try:
        yield
    finally:
        for link in harm.links:
            await link.heal()


def slow(harm: Harm) -> AbstractAsyncContextManager[None]:
    """Every answer comes late."""
    latency_s, jitter_s = harm.setting("latency_s", 0.3), harm.setting("jitter_s", 0.1)
    return _cut(harm, lambda link: link.delay(latency_s, jitter_s))


def partition(harm: Harm) -> AbstractAsyncContextManager[None]:
    """Nothing passes; in the end it arrives, late."""
    return _cut(harm, ToxicProxy.partition)


def black_hole(harm: Harm) -> AbstractAsyncContextManager[None]:
    """Connections are accepted, everything sent is lost, and nothing is answered."""
    return _cut(harm, ToxicProxy.black_hole)


def one_way(harm: Harm) -> AbstractAsyncContextManager[None]:
    """It hears and is not heard, or the other way round."""
    lost: Literal["up", "down"] = harm.rng.choice(("up", "down"))
    return _cut(harm, lambda link: link.one_way(lost))


def reset(harm: Harm) -> AbstractAsyncContextManager[None]:
    """Connections break in the middle of a reply, again and again."""
    size = harm.rng.randint(1, int(harm.setting("most_bytes", 2_000)))
    return _cut(harm, lambda link: link.cut_after(size))


@asynccontextmanager
async def flapping(harm: Harm) -> AsyncIterator[None]:
    """It goes away and comes back, again and again."""

    async def flap() -> None:
        while True:
            for link in harm.links:
                link.refuse()
                link.reset_all()
            await asyncio.sleep(harm.setting("down_s", 0.5))
            for link in harm.links:
                await link.accept()
            await asyncio.sleep(harm.setting("up_s", 0.7))

    flaps = asyncio.create_task(flap())
    try:
        yield
    finally:
        flaps.cancel()
        await asyncio.gather(flaps, return_exceptions=True)
        for link in harm.links:
            await link.heal()


# --- clusters, behind haclient's back ---------------------------------------------------------------------------------


@asynccontextmanager
async def release(harm: Harm) -> AsyncIterator[None]:
    """The collection is released, and loaded again in the end."""
    await _on_each(harm, lambda client: client.release_collection(harm.fleet.names.own, timeout=30))
    try:
        yield
    finally:
        await _on_each(harm, lambda client: client.load_collection(harm.fleet.names.own, timeout=60))


@asynccontextmanager
async def wrong_data(harm: Harm) -> AsyncIterator[None]:
    """Every row gets the vector and the text of another one; in the end the clusters are compared and repaired."""
    shuffled = [
        {**row, "id": other["id"]} for row, other in zip(rows.first_rows(), rows.first_rows()[1:], strict=False)
    ]
    await _on_each(harm, lambda client: client.upsert(harm.fleet.names.own, shuffled, timeout=30))
    yield
    await harm.fleet.command("verify", harm.fleet.names.own, "--repair")


async def _on_each(harm: Harm, work: Callable[[Any], Any]) -> None:
    await asyncio.gather(*(target.ask(work) for target in harm.targets))


@asynccontextmanager
async def write_blocked(harm: Harm) -> AsyncIterator[None]:
    """The administrator denies writes, as Milvus itself does when memory or disk run out; reads are served."""
    servers = [server for server in harm.processes if isinstance(server, StandaloneServer)]
    for server in servers:
        server.configure({_DENY: True})
    await _until_denied(harm, True)
    yield
    for server in servers:
        server.configure({_DENY: False})
    await _until_denied(harm, False)


async def _until_denied(harm: Harm, wanted: bool) -> None:
    def denied(client: Any) -> bool:
        """Whether it refuses to delete what is not there."""
        try:
            client.delete(harm.fleet.names.own, ids=[-1], timeout=5)
        except MilvusException:
            return True
        return False

    for target in harm.targets:
        while await target.ask(denied) is not wanted:  # noqa: ASYNC110 - Milvus does not say when
            await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def poison(harm: Harm) -> AsyncIterator[None]:
    """Some process of the application sends a query, again and again, that kills every server that it reaches.

    It is an ordinary query; the server is killed as it arrives. (Those that really kill a Milvus differ from version to
    version.)
    """
    for target in harm.targets:
        assert target.process is not None
        assert target.link is not None
        target.link.trip(_POISON.encode(), partial(target.process.signal, signal.SIGKILL))
    config = harm.fleet.config()
    if "replication" in config:
        config["replication"] = {**config["replication"], "log": ""}  # it only reads
    async with AsyncMilvusClient(config=config) as client:
        sending = asyncio.create_task(_send_poison(client, harm.fleet.names.own))
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    if all(process.alive for process in harm.processes):
        raise DrillError("the request that kills has reached no server")
    for link in harm.links:
        await link.heal()
    await asyncio.gather(*map(harm.fleet.revive, harm.targets))


async def _send_poison(client: AsyncMilvusClient, collection: str) -> None:
    while True:
        with contextlib.suppress(HAClientError, MilvusException):
            wanted = {"filter": f'tag == "{_POISON}"', "output_fields": ["id"], "consistency_level": "Eventually"}
            await client.query(collection, timeout=2, **wanted)
        await asyncio.sleep(_POISON_EVERY_S)


# --- the log ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def full_disk(harm: Harm) -> AsyncIterator[None]:
    """No room is left where the log is."""
    disk = _started(harm.fleet).disk
    ballast = disk / "ballast"
    # What its journal has allocated already would be room for long.
    with contextlib.closing(sqlite3.connect(disk / "mutations.db", timeout=10, check_same_thread=False)) as log:
        await asyncio.to_thread(log.execute, "PRAGMA wal_checkpoint(TRUNCATE)")
    _fill(ballast)
    try:
        yield
    finally:
        ballast.unlink()


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(_BLOCK))


# --- the load's own clients -------------------------------------------------------------------------------------------


@asynccontextmanager
async def drain(harm: Harm) -> AsyncIterator[None]:
    """The operator takes it out of rotation, and puts it back."""
    harm.fleet.drain(*(target.name for target in harm.targets))
    try:
        yield
    finally:
        harm.fleet.drain()


def _started(fleet: Fleet) -> StartedFleet:
    if not isinstance(fleet, StartedFleet):
        raise ConfigError(
            "this fault needs a shell on the servers' hosts; a drill has that of a fleet it starts itself"
        )
    return fleet


_ANY: Final = ("cluster", "clusters", "site")
_PROCESSES: Final = (*_ANY, "proxy", "client", "log")
_LINKS: Final = (*_ANY, "log")
_STARTED: Final = ("lite", "milvus", "mixed")
FAULTS: Final[dict[str, Fault]] = {
    "crash": Fault(crash, "shell", _PROCESSES),
    "hang": Fault(hang, "shell", _PROCESSES),
    "empty-disk": Fault(empty_disk, "shell", ("cluster",)),
    "rolling": Fault(rolling, "shell", ("clusters",), settings=("drained_s",)),
    "slow": Fault(slow, "link", _LINKS, settings=("latency_s", "jitter_s")),
    "partition": Fault(partition, "link", _LINKS),
    "black-hole": Fault(black_hole, "link", _LINKS),
    "one-way": Fault(one_way, "link", _LINKS),
    "reset": Fault(reset, "link", _LINKS, settings=("most_bytes",)),
    "flapping": Fault(flapping, "link", _LINKS, settings=("down_s", "up_s")),
    "release": Fault(release, "call"),
    "write-blocked": Fault(write_blocked, "shell", ("cluster",), engines=("milvus",)),
    "poison": Fault(poison, "shell", ("clusters",)),
    "wrong-data": Fault(wrong_data, "call", ("cluster",), engines=_STARTED),
    "full-disk": Fault(full_disk, "shell", ("log",), logs=("sqlite",)),
    "drain": Fault(drain, "load", _ANY),
}
