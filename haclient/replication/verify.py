"""Clusters compared, collection by collection, without stopping writes.

Decision made here: only clusters that take part are compared. One that is away, is being reseeded, or has stopped at an
entry of a collection is told apart from one that differs: what it lacks, the log or a reseed will bring.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, Final, final

from haclient.config.replication import Replication
from haclient.errors import CallError, LogTrimmed
from haclient.milvus import batch, ddl, watermarks
from haclient.milvus.messages import Key
from haclient.milvus.shape import Shape, read_shape
from haclient.replication.batching import MERGED
from haclient.replication.clusters import Clusters
from haclient.replication.compare import Comparison, Difference, Settling
from haclient.replication.hold import position_of
from haclient.replication.log import BARRIER, MutationLog, Stream
from haclient.replication.position import POSITION, Position, Standing, read_positions
from haclient.replication.site import Site, SiteFailed, chosen

#: Keys named for each kind of difference.
_NAMED: Final = 100
#: Time in which every cluster must have applied what was in the log, seconds.
_PATIENCE_S: Final = 60.0


@final
@dataclass(slots=True)
class Differing:
    """What one cluster has otherwise than the one it is compared with (the first that took part).

    Attributes:
        missing: Number of rows that it lacks.
        extra: Number of rows that only it has.
        other: Number of rows whose values are others.
        keys: Some of their keys, by kind.
    """

    missing: int = 0
    extra: int = 0
    other: int = 0
    keys: dict[str, list[Key]] = field(default_factory=lambda: {"missing": [], "extra": [], "other": []})

    def count(self, kind: str, key: Key) -> None:
        """Count one."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.keys[kind]) < _NAMED:
            self.keys[kind].append(key)


