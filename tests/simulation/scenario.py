"""What happens in one run: fleet, settings, faults and calls, all drawn from the seed.

Decision made here: the whole history is drawn before the client starts, so a change of the client changes what
it does and never what happens to it. In most runs one server is left alone (`Scenario.safe`): while it serves, no read
may fail.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from haclient.config import Breaker, Canary, ClusterConfig, Config, EndpointConfig, Health, Hedge, Retry, Timeouts
from tests.simulation import replies, world
from tests.simulation.replies import DELETE, DESCRIBE, INSERT, QUERY, SEARCH, UPSERT
from tests.simulation.world import Operation

OPERATIONS: Final = 30
#: A deadline that leaves time for every way round a fault, seconds.
GENEROUS_S: Final = 2.5

Shape = tuple[tuple[int, ...], ...]
_Roll = Callable[[], float]
_Options = tuple[bool, int, int, bool, float]

_FAULTS: Final = (
    world.REFUSING, world.REFUSING, world.STOPPED, world.STOPPED, world.STOPPED, world.SLOW, world.SLOW,
    world.RESETTING, world.GOING, world.NOT_READY, world.UNLOADED, world.UNLOADED, world.LOST, world.WRONG,
    world.LIMITED, world.BLOCKED, world.ODD, world.OFFLINE, world.UNAVAILABLE, "restart", "restart",
)  # fmt: skip


@dataclass(slots=True)
class Fault:
    """One server goes over to another state for a while."""

    at: float
    server: int
    state: str
    for_s: float


@dataclass(slots=True)
class Steering:
    """The operator does something: drain, undrain, reconfigure."""

    at: float
    what: str
    name: str = ""
    config: int = 0


@dataclass(slots=True)
class Scenario:
    """One run."""

    seed: int
    shape: Shape
    #: True cluster of each server.
    clusters: list[int]
    configs: list[Config]
    shapes: list[Shape]
    auto_id: bool
    #: Index of a server nothing happens to, -1 if there is none.
    safe: int
    stranger: int
    start_first: bool
    tight: bool
    begin: float
    calls: list[tuple[float, Operation]] = field(default_factory=list)
    cancels: list[tuple[float, Operation]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    steering: list[Steering] = field(default_factory=list)
    poison: tuple[float, list[Operation]] | None = None


@functools.cache
def configuration(
    shape: Shape,
    names: tuple[str, ...],
    hedge: bool,
    floor: int,
    permits: int,
    canary: bool,
    interval: float,
    preferred: int = -1,
) -> Config:
    """One configuration; made once, as checking it costs more than a run."""
    canaries = (Canary(collection=replies.COLLECTION, filter=replies.CANARY_FILTER, expect=replies.CANARY_KEYS),)
    return Config(
        clusters=tuple(
            ClusterConfig(
                name=names[i],
                endpoints=tuple(EndpointConfig(name=f"s{n}", host=f"10.0.0.{n}") for n in members),
                priority=0 if preferred in (-1, i) else 1,
            )
            for i, members in enumerate(shape)
        ),
        timeouts=Timeouts(connect_s=2.0, read_s=4.0, write_s=4.0),
        health=Health(
            interval_s=interval,
            timeout_s=0.5,
            deep_interval_s=1.0,
            slow_start_s=0.5,
            failback_dwell_s=0.5,
            canary=canaries if canary else (),
        ),
        breaker=Breaker(open_s=0.3, max_open_s=1.0, trial_permits=permits),
        retry=Retry(budget_floor=floor, quarantine_s=20.0),
        hedge=Hedge(enabled=hedge),
    )


def draw(seed: int) -> Scenario:
    """Draw one run."""
    rng = random.Random(seed)
    roll = rng.random
    several = roll() < 0.5
    count = 2 + int(roll() * 3)
    shape: Shape
    if several:
        shape = tuple((i,) for i in range(count))
        if roll() < 0.3:
            shape = (*shape[:-1], (count - 1, count))
            count += 1
    else:
        shape = (tuple(range(count)),)
    clusters = [0] * count
    for i, members in enumerate(shape):
        for n in members:
            clusters[n] = i
    stranger = -1
    odd = roll()
    if several and odd < 0.08:
        clusters = [0 if c == 1 else c for c in clusters]  # two that turn out to be one
    elif not several and odd < 0.08:
        stranger = count - 1
        clusters[stranger] = 9
    safe = int(roll() * (count if stranger < 0 else count - 1)) if roll() < 0.75 else -1
    tight = roll() < 0.3
    # Few kinds of settings, as each has to be checked once.
    floor = (0, 3)[int(roll() * 2)] if tight else 1000
    permits, interval = (1, 1.0) if roll() < 0.7 else (2, 0.5)
    options = (roll() < 0.9, floor, permits, roll() < 0.4, interval)
    preferred = int(roll() * len(shape)) if several and roll() < 0.2 else -1
    scenario = Scenario(
        seed,
        shape,
        clusters,
        [configuration(shape, tuple(f"c{i}" for i in range(len(shape))), *options, preferred)],
        [shape],
        auto_id=roll() < 0.4,
        safe=safe,
        stranger=stranger,
        start_first=roll() < 0.6,
        tight=tight,
        begin=float(int(roll() * 1000)),
    )
    _calls(scenario, roll, several)
    span = max(scenario.calls[-1][0], 0.1)
    _faults(scenario, roll, count, span)
    _steering(scenario, roll, count, span, options)
    return scenario


def _calls(scenario: Scenario, roll: _Roll, several: bool) -> None:
    gap = (0.004, 0.03, 0.08, 0.15)[int(roll() * 4)]
    at = 0.0
    poison = roll() < 0.15
    impatient = roll() < 0.1  # callers that give up at once
    for i in range(OPERATIONS):
        kind = roll()
        timeout = None if roll() < 0.6 else (GENEROUS_S + roll() if roll() < 0.5 else 0.02 + 0.5 * roll())
        page = timestamp = False
        if i == 0 and not several and kind < 0.5:
            method = DESCRIBE
        elif several:
            page, timestamp = kind < 0.05, 0.05 <= kind < 0.12
            method = QUERY if page or 0.2 < kind < 0.3 else INSERT if kind > 0.97 else SEARCH
        else:
            method = (INSERT, UPSERT, DELETE)[int(kind * 7.5)] if kind < 0.4 else SEARCH if kind < 0.9 else QUERY
        op = Operation(i, method, b"", timeout)
        op.idempotent = method not in (INSERT, UPSERT) or (method is UPSERT and not scenario.auto_id)
        op.page = page
        op.timestamp = 1 if timestamp else 0
        op.mistake = method is not DESCRIBE and roll() < 0.06
        op.message = b"" if timestamp else replies.request(method, i, 0, page)
        scenario.calls.append((at, op))
        if roll() < (0.8 if impatient else 0.06):
            scenario.cancels.append((at + (0.003 if impatient else roll() * roll() * 0.3), op))
        at += gap * 2.0 * roll() if roll() < 0.9 else gap * 8 * roll()
    if poison:
        method = INSERT if not several and roll() < 0.3 else SEARCH
        message = replies.request(method, 900_000)
        ops = []
        for i in range(4):
            op = Operation(OPERATIONS + i, method, message, None)
            op.poison = True
            op.idempotent = method is SEARCH
            ops.append(op)
        scenario.poison = (at * 0.5 * roll(), ops)


def _faults(scenario: Scenario, roll: _Roll, count: int, span: float) -> None:
    for _ in range(int(roll() * 6)):
        server = int(roll() * count)
        if server == scenario.safe:
            continue
        at = -1.0 if roll() < 0.15 else span * roll()
        state = _FAULTS[int(roll() * len(_FAULTS))]
        for_s = 0.03 + 2.5 * roll() * roll()
        if state in (world.STOPPED, world.WRONG) and roll() < 0.3:
            for_s = 10.0  # until the end
        scenario.faults.append(Fault(at, server, state, for_s))
    if roll() < 0.03:
        at = span * roll()
        scenario.faults.extend(Fault(at, server, world.DENYING, 0.3) for server in range(count))
        scenario.safe = -1


def _steering(scenario: Scenario, roll: _Roll, count: int, span: float, options: _Options) -> None:
    if roll() < 0.2:
        server = int(roll() * count)
        if server != scenario.safe:
            at = span * roll()
            scenario.steering.append(Steering(at, "drain", f"s{server}"))
            if roll() < 0.5:
                scenario.steering.append(Steering(at + roll(), "undrain", f"s{server}"))
    if roll() < 0.15 and count > 2:
        gone = int(roll() * count)
        if gone == scenario.safe or gone == scenario.stranger:
            gone = -1
        left = {
            f"c{i}": kept
            for i, members in enumerate(scenario.shape)
            if (kept := tuple(n for n in members if n != gone))
        }
        shape = tuple(left.values())
        scenario.configs.append(configuration(shape, tuple(left), *options))
        scenario.shapes.append(shape)
        at = span * roll()
        scenario.steering.append(Steering(at, "reconfigure", config=1))
        if roll() < 0.6:
            scenario.steering.append(Steering(at + roll(), "reconfigure", config=0))
