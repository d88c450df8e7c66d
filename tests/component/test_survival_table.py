"""The tables of ``docs/replication.md`` under "What is survived": every row is read from there and produced.

A row is done to a fleet of three clusters at the worst moment: each ack level has been given writes while no more
clusters than it asks for could be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pymilvus import MilvusException

from haclient import AsyncMilvusClient, acknowledged
from haclient.acknowledge import ACKS, Ack
from haclient.drill import faults
from haclient.drill.rows import Names, connect, create, load_all, row
from haclient.drill.scenario import Topology
from haclient.drill.servers import etcd
from haclient.drill.started import StartedFleet
from haclient.drill.trial import through
from haclient.errors import HAClientError
from haclient.replication.position import Standing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "replication.md"
LOGS = {"SQLite": "sqlite", "etcd": "etcd3"}
NAMES = Names("survival")
#: Writes at each level before the worst happens.
WRITES = 3
#: Time for a write that is to be acknowledged, and for one that is not, seconds.
PATIENCE_S, IMPATIENCE_S = 60.0, 1.0
#: What says that the next write waits until the failure is over.
LATER = "when"
NEW_LOG = "with a new log"


class Cell(NamedTuple):
    """What the document says of one failure and one ack level."""

    lost: str
    again: str


def tables() -> dict[str, dict[str, dict[Ack, Cell]]]:
    """The tables, without the rows that are marked as not tested."""
    found: dict[str, dict[str, dict[Ack, Cell]]] = {}
    log: str | None = None
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| with "):
            log = LOGS[re.findall(r"with (\w+)", line)[0]]
            assert cells[1:] == [f"`{level}`" for level in ACKS]
            found[log] = {}
        elif not line.startswith("|"):
            log = None
        elif log is not None and not line.startswith("|---") and "not tested" not in line:
            said = [Cell(*cell.split(", ", 1)) for cell in cells[1:]]
            found[log][cells[0]] = dict(zip(ACKS, said, strict=True))
    return found


class Survival:
    """A fleet, a client of it, and what was acknowledged at each level."""

    def __init__(self, fleet: StartedFleet) -> None:
        self.fleet = fleet
        self.written: dict[Ack, list[int]] = defaultdict(list)
        self._client = AsyncMilvusClient(config=fleet.config())
        self._keys = itertools.count(1)

    async def aclose(self) -> None:
        await self._client.close()

    async def write(self, level: Ack, timeout_s: float) -> bool:
        """Write one row; say whether it was acknowledged."""
        key = next(self._keys)
        with acknowledged(level):
            try:
                await self._client.upsert(NAMES.own, [row(key, key, id=key, tag="")], timeout=timeout_s)
            except (HAClientError, MilvusException):
                return False
        self.written[level].append(key)
        return True

    async def write_with_few(self) -> None:
        """Write at each level while only as many clusters as it asks for can be reached."""
        links = list(self.fleet.links.values())
        for level, cut in (("all", None), ("quorum", links[2]), ("one", links[1]), ("log", links[0])):
            if cut is not None:
                cut.refuse()
                cut.reset_all()
            for _ in range(WRITES):
                assert await self.write(level, PATIENCE_S), f"with as few clusters as {level} asks for"

    async def heal(self) -> None:
        for link in self.fleet.links.values():
            await link.heal()

    async def start_anew(self) -> None:
        """Close and open the client of this process, as its restart does."""
        await self._client.close()
        self._client = AsyncMilvusClient(config=self.fleet.config())

    async def held(self) -> list[set[int]]:
        """The keys on each cluster."""
        return await asyncio.gather(*(asyncio.to_thread(_keys, server.uri) for server in self.fleet.servers))


def _keys(uri: str) -> set[int]:
    client = connect(uri)
    try:
        load_all(client)
        found = client.query(NAMES.own, filter="id >= 0", limit=10_000, output_fields=["id"], timeout=30)
        return {one["id"] for one in found}
    finally:
        client.close()


# --- failures ---------------------------------------------------------------------------------------------------------


Harm = Callable[[Survival], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed_process(survival: Survival) -> AsyncIterator[None]:
    """Who has the leases: the proxies were there before the client of this process."""
    for proxy in survival.fleet.proxies:
        await proxy.kill()
    await survival.heal()
    yield
    for proxy in survival.fleet.proxies:
        await proxy.start()


@asynccontextmanager
async def no_room(survival: Survival) -> AsyncIterator[None]:
    await survival.heal()
    async with faults.full_disk(faults.Harm(survival.fleet, (), {}, random.Random(1))):
        yield


def down(count: int) -> Harm:
    @asynccontextmanager
    async def harm(survival: Survival) -> AsyncIterator[None]:
        links = list(survival.fleet.links.values())
        await links[0].heal()
        for link in links[1 : 3 - count]:
            await link.heal()
        yield
        await survival.heal()

    return harm


@asynccontextmanager
async def lost_cluster(survival: Survival) -> AsyncIterator[None]:
    """The only one that has what was written at ``one``; it is back, empty, before the others are."""
    fleet = survival.fleet
    lost = fleet.servers[0]
    await fleet.empty(lost)
    await fleet.links[lost.name].heal()
    async with asyncio.timeout(PATIENCE_S):
        while (await fleet.positions())[lost.name].standing is Standing.AWAY:
            await asyncio.sleep(0.01)
    await survival.heal()
    yield
    await fleet.command("reseed", lost.name, "--yes")


def members(choose: Callable[[StartedFleet], Any], *, back: bool = True) -> Harm:
    @asynccontextmanager
    async def harm(survival: Survival) -> AsyncIterator[None]:
        await survival.heal()
        chosen = await choose(survival.fleet)
        for member in chosen:
            await member.kill()
        yield
        if back:
            await asyncio.gather(*(member.start() for member in chosen))

    return harm


async def leader(fleet: StartedFleet) -> list[Any]:
    return [(await fleet.leader()).process]


async def follower(fleet: StartedFleet) -> list[Any]:
    assert fleet.etcd is not None
    (leading,) = await leader(fleet)
    return [member for member in fleet.etcd.members if member is not leading][:1]


async def majority(fleet: StartedFleet) -> list[Any]:
    return [*await leader(fleet), *await follower(fleet)]


HARMS: dict[str, Harm] = {
    "a process that writes and applies is killed": killed_process,
    "the disk of the log is full": no_room,
    "a cluster is down": down(1),
    "all clusters but one are down": down(2),
    "a cluster is lost with its disk": lost_cluster,
    "a member of etcd is killed": members(follower),
    "the leader of etcd is killed": members(leader),
    "a majority of etcd is down": members(majority),
    "a member of etcd is lost with its disk": members(follower, back=False),
}
#: What no engine of the log has a part in: by default it is produced on SQLite alone, which is quicker.
ENGINE_ALIKE = {"a cluster is down", "all clusters but one are down", "a cluster is lost with its disk"}
#: What ends with a new log, and whether the first cluster is lost too.
LOG_LOST = {"the log is lost": False, "the log and a cluster are lost": True}


# --- the rows ---------------------------------------------------------------------------------------------------------


async def produce(survival: Survival, failure: str, said: dict[Ack, Cell]) -> None:
    """A failure that the log outlives."""
    async with HARMS[failure](survival):
        for level, cell in said.items():
            now = await survival.write(level, IMPATIENCE_S if cell.again.startswith(LATER) else PATIENCE_S)
            assert now is not cell.again.startswith(LATER), f"{failure}: {level} is acknowledged {cell.again}"
    for level in said:
        assert await survival.write(level, PATIENCE_S), f"{failure}: {level} is acknowledged once it is over"
    assert not await survival.fleet.caught_up(), failure
    for level, cell in said.items():
        lost = [set(survival.written[level]) - keys for keys in await survival.held()]
        assert cell.lost == "0"
        assert not any(lost), f"{failure}: of what {level} acknowledged, {lost} is lost"


async def produce_lost_log(survival: Survival, failure: str, said: dict[Ack, Cell]) -> None:
    """The processes die with the log, and begin with a new one."""
    fleet = survival.fleet
    before = {level: set(survival.written[level]) for level in ACKS}
    await survival.write_with_few()
    await survival.aclose()
    await asyncio.gather(*(proxy.kill() for proxy in fleet.proxies))
    await fleet.lose_log()
    survivors = await survival.held()
    if LOG_LOST[failure]:
        del survivors[0]
        await fleet.empty(fleet.servers[0])
    for level, cell in said.items():
        lost = set(survival.written[level]) - set().union(*survivors)
        wanted = set() if cell.lost == "0" else set(survival.written[level]) - before[level]
        assert lost == wanted, f"{failure}: of what {level} acknowledged, {lost} is lost"
        survival.written[level] = sorted(set(survival.written[level]) - lost)
        assert cell.again == NEW_LOG
    await survival.heal()
    await asyncio.gather(*(proxy.start() for proxy in fleet.proxies))
    # Who could be reached longest has all that is left, and the others are copied from it.
    donor = fleet.servers[1 if LOG_LOST[failure] else 0]
    for server in fleet.servers:
        if server is not donor:
            await fleet.command("reseed", server.name, "--from", donor.name, "--yes")
    await fleet.command("verify", "--adopt")
    await survival.start_anew()
    for level in said:
        assert await survival.write(level, PATIENCE_S), f"{failure}: {level} is acknowledged with a new log"
    held = await survival.held()
    assert held[0] == held[1] == held[2], failure
    assert not {key for keys in survival.written.values() for key in keys} - held[0], failure


def test_every_row_is_tested_or_marked() -> None:
    assert set(tables()) == set(LOGS.values())
    for rows in tables().values():
        assert set(rows) <= {*HARMS, *LOG_LOST}


@pytest.mark.parametrize("log", LOGS.values())
async def test_what_is_survived(log: str, tmp_path: Path) -> None:
    """Each row of the log's table, one after the other."""
    if log != "sqlite" and not etcd.available():
        pytest.skip("needs etcd (apt-get install etcd-server)")
    small_disk = log == "sqlite" and os.geteuid() == 0
    topology = Topology.model_validate({"clusters": 3, "log": log, "proxies": 2})
    async with StartedFleet(tmp_path, topology, small_disk=small_disk) as fleet:
        await through(fleet, lambda client: create(client, NAMES.own))
        survival = Survival(fleet)
        async with contextlib.aclosing(survival):
            for failure, said in tables()[log].items():
                if log != "sqlite" and failure in ENGINE_ALIKE and not os.environ.get("HACLIENT_THOROUGH"):
                    continue
                if failure in LOG_LOST:
                    await produce_lost_log(survival, failure, said)
                elif HARMS[failure] is not no_room or small_disk:
                    await survival.write_with_few()
                    await produce(survival, failure, said)
