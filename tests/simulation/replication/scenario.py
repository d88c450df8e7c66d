"""What happens in one run: clusters, processes, settings, faults and writes, all drawn from the seed.

Decision made here: the whole history is drawn before anything starts, so a change of haclient changes what it does and
never what happens to it. In most runs one cluster is left alone (`Scenario.safe`): writes that need no more than that
one must succeed while the log is well.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from haclient.config.replication import Ack, Replication
from tests.simulation.replication import requests
from tests.simulation.replication.reads import LEVELS, Read
from tests.simulation.replication.world import SETTLE_S

#: A deadline that leaves time for every way round a fault, seconds.
GENEROUS_S: Final = 4.0
_KEYS: Final = 8
ACKS: Final = get_args(Ack)
_OPERATIONS: Final = 12
#: The cluster at another site.
FAR: Final = "F"
#: Sessions of each process.
SESSIONS: Final = 2

#: Collections: keys of the user's, and keys made for the user.
OWN: Final = "own"
AUTO: Final = "auto"

_Roll = Callable[[], float]


@dataclass(slots=True, eq=False)
class Operation:
    """One write of a user.

    Attributes:
        kind: ``rows``, ``keys`` (a delete by keys), ``filter`` (a delete by expression), ``ddl``.
        versions: Of its rows.
        mark: What tells a delete by keys: a key that no row has.
        expression: Of a delete by expression.
        either: Whether it is told as done or as refused makes no difference (a role that is there already).
        cancel_at: When its caller loses patience, seconds after its beginning; infinity if never.
        prologue: It sets the stage: nothing else begins before it has ended.
    """

    id: int
    kind: str
    method: str
    message: bytes
    collection: str = ""
    database: str = ""
    versions: tuple[int, ...] = ()
    auto: bool = False
    mark: int = 0
    expression: str = ""
    either: bool = False
    session: int = 0
    ack: str = ""
    timeout_s: float = GENEROUS_S
    cancel_at: float = float("inf")
    prologue: bool = False

    @property
    def marks(self) -> tuple[Any, ...]:
        """What it can be told by, see `tests.simulation.replication.world.marks`; nothing for most schema changes."""
        if self.method == "CreateRole":
            return (requests.ROLE,)
        return (self.mark,) if self.mark else self.versions

    def __str__(self) -> str:
        return f"op {self.id} {self.method} {self.collection} {list(self.marks) or self.expression}"


@dataclass(slots=True)
class Fault:
    """Something goes wrong, or the operator does something.

    Attributes:
        what: See `tests.simulation.replication.run`.
        who: Name of a cluster or index of a process.
        for_s: How long it lasts, seconds.
        count: After how many further steps of a process.
    """

    at: float
    what: str
    who: Any = None
    for_s: float = 0.0
    count: int = 0


@dataclass(slots=True)
class Scenario:
    """One run."""

    seed: int
    clusters: int
    processes: int
    settings: Replication
    text_key: bool
    #: Name of a cluster nothing happens to, "" if there is none.
    safe: str
    #: Whether faults may come while the stage is set.
    early: bool
    #: Whether a process can see that another one has died.
    one_host: bool = False
    operations: list[tuple[float, int, Operation]] = field(default_factory=list)
    reads: list[tuple[float, int, Read]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    #: Operations that one cluster refuses for good, or that kill it: operation, cluster, "refuses" or "dies".
    curses: list[tuple[Operation, str, str]] = field(default_factory=list)
    #: Whether there is another cluster, `FAR`, that follows the others.
    far: bool = False
    #: When which clusters count from then on: once the far one, and back again.
    failovers: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)

    @property
    def main(self) -> tuple[str, ...]:
        """The clusters that count at first."""
        return tuple("ABC"[: self.clusters])


SETTINGS: Final = {
    ack: Replication(
        mode="mirror",
        log="memory",
        ack=ack,
        bounded_s=0.5,
        apply_timeout_s=0.5,
        lease_s=0.3,
        settle_s=SETTLE_S,
        watermark_s=1.0,
    )
    for ack in ACKS
}


def draw(seed: int) -> Scenario:
    """Draw one run."""
    rng = random.Random(seed)
    roll = rng.random
    clusters = 2 if roll() < 0.6 else 3
    processes = 1 + int(roll() * roll() * 4)
    safe = "ABC"[int(roll() * clusters)] if roll() < 0.6 else ""
    scenario = Scenario(
        seed,
        clusters,
        processes,
        SETTINGS[ACKS[int(roll() * 4)]],
        text_key=roll() < 0.3,
        safe=safe,
        early=roll() < 0.2,
        one_host=bool(seed % 2),
    )
    prologue(scenario)
    span = _operations(scenario, roll)
    _reads(scenario, roll, span)
    if roll() > 0.08:
        _faults(scenario, roll, span)
    _site(scenario, random.Random(-1 - seed).random, span)
    _orphans(scenario, random.Random(f"orphans {seed}").random, span)
    return scenario


def _site(scenario: Scenario, roll: _Roll, span: float) -> None:
    """Have another site or not, with faults and failovers of its own."""
    scenario.far = roll() < 0.3
    if not scenario.far:
        return
    if roll() < 0.2:
        # It is gone for longer than any write may take, and nothing else happens.
        scenario.faults, scenario.curses = [Fault(0.0, "stop", FAR, 2.0 * GENEROUS_S)], []
        return
    for _ in range(int(roll() * 3)):
        what = _SERVER_FAULTS[int(roll() * len(_SERVER_FAULTS))]
        scenario.faults.append(Fault(span * roll(), what, FAR, 0.03 + 1.2 * roll() * roll()))
    able = [one for _, _, one in scenario.operations if one.marks]
    if able and roll() < 0.1 and not any(one.method == "CreateAlias" for _, _, one in scenario.operations):
        scenario.curses.append((able[int(roll() * len(able))], FAR, "refuses"))
    if roll() < 0.5:
        at = span * roll()
        scenario.failovers.append((at, (FAR,)))
        if roll() < 0.6:
            scenario.failovers.append((at + span * roll(), scenario.main if roll() < 0.7 else (*scenario.main, FAR)))


def prologue(scenario: Scenario) -> None:
    """Begin with two collections."""
    stage = [
        ("CreateCollection", OWN, requests.create_collection(OWN)),
        ("CreateIndex", OWN, requests.create_index(OWN)),
        ("LoadCollection", OWN, requests.about("LoadCollection", OWN)),
        ("CreateCollection", AUTO, requests.create_collection(AUTO, True, scenario.text_key)),
        ("CreateIndex", AUTO, requests.create_index(AUTO)),
        ("LoadCollection", AUTO, requests.about("LoadCollection", AUTO)),
    ]
    for method, collection, message in stage:
        number = len(scenario.operations)
        operation = Operation(number, "ddl", method, message, collection, prologue=True)
        scenario.operations.append((0.0, 0, operation))


def _operations(scenario: Scenario, roll: _Roll) -> float:
    gap = (0.0, 0.01, 0.05, 0.12)[int(roll() * 4)]
    changing = 0.12 if roll() < 0.8 else 0.6  # how often collections, aliases and the like change
    at = 0.0
    for _ in range(_OPERATIONS):
        number = len(scenario.operations)
        operation = _ddl(roll, number) if roll() < changing else _rows(scenario, roll, number)
        operation.session = int(roll() * SESSIONS)
        if roll() < 0.35:
            operation.ack = ACKS[int(roll() * 4)]
        if roll() < 0.3:
            operation.timeout_s = 0.02 + 0.5 * roll()
        if roll() < 0.06:
            operation.cancel_at = 0.1 * roll() * roll()
        scenario.operations.append((at, int(roll() * scenario.processes), operation))
        at += gap * 2.0 * roll() if roll() < 0.85 else gap * 8.0 * roll()
    return max(at, 0.15)


def _reads(scenario: Scenario, roll: _Roll, span: float) -> None:
    for _ in range(int(roll() * 9)):
        read = Read(LEVELS[int(roll() * 4)], OWN if roll() < 0.7 else AUTO, int(roll() * SESSIONS), 0.1 + roll())
        scenario.reads.append((span * 1.3 * roll(), int(roll() * scenario.processes), read))
    scenario.reads.sort(key=lambda one: one[0])


def _rows(scenario: Scenario, roll: _Roll, number: int) -> Operation:
    kind = roll()
    count = 1 + int(roll() * 3)
    versions = tuple(100_000 + number * 10 + i for i in range(count))
    if kind < 0.28:
        message = requests.rows("Insert", AUTO, None, versions)
        return Operation(number, "rows", "Insert", message, AUTO, versions=versions, auto=True)
    if kind < 0.65:
        first = int(roll() * _KEYS)
        keys = [1 + (first + i) % _KEYS for i in range(count)]
        method = "Insert" if roll() < 0.3 else "Upsert"
        name = "other" if roll() < 0.08 else OWN
        return Operation(number, "rows", method, requests.rows(method, name, keys, versions), name, versions=versions)
    if kind < 0.85:
        keys = [1 + int(roll() * _KEYS) for _ in range(count)]
        mark = 1_000_000 + number
        expression = f"k in {[*sorted(set(keys)), mark]}"
        return Operation(number, "keys", "Delete", requests.delete(OWN, expression), OWN, mark=mark)
    name = OWN if roll() < 0.7 else AUTO
    low = 100_000 + 10 * int(roll() * number)
    expression = f"version >= {low} and version < {low + 60}"
    return Operation(number, "filter", "Delete", requests.delete(name, expression), name, expression=expression)


def _ddl(roll: _Roll, number: int) -> Operation:
    kind = int(roll() * 11)
    name = OWN if roll() < 0.5 else AUTO
    if kind == 0:
        return Operation(number, "ddl", "DropCollection", requests.about("DropCollection", name), name)
    if kind == 1:
        return Operation(number, "ddl", "CreateCollection", requests.create_collection("third"), "third")
    if kind == 2:
        return Operation(number, "ddl", "CreateIndex", requests.create_index(name), name)
    if kind == 3:
        return Operation(number, "ddl", "LoadCollection", requests.about("LoadCollection", name), name)
    if kind == 4:
        return Operation(number, "ddl", "ReleaseCollection", requests.about("ReleaseCollection", name), name)
    if kind in (5, 6):
        method = "CreateRole" if roll() < 0.65 else "DropRole"
        return Operation(number, "ddl", method, requests.role(method), either=True)
    if kind == 7:
        return Operation(number, "ddl", "CreateAlias", requests.alias("CreateAlias", "other", OWN))
    if kind == 8:
        return Operation(number, "ddl", "DropAlias", requests.alias("DropAlias", "other"))
    if kind == 9:
        method = "CreateDatabase" if roll() < 0.7 else "DropDatabase"
        return Operation(number, "ddl", method, requests.database(method, "second"), either=True)
    return Operation(number, "ddl", "CreateCollection", requests.create_collection(OWN), OWN)


_SERVER_FAULTS: Final = (
    "crash", "crash", "crash", "stop", "stop", "stop", "slow", "slow", "blocked", "flaky", "mute", "mute", "reset",
    "reset", "arm", "arm", "arm", "not ready", "drain", "drain", "drain",
)  # fmt: skip
_PROCESS_FAULTS: Final = ("die", "die", "stop process", "stop process", "close")
#: How often all processes but one die, where that can be seen.
_ORPHANS: Final = 0.8
_LOG_FAULTS: Final = ("log down", "log lost", "log slow")


def _faults(scenario: Scenario, roll: _Roll, span: float) -> None:
    names = "ABC"[: scenario.clusters]
    for _ in range(int(roll() * 5)):
        name = names[int(roll() * scenario.clusters)]
        if name != scenario.safe:
            what = _SERVER_FAULTS[int(roll() * len(_SERVER_FAULTS))]
            scenario.faults.append(Fault(span * roll(), what, name, 0.03 + 1.2 * roll() * roll()))
    for _ in range(int(roll() * roll() * 4)):
        what = _PROCESS_FAULTS[int(roll() * len(_PROCESS_FAULTS))]
        fault = Fault(span * roll(), what, int(roll() * scenario.processes), 0.05 + 1.2 * roll() * roll())
        fault.count = int(roll() * 60)
        scenario.faults.append(fault)
    if roll() < 0.3:
        _zombies(scenario, roll, span)
    for _ in range(1 + int(roll() * 2) if roll() < 0.3 else 0):
        what = _LOG_FAULTS[int(roll() * len(_LOG_FAULTS))]
        who = None if roll() < 0.5 else int(roll() * scenario.processes)
        scenario.faults.append(Fault(span * roll(), what, who, 0.02 + 0.5 * roll() * roll()))
    if roll() < 0.25:
        _curse(scenario, roll)


def _zombies(scenario: Scenario, roll: _Roll, span: float) -> None:
    """A cluster stops with requests in its hands, and whoever sent them stops, dies or closes meanwhile."""
    name = "ABC"[int(roll() * scenario.clusters)]
    if name == scenario.safe:
        return
    at, for_s = span * roll(), 0.1 + 0.5 * roll()
    scenario.faults.append(Fault(at, "stop" if roll() < 0.7 else "slow", name, for_s))
    for who in range(scenario.processes):
        if roll() < 0.7:
            what = _PROCESS_FAULTS[int(roll() * len(_PROCESS_FAULTS))]
            scenario.faults.append(Fault(at + 0.5 * roll() * roll(), what, who, 0.05 + 1.5 * roll()))


def _orphans(scenario: Scenario, roll: _Roll, span: float) -> None:
    """A cluster stops with the first of several writes of the same rows in its hands; all processes but one die.

    The one that is left can see that, so it takes over while those requests may still be worked on.
    """
    name = "BA"[scenario.safe == "B"]
    if not scenario.one_host or scenario.far or scenario.processes < 2 or roll() > _ORPHANS:
        return
    at, for_s, heir = span * (0.2 + 0.8 * roll()), 0.05 + 0.1 * roll(), int(roll() * scenario.processes)
    scenario.faults.append(Fault(at, "stop", name, for_s))
    for who in range(scenario.processes):
        if who != heir:
            scenario.faults.append(Fault(at + for_s - 0.08 * roll(), "die", who, 0.5 + roll()))
    for i in range(4):
        number = len(scenario.operations)
        versions = (100_000 + number * 10, 100_001 + number * 10)
        operation = Operation(number, "rows", "Upsert", requests.rows("Upsert", OWN, [1, 2], versions), OWN)
        operation.versions = versions
        scenario.operations.append((at + 0.01 * i - 0.004, heir, operation))


def _curse(scenario: Scenario, roll: _Roll) -> None:
    """One cluster refuses an operation for good or dies of it; another one may die having carried it out."""
    names = "ABC"[: scenario.clusters]
    if any(one.method == "CreateAlias" for _, _, one in scenario.operations):
        return  # a collection that has stopped on one cluster may be another one there: its aliases differ
    able = [(at, one) for at, _, one in scenario.operations if one.marks]
    name = names[int(roll() * scenario.clusters)]
    if not able or name == scenario.safe:
        return
    at, operation = able[int(roll() * len(able))]
    scenario.curses.append((operation, name, "refuses" if roll() < 0.7 else "dies"))
    if roll() < 0.2 and not scenario.safe:
        scenario.curses = [(operation, other, "refuses") for other in names]
    elif roll() < 0.5:
        other = names[int(roll() * scenario.clusters)]
        if other not in (name, scenario.safe):
            scenario.faults.append(Fault(at, "arm" if roll() < 0.7 else "crash", other, 0.2 + roll()))
