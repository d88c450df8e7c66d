"""A mutation that a cluster refuses for good: refused by all, or by this one alone?

Decision made here: no cluster decides for itself. Who refuses an entry writes it down, and what becomes of it follows
from what every cluster has written, changed by compare-and-set against the positions that were judged by:

* some cluster has applied it: the one that refuses differs from it, and its stream is parked;
* every cluster has refused it, or is away and has not begun it: it is void, and everybody passes over it. A cluster
  that comes back says so durably before it reads which entries are void, so it cannot begin one in between;
* else somebody is still at it: wait.

Who follows the others at another site is not waited for. But what it has, or may have begun while it counted, is not
void: if it is away, the one that refuses is parked.

Who is away counts only if it would refuse it, too: not if the cluster that refuses lacks the collection, which those
that are away may well have. A cluster that has lost its disk would else talk everybody out of what was acknowledged.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import orjson

from haclient.replication.clusters import Member
from haclient.replication.log import Fact, MutationLog, Stream
from haclient.replication.position import POSITION, Position, Standing, read_positions
from haclient.replication.roles import ROLES, read_roles

#: Facts: one for each entry that some cluster has refused.
REFUSED: Final = "refused/"


class Verdict(enum.Enum):
    """What becomes of a refused entry on the cluster that refused it."""

    VOID = "void"
    PARK = "park"
    WAIT = "wait"


@final
@dataclass(slots=True)
class Refusal:
    """What is written down about one entry.

    Attributes:
        clusters: Who has refused it, with its reason.
        reply: The answer of the server that refused it first, for the user.
        void: It is settled that nobody applies it.
    """

    clusters: dict[str, str] = field(default_factory=dict)
    reply: bytes = b""
    void: bool = False

    def encode(self) -> bytes:
        """Write it as a fact's value."""
        reply = base64.b64encode(self.reply).decode()
        return orjson.dumps({"clusters": self.clusters, "reply": reply, "void": self.void})

    @classmethod
    def decode(cls, value: bytes) -> Refusal:
        """Read a fact's value."""
        known = orjson.loads(value)
        return cls(known["clusters"], base64.b64decode(known["reply"]), known["void"])


def settle(
    refusal: Refusal,
    positions: Mapping[str, Position],
    cluster: str,
    stream: Stream,
    seq: int,
    *,
    lacks: bool = False,
    following: Collection[str] = (),
) -> tuple[Verdict, list[str]]:
    """Decide about an entry that a cluster refuses.

    Args:
        refusal: What is written down, this cluster's refusal included.
        positions: Every cluster's.
        cluster: Who asks.
        stream: The entry's.
        seq: The entry.
        lacks: It is refused because the cluster has no such collection.
        following: Clusters that are to follow the others.

    Returns:
        The verdict, and the clusters whose positions must be unchanged for it to hold.
    """
    if refusal.void:
        return Verdict.VOID, []
    waiting = False
    relied: list[str] = []
    for name, position in positions.items():
        if name == cluster or name in refusal.clusters:
            continue
        if position.standing in (Standing.NEEDS_RESEED, Standing.RESEEDING):
            continue  # it becomes what its donor is
        if position.applied(stream) >= seq:
            return Verdict.PARK, []
        away = position.standing is Standing.AWAY
        if name in following and (away or position.follows is not None):
            if (position.begun if position.follows is None else position.follows) >= seq:
                if away:
                    return Verdict.PARK, []
                waiting = True
            elif position.follows is None:
                relied.append(name)
            continue
        parked = position.parked.get(stream)
        unbegun = away and position.begun < seq and not lacks
        if unbegun or (parked is not None and parked.reason):
            relied.append(name)
        else:
            waiting = True
    return (Verdict.WAIT, []) if waiting else (Verdict.VOID, relied)


async def refuse(
    log: MutationLog,
    members: Sequence[Member],
    cluster: str,
    stream: Stream,
    seq: int,
    reason: str,
    reply: bytes,
    *,
    lacks: bool = False,
) -> Verdict:
    """Write down that a cluster refuses an entry, and decide what can be decided now.

    On `Verdict.WAIT` it is to be asked again when the log has changed.

    Args:
        log: Where.
        members: All clusters there are.
        cluster: Who refuses it.
        stream: The entry's.
        seq: The entry.
        reason: Why, for a person.
        reply: The server's answer.
        lacks: See `settle`.
    """
    while True:
        # The positions first: one that is past the entry because it is void must be read together with that.
        facts = await log.facts(POSITION)
        roles = await read_roles(log)
        known = (await log.facts(f"{REFUSED}{seq}")).get(f"{REFUSED}{seq}")
        refusal = Refusal.decode(known.value) if known is not None else Refusal(reply=reply)
        before = known.value if known is not None else b""
        refusal.clusters.setdefault(cluster, reason)
        positions = read_positions(facts, [member.name for member in members])
        following = {member.name for member in members if roles.follows(member)}
        verdict, relied = settle(refusal, positions, cluster, stream, seq, lacks=lacks, following=following)
        refusal.void = verdict is Verdict.VOID
        value = refusal.encode()
        if value == before:
            return verdict
        expect = {f"{REFUSED}{seq}": known.version if known is not None else 0}
        expect[ROLES] = roles.version
        expect |= {f"{POSITION}{name}": facts[f"{POSITION}{name}"].version for name in relied}
        if await log.put({f"{REFUSED}{seq}": value}, expect=expect):
            return verdict


def void_entries(facts: Mapping[str, Fact]) -> dict[int, Refusal]:
    """Return the entries that are void, of all facts that begin with `REFUSED`."""
    known = {int(name.removeprefix(REFUSED)): Refusal.decode(fact.value) for name, fact in facts.items()}
    return {seq: refusal for seq, refusal in known.items() if refusal.void}


def forgotten(facts: Iterable[str], first: int) -> dict[str, None]:
    """Return the facts about entries that the log no longer holds, as changes that remove them."""
    return {name: None for name in facts if int(name.removeprefix(REFUSED)) < first}
