"""The formulas of availability: by hand, against a simulation of single copies, and what must hold of them always."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haclient.planning.availability import Behaviour, downtime, stationary
from haclient.planning.options import Setting, needed, options

HOUR = 3600.0
PERFECT = Behaviour(mtbf_s=10 * HOUR, mttr_s=HOUR)


def simulated(behaviour: Behaviour, copies: int, needed: int, *, events: int, seed: int) -> dict[str, float]:
    """Play it, each copy by itself: which are up, on which the calls lean, and who has noticed."""
    rng = random.Random(seed)
    up, leaned = [True] * copies, list(range(needed))
    shared = unnoticed = False
    spent = dict.fromkeys(("too_few", "common", "unnoticed", "failover", "up"), 0.0)
    alone, common = (1 - behaviour.beta) / behaviour.mtbf_s, behaviour.beta / behaviour.mtbf_s
    for _ in range(events):
        down = [i for i in leaned if not up[i]]
        spare = [i for i in range(copies) if up[i] and i not in leaned]
        unnoticed = unnoticed and bool(down)
        if shared:
            clocks = [(1 / behaviour.mttr_s, "restored", -1)]
            where = "common"
        else:
            clocks = [(alone, "fails", i) for i in range(copies) if up[i]]
            clocks += [(1 / behaviour.mttr_s, "repaired", i) for i in range(copies) if not up[i]]
            clocks += [(common, "shared", -1)] if any(up) else []
            switch = bool(down) and not unnoticed and len(spare) >= len(down)
            clocks += [(1 / behaviour.rto_s, "switched", -1)] if switch else []
            where = "up" if not down else "too_few" if sum(up) < needed else "unnoticed" if unnoticed else "failover"
        spent[where] += rng.expovariate(sum(rate for rate, _, _ in clocks))
        _, what, i = rng.choices(clocks, [rate for rate, _, _ in clocks])[0]
        match what:
            case "fails":
                up[i] = False
                unnoticed = unnoticed or (i in leaned and rng.random() >= behaviour.coverage)
            case "repaired":
                up[i] = True
            case "shared":
                shared = True
            case "restored":
                shared, up, unnoticed = False, [True] * copies, False
            case "switched":
                leaned = [i for i in leaned if up[i]] + spare[: len(down)]
    whole = sum(spent.values())
    return {name: time / whole for name, time in spent.items()}


@pytest.mark.parametrize(("copies", "need"), [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (5, 3)], ids=str)
def test_simulation(copies, need):
    """Every part of the downtime is what a simulation of single copies spends in it."""
    harsh = Behaviour(mtbf_s=5 * HOUR, mttr_s=HOUR, beta=0.15, coverage=0.8, rto_s=0.2 * HOUR)
    worked_out, played = downtime(harsh, copies, need), simulated(harsh, copies, need, events=80_000, seed=copies)
    for part in ("too_few", "common", "unnoticed", "failover"):
        assert getattr(worked_out, part) == pytest.approx(played[part], rel=0.06, abs=0.002), part
    assert worked_out.total == pytest.approx(1 - played["up"], rel=0.03)


def test_one_copy_by_hand():
    """MTTR / (MTBF + MTTR), whatever is said of failover and shared causes."""
    for beta, coverage in ((0.0, 1.0), (0.3, 0.5), (1.0, 0.0)):
        assert downtime(replace(PERFECT, beta=beta, coverage=coverage), 1).total == pytest.approx(1 / 11)


def test_independent_copies_by_hand():
    """Failover in no time, no shared cause: the share of time in which fewer than needed are up, a binomial sum."""
    q = 1 / 11
    assert downtime(PERFECT, 2).total == pytest.approx(q**2)
    assert downtime(PERFECT, 3).total == pytest.approx(q**3)
    assert downtime(PERFECT, 3, 2).total == pytest.approx(3 * q**2 * (1 - q) + q**3)
    assert downtime(PERFECT, 3, 3).total == pytest.approx(1 - (1 - q) ** 3)


def test_a_failover_costs_its_time():
    """With rare failures, each costs the RTO: failures a second times seconds."""
    behaviour = Behaviour(mtbf_s=1e7, mttr_s=600.0, rto_s=2.0)
    found = downtime(behaviour, 2)
    assert found.failover == pytest.approx(2.0 / 1e7, rel=0.01)
    assert found.largest == "failover"


def test_what_nobody_notices_costs_a_repair():
    """With rare failures, a share of 1 - coverage of them costs the MTTR."""
    found = downtime(Behaviour(mtbf_s=1e7, mttr_s=600.0, coverage=0.9), 2)
    assert found.unnoticed == pytest.approx(0.1 * 600.0 / 1e7, rel=0.01)


def test_shared_causes_bound_what_copies_can_do():
    """Beyond the second copy next to nothing is gained: what is left is beta * MTTR / MTBF."""
    behaviour = Behaviour(mtbf_s=30 * 24 * HOUR, mttr_s=300.0, beta=0.05)
    two, three = downtime(behaviour, 2), downtime(behaviour, 3)
    assert three.total == pytest.approx(0.05 * 300 / behaviour.mtbf_s, rel=0.001)
    assert three.nines - two.nines < 0.01
    assert three.largest == "common"


def test_small_shares_are_exact():
    """Nine copies that hardly ever fail: 1e-45 is not rounded away, as it would be in 1 minus what is up."""
    q = 1e-5 / (1 + 1e-5)
    assert downtime(Behaviour(mtbf_s=1e5, mttr_s=1.0), 9).too_few == pytest.approx(q**9, rel=1e-5, abs=0.0)


def test_stationary_is_the_null_vector():
    """Against numpy's least squares, on chains drawn at random."""
    rng = np.random.default_rng(7)
    for size in (2, 5, 9):
        rates = rng.random((size, size))
        np.fill_diagonal(rates, 0.0)
        found = stationary({i: {j: rates[i, j] for j in range(size) if i != j} for i in range(size)})
        generator = np.vstack([(rates - np.diag(rates.sum(axis=1))).T, np.ones(size)])
        wanted = np.linalg.lstsq(generator, np.append(np.zeros(size), 1.0))[0]
        assert [found[i] for i in range(size)] == pytest.approx(wanted)


