"""Whether a scenario's expectations were kept.

Decision made here: the worst trial decides, and everything that is not known counts against the fleet: a trial that
could not be carried out, acknowledged writes that nobody looked for. That no key is there twice and that all clusters
end the same is expected of every scenario.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, final

from haclient.drill.figures import TrialFigures
from haclient.drill.record import Trial
from haclient.drill.scenario import Scenario
from haclient.drill.series import Series, series
from haclient.drill.telling import percent, seconds, tell

_NOT_LOOKED: Final = "not looked at"


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation, and what was seen.

    Attributes:
        name: What it is about.
        wanted: What was expected.
        seen: What the worst trial showed.
        seed: That trial's; None if all showed the same.
        kept: Whether it held in every trial.
    """

    name: str
    wanted: str
    seen: str
    seed: int | None
    kept: bool


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a scenario.

    Attributes:
        series: Its trials.
        findings: Its expectations, those that were not kept first.
        sentences: The same in plain language.
    """

    series: Series
    findings: tuple[Finding, ...]
    sentences: str

    @property
    def kept(self) -> bool:
        """Whether every expectation held in every trial."""
        return all(finding.kept for finding in self.findings)


def judge(scenario: Scenario, trials: Iterable[Trial]) -> Verdict:
    """Judge all trials of a scenario."""
    seen = series(scenario, trials)
    findings = sorted(_findings(seen), key=lambda finding: finding.kept)
    return Verdict(seen, tuple(findings), tell(seen))


def _findings(seen: Series) -> Iterator[Finding]:
    yield _carried_out(seen)
    if not seen.trials:
        return
    expect, trials = seen.scenario.expect, seen.trials
    yield from _count("failed or wrong reads", expect.failed_reads, [(t, t.failed["reads"]) for t in trials])
    yield from _count("failed or unconfirmed writes", expect.failed_writes, [(t, t.failed["writes"]) for t in trials])
    yield from _time("reads back after a fault", expect.read_rto_s, [(t, t.rto_s("reads")) for t in trials])
    yield from _time("writes back after a fault", expect.write_rto_s, [(t, t.rto_s("writes")) for t in trials])
    yield from _count("stale reads", expect.stale, [(t, t.stale) for t in trials])
    yield from _load(expect.extra_load, [(t, t.extra_load) for t in trials if t.extra_load is not None])
    if expect.availability is not None:
        worst, share = min(((t, t.availability or 0.0) for t in trials), key=lambda one: one[1])
        wanted, seed = f"at least {percent(expect.availability)}", worst.seed if share < 1 else None
        yield Finding("availability", wanted, percent(share), seed, share >= expect.availability)
    if any(trial.calls("writes") for trial in trials):
        yield from _audited(expect.lost, trials)


def _load(limit: float | None, seen: list[tuple[TrialFigures, float]]) -> Iterator[Finding]:
    """Judge how many requests each call took while a fault lasted."""
    if limit is None or not seen:
        return
    trial, worst = max(seen, key=lambda one: one[1])
    seed = trial.seed if worst > 1 else None
    yield Finding("requests per call", f"at most {limit:g} times as many", f"{worst:.2f} times", seed, worst <= limit)


def _carried_out(seen: Series) -> Finding:
    done, all_of_them = len(seen.trials), len(seen.trials) + len(seen.broken)
    seed = seen.broken[0].seed if seen.broken else None
    return Finding(
        "trials carried out",
        f"all {all_of_them}" if all_of_them else "at least 1",
        str(done),
        seed,
        0 < done == all_of_them,
    )


def _audited(lost: int | None, trials: tuple[TrialFigures, ...]) -> Iterator[Finding]:
    writers = [trial for trial in trials if trial.calls("writes")]
    yield from _count("acknowledged writes lost", lost, [(t, t.lost) for t in writers])
    yield from _count("keys there twice", 0, [(t, t.audit and t.audit.duplicates) for t in writers])
    yield from _count("keys that differ between clusters", 0, [(t, t.audit and t.audit.differing) for t in writers])
    never = next((t for t in writers if t.audit and t.audit.caught_up_s is None), None)
    yield Finding("clusters the same in the end", "yes", "no" if never else "yes", never and never.seed, never is None)


def _count(name: str, limit: int | None, seen: list[tuple[TrialFigures, int | None]]) -> Iterator[Finding]:
    """Judge a number of which None was not looked at."""
    if limit is None:
        return
    trial, worst = max(seen, key=lambda one: math.inf if one[1] is None else one[1])
    told = _NOT_LOOKED if worst is None else str(worst or "none")
    yield Finding(
        name,
        f"at most {limit}" if limit else "none",
        told,
        trial.seed if worst != 0 else None,
        worst is not None and worst <= limit,
    )


def _time(name: str, limit: float | None, seen: list[tuple[TrialFigures, float | None]]) -> Iterator[Finding]:
    """Judge a time of which None is for ever."""
    if limit is None:
        return
    trial, worst = max(((t, math.inf if time is None else time) for t, time in seen), key=lambda one: one[1])
    yield Finding(name, f"within {seconds(limit)}", seconds(worst), trial.seed if worst else None, worst <= limit)
