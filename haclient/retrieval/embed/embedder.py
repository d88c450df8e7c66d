"""What an embedder is.

Decision made here: an embedder is async, because it waits for a model or for a server, and it says which model it is:
vectors of two models in one collection give plausible, wrong answers without any error, so every collection carries
the `Fingerprint` of the model that filled it (Milvus stores it; `haclient.retrieval.schema` reads it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, final, runtime_checkable

import numpy as np
import numpy.typing as npt

from haclient.errors import BadQuery, EmbeddingError

Vectors = npt.NDArray[np.float32]

_PREFIX = "haclient-embedder"
_TEXT = re.compile(rf"{_PREFIX} model=(?P<model>\S+) dimension=(?P<dimension>\d+) normalised=(?P<normalised>yes|no)")


@final
@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which vectors an embedder makes; two that differ must not be mixed.

    Attributes:
        model: The model's name.
        dimension: Numbers in a vector.
        normalised: Whether every vector has length 1.
    """

    model: str
    dimension: int
    normalised: bool

    def __str__(self) -> str:
        normalised = "yes" if self.normalised else "no"
        return f"{_PREFIX} model={'_'.join(self.model.split())} dimension={self.dimension} normalised={normalised}"

    @classmethod
    def find(cls, text: str) -> Self | None:
        """Find a fingerprint in a text that holds one (``str(fingerprint)``) among other things."""
        found = _TEXT.search(text)
        if found is None:
            return None
        return cls(found["model"], int(found["dimension"]), found["normalised"] == "yes")


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors."""

    async def fingerprint(self) -> Fingerprint:
        """Say which vectors it makes; loads the model, or asks the server once, if need be."""
        ...

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        """Return one row per text, float32, shape ``[len(texts), dimension]``.

        Args:
            texts: What to embed; an empty sequence gives an array of shape ``[0, dimension]``.
            queries: The texts are questions, not passages: some models treat them differently.

        Raises:
            EmbeddingError: What came out is no vectors.
            Overloaded: Too many texts are waiting already.
            CallError: No server of it could answer; lists every one tried.
        """
        ...

    async def aclose(self) -> None:
        """Stop its threads and close its connections."""
        ...


def listed(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list, or say what is wrong with them.

    Raises:
        BadQuery: They are a single string, whose letters nobody wants embedded, or one of them is no text.
    """
    if isinstance(texts, str):
        raise BadQuery("embed takes a sequence of texts and got a single one; write embed([text])")
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise BadQuery(f"text number {number} is of type {type(text).__name__}; write a string")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise BadQuery(f"text number {number} holds half a character (a lone surrogate); decode it anew")
    return found


def checked(vectors: object, count: int, dimension: int, *, who: str) -> Vectors:
    """Return vectors as float32 rows, or say what is wrong with them.

    Raises:
        EmbeddingError: Wrong number of rows, wrong length, NaN or infinity.
    """
    try:
        rows = np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise EmbeddingError(f"{who} answered with something that is no table of numbers: {error}") from None
    if rows.ndim != 2 or rows.shape[0] != count:
        raise EmbeddingError(f"{who} answered {rows.shape} where {count} vectors of {dimension} numbers were due")
    if rows.shape[1] != dimension:
        raise EmbeddingError(
            f"{who} answered vectors of {rows.shape[1]} numbers, and {dimension} were due: is it another model?"
        )
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise EmbeddingError(f"{who} answered a vector (number {bad}) that contains NaN or infinity")
    return rows
