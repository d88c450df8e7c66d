"""What one trial of a scenario was like: every call, every fault, and what was found at the end.

Decision made here: a trial is kept as plain facts; figures and verdicts are drawn from them and from nothing else, so a
report can be made again from a file. All times are seconds since the load of the trial began.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self, final

Kind = Literal["search", "query", "upsert", "delete"]
#: ``failed``: certainly not done. ``unknown``: a write of which nobody said what became of it. ``wrong``: answered, but
#: not with what is true. ``stale``: answered with what had been true before what its consistency level promises.
Outcome = Literal["ok", "failed", "unknown", "wrong", "stale"]

READS: Final[frozenset[Kind]] = frozenset({"search", "query"})


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """One call of the load.

    Attributes:
        kind: What it was.
        due: When it was to start.
        ended: When its outcome was known, or when the load gave up on it.
        outcome: What became of it.
        client: Which process of the load made it.
        attempts: Requests that were sent for it, by what was between the load and the servers too if it tells.
        error: What was raised, first line.
    """

    kind: Kind
    due: float
    ended: float
    outcome: Outcome
    client: str = ""
    attempts: int = 1
    error: str = ""


@final
@dataclass(frozen=True, slots=True)
class FaultMark:
    """One fault as it happened.

    Attributes:
        name: Which one.
        target: Who was hurt.
        began: When.
        healed: When it was over; None if it lasted to the end.
        detected: When haclient first said that it had noticed; None if it never did.
    """

    name: str
    target: str
    began: float
    healed: float | None = None
    detected: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Audit:
    """What was found once all was well again.

    Attributes:
        acknowledged: Writes that had been acknowledged.
        lost: Of those, how many are not there.
        resurrected: Keys that are there although their deletion was acknowledged.
        duplicates: Keys that are there more than once.
        differing: Keys that are not the same on every cluster.
        caught_up_s: How long after the end of the load all clusters were the same; None if they never were.
        notes: One line for each of the first findings.
    """

    acknowledged: int = 0
    lost: int = 0
    resurrected: int = 0
    duplicates: int = 0
    differing: int = 0
    caught_up_s: float | None = 0.0
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial.

    Attributes:
        scenario: Its name.
        engine: What the clusters were: ``lite``, ``milvus`` or ``staging``.
        seed: What its randomness was drawn from.
        seconds: Length of the load.
        rate: Calls a second.
        operations: In the order they were due.
        faults: In the order they began.
        audit: What was found at the end; None if the scenario writes nothing.
        error: Why the trial could not be carried out; "" if it was.
    """

    scenario: str
    engine: str
    seed: int
    seconds: float
    rate: float
    operations: list[Operation] = field(default_factory=list)
    faults: list[FaultMark] = field(default_factory=list)
    audit: Audit | None = None
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `as_json` made."""
        audit = value["audit"]
        return cls(
            **{key: value[key] for key in ("scenario", "engine", "seed", "seconds", "rate", "error")},
            operations=[Operation(**one) for one in value["operations"]],
            faults=[FaultMark(**one) for one in value["faults"]],
            audit=None if audit is None else Audit(**{**audit, "notes": tuple(audit["notes"])}),
        )
