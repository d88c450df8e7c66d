"""Which process applies to which cluster.

Decision made here: no process has all of them while another one has none. One that has none asks for a cluster of one
that has several, and is handed it in good order. So when a process dies or is stopped, another one still applies to
some cluster, and a write that one cluster must have is acknowledged as before; only the dead one's clusters wait for
their successor. Clusters that are away or do not count are no help then, and are not shared out.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Final

from haclient.errors import LogUnavailable
from haclient.replication.decisions import decide
from haclient.replication.position import Position, Standing
from haclient.replication.shared import Shared

#: Who has no cluster looks whether there is one for it this often, seconds; what two looks find is asked for.
_LOOK_S: Final = 2.0


def wanted(positions: Mapping[str, Position], name: str) -> list[str]:
    """Return the clusters that a process may ask for: those of processes with several, if it has none itself."""
    holders = {cluster: one.by for cluster, one in positions.items() if one.standing is Standing.IN_SYNC}
    counts = Counter(holders.values())
    return [] if counts[name] else sorted(cluster for cluster, holder in holders.items() if counts[holder] > 1)


async def ask(shared: Shared) -> None:
    """Ask for a cluster whenever there is one to be had, for as long as the process lives."""
    before: list[str] = []
    while True:
        await asyncio.sleep(_LOOK_S * (0.5 + shared.rng.random()))
        known = shared.progress.positions
        counted = [member.name for member in shared.counted()]
        now = wanted({name: known[name] for name in counted if name in known}, shared.name)
        if still := [cluster for cluster in now if cluster in before]:
            try:
                await decide(shared.log, shared.rng.choice(still), "share")
            except LogUnavailable as error:
                shared.complain(error)
        before = now
