"""A cluster filled from another one while writes go on, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from pymilvus.grpc_gen import milvus_pb2

from haclient.errors import ConfigError, DeadlineExceeded, LogUnavailable
from haclient.milvus.methods import named
from haclient.replication.clusters import Delivery, Outcome
from haclient.replication.hold import Hold, HoldLost, position_of
from haclient.replication.pause import PAUSE
from haclient.replication.position import Position, Standing
from haclient.replication.reseed import RESEED
from haclient.replication.site import SiteFailed
from tests import virtual_time
from tests.servers import memory_clusters as memory
from tests.servers.memory_fleet import Fleet, alias, drop, drop_alias, rename
from tests.servers.memory_log import MemoryLog, MemoryStore


@pytest.mark.parametrize("seed", range(12))
def test_an_emptied_cluster_is_filled_while_rows_and_collections_change(seed: int) -> None:
    async def scenario() -> None:
        async with Fleet("a", "b", seed=seed) as fleet:
            for name in ("docs", "notes", "old"):
                await fleet.make(name, {key: f"{name} {key}" for key in range(300)})
            await fleet.make("made", dict.fromkeys(range(30), ""), auto_id=True)
            await fleet.in_sync()
            empty(fleet, "b")
            fleet.clusters.step_s = 0.01
            fleet.clusters.hook = slow_donor
            work = asyncio.create_task(fleet.reseed("b"))
            while (await position_of(fleet.log, "b")).standing is not Standing.RESEEDING:
                await asyncio.sleep(0.01)
            await asyncio.gather(rows_change(fleet, rng), collections_change(fleet, rng))
            await work
            await fleet.in_sync()
            assert fleet.differences() == []
            assert not await fleet.log.facts(RESEED)

    rng = random.Random(seed)

    async def slow_donor(cluster: str, method: str, message: bytes) -> Delivery | None:
        # What is in the log is not yet in the donor.
        await asyncio.sleep(rng.random() * 0.1 if cluster == "a" else 0)
        return None

    virtual_time.run(scenario(), seed)


async def rows_change(fleet: Fleet, rng: random.Random) -> None:
    for turn in range(60):
        await asyncio.sleep(rng.random() * 0.05)
        keys = rng.sample(range(400), 3)
        if rng.random() < 0.3:
            await fleet.write("Delete", memory.delete("notes", keys), "log")
        else:
            await fleet.write("Upsert", memory.rows("notes", dict.fromkeys(keys, f"turn {turn}")), "log")
        await fleet.write("Insert", memory.rows("made", {turn: "new"}, auto_id=True), "log")


async def collections_change(fleet: Fleet, rng: random.Random) -> None:
    async def some(name: str, message: bytes) -> None:
        await asyncio.sleep(rng.random() * 0.5)
        await fleet.write(name, message, "one")

    await some("CreateAlias", alias("docs", "latest"))
    await some("Upsert", memory.rows("docs", {1: "before it was dropped"}))
    await some("DropAlias", drop_alias("latest"))
    await some("DropCollection", drop("docs"))
    await fleet.make("docs", {1: "another column"}, "one", column="words")
    await some("CreateAlias", alias("docs", "latest"))
    await some("RenameCollection", rename("old", "older"))
    await some("RenameCollection", rename("docs", "old"))
    await fleet.make("docs", {2: "again"}, "one")


async def filled(seed: int = 0, *names: str, rows: int = 200) -> Fleet:
    """A fleet whose clusters all have the collection docs; to be used as a context."""
    fleet = Fleet(*(names or ("a", "b")), seed=seed)
    await fleet.__aenter__()
    await fleet.make("docs", {key: f"row {key}" for key in range(rows)})
    await fleet.in_sync()
    return fleet


def empty(fleet: Fleet, name: str) -> None:
    fleet.clusters.servers[name] = memory.PagedMilvus(7)


@pytest.mark.parametrize("seed", range(8))
def test_a_reseed_that_is_killed_again_and_again_goes_on_where_it_stopped(seed: int) -> None:
    async def scenario() -> None:
        fleet = await filled(seed, rows=1_500)
        rng = random.Random(seed)
        empty(fleet, "b")
        fleet.clusters.step_s = 0.02
        written: list[int] = []

        async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
            if (cluster, method) == ("b", "Upsert") and b"_haclient" not in message:
                written.append(milvus_pb2.UpsertRequest.FromString(message).num_rows)
            return None

        fleet.clusters.hook = hook
        lows, kills = set(), 0
        for _ in range(200):
            dead = asyncio.Event()
            work = asyncio.create_task(fleet.reseed("b", log=mortal(fleet, dead)))
            await asyncio.wait([work], timeout=rng.uniform(0.2, 0.9) + 61.5 * bool(kills))
            position = await position_of(fleet.log, "b")
            if work.done() or (kills and position.standing is not Standing.RESEEDING):
                break
            kills += 1
            await fleet.write("Upsert", memory.rows("docs", {rng.randrange(300): f"turn {kills}"}), "one")
            lows.add(position.low)
            dead.set()
            work.cancel()
            await asyncio.wait([work])
        dead.set()
        work.cancel()
        await asyncio.wait([work])
        # Every row is copied once, but for those of the page that was under way when it was killed.
        assert kills
        assert len(lows) <= 2
        assert 1_500 <= sum(written) <= 1_500 + kills * max(written)
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario(), seed)


def mortal(fleet: Fleet, dead: asyncio.Event) -> MemoryLog:
    """A log that a process which is dead has no more: its lease runs out by itself."""

    async def hook(operation: str, moment: str) -> None:
        await asyncio.sleep(0)
        if dead.is_set():
            raise LogUnavailable("this process is dead", sent=False)

    return MemoryLog(fleet.store, hook)


def test_a_page_that_went_unanswered_cannot_land_after_what_came_later() -> None:
    async def scenario() -> None:
        fleet = await filled()
        loop = asyncio.get_running_loop()
        late: list[float] = []
        sent: list[str] = []

        async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
            position = await position_of(fleet.log, "b")
            if (cluster, method) != ("b", "Upsert") or sent or position.standing is not Standing.RESEEDING:
                return None
            sent.append(method)

            def land() -> None:
                late.append(loop.time())
                fleet.clusters.carry_out(cluster, method, message)

            # It is carried out just before its time is over, long after its sender has given it up.
            loop.call_later(4.9, land)
            await asyncio.sleep(0.5)
            return Delivery(Outcome.UNANSWERED, reason="no answer")

        empty(fleet, "b")
        fleet.clusters.hook = hook
        work = asyncio.create_task(fleet.reseed("b"))
        await asyncio.sleep(1)
        await fleet.write("Upsert", memory.rows("docs", {0: "newer"}), "one")
        await fleet.write("Delete", memory.delete("docs", [1]), "one")
        await work
        await fleet.in_sync()
        assert late
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_what_a_killed_process_has_sent_cannot_land_after_what_came_later() -> None:
    async def scenario() -> None:
        fleet = await filled()
        loop, dead = asyncio.get_running_loop(), asyncio.Event()
        sent: list[str] = []

        async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
            position = await position_of(fleet.log, "b")
            if (cluster, method) != ("b", "Upsert") or sent or position.standing is not Standing.RESEEDING:
                return None
            sent.append(method)
            loop.call_later(50, fleet.clusters.carry_out, cluster, method, message)
            await dead.wait()
            return Delivery(Outcome.LOST, reason="its sender is dead")

        empty(fleet, "b")
        fleet.clusters.hook = hook
        work = asyncio.create_task(fleet.reseed("b", log=mortal(fleet, dead)))
        await asyncio.sleep(5)
        assert sent
        dead.set()
        work.cancel()
        await asyncio.wait([work])
        await fleet.write("Upsert", memory.rows("docs", dict.fromkeys(range(200), "newer")), "one")
        await fleet.reseed("b")
        await fleet.in_sync()
        await asyncio.sleep(50)
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def at_first(fleet: Fleet, method: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do something when a reseed first sends the donor a request of this kind, before it is answered."""
    done: list[str] = []

    async def asked(cluster: str, name: str) -> None:
        standing = (await position_of(fleet.log, "b")).standing
        if (cluster, name) == ("a", method) and standing is Standing.RESEEDING and not done:
            done.append(name)
            await work()

    fleet.clusters.asked = asked


