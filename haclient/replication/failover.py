"""Another site takes over, or gives back: what ``haclient failover`` does while the log is there.

Decision made here: the log has everything, so nothing can be lost by deciding which clusters count; a planned failover
waits only so that the new ones have what the old ones had. Exactly the clusters named count from then on, and all
others follow them: also those that are down, which catch up when they are back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Final, final

from haclient.errors import ConfigError, HAClientError
from haclient.replication.clusters import Clusters, Member
from haclient.replication.following import Lag, lag
from haclient.replication.hold import WAITING
from haclient.replication.log import MutationLog
from haclient.replication.position import POSITION, Position, read_positions
from haclient.replication.roles import ROLES, decided, read_roles

#: Time between two looks at how far the clusters are, seconds.
_LOOK_S: Final = 0.1


class FailoverFailed(HAClientError):
    """The clusters cannot take over now; nothing was changed."""


@final
@dataclass(frozen=True, slots=True)
class Role:
    """What one cluster is.

    Attributes:
        name: Its name.
        counts: Whether it counts; else it follows.
        configured: Whether it counts by the configuration.
        standing: Name of a `haclient.replication.position.Standing`; "new" if it has no place in the log yet.
        entries: Entries of the log up to which it lacks some.
        seconds: Age of the oldest of them; None if that is not known.
    """

    name: str
    counts: bool
    configured: bool
    standing: str
    entries: int
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@final
@dataclass(frozen=True, slots=True)
class Switched:
    """A failover that was done.

    Attributes:
        counted: The clusters that count.
        following: The clusters that follow them.
        entries: Entries that the furthest of those that count lacked when it was decided; the log brings them.
        seconds: Age of the oldest of them, None if that is not known.
        waited_s: Time that it was waited for them to catch up, seconds.
    """

    counted: tuple[str, ...]
    following: tuple[str, ...]
    entries: int
    seconds: float | None
    waited_s: float


async def look(log: MutationLog, members: Sequence[Member], now: float) -> list[Role]:
    """Say what every cluster is.

    Args:
        log: The mutation log.
        members: The clusters.
        now: Time of day, seconds since 1970.
    """
    head = (await log.bounds()).head
    positions = read_positions(await log.facts(POSITION), [member.name for member in members])
    roles, told = await read_roles(log), []
    for member in members:
        position = positions.get(member.name)
        found = await lag(log, position or Position(), head, now)
        standing = position.standing.value if position is not None else "new"
        counts, configured = not roles.follows(member), not member.asynchronous
        told.append(Role(member.name, counts, configured, standing, found.entries, known(found.seconds)))
    return told


async def switch(
    log: MutationLog,
    clusters: Clusters,
    names: Sequence[str],
    wall: Callable[[], float],
    *,
    wait_s: float = 60.0,
    force: bool = False,
    report: Callable[[int, int], None] = lambda total, done: None,
) -> Switched:
    """Have exactly these clusters count.

    Args:
        log: The mutation log.
        clusters: The fleet.
        names: Which.
        wall: Time of day, seconds since 1970.
        wait_s: Time in which they must have all that is in the log now, seconds.
        force: Do not wait for that: the others are gone, and these get the rest from the log.
        report: Told how many entries there are and how many the slowest of them has.

    Raises:
        ConfigError: There is no such cluster.
        FailoverFailed: One of them is no use, or does not catch up in time; nothing was changed.
        LogError: The log failed.
    """
    members = clusters.members()
    there = [member.name for member in members]
    if unknown := [name for name in names if name not in there]:
        raise ConfigError(f"there is no cluster {unknown[0]!r}; write some of {', '.join(there)}")
    for member in members:
        if member.name in names and member.drained:
            raise FailoverFailed(f"cluster {member.name} is drained; put it back first")
    loop = asyncio.get_running_loop()
    began = loop.time()
    head = (await log.bounds()).head
    await _caught_up(log, names, head, began + (0.0 if force else wait_s), wait_s, force, report)
    waited_s = loop.time() - began
    while True:
        roles = await read_roles(log)
        left = await _best(log, names, wall())
        if await log.put(decided(members, names), expect={ROLES: roles.version}):
            break
    following = tuple(name for name in there if name not in names)
    counted = tuple(name for name in there if name in names)
    return Switched(counted, following, left.entries, known(left.seconds), waited_s)


async def _caught_up(
    log: MutationLog,
    names: Collection[str],
    head: int,
    until: float,
    wait_s: float,
    force: bool,
    report: Callable[[int, int], None],
) -> None:
    """Wait until all of these clusters have what was in the log."""
    loop = asyncio.get_running_loop()
    while True:
        positions = read_positions(await log.facts(POSITION), names)
        for name in names:
            _fit(name, positions.get(name), force)
        low = min(position.low for position in positions.values())
        report(head, min(low, head))
        if low >= head or force:
            return
        if loop.time() >= until:
            raise FailoverFailed(
                f"{', '.join(names)}: {head - low} entries of the mutation log were still lacking after {wait_s:g} s. "
                "Nothing was changed. Allow more time with --wait, or, if the other site is gone, use --force: the log "
                "has the rest, so nothing is lost"
            )
        await asyncio.sleep(_LOOK_S)


async def _best(log: MutationLog, names: Collection[str], now: float) -> Lag:
    """Return how far the furthest of these clusters is behind."""
    head = (await log.bounds()).head
    positions = read_positions(await log.facts(POSITION), names)
    return await lag(log, max(positions.values(), key=lambda one: one.low), head, now)


def known(seconds: float) -> float | None:
    """Return an age, None if it is not known."""
    return seconds if isfinite(seconds) else None


def _fit(name: str, position: Position | None, force: bool) -> None:
    """Refuse a cluster that cannot be brought up from the log, or has stopped."""
    if position is None:
        raise FailoverFailed(f"cluster {name} has no place in the log yet: nobody has applied anything to it")
    if position.standing in WAITING:
        raise FailoverFailed(
            f"cluster {name} is {position.standing.value}: it is not whole, and the log does not hold what it lacks. "
            f"Fill it first: haclient reseed {name}"
        )
    stopped = [".".join(filter(None, stream)) or "all" for stream, one in position.parked.items() if one.reason]
    if stopped and not force:
        raise FailoverFailed(
            f"on cluster {name} {', '.join(stopped)} has stopped at an entry that it cannot take. See haclient log "
            "show and haclient log skip; --force takes it as it is"
        )
