"""The tables of the page: values turned into words, nothing else.

Decision made here: over trials the median and the worst stand side by side; a mean would hide the one trial that hurt.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from haclient.drill.figures import PHASES, SIDES, Latency, Phase, Side, longest
from haclient.drill.intervals import Spread, spread, upper_bound
from haclient.drill.series import Series, Times
from haclient.drill.telling import many, percent, rate, seconds

_BINS: Final = 40
#: Errors that are shown.
_ERRORS: Final = 5
_LOGS: Final = {"sqlite": "SQLite", "etcd1": "etcd", "etcd3": "etcd (three members)"}


@final
@dataclass(frozen=True, slots=True)
class Histogram:
    """How a time is spread over trials.

    Attributes:
        bars: A path in a square of 1,000 by 1,000.
        limit: Where the scenario's limit is, in percent of the width; None if there is none.
        end: What the right edge stands for.
        never: Trials without an end, which have no bar.
        described: The same for those who cannot see it.
    """

    bars: str
    limit: float | None
    end: str
    never: int
    described: str


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One figure over trials."""

    name: str
    median: str
    interval: str
    worst: str
    limit: str
    histogram: Histogram | None


@final
@dataclass(frozen=True, slots=True)
class PhaseRow:
    """Latencies of one side in one phase: each the median over trials and the worst of them."""

    side: Side
    phase: Phase
    calls: str
    bad: str
    latencies: tuple[tuple[str, str], ...]


#: Headings of `overview`.
OVERVIEW: Final = (
    "trials",
    "available",
    "failed reads",
    "reads back",
    "failed writes",
    "writes back",
    "lost",
)


def overview(seen: Series) -> list[str]:
    """Return the worst figures of a scenario, one for each heading of `OVERVIEW`."""
    all_of_them = len(seen.trials) + len(seen.broken)
    shares = [trial.availability for trial in seen.trials if trial.availability is not None]
    lost = [trial.lost for trial in seen.trials if trial.lost is not None]
    return [
        f"{len(seen.trials)} of {all_of_them}" if seen.broken else str(all_of_them),
        percent(min(shares, default=None)),
        *_worst_of(seen, "reads"),
        *_worst_of(seen, "writes"),
        str(max(lost)) if lost else "–",
    ]


def _worst_of(seen: Series, side: Side) -> tuple[str, str]:
    trials = [trial for trial in seen.trials if trial.calls(side)]
    if not trials:
        return "–", "–"
    back = longest(trial.rto_s(side) for trial in trials)
    return str(max(trial.failed[side] for trial in trials)), seconds(back)


def over_trials(seen: Series) -> list[Row]:
    """Return the figures that every trial has one of."""
    # Turned round, so that the least is the worst.
    shares = [-trial.availability for trial in seen.trials if trial.availability is not None]
    loads = [trial.extra_load for trial in seen.trials if trial.extra_load is not None]
    least = seen.scenario.expect.availability
    rows = [_row("Availability", _turned(spread(shares)), percent, percent(least) if least else "")]
    rows += [_timed(times) for times in seen.times()]
    most = seen.scenario.expect.extra_load
    rows.append(_row("Extra load, in requests per call", spread(loads), _times, _times(most) if most else ""))
    return [row for row in rows if row is not None]


def failed_trials(seen: Series) -> list[tuple[str, str, str]]:
    """Return what went wrong in how many trials, and how often it does at most, with 95 % confidence."""
    rows: list[tuple[str, list[bool]]] = [
        ("A read failed or was wrong", [bool(t.failed["reads"]) for t in seen.trials if t.calls("reads")]),
        ("A write failed or was not confirmed", [bool(t.failed["writes"]) for t in seen.trials if t.calls("writes")]),
        ("A read was stale", [bool(t.stale) for t in seen.trials if t.calls("reads")]),
        ("An acknowledged write was lost", [bool(t.lost) for t in seen.trials if t.audit is not None]),
    ]
    return [(name, f"{sum(hit):,} of {len(hit):,}", rate(upper_bound(sum(hit), len(hit)))) for name, hit in rows if hit]


