"""Which cluster another one is copied from."""

from __future__ import annotations

from haclient.errors import ConfigError
from haclient.replication.clusters import Clusters
from haclient.replication.log import BARRIER, MutationLog
from haclient.replication.position import POSITION, Position, Standing, read_positions
from haclient.replication.site import SiteFailed


async def choose(log: MutationLog, clusters: Clusters, cluster: str, wanted: str = "") -> str:
    """Choose the cluster to copy from: one that is in sync, not drained, with as little parked and as far as can be.

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
        raise SiteFailed(f"there is no cluster to copy {cluster} from: no other one is in sync and in rotation")
    return wanted or min(fit, key=lambda name: (len(fit[name].parked), -fit[name].low))


def _unfit(name: str, positions: dict[str, Position]) -> str:
    position = positions.get(name)
    if position is None:
        return "there is none of that name with a place in the log"
    if position.standing is not Standing.IN_SYNC:
        return f"it is {position.standing.value}"
    return "it is drained" if BARRIER not in position.parked else "it has stopped at a change of aliases or roles"
