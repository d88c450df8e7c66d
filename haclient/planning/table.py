"""What the commands for planning show, as pure functions of what was worked out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich import box
from rich.table import Table

from haclient.planning import slo
from haclient.planning.availability import Downtime
from haclient.planning.measured import Failovers, Failures
from haclient.planning.options import Option, Setting
from haclient.planning.slo import Alert, Objective, Spent
from haclient.planning.units import UNITS, prometheus, span

#: A copy that adds fewer nines than this adds nothing that anybody would notice.
_NOTHING: Final = 0.05

#: What each part of the downtime is called, at more length, and what helps against it.
PARTS: Final = {
    "too_few": ("too few", "too few copies work", "it takes another copy, or a lower ack level"),
    "common": (
        "shared",
        "all copies fail at once",
        "they have to share less (zones, upgrades one after the other); more copies do not help",
    ),
    "unnoticed": ("unnoticed", "failures are not led around", "rehearse them (haclient drill)"),
    "failover": ("failover", "failovers take their time", "a shorter RTO helps most"),
    "log": ("log", "the mutation log fails", "a log on better disks helps most, or one in etcd (--log etcd)"),
}


def percent(share: float) -> str:
    """Write an availability with as many digits as say something: two that are no nine."""
    if share >= 1.0:
        return "100 %"
    digits = max(0, math.ceil(-math.log10(1.0 - share)) - 1)
    return f"{math.floor(share * 10 ** (digits + 2)) / 10**digits:.{digits}f} %"


def availability(options: Sequence[Option]) -> Table:
    """Show what each number of copies gives."""
    table = _table("copies", "", "available", "nines", "down a year", "a month", "mostly for")
    for option in options:
        for what, down in (("reads", option.reads), ("writes", option.writes)):
            share = getattr(down, down.largest) / down.total if down.total else 0.0
            table.add_row(
                str(option.copies) if what == "reads" else "",
                what,
                percent(down.availability),
                f"{down.nines:.2f}",
                _yearly(down),
                span(down.total * UNITS["y"] / 12),
                f"{PARTS[down.largest][0]} {share:.0%}",
            )
    return table


def costs(options: Sequence[Option]) -> Table:
    """Show what each number of copies costs, and each nine."""
    table = _table("copies", "cost a month", "nines of reads", "for each further nine")
    for option in options:
        each = ""
        if option is not options[0]:
            each = f"{option.cost_per_nine:,.0f}" if option.gained >= _NOTHING else "adds next to none"
        table.add_row(str(option.copies), f"{option.cost:,.0f}", f"{option.reads.nines:.2f}", each)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in {"", "alert", "mostly for"} else "right")
    return table


def conclusion(options: Sequence[Option]) -> str:
    """Say what the comparison means, in plain language."""
    first = options[0]
    lines = [f"One copy: calls fail for {_yearly(first.reads)} a year."]
    for option in options[1:]:
        what = f"{option.copies} copies: reads fail for {_yearly(option.reads)} a year"
        if option.gained < _NOTHING:
            lines.append(f"{what}: copy number {option.copies} buys next to nothing.")
        else:
            lines.append(f"{what} ({option.gained:.1f} nines more), writes for {_yearly(option.writes)}.")
    best = options[-1]
    for what, down in (("reads", best.reads), ("writes", best.writes)):
        if down.total:
            _, why, helps = PARTS[down.largest]
            lines.append(f"What is left of the {what}' downtime is mostly that {why}: {helps}.")
    return " ".join(lines)


def _yearly(down: Downtime) -> str:
    return span(down.total * UNITS["y"])


def facts(setting: Setting, seen: Failures | None, rehearsed: Failovers | None) -> list[str]:
    """Say what the comparison rests on."""
    copy, log = setting.reads, setting.log
    source = f"{seen.failures} failures of {seen.copies} copies in {span(seen.watched_s)}" if seen else "given"
    drill = f"{rehearsed.covered} of {rehearsed.faults} faults in the drill" if rehearsed else "given or assumed"
    on = "on one disk" if setting.engine == "sqlite" else "in etcd with three members, each"
    return [
        f"A copy works for {span(copy.mtbf_s)} between failures and is back after {span(copy.mttr_s)} ({source}).",
        f"{100 * copy.beta:.3g} % of its failures take down all copies at once (--beta).",
        f"{100 * copy.coverage:.4g} % are led around; reads fail for {span(copy.rto_s)} meanwhile, writes for "
        f"{span(setting.write_rto_s)} ({drill}).",
        f'A write is answered at ack = "{setting.ack}"; the log is {on} working for {span(log.mtbf_s)} and back after '
        f"{span(log.mttr_s)}.",
    ]


def as_json(
    setting: Setting, options: Iterable[Option], seen: Failures | None, rehearsed: Failovers | None
) -> dict[str, Any]:
    """Return everything for a JSON encoder; times in seconds."""

    def down(value: Downtime) -> dict[str, Any]:
        yearly = {"down_s_per_year": value.total * UNITS["y"], "down_s_per_month": value.total * UNITS["y"] / 12}
        return {"availability": value.availability, "nines": value.nines, **yearly, "because": asdict(value)}

    found = list(options)
    return {
        "setting": asdict(setting),
        "failures": seen and asdict(seen),
        "drill": rehearsed and asdict(rehearsed),
        "options": [{**asdict(one), "reads": down(one.reads), "writes": down(one.writes)} for one in found],
        "summary": conclusion(found),
    }


# Error budgets.


def budget(objective: Objective, spent: Spent | None) -> Table:
    """Show what an objective allows, and what of it has been spent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    window = prometheus(objective.window_s)
    rows = [
        ("objective", f"{objective.target * 100:.10g} % of calls answered over {window}"),
        ("budget", f"{span(objective.budget_s)} without an answer, or one call of {1 / objective.budget:,.0f}"),
    ]
    if spent is not None:
        rows += [
            ("calls", f"{spent.total:,.0f}, of which {spent.allowed:,.1f} may fail"),
            ("failed", f"{spent.bad:,.0f} ({1 - spent.bad / spent.total:.4%} were answered)"),
            ("budget left", f"{spent.left:.1%}"),
            ("burn rate", f"{spent.burn:.3g} (1 is as fast as is allowed)"),
        ]
    for row in rows:
        table.add_row(*row)
    return table


