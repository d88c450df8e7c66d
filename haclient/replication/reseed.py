"""A cluster filled from another one while writes go on: a fuzzy copy, and then the log from where the copy began.

Decisions made here:

* Each collection has a place of its own in the log: up to which entry the donor had it before its copy began. The
  applier goes on from there, stream by stream, and whatever of it is in the copy already is applied once more, in
  the ways that do no harm twice.
* That holds for rows, not for what changes a collection itself: one that was created, dropped, renamed, indexed or
  divided while it was copied is copied again, from a later place. So is what concerns several collections (aliases,
  databases, roles), which is copied last. After a few rounds such changes are paused, or there might be no end to it.
* The place of each copy is a fact, so a copy that was cut off goes on, with the same places in the log.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, final

import orjson

from haclient.config.replication import Replication
from haclient.errors import CallError, ConfigError, LogTrimmed
from haclient.milvus import structure, watermarks
from haclient.replication.claims import claim_of, fence_s
from haclient.replication.clusters import Clusters
from haclient.replication.copy import Copier, Place
from haclient.replication.donor import caught_up, choose
from haclient.replication.general import copy_general, make_databases
from haclient.replication.hold import WAITING, Hold, held, position_of
from haclient.replication.log import BARRIER, MutationLog, Stream
from haclient.replication.pause import PAUSE
from haclient.replication.position import Parked, Position, Standing
from haclient.replication.roles import SITE
from haclient.replication.site import Site, SiteFailed
from haclient.replication.survey import Survey
from haclient.replication.timing import at_once

#: Facts: reseed/<cluster> while it is copied, and reseed/<cluster>/<database>/<collection> for each collection begun.
RESEED: Final = "reseed/"
#: Collections copied at once.
_AT_ONCE: Final = 2
#: Times that collections which change meanwhile are copied again.
_MOST_ROUNDS: Final = 20
#: After so many of them, what changes collections has to wait.
_FREE_ROUNDS: Final = 3
#: Facts changed together; etcd takes 128 at once.
_MOST_FACTS: Final = 64


@final
@dataclass(slots=True)
class Advance:
    """How far a reseed is.

    Attributes:
        donor: Where from.
        collections: Collections done.
        of: Collections in all, as known now.
        rows: Rows copied, those before an interruption included.
        expected: Rows in all, as far as the donor's statistics tell.
        size: Bytes copied by this process.
        fresh: Rows copied by this process.
        seconds: Time since this process began.
        notes: What could not be copied, for the operator.
    """

    donor: str
    collections: int = 0
    of: int = 0
    rows: int = 0
    expected: int = 0
    size: int = 0
    fresh: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.fresh / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Time left, seconds; None if it cannot be told yet."""
        return max(self.expected - self.rows, 0) / self.rate if self.rate else None


async def reseed(
    log: MutationLog,
    clusters: Clusters,
    settings: Replication,
    cluster: str,
    *,
    holder: str,
    rng: random.Random,
    loop: asyncio.AbstractEventLoop,
    donor: str = "",
    in_place: bool = False,
    only_if_needed: bool = False,
    report: Callable[[Advance], None] = lambda _: None,
) -> Advance:
    """Fill a cluster from another one; its applier then brings it up from the log.

    What the cluster has and the donor has not is dropped. A reseed that was cut off goes on if it is called again.

    Args:
        log: The mutation log.
        clusters: The fleet.
        settings: What is configured.
        cluster: Which is to be filled.
        holder: Name of this process.
        rng: Source of randomness.
        loop: Its time is the clock.
        donor: Where from; "" chooses the one that is furthest.
        in_place: Keep collections whose schema is right, and write only what differs.
        only_if_needed: Do nothing with a cluster that an applier brings up.
        report: Told how far it is, after every page.

    Returns:
        How it went.

    Raises:
        ConfigError: There is no such cluster, or it cannot be the donor.
        SiteFailed: A cluster could not be read or written; what was done is kept for the next time.
        HoldLost: Another process works on the cluster.
        LogError: The log failed.
    """
    names = [member.name for member in clusters.members()]
    if cluster not in names:
        raise ConfigError(f"there is no cluster {cluster!r}; write one of {', '.join(names)}")
    if only_if_needed and (await position_of(log, cluster)).standing not in WAITING:
        return Advance("")
    await choose(log, clusters, cluster, donor)

    async def work(hold: Hold) -> Advance:
        if only_if_needed and hold.position.standing not in WAITING:
            return Advance("")  # somebody else has done it meanwhile
        return await _Reseeding(log, clusters, settings, cluster, hold, rng, loop, in_place, report).run(donor)

    return await held(log, cluster, holder, settings.lease_s, loop, work, ask=not only_if_needed)


