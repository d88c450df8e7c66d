"""Clusters at another site: not waited for, failover with the log and without it, logs that take each other's place."""

from __future__ import annotations

import asyncio

import pytest

from haclient.errors import ConfigError, WriteNotConfirmed, WriteRefused
from haclient.events import AsyncLagging, Event
from haclient.milvus import watermarks
from haclient.replication.claims import FIRST, Claim, latest, read_claim
from haclient.replication.failover import FailoverFailed, look, switch
from haclient.replication.following import Following
from haclient.replication.hold import position_of
from haclient.replication.position import Standing
from haclient.replication.roles import read_roles
from haclient.replication.succession import assess, begin, is_new
from haclient.replication.watermark import mark_of
from tests.servers import memory_clusters as memory
from tests.servers.memory_fleet import SETTINGS, Fleet
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.virtual_time import run


def rows(first: int, count: int = 1) -> bytes:
    return memory.rows("docs", {key: f"text {key}" for key in range(first, first + count)})


def keys_on(fleet: Fleet, cluster: str) -> set[int]:
    (found,) = [one for (_, name), one in fleet.clusters.servers[cluster].collections.items() if name == "docs"]
    return set(found.rows)


async def until(condition: object, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.05)


def test_who_follows_is_not_waited_for_and_reported_when_it_lags() -> None:
    async def scenario() -> None:
        async with Fleet("a", "b", "far", asynchronous=["far"]) as fleet:
            await fleet.make("docs", {1: "one"})
            await fleet.in_sync()
            heard: list[Event] = []
            shared = fleet.process.shared
            shared.bus.subscribe(heard.append)
            fleet.clusters.down.add("far")
            told: set[str] = set()
            following = Following(shared, told.update)
            await fleet.write("Upsert", rows(2, 3), ack="all")
            await following.look()
            assert told == {"far"}
            assert following.lags["far"].entries == 1
            assert not [one for one in heard if isinstance(one, AsyncLagging)]
            await asyncio.sleep(shared.settings.max_lag_s + 1.0)
            await following.look()
            await following.look()
            fleet.clusters.down.clear()
            await fleet.in_sync()
            await following.look()
            events = [one for one in heard if isinstance(one, AsyncLagging)]
            assert [(one.lagging, one.entries) for one in events] == [(True, 1), (False, 0)]
            assert events[0].lag_s > shared.settings.max_lag_s
            fleet.clusters.down |= {"a", "b"}
            with pytest.raises(WriteNotConfirmed, match="So far none has it"):
                async with asyncio.timeout(70):
                    await fleet.write("Upsert", rows(9), ack="one")
            assert 9 not in keys_on(fleet, "far"), "it follows: it never has what nobody who counts has"

    run(scenario())


def test_failover_with_the_log_waits_until_nothing_is_lacking_and_can_be_forced() -> None:
    async def scenario() -> None:
        async with Fleet("a", "b", "far", asynchronous=["far"]) as fleet:
            await fleet.make("docs", {1: "one"})
            await fleet.in_sync()
            wall = fleet.loop.time
            with pytest.raises(ConfigError, match="no cluster 'nowhere'"):
                await switch(fleet.log, fleet.clusters, ["nowhere"], wall)
            fleet.clusters.down.add("far")
            await fleet.write("Upsert", rows(2), ack="all")
            with pytest.raises(FailoverFailed, match="1 entries of the mutation log were still lacking after 3 s"):
                await switch(fleet.log, fleet.clusters, ["far"], wall, wait_s=3.0)
            assert (await read_roles(fleet.log)).version == 0, "nothing was changed"
            fleet.clusters.down |= {"a", "b"}
            done = await switch(fleet.log, fleet.clusters, ["far"], wall, force=True)
            assert (done.counted, done.following, done.entries) == (("far",), ("a", "b"), 1)
            fleet.clusters.down.remove("far")
            await fleet.write("Upsert", rows(3), ack="all")
            assert keys_on(fleet, "far") == {1, 2, 3}, "the log had the rest"
            fleet.clusters.down.clear()
            done = await switch(fleet.log, fleet.clusters, ["a", "b"], wall)
            assert (done.counted, done.following, done.entries) == (("a", "b"), ("far",), 0)
            assert keys_on(fleet, "a") == keys_on(fleet, "b") == {1, 2, 3}
            roles = {
                one.name: (one.counts, one.configured)
                for one in await look(fleet.log, fleet.clusters.members(), wall())
            }
            assert roles == {"a": (True, True), "b": (True, True), "far": (False, False)}

    run(scenario())


