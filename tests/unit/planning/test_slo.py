"""Error budgets, burn rates, and when somebody is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haclient.planning.slo import Objective, Spent, alerts

DAY = 86_400.0
MONTH = Objective(target=0.9995, window_s=30 * DAY)


def test_budget_by_hand():
    """99.95 % of 30 days are all but 21.6 minutes."""
    assert MONTH.budget_s == pytest.approx(21.6 * 60)
    spent = Spent(objective=MONTH, total=1_000_000, bad=125)
    assert spent.allowed == pytest.approx(500)
    assert spent.burn == pytest.approx(0.25)
    assert spent.left == pytest.approx(0.75)


def test_overdrawn():
    """More failures than allowed leave less than nothing."""
    assert Spent(objective=MONTH, total=1_000, bad=1).left == pytest.approx(-1.0)


def test_the_workbook():
    """For 30 days, the burn rates and windows of the workbook's table 5-8."""
    found = [(a.severity, a.long_s / 3600, a.short_s / 60, round(a.burn, 6), round(a.spent, 6)) for a in alerts(MONTH)]
    assert found == [
        ("page", 1.0, 5.0, 14.4, 0.02),
        ("page", 6.0, 30.0, 6.0, 0.05),
        ("ticket", 72.0, 360.0, 1.0, 0.1),
    ]


def test_an_outage_of_everything_is_told_soon():
    """Of the long window, as much has to fail as the alert's ratio."""
    first = alerts(MONTH)[0]
    assert first.ratio == pytest.approx(14.4 * 0.0005)
    assert first.noticed_s == pytest.approx(3600 * 14.4 * 0.0005)


def test_what_can_never_come_is_left_out():
    """A target of 90 % cannot be missed 14.4 times as fast as may be; one day has no alert over three."""
    assert [a.long_s / 3600 for a in alerts(Objective(target=0.9, window_s=30 * DAY))] == [6.0, 72.0]
    assert [a.long_s / 3600 for a in alerts(Objective(target=0.99, window_s=DAY))] == [1.0, 6.0]


@given(st.floats(0.5, 0.999999), st.floats(1.0, 365.0))
def test_alerts_make_sense(target, days):
    """Nobody is told of what is allowed, every alert can come, and the more urgent the sooner."""
    found = alerts(Objective(target=target, window_s=days * DAY))
    assert all(a.burn >= 1.0 and a.ratio < 1.0 and a.short_s < a.long_s for a in found)
    assert all(a.noticed_s < a.long_s for a in found)
    assert [a.burn for a in found] == sorted((a.burn for a in found), reverse=True)


@pytest.mark.parametrize("wrong", [{"target": 1.0}, {"target": 0.0}, {"window_s": 60.0}])
def test_wrong_objective(wrong):
    """It is refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_s")):
        Objective(**{"target": 0.99, "window_s": DAY, **wrong})


@pytest.mark.parametrize(("total", "bad"), [(0, 0), (10, 11), (10, -1)])
def test_wrong_counts(total, bad):
    """More cannot fail than were made."""
    with pytest.raises(ValueError, match="bad must be"):
        Spent(objective=MONTH, total=total, bad=bad)
