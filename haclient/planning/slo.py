"""What an objective allows, how fast it is spent, and when somebody has to be told.

Decision made here: alerts are those of Google's "The Site Reliability Workbook" (2018), chapter 5, "Multiwindow,
multi-burn-rate alerts": a long window says that it matters, a short one that it still goes on. Their thresholds are
worked out from the share of the budget that may be spent before somebody is told, for any window of the objective.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, final

Severity = Literal["page", "ticket"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share of calls that must be answered.

    Attributes:
        target: That share, below 1.
        window_s: Over which time it is counted, seconds.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    target: float
    window_s: float

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise ValueError("target must be greater than 0 and less than 100%: what allows no failure has no budget")
        if self.window_s < 3600:
            raise ValueError("window must be 1h or more")

    @property
    def budget(self) -> float:
        """The share of calls that may fail."""
        return 1.0 - self.target

    @property
    def budget_s(self) -> float:
        """For how long all calls may fail in one window, seconds."""
        return self.budget * self.window_s


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What has been spent of a budget.

    Attributes:
        objective: Of which.
        total: Calls, all of them in one window of the objective.
        bad: Those of them that failed.
    """

    objective: Objective
    total: float
    bad: float

    def __post_init__(self) -> None:
        if not 0 <= self.bad <= self.total or not self.total:
            raise ValueError("bad must be from 0 to total, and total greater than 0")

    @property
    def allowed(self) -> float:
        """How many of so many calls may fail."""
        return self.total * self.objective.budget

    @property
    def burn(self) -> float:
        """How fast the budget is spent: at 1 it lasts for just one window."""
        return self.bad / self.allowed

    @property
    def left(self) -> float:
        """The share of the budget that is left; below 0 if it is overdrawn."""
        return 1.0 - self.burn


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """When somebody is told.

    Attributes:
        severity: How urgently.
        long_s: Over this time the budget must be spent so fast, seconds.
        short_s: And over this one, to the present.
        burn: How fast.
        ratio: The same as a share of calls that fail.
        spent: Share of the budget that is gone when the long window has been full of it.
        noticed_s: When it is told of an outage of everything, seconds after its beginning.
    """

    severity: Severity
    long_s: float
    short_s: float
    burn: float
    ratio: float
    spent: float
    noticed_s: float


_HOUR: Final = 3600.0
#: Severity, long window, share of the budget spent in it: table 5-8 of the workbook. The short window is a twelfth.
_ALERTS: Final[tuple[tuple[Severity, float, float], ...]] = (
    ("page", _HOUR, 0.02),
    ("page", 6 * _HOUR, 0.05),
    ("ticket", 72 * _HOUR, 0.10),
)


def alerts(objective: Objective) -> list[Alert]:
    """Work out when somebody is to be told.

    Alerts that can never come (a target so low that not even an outage of everything spends so fast) are left out, as
    are windows longer than the objective's. Nobody is told of what the objective allows: no burn rate is below 1.
    """
    found = []
    for severity, long_s, share in _ALERTS:
        burn = max(1.0, share * objective.window_s / long_s)
        ratio = burn * objective.budget
        if ratio < 1.0 and long_s <= objective.window_s:
            spent = burn * long_s / objective.window_s
            alert = Alert(
                severity=severity,
                long_s=long_s,
                short_s=long_s / 12,
                burn=burn,
                ratio=ratio,
                spent=spent,
                noticed_s=ratio * long_s,
            )
            found.append(alert)
    return found