@final
class _Reseeding:
    """One reseed, by one process."""

    def __init__(
        self,
        log: MutationLog,
        clusters: Clusters,
        settings: Replication,
        cluster: str,
        hold: Hold,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        in_place: bool,
        report: Callable[[Advance], None],
    ) -> None:
        self._log = log
        self._clusters = clusters
        self._settings = settings
        self._cluster = cluster
        self._hold = hold
        self._rng = rng
        self._loop = loop
        self._in_place = in_place
        self._report = report
        self._target = Site(clusters, cluster, settings, rng, loop, hold.check)
        self._donor = self._target
        self._places: dict[Stream, Place] = {}
        self._survey = Survey(log)
        self._general = 0
        self._began = loop.time()
        self._advance = Advance("")

    async def run(self, donor: str) -> Advance:
        """Copy everything, and give the cluster back to its applier."""
        unclean_s = self._hold.position.open
        if not await self._resume(donor):
            await self._begin(await choose(self._log, self._clusters, self._cluster, donor))
        if unclean_s:
            await self._target.rest(max(self._settings.settle_s, unclean_s))
        await self._take()
        try:
            await self._copy_all()
            await self._finish()
        except LogTrimmed as error:
            raise SiteFailed(
                f"what was written while {self._cluster} was copied is no longer in the log: {error}. Raise "
                "replication.max_entries or max_bytes, and run this again"
            ) from error
        self._tell()
        return self._advance

    async def _take(self) -> None:
        """Have the cluster forget how far it had come, and belong to this log and to no former one."""
        taking = claim_of(await self._log.facts(SITE)).take()
        for request in taking:
            await self._target.change(request, "")
        if taking:
            await asyncio.sleep(fence_s(self._settings.watermark_s))
        for request in (structure.drop_collection(watermarks.COLLECTION, ""), *taking):
            await self._target.change(request, "")

    # Beginning, or going on.

    async def _resume(self, wanted: str) -> bool:
        """Go on with a reseed that was cut off; False if there is none that can go on."""
        facts = await self._log.facts(self._fact())
        job = facts.get(self._fact())
        if job is None or self._hold.position.standing is not Standing.RESEEDING:
            return False
        known = orjson.loads(job.value)
        if known["in_place"] is not self._in_place or wanted not in ("", known["donor"]):
            return False
        try:
            await choose(self._log, self._clusters, self._cluster, known["donor"])
        except ConfigError:
            return False  # the donor is away itself
        for name, fact in facts.items():
            if name.startswith(f"{self._fact()}/"):
                database, _, collection = name.removeprefix(f"{self._fact()}/").partition("/")
                self._places[database, collection] = Place.decode(fact.value)
        self._set_donor(known["donor"])
        return True

    async def _begin(self, donor: str) -> None:
        """Note where the log has to go on from, and see that it is kept from there."""
        await self._forget()
        while True:
            told = await position_of(self._log, donor)
            open_s = self._target.longest_s
            position = self._hold.position = Position(low=told.low, standing=Standing.RESEEDING, open=open_s)
            position.parked = dict(told.parked)
            job = orjson.dumps({"donor": donor, "in_place": self._in_place})
            await self._hold.move({self._fact(): job})
            if (await self._log.bounds()).first <= position.low + 1:
                break
        self._set_donor(donor)

    def _set_donor(self, donor: str) -> None:
        self._advance.donor = donor
        self._donor = Site(self._clusters, donor, self._settings, self._rng, self._loop)
        self._survey.start(self._hold.position.low)

    def _fact(self, stream: Stream | None = None) -> str:
        return f"{RESEED}{self._cluster}" + (f"/{stream[0]}/{stream[1]}" if stream is not None else "")

    async def _forget(self) -> None:
        """Remove what is written down about collections."""
        names = list(await self._log.facts(f"{self._fact()}/"))
        for at in range(0, len(names), _MOST_FACTS):
            await self._hold.put(dict.fromkeys(names[at : at + _MOST_FACTS]))

    # Copying.

    async def _copy_all(self) -> None:
        """Copy until nothing has changed that the log cannot make good."""
        await self._survey.look()
        there = [*await self._donor.catalogue(), *await self._target.catalogue(), *self._survey.streams()]
        todo = {stream for stream in there if stream[1] != watermarks.COLLECTION and not self._is_done(stream)}
        await self._expect(todo)
        for done in range(_MOST_ROUNDS):
            if done >= _FREE_ROUNDS:
                await self._hold.put({PAUSE: self._cluster.encode()})
            await make_databases(self._donor, self._target)
            await self._copy_some(todo)
            await self._copy_general()
            todo = await self._stale()
            if not todo and self._survey.changed(BARRIER) <= self._general:
                return
            for stream in todo:
                self._places.pop(stream, None)
        raise SiteFailed(
            f"collections were created, dropped or changed each time that they were copied, {_MOST_ROUNDS} times over: "
            f"{', '.join(name for _, name in sorted(todo)) or 'aliases or roles'}. Run this again when that is over"
        )

    def _is_done(self, stream: Stream) -> bool:
        return stream in self._places and self._places[stream].done

    async def _expect(self, todo: Iterable[Stream]) -> None:
        """Find out how many rows there are to copy."""
        self._advance.rows = sum(place.rows for place in self._places.values())
        self._advance.expected = sum(place.rows for place in self._places.values() if place.done)
        for database, name in todo:
            try:
                reply = await self._donor.ask(structure.count_inserted(name, database), database)
            except CallError:
                continue  # the donor has it no more
            self._advance.expected += structure.read_inserted(reply)

    async def _copy_some(self, todo: Iterable[Stream]) -> None:
        self._tell()

        async def copy(stream: Stream) -> None:
            await self._copy(stream)
            self._tell()

        await at_once(copy, sorted(todo), _AT_ONCE)

    async def _copy(self, stream: Stream) -> None:
        place = self._places.setdefault(stream, Place())
        if not place.made:
            position = await self._donor_has(stream)
            place.seq = position.applied(stream)
            place.parked = position.parked[stream].reason if stream in position.parked else ""

        async def save() -> None:
            await self._hold.put({self._fact(stream): place.encode()})

        def copied(rows: int, size: int) -> None:
            self._advance.rows += rows
            self._advance.fresh += rows
            self._advance.size += size
            self._tell()

        await save()
        note = self._advance.notes.append
        copier = Copier(self._donor, self._target, stream, place, save, copied, note, in_place=self._in_place)
        try:
            await copier.run()
        except SiteFailed:
            if stream not in await self._stale():
                raise
            # It was changed while it was copied: it is copied again.

    async def _donor_has(self, stream: Stream) -> Position:
        """Wait until the donor has applied every change of a collection that is known, and return its position."""
        return await caught_up(self._log, self._advance.donor, stream, self._survey.changed(stream), self._loop)

    async def _stale(self) -> set[Stream]:
        """Look what has been changed, other than rows, since its copy began."""
        await self._survey.look()
        position = await position_of(self._log, self._advance.donor)
        found = set()
        for stream in {*self._survey.streams(), *self._places} - {BARRIER}:
            place = self._places.get(stream)
            if place is None:
                found.add(stream)
            elif self._survey.changed(stream) > place.seq:
                parked = position.parked.get(stream)
                if not (place.parked and parked is not None and parked.seq == place.seq + 1):
                    found.add(stream)
        return found

    # What concerns several collections.

    async def _copy_general(self) -> None:
        self._general = (await self._donor_has(BARRIER)).applied(BARRIER)
        for note in await copy_general(self._donor, self._target, self._places):
            if note not in self._advance.notes:
                self._advance.notes.append(note)

    # The end.

    async def _finish(self) -> None:
        """Hand the cluster over to its applier."""
        bounds = await self._log.bounds()
        position = self._hold.position
        if bounds.first > position.low + 1:
            raise LogTrimmed(f"it begins at entry {bounds.first}, and is needed from {position.low + 1} on")
        position.ahead, position.parked = {}, {}
        for stream, seq, reason in self._ends():
            if reason or seq < position.low:
                position.parked[stream] = Parked(seq + 1, reason)
            elif seq > position.low:
                position.ahead[stream] = seq
        position.standing, position.begun, position.open = Standing.AWAY, bounds.head, 0.0
        await self._hold.move({self._fact(): None, PAUSE: None})
        await self._forget()

    def _ends(self) -> Iterable[tuple[Stream, int, str]]:
        """Yield where the log has to go on, for each stream that has anything in it."""
        yield BARRIER, self._general, ""
        for stream, place in self._places.items():
            if stream in self._survey.streams() or place.parked or place.seq < self._hold.position.low:
                yield stream, place.seq, place.parked

    def _tell(self) -> None:
        advance = self._advance
        advance.collections = sum(place.done for place in self._places.values())
        advance.of = len(self._places)
        advance.seconds = self._loop.time() - self._began
        self._report(advance)
