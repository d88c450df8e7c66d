"""Sessions that move between two processes while everything else goes on at random: each level keeps its promise.

There are one log and some clusters, which apply it in jumps and come and go; two processes, which hear of the log and
of the clusters late; and sessions, which read at every level. A cluster shows what it has applied, at any moment
between the read's being sent and its answer. Planted bugs show that the check can fail.
"""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

import pytest

from haclient.replication import past as past_module
from haclient.replication.log import Bounds
from haclient.replication.past import Past
from haclient.replication.plan import Plan
from haclient.replication.position import Position
from haclient.replication.progress import Progress
from tests.unit.replication.reader_fakes import DOCS, Site, entry
from tests.unit.replication.test_reader import BOUNDED, EVENTUALLY, SESSION, STRONG, query
from tests.virtual_time import run

BOUND_S = 2.0
LASTS_S = 15.0


class Wrong(NamedTuple):
    """A promise that was broken."""

    level: int
    shown: int
    owed: float


class World:
    """The truth, and two processes that know some of it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.loop = asyncio.get_running_loop()
        self.names = ["a", "b", "c"][: rng.choice([2, 3])]
        self.sites = [Site(*self.names, bounded_s=BOUND_S) for _ in range(2)]
        self.log: list[float] = []
        self.applied = dict.fromkeys(self.names, 0)
        self.wrong: list[Wrong] = []
        self.reads = 0
        for site in self.sites:
            site.log.bounds = self.bounds
            for name in self.names:
                site.progress.moved(name, Position())

    async def pause(self, most_s: float) -> None:
        await asyncio.sleep(self.rng.random() * most_s)

    async def bounds(self) -> Bounds:
        await self.pause(0.02)
        head = len(self.log)
        await self.pause(0.02)
        return Bounds(1, head, 0)

    async def write(self) -> None:
        while True:
            await self.pause(0.1)
            self.log.append(self.loop.time())
            site = self.rng.choice(self.sites)
            if self.rng.random() < 0.5 and site.progress.head == len(self.log) - 1:
                site.progress.saw([entry(len(self.log))])

    async def apply(self, name: str) -> None:
        while True:
            await self.pause(self.rng.choice([0.02, 0.02, 1.5]))
            if self.applied[name] < len(self.log):
                self.applied[name] += self.rng.randint(1, len(self.log) - self.applied[name])
                await self.pause(0.05)
                if self.rng.random() < 0.5:
                    self.rng.choice(self.sites).progress.moved(name, Position(low=self.applied[name]))

    async def follow(self, site: Site) -> None:
        while True:
            await self.pause(self.rng.choice([0.02, 0.5]))
            asked_at, found, applied = self.loop.time(), len(self.log), dict(self.applied)
            await self.pause(0.02)
            site.progress.saw([entry(seq) for seq in range(1, found + 1)])
            for name in self.names:
                if site.progress.applied(name, DOCS) <= applied[name]:
                    site.progress.moved(name, Position(low=applied[name]))
            site.progress.heard(asked_at)

    async def come_and_go(self) -> None:
        while True:
            await self.pause(0.5)
            name, up = self.rng.choice(self.names), self.rng.random() < 0.7
            for site in self.sites:
                site.up[name] = up

    async def session(self) -> None:
        rng, here, seen, wrote = self.rng, self.rng.randrange(2), 0, 0
        pasts = [Past(), Past()]
        while True:
            await self.pause(0.05)
            if rng.random() < 0.1 and self.log:
                wrote = len(self.log)
                pasts[here].wrote(DOCS, wrote)
            level, head, site = (
                rng.choice([STRONG, *[SESSION] * 4, BOUNDED, EVENTUALLY]),
                len(self.log),
                self.sites[here],
            )
            call = site.call(query(level, {STRONG: 0, BOUNDED: 2}.get(level, 1)), past=pasts[here], timeout_s=60.0)
            await call.plan.ready(call)
            cluster = rng.choice([name for name in self.names if name not in call.behind])
            await self.pause(0.01)
            shown = self.applied[cluster]
            lacks_since = self.log[shown] if shown < len(self.log) else self.loop.time()
            owed = {STRONG: head, SESSION: max(seen, wrote)}.get(level, 0)
            if shown < owed:
                self.wrong.append(Wrong(level, shown, owed))
            if level == BOUNDED and self.loop.time() - lacks_since > BOUND_S + 0.05:
                self.wrong.append(Wrong(level, shown, self.loop.time() - lacks_since))
            await self.pause(0.01)
            call.plan.answered(call, cluster)
            self.reads += 1
            seen = max(seen, shown)
            if rng.random() < 0.2:
                ((_, token),) = site.reader.trailer(call)
                here = 1 - here
                moved = Past.of(token, self.loop.time())
                assert moved is not None
                pasts[here] = moved

    async def live(self) -> None:
        work = [self.write(), self.come_and_go(), *map(self.apply, self.names), *map(self.follow, self.sites)]
        tasks = [asyncio.ensure_future(one) for one in [*work, *(self.session() for _ in range(4))]]
        done, _ = await asyncio.wait(tasks, timeout=LASTS_S, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for site in self.sites:
            await site.reader.aclose()
        for task in done:
            task.result()


def lived(seed: int) -> World:
    async def scenario() -> World:
        world = World(random.Random(seed))
        await world.live()
        return world

    return run(scenario(), seed=seed)


@pytest.mark.parametrize("seed", range(12))
def test_every_level_keeps_its_promise(seed):
    world = lived(seed)
    assert world.reads > 50
    assert not world.wrong, f"seed {seed}"


def forgets_what_another_cluster_has_shown(patch):
    saw = Past.saw
    patch.setattr(Past, "saw", lambda past, name, cluster, now: saw(past, name, cluster or "b", now))


def takes_what_it_knows_for_everything(patch):
    patch.setattr(Progress, "by", lambda progress, stream, moment: 0)


def takes_the_end_it_knows_for_the_end(patch):
    async def complete(plan, call):
        plan._heard = True

    patch.setattr(Plan, "_complete", complete)


def takes_a_look_for_as_new_as_its_answer(patch):
    heard = Progress.heard
    patch.setattr(Progress, "heard", lambda progress, asked_at=None: heard(progress))


def dates_entries_by_when_they_were_found(patch):
    patch.setattr(Progress, "stale_s", lambda progress, cluster, stream: 0.0)


def forgets_what_the_session_has_written(patch):
    patch.setattr(Past, "written", lambda past, stream: 0)


def lets_a_token_say_nothing(patch):
    patch.setattr(past_module, "_decode", lambda text: past_module._Token(0, 0, 0))


def answers_strong_like_session(patch):
    settle = Plan._settle

    def lenient(plan, stream, default, name):
        settle(plan, stream, default, name)
        plan._moment = None

    patch.setattr(Plan, "_settle", lenient)


BUGS = [
    forgets_what_another_cluster_has_shown,
    takes_what_it_knows_for_everything,
    takes_the_end_it_knows_for_the_end,
    takes_a_look_for_as_new_as_its_answer,
    dates_entries_by_when_they_were_found,
    forgets_what_the_session_has_written,
    lets_a_token_say_nothing,
    answers_strong_like_session,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug, monkeypatch):
    bug(monkeypatch)
    for seed in range(40):
        if lived(seed).wrong:
            return
    pytest.fail("nothing was found wrong")
