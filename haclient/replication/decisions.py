"""What the operator, or another process, asks of a cluster's applier.

Decision made here: a decision is a fact, so it reaches the applier in whatever process it is, and stays until it has
been carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, final, get_args

import orjson

from haclient.replication.log import Fact, MutationLog

#: Facts: operator/<cluster>/<seq of the entry that parked a stream, or "reseed", or "share">.
OPERATOR: Final = "operator/"

What = Literal["skip", "retry", "reseed", "share"]


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    Attributes:
        name: Of its fact.
        action: What is to be done.
        seq: The entry that it is about; 0 if it is about the whole cluster.
    """

    name: str
    action: What
    seq: int


def prefix(cluster: str) -> str:
    """Return how the names of a cluster's decisions begin."""
    return f"{OPERATOR}{cluster}/"


async def decide(log: MutationLog, cluster: str, action: What, seq: int = 0) -> None:
    """Write a decision down for the cluster's applier."""
    name = f"{prefix(cluster)}{seq or action}"
    await log.put({name: orjson.dumps({"action": action})})


async def decisions(log: MutationLog, cluster: str) -> list[Decision]:
    """Return what has been decided about a cluster and not been carried out yet."""
    facts = await log.facts(prefix(cluster))
    return [found for name, fact in sorted(facts.items()) if (found := _read(name, fact)) is not None]


def _read(name: str, fact: Fact) -> Decision | None:
    """Read one; what is no decision is left alone."""
    about = name.rpartition("/")[2]
    try:
        action = orjson.loads(fact.value)["action"]
    except (ValueError, KeyError, TypeError):
        return None
    if action not in get_args(What):
        return None
    return Decision(name, action, int(about) if about.isdigit() else 0)
