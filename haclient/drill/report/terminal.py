"""The verdicts in the terminal.

Decision made here: one row per scenario with the worst that was seen, and below the table what was not kept, in full.
"""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from haclient.drill.report.results import Results
from haclient.drill.report.tables import OVERVIEW, overview
from haclient.drill.verdict import Verdict
from haclient.status_table import plain


def table(results: Results) -> RenderableType:
    """Draw what came of a run; whatever servers wrote is text, never markup."""
    grid = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="worst trial of each",
        caption_justify="left",
    )
    grid.add_column("scenario", overflow="fold")
    grid.add_column("verdict", no_wrap=True)
    for name in OVERVIEW:
        grid.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    verdicts = results.verdicts()
    for verdict in verdicts:
        said = Text("kept", "green") if verdict.kept else Text("not kept", "bold red")
        grid.add_row(plain(verdict.series.scenario.name), said, *map(plain, overview(verdict.series)))
    return Group(grid, *(_missed(verdict) for verdict in verdicts if not verdict.kept))


def _missed(verdict: Verdict) -> Text:
    lines = [Text.assemble(plain(f"{verdict.series.scenario.name}: ", "bold"), plain(verdict.sentences))]
    for finding in verdict.findings:
        if not finding.kept:
            seed = "" if finding.seed is None else f" (seed {finding.seed})"
            lines.append(plain(f"  {finding.name}: wanted {finding.wanted}, seen {finding.seen}{seed}", "red"))
    return Text("\n").join([*lines, Text()])
