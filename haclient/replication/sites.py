"""Which clusters count, and which follow them from another site.

Decision made here: a cluster that follows begins only what a cluster that counts has. So it never has anything that the
main site has not, has no say in what is refused, and whatever waits for clusters need not know that it is there. The
configuration says who follows at first; what an operator decides later (``haclient failover``) is one fact in the log,
so every process learns of it, and of its being changed back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

import orjson

from haclient.errors import LogTrimmed
from haclient.replication.clusters import Member
from haclient.replication.log import Fact, MutationLog
from haclient.replication.position import Position, Standing

#: The fact that says who follows.
SITES: Final = "sites"


@final
@dataclass(frozen=True, slots=True)
class Roles:
    """What was decided about who counts.

    Attributes:
        following: Whether each cluster follows; one that is not named is what it is configured as.
        version: Of the fact, 0 if nothing was decided yet.
    """

    following: Mapping[str, bool] = field(default_factory=dict)
    version: int = 0

    def follows(self, member: Member) -> bool:
        """Say whether a cluster follows."""
        return self.following.get(member.name, member.asynchronous)

    def counted(self, members: Iterable[Member]) -> list[Member]:
        """Return the clusters that count."""
        return [member for member in members if not self.follows(member)]

    @classmethod
    def of(cls, fact: Fact | None) -> Roles:
        """Read the fact."""
        return cls() if fact is None else cls(orjson.loads(fact.value), fact.version)


async def read_roles(log: MutationLog) -> Roles:
    """Return what was decided last."""
    return Roles.of((await log.facts(SITES)).get(SITES))


def decided(members: Iterable[Member], counted: Collection[str]) -> dict[str, bytes | None]:
    """Return the change by which exactly these clusters count, and all others follow."""
    return {SITES: orjson.dumps({member.name: member.name not in counted for member in members})}


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
