"""Replication in one process: it follows the log, applies it to the clusters it is elected for, and writes.

Decision made here: everything that a process knows of the others it knows from the log, by one task that reads what is
new and hands it on. What this process does itself it knows at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, final

from haclient.call import Metadata, Method, Reply
from haclient.config.replication import Replication
from haclient.errors import HAClientError, LogError, LogTrimmed
from haclient.events import EventBus, ReseedFailed
from haclient.milvus.status import Flavour
from haclient.replication.adopt import Adoption
from haclient.replication.applier import Applier
from haclient.replication.catalog import Catalog
from haclient.replication.claims import claim_of, superseded_by
from haclient.replication.clusters import Clusters
from haclient.replication.commit import Commit
from haclient.replication.decisions import OPERATOR
from haclient.replication.keep import KEEP, may_go
from haclient.replication.keys import KeyMaker
from haclient.replication.log import Entry, Mutation, MutationLog, nobody
from haclient.replication.past import Past
from haclient.replication.position import POSITION, Position, Standing, read_positions
from haclient.replication.progress import Progress
from haclient.replication.recent import Recent
from haclient.replication.refusals import REFUSED, forgotten, void_entries
from haclient.replication.reseed import reseed
from haclient.replication.roles import SITE, Roles
from haclient.replication.shared import Shared, Stamp
from haclient.replication.sharing import ask
from haclient.replication.timing import Backoff, lasting
from haclient.replication.verify import Verifier
from haclient.replication.writer import Writer

#: Entries are removed from the log this often, seconds.
_TRIM_S: Final = 5.0
#: Clusters that need to be copied anew are looked for this often, seconds.
_LOOK_S: Final = 2.0
#: Entries kept although every cluster has them, for processes that read slowly.
_KEPT: Final = 1_024


@final
class Replicator:
    """Replication in one process.

    Args:
        settings: What is configured.
        log: The mutation log.
        clusters: The fleet.
        bus: Takes events.
        rng: Source of randomness.
        loop: Its time is the clock.
        name: Names this process in leases.
        wall: Time of day, seconds since 1970; loop time unless given.
        stamp: See `Shared`.
        is_dead: See `Shared`.
    """

    def __init__(
        self,
        settings: Replication,
        log: MutationLog,
        clusters: Clusters,
        bus: EventBus,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        wall: Callable[[], float] | None = None,
        stamp: Stamp | None = None,
        is_dead: Callable[[str], bool] = nobody,
    ) -> None:
        self.progress = Progress(loop)
        self._wall = wall or loop.time
        self.shared = Shared(
            settings, log, clusters, self.progress, Recent(log), bus, rng, loop, name, self._wall, stamp or _no_stamp
        )
        self.shared.is_dead = is_dead
        self.catalog = Catalog(self.shared)
        self._keys = KeyMaker(log, name, self._wall, rng, loop)
        commit = Commit(self.shared, self._appended)
        adoption = Adoption(Verifier(clusters, settings, rng, loop, log), settings.adopt_rows)
        self._writer = Writer(self.shared, commit, self.catalog, self._keys, adoption.check)
        self._appliers: dict[str, Applier] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._backoff = Backoff(rng)
        self._opened = False

    async def start(self) -> None:
        """Open the log and read what is in it; if it cannot be reached now, go on trying.

        Raises:
            ConfigError: It can never work as configured.
        """
        try:
            await self._open()
        except LogError as error:
            self.shared.complain(error)
        self._run(self._follow)
        self._run(self._trim)
        self._run(partial(ask, self.shared))
        if self.shared.settings.auto_reseed:
            self._run(self._reseed)

    async def write(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata,
        database: str,
        deadline: float,
        past: Past | None = None,
    ) -> Reply:
        """Carry out one call that changes something; see `Writer.write`."""
        return await self._writer.write(method, message, metadata, database, deadline, past)

    async def restore(self, method: Method, message: bytes, database: str, deadline: float) -> int:
        """Write rows that come with their keys, whoever makes those; see `Writer.restore`."""
        return await self._writer.restore(method, message, database, deadline)

    async def aclose(self) -> None:
        """Finish what is under way, hand the leases over and close the log."""
        await asyncio.gather(*(applier.finish() for applier in self._appliers.values()))
        left = self._tasks
        while left:
            # Again if need be: a task group forgets a cancellation that comes together with a failure.
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=2 * self.shared.settings.lease_s)
            left = [task for task in left if not task.done()]
        try:
            await lasting(self._keys.aclose(), self.shared.settings.lease_s)
        except LogError as error:
            self.shared.complain(error)
        await self.shared.log.aclose()

    def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something for as long as the process lives."""
        self._tasks.append(self.shared.loop.create_task(self._lasting(work)))

    async def _lasting(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin again whatever happens: a cluster without an applier would fall behind for ever."""
        while True:
            try:
                await work()
            except Exception as error:
                text = f"haclient itself failed: {error!r}; please report it"
                self.shared.loop.call_exception_handler({"message": text, "exception": error})
            await asyncio.sleep(self._backoff.next())

    # What is new.

    async def _open(self) -> None:
        shared = self.shared
        if not self._opened:
            await shared.log.open()
            self._opened = True
        bounds = await shared.log.bounds()
        facts = await shared.log.facts(POSITION)
        positions = read_positions(facts, self._names())
        # What some cluster lacks has to be known by its stream; what all have need not be.
        present = [one for one in positions.values() if one.standing is not Standing.NEEDS_RESEED]
        everywhere = min((_needed(one) for one in present), default=bounds.first) - 1
        self.progress.skip_to(min(max(everywhere, bounds.first - 1), bounds.head))
        await self._catch_up()
        for name in self._names():
            self._appoint(name)

    def _appoint(self, cluster: str) -> None:
        applier = self._appliers[cluster] = Applier(self.shared, cluster)
        self._run(applier.run)

    def _names(self) -> list[str]:
        return [member.name for member in self.shared.clusters.members()]

    async def _follow(self) -> None:
        revision = 0
        while True:
            try:
                if not self._appliers:
                    await self._open()
                newest = await self.shared.log.changed(revision)
                await self._catch_up()
            except LogError as error:
                self.shared.complain(error)
                await asyncio.sleep(self._backoff.next())
            else:
                # Not before: what could not be read is looked at again, also if nothing more changes.
                revision = newest
                self._backoff.reset()

    async def _catch_up(self) -> None:
        """Read what is new: entries, positions, void entries, decisions of the operator."""
        shared, progress = self.shared, self.progress
        applying = any(applier.term is not None for applier in self._appliers.values())
        asked_at = await self._read_entries(applying)
        positions = read_positions(await shared.log.facts(POSITION), self._names())
        site = await shared.log.facts(SITE)
        shared.roles, shared.claim, shared.superseded = Roles.of(site), claim_of(site), superseded_by(site)
        # Read after the positions and known before them: a cluster that has passed over an entry has not applied it.
        shared.void.update(void_entries(await shared.log.facts(REFUSED)))
        for name, position in positions.items():
            applier = self._appliers.get(name)
            if applier is None or applier.term is None:
                progress.moved(name, position)
        for name in await shared.log.facts(OPERATOR):
            shared.decided.add(name.split("/")[1])
        progress.heard(asked_at)
        for applier in self._appliers.values():
            applier.wake()

    async def _read_entries(self, bodies: bool) -> float:
        """Read to the end of the log; returns loop time at which it was asked for what proved to be the end."""
        log, progress = self.shared.log, self.progress
        while True:
            asked_at = self.shared.loop.time()
            try:
                entries = await log.read(progress.head, bodies=bodies)
            except LogTrimmed:
                progress.skip_to((await log.bounds()).first - 1)
                continue
            if not entries:
                return asked_at
            self._saw(entries, bodies)

    def _saw(self, entries: list[Entry], bodies: bool) -> None:
        new = [entry for entry in entries if entry.seq > self.progress.head]
        if bodies:
            self.shared.recent.add(new)
        self.catalog.saw(new)
        self.progress.saw(new)

    def _appended(self, seqs: list[int], mutations: list[Mutation]) -> None:
        """Take what this process has appended, if nothing of others lies between."""
        now = self._wall()
        new = [Entry(seq, now, one, len(one.message)) for seq, one in zip(seqs, mutations, strict=True)]
        if new[0].seq == self.progress.head + 1:
            self._saw(new, bodies=True)
            for applier in self._appliers.values():
                applier.wake()

    # What is no longer needed.

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_S * (0.5 + self.shared.rng.random()))
            try:
                await self._trim_once()
            except LogError as error:
                self.shared.complain(error)

    async def _trim_once(self) -> None:
        log = self.shared.log
        names = self._names()
        positions = read_positions(await log.facts(POSITION), names)
        if len(positions) < len(names):
            return  # one that has never been here begins at the beginning
        bounds = await log.bounds()
        needed = [_needed(one) for one in positions.values() if one.standing is not Standing.NEEDS_RESEED]
        wanted = may_go(await log.facts(KEEP), bounds, self.shared.settings, self._wall())
        through = min(min(needed, default=0) - 1 - _KEPT, wanted)
        if through >= bounds.first:
            await log.trim(through)
            facts = await log.facts(REFUSED)
            if old := forgotten(facts, through):
                await log.put(old)

    # What cannot be brought up from the log.

    async def _reseed(self) -> None:
        """Copy clusters anew that need it, one at a time over all processes that see it."""
        shared = self.shared
        while True:
            await asyncio.sleep(_LOOK_S * (0.5 + shared.rng.random()))
            for name in self._names():
                if self.progress.standing(name) in (Standing.NEEDS_RESEED, Standing.RESEEDING):
                    await self._reseed_one(name)

    async def _reseed_one(self, cluster: str) -> None:
        shared = self.shared
        try:
            await reseed(
                shared.log,
                shared.clusters,
                shared.settings,
                cluster,
                holder=shared.name,
                rng=shared.rng,
                loop=shared.loop,
                only_if_needed=True,
            )
        except HAClientError as error:
            # Another process is at it, or there is no donor now.
            shared.bus.emit(ReseedFailed(at=shared.loop.time(), cluster=cluster, reason=str(error)))


def _needed(position: Position) -> int:
    """Return the first entry that a cluster still needs."""
    return min([position.low + 1, *(parked.seq for parked in position.parked.values())])


async def _no_stamp(cluster: str, mutation: Mutation, reply: bytes, flavour: Flavour) -> int | None:
    return 0