behaviours = st.builds(
    Behaviour,
    mtbf_s=st.floats(1e4, 1e8),
    mttr_s=st.floats(10.0, 1e4),
    beta=st.floats(0.0, 1.0),
    coverage=st.floats(0.0, 1.0),
    rto_s=st.floats(0.0, 100.0),
)
#: Rounding.
SLACK = 1 + 1e-9


@settings(max_examples=50)
@given(behaviours, st.integers(1, 6))
def test_another_copy_never_hurts_reads(behaviour, copies):
    """Whatever else is true."""
    assert downtime(behaviour, copies + 1).total <= downtime(behaviour, copies).total * SLACK


@settings(max_examples=50)
@given(behaviours, st.integers(1, 5), st.data())
def test_more_needed_is_worse(behaviour, copies, data):
    """A call that needs more copies fails more often."""
    need = data.draw(st.integers(0, copies - 1))
    assert downtime(behaviour, copies, need).total <= downtime(behaviour, copies, need + 1).total * SLACK


@settings(max_examples=50)
@given(behaviours, st.integers(1, 5), st.floats(1.0, 10.0))
def test_worse_copies_are_worse(behaviour, copies, factor):
    """Slower repair, more failures, slower failover or less coverage never help."""
    found = downtime(behaviour, copies).total
    for worse in (
        replace(behaviour, mttr_s=behaviour.mttr_s * factor),
        replace(behaviour, mtbf_s=behaviour.mtbf_s / factor),
        replace(behaviour, rto_s=behaviour.rto_s * factor),
        replace(behaviour, coverage=behaviour.coverage / factor),
    ):
        assert found <= downtime(worse, copies).total * SLACK


