"""How it was: points of a second for ten minutes, points of a minute for a day, and the error budget.

Decision made here: a point is the difference of two totals, so nothing is measured twice, and a tick that comes late
makes a longer interval but loses no call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from typing import Final, final

from haclient.proxy.report import Burn, Point, Totals
from haclient.proxy.totals import difference, quantile

SECOND: Final = 1.0
MINUTE: Final = 60.0
_SECONDS_KEPT: Final = 600
_MINUTES_KEPT: Final = 1440
#: Windows of the error budget, seconds: a page, a ticket, and what they are compared with.
_WINDOWS_S: Final = (300.0, 3_600.0, 21_600.0, 86_400.0)


@final
class Timeline:
    """The history of the totals; its memory is bounded.

    Args:
        start: Unix time of the beginning.
        totals: What had been counted by then.
    """

    def __init__(self, start: float, totals: Totals) -> None:
        self._seconds: deque[Point] = deque(maxlen=_SECONDS_KEPT)
        self._minutes: deque[Point] = deque(maxlen=_MINUTES_KEPT)
        self._last = totals
        self._minute_start, self._minute_totals = start, totals

    def add(self, now: float, totals: Totals) -> None:
        """Note what had been counted by a moment; call it about once a second.

        Args:
            now: Unix time.
            totals: Never less than the last time.
        """
        self._seconds.append(_point(now, totals, self._last))
        self._last = totals
        # A clock that was set back starts a new minute, rather than none until it has caught up.
        if not self._minute_start <= now < self._minute_start + MINUTE:
            self._minutes.append(_point(now, totals, self._minute_totals))
            self._minute_start, self._minute_totals = now, totals

    def points(self, every_s: float) -> list[Point]:
        """Return the points of one second or of one minute, oldest first."""
        return list(self._seconds if every_s == SECOND else self._minutes)

    def burn(self, now: float, objective: float) -> list[Burn]:
        """Say how fast the error budget is spent, shortest window first.

        Args:
            now: Unix time.
            objective: Wanted share of answered calls, below 1.
        """
        return [self._burn(now, objective, window_s) for window_s in _WINDOWS_S]

    def _burn(self, now: float, objective: float, window_s: float) -> Burn:
        points: Iterable[Point | Totals]
        if window_s <= _SECONDS_KEPT:
            points = _since(self._seconds, now - window_s)
        else:
            unfinished = difference(self._last, self._minute_totals)
            points = [unfinished, *_since(self._minutes, now - window_s)]
        answered = bad = 0
        for point in points:
            answered += point.ok + point.refused
            bad += point.failed + point.shed
        if not answered + bad:
            return Burn(window_s=window_s, availability=None, burn=None)
        spent = bad / (answered + bad)
        return Burn(window_s=window_s, availability=1.0 - spent, burn=spent / (1.0 - objective))


def _since(points: deque[Point], start: float) -> Iterable[Point]:
    return takewhile(lambda point: point.at > start, reversed(points))


def _point(at: float, now: Totals, before: Totals) -> Point:
    counted = difference(now, before)
    return Point(
        at=at,
        **counted.model_dump(exclude={"latency"}),
        p50_s=quantile(counted.latency, 0.5),
        p99_s=quantile(counted.latency, 0.99),
    )
