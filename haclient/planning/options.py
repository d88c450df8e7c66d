"""One copy, two copies, three copies: what each number of them gives, costs, and is limited by.

Decision made here: an acknowledgement is a number of copies that a write needs, and the mutation log is in series with
them; one copy alone needs neither. So reads and writes are one formula (`haclient.planning.availability`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, final

from haclient.planning.availability import Behaviour, Downtime, downtime

Ack = Literal["log", "one", "quorum", "all"]
Log = Literal["sqlite", "etcd"]

#: Members of etcd, and how many of them an append needs.
ETCD_MEMBERS: Final = 3
ETCD_NEEDED: Final = 2
#: An election of etcd's takes about this long, seconds.
ELECTION_S: Final = 1.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is compared.

    Attributes:
        reads: How copies fail, as reads see it.
        write_rto_s: How long writes fail until others have taken a copy's place, seconds.
        log: How the disk of an SQLite log, or each member of etcd, fails.
        engine: Of the mutation log: one disk, or etcd with three members.
        ack: What a write waits for.
        cost_per_copy: A month, in any currency; None if it is not asked for.
    """

    reads: Behaviour
    write_rto_s: float
    log: Behaviour
    engine: Log = "sqlite"
    ack: Ack = "one"
    cost_per_copy: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What a number of copies gives.

    Attributes:
        copies: How many.
        reads: When reads fail.
        writes: When writes fail.
        gained: Nines of the reads that one copy less has not; 0 for the first copy.
        cost: Of all copies, a month; None if it is not known.
        cost_per_nine: What each nine gained costs a month; None if the cost is not known, or nothing is gained.
    """

    copies: int
    reads: Downtime
    writes: Downtime
    gained: float
    cost: float | None
    cost_per_nine: float | None


def options(setting: Setting, most: int) -> list[Option]:
    """Compare one copy to ``most`` copies."""
    found: list[Option] = []
    price = setting.cost_per_copy
    for copies in range(1, most + 1):
        reads = downtime(setting.reads, copies)
        gained = reads.nines - found[-1].reads.nines if found else 0.0
        option = Option(
            copies=copies,
            reads=reads,
            writes=_writes(setting, copies),
            gained=gained,
            cost=None if price is None else copies * price,
            cost_per_nine=None if price is None or gained <= 0.0 else price / gained,
        )
        found.append(option)
    return found


def needed(ack: Ack, copies: int) -> int:
    """Return how many copies must have a write before it is answered."""
    return {"log": 0, "one": 1, "quorum": copies // 2 + 1, "all": copies}[ack]


def _writes(setting: Setting, copies: int) -> Downtime:
    behaviour = replace(setting.reads, rto_s=setting.write_rto_s)
    if copies == 1:
        return downtime(behaviour, 1)
    of_copies = downtime(behaviour, copies, needed(setting.ack, copies))
    if setting.engine == "sqlite":
        log = downtime(setting.log, 1)
    else:
        log = downtime(replace(setting.log, rto_s=ELECTION_S), ETCD_MEMBERS, ETCD_NEEDED)
    return replace(of_copies, log=log.total * of_copies.availability)