@settings(max_examples=50)
@given(behaviours, st.integers(1, 6))
def test_all_causes_shared_is_one_copy(behaviour, copies):
    """With beta 1 any number of copies is as good as one."""
    shared = replace(behaviour, beta=1.0)
    assert downtime(shared, copies).total == pytest.approx(downtime(behaviour, 1).total)


@settings(max_examples=50)
@given(behaviours, st.integers(1, 6), st.data())
def test_parts_are_the_whole(behaviour, copies, data):
    """No part is negative, and availability and downtime are 1 together."""
    found = downtime(behaviour, copies, data.draw(st.integers(0, copies)))
    assert 0.0 <= found.total < 1.0
    assert min(found.too_few, found.common, found.unnoticed, found.failover, found.log) >= 0.0


@pytest.mark.parametrize(
    "wrong", [{"mtbf_s": 0}, {"mttr_s": -1}, {"beta": 1.1}, {"coverage": -0.1}, {"rto_s": float("inf")}]
)
def test_wrong_behaviour(wrong):
    """It is refused by name."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(PERFECT, **wrong)


@pytest.mark.parametrize(("copies", "need"), [(0, 0), (2, 3), (2, -1)])
def test_wrong_numbers_of_copies(copies, need):
    """More than there are cannot be needed."""
    with pytest.raises(ValueError, match="needed"):
        downtime(PERFECT, copies, need)


# What a number of copies gives.

SETTING = Setting(reads=replace(PERFECT, rto_s=1.0), write_rto_s=5.0, log=Behaviour(mtbf_s=1e6, mttr_s=10.0))


def test_needed():
    """As many as the level asks for: see docs/replication.md."""
    assert [needed("quorum", n) for n in (1, 2, 3, 4, 5)] == [1, 2, 2, 3, 3]
    assert (needed("log", 3), needed("one", 3), needed("all", 3)) == (0, 1, 3)


def test_one_copy_needs_no_log():
    """It is written to directly, so its writes are as available as its reads."""
    one = options(SETTING, 1)[0]
    assert one.writes == one.reads
    assert one.writes.log == 0.0


def test_the_log_is_in_series():
    """A write needs the log and the copies: both must be up."""
    two = options(SETTING, 2)[1]
    copies = downtime(replace(SETTING.reads, rto_s=5.0), 2)
    log = 10.0 / (1e6 + 10.0)
    assert two.writes.availability == pytest.approx(copies.availability * (1 - log))
    assert two.writes.log == pytest.approx(log * copies.availability)


def test_levels_in_order():
    """Writes at log are better than at one, than at quorum, than at all; quorum of two copies is all of them."""
    found = {ack: options(replace(SETTING, ack=ack), 3) for ack in ("log", "one", "quorum", "all")}
    totals = [found[ack][2].writes.total for ack in ("log", "one", "quorum", "all")]
    assert totals == sorted(totals)
    assert len(set(totals)) == 4
    assert found["quorum"][1].writes == found["all"][1].writes
    assert found["quorum"][1].writes.total > found["quorum"][0].writes.total, "worse than one copy"


def test_three_members_beat_one_disk():
    """Etcd's log is down when two members are, and for an election when one is."""
    etcd = options(replace(SETTING, engine="etcd"), 2)[1].writes
    disk = options(SETTING, 2)[1].writes
    q = 10.0 / (1e6 + 10.0)
    assert etcd.log == pytest.approx((3 * q**2 + 2 * 1.0 / 1e6) * etcd.availability, rel=0.2)
    assert etcd.log < disk.log


def test_cost_of_each_nine():
    """What a copy costs, by the nines that it adds."""
    one, two = options(replace(SETTING, cost_per_copy=400.0), 2)
    assert (one.cost, one.cost_per_nine, two.cost) == (400.0, None, 800.0)
    assert two.cost_per_nine == pytest.approx(400.0 / (two.reads.nines - one.reads.nines))
    shared = replace(SETTING, cost_per_copy=400.0, reads=replace(SETTING.reads, beta=1.0))
    third = options(shared, 3)[2]
    assert third.cost_per_nine is None or third.cost_per_nine > 1e9, "nothing is gained"
