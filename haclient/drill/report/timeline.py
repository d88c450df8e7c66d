"""The picture of one trial over time: a dot for each call, marks for those that were not good, bands for the faults.

Decision made here: shapes are paths in a square of 1,000 by 1,000 that a page stretches to any size and colours as it
likes; whatever must keep its form is a point in percent. Calls that fall upon the same spot are drawn once, so that
size is bounded while every failure and every extreme stays to be seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from haclient.drill.figures import Side, side_of, span
from haclient.drill.measure import quantile
from haclient.drill.record import FaultMark, Outcome, Trial

SIZE: Final = 1000
#: Dots of one side, and marks of one shape, at most.
_DOTS, _MARKS = 1_500, 400
#: Spots that can be told apart, across and up, of dots and of marks: a dot is 3 pixels wide, a mark 9.
_DOT_GRID, _MARK_GRID = (500, 160), (160, 40)
#: Width of a bin of the other trials' band and of the errors, seconds.
_BIN_S: Final = 0.5
#: Latencies are drawn from here, seconds.
_FASTEST_S: Final = 1e-4

Point = tuple[float, float]


@final
class _Call(NamedTuple):
    """A call of a trial: seconds since the first fault, seconds of latency."""

    at: float
    took: float
    side: Side
    outcome: Outcome


@final
@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, in percent of its length."""

    at: float
    label: str


