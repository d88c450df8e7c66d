"""What the appliers, the writer and the operator's side of one process have in common."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import final

from haclient.config.replication import Replication
from haclient.errors import LogUnavailable
from haclient.events import EventBus, LogTrouble
from haclient.milvus.status import Flavour
from haclient.replication.claims import FIRST, Claim
from haclient.replication.clusters import Clusters, Member
from haclient.replication.log import Mutation, MutationLog, Stream, nobody
from haclient.replication.progress import Progress
from haclient.replication.recent import Recent
from haclient.replication.refusals import Refusal
from haclient.replication.roles import Roles
from haclient.replication.timing import Backoff

#: Finds the timestamp of its own from which on a cluster shows a mutation that it has carried out; 0 if no read needs
#: one, None if it cannot be told. Takes the cluster, the mutation, the reply and the kind of server.
Stamp = Callable[[str, Mutation, bytes, Flavour], Awaitable[int | None]]


@final
@dataclass(slots=True)
class Shared:
    """The parts that everybody uses.

    Attributes:
        settings: What is configured.
        log: The mutation log.
        clusters: The fleet.
        progress: What is known of everybody's place in the log.
        recent: The newest entries.
        bus: Takes events.
        rng: Source of randomness.
        loop: Its time is the clock.
        name: Names this process in leases.
        wall: Time of day, seconds since 1970.
        stamp: Finds the timestamps of writes.
        decided: Clusters about which the operator has decided something.
        void: Entries that nobody applies, with what the user is told.
        roles: What was decided about who counts.
        claim: Which log this is.
        superseded: Why nothing may be written to the log any more, "" if something may.
        serving: Clusters that this process applies to.
        is_dead: Says of the name of a process that it is known to have died.
    """

    settings: Replication
    log: MutationLog
    clusters: Clusters
    progress: Progress
    recent: Recent
    bus: EventBus
    rng: random.Random
    loop: asyncio.AbstractEventLoop
    name: str
    wall: Callable[[], float]
    stamp: Stamp
    decided: set[str] = field(default_factory=set)
    void: dict[int, Refusal] = field(default_factory=dict)
    roles: Roles = field(default_factory=Roles)
    claim: Claim = FIRST
    superseded: str = ""
    serving: set[str] = field(default_factory=set)
    is_dead: Callable[[str], bool] = nobody

    def counted(self) -> list[Member]:
        """Return the clusters that count: not those that follow."""
        return self.roles.counted(self.clusters.members())

    def has(self, stream: Stream, seq: int) -> bool:
        """Say whether a cluster that counts has an entry."""
        return any(self.progress.has(member.name, stream, seq) for member in self.counted())

    async def surely(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something with the log, again until it works; who does it may be cancelled meanwhile."""
        backoff, tries = Backoff(self.rng), 0
        while True:
            try:
                await work()
            except LogUnavailable as error:
                self.complain(error)
                tries += 1
                await asyncio.sleep(backoff.of(tries))
            else:
                return

    def complain(self, error: Exception) -> None:
        """Tell listeners that the log failed."""
        self.bus.emit(LogTrouble(at=self.loop.time(), reason=str(error)))
