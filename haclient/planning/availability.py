"""How available several copies are, from how often one fails and how long it is away.

Decision made here: everything is one continuous-time Markov chain, seen by the calls that lean on some of the copies,
so that correlated failures, imperfect failover and too few copies add up to the whole, and each of them is known.

The chain. Each of ``copies`` fails by itself at the rate (1 - beta) / MTBF and is repaired at the rate 1 / MTTR. A
shared cause takes all of them down at the rate beta / MTBF, and is repaired as one (the beta-factor model: K. N.
Fleming, "A reliability model for common mode failures in redundant safety systems", 1975; IEC 61508-6, annex D). A call
leans on ``needed`` copies. If one of these fails, others take its place after the RTO, with the probability
``coverage`` that the failure is noticed; else only its repair helps (W. G. Bouricius, W. C. Carter, P. R. Schneider,
"Reliability modeling techniques for self-repairing computer systems", 1969). MTBF is the time that a copy works between
two failures (IEC 60050-192, 192-05-13), so one copy alone is available for MTBF / (MTBF + MTTR). All times are
exponential, with these means.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Final, TypeVar, final

S = TypeVar("S", bound=Hashable)

#: A failover that takes no time takes this long, seconds: rates have to be finite.
_INSTANT_S: Final = 1e-6


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How one copy fails, and how well the others take its place.

    Attributes:
        mtbf_s: Mean time that a copy works between two failures, seconds.
        mttr_s: Mean time until it works again, seconds.
        beta: Share of a copy's failures that take all copies down at once.
        coverage: Share of failures that are noticed, and led around.
        rto_s: How long calls fail until others have taken the place of a copy that has failed, seconds.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    mtbf_s: float
    mttr_s: float
    beta: float = 0.0
    coverage: float = 1.0
    rto_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mtbf_s", "mttr_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be greater than 0")
        for name in ("beta", "coverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1")
        if not 0 <= self.rto_s < math.inf:
            raise ValueError("rto_s must be 0 or more")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Downtime:
    """The share of time in which a call fails, by what it fails for.

    Attributes:
        too_few: Too few copies work, each having failed by itself.
        common: A shared cause has taken all of them down.
        unnoticed: Enough copies work, but nobody has noticed that one which is used does not.
        failover: It has been noticed, and others are about to take its place.
        log: The mutation log cannot be written.
    """

    too_few: float = 0.0
    common: float = 0.0
    unnoticed: float = 0.0
    failover: float = 0.0
    log: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return math.fsum(getattr(self, part.name) for part in fields(self))

    @property
    def availability(self) -> float:
        """The share of time in which calls succeed."""
        return 1.0 - self.total

    @property
    def nines(self) -> float:
        """How many nines the availability has: 3 is 99.9 %."""
        return -math.log10(self.total) if self.total else math.inf

    @property
    def largest(self) -> str:
        """The part that weighs most."""
        return max((part.name for part in fields(self)), key=lambda name: float(getattr(self, name)))


def downtime(behaviour: Behaviour, copies: int, needed: int = 1) -> Downtime:
    """Work out for which share of time a call that needs some of the copies fails, and what for.

    Args:
        behaviour: Of each copy.
        copies: How many there are.
        needed: How many of them a call needs: 1 for a read. 0 is never down.

    Raises:
        ValueError: More are needed than there are.
    """
    if not 0 <= needed <= copies or copies < 1:
        raise ValueError(f"{needed} of {copies} copies cannot be needed")
    if not needed:
        return Downtime()
    shares = dict.fromkeys(("too_few", "common", "unnoticed", "failover", "up"), 0.0)
    for state, share in stationary(_chain(behaviour, copies, needed)).items():
        shares[_meaning(state, copies, needed)] += share
    del shares["up"]
    return Downtime(**shares)


#: How many of the copies that a call leans on are down, how many of the others, and whether nobody has noticed; None is
#: a shared cause.
_State = tuple[int, int, bool] | None


def _meaning(state: _State, copies: int, needed: int) -> str:
    if state is None:
        return "common"
    leaned, others, unnoticed = state
    if not leaned:
        return "up"
    if copies - leaned - others < needed:
        return "too_few"
    return "unnoticed" if unnoticed else "failover"


def _chain(behaviour: Behaviour, copies: int, needed: int) -> dict[_State, dict[_State, float]]:
    """Return the rates from each state to others, per second."""
    alone = (1.0 - behaviour.beta) / behaviour.mtbf_s
    repair = 1.0 / behaviour.mttr_s
    switch = 1.0 / max(behaviour.rto_s, _INSTANT_S)
    spare = copies - needed
    rates: dict[_State, dict[_State, float]] = {}

    def add(source: _State, target: _State, rate: float) -> None:
        if rate > 0.0:
            rates[source][target] = rates[source].get(target, 0.0) + rate

    for leaned in range(needed + 1):
        for others in range(spare + 1):
            for unnoticed in (False, True) if leaned else (False,):
                here = leaned, others, unnoticed
                rates[here] = {}
                if leaned + others < copies:
                    add(here, None, behaviour.beta / behaviour.mtbf_s)
                # What is not noticed hides what would be noticed.
                failing = (needed - leaned) * alone
                add(here, (leaned + 1, others, unnoticed), failing * behaviour.coverage)
                add(here, (leaned + 1, others, True), failing * (1.0 - behaviour.coverage))
                add(here, (leaned, others + 1, unnoticed), (spare - others) * alone)
                add(here, (leaned - 1, others, unnoticed and leaned > 1), leaned * repair)
                add(here, (leaned, others - 1, unnoticed), others * repair)
                if leaned and not unnoticed and spare - others >= leaned:
                    add(here, (0, others + leaned, False), switch)
    rates[None] = {(0, 0, False): repair}
    return rates


def stationary(rates: Mapping[S, Mapping[S, float]]) -> dict[S, float]:
    """Return the share of time that a Markov chain spends in each state.

    It is worked out without a subtraction, so the smallest share is as exact as the largest (W. K. Grassmann,
    M. I. Taksar, D. P. Heyman, "Regenerative analysis and steady state distributions for Markov chains", 1985).

    Args:
        rates: From each state to others, per unit of time. What cannot be reached from the first state is left out.
    """
    start = next(iter(rates))
    found, queue = {start}, [start]
    while queue:
        for target in rates[queue.pop()]:
            if target not in found:
                found.add(target)
                queue.append(target)
    states = [state for state in rates if state in found]
    q = [[rates[source].get(target, 0.0) for target in states] for source in states]
    for last in range(len(states) - 1, 0, -1):
        leaving = math.fsum(q[last][:last])
        for i in range(last):
            q[i][last] /= leaving
            for j in range(last):
                q[i][j] += q[i][last] * q[last][j] if i != j else 0.0
    weights = [1.0]
    for last in range(1, len(states)):
        weights.append(math.fsum(weight * q[i][last] for i, weight in enumerate(weights)))
    whole = math.fsum(weights)
    return {state: weight / whole for state, weight in zip(states, weights, strict=True)}