def test_a_cluster_that_is_not_whole_cannot_take_over() -> None:
    async def scenario() -> None:
        async with Fleet("a", "far", asynchronous=["far"]) as fleet:
            await fleet.make("docs", {1: "one"})
            await fleet.in_sync()
            position = await position_of(fleet.log, "far")
            position.standing = Standing.NEEDS_RESEED
            await fleet.process.aclose()
            await fleet.log.put({"position/far": position.encode()})
            with pytest.raises(FailoverFailed, match="haclient reseed far"):
                await switch(fleet.log, fleet.clusters, ["far"], fleet.loop.time, force=True)

    run(scenario())


def test_a_new_log_begins_with_what_one_cluster_has_and_the_former_one_lets_go() -> None:
    async def scenario() -> None:
        async with Fleet("a", "b", "far", asynchronous=["far"]) as fleet:
            await fleet.make("docs", {1: "one"})
            await fleet.in_sync()
            head = (await fleet.log.bounds()).head
            await until(lambda: _marked(fleet, "far") == head)
            fleet.clusters.down.add("far")
            await fleet.write("Upsert", rows(2, 2), ack="all")
            fleet.clusters.down.clear()
            fleet.clusters.down |= {"a", "b"}
            former = fleet.process  # a stale process that still reaches the far cluster, and would bring it the rest
            other = MemoryLog(MemoryStore())
            await other.open()
            assert await is_new(other)
            assert not await is_new(fleet.log)
            loss, claim = await assess(fleet.clusters, "far", fleet.loop.time())
            assert (loss.through >= head, claim, set(loss.unseen)) == (True, FIRST, {"a", "b"})
            done = await begin(other, fleet.clusters, SETTINGS, "far", claim, fleet.loop.time(), rng=fleet.rng)
            assert (done.generation, done.collections, done.others) == (1, ("docs",), ("a", "b"))
            with pytest.raises(FailoverFailed, match="another process has begun"):
                await begin(other, fleet.clusters, SETTINGS, "far", claim, fleet.loop.time(), rng=fleet.rng)
            await until(lambda: former.shared.superseded)
            with pytest.raises(WriteRefused, match="belongs to a later log"):
                await fleet.write("Upsert", rows(5), ack="log")
            assert (await position_of(other, "a")).standing is Standing.NEEDS_RESEED
            assert (await position_of(other, "far")).open == done.rest_s
            assert [one.name for one in (await read_roles(other)).counted(fleet.clusters.members())] == ["far"]

    run(scenario())


def test_claims_are_no_marks_and_the_latest_counts() -> None:
    rows_ = [Claim(1, 77).row(), Claim(2, 5).row(), watermarks.Row("/", 9, 8, 1)]
    assert latest(rows_) == Claim(2, 5)
    assert latest(rows_[2:]) == FIRST
    mark = mark_of(rows_)
    assert mark is not None
    assert (mark.position.low, mark.position.ahead, mark.position.parked) == (8, {}, {})


def test_a_cluster_without_marks_is_nobodys() -> None:
    async def scenario() -> None:
        clusters = memory.MemoryClusters("a")
        assert await read_claim("a", clusters, 1.0) is None
        for request in Claim(3, 4).take():
            clusters.carry_out("a", request.method.name, request.message)
        assert await read_claim("a", clusters, 1.0) == Claim(3, 4)

    run(scenario())


def _marked(fleet: Fleet, cluster: str) -> int:
    position = fleet.process.progress.positions.get(cluster)
    return position.marked if position is not None else 0
