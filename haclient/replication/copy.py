"""One collection of one cluster made the same as another cluster's, while the donor is written to.

Decision made here: pages of keys are upserted in their order, and the place is written down after each, so a copy goes
on where it stopped. The copy is fuzzy: it holds some of what was written meanwhile and not the rest. The log makes it
whole (`haclient.replication.reseed`). When all rows are there they are read back, and their digest must be that of what
was written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import final

import orjson

from haclient.errors import CallError
from haclient.milvus import batch, ddl, structure
from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.messages import Key, Request
from haclient.milvus.methods import named
from haclient.milvus.mutations import delete_keys
from haclient.milvus.pages import Page, rows_message
from haclient.milvus.shape import Shape, read_shape
from haclient.milvus.status import Flavour
from haclient.replication.log import Stream
from haclient.replication.site import Site, SiteFailed, ahead


@final
@dataclass(slots=True)
class Place:
    """How far the copy of one collection is; a fact while the copy lasts.

    Attributes:
        seq: Entries of the stream up to this one are in the copy; the log has to bring those after it.
        parked: The donor itself stopped after ``seq``, for this reason; "" if it did not.
        made: The collection is there, empty or (in place) as it was.
        partitions: Those that are done.
        partition: The one that is being copied.
        last: Highest key copied of it, None at its beginning.
        rows: Rows copied.
        total: Digest of all rows copied.
        done: Nothing is left to do.
    """

    seq: int = 0
    parked: str = ""
    made: bool = False
    partitions: list[str] = field(default_factory=list)
    partition: str = ""
    last: Key | None = None
    rows: int = 0
    total: str = "0"
    done: bool = False

    def encode(self) -> bytes:
        """Write it as a fact's value."""
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, value: bytes) -> Place:
        """Read a fact's value."""
        return cls(**orjson.loads(value))

    @property
    def digest(self) -> Digest:
        """Digest of all rows copied."""
        return Digest(self.rows, int(self.total, 16))

    def reset(self) -> None:
        """Start the copy over."""
        self.made = self.done = False
        self.partitions, self.partition, self.last = [], "", None
        self.rows, self.total = 0, "0"

    def add(self, page: Page, hashes: list[bytes]) -> None:
        """Note that a page has been copied."""
        whole = self.digest + digest(hashes)
        self.rows, self.total, self.last = whole.rows, f"{whole.total:x}", max(page.keys)


