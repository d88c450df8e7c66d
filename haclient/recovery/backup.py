"""A backup of one healthy cluster, made while writes go on: a fuzzy copy, and then the log since the copy began.

Decisions made here:

* With a mutation log the backup is what every cluster holds at one entry of the log, to which nobody has to stop. A
  collection that was created, dropped, renamed, indexed or divided while it was read is read again, as in a reseed.
* Without one it holds rows as they were at different moments. Reading everything twice shows whether that matters.
* One that was cut off goes on, if it is asked for again with the same words. Files that are whole are not read again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, final

from haclient.errors import CallError, ConfigError, LogTrimmed
from haclient.milvus import structure, watermarks
from haclient.recovery import journal, manifest
from haclient.recovery.dump import Dump
from haclient.recovery.journal import Head, Journal, Place
from haclient.recovery.manifest import Database, Manifest
from haclient.recovery.source import Fleet
from haclient.recovery.store import Store
from haclient.recovery.tail import log_id, write_tail
from haclient.recovery.threads import in_thread
from haclient.replication.donor import caught_up, choose
from haclient.replication.hold import position_of
from haclient.replication.keep import KEPT, keep
from haclient.replication.log import BARRIER, MutationLog, Stream
from haclient.replication.position import Position
from haclient.replication.reseed import Advance
from haclient.replication.site import SiteFailed, chosen
from haclient.replication.survey import Survey
from haclient.replication.timing import at_once

#: Times that collections which change meanwhile are read again.
_MOST_ROUNDS: Final = 20
_HOUR_S: Final = 3_600.0
#: Time for which the log is kept for a backup that is being made, or was cut off, seconds.
_RUN_S: Final = 24 * _HOUR_S


@final
@dataclass(frozen=True, slots=True)
class Task:
    """What is to be backed up.

    Attributes:
        wanted: Names of collections (or database.name); all if empty.
        cluster: The cluster to read; "" chooses one.
        workers: Collections read at once.
        reread: Without a log: read everything twice, to tell whether it changed meanwhile.
        keep_s: Time for which the log keeps what comes after this backup, seconds.
    """

    wanted: tuple[str, ...] = ()
    cluster: str = ""
    workers: int = 2
    reread: bool = True
    keep_s: float = _RUN_S


async def full(store: Store, fleet: Fleet, task: Task, report: Callable[[Advance], None] = lambda _: None) -> Manifest:
    """Make a full backup, or go on with one that was cut off.

    Raises:
        ConfigError: There is no such cluster or collection.
        SiteFailed: The cluster could not be read; what was done is kept for the next time.
        BackupError: The store could not be written.
        LogError: The log failed.
    """
    work = _Full(store, fleet, task, report)
    try:
        return await work.run()
    except LogTrimmed as error:
        raise SiteFailed(
            f"what was written during the backup is no longer in the log: {error}. Raise replication.max_entries or "
            "max_bytes, and run this again"
        ) from error


@final
class _Full:
    """One full backup, by one process."""

    def __init__(self, store: Store, fleet: Fleet, task: Task, report: Callable[[Advance], None]) -> None:
        self._store = store
        self._fleet = fleet
        self._task = task
        self._report = report
        self._places: dict[Stream, Place] = {}
        self._general = 0
        self._began = fleet.loop.time()
        self._advance = Advance("")

    async def run(self) -> Manifest:
        """Read everything, add the log, and write the manifest."""
        log = self._fleet.log
        self._journal = await self._resume() or await self._begin()
        head = self._journal.head
        self._site = self._fleet.site(head.cluster)
        self._advance.donor = head.cluster
        if log is None:
            await self._read_some(await self._there())
            databases, aliases = await self._read_general()
            if self._task.reread:
                await self._each(self._places, self._compare)
            return await self._finish(head, databases, aliases)
        self._survey = Survey(log)
        self._survey.start(head.from_seq)
        databases, aliases = await self._settled(log)
        files = await write_tail(log, self._store, head.id, head.from_seq, self._survey.seen)
        done = await self._finish(head, databases, aliases, seq=self._survey.seen, log=files)
        await keep(log, KEPT, self._survey.seen, self._fleet.wall() + self._task.keep_s)
        return done

    # Beginning, or going on.

    async def _resume(self) -> Journal | None:
        """Go on with a backup that was cut off; None if there is none that can go on."""
        log, task = self._fleet.log, self._task
        known = await log_id(log, self._fleet) if log is not None else ""
        for head in reversed(await in_thread(journal.unfinished, self._store)):
            same = (head.parent, tuple(head.wanted), head.log_id) == ("", task.wanted, known)
            if not same or task.cluster not in ("", head.cluster):
                continue
            try:
                await self._choose(head.cluster)
            except ConfigError:
                continue  # the cluster is away itself
            if log is not None and (await log.bounds()).first > head.from_seq + 1:
                continue
            found = Journal(self._store, head.model_copy(update={"writer": self._fleet.name}))
            await in_thread(found.begin)
            self._places = {place.stream: place for place in await in_thread(found.places)}
            return found
        return None

    async def _begin(self) -> Journal:
        fleet, task = self._fleet, self._task
        cluster = await self._choose(task.cluster)
        at = fleet.now()
        head = Head(
            id=manifest.new_id(at, fleet.rng),
            created=at,
            wanted=list(task.wanted),
            cluster=cluster,
            writer=fleet.name,
        )
        if fleet.log is not None:
            head.log_id = await log_id(fleet.log, fleet)
            while True:
                head.from_seq = (await position_of(fleet.log, cluster)).low
                await keep(fleet.log, KEPT, head.from_seq, fleet.wall() + _RUN_S)
                if (await fleet.log.bounds()).first <= head.from_seq + 1:
                    break
        begun = Journal(self._store, head)
        await in_thread(begun.begin)
        return begun

    async def _choose(self, wanted: str) -> str:
        """Choose the cluster to read."""
        fleet = self._fleet
        members = {member.name: member for member in fleet.clusters.members()}
        if wanted and wanted not in members:
            raise ConfigError(f"there is no cluster {wanted!r}; write one of {', '.join(members)}")
        if fleet.log is not None:
            return await choose(fleet.log, fleet.clusters, wanted=wanted)
        fit = [name for name, member in members.items() if not member.drained]
        if wanted and wanted not in fit:
            raise ConfigError(f"cluster {wanted!r} cannot be read: it is drained")
        if not wanted and len(members) > 1:
            raise ConfigError(
                f"there are {len(members)} clusters ({', '.join(members)}) and no mutation log says that they hold the "
                "same: name the one to back up with --cluster"
            )
        if not fit:
            raise SiteFailed("there is no cluster to read from: none is in rotation")
        return wanted or fit[0]

    # Collections.

    async def _there(self) -> set[Stream]:
        """Return the collections that the cluster has and that are wanted."""
        there = [stream for stream in await self._site.catalogue() if stream[1] != watermarks.COLLECTION]
        return set(chosen(there, self._task.wanted, f"cluster {self._site.name} has no"))

    async def _settled(self, log: MutationLog) -> tuple[list[Database], dict[Stream, str]]:
        """Read until nothing has changed that the log cannot make good; return what concerns several collections."""
        await self._survey.look()
        todo = await self._there()
        for _ in range(_MOST_ROUNDS):
            await self._read_some(todo)
            self._general = (await self._has(log, BARRIER)).applied(BARRIER)
            databases, aliases = await self._read_general()
            todo = await self._stale()
            if not todo and self._survey.changed(BARRIER) <= self._general:
                await caught_up(log, self._site.name, BARRIER, self._survey.seen, self._fleet.loop)
                return databases, aliases
            for stream in todo:
                self._places[stream] = Place(database=stream[0], name=stream[1])
        raise SiteFailed(
            f"collections were created, dropped or changed each time that they were read, {_MOST_ROUNDS} times over: "
            f"{', '.join(name for _, name in sorted(todo)) or 'aliases'}. Run this again when that is over"
        )

    async def _stale(self) -> set[Stream]:
        """Look what has been changed, other than rows, since it was read."""
        await self._survey.look()
        known = {stream: place.seq for stream, place in self._places.items()}
        if not self._task.wanted:
            known |= dict.fromkeys(self._survey.streams() - known.keys() - {BARRIER}, -1)
        return {stream for stream, seq in known.items() if seq < self._survey.changed(stream)}

    async def _has(self, log: MutationLog, stream: Stream) -> Position:
        """Wait until the cluster has applied every change of a collection that is known."""
        return await caught_up(log, self._site.name, stream, self._survey.changed(stream), self._fleet.loop)

    async def _read_some(self, todo: Collection[Stream]) -> None:
        """Read collections."""
        for stream in todo:
            self._places.setdefault(stream, Place(database=stream[0], name=stream[1]))
        left = [stream for stream in todo if not self._places[stream].done]
        await self._expect(left)
        await self._each(left, self._read)

    async def _each(self, todo: Collection[Stream], work: Callable[[Place], Awaitable[None]]) -> None:
        """Do something with collections, several at once."""

        async def one(stream: Stream) -> None:
            await work(self._places[stream])
            self._tell()

        await at_once(one, sorted(todo), self._task.workers)

    async def _read(self, place: Place) -> None:
        log = self._fleet.log
        if log is not None and not place.files:
            place.seq = (await self._has(log, place.stream)).applied(place.stream)

        await in_thread(self._journal.save, place)
        try:
            await self._dump(place).run()
        except (CallError, SiteFailed):
            if log is None or place.stream not in await self._stale():
                raise
            # It was changed while it was read: it is read again.

    async def _compare(self, place: Place) -> None:
        place.exact = await self._dump(place).is_same()

    def _dump(self, place: Place) -> Dump:
        async def save() -> None:
            await in_thread(self._journal.save, place)

        def copied(rows: int, size: int) -> None:
            self._advance.rows += rows
            self._advance.fresh += rows
            self._advance.size += size
            self._tell()

        return Dump(self._site, self._store, self._journal.head.id, place, save, copied, self._fleet.log)

    async def _expect(self, todo: Sequence[Stream]) -> None:
        """Find out how many rows there are to read."""
        self._advance.rows = sum(place.rows for place in self._places.values())
        self._advance.expected = sum(place.rows for place in self._places.values() if place.done)
        for database, name in todo:
            try:
                reply = await self._site.ask(structure.count_inserted(name, database), database)
            except CallError:
                continue  # it is there no more
            self._advance.expected += structure.read_inserted(reply)
        self._tell()

    def _tell(self) -> None:
        advance = self._advance
        advance.collections = sum(place.done for place in self._places.values())
        advance.of = len(self._places)
        advance.seconds = self._fleet.loop.time() - self._began
        self._report(advance)

    # The end.

    async def _read_general(self) -> tuple[list[Database], dict[Stream, str]]:
        """Read databases and aliases."""
        names = await self._site.databases()
        aliases = {}
        for database in names:
            for alias, collection in (await self._site.aliases(database)).items():
                aliases[database, alias] = collection
        return [Database(name=name) for name in names], aliases

    async def _finish(
        self,
        head: Head,
        databases: list[Database],
        aliases: dict[Stream, str],
        *,
        seq: int | None = None,
        log: Sequence[manifest.LogFile] = (),
    ) -> Manifest:
        """Write the manifest."""
        member = self._site.member
        found = [place for place in self._places.values() if place.collection is not None]
        collections = []
        for place in sorted(found, key=lambda one: one.stream):
            assert place.collection is not None
            named = [name for (where, name), of in aliases.items() if (where, of) == place.stream]
            collections.append(place.collection.model_copy(update={"aliases": sorted(named)}))
        done = Manifest(
            id=head.id,
            created=head.created,
            kind="full",
            seq=seq,
            from_seq=head.from_seq if seq is not None else None,
            log_id=head.log_id,
            exact=seq is not None or all(place.exact for place in found),
            source={member.name: f"{member.flavour.value} {member.version}".strip()},
            notes=self._notes(found, logged=seq is not None),
            databases=databases,
            collections=collections,
            log=list(log),
        )
        await in_thread(manifest.finish, self._store, done)
        self._tell()
        return done

    def _notes(self, found: Sequence[Place], *, logged: bool) -> list[str]:
        """Say what the operator should know of the backup."""
        notes = []
        for place in found:
            quiet = place.stream not in self._survey.streams() if logged else place.exact
            if quiet and place.rows and place.counted != place.rows:
                notes.append(
                    f"{place.name}: the server counts {place.counted} rows and lists {place.rows}: keys may be there "
                    "more than once, or the server lists too few"
                )
            if not logged and not place.exact:
                why = "it was written to meanwhile" if self._task.reread else "nothing has tested that they are"
                notes.append(f"{place.name}: its rows may not be of one moment: {why}")
        return notes
