"""Which endpoint takes a call: load, tiers, pins, panic, and what a pick costs."""

import random
import statistics
from collections import Counter

import pytest

from haclient.config import Breaker
from haclient.fleet import balancer as module
from haclient.fleet.balancer import Balancer
from haclient.fleet.breaker import HALF_OPEN, OPEN, REFUSED, Gate
from haclient.fleet.node import Cluster, Node, PeakEwma
from tests.unit.fleet.fleet_fakes import Clock, cluster, read_call

KEY = ("", "docs")


class Bench:
    """Nodes a0, a1, … without transports; a cluster per node unless told otherwise."""

    def __init__(self, *clusters, zone="", seed=7, breaker=None):
        self.clock = Clock()
        self.nodes = []
        for config in clusters:
            owner = Cluster(config)
            for endpoint in config.endpoints:
                gate = Gate(endpoint.name, breaker or Breaker(), self.clock, lambda *_: self.balancer.changed())
                node = Node(endpoint.name, endpoint.address, owner, None, None, gate)
                node.found = True
                owner.nodes.append(node)
                self.nodes.append(node)
        self.balancer = Balancer(lambda: iter(self.nodes), zone, self.clock, random.Random(seed))

    def __getitem__(self, name):
        return next(n for n in self.nodes if n.name == name)

    def pick(self, *tried, **fields):
        return self.balancer.pick(read_call(**fields), tuple(self[name] for name in tried))

    def shares(self, count=2000, *tried, **fields):
        return Counter(self.pick(*tried, **fields)[0].name for _ in range(count))

    def names(self, count=200, *tried, **fields):
        return set(self.shares(count, *tried, **fields))


def several(count, **more):
    return [cluster(f"c{i}", f"a{i}", **more) for i in range(count)]


# Latency.


def test_bad_news_is_believed_at_once_good_news_slowly():
    ewma = PeakEwma()
    ewma.observe(0.010, 0.0)
    ewma.observe(0.500, 1.0)
    assert ewma.value == 0.5
    ewma.observe(0.010, 1.1)
    assert 0.45 < ewma.value < 0.5
    ewma.observe(0.010, 60.0)
    assert ewma.value == pytest.approx(0.010, rel=0.2)


def test_the_first_sample_replaces_the_guess_even_if_it_is_lower():
    ewma = PeakEwma()
    assert not ewma.seen
    ewma.observe(1e-5, 0.0)
    assert ewma.value == 1e-5


def test_an_attempt_given_up_raises_the_latency_and_never_lowers_it():
    ewma = PeakEwma()
    ewma.observe(0.2, 0.0)
    ewma.at_least(0.001, 1.0)
    assert ewma.value == 0.2
    ewma.at_least(0.9, 2.0)
    assert ewma.value >= 0.9


def test_the_mean_is_right_although_slow_attempts_are_given_up():
    """Answers take 100 ms on average, and nobody waits longer than 20 ms: answers alone would say 9 ms."""
    rng = random.Random(3)
    ewma, means = PeakEwma(), []
    for i in range(2000):
        takes = rng.expovariate(1 / 0.1)
        if takes < 0.02:
            ewma.observe(takes, i * 0.05)
        else:
            ewma.at_least(0.02, i * 0.05)
        means.append(ewma.mean)
    assert statistics.median(means[100:]) == pytest.approx(0.1, rel=0.15)
    assert ewma.value >= ewma.mean * 0.8


def test_an_endpoint_that_faded_and_is_still_slow_is_not_asked_again_at_once():
    b = Bench(*several(1))
    node = b.nodes[0]
    node.latency.observe(1.0, b.clock.now)
    b.clock.now += 40.0
    assert node.load(b.clock.now) < 0.05
    node.latency.at_least(0.02, b.clock.now)
    assert node.load(b.clock.now) >= 1.0


def test_load_grows_with_calls_in_flight_and_shrinks_with_weight():
    b = Bench(cluster("x", "a"), cluster("y", "b", weight=2.0))
    for node in b.nodes:
        node.latency.observe(0.1, b.clock.now)
    a, heavy = b.nodes
    assert a.load(b.clock.now) == pytest.approx(0.1)
    assert heavy.load(b.clock.now) == pytest.approx(0.05)
    a.flights.update({object(), object()})
    assert a.load(b.clock.now) == pytest.approx(0.3)


