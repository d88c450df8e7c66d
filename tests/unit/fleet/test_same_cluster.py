"""Which endpoints are one cluster: the index against the definition, and what it costs."""

import itertools
import random

import pytest

from haclient.fleet import identity
from haclient.fleet.identity import compare, same, strangers

PROOF = 1 << 50


class Bag:
    """A cluster or a node, as far as this goes."""

    def __init__(self, **fields):
        vars(self).update(fields)


def node(cluster, catalogue, met_at=0.0):
    one = Bag(catalogue=catalogue, cluster=cluster, refused="", met_at=met_at)
    cluster.nodes.append(one)
    return one


def clusters(rng, count, nodes):
    made = [Bag(nodes=[]) for _ in range(count)]
    for cluster, _ in itertools.product(made, range(nodes)):
        keys = rng.sample(range(4), rng.randint(0, 3))
        node(cluster, {("", f"c{k}"): rng.choice([7, PROOF + k, PROOF + 10 + k]) for k in keys}, rng.random())
    return made


@pytest.mark.parametrize("seed", range(300))
def test_the_index_finds_what_comparing_all_pairs_finds(seed):
    rng = random.Random(seed)
    made = clusters(rng, rng.randint(1, 4), rng.randint(1, 3))

    def alike(one, other):
        return any(compare(a.catalogue, b.catalogue) for a in one.nodes for b in other.nodes)

    found = same(made)
    pairs = [(a, b) for a, b in itertools.combinations(made, 2) if alike(a, b)]
    assert (found in pairs) if pairs else (found is None)
    for cluster in made:
        known = sorted((n for n in cluster.nodes if n.catalogue), key=lambda n: n.met_at)
        accepted, naive = [], []
        for n in known:
            # Each collection is as the endpoint met first says.
            first = {}
            for o in accepted:
                first = {**{k: v for k, v in o.catalogue.items() if v != 7}, **first}
            (naive if compare(n.catalogue, first) is False else accepted).append(n)
        odd = list(strangers(cluster))
        assert all(o.met_at < n.met_at for n, o in odd)
        assert [n for n, _ in odd] == naive


def test_a_thousand_different_clusters_are_not_compared_pair_by_pair(monkeypatch):
    monkeypatch.setattr(identity, "compare", lambda *_: pytest.fail("it compared"))
    made = [Bag(nodes=[]) for _ in range(1000)]
    for i, cluster in enumerate(made):
        node(cluster, {("", "docs"): PROOF + i})
    assert same(made) is None
