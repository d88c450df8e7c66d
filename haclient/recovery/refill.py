"""One collection of a backup, made and filled on a target.

Decision made here: rows first, then indexes, then the load, so that nothing is built twice; and in the end all rows are
read back, and must be those that the backup holds at that entry of the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import aclosing
from typing import Any, Final, final

from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus import batch, ddl, structure
from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.messages import Request
from haclient.milvus.mutations import pick
from haclient.milvus.pages import Page, rows_message
from haclient.milvus.shape import Shape, parse
from haclient.recovery.checkpoint import Done, digest_of
from haclient.recovery.creation import forbid_keys, renamed
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.lineage import Life
from haclient.recovery.manifest import RowsFile
from haclient.recovery.rows import from_arrow, read_rows
from haclient.recovery.store import Store
from haclient.recovery.target import Target
from haclient.recovery.threads import each_in_thread, in_thread
from haclient.recovery.whole import complete, is_reworded
from haclient.replication.batching import ROWS
from haclient.replication.log import Entry, Stream
from haclient.replication.site import Site, SiteFailed, ahead

#: Entries of the log that are written together at most.
_MOST_ENTRIES: Final = 4_096


@final
class Refill:
    """Makes and fills one collection.

    Args:
        target: Where.
        store: Where the backup is.
        life: What is restored.
        to: Its database and name there.
        create: The request that creates it.
        done: What is done of it.
        save: Writes that down.
        wrote: Told of rows and bytes as they are written.
        batch_bytes: Most bytes of rows written at once.
    """

    def __init__(
        self,
        target: Target,
        store: Store,
        life: Life,
        to: Stream,
        create: Request,
        done: Done,
        save: Callable[[], Awaitable[None]],
        wrote: Callable[[int, int], None],
        batch_bytes: int,
    ) -> None:
        self.life = life
        self.to = to
        self.done = done
        self.notes: list[str] = []
        self._target = target
        self._store = store
        self._create = create
        self._save = save
        self._wrote = wrote
        self._batch_bytes = batch_bytes
        self._groups: list[_Group] = []
        self._shape: Shape | None = None

    @property
    def shape(self) -> Shape:
        """The collection on the target, once it is made."""
        assert self._shape is not None
        return self._shape

    # The collection.

    async def make(self) -> None:
        """Create the collection, with its partitions, unless that is done.

        Raises:
            SiteFailed: The target has not made what was wanted.
        """
        if not self.done.made:
            if self.done.begun:  # what is there of it is of unknown state, and empty
                await self._change(structure.drop_collection(self.to[1], self.to[0]))
            self.done.begun = True
            await self._save()
            await self._make()
            self.done.made = True
            await self._save()
        self._shape = await self._target.sites()[0].shape(*self.to)
        if self._shape is None:
            raise SiteFailed(f"{self.to[1]} has been dropped while it was restored")

    async def _make(self) -> None:
        await self._change(self._create)
        description = await self._target.sites()[0].describe(*self.to)
        if lacking := ddl.differences(self._create.message, description):
            raise SiteFailed(
                f"{self.to[1]}: the target has not kept all of its schema: {'; '.join(lacking)}. Its version does not "
                "understand it"
            )
        for entry in self.life.changes:
            await self._change(renamed(entry.mutation.method, entry.mutation.message, self.to))
        if not self.life.partition_key:
            for name in sorted(self.life.partitions - {structure.DEFAULT_PARTITION}):
                await self._change(structure.create_partition(self.to[1], name, self.to[0]))

    async def _change(self, request: Request) -> None:
        await self._target.change(request, self.to[0])

    # Rows of the full backup.

    async def fill(self, backup: str, file: RowsFile) -> None:
        """Write the rows of one file that have not been written over since."""
        if (whole := f"{backup}/{file.path}") in self.done.files:
            return
        read, written = Digest(), Digest()
        async with aclosing(each_in_thread(self._messages(backup, file))) as messages:
            async for message, all_rows, kept in messages:
                if kept.rows:
                    await self._target.write(message, self.to[0])
                    self._wrote(kept.rows, len(message))
                read, written = read + all_rows, written + kept
        self.done.add(whole, read, written)
        await self._save()

    def _messages(self, backup: str, file: RowsFile) -> Generator[tuple[bytes, Digest, Digest]]:
        """Read a file, and make requests of it: what to send, what was read, what of it is sent; it blocks."""
        copy, latest = self.life.copy, self.life.latest
        assert copy is not None
        source, where = copy.shape, self.life.partition(file.partition)
        for rows in read_rows(self._store, backup, file, source, max_bytes=self._batch_bytes):
            page = Page(from_arrow(source, rows), source.key)
            read = digest(list(row_hashes(page).values()))
            keeps = [latest.keeps(key, where) for key in page.keys]
            if not all(keeps):
                page = Page(from_arrow(source, rows.filter(keeps)), source.key)
            message, kept = self._request(page, file.partition)
            yield message, read, kept

    def check_copy(self) -> None:
        """Compare what was read from the files with what the servers had answered.

        Raises:
            BackupDamaged: It is something else.
        """
        copy = self.life.copy
        if copy is not None and digest_of(self.done.read) != copy.total:
            raise BackupDamaged(
                f"{copy.name}: its files hold {self.done.read}, and the servers had answered {copy.total} (rows:hash)"
            )

    # Rows of the log.

    async def take(self, entry: Entry) -> Digest:
        """Take an entry of the log; return the digest of the rows that had to be written before."""
        method, message = entry.mutation.method, entry.mutation.message
        if method not in ROWS:
            return Digest()
        keys = batch.keys_of(method, message, self.life.key)
        newest = [at for at, key in enumerate(keys) if self.life.latest.is_newest(key, entry.seq)]
        if not newest:
            return Digest()
        if len(newest) < len(keys):
            message = self._picked(message, newest)
        group = next((one for one in self._groups if one.joins(message)), None)
        if group is None:
            self._groups.append(group := _Group())
        group.add(message)
        if group.size < self._batch_bytes and len(group.messages) < _MOST_ENTRIES:
            return Digest()
        self._groups.remove(group)
        return await self._send(group)

    async def flush(self) -> Digest:
        """Write what was taken; return its digest."""
        written = Digest()
        for group in self._groups:
            written += await self._send(group)
        self._groups = []
        return written

    def _picked(self, message: bytes, rows: Sequence[int]) -> bytes:
        request = parse(milvus_pb2.UpsertRequest, message)
        pick(request.fields_data, rows, self.shape)
        request.num_rows = len(rows)
        return bytes(request.SerializeToString())

    async def _send(self, group: _Group) -> Digest:
        message, written = await in_thread(self._merged, group)
        await self._target.write(message, self.to[0])
        self._wrote(written.rows, len(message))
        return written

    def _merged(self, group: _Group) -> tuple[bytes, Digest]:
        merged = batch.merge([("Upsert", message) for message in group.messages], self.life.key)
        request = parse(milvus_pb2.UpsertRequest, merged)
        if is_reworded(self.shape):
            self.done.inexact = True
        return self._request(Page(request.fields_data, self.life.key), request.partition_name)

    def _request(self, page: Page, partition: str) -> tuple[bytes, Digest]:
        """Make the request that writes rows, and the digest of what a server then gives back."""
        if not page.keys:
            return b"", Digest()
        key_first: list[Any] = [page.columns.pop(self.shape.key), *page.columns.values()]
        page = Page(key_first, self.shape.key)
        message = rows_message(page, self.shape, partition)
        if not complete(page, self.shape):
            self.done.inexact = True
        return message, digest(list(row_hashes(page).values()))

    # The end.

    async def finish(self) -> None:
        """Build the indexes, load the collection as it was, and take back what the restore needed."""
        for index in sorted(self.life.indexes.values(), key=lambda one: (one.field, one.name)):
            await self._change(structure.create_index(self.to[1], index, self.to[0]))
        await self._change(structure.flush(self.to[1], self.to[0]))
        if self.life.replicas:
            await self._load()
        if self.shape.native_auto_id and (request := forbid_keys(self.life, self.to)) is not None:
            await self._change(request)

    async def _load(self) -> None:
        replicas = self.life.replicas
        try:
            await self._change(structure.load(self.to[1], self.to[0], replicas))
        except SiteFailed as error:
            if replicas == 1:
                raise
            self.notes.append(f"{self.to[1]}: loaded once, and not {replicas} times: {error}")
            await self._change(structure.load(self.to[1], self.to[0]))

    async def verify(self) -> None:
        """Read everything back on every cluster.

        Raises:
            SiteFailed: A cluster does not hold what the backup does.
        """
        if not self.life.replicas and not self.life.indexes:
            self.notes.append(f"{self.to[1]}: not read back, since without an index it cannot be loaded")
            return
        if not self.life.replicas:
            await self._change(structure.load(self.to[1], self.to[0]))
        wanted = digest_of(self.done.written)
        for site in self._target.sites():
            await site.is_loaded(self.shape)
            found = await self._read(site)
            if found != wanted and (not self.done.inexact or found.rows != wanted.rows):
                raise SiteFailed(
                    f"{self.to[1]}: cluster {site.name} does not hold what the backup does: {found} was read back, "
                    f"{wanted} was written (rows:hash). If nobody has written to it, restore it again with "
                    "--drop-existing"
                )
        if self.done.inexact:
            self.notes.append(
                f"{self.to[1]}: its rows were counted, not compared: servers give some of what the log holds back in "
                "other words"
            )
        if not self.life.replicas:
            await self._change(structure.release(self.to[1], self.to[0]))
        self.done.verified = True
        await self._save()

    async def _read(self, site: Site) -> Digest:
        found, fence = Digest(), await site.fence()
        for partition in await site.partitions(self.shape):
            async with aclosing(ahead(site.pages(self.shape, partition=partition, timestamp=fence))) as pages:
                async for page in pages:
                    found += digest(list((await in_thread(row_hashes, page)).values()))
        return found


class _Group:
    """Entries of the log that become one request."""

    __slots__ = ("messages", "size")

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.size = 0

    def joins(self, message: bytes) -> bool:
        """Say whether an entry may join those that are there."""
        return batch.mergeable(("Upsert", self.messages[0]), ("Upsert", message))

    def add(self, message: bytes) -> None:
        """Add an entry."""
        self.messages.append(message)
        self.size += len(message)
