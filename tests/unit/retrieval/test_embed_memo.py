"""The memo of queries: known ones cost nothing, shared ones once, and nothing wrong is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from haclient.errors import ConfigError, EmbeddingError
from haclient.retrieval.embed import Embedder, Fingerprint, HashingEmbedder, QueryMemo, Vectors


class Counting:
    """An embedder that counts, can be held back, and can answer garbage.

    Attributes:
        asked: The texts of each call, and whether they were queries.
        gate: Calls wait for it.
        garbage: What it answers instead, if not None.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.garbage: object = None
        self.cancelled = 0
        self.closed = False
        self._embedder = HashingEmbedder(8)

    async def fingerprint(self) -> Fingerprint:
        return await self._embedder.fingerprint()

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        self.asked.append((list(texts), queries))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.garbage, Exception):
            raise self.garbage
        return self._embedder.vectors(texts) if self.garbage is None else self.garbage  # type: ignore[return-value]

    async def aclose(self) -> None:
        self.closed = True

    def right(self, *texts: str) -> Vectors:
        return self._embedder.vectors(texts)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_known_queries_are_not_asked_again() -> None:
    counting = Counting()
    memo = QueryMemo(counting)
    assert isinstance(memo, Embedder)
    for texts in (["a", "b"], ["b"], ["c", "a", "c"]):
        assert np.array_equal(await memo.embed(texts, queries=True), counting.right(*texts))
    assert counting.asked == [(["a", "b"], True), (["c"], True)]
    assert (memo.hits, memo.misses) == (2, 4)
    assert await memo.fingerprint() == await counting.fingerprint()
    await memo.aclose()
    assert counting.closed


async def test_passages_are_not_kept() -> None:
    counting = Counting()
    memo = QueryMemo(counting)
    for _ in range(2):
        await memo.embed(["a"])
    assert counting.asked == [(["a"], False)] * 2
    await memo.embed(["a"], queries=True)
    assert len(counting.asked) == 3
    assert (await memo.embed([], queries=True)).shape == (0, 8)


async def test_the_least_recently_asked_goes_first() -> None:
    counting = Counting()
    memo = QueryMemo(counting, size=2)
    for text in ("a", "b", "a", "c", "a"):
        await memo.embed([text], queries=True)
    assert [texts for texts, _ in counting.asked] == [["a"], ["b"], ["c"]]
    await memo.embed(["b"], queries=True)
    assert len(counting.asked) == 4
    everything = ["a", "b", "c", "d"]
    assert np.array_equal(await memo.embed(everything, queries=True), counting.right(*everything))


async def test_one_computation_for_all_who_ask_at_once() -> None:
    """The first one giving up does not take it from the others."""
    counting = Counting()
    counting.gate.clear()
    memo = QueryMemo(counting)
    first, *others = [asyncio.create_task(memo.embed(["a"], queries=True)) for _ in range(10)]
    await turns()
    first.cancel()
    await turns()
    counting.gate.set()
    for rows in await asyncio.gather(*others):
        assert np.array_equal(rows, counting.right("a"))
    assert len(counting.asked) == 1
    assert first.cancelled()


async def test_all_giving_up_ends_it() -> None:
    """And whoever asks then starts anew."""
    counting = Counting()
    counting.gate.clear()
    memo = QueryMemo(counting)
    tasks = [asyncio.create_task(memo.embed(["a"], queries=True)) for _ in range(3)]
    await turns()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    again = asyncio.create_task(memo.embed(["a"], queries=True))
    await turns()
    assert counting.cancelled == 1
    counting.gate.set()
    assert np.array_equal(await again, counting.right("a"))
    assert len(counting.asked) == 2


@pytest.mark.parametrize(
    "garbage", [[[np.nan] * 8], [[1.0] * 7], [[1.0] * 8] * 2, "text", EmbeddingError("no"), OSError("no")]
)
async def test_nothing_wrong_is_kept(garbage: object) -> None:
    """Errors reach all who wait, and the next one asks again."""
    counting = Counting()
    counting.garbage = garbage
    memo = QueryMemo(counting)
    outcomes = await asyncio.gather(*(memo.embed(["a"], queries=True) for _ in range(3)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {OSError if isinstance(garbage, OSError) else EmbeddingError}
    assert len(counting.asked) == 1
    counting.garbage = None
    assert np.array_equal(await memo.embed(["a"], queries=True), counting.right("a"))
    assert len(counting.asked) == 2


async def test_what_is_handed_out_is_not_what_is_kept() -> None:
    memo = QueryMemo(HashingEmbedder(8))
    rows = await memo.embed(["some words"], queries=True)
    right = rows.copy()
    rows[:] = 0.0
    assert np.array_equal(await memo.embed(["some words"], queries=True), right)


def test_bad_size() -> None:
    with pytest.raises(ConfigError, match="size must be at least 1"):
        QueryMemo(HashingEmbedder(), size=0)
