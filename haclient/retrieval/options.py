"""What can be asked of a retriever, checked before anything is sent.

Decision made here: the options of a question are one immutable, hashable value. Requests that are built and answers
that are kept are found again by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from haclient.errors import BadQuery, ConfigError
from haclient.milvus.vectors import LEVELS

#: A question: a text, or the vector of one.
Query = str | Sequence[float] | npt.NDArray[Any]

MODES: Final = ("dense", "sparse", "hybrid")
#: Milvus' limit on the hits of a search (proxy.maxResultWindow).
MOST: Final = 16_384


@final
@dataclass(frozen=True, slots=True)
class RRF:
    """Hybrid hits merged by reciprocal rank fusion (Cormack et al., 2009): the sum of ``1 / (k + rank)``.

    Attributes:
        k: Smooths the difference between high ranks; above 0.
    """

    k: int = 60

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"RRF: k must be at least 1, got {self.k}; write RRF(k=60)")

    def as_params(self) -> dict[str, Any]:
        """Return what HybridSearch takes."""
        return {"strategy": "rrf", "params": {"k": self.k}}


@final
@dataclass(frozen=True, slots=True)
class Weighted:
    """Hybrid hits merged by a weighted sum of scores, each brought into 0 to 1 by the server first.

    Attributes:
        dense: Weight of the dense search, 0 to 1.
        sparse: Weight of the sparse one, 0 to 1.
    """

    dense: float = 0.5
    sparse: float = 0.5

    def __post_init__(self) -> None:
        for name, weight in (("dense", self.dense), ("sparse", self.sparse)):
            if not 0.0 <= weight <= 1.0:
                raise ConfigError(f"Weighted: {name} must be from 0 to 1, got {weight}; write Weighted(0.7, 0.3)")

    def as_params(self) -> dict[str, Any]:
        """Return what HybridSearch takes."""
        return {"strategy": "weighted", "params": {"weights": [self.dense, self.sparse], "norm_score": True}}


Ranker = RRF | Weighted


@final
@dataclass(frozen=True, slots=True)
class Options:
    """How questions are to be answered; see `haclient.retrieval.Retriever.retrieve` for each of them."""

    k: int
    mode: str
    filter: str
    output_fields: tuple[str, ...]
    partitions: tuple[str, ...]
    consistency: str
    threshold: float | None
    mmr: float | None
    candidates: int
    ranker: Ranker

    def __post_init__(self) -> None:
        self._whole("k", self.k)
        self._whole("candidates", self.candidates)
        if self.candidates < self.k:
            raise BadQuery(f"candidates ({self.candidates}) must not be fewer than k ({self.k})")
        if self.mode not in MODES:
            raise BadQuery(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.consistency and self.consistency not in LEVELS:
            raise BadQuery(f"consistency must be one of {', '.join(LEVELS)}, got {self.consistency!r}")
        if not isinstance(self.filter, str):
            raise BadQuery(f"filter must be a Milvus expression, got {self.filter!r}; write filter='lang == \"en\"'")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise BadQuery(f"threshold must be a finite number, got {self.threshold}")
        if self.mmr is not None and not 0.0 <= self.mmr <= 1.0:
            raise BadQuery(f"mmr must be from 0 (diverse) to 1 (relevant), got {self.mmr}")

    @staticmethod
    def _whole(name: str, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
            raise BadQuery(f"{name} must be a whole number from 1 to {MOST:,} (Milvus' limit), got {value!r}")


def checked_query(query: Query, dimension: int) -> str | npt.NDArray[np.float32]:
    """Return a question as a text or a float32 vector, or say what is wrong with it.

    Args:
        query: The question.
        dimension: What a vector must have; 0 if there is no dense field.

    Raises:
        BadQuery: It is empty, or no vector that fits.
    """
    if isinstance(query, str):
        if not query.strip():
            raise BadQuery("the question is empty; ask something")
        return query
    try:
        vector = np.asarray(query, dtype=np.float32)
    except (TypeError, ValueError):
        raise BadQuery(f"a question is a text or a vector of numbers, got {type(query).__name__}") from None
    if vector.shape != (dimension,):
        raise BadQuery(f"the question is an array of shape {vector.shape}; the collection's vectors are ({dimension},)")
    if not np.isfinite(vector).all():
        raise BadQuery("the question's vector contains NaN or infinity")
    return vector
