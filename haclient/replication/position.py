"""How far one cluster has applied the log.

Decision made here: a cluster's whole place in the log is one small value, written as one fact by its applier. Entries
up to ``low`` are done in every stream that is not parked; ``ahead`` names the streams that are further. So the value is
as large as the number of streams that are written to at once, not as the number of collections.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

import orjson

from haclient.replication.log import Fact, Lease, Stream

#: Facts: one position for each cluster.
POSITION: Final = "position/"


class Standing(enum.Enum):
    """What a cluster is to the others."""

    #: It applies what comes: it may have begun anything that is in the log.
    IN_SYNC = "in_sync"
    #: It does not answer, or is drained: it has begun nothing above `Position.begun`, and says so before it goes on.
    AWAY = "away"
    #: What it lacks is not in the log any more, or it has lost what it had: it is to be copied from another one.
    NEEDS_RESEED = "needs_reseed"
    #: It is being copied from another one.
    RESEEDING = "reseeding"


@final
@dataclass(slots=True)
class Parked:
    """A stream that has stopped on one cluster, at an entry that it cannot take.

    Attributes:
        seq: The entry.
        reason: Why, for a person.
    """

    seq: int
    reason: str


@final
@dataclass(slots=True)
class Position:
    """One cluster's place in the log.

    Attributes:
        low: Every entry up to it is done, but for those of parked streams.
        ahead: Highest entry done of streams that are further than ``low``.
        parked: Streams that have stopped.
        timestamps: The cluster's own timestamp from which on all is seen that it has of a stream; of streams written
            lately, and under the barrier one for all others, if it is known.
        standing: What the cluster is to the others.
        begun: Highest entry that may have been begun; of a cluster that is away none above it is.
        open: How long the cluster may still work on requests that somebody has under way, seconds; 0 if there are none.
            Whoever takes over has to let them come to rest.
        left: How much of ``open`` remains once its writer is known to have died: of what it was waiting for itself the
            connections are gone.
        epoch: Epoch of the lease of whoever wrote it.
        by: Name of the process that applies to it; "" if another kind of work wrote it.
        blocked: Why it takes no writes at present (quota, denial), "" if it does.
        follows: None if it counts. Else it begins above this entry only what a cluster that counts has, and says so
            before it goes on otherwise; up to it, it may have begun anything while it counted. See `roles`.
        marked: What ``low`` was when the cluster's own mark was last written into it; see `watermark.lost`.
    """

    low: int = 0
    ahead: dict[Stream, int] = field(default_factory=dict)
    parked: dict[Stream, Parked] = field(default_factory=dict)
    timestamps: dict[Stream, int] = field(default_factory=dict)
    standing: Standing = Standing.IN_SYNC
    begun: int = 0
    open: float = 0.0
    left: float = 0.0
    epoch: int = 0
    by: str = ""
    blocked: str = ""
    marked: int = 0
    follows: int | None = None

    def inherited_s(self, lease: Lease) -> float:
        """Return how long it may still work on requests of others, seconds, for who has just got its lease."""
        written_by_the_dead = lease.orphaned and self.epoch == lease.epoch - 1
        return self.left if written_by_the_dead else self.open

    def applied(self, stream: Stream) -> int:
        """Return the highest seq up to which every entry of a stream is done."""
        parked = self.parked.get(stream)
        if parked is not None:
            return parked.seq - 1
        return max(self.low, self.ahead.get(stream, 0))

    def encode(self) -> bytes:
        """Write it as a fact's value."""
        return orjson.dumps(
            {
                "low": self.low,
                "ahead": {text_of(stream): seq for stream, seq in self.ahead.items()},
                "parked": {text_of(stream): [one.seq, one.reason] for stream, one in self.parked.items()},
                "timestamps": {text_of(stream): value for stream, value in self.timestamps.items()},
                "standing": self.standing.value,
                "begun": self.begun,
                "open": self.open,
                "left": self.left,
                "epoch": self.epoch,
                "by": self.by,
                "blocked": self.blocked,
                "marked": self.marked,
                "follows": self.follows,
            }
        )

    @classmethod
    def decode(cls, value: bytes) -> Position:
        """Read a fact's value.

        Raises:
            ValueError: It is none.
        """
        try:
            known: dict[str, Any] = orjson.loads(value)
            return cls(
                low=known["low"],
                ahead={stream_of(text): seq for text, seq in known["ahead"].items()},
                parked={stream_of(text): Parked(seq, reason) for text, (seq, reason) in known["parked"].items()},
                timestamps={stream_of(text): one for text, one in known["timestamps"].items()},
                standing=Standing(known["standing"]),
                begun=known["begun"],
                open=float(known["open"]),
                left=float(known.get("left", known["open"])),
                epoch=known["epoch"],
                by=known.get("by", ""),
                blocked=known["blocked"],
                marked=known["marked"],
                follows=known.get("follows"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a position: {error!r}") from None


def read_positions(facts: Mapping[str, Fact], members: Collection[str]) -> dict[str, Position]:
    """Read the positions of clusters out of facts; those of clusters that are no longer members are left out."""
    found = {name.removeprefix(POSITION): fact for name, fact in facts.items() if name.startswith(POSITION)}
    return {name: Position.decode(fact.value) for name, fact in found.items() if name in members}


def text_of(stream: Stream) -> str:
    """Write a stream as a text; the barrier is "/"."""
    return "/".join(stream)


def stream_of(text: str) -> Stream:
    """Read what `text_of` wrote."""
    database, _, collection = text.partition("/")
    return database, collection
