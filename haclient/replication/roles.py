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

from haclient.replication.clusters import Member
from haclient.replication.log import Fact, MutationLog

#: Facts about the site that this log is at: this one, and those of `claims`.
SITE: Final = "site/"
#: The fact that says who follows.
ROLES: Final = f"{SITE}roles"


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
    def of(cls, facts: Mapping[str, Fact]) -> Roles:
        """Read the fact."""
        fact = facts.get(ROLES)
        return cls() if fact is None else cls(orjson.loads(fact.value), fact.version)


async def read_roles(log: MutationLog) -> Roles:
    """Return what was decided last."""
    return Roles.of(await log.facts(ROLES))


def decided(members: Iterable[Member], counted: Collection[str]) -> dict[str, bytes | None]:
    """Return the change by which exactly these clusters count, and all others follow."""
    return {ROLES: orjson.dumps({member.name: member.name not in counted for member in members})}
