"""How long answers usually take, per method and collection: what the hedging delay is read from.

Decision made here: a histogram of logarithmic buckets (each about 9 % wide) that halves its counts when it is
full, so that it follows the last few hundred answers at the cost of one addition per answer.
"""

from __future__ import annotations

import math
from typing import final

_BASE_S = 1e-4
_PER_OCTAVE = 8
_BUCKETS = 18 * _PER_OCTAVE
_FULL = 1000
_REFRESH = 16


#: Weight of one answer in the share of empty ones.
_EMPTY_WEIGHT = 0.1


@final
class LatencyDigest:
    """What recent answers were like: a quantile of their latencies, and how many of them were empty.

    A quantile is the upper edge of its bucket, so it errs on the slow side.

    Attributes:
        emptiness: Share of recent answers that were empty, as a moving average; 1 until known better.
    """

    __slots__ = ("_counts", "_quantile", "_stale", "_total", "_value", "emptiness")

    def __init__(self, quantile: float) -> None:
        self.emptiness = 1.0
        self._quantile = quantile
        self._counts = [0] * _BUCKETS
        self._total = 0
        self._stale = 0
        self._value = 0.0

    def observe(self, latency_s: float) -> None:
        """Add one latency in seconds."""
        i = int(math.log2(latency_s / _BASE_S) * _PER_OCTAVE) + 1 if latency_s > _BASE_S else 0
        self._counts[min(i, _BUCKETS - 1)] += 1
        self._total += 1
        self._stale -= 1
        if self._total >= _FULL:
            self._counts = [n // 2 for n in self._counts]
            self._total = sum(self._counts)

    def saw(self, empty: bool) -> None:
        """Count an answer that was believed."""
        self.emptiness += _EMPTY_WEIGHT * (empty - self.emptiness)

    def value(self) -> float | None:
        """Return the quantile in seconds, or None before there are enough answers to tell."""
        if self._total < _REFRESH:
            return None
        if self._stale <= 0:
            self._stale = _REFRESH
            self._value = self._compute()
        return self._value

    def _compute(self) -> float:
        left = self._total * (1.0 - self._quantile)
        for i in range(_BUCKETS - 1, -1, -1):
            left -= self._counts[i]
            if left < 0:
                return float(_BASE_S * 2.0 ** (i / _PER_OCTAVE))
        return _BASE_S
