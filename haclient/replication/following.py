"""Watches the clusters that follow the others: how far each is behind, and what operators decide about them.

Decision made here: the lag is read from the log, not from what this process happens to have seen of it, so it is right
from the first look on and the same everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

from haclient.errors import LogError, LogTrimmed
from haclient.events import AsyncLagging, SiteChanged
from haclient.replication.log import MutationLog
from haclient.replication.position import Position, Standing
from haclient.replication.shared import Shared

#: Time between two looks, seconds.
_LOOK_S: Final = 1.0


@final
@dataclass(frozen=True, slots=True)
class Lag:
    """How far a cluster is behind the log.

    Attributes:
        entries: Entries up to which it lacks some.
        seconds: Age of the oldest entry that it lacks, by the clock of who wrote it; infinite if the log no longer
            holds it, or the cluster is to be copied anew.
    """

    entries: int = 0
    seconds: float = 0.0


async def lag(log: MutationLog, position: Position, head: int, now: float) -> Lag:
    """Find out how far a cluster is behind.

    Args:
        log: The mutation log.
        position: The cluster's.
        head: End of the log.
        now: Time of day, seconds since 1970.
    """
    entries = max(head - position.low, 0)
    if position.standing in (Standing.NEEDS_RESEED, Standing.RESEEDING):
        return Lag(entries, float("inf"))
    if not entries:
        return Lag()
    try:
        oldest = await log.read(position.low, limit=1, bodies=False)
    except LogTrimmed:
        return Lag(entries, float("inf"))
    return Lag(entries, max(now - oldest[0].at, 0.0)) if oldest else Lag()


@final
class Following:
    """Watches them for as long as a process lives.

    Args:
        shared: What replication in this process has in common.
        told: Called at every look with the names of the clusters that follow.

    Attributes:
        lags: Of each of them, as found by the last look.
    """

    def __init__(self, shared: Shared, told: Callable[[frozenset[str]], None]) -> None:
        self.lags: dict[str, Lag] = {}
        self._shared = shared
        self._told = told
        self._known: frozenset[str] | None = None
        self._late: set[str] = set()

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.look()
            except LogError as error:
                self._shared.complain(error)
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> None:
        """Look once.

        Raises:
            LogError: The log cannot be read.
        """
        shared = self._shared
        members = shared.clusters.members()
        names = frozenset(member.name for member in members if shared.roles.follows(member))
        self._told(names)
        if self._known not in (None, names):
            counted = tuple(member.name for member in members if member.name not in names)
            shared.bus.emit(SiteChanged(at=shared.loop.time(), counted=counted, following=tuple(sorted(names))))
        self._known = names
        self.lags = {name: await self._lag(name) for name in sorted(names) if name in shared.progress.positions}
        for name, found in self.lags.items():
            self._judge(name, found)
        self._late &= names

    async def _lag(self, name: str) -> Lag:
        shared = self._shared
        return await lag(shared.log, shared.progress.positions[name], shared.progress.head, shared.wall())

    def _judge(self, name: str, found: Lag) -> None:
        """Report a cluster that falls behind the bound, or comes back within it."""
        shared, late = self._shared, found.seconds > self._shared.settings.max_lag_s
        if late is (name in self._late):
            return
        (self._late.add if late else self._late.remove)(name)
        event = AsyncLagging(
            at=shared.loop.time(),
            cluster=name,
            lagging=late,
            entries=found.entries,
            lag_s=found.seconds,
            max_lag_s=shared.settings.max_lag_s,
        )
        shared.bus.emit(event)
