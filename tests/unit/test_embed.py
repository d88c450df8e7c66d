"""The embedder of hashed words: the same everywhere, and good enough to find the right topic."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from haclient.drill.corpus import QUESTIONS, read_corpus
from haclient.errors import ConfigError
from haclient.retrieval.embed import Embedder, HashingEmbedder, SentenceTransformerEmbedder, Vectors

TEXTS = ["The try statement specifies exception handlers.", "A list is a mutable sequence.", "naïve café, x += 1"]


def fingerprint(vectors: Vectors) -> str:
    return hashlib.sha256(np.round(vectors, 4).astype("<f4").tobytes()).hexdigest()[:16]


def test_shape_and_length() -> None:
    """One row of float32 and length 1 per text; a text without words is the zero vector, no text is no row."""
    embedder: Embedder = HashingEmbedder(64)
    vectors = embedder.embed([*TEXTS, ""])
    assert vectors.shape == (4, embedder.dimension) == (4, 64)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert embedder.embed([]).shape == (0, 64)


def test_known_vectors() -> None:
    """Vectors do not change between versions, or stored ones would no longer be found."""
    assert fingerprint(HashingEmbedder().embed(TEXTS)) == "9eeb270417507d8c"
    assert fingerprint(HashingEmbedder().fit(TEXTS).embed(TEXTS)) == "9eeb270417507d8c"


def test_same_in_every_process() -> None:
    """Python's random string hashes do not come in."""
    code = (
        "from haclient.retrieval.embed import HashingEmbedder as H\n"
        f"print(H().fit({TEXTS!r}).embed({TEXTS!r}).tobytes().hex())"
    )
    here = HashingEmbedder().fit(TEXTS).embed(TEXTS).tobytes().hex()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        there = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == here


def test_likeness() -> None:
    """Shared words and shared spelling make texts alike."""
    one, spelt, other = HashingEmbedder().embed(["catch an exception", "catching exceptions", "a blue bicycle"])
    assert one @ spelt > 0.3 > abs(one @ other)


def test_unknown_words_after_fit() -> None:
    """What is in none of the texts learnt from weighs nothing."""
    embedder = HashingEmbedder().fit(["one two three"])
    assert not embedder.embed(["Zwölf"]).any()


def test_finds_the_right_topic() -> None:
    """Most of the demo's questions find a passage of a topic that answers them."""
    passages = read_corpus()
    texts = [passage.words for passage in passages]
    embedder = HashingEmbedder().fit(texts)
    best = (embedder.embed([q.text for q in QUESTIONS]) @ embedder.embed(texts).T).argmax(axis=1)
    hits = sum(passages[i].topic in question.topics for i, question in zip(best, QUESTIONS, strict=True))
    assert hits >= 0.7 * len(QUESTIONS)


def test_bad_dimension() -> None:
    with pytest.raises(ConfigError, match="dimension must be at least 1"):
        HashingEmbedder(0)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"haclient\[sentence-transformers\]"):
        SentenceTransformerEmbedder()
