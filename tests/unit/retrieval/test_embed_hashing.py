"""The embedder of hashed words: the same everywhere, and good enough to find the right topic."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from haclient.drill.corpus import QUESTIONS, read_corpus
from haclient.errors import ConfigError
from haclient.retrieval.embed import Fingerprint, HashingEmbedder, Vectors

TEXTS = ["The try statement specifies exception handlers.", "A list is a mutable sequence.", "naïve café, x += 1"]


def digest(vectors: Vectors) -> str:
    return hashlib.sha256(np.round(vectors, 4).astype("<f4").tobytes()).hexdigest()[:16]


def test_shape_and_length() -> None:
    """One row of float32 and length 1 per text; a text without words is the zero vector, no text is no row."""
    embedder = HashingEmbedder(64)
    vectors = embedder.vectors([*TEXTS, ""])
    assert vectors.shape == (4, 64)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert embedder.vectors([]).shape == (0, 64)


def test_known_vectors() -> None:
    """Vectors do not change between versions, or stored ones would no longer be found."""
    assert digest(HashingEmbedder().vectors(TEXTS)) == "9eeb270417507d8c"
    assert digest(HashingEmbedder().fit(TEXTS).vectors(TEXTS)) == "9eeb270417507d8c"


def test_same_in_every_process() -> None:
    """Python's random string hashes do not come in."""
    code = (
        "from haclient.retrieval.embed import HashingEmbedder as H\n"
        f"print(H().fit({TEXTS!r}).vectors({TEXTS!r}).tobytes().hex())"
    )
    here = HashingEmbedder().fit(TEXTS).vectors(TEXTS).tobytes().hex()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        there = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.strip() == here


def test_likeness() -> None:
    """Shared words and shared spelling make texts alike."""
    one, spelt, other = HashingEmbedder().vectors(["catch an exception", "catching exceptions", "a blue bicycle"])
    assert one @ spelt > 0.3 > abs(one @ other)


def test_unknown_words_after_fit() -> None:
    """What is in none of the texts learnt from weighs nothing."""
    embedder = HashingEmbedder().fit(["one two three"])
    assert not embedder.vectors(["Zwölf"]).any()


def test_finds_the_right_topic() -> None:
    """Most of the demo's questions find a passage of a topic that answers them."""
    passages = read_corpus()
    texts = [passage.words for passage in passages]
    embedder = HashingEmbedder().fit(texts)
    best = (embedder.vectors([q.text for q in QUESTIONS]) @ embedder.vectors(texts).T).argmax(axis=1)
    hits = sum(passages[i].topic in question.topics for i, question in zip(best, QUESTIONS, strict=True))
    assert hits >= 0.7 * len(QUESTIONS)


def test_bad_dimension() -> None:
    with pytest.raises(ConfigError, match="dimension must be at least 1"):
        HashingEmbedder(0)


async def test_awaited_vectors_are_the_same() -> None:
    """Few letters are embedded at once, many in a thread; the rows are the same."""
    embedder = HashingEmbedder(64).fit(TEXTS)
    for texts in (TEXTS, TEXTS * 100, []):
        assert np.array_equal(await embedder.embed(texts, queries=True), embedder.vectors(texts))


async def test_many_texts_do_not_block_the_loop() -> None:
    """The loop runs on while many texts are embedded."""
    work = asyncio.create_task(HashingEmbedder().embed([f"{text} {i}" for i in range(300) for text in TEXTS]))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 5


async def test_fingerprint_tells_what_was_learnt() -> None:
    """Embedders that learnt different texts make different vectors, and say so."""
    plain = await HashingEmbedder(64).fingerprint()
    assert plain == Fingerprint("haclient-hashing", 64, normalised=True)
    one, same, other = [await HashingEmbedder(64).fit(texts).fingerprint() for texts in (TEXTS, TEXTS, TEXTS[:2])]
    assert one == same
    assert len({plain, one, other}) == 3