@final
@dataclass(slots=True)
class Verified:
    """What has been found out about one collection.

    Attributes:
        database: "" for the default one.
        collection: Its name.
        reference: The cluster that the others are compared with.
        rows: Rows of each cluster that took part.
        equal: Rows that are the same on all of them.
        differing: What differs, by cluster.
        moving: Keys that were written each time they were looked at; whether they differ is not known.
        problems: What else is not the same, or could not be compared; one sentence each.
        left_out: Clusters that did not take part, and why.
    """

    database: str
    collection: str
    reference: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    equal: int = 0
    differing: dict[str, Differing] = field(default_factory=dict)
    moving: int = 0
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether all clusters that took part hold the same."""
        return not self.differing and not self.problems and not self.moving

    def add(self, difference: Difference) -> None:
        """Note a key that is not the same everywhere."""
        wanted = difference.rows[self.reference]
        for name, row in difference.rows.items():
            if row != wanted:
                kind = "extra" if wanted is None else "missing" if row is None else "other"
                self.differing.setdefault(name, Differing()).count(kind, difference.key)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"well": self.well, **asdict(self)}


@final
class Verifier:
    """Compares the clusters of a fleet.

    Args:
        clusters: The fleet.
        settings: What is configured.
        rng: Source of randomness.
        loop: Its time is the clock.
        log: The mutation log; None compares without knowing what is under way.
    """

    def __init__(
        self,
        clusters: Clusters,
        settings: Replication,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        log: MutationLog | None = None,
    ) -> None:
        self.log = log
        self.settings = settings
        self._clusters = clusters
        self._rng = rng
        self._loop = loop

    def site(self, name: str, holds: Callable[[], None] = lambda: None) -> Site:
        """Return one cluster; ``holds`` is called before each change to it, and raises if it must not be changed."""
        return Site(self._clusters, name, self.settings, self._rng, self._loop, holds)

    async def collections(self, wanted: Collection[str] = ()) -> list[Stream]:
        """Return the collections of all clusters that take part; those wanted by name (or database.name), or all.

        Raises:
            ConfigError: There is no such collection.
        """
        sites, _ = await self.sites()
        there = {stream for site in sites for stream in await site.catalogue() if stream[1] != watermarks.COLLECTION}
        return chosen(there, wanted, "no cluster has a")

    async def sites(self, stream: Stream = BARRIER) -> tuple[list[Site], dict[str, str]]:
        """Return the clusters that take part in comparing a collection, and why the others do not."""
        members = self._clusters.members()
        left_out = {member.name: "it is drained" for member in members if member.drained}
        if self.log is not None:
            positions = read_positions(await self.log.facts(POSITION), [member.name for member in members])
            for name, position in positions.items():
                if position.standing is not Standing.IN_SYNC:
                    left_out.setdefault(name, f"it is {position.standing.value}")
                for parked in {stream, BARRIER} & position.parked.keys():
                    left_out.setdefault(name, f"it has stopped at entry {position.parked[parked].seq}")
        return [self.site(one.name) for one in members if one.name not in left_out], left_out

    async def verify(self, stream: Stream, read: Callable[[int], None] = lambda _: None) -> Verified:
        """Compare one collection.

        Args:
            stream: Database and name.
            read: Told of rows as they are read.

        Raises:
            SiteFailed: A cluster that took part has stopped to answer.
            LogError: The log failed.
        """
        told, unequal = Verified(*stream), 0
        async with aclosing(self.differences(stream, told, read)) as differences:
            async for difference in differences:
                told.add(difference)
                unequal += difference.rows[told.reference] is not None
        told.equal = max(told.rows.get(told.reference, 0) - unequal, 0)
        return told

    async def differences(
        self, stream: Stream, told: Verified, read: Callable[[int], None] = lambda _: None
    ) -> AsyncGenerator[Difference]:
        """Compare one collection; yields the keys that differ, and fills in all else."""
        sites, told.left_out = await self.sites(stream)
        shape = await self._alike(stream, sites, told)
        if shape is None or len(sites) < 2:
            return
        told.reference = sites[0].name
        settling = Settling() if self.log is None else _Log(self.log, sites, stream, shape.key, self._loop)
        comparison = Comparison(sites, shape, settling, read)
        try:
            async with aclosing(comparison.run()) as found:
                async for difference in found:
                    yield difference
        except CallError as error:
            told.problems.append(f"it could not be read: {error}")
        except ValueError as error:
            told.problems.append(f"it could not be compared: {error}")
        told.rows, told.moving = comparison.counted.rows, comparison.counted.moving

    async def _alike(self, stream: Stream, sites: Sequence[Site], told: Verified) -> Shape | None:
        """Compare what the collection is; None if its rows cannot be compared."""
        descriptions = {site.name: await site.describe(*stream) for site in sites}
        told.problems += [f"cluster {name} does not have it" for name, one in descriptions.items() if not one]
        if told.problems or not sites:
            return None
        shape = read_shape(descriptions[sites[0].name], stream[0])
        for site in sites[1:]:
            for difference in ddl.existing_differences(descriptions[sites[0].name], descriptions[site.name]):
                told.problems.append(f"clusters {sites[0].name} and {site.name}: {difference}")
        loaded = {site.name: await site.is_loaded(shape) for site in sites}
        if not all(loaded.values()):
            names = ", ".join(name for name, ok in loaded.items() if not ok)
            told.problems.append(f"it is not loaded on {names}, so its rows cannot be read")
            return None
        partitions = {site.name: await site.partitions(shape) for site in sites}
        if any(one != partitions[sites[0].name] for one in partitions.values()):
            listed = "; ".join(f"{name}: {', '.join(one)}" for name, one in partitions.items())
            told.problems.append(f"its partitions are not the same: {listed}")
        return None if told.problems else shape


@final
class _Log(Settling):
    """Waits until every cluster has applied what the log held, and knows what was written since."""

    def __init__(
        self, log: MutationLog, sites: Sequence[Site], stream: Stream, key: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._log = log
        self._names = [site.name for site in sites]
        self._stream = stream
        self._key = key
        self._loop = loop
        self._since = 0

    async def settle(self) -> int:
        """See `Settling.settle`."""
        self._since = (await self._log.bounds()).head
        for name in self._names:
            await wait_applied(self._log, name, self._stream, self._since, self._loop)
        return self._since

    async def touched(self, keys: Collection[Key]) -> set[Key]:
        """See `Settling.touched`."""
        if not keys:
            return set()
        found: set[Key] = set()
        after = self._since
        while entries := await self._log.read(after):
            for entry in entries:
                one = entry.mutation
                if one.stream == self._stream and one.method in MERGED:
                    found.update(batch.keys_of(one.method, one.message, self._key))
                elif one.stream in (self._stream, BARRIER):
                    return set(keys)
            after = entries[-1].seq
        return found.intersection(keys)


async def wait_applied(
    log: MutationLog,
    cluster: str,
    stream: Stream,
    seq: int,
    loop: asyncio.AbstractEventLoop,
    *,
    patient: bool = False,
) -> None:
    """Wait until a cluster is in sync and has everything of a stream up to a seq.

    Args:
        log: The mutation log.
        cluster: Which.
        stream: The stream.
        seq: The seq.
        loop: Its time is the clock.
        patient: Wait for a cluster that is away, too: its applier takes it up again.

    Raises:
        SiteFailed: It does not come to that.
    """
    until, revision = loop.time() + _PATIENCE_S, 0
    while True:
        position = await position_of(log, cluster)
        here = position.standing is Standing.IN_SYNC
        if here and not await _lacks(log, position, stream, seq):
            return
        if stream in position.parked or not (here or patient):
            what = f"is {position.standing.value}" if stream not in position.parked else "has stopped at a change"
            raise SiteFailed(f"cluster {cluster} no longer keeps up with the log: it {what}; see `haclient log show`")
        try:
            async with asyncio.timeout_at(until):
                revision = await log.changed(revision)
        except TimeoutError:
            raise SiteFailed(f"cluster {cluster} has not applied entry {seq} for {_PATIENCE_S:g} s") from None


async def _lacks(log: MutationLog, position: Position, stream: Stream, through: int) -> bool:
    """Say whether the log holds anything of a stream, or of all, that is not applied at a position."""
    after = position.low
    while after < through:
        try:
            entries = await log.read(after, bodies=False)
        except LogTrimmed:
            return True  # it was not trimmed past the cluster: its position is a newer one by now
        if not entries:
            return False
        for entry in entries:
            one = entry.mutation.stream
            if one in (stream, BARRIER) and position.applied(one) < entry.seq <= through:
                return True
        after = entries[-1].seq
    return False