@final
@dataclass(frozen=True, slots=True)
class FaultBar:
    """A fault's place on the time axis, in percent.

    Attributes:
        number: From 1, in the order they began.
        left: Where it began.
        width: How long it lasted.
        healed: Whether it was over before the load was.
        noticed: Where haclient noticed it; None if it never did.
        row: From 0: faults that overlap have rows of their own.
    """

    number: int
    left: float
    width: float
    healed: bool
    noticed: float | None
    row: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All shapes of the picture.

    Attributes:
        across: Ticks of time, seconds since the first fault.
        up: Ticks of latency, logarithmic.
        dots: Good calls: for each side a path of points without length.
        failed: Calls that failed or were left unconfirmed.
        untrue: Calls that were answered wrongly or with what is no longer true.
        others: Outline from the fastest to the slowest call of the other trials; "" if there is none.
        middle: Line of their median.
        errors: Bars of calls that were not good; "" if there were none.
        other_errors: Outline of the most that another trial had.
        most_errors: What the full height of the bars stands for, calls a second.
        faults: The faults.
    """

    across: list[Tick]
    up: list[Tick]
    dots: dict[Side, str]
    failed: list[Point]
    untrue: list[Point]
    others: str
    middle: str
    errors: str
    other_errors: str
    most_errors: float
    faults: list[FaultBar]

    @property
    def rows(self) -> int:
        """Rows that the faults take."""
        return 1 + max((fault.row for fault in self.faults), default=-1)


@final
class _Scale:
    """Turns seconds since the first fault and seconds of latency into places."""

    def __init__(self, begin: float, end: float, latencies: Sequence[float]) -> None:
        self.begin, self.end = begin, end
        self.low = math.floor(math.log10(max(min(latencies), _FASTEST_S)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(*latencies, _FASTEST_S))))

    def x(self, time: float) -> float:
        return SIZE * min(1.0, max(0.0, (time - self.begin) / (self.end - self.begin)))

    def y(self, latency: float) -> float:
        share = (math.log10(max(latency, _FASTEST_S)) - self.low) / (self.high - self.low)
        return SIZE * (1 - min(1.0, max(0.0, share)))


def timeline(trial: Trial, others: Sequence[Trial]) -> Timeline:
    """Draw a trial in front of the others, all of them set to the same first fault.

    Args:
        trial: One with at least one call.
        others: May be empty.
    """
    zero = _zero(trial)
    mine = _calls(trial)
    theirs = [_calls(other) for other in others]
    latencies = [call.took for calls in (mine, *theirs) for call in calls]
    scale = _Scale(-zero, max(trial.seconds, 1.0) - zero, latencies)
    low, middle, high = _bands(theirs, scale)
    errors, other_errors, most = _errors(mine, theirs, scale)
    return Timeline(
        across=_across(scale),
        up=[Tick(scale.y(10.0**power) / 10, _power(power)) for power in range(scale.low, scale.high + 1)],
        dots={
            side: _dots([_point(call, scale) for call in mine if call.outcome == "ok" and call.side == side])
            for side in ("reads", "writes")
        },
        failed=_marks(_point(call, scale) for call in mine if call.outcome in ("failed", "unknown")),
        untrue=_marks(_point(call, scale) for call in mine if call.outcome in ("wrong", "stale")),
        others=_line([*high, *reversed(low)]) + "z" if high else "",
        middle=_line(middle),
        errors=errors,
        other_errors=other_errors,
        most_errors=most,
        faults=_fault_bars(trial.faults, zero, scale),
    )


def _zero(trial: Trial) -> float:
    first, _ = span(trial.faults)
    return first if math.isfinite(first) else 0.0


def _calls(trial: Trial) -> list[_Call]:
    zero = _zero(trial)
    return [_Call(call.due - zero, call.ended - call.due, side_of(call), call.outcome) for call in trial.operations]


def _point(call: _Call, scale: _Scale) -> Point:
    return scale.x(call.at), scale.y(call.took)


def _thinned(points: Iterable[Point], grid: tuple[int, int], most: int) -> list[Point]:
    """Keep one point of each spot, on the finest grid that leaves no more than ``most``."""
    left = list(points)
    columns, rows = grid
    while True:
        left = list({(int(x * columns / SIZE), int(y * rows / SIZE)): (x, y) for x, y in left}.values())
        if len(left) <= most:
            return left
        columns, rows = math.ceil(columns * 0.8), math.ceil(rows * 0.9)


def _dots(points: list[Point]) -> str:
    return "".join(f"M{x:.0f} {y:.0f}h0" for x, y in sorted(_thinned(points, _DOT_GRID, _DOTS)))


def _marks(points: Iterable[Point]) -> list[Point]:
    return [(round(x / 10, 1), round(y / 10, 1)) for x, y in sorted(_thinned(points, _MARK_GRID, _MARKS))]


def _line(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points) if points else ""


def _bin(time: float) -> int:
    return math.floor(time / _BIN_S)


def _bands(trials: Iterable[Sequence[_Call]], scale: _Scale) -> tuple[list[Point], list[Point], list[Point]]:
    """Return steps of the fastest, the median and the slowest answered call of all trials together."""
    binned: dict[int, list[float]] = defaultdict(list)
    for calls in trials:
        for call in calls:
            if call.outcome not in ("failed", "unknown") and scale.begin <= call.at < scale.end:
                binned[_bin(call.at)].append(call.took)
    steps: tuple[list[Point], list[Point], list[Point]] = ([], [], [])
    for number, latencies in sorted(binned.items()):
        latencies.sort()
        for step, share in zip(steps, (0.0, 0.5, 1.0), strict=True):
            y = scale.y(quantile(latencies, share))
            step += [(scale.x(number * _BIN_S), y), (scale.x((number + 1) * _BIN_S), y)]
    return steps


def _errors(mine: Sequence[_Call], theirs: Iterable[Sequence[_Call]], scale: _Scale) -> tuple[str, str, float]:
    """Return bars of one trial, an outline of the worst of the others, and what the full height is a second."""
    bars = _bad(mine, scale)
    worst: dict[int, int] = defaultdict(int)
    for calls in theirs:
        for number, bad in _bad(calls, scale).items():
            worst[number] = max(worst[number], bad)
    most = max([*bars.values(), *worst.values()], default=0)
    if not most:
        return "", "", 0.0
    return _bars(bars, most, scale), _bars(worst, most, scale), most / _BIN_S


def _bad(calls: Iterable[_Call], scale: _Scale) -> dict[int, int]:
    counted: dict[int, int] = defaultdict(int)
    for call in calls:
        if call.outcome != "ok" and scale.begin <= call.at < scale.end:
            counted[_bin(call.at)] += 1
    return counted


def _bars(heights: dict[int, int], most: int, scale: _Scale) -> str:
    path = []
    for number, height in sorted(heights.items()):
        left, right = scale.x(number * _BIN_S), scale.x((number + 1) * _BIN_S)
        path.append(f"M{left:.0f} {SIZE}V{SIZE * (1 - height / most):.0f}H{right:.0f}V{SIZE}")
    return "".join(path)


def _across(scale: _Scale) -> list[Tick]:
    """Return 5 to 10 round times."""
    length = scale.end - scale.begin
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 1e4, 1e5) if length / s <= 10)
    numbers = range(math.ceil(scale.begin / step), math.floor(scale.end / step) + 1)
    return [Tick(scale.x(n * step) / 10, f"{n * step:g}".replace("-", "\u2212")) for n in numbers]


def _power(power: int) -> str:
    return f"{10 ** (power + 3):g} ms" if power < 0 else f"{10**power:g} s"


def _fault_bars(marks: Sequence[FaultMark], zero: float, scale: _Scale) -> list[FaultBar]:
    bars: list[FaultBar] = []
    free: list[float] = []  # from when on each row is
    for number, mark in enumerate(sorted(marks, key=lambda mark: mark.began), 1):
        end = scale.end if mark.healed is None else mark.healed - zero
        row = next((n for n, time in enumerate(free) if time <= mark.began), len(free))
        free[row : row + 1] = [end + zero]
        left = scale.x(mark.began - zero) / 10
        noticed = None if mark.detected is None else round(scale.x(mark.detected - zero) / 10, 2)
        width = scale.x(end) / 10 - left
        bars.append(FaultBar(number, round(left, 2), round(width, 2), mark.healed is not None, noticed, row))
    return bars