def errors(seen: Series) -> list[tuple[str, str, str]]:
    """Return what callers were told most often: the error, calls, trials."""
    told = [Counter(call.error for call in trial.operations if call.outcome != "ok") for trial in seen.recorded]
    calls: Counter[str] = Counter()
    for one in told:
        calls.update(one)
    return [
        (error or "without an error", f"{number:,}", f"{sum(error in one for one in told):,}")
        for error, number in calls.most_common(_ERRORS)
    ]


def setting(seen: Series) -> str:
    """Say what was started and what it was asked, in a few words."""
    fleet, load = seen.scenario.topology, seen.scenario.load
    shares = {"searches": load.search, "queries": load.query, "upserts": load.upsert, "deletes": load.delete}
    total = sum(shares.values()) or 1.0
    parts = [
        many(fleet.clusters, "cluster") + (f", {fleet.remote} of them at another site" if fleet.remote else ""),
        f"writes mirrored by a log in {_LOGS[fleet.log]}, acknowledged at “{fleet.ack}”"
        if fleet.log
        else "no mirroring",
        many(fleet.proxies, "proxy", "proxies") if fleet.proxies else "",
        f"{load.rate:g} calls a second from {many(fleet.clients, 'process', 'processes')} for {load.seconds:g} s",
        ", ".join(f"{share / total:.0%} {kind}".replace("%", " %") for kind, share in shares.items() if share),
    ]
    return "; ".join(part for part in parts if part) + "."


def phases(seen: Series) -> list[PhaseRow]:
    """Return latencies by side and phase, without those that have no call."""
    rows = []
    for side in SIDES:
        for phase in PHASES:
            cells = [trial.latency[phase][side] for trial in seen.trials]
            if calls := sum(cell.calls for cell in cells):
                rows.append(PhaseRow(side, phase, f"{calls:,}", f"{sum(c.bad for c in cells):,}", _quantiles(cells)))
    return rows


def _quantiles(cells: Sequence[Latency]) -> tuple[tuple[str, str], ...]:
    columns: Iterable[Iterable[float | None]] = zip(
        *((c.p50_s, c.p99_s, c.p999_s, c.max_s) for c in cells), strict=True
    )
    known = [[time for time in column if time is not None] for column in columns]
    return tuple((seconds(statistics.median(c)), seconds(max(c))) if c else ("–", "–") for c in known)


def _times(load: float) -> str:
    return f"× {load:.2f}"


def _timed(times: Times) -> Row | None:
    row = _row(times.name, times.spread, seconds, "" if times.limit is None else seconds(times.limit))
    return row and replace(row, histogram=_histogram(times))


def _row(name: str, found: Spread | None, told: Callable[[float], str], limit: str) -> Row | None:
    if found is None:
        return None
    ends = [] if found.low is None or found.high is None else [told(found.low), told(found.high)]
    interval = " to ".join(dict.fromkeys(ends))
    return Row(name, told(found.median), interval, told(found.worst), limit, None)


def _turned(found: Spread | None) -> Spread | None:
    if found is None or found.low is None or found.high is None:
        return found and Spread(found.n, -found.median, None, None, -found.worst)
    return Spread(found.n, -found.median, -found.high, -found.low, -found.worst)


def _histogram(times: Times) -> Histogram | None:
    """Draw times over at least two trials, unless all are the same."""
    ended = sorted(time for time in times.values if time is not None)
    if len(set(times.values)) < 2:
        return None
    end = max(*ended, times.limit or 0.0) * 1.05 or 1.0
    counts = [0] * _BINS
    for time in ended:
        counts[int(time / end * _BINS)] += 1
    width = 1000 // _BINS
    bars = "".join(
        f"M{number * width} 1000V{1000 * (1 - count / max(counts)):.0f}h{width - 4}V1000"
        for number, count in enumerate(counts)
        if count
    )
    never = len(times.values) - len(ended)
    described = f"From {seconds(ended[0])} to {seconds(ended[-1])} in {many(len(ended), 'trial')}" + (
        f", without end in {never:,}" if never else ""
    )
    limit = None if times.limit is None else times.limit / end * 100
    return Histogram(bars, limit, seconds(end), never, described)
