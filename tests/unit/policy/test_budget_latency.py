"""The budget of extra load, and the digest the hedging delay is read from."""

import random

import numpy as np
import pytest

from haclient.policy.budget import Budget
from haclient.policy.latency import LatencyDigest


def spend(budget, now, tries=1000):
    return sum(budget.withdraw(now) for _ in range(tries))


def test_the_extra_load_is_a_share_of_the_calls():
    budget = Budget(0.2, 0)
    for _ in range(100):
        budget.deposit(5.0)
    assert spend(budget, 5.0) == 20


def test_hedges_leave_half_of_it_to_calls_that_failed():
    budget = Budget(0.2, 0)
    for _ in range(100):
        budget.deposit(5.0)
    assert sum(budget.withdraw_hedge(5.0) for _ in range(100)) == 10
    assert spend(budget, 5.0) == 10
    assert not budget.withdraw_hedge(5.0)


def test_a_floor_lets_a_quiet_application_retry_at_all():
    budget = Budget(0.2, 10)
    budget.deposit(5.0)
    assert spend(budget, 5.0) == 10


def test_the_floor_is_not_added_to_the_share():
    budget = Budget(0.2, 10)
    for _ in range(100):
        budget.deposit(5.0)
    assert spend(budget, 5.0) == 20


def test_no_ratio_and_no_floor_allow_nothing():
    budget = Budget(0.0, 0)
    budget.deposit(0.0)
    assert not budget.withdraw(0.0)


def test_it_looks_back_ten_seconds():
    budget = Budget(0.0, 5)
    assert spend(budget, 100.5) == 5
    assert spend(budget, 109.9) == 0
    assert spend(budget, 110.1) == 5


def test_calls_and_extras_leave_the_window_slot_by_slot():
    budget = Budget(0.5, 0)
    for second in range(10):
        for _ in range(10):
            budget.deposit(float(second))
    assert (budget.calls, spend(budget, 9.0)) == (100, 50)
    budget.deposit(14.0)
    assert budget.calls == 51
    assert budget.extras == 50
    budget.deposit(25.0)
    assert (budget.calls, budget.extras) == (1, 0)


def test_a_long_pause_leaves_nothing_behind():
    budget = Budget(0.5, 0)
    for _ in range(100):
        budget.deposit(1.0)
    spend(budget, 1.0, 10)
    budget.deposit(1e6)
    assert (budget.calls, budget.extras) == (1, 0)


def test_a_refund_can_be_spent_again():
    budget = Budget(0.0, 1)
    assert budget.withdraw(3.0)
    budget.refund()
    assert budget.withdraw(3.0)
    assert not budget.withdraw(3.0)


@pytest.mark.parametrize("seed", range(5))
def test_over_any_ten_seconds_extras_stay_in_bounds(seed):
    """Drawn at random, against the plain definition."""
    rng = random.Random(seed)
    budget, calls, extras, now = Budget(0.2, 3), [], [], 0.0
    for _ in range(5000):
        now += rng.expovariate(50) if rng.random() < 0.999 else rng.uniform(0, 30)
        if rng.random() < 0.5:
            budget.deposit(now)
            calls.append(now)
        elif budget.withdraw(now):
            extras.append(now)
            since = int(now) - 9
            assert sum(t >= since for t in extras) <= max(0.2 * sum(t >= since for t in calls), 3)
    assert len(extras) > 100


# The digest.


def test_it_says_nothing_before_it_knows_enough():
    digest = LatencyDigest(0.95)
    for _ in range(15):
        digest.observe(0.01)
    assert digest.value() is None
    digest.observe(0.01)
    assert digest.value() is not None


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("median_s", [0.002, 0.02, 0.3])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_a_quantile_is_never_low_and_at_most_a_bucket_high(quantile, median_s, sigma):
    digest = LatencyDigest(quantile)
    sample = np.random.default_rng(3).lognormal(np.log(median_s), sigma, 900)
    for one in sample:
        digest.observe(float(one))
    low, high = (float(np.quantile(sample, quantile, method=side)) for side in ("lower", "higher"))
    digest._stale = 0
    assert low <= digest.value() <= high * 2 ** (1 / 8)


def test_it_follows_a_change():
    digest = LatencyDigest(0.95)
    for _ in range(5000):
        digest.observe(0.010)
    assert digest.value() == pytest.approx(0.010, rel=0.1)
    for _ in range(1000):
        digest.observe(0.100)
    assert digest.value() == pytest.approx(0.100, rel=0.1)
    for _ in range(5000):
        digest.observe(0.010)
    assert digest.value() == pytest.approx(0.010, rel=0.1)


def test_its_size_and_counts_are_bounded():
    digest = LatencyDigest(0.95)
    for i in range(10_000):
        digest.observe(10.0 ** (i % 12 - 6))
    assert digest._total <= 1000
    assert len(digest._counts) == 144
    assert sum(digest._counts) == digest._total


@pytest.mark.parametrize("extreme", [0.0, 1e-9, 1e-4, 1e6])
def test_extremes_fall_into_the_outer_buckets(extreme):
    digest = LatencyDigest(0.5)
    for _ in range(20):
        digest.observe(extreme)
    assert 1e-4 <= digest.value() <= 1e-4 * 2**18
