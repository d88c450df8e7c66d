"""The trials of one scenario side by side.

Decision made here: a trial that broke off, made no call or hurt nobody proves nothing. It is named, and no figure is
drawn from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from haclient.drill.figures import TrialFigures, figures
from haclient.drill.intervals import Spread, spread
from haclient.drill.record import Trial
from haclient.drill.scenario import Scenario


@final
@dataclass(frozen=True, slots=True)
class Broken:
    """A trial that proves nothing.

    Attributes:
        seed: The trial's.
        reason: Why.
    """

    seed: int
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Times:
    """One time of every trial.

    Attributes:
        name: What it is.
        limit: What the scenario allows, in seconds; None if it allows anything.
        values: Seconds by trial; None where it never ended.
        spread: The same together.
    """

    name: str
    limit: float | None
    values: tuple[float | None, ...]
    spread: Spread


@final
@dataclass(frozen=True, slots=True)
class Series:
    """The trials of one scenario.

    Attributes:
        scenario: Which one.
        recorded: Those of its trials that were carried out.
        trials: Their figures.
        broken: The trials that were not carried out.
    """

    scenario: Scenario
    recorded: tuple[Trial, ...]
    trials: tuple[TrialFigures, ...]
    broken: tuple[Broken, ...]

    def worst(self) -> int | None:
        """Return which trial hurt callers most, by calls that were not good, then by time; None without a trial."""
        return max(range(len(self.trials)), key=lambda number: _hurt(self.trials[number]), default=None)

    def times(self) -> list[Times]:
        """Return the times that there are figures of, for a table."""
        expect = self.scenario.expect
        hurt = [trial for trial in self.trials if trial.faults]
        audits = [trial.audit for trial in self.trials if trial.audit is not None]
        rows: list[tuple[str, float | None, list[float | None]]] = [
            ("Reads back after", expect.read_rto_s, [t.rto_s("reads") for t in hurt if t.calls("reads")]),
            ("Writes back after", expect.write_rto_s, [t.rto_s("writes") for t in hurt if t.calls("writes")]),
            ("Fault noticed after", None, [t.detection_s for t in hurt]),
            ("Slowest read", None, [slow for t in self.trials if (slow := t.slowest_s("reads")) is not None]),
            ("Slowest write", None, [slow for t in self.trials if (slow := t.slowest_s("writes")) is not None]),
            ("All clusters the same after", None, [audit.caught_up_s for audit in audits]),
        ]
        spreads = [(name, limit, values, spread(values)) for name, limit, values in rows]
        return [Times(name, limit, tuple(values), s) for name, limit, values, s in spreads if s is not None]


def series(scenario: Scenario, trials: Iterable[Trial]) -> Series:
    """Draw the figures of all trials of a scenario."""
    recorded: list[Trial] = []
    broken: list[Broken] = []
    for trial in trials:
        reason = _nothing_proved(scenario, trial)
        if reason:
            broken.append(Broken(trial.seed, reason))
        else:
            recorded.append(trial)
    return Series(scenario, tuple(recorded), tuple(map(figures, recorded)), tuple(broken))


def _nothing_proved(scenario: Scenario, trial: Trial) -> str:
    if trial.error:
        return trial.error
    if not trial.operations:
        return "no call was made"
    if len(trial.faults) < len(scenario.fault):
        return f"{len(trial.faults)} of {len(scenario.fault)} faults happened"
    return ""


def _hurt(trial: TrialFigures) -> tuple[float, ...]:
    never = math.inf
    times = [trial.rto_s("reads"), trial.rto_s("writes")]
    return (
        trial.lost or 0,
        trial.failed["reads"] + trial.stale,
        trial.failed["writes"],
        max(never if time is None else time for time in times),
        max(trial.slowest_s("reads") or 0.0, trial.slowest_s("writes") or 0.0),
    )
