"""A cluster that has lost data: found out by its own mark, and not by one look."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

from haclient.call import Method
from haclient.config.replication import Replication
from haclient.errors import CallError
from haclient.events import Event, EventBus, StandingChanged
from haclient.milvus import watermarks
from haclient.replication.clusters import Delivery, Member, Outcome
from haclient.replication.log import Mutation
from haclient.replication.loss import LossCheck
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.replicator import Replicator
from haclient.replication.watermark import Watermark
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.virtual_time import run


class Cluster:
    """One cluster that keeps its mark and counts what it is sent; `Clusters` of a fleet of one."""

    def __init__(self) -> None:
        self.rows: dict[str, watermarks.Row] = {}
        self.there = True
        self.empty_reads = 0
        self.sent: list[str] = []

    def members(self) -> list[Member]:
        return [Member("a")]

    async def deliver(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Delivery:
        await asyncio.sleep(0.001)
        if method.name == "Upsert":
            for row in rows_in(message):
                self.rows[row.stream] = row
        elif method.name == "DropPartition":
            self.sent.append(method.name)
        return Delivery(Outcome.DONE)

    async def ask(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> bytes:
        await asyncio.sleep(0.001)
        if not self.there and method.name != "ShowCollections":
            raise CallError("collection not found", code=100)
        if method.name != "Query":
            return b""
        self.empty_reads -= 1
        return results({} if self.empty_reads >= 0 else self.rows)


def rows_in(message: bytes) -> list[watermarks.Row]:
    from pymilvus.grpc_gen import milvus_pb2

    request = milvus_pb2.UpsertRequest.FromString(message)
    reply = milvus_pb2.QueryResults(fields_data=request.fields_data)
    return watermarks.read_rows(reply.SerializeToString())


def results(rows: Mapping[str, watermarks.Row]) -> bytes:
    from pymilvus.grpc_gen import milvus_pb2

    if not rows:
        return b""
    request = milvus_pb2.UpsertRequest.FromString(watermarks.write(list(rows.values())).message)
    return bytes(milvus_pb2.QueryResults(fields_data=request.fields_data).SerializeToString())


async def marked(cluster: Cluster, low: int) -> Position:
    position = Position(low=low)
    assert await Watermark("a", cluster, 1.0, lambda: 1.0).write(position, low)
    return position


def test_one_that_has_what_it_had() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        check = LossCheck("a", cluster)
        assert await check.look(Position(low=7)), "no mark has ever been written"
        assert await check.look(await marked(cluster, 7))

    run(scenario())


def test_a_server_that_answers_nothing_for_a_while_after_its_start_is_not_convicted() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        position = await marked(cluster, 7)
        check = LossCheck("a", cluster)
        cluster.empty_reads = 15
        looks = [await check.look(position) for _ in range(16)]
        assert looks == [False] * 15 + [True]
        assert not check.convinced

    run(scenario())


def test_an_empty_one_and_one_that_is_behind_are_convicted() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        position = await marked(cluster, 7)
        cluster.there = False
        check = LossCheck("a", cluster)
        looks = 0
        while not check.convinced:
            assert not await check.look(position)
            looks += 1
        assert (1 < looks < 10, check.low) == (True, None)
        cluster.there = True
        await marked(cluster, 3)
        check.begin()
        while not check.convinced:
            assert not await check.look(position)
        assert check.low == 3
        assert "entry 7" in check.reason

    run(scenario())


async def life(store: MemoryStore, cluster: Cluster, until: Callable[[Position], bool]) -> list[Event]:
    """Run a process over one cluster until something has happened to its position."""
    events: list[Event] = []
    bus = EventBus()
    bus.subscribe(events.append)
    settings = Replication(mode="mirror", log="x", watermark_s=0.1)
    one = Replicator(settings, MemoryLog(store), cluster, bus, random.Random(1), asyncio.get_running_loop(), "p")
    await one.start()
    async with asyncio.timeout(600):
        while True:
            await asyncio.sleep(0.05)
            fact = store.facts.get(f"{POSITION}a")
            position = Position.decode(fact.value) if fact is not None else Position()
            if until(position):
                break
    await one.aclose()
    return events


def whole(position: Position) -> bool:
    return position.marked == position.low == 5


def entries(count: int) -> list[Mutation]:
    """Make entries that a cluster can be seen to be sent."""
    return [Mutation(i.to_bytes(16), "DropPartition", ("", "docs"), b"") for i in range(count)]


def test_one_that_has_lost_its_newest_entries_gets_them_again() -> None:
    """The log still holds them: nothing has to be copied."""

    async def scenario() -> None:
        store, cluster = MemoryStore(), Cluster()
        await MemoryLog(store).append(entries(5))
        await life(store, cluster, whole)
        assert len(cluster.sent) == 5
        await marked(cluster, 2)  # what it says after it has lost the last three
        cluster.sent.clear()
        await life(store, cluster, lambda position: len(cluster.sent) >= 5 and whole(position))
        assert cluster.rows["/"].low == 5, "from well before the place that it told, and to the end"

    run(scenario())


def test_one_that_is_empty_needs_to_be_copied() -> None:
    async def scenario() -> None:
        store, cluster = MemoryStore(), Cluster()
        await MemoryLog(store).append(entries(5))
        await life(store, cluster, whole)
        cluster.there = False
        events = await life(store, cluster, lambda position: position.standing is Standing.NEEDS_RESEED)
        change = [event for event in events if isinstance(event, StandingChanged)][-1]
        assert change.after == "needs_reseed"
        assert "empty" in change.reason

    run(scenario())