def test_a_collection_that_is_made_anew_with_another_schema_while_it_is_copied() -> None:
    async def scenario() -> None:
        fleet = await filled()

        async def again() -> None:
            await fleet.write("Upsert", memory.rows("docs", {1: "in the old column"}), "one")
            await fleet.write("DropCollection", drop("docs"), "one")
            await fleet.make("docs", {1: "in the new column"}, "one", column="words")

        at_first(fleet, "DescribeCollection", again)
        await fleet.reseed("b")
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_collections_that_never_cease_to_change_wait_in_the_end() -> None:
    async def scenario() -> None:
        fleet = await filled()
        fleet.clusters.step_s = 0.05
        made = 0

        async def go_on(number: int) -> None:
            nonlocal made
            for turn in range(100):
                name = f"made{number}_{turn}"
                await fleet.make(name, {1: "one"}, "one")
                await fleet.write("CreateAlias", alias(name, f"{name}_alias"), "one")
                await fleet.write("DropAlias", drop_alias(f"{name}_alias"), "one")
                await fleet.write("DropCollection", drop(name), "one")
                made += 1

        async with asyncio.TaskGroup() as group:
            restless = [group.create_task(go_on(number)) for number in range(4)]
            await fleet.reseed("b")
            assert not any(task.done() for task in restless)
            before = made
            while made < before + 4:  # nobody waits any longer
                await asyncio.sleep(0.05)
            for task in restless:
                task.cancel()
        await fleet.in_sync()
        assert fleet.differences() == []
        assert not await fleet.log.facts(PAUSE)
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_nobody_waits_long_for_a_copy_that_was_killed() -> None:
    async def scenario() -> None:
        async with Fleet("a", "b") as fleet:
            await fleet.log.put({PAUSE: b"b"})
            began = fleet.loop.time()
            with pytest.raises(DeadlineExceeded, match="cluster b have been copied"):
                await fleet.process.write(named("CreateCollection"), memory.collection("docs"), (), "", began + 2)
            assert fleet.loop.time() < began + 2
            await fleet.make("docs", {1: "one"})
            waited_s = fleet.loop.time() - began
            assert 5 <= waited_s < 7
            await fleet.make("more", {1: "one"})
            assert fleet.loop.time() - began < waited_s + 1

    virtual_time.run(scenario())


