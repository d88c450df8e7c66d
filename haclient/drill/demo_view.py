"""How a demo looks: the live table, the plain lines where there is no terminal, and the report.

Decision made here: these functions turn values into rich renderables and nothing else; at 80 columns everything
that matters is still there, and only long texts are cut.
"""

from __future__ import annotations

import math

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from haclient.drill.demo_story import Line, Report, Story, tidy
from haclient.drill.measure import summarise
from haclient.fleet.model import FleetView

_STATES = {"up": "green", "probation": "yellow", "down": "bold red", "draining": "yellow", "drained": "yellow"}


def milliseconds(seconds: float | None) -> str:
    """Write a latency."""
    if seconds is None or math.isnan(seconds):
        return "-"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def plain_line(line: Line, began: float) -> Text:
    """Write one line of the story."""
    mark = "!" if line.ours else ">"
    return Text.assemble(
        (f"{line.at - began:5.1f} s ", "dim"), f"{mark} ", (line.server, "bold"), " ", (line.text, _colour(line))
    )


def plain_totals(story: Story, now: float) -> Text:
    """Write where things stand, for a log."""
    s = summarise(story.records)
    return Text(
        f"{now - story.began:5.1f} s   {s.answered} answered, {s.failed} failed, p50 {milliseconds(s.p50_s)}, "
        f"p99 {milliseconds(s.p99_s)}; wrong now: {story.now_wrong()}",
        style="dim",
    )


def live(story: Story, fleet: FleetView, *, now: float, seconds: float, collection: str) -> RenderableType:
    """Draw the moment."""
    return Group(
        _headline(story, now, seconds),
        _servers(story, fleet, collection),
        _totals(story),
        _last(story),
        Text(),
        *(_short(plain_line(line, story.began)) for line in story.lines[-7:]),
    )


def _headline(story: Story, now: float, seconds: float) -> Text:
    wrong = story.now_wrong()
    return _short(
        Text.assemble(
            ("haclient demo", "bold"),
            (f"  {max(0.0, now - story.began):4.1f} of {seconds:g} s", "dim"),
            "   wrong now: ",
            (wrong, "green" if wrong == "nothing" else "bold red"),
        )
    )


def _servers(story: Story, fleet: FleetView, collection: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), pad_edge=False)
    table.add_column("server", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=9)
    table.add_column("serves", no_wrap=True)
    table.add_column("answers", justify="right", no_wrap=True)
    table.add_column("latency", justify="right", no_wrap=True, min_width=7)
    table.add_column("busy", justify="right", no_wrap=True)
    table.add_column("last error", no_wrap=True, overflow="ellipsis", ratio=1)
    for endpoint in fleet.endpoints:
        serves = endpoint.state != "down" and endpoint.ready.get(collection) is not False
        hurt = story.hurt.get(endpoint.name, "")
        table.add_row(
            Text.assemble((endpoint.name, "bold"), (f" {hurt}" if hurt else "", "red")),
            Text(endpoint.state, style=_STATES.get(endpoint.state, "")),
            Text("yes", style="green") if serves else Text("no", style="bold red"),
            str(story.answers[endpoint.name]),
            milliseconds(endpoint.latency_s),
            str(endpoint.in_flight),
            Text(tidy(endpoint.last_error), style="dim"),
        )
    return table


def _totals(story: Story) -> Text:
    s = summarise(story.records)
    counts = story.counts
    return Text.assemble(
        ("asked ", "dim"),
        str(s.asked),
        ("  answered ", "dim"),
        (str(s.answered), "bold green"),
        ("  failed ", "dim"),
        (str(s.failed), "bold red" if s.failed else "bold green"),
        ("  wrong ", "dim"),
        (str(story.wrong), "bold red" if story.wrong else "bold green"),
        ("  p50 ", "dim"),
        milliseconds(s.p50_s),
        ("  p99 ", "dim"),
        milliseconds(s.p99_s),
        ("\nhedges ", "dim"),
        str(counts["hedges"]),
        ("  retries ", "dim"),
        str(counts["retries"]),
        ("  failovers ", "dim"),
        str(counts["failovers"]),
    )


def _last(story: Story) -> Text:
    if story.last is None:
        return Text("\n")
    return _short(
        Text.assemble(("Q ", "dim"), (story.last.question, "cyan"), ("\nA ", "dim"), (story.last.title, "bold"))
    )


def finished(report: Report) -> RenderableType:
    """Draw the report."""
    return Group(
        Text("What was wrong, and what the questions asked meanwhile saw", style="bold"),
        _phases(report),
        Text("What happened  (! done by the drill, > noticed by haclient)", style="bold"),
        *(_short(plain_line(line, 0.0)) for line in report.lines),
        Text(),
        _noticed(report),
        _figures(report),
        _verdict(report),
    )


def _phases(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("from", justify="right", no_wrap=True)
    table.add_column("wrong", no_wrap=True, overflow="ellipsis")
    for name in ("asked", "failed", "p50", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in report.phases:
        s = phase.summary
        failed = Text(str(s.failed), style="bold red" if s.failed else "green")
        times = (milliseconds(t) for t in (s.p50_s, s.p99_s, s.max_s))
        table.add_row(f"{phase.start:.1f} s", phase.what, str(s.asked), failed, *times)
    return table


def _noticed(report: Report) -> Text:
    words = []
    for fault in report.faults:
        after = "not noticed" if fault.noticed is None else f"{fault.noticed - fault.at:.2f} s"
        words.append(f"{fault.what} {fault.server} {after}")
    return Text("Noticed after: " + ", ".join(words)) if words else Text("Nothing was broken.")


def _figures(report: Report) -> Text:
    counts, s = report.counts, report.load
    answers = ", ".join(f"{server} {count}" for server, count in report.answers.items())
    return Text(
        f"Latency p50 {milliseconds(s.p50_s)}, p99 {milliseconds(s.p99_s)}, max {milliseconds(s.max_s)}, from the "
        f"moment each question was due.\n"
        f"Hedges {counts['hedges']}, retries {counts['retries']}, failovers {counts['failovers']}. "
        f"Answered by {answers or 'nobody'}.\n"
        f"{report.passages} passages in each server, embedder {report.embedder}, event loop of {report.loop}.\n"
        f"Questions began after {report.load_s:.1f} s; {report.total_s:.1f} s in all."
    )


def _verdict(report: Report) -> Text:
    s = report.load
    text = f"{s.asked} questions asked, {s.answered} answered, {s.failed} failed, {report.wrong} wrong."
    if report.ok:
        return Text(f"\n{text}", style="bold green")
    problems = "".join(f"\n  {problem}" for problem in report.problems)
    return Text(f"\n{text}{problems}", style="bold red")


def _colour(line: Line) -> str:
    if line.good:
        return "green"
    return "bold red" if line.ours else "yellow"


def _short(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
