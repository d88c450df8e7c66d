"""Shedding: too many calls, too many bytes, a loop that is late all the time; and when it is over."""

import heapq
import random

import pytest

from haclient.config import ProxyLimits
from haclient.proxy.admission import Admission


class Loop:
    """A clock set by hand, and timers that run when the loop comes to them."""

    def __init__(self):
        self.now = 100.0
        self.timers = []

    def time(self):
        return self.now

    def call_later(self, delay, function, *args):
        timer = Timer(self.now + delay, function, args)
        heapq.heappush(self.timers, timer)
        return timer

    def run_timers(self):
        while self.timers and self.timers[0].when <= self.now:
            timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                timer.function(*timer.args)

    def pass_time(self, seconds, turn=0.001):
        """Let time pass in turns of the loop."""
        end = self.now + seconds
        while self.now < end:
            self.now += turn
            self.run_timers()


class Timer:
    def __init__(self, when, function, args):
        self.when, self.function, self.args, self.cancelled = when, function, args, False

    def __lt__(self, other):
        return self.when < other.when

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def loop():
    return Loop()


def admission(loop, **limits):
    return Admission(ProxyLimits(**{"calls": 3, "memory_bytes": 1 << 20, "lag_s": 0.2, **limits}), loop)


def test_calls(loop):
    one = admission(loop)
    assert [one.admit() for _ in range(3)] == ["", "", ""]
    assert "3 calls under way" in one.admit()
    assert (one.calls, one.shed) == (3, 1)
    one.release(1, 0)
    assert one.admit() == ""


def test_memory(loop):
    one = admission(loop)
    assert one.hold(1 << 20) == ""
    assert "1048576 bytes" in one.hold(1)
    assert (one.memory_bytes, one.shed) == (1 << 20, 1)
    one.release(0, 1)
    assert one.hold(1) == ""


def test_new_limits_count_at_once(loop):
    one = admission(loop)
    one.admit()
    one.limits = ProxyLimits(calls=1)
    assert one.admit()


def test_one_burst_is_no_overload(loop):
    """A single turn of two seconds, then two of half a second, apart from each other."""
    one = admission(loop)
    loop.pass_time(1)
    loop.pass_time(2, turn=2.0)
    assert one.admit() == ""
    loop.pass_time(0.2)
    loop.pass_time(1, turn=0.5)
    assert one.admit() == ""


def test_late_all_the_time_is_overload_and_it_ends(loop):
    """Three times in a row, and until it is on time once."""
    one = admission(loop)
    loop.pass_time(1.5, turn=0.3)
    assert "runs late" in one.admit()
    assert one.shed == 1
    loop.pass_time(0.3, turn=0.3)
    assert one.admit()
    loop.pass_time(0.1)
    assert one.admit() == ""


def test_nearly_late_is_fine(loop):
    one = admission(loop)
    loop.pass_time(5, turn=0.2)
    assert one.admit() == ""


def test_closing_stops_measuring(loop):
    one = admission(loop)
    one.close()
    loop.pass_time(10)
    assert not loop.timers


def served(rate, seconds, shedding):
    """Serve calls at a rate, open loop, of which 10,000 a second can be; return the latencies of those served."""
    loop, rng = Loop(), random.Random(1)
    one = admission(loop, calls=10**9, memory_bytes=1 << 40, lag_s=0.2 if shedding else 1e9)
    arrivals, waits, shed = loop.now, [], 0
    end = loop.now + seconds
    while loop.now < end:
        turn = []
        while arrivals <= loop.now and len(turn) < 20_000:  # what the sockets hold
            turn.append(arrivals)
            arrivals += rng.expovariate(rate)
        for at in turn:
            if one.admit():
                shed += 1
                loop.now += 0.000_02
            else:
                loop.now += 0.000_1
                waits.append(loop.now - at)
                one.release(1, 0)
        if not turn:
            loop.now += 0.001
        loop.run_timers()
    return waits, shed


def test_latency_does_not_collapse_under_twice_the_load():
    """Without shedding those who are served have waited for many seconds; with it, never for long, and most are."""
    waits, shed = served(20_000, 20, shedding=False)
    assert shed == 0
    assert waits[-1] > 8
    waits, shed = served(20_000, 20, shedding=True)
    assert max(waits) < 2.5
    assert len(waits) > 0.6 * 20 * 10_000


def test_nothing_is_shed_below_the_capacity():
    waits, shed = served(8_000, 20, shedding=True)
    assert shed == 0
    assert max(waits) < 0.2
