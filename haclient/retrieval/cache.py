"""Answers given before, for when nobody can answer now.

Decision made here: the cache is the ladder's last rung, not a shortcut. It is asked only after every server has failed,
and what it gives says how old it is. So it may be generous: a near-duplicate of the question will do, if it was
asked with the very same options.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import final

import numpy as np

from haclient.errors import ConfigError
from haclient.retrieval.document import Documents, Freshness, Rung
from haclient.retrieval.embed.embedder import Vectors


@final
@dataclass(frozen=True, slots=True)
class _Kept:
    """One answer, and the question's vector if it had one (of length 1)."""

    documents: Documents
    vector: Vectors | None
    at: float


@final
class AnswerCache:
    """Remembers the last answers of a retriever.

    Args:
        size: Answers kept; the least recently used goes first.
        max_age_s: Older answers are not given.
        similarity: Cosine from which on two questions count as the same; 1 wants the very same words.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(self, size: int = 1000, *, max_age_s: float = 3600.0, similarity: float = 0.97) -> None:
        if size < 1:
            raise ConfigError(f"AnswerCache: size must be at least 1, got {size}")
        if max_age_s <= 0:
            raise ConfigError(f"AnswerCache: max_age_s must be above 0, got {max_age_s}")
        if not 0.0 < similarity <= 1.0:
            raise ConfigError(f"AnswerCache: similarity must be above 0 and at most 1, got {similarity}")
        self._size = size
        self._max_age_s = max_age_s
        self._similarity = similarity
        self._kept: OrderedDict[tuple[Hashable, Hashable], _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, scope: Hashable, question: Hashable, vector: Vectors | None, documents: Documents, now: float
    ) -> None:
        """Remember an answer that was given now.

        Args:
            scope: Everything but the question that the answer depends on.
            question: The question, exactly.
            vector: Its embedding, if there is one.
            documents: The answer.
            now: Time in seconds, of any clock that only goes forward.
        """
        if vector is not None:
            length = float(np.linalg.norm(vector))
            vector = vector / length if length else None
        self._kept[scope, question] = _Kept(documents, vector, now)
        self._kept.move_to_end((scope, question))
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def find(self, scope: Hashable, question: Hashable, vector: Vectors | None, now: float) -> Documents | None:
        """Return the answer to this question, or to the one most like it; None if none will do."""
        key, similarity = (scope, question), 1.0
        kept = self._fresh(key, now)
        if kept is None and vector is not None and self._similarity < 1.0:
            key, similarity = self._nearest(scope, vector, now)
            kept = self._fresh(key, now)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return Documents(
            tuple(kept.documents),
            source=kept.documents.source,
            rung=Rung.CACHED,
            freshness=Freshness(kept.documents.freshness.consistency, age_s=now - kept.at, stale=True),
            similarity=similarity,
        )

    def _fresh(self, key: tuple[Hashable, Hashable], now: float) -> _Kept | None:
        kept = self._kept.get(key)
        return kept if kept is not None and now - kept.at <= self._max_age_s else None

    def _nearest(self, scope: Hashable, vector: Vectors, now: float) -> tuple[tuple[Hashable, Hashable], float]:
        """Return the key of the most similar question in the same scope that is near enough."""
        keys: list[tuple[Hashable, Hashable]] = []
        rows: list[Vectors] = []
        for key, kept in self._kept.items():
            if key[0] == scope and kept.vector is not None and now - kept.at <= self._max_age_s:
                keys.append(key)
                rows.append(kept.vector)
        length = float(np.linalg.norm(vector))
        if not rows or not length:
            return (scope, None), 0.0
        cosines = np.stack(rows) @ (vector / length)
        best = int(np.argmax(cosines))
        near = float(cosines[best])
        return (keys[best], near) if near >= self._similarity else ((scope, None), 0.0)
