"""The gate: when it opens, who gets through, what counts."""

import pytest

from haclient.config import Breaker
from haclient.fleet.breaker import CLOSED, HALF_OPEN, OPEN, REFUSED, Gate, _Window
from tests.unit.fleet.fleet_fakes import Clock


class Bench:
    def __init__(self, **settings):
        self.clock = Clock()
        self.changes = []
        self.settings = Breaker(**settings)
        self.gate = Gate("a", self.settings, self.clock, lambda *change: self.changes.append(change))

    def calls(self, *outcomes):
        for ok in outcomes:
            self.gate.record(self.gate.try_acquire(), ok)

    def half_open(self):
        self.clock.now = max(self.clock.now, self.gate.retry_at)
        assert self.gate.try_half_open()


def test_failures_in_a_row_open_it():
    b = Bench(consecutive=3, min_calls=100)
    b.calls(False, False)
    assert b.gate.state == CLOSED
    b.calls(False)
    assert b.gate.state == OPEN
    assert b.gate.reason == "3 failures in a row"
    assert b.gate.try_acquire() == REFUSED


def test_a_success_between_breaks_the_row():
    b = Bench(consecutive=3, min_calls=100)
    b.calls(False, False, True, False, False)
    assert b.gate.state == CLOSED


def test_an_outcome_that_says_nothing_neither_breaks_nor_extends_the_row():
    b = Bench(consecutive=3, min_calls=100)
    b.calls(False, None, False, None)
    assert b.gate.state == CLOSED
    b.calls(False)
    assert b.gate.state == OPEN


def test_the_ratio_opens_it_from_a_small_minimum_on():
    b = Bench(consecutive=100, min_calls=5, failure_ratio=0.5)
    b.calls(False, True, False, True)
    assert b.gate.state == CLOSED
    b.calls(False)
    assert b.gate.state == OPEN
    assert b.gate.reason == "3 of 5 calls failed within 10 s"


def test_a_ratio_below_the_threshold_does_not_open_it():
    b = Bench(consecutive=100, min_calls=5, failure_ratio=0.5)
    b.calls(*[True, True, False] * 20)
    assert b.gate.state == CLOSED


def test_failures_long_past_are_forgotten():
    b = Bench(consecutive=100, min_calls=4, failure_ratio=0.5, window_s=10)
    b.calls(True, False, False)
    b.clock.now += 20.1
    b.calls(True, True, True)
    b.calls(False)
    assert b.gate.state == CLOSED


@pytest.mark.parametrize(
    ("age", "old"),
    [(0.0, 10.0), (9.999, 10.0), (10.0, 10.0), (15.0, 5.0), (19.0, 1.0), (20.0, 0.0), (35.0, 0.0)],
)
def test_the_window_slides(age, old):
    """What was counted in one window fades linearly over the next."""
    window = _Window(10.0, 100.0)
    for _ in range(10):
        window.count(False, 100.0)
    window.count(True, 100.0 + age)
    ok, failed = window.totals(100.0 + age)
    assert ok == 1
    assert failed == pytest.approx(old, abs=0.01)


def test_opening_says_so_once_and_keeps_the_latest_reason():
    b = Bench()
    b.gate.open("first")
    b.gate.open("second")
    assert b.changes == [(CLOSED, OPEN, "first")]
    assert b.gate.reason == "second"


def test_nobody_tries_before_the_wait_is_over():
    b = Bench(open_s=0.5)
    b.gate.open("x")
    b.clock.now += 0.499
    assert not b.gate.try_half_open()
    assert b.gate.state == OPEN
    b.clock.now += 0.001
    assert b.gate.try_half_open()


@pytest.mark.parametrize("permits", [1, 2, 5])
def test_half_open_admits_exactly_n(permits):
    b = Bench(trial_permits=permits, trial_successes=100)
    b.gate.open("x")
    b.half_open()
    taken = [b.gate.try_acquire() for _ in range(100)]
    assert [p for p in taken if p != REFUSED] == [b.gate.generation] * permits
    b.gate.record(taken[0], None)
    assert b.gate.try_acquire() != REFUSED
    assert b.gate.try_acquire() == REFUSED


def test_asking_again_for_half_open_gives_no_further_permits():
    b = Bench(trial_permits=1)
    b.gate.open("x")
    b.half_open()
    assert b.gate.try_acquire() != REFUSED
    assert b.gate.try_half_open()
    assert b.gate.try_acquire() == REFUSED


