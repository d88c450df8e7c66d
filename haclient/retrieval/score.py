"""Scores and what is chosen by them.

Decision made here: a document's score is higher the better it fits, whatever the metric. It is the number that Milvus
gave for COSINE and IP (similarities), BM25, RRF and weighted sums, and minus that number for L2, HAMMING and JACCARD,
which are distances. Nothing else is done to it, so thresholds can be read off and compared with Milvus' own.

BM25 is positive; milvus-lite 3.2 gives it with a minus sign, which is taken off.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Final

import numpy as np

from haclient.retrieval.embed.embedder import Vectors

_DISTANCES: Final = frozenset(("L2", "HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE"))


def higher_is_better(metric: str) -> Callable[[float], float]:
    """Return what makes a score of Milvus' number; "" stands for a number that is a score already."""
    if metric.upper() in _DISTANCES:
        return operator.neg
    return abs if metric.upper() == "BM25" else operator.pos


def most_diverse(query: Vectors, vectors: Vectors, k: int, relevance: float) -> list[int]:
    """Choose by maximal marginal relevance (Carbonell and Goldstein, 1998).

    Args:
        query: Vector of the question, shape ``[dimension]``.
        vectors: Vectors of the candidates, shape ``[candidates, dimension]``.
        k: How many to choose.
        relevance: Weight of being like the question, against being unlike what is chosen already; 0 to 1.

    Returns:
        Positions of the chosen, in the order chosen.
    """
    rows = _unit(vectors)
    wanted = rows @ _unit(query[np.newaxis])[0]
    redundant = np.full(len(rows), -np.inf)
    chosen: list[int] = []
    gain = wanted
    for _ in range(min(k, len(rows))):
        best = int(np.argmax(gain))
        chosen.append(best)
        redundant = np.maximum(redundant, rows @ rows[best])
        gain = relevance * wanted - (1.0 - relevance) * redundant
        gain[chosen] = -np.inf
    return chosen


def _unit(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = (rows / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
    return unit