def test_an_idle_endpoints_latency_fades_so_that_it_is_asked_again():
    b = Bench(*several(1))
    node = b.nodes[0]
    node.latency.observe(2.0, b.clock.now)
    fresh = node.load(b.clock.now)
    assert fresh / 4 < node.load(b.clock.now + 5) < fresh * 3 / 4
    assert 0 < node.load(b.clock.now + 10) < 0.01
    assert 0 < node.load(b.clock.now + 1000) < 0.01


def test_slow_start_ramps_up():
    b = Bench(*several(1))
    node = b.nodes[0]
    node.latency.observe(0.1, b.clock.now)
    node.joined_at, node.ramp_s = b.clock.now, 10.0
    loads = []
    for _ in range(5):
        node.latency.at = b.clock.now
        loads.append(node.load(b.clock.now))
        b.clock.now += 2.5
    assert loads == sorted(loads, reverse=True)
    assert loads[0] == pytest.approx(0.1 / 0.05)
    assert loads[-1] == pytest.approx(0.1)


# Choosing.


def test_two_choices_prefer_the_lower_load():
    b = Bench(*several(3))
    for node, latency in zip(b.nodes, (0.01, 0.02, 0.2), strict=True):
        node.latency.observe(latency, b.clock.now)
    shares = b.shares(3000)
    assert shares["a0"] == pytest.approx(2000, rel=0.1)  # it wins whenever it is drawn: 2 of 3 pairs
    assert shares["a1"] == pytest.approx(1000, rel=0.15)
    assert shares["a2"] == 0


def test_equals_share_equally():
    shares = Bench(*several(2)).shares(4000)
    assert shares["a0"] == pytest.approx(2000, rel=0.1)
    shares = Bench(*several(5)).shares(5000)
    assert all(n == pytest.approx(1000, rel=0.2) for n in shares.values())
    assert len(shares) == 5


def test_the_same_seed_picks_the_same():
    assert [Bench(*several(5), seed=3).pick()[0].name for _ in range(3)] == [
        Bench(*several(5), seed=3).pick()[0].name for _ in range(3)
    ]
    one, two = Bench(*several(5), seed=3), Bench(*several(5), seed=3)
    assert [one.pick()[0].name for _ in range(50)] == [two.pick()[0].name for _ in range(50)]


# Tiers.


def test_a_healthy_endpoint_comes_before_every_other_kind():
    b = Bench(*several(4))
    b["a0"].gate.open("x")
    b["a1"].ready[KEY] = False
    b["a2"].preferred_at = b.clock.now + 5
    b.balancer.changed()
    assert b.names() == {"a3"}
    assert b.names(200, "a3") == {"a2"}
    assert b.names(200, "a3", "a2") == {"a1"}
    assert b.pick("a3", "a2", "a1") == (b["a0"], REFUSED)


def test_health_comes_before_priority_and_priority_before_zone():
    b = Bench(
        cluster("near-low", "a", priority=1, zone="z"),
        cluster("far-high", "b", priority=0, zone="y"),
        cluster("near-high", "c", priority=0, zone="z"),
        zone="z",
    )
    assert b.names() == {"c"}
    assert b.names(200, "c") == {"b"}
    assert b.names(200, "c", "b") == {"a"}
    b["c"].gate.open("x")
    assert b.names() == {"b"}
    b["b"].gate.open("x")
    assert b.names() == {"a"}


def test_without_a_zone_of_its_own_zones_do_not_matter():
    b = Bench(cluster("x", "a", zone="y"), cluster("y", "b", zone="z"))
    assert b.names() == {"a", "b"}


def test_unready_for_one_collection_is_ready_for_another():
    b = Bench(*several(2))
    b["a0"].ready[KEY] = False
    b.balancer.changed()
    assert b.names() == {"a1"}
    assert b.names(collection="other") == {"a0", "a1"}


def test_failback_waits_for_the_dwell_to_end_by_itself():
    b = Bench(cluster("x", "a", priority=0), cluster("y", "b", priority=1))
    b["a"].preferred_at = b.clock.now + 10
    b.balancer.changed()
    assert b.names() == {"b"}
    b.clock.now += 9.99
    assert b.names() == {"b"}
    b.clock.now += 0.02
    assert b.names() == {"a"}


