"""Which cluster is copied: into another one, or into a backup."""

from __future__ import annotations

import asyncio
from typing import Final

from haclient.errors import ConfigError
from haclient.replication.clusters import Clusters
from haclient.replication.hold import position_of
from haclient.replication.log import BARRIER, MutationLog, Stream
from haclient.replication.position import POSITION, Position, Standing, read_positions
from haclient.replication.site import SiteFailed

#: Time in which the donor must have applied what has to be in the copy, seconds.
_PATIENCE_S: Final = 60.0


async def choose(log: MutationLog, clusters: Clusters, cluster: str = "", wanted: str = "") -> str:
    """Choose the cluster to copy from: in sync, not drained, at this site, with as little parked and as far as can be.

    Args:
        log: The mutation log.
        clusters: The fleet.
        cluster: The one that is to be filled; "" if it is none of them.
        wanted: Which it has to be; "" for any.

    Raises:
        ConfigError: The one that is wanted cannot be it.
        SiteFailed: There is none.
    """
    members = {member.name: member for member in clusters.members() if member.name != cluster}
    positions = read_positions(await log.facts(POSITION), members)
    fit = {
        name: position
        for name, position in positions.items()
        if position.standing is Standing.IN_SYNC and not members[name].drained and BARRIER not in position.parked
    }
    if wanted and wanted not in fit:
        reason = "it is the cluster to be filled" if wanted == cluster else _unfit(wanted, positions)
        raise ConfigError(f"cluster {wanted!r} cannot be copied from: {reason}; in sync are {', '.join(fit) or 'none'}")
    if not fit:
        what, other = (f"copy {cluster}", "other one") if cluster else ("read", "one")
        raise SiteFailed(f"there is no cluster to {what} from: no {other} is in sync and in rotation")
    return wanted or min(fit, key=lambda name: (fit[name].follows is not None, len(fit[name].parked), -fit[name].low))


async def caught_up(
    log: MutationLog, donor: str, stream: Stream, needed: int, loop: asyncio.AbstractEventLoop
) -> Position:
    """Wait until the donor has applied a stream up to an entry, or has stopped in it, and return its position.

    Raises:
        SiteFailed: It has not done so for too long.
    """
    until, revision = loop.time() + _PATIENCE_S, 0
    while True:
        position = await position_of(log, donor)
        applied = max(position.applied(stream), position.applied(BARRIER))
        if applied >= needed or (stream in position.parked and position.parked[stream].reason):
            return position
        try:
            async with asyncio.timeout_at(until):
                revision = await log.changed(revision)
        except TimeoutError:
            text = f"the donor {donor} has not applied entry {needed} for {_PATIENCE_S:g} s"
            raise SiteFailed(f"{text}; see `haclient log show`") from None


def _unfit(name: str, positions: dict[str, Position]) -> str:
    position = positions.get(name)
    if position is None:
        return "there is none of that name with a place in the log"
    if position.standing is not Standing.IN_SYNC:
        return f"it is {position.standing.value}"
    return "it is drained" if BARRIER not in position.parked else "it has stopped at a change of aliases or roles"
