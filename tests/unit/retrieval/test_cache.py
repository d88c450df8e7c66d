"""Answers given before: exact or near-duplicate question, bounded by size, age and similarity."""

from __future__ import annotations

import numpy as np
import pytest

from haclient.errors import ConfigError
from haclient.retrieval import AnswerCache, Document, Documents, Freshness, Rung


def answer(text: str) -> Documents:
    return Documents([Document(1, text, 0.5, {})], source="a/a1", freshness=Freshness("Bounded"))


def unit(degrees: float) -> np.ndarray:
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], dtype=np.float32)


def test_the_same_question_is_found_and_marked():
    cache = AnswerCache()
    cache.keep("scope", "what?", unit(0), answer("yes"), 100.0)
    found = cache.find("scope", "what?", None, 130.0)
    assert found is not None
    assert found[0].text == "yes"
    assert (found.rung, found.source, found.similarity) == (Rung.CACHED, "a/a1", 1.0)
    assert found.freshness == Freshness("Bounded", age_s=30.0, stale=True)


def test_a_question_asked_with_other_options_is_another_one():
    cache = AnswerCache()
    cache.keep(("k", 4), "what?", unit(0), answer("yes"), 0.0)
    assert cache.find(("k", 5), "what?", unit(0), 0.0) is None


def test_a_near_duplicate_will_do_and_says_how_near():
    cache = AnswerCache(similarity=0.97)
    cache.keep("s", "one", 3.0 * unit(0), answer("one"), 0.0)
    cache.keep("s", "two", unit(20), answer("two"), 0.0)
    found = cache.find("s", "another", 0.1 * unit(8), 0.0)
    assert found is not None
    assert found[0].text == "one"
    assert found.similarity == pytest.approx(np.cos(np.radians(8)), abs=1e-6)
    assert cache.find("s", "another", unit(55), 0.0) is None


def test_with_similarity_one_only_the_same_words_count():
    cache = AnswerCache(similarity=1.0)
    cache.keep("s", "one", unit(0), answer("one"), 0.0)
    assert cache.find("s", "other", unit(0), 0.0) is None


def test_old_answers_are_not_given():
    cache = AnswerCache(max_age_s=60.0)
    cache.keep("s", "one", unit(0), answer("one"), 0.0)
    assert cache.find("s", "one", None, 60.0) is not None
    assert cache.find("s", "one", None, 60.1) is None
    assert cache.find("s", "near", unit(0), 60.1) is None


def test_the_least_recently_used_goes_first():
    cache = AnswerCache(size=2)
    for name in ("a", "b"):
        cache.keep("s", name, None, answer(name), 0.0)
    assert cache.find("s", "a", None, 0.0) is not None
    cache.keep("s", "c", None, answer("c"), 0.0)
    assert [cache.find("s", name, None, 0.0) is not None for name in "abc"] == [True, False, True]
    assert len(cache) == 2


def test_a_question_without_a_direction_is_like_no_other():
    cache = AnswerCache()
    cache.keep("s", "zero", np.zeros(2, dtype=np.float32), answer("zero"), 0.0)
    cache.keep("s", "one", unit(0), answer("one"), 0.0)
    assert cache.find("s", "other", np.zeros(2, dtype=np.float32), 0.0) is None


@pytest.mark.parametrize("wrong", [{"size": 0}, {"max_age_s": 0.0}, {"similarity": 0.0}, {"similarity": 1.1}])
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AnswerCache(**wrong)
