"""Keys of auto_id collections: unique whoever makes them, and ascending."""

from __future__ import annotations

import asyncio
import random

from haclient.replication.keys import KeyMaker
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.virtual_time import run

NOW = 1_800_000_000.0


class Clock:
    """A time of day that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


async def maker(store: MemoryStore, clock: Clock, seed: int) -> KeyMaker:
    log = MemoryLog(store)
    await log.open()
    return KeyMaker(log, f"p{seed}", clock, random.Random(seed), asyncio.get_running_loop())


def test_unique_and_ascending_over_makers() -> None:
    async def scenario() -> None:
        store, clock = MemoryStore(), Clock()
        makers = [await maker(store, clock, seed) for seed in range(20)]
        keys = [await one.make(5_000) for one in makers for _ in range(2)]
        flat = [key for some in keys for key in some]
        assert len(set(flat)) == len(flat)
        assert all(some == sorted(some) for some in keys)
        assert {len(str(key)) for key in flat} == {19}, "their texts sort like their numbers"
        assert max(flat) < 1 << 63
        clock.now += 10.0
        assert min(await makers[7].make(3)) > max(flat), "in the order of time over all makers"

    run(scenario())


def test_the_same_number_twice_makes_no_key_twice() -> None:
    """A process dies, another one gets its number, and its clock is behind."""

    async def scenario() -> None:
        store, clock = MemoryStore(), Clock()
        first = await maker(store, clock, 1)
        before = await first.make(100)
        await asyncio.sleep(60)  # its lease runs out
        clock.now -= 3_600
        second = await maker(store, clock, 1)  # the same seed draws the same number
        after = await second.make(100)
        assert min(after) > max(before)

    run(scenario())


def test_a_lost_lease_is_noticed() -> None:
    async def scenario() -> None:
        store, clock = MemoryStore(), Clock()
        one = await maker(store, clock, 1)
        before = await one.make(1)
        await asyncio.sleep(60)
        other = await maker(store, clock, 1)
        between = await other.make(1)
        after = await one.make(1)
        assert len({*before, *between, *after}) == 3

    run(scenario())


def test_closing_gives_the_number_back() -> None:
    async def scenario() -> None:
        store, clock = MemoryStore(), Clock()
        one = await maker(store, clock, 1)
        before = await one.make(1)
        await one.aclose()
        other = await maker(store, clock, 1)
        assert min(await other.make(1)) > max(before)

    run(scenario())