def test_it_closes_after_enough_successes():
    b = Bench(trial_successes=3)
    b.gate.open("x")
    b.half_open()
    b.calls(True, True)
    assert b.gate.state == HALF_OPEN
    b.calls(True)
    assert b.gate.state == CLOSED
    assert [(before, after) for before, after, _ in b.changes] == [
        (CLOSED, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, CLOSED),
    ]


def test_one_failed_trial_opens_it_again():
    b = Bench(trial_successes=3)
    b.gate.open("x")
    b.half_open()
    b.calls(True, True, False)
    assert b.gate.state == OPEN


def test_after_closing_the_past_is_forgotten():
    b = Bench(consecutive=3, min_calls=5, trial_successes=1)
    b.calls(False, False, False)
    b.half_open()
    b.calls(True)
    assert b.gate.state == CLOSED
    b.calls(False, False)
    assert b.gate.state == CLOSED


@pytest.mark.parametrize("late", [True, False, None])
def test_the_outcome_of_an_earlier_generation_counts_for_nothing(late):
    b = Bench(trial_permits=1, trial_successes=1)
    old = b.gate.try_acquire()
    b.gate.open("x")
    b.gate.record(old, late)
    assert b.gate.state == OPEN
    b.half_open()
    b.gate.record(old, late)
    assert b.gate.state == HALF_OPEN
    assert b.gate.try_acquire() != REFUSED
    assert b.gate.try_acquire() == REFUSED


def test_a_permit_of_an_earlier_trial_does_not_close_a_later_one():
    b = Bench(trial_successes=1)
    b.gate.open("x")
    b.half_open()
    old = b.gate.try_acquire()
    b.gate.open("probe")
    b.half_open()
    b.gate.record(old, True)
    assert b.gate.state == HALF_OPEN


def test_the_refused_permit_counts_for_nothing():
    b = Bench(trial_successes=1)
    b.gate.open("x")
    b.half_open()
    b.gate.try_acquire()
    b.gate.record(REFUSED, True)
    assert b.gate.state == HALF_OPEN
    assert b.gate.try_acquire() == REFUSED


def test_each_reopening_doubles_the_wait_up_to_the_limit():
    b = Bench(open_s=0.5, max_open_s=3.0)
    waits = []
    b.gate.open("x")
    for _ in range(5):
        waits.append(round(b.gate.retry_at - b.clock.now, 6))
        b.half_open()
        b.calls(False)
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_reopening_soon_after_closing_goes_on_doubling():
    b = Bench(open_s=0.5, max_open_s=30, trial_successes=1)
    b.gate.open("x")
    b.half_open()
    b.calls(True)
    b.clock.now += 1
    b.gate.open("flapping")
    assert b.gate.retry_at - b.clock.now == pytest.approx(1.0)


def test_a_rest_resets_the_wait():
    b = Bench(open_s=0.5, max_open_s=30, trial_successes=1)
    for _ in range(3):
        b.gate.open("x")
        b.half_open()
        b.calls(True)
    b.clock.now += 30.1
    b.gate.open("new trouble")
    assert b.gate.retry_at - b.clock.now == pytest.approx(0.5)


def test_aiobreaker_holds_the_state_and_is_used_for_nothing_else(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("aiobreaker must not run calls")

    from aiobreaker import CircuitBreaker

    for name in ("call", "call_async", "__call__"):
        monkeypatch.setattr(CircuitBreaker, name, forbidden)
    b = Bench(trial_successes=1)
    seen = []
    for expected, step in (
        ("OPEN", lambda: b.gate.open("x")),
        ("HALF_OPEN", b.half_open),
        ("CLOSED", lambda: b.calls(True)),
    ):
        step()
        seen.append(b.gate._holder.current_state.name)
        assert seen[-1] == expected
    assert len(b.changes) == 3
    assert b.gate.generation == 3


def test_a_listener_of_aiobreaker_hears_every_transition():
    from aiobreaker import CircuitBreakerListener

    class Listener(CircuitBreakerListener):
        def __init__(self):
            self.heard = []

        def state_change(self, breaker, old, new):
            self.heard.append((breaker.name, old.state.name, new.state.name))

    b = Bench(trial_successes=1)
    listener = Listener()
    b.gate._holder.add_listener(listener)
    b.gate.open("x")
    b.half_open()
    b.calls(True)
    assert listener.heard == [("a", "CLOSED", "OPEN"), ("a", "OPEN", "HALF_OPEN"), ("a", "HALF_OPEN", "CLOSED")]
