"""The verdicts in the terminal.

Decision made here: one row per scenario with its worst figures, and below it what was not kept, in full.
"""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from haclient.drill.figures import Side
from haclient.drill.report.results import Results
from haclient.drill.series import Series
from haclient.drill.telling import percent, seconds
from haclient.drill.verdict import Verdict


def table(results: Results) -> RenderableType:
    """Draw what came of a run."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="worst trial of each", caption_justify="left")
    grid.add_column("scenario", overflow="fold")
    grid.add_column("verdict", no_wrap=True)
    for name in ("trials", "available", "failed reads", "back", "failed writes", "back", "lost"):
        grid.add_column(name, justify="right", no_wrap=name in ("trials", "back", "lost"))
    verdicts = results.verdicts()
    for verdict in verdicts:
        grid.add_row(*_row(verdict))
    return Group(grid, *(_missed(verdict) for verdict in verdicts if not verdict.kept))


def _row(verdict: Verdict) -> list[Text]:
    seen = verdict.series
    said = Text("kept", "green") if verdict.kept else Text("not kept", "bold red")
    shares = [trial.availability for trial in seen.trials if trial.availability is not None]
    lost = [trial.lost for trial in seen.trials if trial.lost is not None]
    cells = [
        f"{len(seen.trials)}" + (f" of {len(seen.trials) + len(seen.broken)}" if seen.broken else ""),
        percent(min(shares, default=None)),
        *_side(seen, "reads"),
        *_side(seen, "writes"),
        str(max(lost)) if lost else "–",
    ]
    return [Text(seen.scenario.name), said, *map(Text, cells)]


def _side(seen: Series, side: Side) -> tuple[str, str]:
    trials = [trial for trial in seen.trials if trial.calls(side)]
    if not trials:
        return "–", "–"
    times = [trial.rto_s(side) for trial in trials]
    back = None if None in times else max(time for time in times if time is not None)
    return str(max(trial.failed[side] for trial in trials)), seconds(back)


def _missed(verdict: Verdict) -> Text:
    text = Text.assemble((f"{verdict.series.scenario.name}: ", "bold"), verdict.sentences, "\n")
    for finding in verdict.findings:
        if not finding.kept:
            seed = "" if finding.seed is None else f" (seed {finding.seed})"
            text.append(f"  {finding.name}: wanted {finding.wanted}, seen {finding.seen}{seed}\n", "red")
    return text
