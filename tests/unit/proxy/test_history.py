"""Points of the past, and how fast the error budget is spent."""

import pytest

from haclient.call import Call, Kind, Method
from haclient.proxy.history import Timeline
from haclient.proxy.report import Totals
from haclient.proxy.totals import Tally

START = 1_000_000.0
CALL = Call(Method("Search", "/s/Search", Kind.READ), b"", (), 1.0)


class Day:
    """A proxy that counts so many calls in each tick."""

    def __init__(self):
        self.now = START
        self.ok = self.failed = self.shed = self.refused = 0
        self.timeline = Timeline(START, Totals())

    def pass_(self, ticks, *, every_s=1.0, ok=0, failed=0, shed=0, refused=0):
        for _ in range(ticks):
            self.now += every_s
            self.ok += ok
            self.failed += failed
            self.shed += shed
            self.refused += refused
            totals = Totals(ok=self.ok, failed=self.failed, shed=self.shed, refused=self.refused, latency=[0] * 51)
            self.timeline.add(self.now, totals)

    def burn(self, objective=0.9):
        return {burn.window_s: burn for burn in self.timeline.burn(self.now, objective)}


def test_a_point_is_what_happened_since_the_one_before():
    tally = Tally()
    timeline = Timeline(START, tally.totals(0))
    for _ in range(100):
        tally.count(CALL, "ok", 0.010)
    tally.count(CALL, "Unavailable", 2.0)
    timeline.add(START + 1, tally.totals(shed=3))
    timeline.add(START + 2, tally.totals(shed=3))
    busy, quiet = timeline.points(1.0)
    assert (busy.at, busy.ok, busy.failed, busy.shed) == (START + 1, 100, 1, 3)
    assert busy.p50_s == pytest.approx(0.010, rel=0.25)
    assert busy.p99_s == pytest.approx(0.010, rel=0.25)
    assert (quiet.at, quiet.ok, quiet.failed, quiet.shed, quiet.p50_s) == (START + 2, 0, 0, 0, None)


def test_minutes_hold_what_their_seconds_hold():
    day = Day()
    day.pass_(150, ok=2, failed=1)
    assert [(point.at - START, point.ok, point.failed) for point in day.timeline.points(60.0)] == [
        (60.0, 120, 60),
        (120.0, 120, 60),
    ]


def test_memory_is_bounded():
    """Ten minutes of seconds, a day of minutes; the rest is forgotten, oldest first."""
    day = Day()
    day.pass_(1_430 * 2, every_s=30.0, ok=1)
    day.pass_(11 * 60 + 5, ok=1)
    seconds, minutes = day.timeline.points(1.0), day.timeline.points(60.0)
    assert (len(seconds), len(minutes)) == (600, 1_440)
    assert seconds[-1].at == day.now
    assert seconds[0].at == day.now - 599
    assert minutes[0].at == START + 120


def test_a_budget_spent_just_as_fast_as_allowed_burns_at_one():
    day = Day()
    day.pass_(600, ok=8, refused=1, failed=1)
    for burn in day.burn(objective=0.9).values():
        assert burn.availability == pytest.approx(0.9)
        assert burn.burn == pytest.approx(1.0)


def test_shed_calls_spend_the_budget_and_refused_ones_do_not():
    day = Day()
    day.pass_(10, refused=3, shed=1)
    assert day.burn(objective=0.5)[300.0].burn == pytest.approx(0.5)


def test_each_window_sees_its_own_time():
    """A day that was bad, then an hour and a half that was good, then two minutes of nothing but failure."""
    day = Day()
    day.pass_(22 * 120, every_s=30.0, ok=30, failed=30)
    day.pass_(180, every_s=30.0, ok=30)
    day.pass_(120, failed=1)
    availability = {window: burn.availability for window, burn in day.burn().items()}
    assert availability[300.0] == pytest.approx(180 / 300, abs=0.05)
    assert availability[3_600.0] == pytest.approx(3_480 / 3_600, abs=0.02)
    good = 5_400 + (21_600 - 5_520)
    assert availability[21_600.0] == pytest.approx(good / (5_520 + 2 * (21_600 - 5_520)), abs=0.01)
    assert 0.5 < availability[86_400.0] < availability[21_600.0]


def test_nothing_is_said_of_a_time_without_calls():
    day = Day()
    day.pass_(5)
    assert all(burn.availability is None and burn.burn is None for burn in day.burn().values())


def test_a_clock_that_is_set_back_loses_no_call():
    day = Day()
    day.pass_(30, ok=1)
    day.now -= 3_600.0
    day.pass_(61, ok=1)
    assert sum(point.ok for point in day.timeline.points(60.0)) == 91
