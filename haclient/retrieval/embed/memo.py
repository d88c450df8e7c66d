"""Questions that are asked again.

Decision made here: only queries are kept, by their exact text. Whoever asks what is being computed already waits for
that; the computation belongs to no caller, so it goes on when one of them gives up, and ends when all have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from haclient.errors import ConfigError
from haclient.retrieval.embed.embedder import Embedder, Fingerprint, Vectors, checked, listed


@final
@dataclass(slots=True)
class _Shared:
    """A computation, and how many wait for it."""

    task: asyncio.Task[Vectors]
    waiting: int = 0


@final
class QueryMemo:
    """Keeps the vectors of the queries embedded last (an LRU cache).

    Nothing is kept of what fails or is no vectors.

    Args:
        embedder: Makes the vectors; its vectors must not change meanwhile. Closed with this one.
        size: Queries kept, at most.

    Attributes:
        hits: Queries that were known.
        misses: Queries that had to be embedded, or waited for.

    Raises:
        ConfigError: ``size`` is not positive.
    """

    def __init__(self, embedder: Embedder, size: int = 1024) -> None:
        if size < 1:
            raise ConfigError(f"size must be at least 1, got {size}; write for example size=1024")
        self.hits = 0
        self.misses = 0
        self._embedder = embedder
        self._size = size
        #: Asked for longest ago first.
        self._kept: dict[str, Vectors] = {}
        self._under_way: dict[tuple[asyncio.AbstractEventLoop, tuple[str, ...]], _Shared] = {}

    async def fingerprint(self) -> Fingerprint:
        """See `Embedder`."""
        return await self._embedder.fingerprint()

    async def embed(self, texts: Sequence[str], *, queries: bool = False) -> Vectors:
        """See `Embedder`."""
        wanted = listed(texts)
        if not queries or not wanted:
            return await self._embedder.embed(wanted, queries=queries)
        found = {text: row for text in wanted if (row := self._known(text)) is not None}
        known = sum(text in found for text in wanted)
        self.hits += known
        self.misses += len(wanted) - known
        missing = tuple(dict.fromkeys(text for text in wanted if text not in found))
        if missing:
            found.update(zip(missing, await self._share(missing), strict=True))
        return np.stack([found[text] for text in wanted])

    def _known(self, text: str) -> Vectors | None:
        row = self._kept.pop(text, None)
        if row is not None:
            self._kept[text] = row  # asked for last now
        return row

    async def _share(self, texts: tuple[str, ...]) -> Vectors:
        """Wait for the vectors of texts; the last caller to give up ends the computation."""
        loop = asyncio.get_running_loop()
        key = (loop, texts)
        shared = self._under_way.get(key)
        if shared is None:
            shared = self._under_way[key] = _Shared(loop.create_task(self._compute(texts)))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                del self._under_way[key]
                shared.task.cancel()

    async def _compute(self, texts: tuple[str, ...]) -> Vectors:
        dimension = (await self._embedder.fingerprint()).dimension
        answer = await self._embedder.embed(texts, queries=True)
        rows = checked(answer, len(texts), dimension, who=f"{self._embedder!r}")
        for text, row in zip(texts, rows, strict=True):
            self._kept[text] = row.copy()  # not a view, which would keep the whole batch
        while len(self._kept) > self._size:
            self._kept.pop(next(iter(self._kept)))
        return rows

    async def aclose(self) -> None:
        """Close the embedder, which ends what is under way."""
        await self._embedder.aclose()

    def __repr__(self) -> str:
        return f"<QueryMemo of {len(self._kept)} queries, {self.hits} hits, {self.misses} misses: {self._embedder!r}>"