@final
class Copier:
    """Copies one collection.

    Args:
        donor: Where from.
        target: Where to.
        stream: The collection.
        place: How far it is.
        save: Writes the place down.
        copied: Told of each page: rows and bytes.
        note: Told what could not be copied as it is.
        in_place: Keep a collection that is there, and write only what differs.
    """

    def __init__(
        self,
        donor: Site,
        target: Site,
        stream: Stream,
        place: Place,
        save: Callable[[], Awaitable[None]],
        copied: Callable[[int, int], None],
        note: Callable[[str], None],
        *,
        in_place: bool,
    ) -> None:
        self._donor = donor
        self._target = target
        self._database, self._collection = stream
        self._place = place
        self._save = save
        self._copied = copied
        self._note = note
        self._in_place = in_place

    async def run(self) -> None:
        """Copy the collection; one that the donor has not is dropped.

        Raises:
            SiteFailed: It cannot be copied; the message says why.
        """
        try:
            await self._run()
        except CallError as error:
            if await self._donor.describe(self._database, self._collection):
                raise SiteFailed(f"{self._collection}: {error}") from error
            await self._drop()  # dropped on the donor meanwhile
        self._place.done = True
        await self._save()

    async def _run(self) -> None:
        description = await self._donor.describe(self._database, self._collection)
        if not description:
            await self._drop()
            return
        shape = read_shape(description, self._database)
        if shape.native_auto_id:
            raise SiteFailed(
                f"{self._collection}: the servers make this collection's keys, so it cannot be copied with them. "
                "Create it anew through haclient, which makes the keys itself, or drop it"
            )
        if not self._place.made:
            await self._make(description, shape)
            self._place.made = True
            await self._save()
        await self._fill(shape)

    # The collection itself.

    async def _drop(self) -> None:
        for alias in await self._aliases():
            await self._target.change(structure.drop_alias(alias, self._database), self._database)
        await self._target.change(structure.drop_collection(self._collection, self._database), self._database)

    async def _aliases(self) -> list[str]:
        request = structure.list_aliases(self._collection, self._database)
        try:
            return structure.read_aliases(await self._target.ask(request, self._database))
        except CallError:
            return []  # there is no such collection

    async def _make(self, description: bytes, shape: Shape) -> None:
        existing = await self._target.describe(self._database, self._collection)
        if not (self._in_place and existing and not ddl.existing_differences(description, existing)):
            await self._drop()
            await self._target.change(structure.create_collection(description, self._database), self._database)
            existing = await self._target.describe(self._database, self._collection)
            if lacking := ddl.existing_differences(description, existing):
                raise SiteFailed(
                    f"{self._collection}: cluster {self._target.name} has not kept all of its schema: "
                    f"{'; '.join(lacking)}. Its version does not understand it; update it, or drop the collection"
                )
        await self._make_partitions(shape)
        await self._make_indexes(shape)

    async def _make_partitions(self, shape: Shape) -> None:
        if shape.partition_key:
            return
        request = structure.list_partitions(self._collection, self._database)
        there = set(structure.read_partitions(await self._target.ask(request, self._database)))
        wanted = set(structure.read_partitions(await self._donor.ask(request, self._database)))
        for name in sorted(there - wanted):
            change = structure.drop_partition(self._collection, name, self._database)
            await self._target.change(change, self._database)
        for name in sorted(wanted - there):
            change = structure.create_partition(self._collection, name, self._database)
            await self._target.change(change, self._database)

    async def _make_indexes(self, shape: Shape) -> None:
        there = await self._target.indexes(shape)
        for index in await self._donor.indexes(shape):
            if index.field not in {one.field for one in there}:
                wanted = index if self._donor.member.flavour is not Flavour.LITE else structure.untold(index)
                if "AUTOINDEX" in dict(wanted.params).values() and wanted != index:
                    text = f"{self._collection}.{index.field}: AUTOINDEX in place of {dict(index.params)['index_type']}"
                    self._note(f"{text}, since milvus-lite does not tell the parameters of an index")
                change = structure.create_index(self._collection, wanted, self._database)
                await self._target.change(change, self._database)

    # Its rows.

    async def _fill(self, shape: Shape) -> None:
        async with self._donor.readable(shape) as has_rows:
            if not has_rows:
                return
            if self._in_place:
                await self._target.load(shape)
            fence = await self._donor.fence()
            for partition in await self._donor.partitions(shape):
                if partition not in self._place.partitions:
                    await self._copy_partition(shape, partition, fence)
            flush = structure.flush(self._collection, self._database)
            await self._target.change(flush, self._database)
            await self._target.load(shape, await self._donor.replicas(shape))
            await self._check(shape)
        if not await self._donor.is_loaded(shape):
            await self._target.change(structure.release(self._collection, self._database), self._database)

    async def _copy_partition(self, shape: Shape, partition: str, fence: int) -> None:
        place = self._place
        if place.partition != partition:
            place.partition, place.last = partition, None
        pages = self._donor.pages(shape, partition=partition, after=place.last, timestamp=fence)
        async with aclosing(ahead(pages)) as coming:
            async for page in coming:
                hashes = row_hashes(page)
                if self._in_place:
                    await self._mend(shape, partition, page, hashes)
                else:
                    await self._write(shape, partition, page)
                place.add(page, list(hashes.values()))
                await self._save()
                self._copied(len(page.keys), page.size)
        if self._in_place:
            await self._remove(shape, partition, {}, place.last, None)
        place.partitions.append(partition)
        place.last = None
        await self._save()

    async def _write(self, shape: Shape, partition: str, page: Page) -> None:
        method = named(batch.replaces_rows(self._target.member.flavour))
        await self._target.change(Request(method, rows_message(page, shape, partition)), self._database)

    async def _mend(self, shape: Shape, partition: str, page: Page, hashes: dict[Key, bytes]) -> None:
        """Make the target's rows between the last key and this page's highest those of the page."""
        there = await self._remove(shape, partition, hashes, self._place.last, max(page.keys))
        if there != hashes:
            await self._write(shape, partition, page)

    async def _remove(
        self, shape: Shape, partition: str, wanted: dict[Key, bytes], after: Key | None, through: Key | None
    ) -> dict[Key, bytes]:
        """Delete from the target what is not wanted of a range of keys; return what is there of the rest."""
        found: dict[Key, bytes] = {}
        pages = self._target.pages(shape, partition=partition, after=after, through=through)
        async with aclosing(pages):
            async for page in pages:
                found |= row_hashes(page)
        extra = [key for key in found if key not in wanted]
        for message in delete_keys(shape, extra, partition, self._database):
            await self._target.change(Request(named("Delete"), message), self._database)
        return {key: row for key, row in found.items() if key in wanted}

    async def _check(self, shape: Shape) -> None:
        """Read all rows back."""
        found = Digest()
        fence = await self._target.fence()
        for partition in await self._target.partitions(shape):
            async with aclosing(ahead(self._target.pages(shape, partition=partition, timestamp=fence))) as pages:
                async for page in pages:
                    found += digest(list(row_hashes(page).values()))
        written = self._place.digest
        if found != written:
            self._place.reset()
            await self._save()
            raise SiteFailed(
                f"{self._collection}: cluster {self._target.name} does not hold what was written to it: {found} was "
                f"read back, {written} was written (rows:hash). Run this again, to copy the collection anew"
            )
