"""`Indexer`: documents in, a collection that answers questions about them out.

Decision made here: the collection itself is the record of what is done; there is no other. A source's chunks that are
there are left alone, those missing are embedded and written, and then those it no longer contains are deleted by id. So
a run may be repeated, or killed anywhere and started again, and ends in the same rows; and a reader meanwhile finds the
new text before the old one goes. Nothing but the client's calls is used: where they go is the client's business.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, final

from haclient.client import DropIn
from haclient.errors import ConfigError
from haclient.retrieval import schema
from haclient.retrieval.chunks import (
    ID,
    SOURCE,
    TEXT,
    VECTOR,
    BadSource,
    Chunk,
    Source,
    Splitter,
    cut,
    default_splitter,
)
from haclient.retrieval.embed.embedder import Embedder, Fingerprint, Vectors, checked
from haclient.seam import make_handler

T = TypeVar("T")
Sources = Iterable[Source] | AsyncIterable[Source]


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """A source that was not indexed, and why; what the collection had of it is unchanged."""

    source: str
    reason: str


@final
@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run has done so far, or in all.

    Attributes:
        sources: Sources that are done.
        total: Sources that there are, None if that is not known.
        added: Chunks embedded and written.
        unchanged: Chunks that were there already.
        removed: Chunks deleted, because their source does not contain them any more.
        replaced: Sources of which chunks were removed.
        failed: Sources that could not be indexed.
        seconds: How long it took.
    """

    sources: int = 0
    total: int | None = None
    added: int = 0
    unchanged: int = 0
    removed: int = 0
    replaced: int = 0
    failed: tuple[Failure, ...] = ()
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Chunks embedded and written a second."""
        return self.added / self.seconds if self.seconds else 0.0


Progress = Callable[[IndexReport], None]


@final
class Indexer:
    """Fills one collection.

    Args:
        client: A client of either kind, `haclient.AsyncMilvusClient` or `haclient.MilvusClient`.
        collection: Its name. If it is not there it is made, indexed (cosine) and loaded.
        embedder: Makes the vectors; the collection is marked with its fingerprint and refuses another.
        splitter: Cuts a text into chunks; None takes `default_splitter`.
        batch_rows: Rows embedded and written at a time.
        in_flight: Batches under way at a time: while one is written, another is embedded.
        hybrid: Make a collection that can be searched for words (BM25) as well as for meaning.

    Raises:
        ConfigError: A value is wrong, or the default splitter is not installed.
    """

    def __init__(
        self,
        client: DropIn,
        collection: str,
        *,
        embedder: Embedder,
        splitter: Splitter | None = None,
        batch_rows: int = 256,
        in_flight: int = 2,
        hybrid: bool = False,
    ) -> None:
        if not collection:
            raise ConfigError("the collection's name is empty")
        for name, value in (("batch_rows", batch_rows), ("in_flight", in_flight)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.collection = collection
        self._host = client.host
        self._milvus = make_handler(client.host.request, client._using, client.host.config.database)
        self._embedder = embedder
        self._splitter = splitter or default_splitter()
        self._batch_rows = batch_rows
        self._in_flight = in_flight
        self._hybrid = hybrid

    async def add(self, sources: Sources, *, progress: Progress | None = None) -> IndexReport:
        """Bring the collection up to date with these sources; others in it are left alone.

        Args:
            sources: What to index; read as it is needed, an ordinary iterable in a thread of its own. Of each only a
                number is kept, to notice an id that comes twice.
            progress: Called with the report so far, after each step, on the client's event loop; for rich:
                ``lambda report: bars.update(task, completed=report.sources, total=report.total)``.

        Returns:
            What was done. A source that cannot be indexed is in ``failed``; the others go on.

        Raises:
            ConfigError: The collection does not fit, or holds another model's vectors.
            EmbeddingError: What the embedder answered is no vectors.
            CallError: No server, Milvus' or the embedder's, could do it, or a write was refused. What was written
                stays; the same call goes on from there.
        """
        return await self._host.bring(self._add(sources, progress or (lambda report: None)))

    def add_sync(self, sources: Sources, *, progress: Progress | None = None) -> IndexReport:
        """Block until `add` is done."""
        return self._host.run(self.add(sources, progress=progress))

    async def remove(self, source_ids: Iterable[str]) -> int:
        """Delete every chunk of these sources; returns how many that were.

        Raises:
            CallError: No server could do it, or a write was refused.
        """
        if isinstance(source_ids, str):
            raise TypeError(f"remove() takes several ids, got one text; write [{source_ids!r}]")
        return await self._host.bring(self._remove(list(source_ids)))

    def remove_sync(self, source_ids: Iterable[str]) -> int:
        """Block until `remove` is done."""
        return self._host.run(self.remove(source_ids))

    async def _add(self, sources: Sources, progress: Progress) -> IndexReport:
        fingerprint = await self._embedder.fingerprint()
        description = await schema.ensure(
            self._milvus, self.collection, fingerprint, hybrid=self._hybrid, servers=self._servers()
        )
        tally = _Tally(len(sources) if isinstance(sources, Sized) else None, progress)
        reader = _Reader(
            sources, partial(cut, splitter=self._splitter, text_bytes=schema.text_bytes(description)), tally
        )
        rows = _Rows(self._milvus, self.collection, self._batch_rows)
        slots = asyncio.Semaphore(self._in_flight)

        async def index(batch: _Batch) -> None:
            try:
                await self._index(batch, rows, fingerprint, tally)
            except Exception as error:
                error.add_note(f"while indexing {_names(batch)} into collection {self.collection!r}")
                raise
            finally:
                slots.release()

        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group, aclosing(reader.batches(self._batch_rows)) as batches:
                async for batch in batches:
                    await slots.acquire()
                    group.create_task(index(batch))
        except BaseExceptionGroup as errors:
            failure = errors.exceptions[0]
        if failure is not None:
            raise failure  # out here it keeps its cause
        return tally.report

    def _servers(self) -> str:
        return ", ".join(endpoint.name for cluster in self._host.config.clusters for endpoint in cluster.endpoints)

    async def _index(self, batch: _Batch, rows: _Rows, fingerprint: Fingerprint, tally: _Tally) -> None:
        """Make the rows of these sources what they should be: write what is missing, then delete what is too much."""
        there = await rows.ids(batch)
        missing = [chunk for source, chunks in batch.items() for chunk in chunks if chunk.id not in there[source]]
        for part in _parts(missing, self._batch_rows):
            vectors = await self._embedder.embed([chunk.text for chunk in part])
            await rows.write(part, checked(vectors, len(part), fingerprint.dimension, who=fingerprint.model))
            tally.add(added=len(part))
        stale = {source: there[source] - {chunk.id for chunk in chunks} for source, chunks in batch.items()}
        removed = [number for numbers in stale.values() for number in numbers]
        await rows.delete(removed)
        tally.add(
            sources=len(batch),
            unchanged=sum(map(len, batch.values())) - len(missing),
            removed=len(removed),
            replaced=sum(map(bool, stale.values())),
        )

    async def _remove(self, source_ids: Sequence[str]) -> int:
        rows = _Rows(self._milvus, self.collection, self._batch_rows)
        removed = 0
        for part in _parts(source_ids, self._batch_rows):
            numbers = [number for numbers in (await rows.ids(part)).values() for number in numbers]
            await rows.delete(numbers)
            removed += len(numbers)
        return removed


#: Sources' ids and their chunks.
_Batch = dict[str, list[Chunk]]


@final
class _Tally:
    """The report as it grows."""

    def __init__(self, total: int | None, progress: Progress) -> None:
        self.report = IndexReport(total=total)
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def add(self, **more: Any) -> None:
        grown = {name: getattr(self.report, name) + value for name, value in more.items()}
        self.report = replace(self.report, **grown, seconds=self._loop.time() - self._began)
        self._progress(self.report)

    def fail(self, source: Source, reason: str) -> None:
        self.add(failed=(Failure(source.id, reason),))


@final
class _Reader:
    """Reads and cuts sources, in one thread of its own: both may take long, and iterators may insist on one thread."""

    def __init__(self, sources: Sources, cut: Callable[[Source], list[Chunk]], tally: _Tally) -> None:
        self._sources = sources
        self._cut = cut
        self._tally = tally
        self._seen: set[int] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="haclient-indexer")

    async def batches(self, rows: int) -> AsyncGenerator[_Batch]:
        """Yield sources until they have so many chunks; the last batch has fewer, one with a long source more."""
        batch: _Batch = {}
        try:
            async for source in self._each():
                if chunks := await self._chunks(source):
                    batch[source.id] = chunks
                if sum(map(len, batch.values())) >= rows:
                    yield batch
                    batch = {}
            if batch:
                yield batch
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _each(self) -> AsyncIterator[Source]:
        if isinstance(self._sources, AsyncIterable):
            async for source in self._sources:
                yield source
            return
        iterator = iter(self._sources)
        while (source := await self._in_thread(next, iterator, None)) is not None:
            yield source

    async def _chunks(self, source: Source) -> list[Chunk]:
        """Cut a source; one that cannot be indexed has no chunks, and is in the report."""
        if not isinstance(source, Source):
            raise TypeError(f"sources are of type Source, got {type(source).__name__}")
        number = hash(source.id)
        if number in self._seen:
            self._tally.fail(source, "another source of this run has the same id; an id names one source")
            return []
        self._seen.add(number)
        try:
            return await self._in_thread(self._cut, source)
        except BadSource as error:
            self._tally.fail(source, str(error))
            return []
        except Exception as error:
            error.add_note(f"while cutting source {source.id!r}")
            raise

    def _in_thread(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


@final
class _Rows:
    """The collection's rows."""

    def __init__(self, milvus: Any, collection: str, batch_rows: int) -> None:
        self._milvus = milvus
        self._collection = collection
        self._batch_rows = batch_rows
        #: milvus-lite does not take two writes to one collection at a time.
        self._writing = asyncio.Lock()

    async def ids(self, sources: Iterable[str]) -> dict[str, set[str]]:
        """Return the ids of the chunks that are there, by source."""
        there: dict[str, set[str]] = {source: set() for source in sources}
        found = await self._milvus.query(
            self._collection, _among(SOURCE, there), output_fields=[ID, SOURCE], consistency_level="Strong"
        )
        for row in found:
            there[row[SOURCE]].add(row[ID])
        return there

    async def write(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        rows = [
            {ID: chunk.id, TEXT: chunk.text, SOURCE: chunk.source, VECTOR: vector, **chunk.metadata}
            for chunk, vector in zip(chunks, vectors, strict=True)
        ]
        async with self._writing:
            await self._milvus.upsert_rows(self._collection, rows)

    async def delete(self, numbers: Sequence[str]) -> None:
        """Delete rows by id: unlike any other condition, that may be repeated safely."""
        for part in _parts(numbers, self._batch_rows):
            async with self._writing:
                await self._milvus.delete(self._collection, _among(ID, part))


def _among(field: str, values: Iterable[str]) -> str:
    """Return the expression that a field has one of these values."""
    return f"{field} in [{', '.join(json.dumps(value, ensure_ascii=False) for value in values)}]"


def _names(batch: Iterable[str]) -> str:
    names = [repr(name) for name in batch]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more sources" if len(names) > 3 else "")


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
