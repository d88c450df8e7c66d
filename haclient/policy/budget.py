"""How much extra load retries and hedges together may make.

Why a budget and not a maximum number of retries: three retries each look harmless, until everything fails
and every caller makes three. A budget ties the extra attempts to the calls made, so the load on a sick fleet is
at most ``1 + ratio`` times the offered load, whatever happens (finagle's RetryBudget; SRE book, chapter 22).
A small floor lets a quiet application hedge at all.

Hedges may spend half of it: they only make slow calls faster, and when everything is slow they would leave nothing for
the calls that fail.
"""

from __future__ import annotations

from typing import final

_SLOTS = 10
_SLOT_S = 1.0
#: Share of the budget that hedges may spend.
_HEDGES = 0.5


@final
class Budget:
    """Extra attempts allowed within the last ten seconds: ``max(ratio * calls, floor)``.

    Args:
        ratio: Extra attempts per call.
        floor: Extra attempts per ten seconds that are always allowed.
    """

    __slots__ = ("_calls", "_extras", "_slot", "calls", "extras", "floor", "ratio")

    def __init__(self, ratio: float, floor: int) -> None:
        self.ratio = ratio
        self.floor = floor
        self._calls = [0] * _SLOTS
        self._extras = [0] * _SLOTS
        self._slot = 0
        self.calls = 0
        self.extras = 0

    def deposit(self, now: float) -> None:
        """Count one call of the application at loop time ``now``."""
        slot = int(now / _SLOT_S)
        if slot != self._slot:
            self._advance(slot)
        self._calls[slot % _SLOTS] += 1
        self.calls += 1

    def withdraw(self, now: float) -> bool:
        """Ask for one extra attempt; False means that the budget is spent."""
        slot = int(now / _SLOT_S)
        if slot != self._slot:
            self._advance(slot)
        if self.extras + 1 > max(self.ratio * self.calls, self.floor):
            return False
        self._extras[slot % _SLOTS] += 1
        self.extras += 1
        return True

    def withdraw_hedge(self, now: float) -> bool:
        """Ask for one extra attempt beside another; refused once half the budget is spent, on whatever."""
        slot = int(now / _SLOT_S)
        if slot != self._slot:
            self._advance(slot)
        if self.extras + 1 > _HEDGES * max(self.ratio * self.calls, self.floor):
            return False
        return self.withdraw(now)

    def refund(self) -> None:
        """Give back what was withdrawn last and not used."""
        self._extras[self._slot % _SLOTS] -= 1
        self.extras -= 1

    def _advance(self, slot: int) -> None:
        for old in range(max(self._slot + 1, slot - _SLOTS + 1), slot + 1):
            i = old % _SLOTS
            self.calls -= self._calls[i]
            self.extras -= self._extras[i]
            self._calls[i] = self._extras[i] = 0
        self._slot = slot
