"""Vectors without a model.

Decision made here: demos and tests get an embedder that knows words and spelling, not meaning, is the same in every
process and on every platform, and needs nothing but numpy.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Self, final

import numpy as np

from haclient.errors import ConfigError
from haclient.retrieval.embed.embedder import Fingerprint, Vectors, listed

_MODEL = "haclient-hashing"
_WORD = re.compile(r"[a-z0-9_]+|[^\sa-z0-9_]{2,3}")
#: How much a pair of words, and a piece of a word, count against a word.
_PAIR_WEIGHT = 0.3
_PIECE_WEIGHT = 0.7
_PIECE_LETTERS = 4
#: More letters than this are embedded in a thread, since they take more than some milliseconds.
_LETTERS_AT_ONCE = 2000


@final
class HashingEmbedder:
    """Signed feature hashing of words, pairs of words and pieces of words (Weinberger et al., 2009).

    A feature weighs ``1 + log(count)`` times its rarity in the texts given to `fit`, and nothing if it is in none of
    them; without `fit` all weigh the same.

    Args:
        dimension: Numbers in a vector; fewer make more features collide.

    Raises:
        ConfigError: ``dimension`` is not positive.
    """

    def __init__(self, dimension: int = 384) -> None:
        if dimension < 1:
            raise ConfigError(f"dimension must be at least 1, got {dimension}; write for example dimension=384")
        self._dimension = dimension
        self._texts = 0
        self._holding: Counter[str] = Counter()
        self._model = _MODEL

    def fit(self, texts: Iterable[str]) -> Self:
        """Learn how rare each feature is. Vectors made before do not compare with those made after."""
        self._texts, self._holding = 0, Counter()
        for text in texts:
            self._texts += 1
            self._holding.update({name for name, _ in _features(text)})
        self._model = f"{_MODEL}-{self._digest()}"
        return self

    async def fingerprint(self) -> Fingerprint:
        """See `Embedder`. What was learnt by `fit` is part of the model's name."""
        return Fingerprint(self._model, self._dimension, normalised=True)

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        """See `Embedder` and `vectors`."""
        wanted = listed(texts)
        if sum(map(len, wanted)) <= _LETTERS_AT_ONCE:
            return self.vectors(wanted)
        return await asyncio.to_thread(self.vectors, wanted)

    async def aclose(self) -> None:
        """See `Embedder`; it holds nothing."""

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return one row per text, where nothing has to be awaited. A text without a known word is the zero vector."""
        rows = np.zeros((len(texts), self._dimension), dtype=np.float64)
        for row, text in zip(rows, texts, strict=True):
            counts: Counter[tuple[str, float]] = Counter(_features(text))
            for (name, weight), count in counts.items():
                number = _number(name)
                sign = 1.0 if number & 1 else -1.0
                row[(number >> 1) % self._dimension] += sign * weight * self._rarity(name) * (1.0 + math.log(count))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)

    def _digest(self) -> str:
        learnt = hashlib.blake2b(str(self._texts).encode(), digest_size=4)
        for name, count in sorted(self._holding.items()):
            learnt.update(f"{name}\n{count}\n".encode())
        return learnt.hexdigest()

    def _rarity(self, name: str) -> float:
        if not self._texts:
            return 1.0
        holding = self._holding[name]
        # One never seen matches none of the texts learnt from; in a vector it could only collide with one that does.
        return math.log((1.0 + self._texts) / holding) if holding else 0.0


@lru_cache(maxsize=1 << 16)
def _number(name: str) -> int:
    # Python's own hash() differs from process to process.
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _features(text: str) -> Iterator[tuple[str, float]]:
    """Yield every feature of a text and how much its kind counts."""
    words = _WORD.findall(text.lower())
    for before, word in zip(["", *words], words, strict=False):
        yield word, 1.0
        if before:
            yield f"{before} {word}", _PAIR_WEIGHT
        framed = f"<{word}>"
        for i in range(len(framed) - _PIECE_LETTERS + 1):
            yield "#" + framed[i : i + _PIECE_LETTERS], _PIECE_WEIGHT
