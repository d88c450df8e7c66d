"""A framework's embedding model as a `haclient.retrieval.embed.Embedder`.

Decision made here: such a model cannot say which vectors it makes, so one text is embedded to see.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from haclient.errors import EmbeddingError, HAClientError
from haclient.retrieval.embed.embedder import Fingerprint, Vectors, checked

Rows = Sequence[Sequence[float]]


class ModelEmbedder(abc.ABC):
    """What the adapters of embedding models have in common.

    Args:
        model: The model's name, for the fingerprint.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._fingerprint: Fingerprint | None = None

    @abc.abstractmethod
    async def _questions(self, texts: Sequence[str]) -> Rows:
        """Embed questions."""

    @abc.abstractmethod
    async def _passages(self, texts: Sequence[str]) -> Rows:
        """Embed passages."""

    async def fingerprint(self) -> Fingerprint:
        """See `Embedder`."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(await self._made(self._questions, ["dimension"]), self._model)
        return self._fingerprint

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        """See `Embedder`."""
        dimension = (await self.fingerprint()).dimension
        if not texts:
            return np.empty((0, dimension), np.float32)
        rows = await self._made(self._questions if queries else self._passages, texts)
        return checked(rows, len(texts), dimension, who=self._model)

    async def _made(self, make: Callable[[Sequence[str]], Awaitable[Rows]], texts: Sequence[str]) -> Rows:
        try:
            return await make(texts)
        except HAClientError:
            raise
        except Exception as error:
            # Its text is the model's, which may hold a key.
            raise EmbeddingError(f"the embedding model {self._model} failed: {type(error).__name__}") from error

    async def aclose(self) -> None:  # noqa: B027 - nothing to be overridden
        """Do nothing: the model is its owner's to close."""


def fingerprint_of(vectors: Rows, model: str) -> Fingerprint:
    """Return the fingerprint of a model that made these vectors."""
    rows = np.asarray(vectors, np.float32)
    return Fingerprint(model, rows.shape[1], bool(np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-3)))
