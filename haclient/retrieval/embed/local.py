"""A model of sentence-transformers in this process.

Decision made here: the model is loaded by whoever needs it first, in the thread that will use it, since importing and
loading take seconds; making the embedder costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, final

import numpy as np

from haclient.errors import ConfigError, EmbeddingError
from haclient.retrieval.embed.batching import Worker
from haclient.retrieval.embed.embedder import Fingerprint, Vectors, checked, listed

_INSTALL = "pip install 'haclient[sentence-transformers]'"


@final
class SentenceTransformerEmbedder:
    """Runs a model; texts of concurrent callers share batches (`haclient.retrieval.embed.batching`).

    Queries and passages get the prompts that the model comes with. Vectors have length 1. How many cores torch uses is
    the program's choice (``torch.set_num_threads``).

    Args:
        model: Its name on the Hugging Face hub, or a folder.
        device: What torch calls it (``cpu``, ``cuda:1``, ``mps``); the library's choice unless given.
        batch_size: Texts computed at once, at most.
        max_queue: Texts that may wait for their turn.

    Raises:
        ConfigError: The package is not installed, or a number is wrong.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        device: str | None = None,
        batch_size: int = 64,
        max_queue: int = 1024,
    ) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ConfigError(f"sentence-transformers, which runs the model {model!r}, is not installed: {_INSTALL}")
        self._name = model
        self._device = device
        self._model: Any = None
        self._loading: Future[Fingerprint] | None = None
        self._worker = Worker(self._encode, batch_size=batch_size, max_queue=max_queue)

    async def fingerprint(self) -> Fingerprint:
        """See `Embedder`; loads the model and uses it once. A folder is named by its contents, wherever it is.

        Raises:
            ConfigError: The model cannot be loaded; the next call tries again.
        """
        loading = self._loading
        if loading is None:
            loading = self._loading = self._worker.submit(self._load)
        try:
            return await asyncio.shield(asyncio.wrap_future(loading))
        except Exception:
            if self._loading is loading:
                self._loading = None
            raise

    async def warm_up(self) -> None:
        """Load the model and use it once, so that the first question does not wait for it."""
        await self.fingerprint()

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        """See `Embedder`.

        Raises:
            ConfigError: The model cannot be loaded.
            EmbeddingError: The model failed, or computed something that is no vectors.
            Overloaded: ``max_queue`` texts wait already.
        """
        wanted = listed(texts)
        found = await self.fingerprint()
        if not wanted:
            return np.empty((0, found.dimension), np.float32)
        return await self._worker.embed(wanted, queries)

    async def aclose(self) -> None:
        """End the thread, once it is done with the batch under way."""
        await self._worker.aclose()

    def _load(self) -> Fingerprint:
        try:
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds, and gigabytes

            model = SentenceTransformer(self._name, device=self._device)
            dimension = model.encode_query(["one"], show_progress_bar=False).shape[1]
            fingerprint = Fingerprint(_identity(self._name), dimension, normalised=True)
        except Exception as error:
            # Whatever it is (no such model, no network, no such device, an old package), the remedy is the same.
            raise ConfigError(
                f"the model {self._name!r} cannot be loaded ({type(error).__name__}: {error}). Write the name of a "
                "model on the Hugging Face hub or the folder of one, check the device "
                f"({self._device or 'none given'}) and the package: {_INSTALL}"
            ) from error
        self._model, self._dimension = model, fingerprint.dimension
        return fingerprint

    def _encode(self, texts: list[str], queries: bool) -> Vectors:
        encode = self._model.encode_query if queries else self._model.encode_document
        try:
            rows = encode(texts, batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False)
        except Exception as error:
            what = f"the model {self._name!r} failed on {len(texts)} texts ({type(error).__name__}: {error})"
            raise EmbeddingError(f"{what}; if it has run out of memory, write a smaller batch_size") from error
        return checked(rows, len(texts), self._dimension, who=f"the model {self._name!r}")

    def __repr__(self) -> str:
        return f"<SentenceTransformerEmbedder {self._name}{'' if self._model is not None else ', not loaded yet'}>"


def _identity(model: str) -> str:
    """Name a model so that the same one has the same name on every machine."""
    folder = Path(model)
    if not folder.is_dir():
        return model if "/" in model else f"sentence-transformers/{model}"
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]):
        with path.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "blake2b").digest())
    return f"{folder.resolve().name}-{digest.hexdigest()}"
