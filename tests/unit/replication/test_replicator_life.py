"""What goes on in a process for as long as it lives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from haclient.config.replication import Replication
from haclient.events import EventBus
from haclient.replication.log import Lease, nobody
from haclient.replication.replicator import Replicator
from haclient.replication.term import Term
from tests import virtual_time
from tests.servers.memory_clusters import MemoryClusters
from tests.servers.memory_log import MemoryLog, MemoryStore


class Mistaken(MemoryLog):
    """A log in which our own code fails, once, in each place."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.failing = {"acquire", "changed"}

    async def acquire(
        self, name: str, holder: str, ttl_s: float, is_dead: Callable[[str], bool] = nobody
    ) -> Lease | None:
        self._fail("acquire")
        return await super().acquire(name, holder, ttl_s, is_dead)

    async def changed(self, revision: int) -> int:
        self._fail("changed")
        return await super().changed(revision)

    def _fail(self, where: str) -> None:
        if where in self.failing:
            self.failing.remove(where)
            raise AttributeError(where)


async def _elected(replicator: Replicator) -> Term:
    while True:
        await asyncio.sleep(0.1)
        if (term := replicator._appliers["a"].term) is not None:
            return term


def test_a_mistake_of_ours_leaves_no_cluster_without_an_applier() -> None:
    """It is told, and what failed begins again."""

    told: list[str] = []

    async def live() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["message"]))
        settings = Replication(mode="mirror", log="memory")
        log = Mistaken(MemoryStore())
        process = Replicator(settings, log, MemoryClusters("a"), EventBus(), random.Random(1), loop, "process")
        await process.start()
        async with asyncio.timeout(60):
            await _elected(process)
        assert not log.failing
        await process.aclose()

    virtual_time.run(live(), 1)
    assert len(told) == 2
    assert all("please report it" in text for text in told)