def test_an_alias_that_is_changed_and_dropped_while_aliases_are_copied() -> None:
    async def scenario() -> None:
        fleet = await filled()
        await fleet.make("other", {1: "one"})
        await fleet.write("CreateAlias", alias("docs", "latest"))

        async def pass_by() -> None:
            await fleet.write("AlterAlias", alias("other", "latest"), "one")
            await fleet.write("DropAlias", drop_alias("latest"), "one")

        at_first(fleet, "ListAliases", pass_by)
        await fleet.reseed("b")
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_what_the_target_has_and_the_donor_has_not_is_dropped() -> None:
    async def scenario() -> None:
        fleet = await filled()
        server = fleet.clusters.servers["b"]
        server.answer("CreateCollection", memory.collection("stray"), "")
        for name in ("docs", "stray"):
            server.answer("CreateAlias", alias(name, f"{name} by another name"), "")
        server.answer("CreateDatabase", milvus_pb2.CreateDatabaseRequest(db_name="empty").SerializeToString(), "")
        await fleet.reseed("b")
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


@pytest.mark.parametrize("seed", range(5))
def test_in_place_only_what_differs_is_written(seed: int) -> None:
    async def scenario() -> None:
        fleet = await filled(seed, rows=900)
        wrong = fleet.clusters.servers["b"]
        wrong.answer("Upsert", memory.rows("docs", {3: "wrong", 5_000: "extra", -4: "extra"}), "")
        wrong.answer("Delete", memory.delete("docs", [7, 450]), "")
        await fleet.make("other", {1: "one"})
        await fleet.in_sync()
        created = len(fleet.clusters.sent)
        done = await fleet.reseed("b", in_place=True)
        methods = [method for cluster, method in fleet.clusters.sent[created:] if cluster == "b"]
        assert "CreateCollection" not in methods[: methods.index("Upsert")]
        assert done.rows == 901
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario(), seed)