def alerts(told: Iterable[Alert]) -> Table:
    """Show when somebody is to be told."""
    table = _table("alert", "over", "and over", "burn rate", "calls failing", "budget gone", "outage told after")
    for one in told:
        table.add_row(
            one.severity,
            prometheus(one.long_s),
            prometheus(one.short_s),
            f"{one.burn:.3g}",
            f"{one.ratio:.3%}",
            f"{one.spent:.1%}",
            span(one.noticed_s),
        )
    return table


def spending(objective: Objective, spent: Spent | None) -> str:
    """Say what the figures mean, in plain language."""
    allowed = f"{objective.target * 100:.10g} % allows {span(objective.budget_s)} without any answer in "
    allowed += prometheus(objective.window_s)
    if spent is None:
        return f"{allowed}."
    if spent.left < 0:
        return f"{allowed}. It is overdrawn: {spent.burn:.3g} times as many calls have failed as may."
    return f"{allowed}. {spent.burn:.1%} of it is spent."


def slo_json(objective: Objective, spent: Spent | None) -> dict[str, Any]:
    """Return everything for a JSON encoder; times in seconds."""
    calls = spent and {"total": spent.total, "bad": spent.bad, "allowed": spent.allowed}
    return {
        "target": objective.target,
        "window_s": objective.window_s,
        "budget": objective.budget,
        "budget_s": objective.budget_s,
        "calls": calls,
        "burn": spent and spent.burn,
        "left": spent and spent.left,
        "alerts": [asdict(alert) for alert in slo.alerts(objective)],
        "summary": spending(objective, spent),
    }