def test_a_quota_block_ends_by_itself():
    b = Bench(*several(2))
    b["a0"].cluster.blocked_until = b.clock.now + 1
    b.balancer.changed()
    assert b.names() == {"a1"}
    b.clock.now += 1.01
    assert b.names() == {"a0", "a1"}


@pytest.mark.parametrize("mark", ["drained", "refused"])
def test_what_is_drained_or_refused_is_never_picked(mark):
    b = Bench(*several(2))
    setattr(b["a0"], mark, "yes")
    b.balancer.changed()
    assert b.names() == {"a1"}
    b["a1"].gate.open("x")
    assert b.names() == {"a1"}
    setattr(b["a1"], mark, "yes")
    b.balancer.changed()
    assert b.pick() is None


def test_when_all_are_down_something_is_tried_all_the_same():
    b = Bench(*several(3))
    for node in b.nodes:
        node.gate.open("x")
    assert b.names() == {"a0", "a1", "a2"}
    assert b.pick()[1] == REFUSED
    assert b.names(100, "a0", "a1") == {"a2"}


def test_when_all_are_down_what_is_merely_slow_goes_first():
    b = Bench(*several(3))
    for node in b.nodes:
        node.gate.open("dead")
    b["a1"].gate.open("slow", slow=True)
    assert b.names() == {"a1"}
    assert b.pick("a1")[0].name in ("a0", "a2")
    b["a1"].gate.open("it does not answer any more")
    assert b.names() == {"a0", "a1", "a2"}


def test_when_all_were_tried_the_best_is_tried_again():
    b = Bench(*several(2))
    b["a1"].gate.open("x")
    assert b.pick("a0", "a1")[0].name == "a0"


def test_an_untried_endpoint_that_is_down_is_a_last_resort_before_a_repetition():
    b = Bench(*several(2))
    b["a1"].gate.open("x")
    assert b.pick("a0") == (b["a1"], REFUSED)


def test_an_endpoint_on_trial_takes_its_permits_and_no_more():
    b = Bench(*several(2), breaker=Breaker(trial_permits=2))
    for node in b.nodes:
        node.gate.open("x")
    b.clock.now += 60
    assert b["a0"].gate.try_half_open()
    b.balancer.changed()
    taken = [b.pick() for _ in range(4)]
    assert [(n.name, p != REFUSED) for n, p in taken[:2]] == [("a0", True)] * 2
    assert all(p == REFUSED for _, p in taken[2:])
    assert b["a0"].gate.state == HALF_OPEN
    assert b["a1"].gate.state == OPEN


def test_a_pinned_call_stays_in_its_cluster():
    b = Bench(cluster("x", "a", "b"), cluster("y", "c"))
    assert b.names(pin="x") == {"a", "b"}
    assert b.pick("a", pin="x")[0].name == "b"
    assert b.pick("a", "b", pin="x")[0].name in "ab"
    b["a"].drained = b["b"].drained = True
    b.balancer.changed()
    assert b.pick(pin="x") is None


# Cost and bounds.


@pytest.mark.parametrize("count", [2, 10, 1000])
def test_a_pick_looks_at_two_endpoints_however_many_there_are(count, monkeypatch):
    b = Bench(*several(count))
    b.pick()
    looked = []
    monkeypatch.setattr(Node, "load", lambda self, now: looked.append(self) or 1.0)
    listed = []
    b.balancer._nodes = lambda: listed.append(1) or iter(b.nodes)
    for _ in range(100):
        b.pick()
    assert len(looked) == 200
    assert not listed


def test_the_cache_of_collections_is_bounded_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(module, "_MOST_KEYS", 3)
    b = Bench(*several(1))
    for i in range(10):
        b.clock.now += 1
        b.pick(collection=f"k{i}")
        b.pick(collection="k0")
    assert len(b.balancer._entries) == 3
    assert ("", "k0") in b.balancer._entries
    assert ("", "k9") in b.balancer._entries


def test_collections_in_use_are_those_asked_for_lately():
    b = Bench(*several(1))
    b.pick(collection="old")
    b.clock.now += 100
    b.pick(collection="new")
    b.pick(collection="")
    assert b.balancer.collections(b.clock.now - 50) == [("", "new")]
    assert sorted(b.balancer.collections(b.clock.now - 200)) == [("", "new"), ("", "old")]
