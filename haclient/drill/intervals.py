"""What many trials say together, and how sure that is.

Decision made here: the trial is the unit, since the calls of one trial share its faults. Intervals make no assumption
about how times are spread, and are left out where there are too few trials for one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from scipy.stats import binomtest, quantile_test

CONFIDENCE: Final = 0.95


@final
@dataclass(frozen=True, slots=True)
class Spread:
    """A time over trials, in seconds; infinite where it never ended.

    Attributes:
        n: Trials.
        median: Of them.
        low: Lower end of the 95 % interval of the median, from order statistics; None with fewer than six trials.
        high: Its upper end.
        worst: The longest.
    """

    n: int
    median: float
    low: float | None
    high: float | None
    worst: float


def spread(times: Iterable[float | None]) -> Spread | None:
    """Sum up times over trials, None among them for never; None if there are none."""
    values = [math.inf if time is None else time for time in times]
    if not values:
        return None
    interval = quantile_test(values, q=0, p=0.5).confidence_interval(CONFIDENCE)
    low, high = (None if math.isnan(end) else float(end) for end in (interval.low, interval.high))
    both = low is not None and high is not None
    return Spread(len(values), statistics.median(values), low if both else None, high if both else None, max(values))


def upper_bound(bad: int, trials: int) -> float:
    """Return the exact (Clopper-Pearson) one-sided upper bound of a rate at 95 %; 1 without a trial.

    None of 59 gives 0.05, none of 299 gives 0.01.
    """
    if not trials:
        return 1.0
    return float(binomtest(bad, trials, alternative="less").proportion_ci(CONFIDENCE, "exact").high)
