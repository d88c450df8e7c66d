"""Questions and options that are wrong are refused before anything is sent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from haclient.errors import BadQuery, ConfigError
from haclient.retrieval.options import MOST, RRF, Options, Weighted, checked_query
from haclient.retrieval.score import higher_is_better, most_diverse

GOOD = {
    "k": 4,
    "mode": "dense",
    "filter": "",
    "output_fields": (),
    "partitions": (),
    "consistency": "",
    "threshold": None,
    "mmr": None,
    "candidates": 4,
    "ranker": RRF(),
}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("k", 0, "k must be a whole number from 1"),
        ("k", -3, "got -3"),
        ("k", MOST + 1, "16,384"),
        ("k", 2.0, "whole number"),
        ("k", True, "whole number"),
        ("candidates", 3, "must not be fewer than k"),
        ("candidates", MOST + 1, "16,384"),
        ("mode", "dens", "dense, sparse, hybrid"),
        ("consistency", "strong", "Strong, Session, Bounded, Eventually"),
        ("filter", None, "Milvus expression"),
        ("threshold", math.nan, "finite"),
        ("mmr", 1.5, "from 0"),
    ],
)
def test_wrong_options_say_what_is_wrong(name, value, says):
    with pytest.raises(BadQuery, match=says):
        Options(**{**GOOD, name: value})


def test_good_options_are_found_again_by_their_value():
    assert Options(**GOOD) == Options(**GOOD)
    assert len({Options(**GOOD), Options(**GOOD), Options(**{**GOOD, "mmr": 0.5})}) == 2


@pytest.mark.parametrize("wrong", [lambda: RRF(0), lambda: Weighted(1.2, 0.3), lambda: Weighted(0.5, math.nan)])
def test_rankers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be"):
        wrong()


@pytest.mark.parametrize("empty", ["", "  \n\t"])
def test_an_empty_question_is_refused(empty):
    with pytest.raises(BadQuery, match="empty"):
        checked_query(empty, 2)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ([1.0], r"shape \(1,\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([1.0, math.nan], "NaN"),
        (np.array([1.0, np.inf]), "infinity"),
        (["a", "b"], "text or a vector"),
        (None, "shape"),
        ({"a": 1}, "text or a vector"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(query, says):
    with pytest.raises(BadQuery, match=says):
        checked_query(query, 2)


def test_large_numbers_are_not_taken_for_infinity():
    assert checked_query([3e38, -3e38], 2).tolist() == np.array([3e38, -3e38], np.float32).tolist()


def test_scores_are_higher_the_better_whatever_the_metric():
    for metric in ("COSINE", "IP", ""):
        assert higher_is_better(metric)(0.25) == 0.25
    for metric in ("L2", "HAMMING", "l2"):
        assert higher_is_better(metric)(0.25) == -0.25
    assert higher_is_better("BM25")(-1.5) == higher_is_better("BM25")(1.5) == 1.5


CANDIDATES = np.array([[1.0, 0.0], [0.999, 0.02], [0.7, 0.7], [0.0, 1.0]], dtype=np.float32)


@pytest.mark.parametrize(("relevance", "chosen"), [(1.0, [0, 1]), (0.3, [0, 3]), (0.0, [0, 3])])
def test_mmr_weighs_being_relevant_against_being_new(relevance, chosen):
    assert most_diverse(np.array([5.0, 0.0], np.float32), CANDIDATES, 2, relevance) == chosen


def test_mmr_chooses_no_more_than_there_are_and_none_twice():
    chosen = most_diverse(np.array([1.0, 0.0], np.float32), CANDIDATES, 10, 0.5)
    assert sorted(chosen) == [0, 1, 2, 3]
