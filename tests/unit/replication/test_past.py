"""What a session remembers, and how it takes it along."""

import random

import pytest

from haclient.replication import past as module
from haclient.replication.log import BARRIER
from haclient.replication.past import SESSION, Kept, Past, joined, mark

DOCS, OTHER = ("", "docs"), ("db", "other")


def test_what_it_has_written():
    past = Past()
    assert past.written(DOCS) == past.written(BARRIER) == 0
    for stream, seq in ((DOCS, 5), (BARRIER, 3), (DOCS, 4)):
        past.wrote(stream, seq)
    assert [past.written(one) for one in (DOCS, BARRIER, OTHER)] == [5, 3, 0]
    assert dict(past.all_written()) == {DOCS: 5, BARRIER: 3}


def test_what_is_forgotten_counts_for_more_not_for_less(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 2)
    past = Past()
    for seq, name in enumerate("abcd", 1):
        past.wrote(("", name), seq)
        past.saw(("", name), f"cluster {name}", float(seq))
    assert [past.written(("", name)) for name in "abcd"] == [2, 2, 3, 4]
    assert past.sight(("", "d")) == (mark("cluster d"), 4.0)
    forgotten = past.sight(("", "a"))
    assert forgotten is not None
    assert forgotten.at >= 1.0
    assert forgotten.cluster not in {mark(f"cluster {name}") for name in "abcd"}, "no cluster is sure to have it all"
    past.wrote(BARRIER, 9)
    assert past.written(BARRIER) == 9


def test_a_token_takes_it_along():
    past = Past()
    past.wrote(DOCS, 5)
    past.wrote(OTHER, 8)
    past.wrote(BARRIER, 3)
    past.saw(DOCS, "a", 1.0)
    text = past.token(DOCS, DOCS)
    assert len(text) <= 32
    assert text.isascii()
    assert "a" not in Past().token(DOCS, DOCS).strip("A"), "names are not in it"
    there = Past.of(text, 100.0)
    assert there is not None
    assert (there.written(DOCS), there.written(BARRIER)) == (5, 3)
    assert there.sight(DOCS) == (mark("a"), 100.0), "more may have been seen until it arrived"
    nothing = Past.of(Past().token(DOCS, DOCS), 100.0)
    assert nothing is not None
    assert nothing.sight(DOCS) is None


def test_garbage_is_no_token():
    rng = random.Random(1)
    past = Past()
    past.wrote(DOCS, 5)
    text = past.token(DOCS, DOCS)
    for _ in range(500):
        broken = list(text)
        broken[rng.randrange(len(text))] = rng.choice("ABCxyz019-_=é\0")
        found = Past.of("".join(broken), 0.0)
        assert "".join(broken) == text or found is None
    for other in ("", "A" * 32, text[:-1], text * 2, "haclient"):
        assert Past.of(other, 0.0) is None


@pytest.mark.parametrize("clusters", [("a", "a"), ("a", "b"), ("a", None), (None, None)])
def test_two_tokens_become_one(clusters):
    pasts = [Past(), Past()]
    for seq, (past, cluster) in enumerate(zip(pasts, clusters, strict=True), 1):
        past.wrote(DOCS, seq)
        if cluster is not None:
            past.saw(DOCS, cluster, 1.0)
    one, other = (past.token(DOCS, DOCS) for past in pasts)
    both = Past.of(joined(one, other), 2.0)
    assert both is not None
    assert both.written(DOCS) == 2
    sight = both.sight(DOCS)
    if clusters == (None, None):
        assert sight is None
    else:
        assert sight is not None
        assert (sight.cluster == mark("a")) is ("b" not in clusters)
    assert joined(one, "rubbish") == joined("rubbish", one) == joined("", one) == one


def test_a_client_of_proxies_hands_the_newest_on():
    kept = Kept()
    assert not kept.tokens
    kept.keep("", "docs", (("x", "1"),))
    assert not kept.tokens
    past = Past()
    past.wrote(DOCS, 5)
    text = past.token(DOCS, DOCS)
    kept.keep("", "docs", (("x", "1"), (SESSION, text)))
    assert kept.add("", "docs", (("y", "2"),)) == (("y", "2"), (SESSION, text))
    assert kept.add("", "", ()) == ((SESSION, text),), "lists must show what it has made"
    assert kept.add("", "others", ()) == ()
    assert kept.add("", "docs", ((SESSION, "own"),)) == ((SESSION, "own"),)
    kept.keep("", "docs", ((SESSION, "rubbish"),))
    assert kept.add("", "docs", ()) == ((SESSION, text),)
