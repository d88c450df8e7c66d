"""A backup written back: the collections as they were at one entry of the log, under their own or other names.

Decisions made here:

* What is wrong is found before anything is written: damaged files, names that are taken, what the target cannot hold.
* Rows are written in any order, each as it is in the end (`haclient.recovery.latest`), so several files are under way
  at once, and a restore that was cut off goes on with the files that are not done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, final

from haclient.errors import ConfigError
from haclient.milvus import structure
from haclient.milvus.digest import Digest
from haclient.milvus.status import Flavour
from haclient.recovery.checkpoint import Checkpoint, digest_of
from haclient.recovery.creation import creation
from haclient.recovery.lineage import Life, Lineage
from haclient.recovery.manifest import RowsFile
from haclient.recovery.moment import Moment
from haclient.recovery.refill import Refill
from haclient.recovery.source import Fleet
from haclient.recovery.store import Store
from haclient.recovery.target import Target, versions
from haclient.recovery.threads import each_in_thread, in_thread
from haclient.replication.log import Stream
from haclient.replication.reseed import Advance
from haclient.replication.site import chosen
from haclient.replication.timing import at_once

#: Most bytes of rows in one request, whatever is configured: servers take 64 MiB.
_MOST_BYTES: Final = 16 << 20


@final
@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be restored, and how.

    Attributes:
        names: Collections (name or database.name), each with its new name, "" for its own; all if empty.
        where: Names the target, so that a restore to another one does not go on with this one.
        workers: Files under way at once.
        drop_existing: Drop collections of the target that are in the way.
        given_keys: Make auto_id collections ones whose keys the application gives.
        verify: Read everything back.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    where: tuple[str, ...] = ()
    workers: int = 4
    drop_existing: bool = False
    given_keys: bool = False
    verify: bool = True


def parse_names(given: Iterable[str]) -> dict[str, str]:
    """Read ``collection`` or ``collection=new``, each name with or without a database.

    Raises:
        ConfigError: One is something else, or is given twice.
    """
    names: dict[str, str] = {}
    for text in given:
        name, sign, new = text.partition("=")
        if not name or (sign and not new) or name in names:
            raise ConfigError(f"--collection {text}: write database.name or database.name=database.new, each once")
        names[name] = new
    return names


async def restore(
    store: Store,
    fleet: Fleet,
    target: Target,
    moment: Moment,
    wish: Wish,
    report: Callable[[Advance], None] = lambda _: None,
) -> Advance:
    """Restore a backup, or go on with a restore that was cut off.

    Raises:
        ConfigError: There is no such collection, its name is taken, or the target cannot hold it; nothing was written.
        BackupDamaged: The backup is not what was written. If it could be found before, nothing was written.
        SiteFailed: The target could not be written, or does not hold what it should; what was done is kept.
        LogError: The log failed.
    """
    return await _Restoring(store, fleet, target, moment, wish, report).run()


@final
class _Restoring:
    """One restore, by one process."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        target: Target,
        moment: Moment,
        wish: Wish,
        report: Callable[[Advance], None],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._target = target
        self._moment = moment
        self._wish = wish
        self._report = report
        self._began = fleet.loop.time()
        self._name = moment.backups[-1].id
        self._lineage = Lineage(moment.full)
        self._advance = Advance(self._name)
        self._saving = asyncio.Lock()

    async def run(self) -> Advance:
        """Restore everything."""
        lives = await in_thread(self._read_log)
        await self._target.settle()
        where = {life: self._new_name(stream) for stream, life in lives.items()}
        refills = await self._prepare(where)
        await self._make_databases(where)
        await self._each(refills, Refill.make)
        await self._fill(refills)
        await self._replay(refills)
        await self._each(refills, Refill.finish)
        await self._make_aliases(where)
        if self._wish.verify:
            await self._each([refill for refill in refills if not refill.done.verified], Refill.verify)
        await in_thread(self._checkpoint.delete)
        self._advance.notes += [*self._lineage.notes, *(note for refill in refills for note in refill.notes)]
        self._advance.collections = len(refills)
        self._tell()
        return self._advance

    async def _prepare(self, where: Mapping[Life, Stream]) -> list[Refill]:
        """Find what is wrong before anything is written, and what an earlier run has done."""
        if len(set(where.values())) < len(where):
            raise ConfigError("two collections would have the same name: write database.name on the left of each =")
        told, wish = versions(self._target), self._wish
        mirrored, given_keys = self._target.mirrored, wish.given_keys
        creations = {
            life: creation(life, to, told, mirrored=mirrored, given_keys=given_keys) for life, to in where.items()
        }
        await in_thread(self._check_files, where)
        what = (self._name, self._moment.seq, sorted(wish.names.items()), wish.where)
        self._checkpoint = await in_thread(Checkpoint.open, self._store, self._fleet.name, *what)
        await self._make_room(where)
        size = min(self._fleet.settings.batch_bytes, _MOST_BYTES)
        target, store, save = self._target, self._store, self._save
        refills = [
            Refill(target, store, life, to, creations[life], self._checkpoint.of(to), save, self._wrote, size)
            for life, to in where.items()
        ]
        self._expect(refills)
        return refills

    # Before anything is written.

    def _read_log(self) -> dict[Stream, Life]:
        """Find the collections that there are in the end, and the newest entry of each of their keys; it blocks."""
        moment, lineage = self._moment, self._lineage
        for entry in moment.settled(self._store):
            lineage.settle(entry)
        for entry in moment.later(self._store):
            lineage.take(entry)
        there = lineage.living()
        lives = {
            stream: there[stream] for stream in chosen(there, list(self._wish.names), f"the backup {self._name} has no")
        }
        of_interest = set(lives.values())
        for entry in chain(moment.settled(self._store), moment.later(self._store)):
            life = lineage.owner(entry)
            if life is not None and life in of_interest:
                lineage.follow(life, entry)
        return lives

    def _new_name(self, stream: Stream) -> Stream:
        full_name = f"{stream[0] or 'default'}.{stream[1]}"
        new = self._wish.names.get(full_name) or self._wish.names.get(stream[1], "")
        database, dot, name = new.rpartition(".")
        if not new:
            return stream
        return (("" if database == structure.DEFAULT_DATABASE else database) if dot else stream[0]), name

    def _check_files(self, lives: Iterable[Life]) -> None:
        """Read the files that are needed through; it blocks."""
        for life in lives:
            for file in life.copy.files if life.copy is not None else ():
                with self._store.open_checked(f"{self._moment.full.id}/{file.path}", file.bytes, file.sha256):
                    pass

    async def _make_room(self, where: Mapping[Life, Stream]) -> None:
        """See that nothing is in the way but what an earlier run of this restore has made."""
        site = self._target.sites()[0]
        there = set(await site.catalogue())
        databases = {to[0] for to in where.values()}.intersection(await site.databases())
        aliases = {(name, alias): of for name in databases for alias, of in (await site.aliases(name)).items()}
        own = self._aliases(where)
        taken = []
        for name in where.values():
            done = self._checkpoint.of(name)
            if done.made and name not in there:
                self._checkpoint.reset(name)
            elif name in there and not done.begun:
                taken.append(name)
        in_the_way = [
            alias for alias, of in aliases.items() if (alias[0], of) in taken or own.get(alias, (alias[0], of))[1] != of
        ]
        if not self._wish.drop_existing and (listed := [_title(name) for name in sorted({*taken, *in_the_way})]):
            raise ConfigError(
                f"the target has these names already: {', '.join(listed)}. Restore under other names "
                "(--collection name=other), or give --drop-existing to have what bears them dropped"
            )
        for database, alias in in_the_way:
            await self._target.change(structure.drop_alias(alias, database), database)
        for database, collection in taken:
            await self._target.change(structure.drop_collection(collection, database), database)

    def _aliases(self, where: Mapping[Life, Stream]) -> dict[Stream, Stream]:
        """Return the aliases to be restored: those of collections that keep their names."""
        kept = {life for life, to in where.items() if to == life.stream}
        return {alias: life.stream for alias, life in self._lineage.aliases.items() if life in kept}

    # Writing.

    async def _make_databases(self, where: Mapping[Life, Stream]) -> None:
        wanted = {to[0] for to in where.values()} | (set() if self._wish.names else self._lineage.databases)
        for name in sorted(wanted.difference(await self._target.sites()[0].databases())):
            await self._target.change(structure.create_database(name), "")

    async def _fill(self, refills: Sequence[Refill]) -> None:
        """Write the rows of the full backup, several files at once; milvus-lite takes one writer of a collection."""
        alone = self._target.mirrored or any(site.member.flavour is Flavour.LITE for site in self._target.sites())
        gates = {refill: asyncio.Semaphore(1 if alone else self._wish.workers) for refill in refills}

        async def fill(work: tuple[Refill, RowsFile]) -> None:
            refill, file = work
            async with gates[refill]:
                await refill.fill(self._moment.full.id, file)

        files = [
            (refill, file) for refill in refills if refill.life.copy is not None for file in refill.life.copy.files
        ]
        await at_once(fill, files, self._wish.workers)
        for refill in refills:
            refill.check_copy()

    async def _replay(self, refills: Sequence[Refill]) -> None:
        """Write the rows that the log brought, file by file."""
        for backup, file in self._moment.segments():
            path = f"{backup}/{file.path}"
            todo = {one.life: (one, list[Digest]()) for one in refills if path not in one.done.files}
            if not todo:
                continue
            async with aclosing(each_in_thread(self._moment.segment(self._store, backup, file))) as found:
                async for entries in found:
                    for entry in entries:
                        life = self._lineage.owner(entry)
                        if life is not None and life in todo:
                            refill, written = todo[life]
                            written.append(await refill.take(entry))
            for refill, written in todo.values():
                written.append(await refill.flush())
                refill.done.add(path, Digest(), sum(written, Digest()))
            await self._save()

    async def _make_aliases(self, where: Mapping[Life, Stream]) -> None:
        for (database, alias), (_, collection) in sorted(self._aliases(where).items()):
            await self._target.change(structure.create_alias(collection, alias, database), database)
        for (_, alias), life in sorted(self._lineage.aliases.items()):
            if life in where and where[life] != life.stream:
                self._advance.notes.append(f"the alias {alias} was left out, as {life.stream[1]} has another name now")

    async def _each(self, refills: Sequence[Refill], work: Callable[[Refill], Awaitable[None]]) -> None:
        """Do something with collections, several at once."""

        async def one(refill: Refill) -> None:
            await work(refill)
            self._tell()

        await at_once(one, refills, self._wish.workers)

    # How far it is.

    async def _save(self) -> None:
        async with self._saving:
            await in_thread(self._checkpoint.save, check=True)

    def _expect(self, refills: Sequence[Refill]) -> None:
        advance = self._advance
        advance.of = len(refills)
        advance.rows = sum(digest_of(one.done.written).rows for one in refills)
        advance.expected = sum(one.life.copy.count for one in refills if one.life.copy is not None)
        self._tell()

    def _wrote(self, rows: int, size: int) -> None:
        self._advance.rows += rows
        self._advance.fresh += rows
        self._advance.size += size
        self._tell()

    def _tell(self) -> None:
        self._advance.seconds = self._fleet.loop.time() - self._began
        self._report(self._advance)


def _title(stream: Stream) -> str:
    return f"{stream[0] or structure.DEFAULT_DATABASE}.{stream[1]}"
