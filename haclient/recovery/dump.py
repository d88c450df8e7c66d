"""One collection of one cluster written to a store, while it is written to.

Decision made here: rows are read by pages of keys, partition by partition, and gathered to files of a few dozen
megabytes; a file that is whole is not read again, whoever goes on. Its hashes are made from what the server answered,
before it becomes Parquet, so the way through Parquet and back is verified as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, final

from haclient.errors import CallError
from haclient.milvus import structure
from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.pages import Page
from haclient.milvus.schema import read_schema
from haclient.milvus.shape import Shape, read_shape
from haclient.recovery.journal import Place
from haclient.recovery.manifest import Collection, IndexPart, RowsFile, rows_path
from haclient.recovery.rows import write_rows
from haclient.recovery.store import Store
from haclient.recovery.threads import in_thread
from haclient.replication.log import MutationLog
from haclient.replication.site import Site, SiteFailed, ahead

#: Bytes of answers that are gathered to one file.
FILE_BYTES: Final = 32 << 20
#: Times that a collection may be released while it is read.
_MOST_RELEASES: Final = 5
#: Milvus' code for a collection that is not loaded.
_NOT_LOADED: Final = 101


@final
class Dump:
    """Writes one collection to a store.

    Args:
        site: The cluster that is read.
        store: Where to.
        folder: Of the backup.
        place: How far it is.
        save: Writes the place down.
        copied: Told of each page: rows and bytes.
        log: The mutation log; None without one.
    """

    def __init__(
        self,
        site: Site,
        store: Store,
        folder: str,
        place: Place,
        save: Callable[[], Awaitable[None]],
        copied: Callable[[int, int], None],
        log: MutationLog | None,
    ) -> None:
        self._site = site
        self._store = store
        self._folder = folder
        self._place = place
        self._save = save
        self._copied = copied
        self._log = log

    async def run(self) -> None:
        """Write the collection; one that is not there is done.

        Raises:
            SiteFailed: It cannot be read; the message says why.
            BackupError: The store cannot be written.
        """
        place, releases = self._place, 0
        while True:
            try:
                place.collection = await self._run()
                break
            except CallError as error:
                if not await self._site.describe(place.database, place.name):
                    place.collection = None  # dropped meanwhile
                    break
                if error.code != _NOT_LOADED or releases == _MOST_RELEASES:
                    raise SiteFailed(f"{place.name}: {error}") from error
                releases += 1  # it was released meanwhile: it is loaded for a time, and read on
            except ValueError as error:
                raise SiteFailed(f"{place.name} cannot be backed up: {error}") from error
        place.done = True
        await self._save()

    async def _run(self) -> Collection | None:
        place, site = self._place, self._site
        description = await site.describe(place.database, place.name)
        if not description:
            return None
        shape = read_shape(description, place.database)
        partitions = structure.read_partitions(
            await site.ask(structure.list_partitions(place.name, place.database), place.database)
        )
        loaded = await site.is_loaded(shape)
        replicas = await site.replicas(shape) if loaded else 0
        async with site.readable(shape, self._log) as has_rows:
            if has_rows:
                await self._rows(shape)
        return Collection(
            database=place.database,
            name=place.name,
            description=description,
            readable=_readable(description),
            partitions=[] if shape.partition_key else partitions,
            indexes=[
                IndexPart(name=one.name, field=one.field, params=dict(one.params)) for one in await site.indexes(shape)
            ],
            loaded=loaded,
            replicas=replicas,
            count=place.rows,
            digest=place.total,
            files=place.files,
        )

    async def _rows(self, shape: Shape) -> None:
        site, place = self._site, self._place
        fence = await site.fence()
        for partition in await site.partitions(shape):
            if partition not in place.partitions:
                await self._partition(shape, partition, fence)
                place.partitions.append(partition)
                await self._save()
        place.counted = structure.read_count(await site.ask(structure.count_rows(shape), shape.database))

    async def _partition(self, shape: Shape, partition: str, fence: int) -> None:
        done = [file for file in self._place.files if file.partition == partition]
        after, gathered, size = done[-1].last if done else None, list[Page](), 0
        pages = self._site.pages(shape, partition=partition, after=after, timestamp=fence)
        async with aclosing(ahead(pages)) as coming:
            async for page in coming:
                gathered.append(page)
                size += page.size
                self._copied(len(page.keys), page.size)
                if size >= FILE_BYTES:
                    await self._write(shape, partition, gathered)
                    gathered, size = [], 0
        if gathered:
            await self._write(shape, partition, gathered)

    async def _write(self, shape: Shape, partition: str, pages: list[Page]) -> None:
        place = self._place
        number = sum(file.partition == partition for file in place.files)
        path = rows_path(place.database, place.name, partition, number)
        place.add(*await in_thread(self._file, shape, partition, path, pages))
        await self._save()

    def _file(self, shape: Shape, partition: str, path: str, pages: list[Page]) -> tuple[RowsFile, Digest]:
        """Write one file; it blocks."""
        found = Digest()
        with write_rows(self._store, f"{self._folder}/{path}", shape) as writer:
            for page in pages:
                found += digest(list(row_hashes(page).values()))
                writer.add(page.columns.values())
        return writer.described(path, partition), found

    async def is_same(self) -> bool:
        """Read the collection once more; say whether it holds the same rows as when it was written."""
        place, found = self._place, Digest()
        try:
            shape = await self._site.shape(place.database, place.name)
            if shape is None:
                return False
            async with self._site.readable(shape) as has_rows:
                fence = await self._site.fence()
                for partition in await self._site.partitions(shape) if has_rows else ():
                    async with aclosing(ahead(self._site.pages(shape, partition=partition, timestamp=fence))) as pages:
                        async for page in pages:
                            found += digest(list((await in_thread(row_hashes, page)).values()))
        except CallError:
            return False  # dropped or released meanwhile
        return found == place.digest


def _readable(description: bytes) -> dict[str, Any]:
    """Return what people want to see of a collection."""
    told = read_schema(description)
    return {
        "fields": {one.name: f"{one.kind}[{one.dimension}]" if one.dimension else one.kind for one in told.fields},
        "key": next(one.name for one in told.fields if one.is_key),
        "dynamic": told.is_dynamic,
        "consistency_level": told.level,
        "properties": dict(told.properties),
    }
