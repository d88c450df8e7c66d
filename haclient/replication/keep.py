"""Entries kept in the log for somebody other than a cluster: the next incremental backup.

Decision made here: what is kept so is worth less than writes. A wish ends by itself, and counts only while the log is
less than half full, so a forgotten one never stops anybody from writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from haclient.config.replication import Replication
from haclient.replication.log import Bounds, Fact, MutationLog

#: Facts: one for each wish.
KEEP: Final = "keep/"
#: Name of the wish of backups.
KEPT: Final = "backup"
#: Share of the log's bounds from which on nothing is kept for others.
_MOST: Final = 0.5


async def keep(log: MutationLog, name: str, after: int, until: float) -> None:
    """Ask that entries above a seq are kept.

    Args:
        log: The mutation log.
        name: Of the wish; a later one of the same name replaces it.
        after: The last entry that may go.
        until: Wall time at which the wish ends, seconds since 1970.
    """
    await log.put({KEEP + name: orjson.dumps({"after": after, "until": until})})


def may_go(facts: Mapping[str, Fact], bounds: Bounds, settings: Replication, now: float) -> int:
    """Return up to which entry nobody wishes to keep the log; its head, if there are no wishes that count.

    Args:
        facts: Those whose names begin with `KEEP`.
        bounds: Of the log.
        settings: Bound the log.
        now: Wall time, seconds since 1970.
    """
    entries = bounds.head - bounds.first + 1
    if entries > _MOST * settings.max_entries or bounds.size > _MOST * settings.max_bytes:
        return bounds.head
    wishes = [orjson.loads(fact.value) for fact in facts.values()]
    return min((int(wish["after"]) for wish in wishes if wish["until"] > now), default=bounds.head)
