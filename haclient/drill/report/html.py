"""The page: one file that asks nothing of anyone.

Decision made here: no script and no picture format. Plots are paths in the page itself, coloured by its own style
sheet, so that they follow the reader's light or dark, stretch to any width, print sharply and stay small: a tenth of
what a plotting library writes for the same dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import final

from jinja2 import Environment, PackageLoader, StrictUndefined

from haclient.drill.figures import PHASES, TrialFigures
from haclient.drill.record import Trial
from haclient.drill.report.results import Results
from haclient.drill.report.tables import (
    OVERVIEW,
    PhaseRow,
    Row,
    errors,
    failed_trials,
    over_trials,
    overview,
    phases,
    setting,
)
from haclient.drill.report.timeline import Timeline, timeline
from haclient.drill.telling import many, percent, seconds
from haclient.drill.verdict import Verdict


@final
@dataclass(frozen=True, slots=True)
class Section:
    """One scenario on the page.

    Attributes:
        verdict: What is to be said of it.
        rows: Figures over trials.
        rates: What went wrong in how many trials.
        errors: What callers were told.
        phases: Latencies.
        cells: The worst figures, one for each heading of `OVERVIEW`.
        setting: What was started, and what it was asked.
        worst: Figures of the trial that is drawn; None without a trial.
        recorded: That trial.
        timeline: Its picture.
        described: The picture in words.
    """

    verdict: Verdict
    rows: list[Row]
    rates: list[tuple[str, str, str]]
    errors: list[tuple[str, str, str]]
    phases: list[PhaseRow]
    cells: list[str]
    setting: str
    worst: TrialFigures | None = None
    recorded: Trial | None = None
    timeline: Timeline | None = None
    described: str = ""


def write_html(path: Path, results: Results) -> None:
    """Write one self-contained page."""
    path.write_text(page(results), encoding="utf-8", errors="replace")


def page(results: Results) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("haclient.drill.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": seconds, "percent": percent, "many": many, "joined": _joined}
    verdicts = results.verdicts()
    return environment.get_template("page.html.j2").render(
        about=results.about,
        started=f"{datetime.fromisoformat(results.about.started):%-d %B %Y, %H:%M %Z}",
        kept=sum(verdict.kept for verdict in verdicts),
        trials=sum(len(result.trials) for result in results.results),
        headings=OVERVIEW,
        sections=[section(verdict) for verdict in verdicts],
    )


def section(verdict: Verdict) -> Section:
    """Prepare one scenario."""
    seen = verdict.series
    tables = over_trials(seen), failed_trials(seen), errors(seen), phases(seen), overview(seen), setting(seen)
    number = seen.worst()
    if number is None:
        return Section(verdict, *tables)
    others = [trial for n, trial in enumerate(seen.recorded) if n != number]
    worst, recorded = seen.trials[number], seen.recorded[number]
    described = ". ".join(_described(worst, len(others))) + "."
    return Section(verdict, *tables, worst, recorded, timeline(recorded, others), described)


def _joined(text: str) -> str:
    """Keep a number and its unit on one line."""
    return re.sub(r"(?<=\d) (?=(m?s|%)(?!\w))", "\N{NO-BREAK SPACE}", text)


def _described(worst: TrialFigures, others: int) -> Iterator[str]:
    yield f"Latency of each call over time, logarithmic, of the trial with seed {worst.seed}"
    for phase in PHASES:
        for side, cell in worst.latency[phase].items():
            if cell.calls:
                told = f"{phase} the faults: {many(cell.calls, side[:-1])}" if worst.faults else many(cell.calls, side)
                bad = f", {cell.bad:,} not good" if cell.bad else ", all good"
                yield f"{told}{bad}, median {seconds(cell.p50_s)}, slowest {seconds(cell.max_s)}".capitalize()
    if others:
        yield f"Behind it, the range of {many(others, 'other trial')}"