def test_rows_that_were_not_kept_are_noticed() -> None:
    async def scenario() -> None:
        fleet = await filled()
        empty(fleet, "b")

        async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
            if (cluster, method) == ("b", "Flush"):
                fleet.clusters.servers["b"].answer("Delete", memory.delete("docs", [11]), "")
            return None

        fleet.clusters.hook = hook
        with pytest.raises(SiteFailed, match="does not hold what was written to it: 199:"):
            await fleet.reseed("b")
        assert (await position_of(fleet.log, "b")).standing is Standing.RESEEDING
        fleet.clusters.hook = None
        await fleet.reseed("b")
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_a_target_that_does_not_keep_the_schema_is_not_filled() -> None:
    async def scenario() -> None:
        fleet = await filled()
        empty(fleet, "b")

        async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
            if (cluster, method) != ("b", "CreateCollection") or b"text" not in message:
                return None
            return fleet.clusters.carry_out(cluster, method, message.replace(b"text", b"tent"))

        fleet.clusters.hook = hook
        with pytest.raises(SiteFailed, match="has not kept all of its schema"):
            await fleet.reseed("b")
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_a_collection_that_is_released_is_copied_and_left_released() -> None:
    async def scenario() -> None:
        fleet = await filled()
        await fleet.write("ReleaseCollection", memory.load("docs"))
        await fleet.in_sync()
        empty(fleet, "b")
        assert (await fleet.reseed("b")).rows == 200
        await fleet.in_sync()
        assert fleet.differences() == []
        assert not fleet.clusters.servers["a"].find("default", "docs").loaded
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_a_collection_that_cannot_be_read_stops_the_reseed_with_what_to_do() -> None:
    async def scenario() -> None:
        fleet = await filled()
        await fleet.write("ReleaseCollection", memory.load("docs"))
        await fleet.in_sync()
        fleet.clusters.servers["a"].find("default", "docs").indexes.clear()
        with pytest.raises(SiteFailed, match=r"docs has rows on cluster a, but is not loaded .* Index and load it"):
            await fleet.reseed("b")
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_the_donor_is_one_in_sync_and_the_furthest_one() -> None:
    async def scenario() -> None:
        fleet = await filled(0, "a", "b", "c")
        with pytest.raises(ConfigError, match="there is no cluster 'x'; write one of a, b, c"):
            await fleet.reseed("x")
        with pytest.raises(ConfigError, match="'b' cannot be copied from: it is the cluster to be filled"):
            await fleet.reseed("b", donor="b")
        fleet.clusters.down.add("a")
        await fleet.write("Upsert", memory.rows("docs", {1: "newer"}), "quorum")
        while (await position_of(fleet.log, "a")).standing is not Standing.AWAY:
            await asyncio.sleep(0.1)
        with pytest.raises(ConfigError, match="'a' cannot be copied from: it is away; in sync are c"):
            await fleet.reseed("b", donor="a")
        assert (await fleet.reseed("b")).donor == "c"
        fleet.clusters.drained.add("c")
        with pytest.raises(SiteFailed, match="no cluster to copy b from"):
            await fleet.reseed("b")
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_the_log_is_kept_for_what_comes_after_the_copy() -> None:
    async def scenario() -> None:
        fleet = await filled()
        empty(fleet, "b")
        work = asyncio.create_task(fleet.reseed("b"))
        while (await position_of(fleet.log, "b")).standing is not Standing.RESEEDING:
            await asyncio.sleep(0.001)
        low = (await position_of(fleet.log, "b")).low
        for turn in range(30):
            await fleet.write("Upsert", memory.rows("docs", {turn: "newer"}), "one")
        await fleet.process._trim_once()
        assert (await fleet.log.bounds()).first <= low + 1
        await work
        await fleet.in_sync()
        assert fleet.differences() == []
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_a_place_that_was_trimmed_away_is_told() -> None:
    async def scenario() -> None:
        fleet = await filled()

        async def hook(cluster: str, method: str, message: bytes) -> Delivery | None:
            if (cluster, method) == ("b", "Flush"):
                await fleet.log.trim((await fleet.log.bounds()).head - 1)
            return None

        fleet.clusters.hook = hook
        await fleet.write("Upsert", memory.rows("docs", {1: "newer"}), "all")
        work = asyncio.create_task(fleet.reseed("b"))
        while (await position_of(fleet.log, "b")).standing is not Standing.RESEEDING:
            await asyncio.sleep(0.001)
        for turn in range(9):
            await fleet.write("Upsert", memory.rows("docs", {turn: "newer"}), "one")
        with pytest.raises(SiteFailed, match=r"no longer in the log: .* Raise replication\.max_entries"):
            await work
        await fleet.__aexit__()

    virtual_time.run(scenario())


def test_who_has_lost_the_cluster_changes_nothing_more() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        log = MemoryLog(MemoryStore())
        lease = await log.acquire("apply/b", "one", 1.0)
        assert lease is not None
        hold = Hold(log, "b", lease, Position(), loop)
        hold.check()
        await asyncio.sleep(1.1)
        with pytest.raises(HoldLost, match="has run out"):
            hold.check()
        assert await log.acquire("apply/b", "other", 1.0) is not None
        with pytest.raises(HoldLost, match="another process has taken cluster b over"):
            await hold.move()
        assert await log.facts() == {}

    virtual_time.run(scenario())


def test_a_second_reseed_waits_for_the_first_and_gives_up() -> None:
    async def scenario() -> None:
        fleet = await filled()
        fleet.clusters.step_s = 2.0
        work = asyncio.create_task(fleet.reseed("b"))
        while (await position_of(fleet.log, "b")).standing is not Standing.RESEEDING:
            await asyncio.sleep(0.1)
        with pytest.raises(HoldLost, match="another reseed or repair may be running"):
            await fleet.reseed("b")
        await work
        fleet.clusters.step_s = 0.001
        await fleet.in_sync()
        assert fleet.differences() == []
        # One that is not needed any more is not done.
        sent = len(fleet.clusters.sent)
        assert (await fleet.reseed("b", only_if_needed=True)).donor == ""
        assert "DropCollection" not in [method for _, method in fleet.clusters.sent[sent:]]
        await fleet.__aexit__()

    virtual_time.run(scenario())
