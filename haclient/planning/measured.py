"""How copies fail and are led around, as a running fleet or a drill has shown it.

Decision made here: an endpoint fails when haclient takes it out (``EndpointChanged``, after=down) and works again when
it is fully back (after=up), so what is measured is what callers are spared, and its slow start counts as repair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any, final

from haclient.drill.figures import SIDES, FaultFigures, Side, figures
from haclient.errors import ConfigError

if TYPE_CHECKING:
    from haclient.drill.report.results import Results


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often copies have failed.

    Attributes:
        copies: How many were watched.
        watched_s: For how long, seconds.
        failures: How often one of them failed.
        down_s: For how long, all together, seconds.
    """

    copies: int
    watched_s: float
    failures: int
    down_s: float

    @property
    def mtbf_s(self) -> float:
        """Mean time that a copy worked between two failures, seconds."""
        return (self.copies * self.watched_s - self.down_s) / self.failures

    @property
    def mttr_s(self) -> float:
        """Mean time until it worked again, seconds."""
        return self.down_s / self.failures


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failovers:
    """How well failures of one copy were led around in a drill.

    Attributes:
        faults: How many there were.
        covered: Of these, how many were over for reads before the fault was.
        rto_s: Mean time until calls succeeded again after those, for reads and for writes, seconds.
    """

    faults: int
    covered: int
    rto_s: dict[Side, float]

    @property
    def coverage(self) -> float:
        """Share of faults that were led around."""
        return self.covered / self.faults


def failures(lines: Iterable[str]) -> Failures:
    """Read the log of a proxy (``log = "json"``), also of several one after the other; lines of others are passed over.

    Endpoints that are never named in it are not counted, nor is a failure before its first line or after its last.

    Raises:
        ConfigError: It tells of no failure that was repaired.
    """
    down: dict[str, dict[object, float]] = {}  # endpoint: since when, by the worker that says so
    times: list[float] = []
    failures, down_s = 0, 0.0
    for at, record in _records(lines):
        times.append(at)
        if not isinstance(endpoint := record.get("endpoint"), str):
            continue
        says = down.setdefault(endpoint, {})
        if record.get("event") != "EndpointChanged":
            continue
        worker = record.get("worker")
        if record.get("after") == "down":
            says.setdefault(worker, min(says.values(), default=at))  # it is down since the first of them said so
        elif record.get("after") == "up" and worker in says:
            since = says.pop(worker)
            if not says:
                failures, down_s = failures + 1, down_s + at - since
    watched_s = max(times) - min(times) if times else 0.0
    return found(Failures(copies=len(down), watched_s=watched_s, failures=failures, down_s=down_s))


def found(seen: Failures) -> Failures:
    """Return what was seen if it says anything.

    Raises:
        ConfigError: No copy has failed.
    """
    if seen.failures and seen.down_s > 0:
        return seen
    if not seen.copies * seen.watched_s:
        raise ConfigError("nothing is said about any endpoint; give --mtbf and --mttr")
    # None in a time t: with 95 % certainty the rate is below -ln(0.05) / t, "the rule of three".
    least = seen.copies * seen.watched_s / 3 / 86_400
    text = f"no failure of {seen.copies} copies was seen in {seen.watched_s / 86_400:.3g} days"
    raise ConfigError(f"{text}; give --mtbf (it is {least:.2g}d or more, with 95 % certainty) and --mttr")


def _records(lines: Iterable[str]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield the Unix time and the fields of each line that is a record."""
    for line in lines:
        try:
            record = json.loads(line)
            yield datetime.fromisoformat(record["time"]).timestamp(), record
        except (ValueError, KeyError, TypeError):  # another program's line
            continue


def failovers(results: Results) -> Failovers:
    """Take coverage and RTO from a drill's faults that hurt one cluster for a while.

    Raises:
        ConfigError: There is no such fault.
    """
    seen = [
        fault
        for result in results.results
        if result.scenario.fault and all(plan.target.partition(":")[0] == "cluster" for plan in result.scenario.fault)
        for trial in result.trials
        for fault in figures(trial).faults
        if fault.mark.healed is None or fault.mark.healed > fault.mark.began
    ]
    covered = [fault for fault in seen if _covered(fault)]
    if not covered:
        raise ConfigError(f"none of the drill's {len(seen)} faults of one cluster was led around: nothing to plan with")
    return Failovers(faults=len(seen), covered=len(covered), rto_s={side: _mean_rto_s(covered, side) for side in SIDES})


def _mean_rto_s(covered: Iterable[FaultFigures], side: Side) -> float:
    times = [time for fault in covered if (time := fault.rto_s[side]) is not None]
    if not times:
        raise ConfigError(f"the drill's {side} never came back: there is nothing to plan with")
    return fmean(times)


def _covered(fault: FaultFigures) -> bool:
    """Whether reads were well again before the fault was healed."""
    rto_s, mark = fault.rto_s["reads"], fault.mark
    return rto_s is not None and (rto_s == 0.0 or mark.healed is None or mark.began + rto_s < mark.healed)


def calls(results: Results) -> tuple[int, int]:
    """Return how many calls a drill made, and how many of them were not answered as they should be."""
    made = [call for result in results.results for trial in result.trials for call in trial.operations]
    return len(made), sum(call.outcome != "ok" for call in made)
