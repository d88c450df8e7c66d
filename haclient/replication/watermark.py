"""How far a cluster is, written into the cluster itself: for processes that cannot ask the log.

Decision made here: whoever applies to a cluster also writes its place in the log there, every
`Replication.watermark_s`. A reader takes the end of the log that a mark names for an entry that everybody needs: a
cluster that is there has all. When a mark changes it was written after the look before, and another interval is allowed
for it to become visible and for its writer to have heard of the log's end; so what marks tell is two to three intervals
old, and `bounded_s` must be longer than that to be of use.

A mark that is behind what was last noted as written shows that the cluster has lost data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from haclient.errors import CallError
from haclient.milvus import watermarks
from haclient.milvus.messages import Request
from haclient.milvus.watermarks import Row
from haclient.replication.claims import FIRST, Claim, is_claim
from haclient.replication.clusters import Clusters, Outcome
from haclient.replication.log import BARRIER, Entry, Mutation
from haclient.replication.position import Parked, Position, Standing, stream_of, text_of
from haclient.replication.progress import Progress

_CLUSTER: Final = text_of(BARRIER)
_MILLISECONDS: Final = 1_000
#: The collection is loaded again this often, seconds: a server that was started anew may not have done so.
_LOAD_EVERY_S: Final = 10.0


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """What a cluster says of itself.

    Attributes:
        position: How far it is, with what a mark says of it.
        head: End of the log, as its writer knew.
        at: Wall time at which it was written, milliseconds since 1970 by its writer's clock.
    """

    position: Position
    head: int
    at: int


def lost(mark: Mark | None, position: Position) -> bool:
    """Say whether a cluster has lost data: it is behind the mark that was written into it.

    Args:
        mark: What it says, read with ``fresh``; None if it has no mark.
        position: What the log says of it.
    """
    if mark is None:
        return position.marked > 0
    return mark.position.standing is Standing.IN_SYNC and mark.position.low < position.marked


@final
class Watermark:
    """One cluster's mark, for who applies to it.

    Args:
        cluster: Name of the cluster.
        clusters: The fleet.
        timeout_s: Time for one request, seconds.
        wall: Time of day, seconds since 1970.
    """

    def __init__(self, cluster: str, clusters: Clusters, timeout_s: float, wall: Callable[[], float]) -> None:
        self._cluster = cluster
        self._clusters = clusters
        self._timeout_s = timeout_s
        self._wall = wall
        self._loaded_at = float("-inf")
        #: What is there, None for a row that is to be written anew; None if that is not known.
        self._written: dict[str, Row | None] | None = None

    async def write(self, position: Position, head: int, claim: Claim = FIRST) -> bool:
        """Write how far the cluster is: what has changed, and that somebody still writes.

        Args:
            position: The cluster's; its ``marked`` is set when the mark is written.
            head: End of the log.
            claim: The log that the cluster belongs to.

        Returns:
            Whether it was written; if not, the next one says all.
        """
        at = int(self._wall() * _MILLISECONDS)
        low, rows = position.low, rows_of(position, head, at)
        if claim.generation:
            rows.append(claim.row())
        if at >= self._loaded_at + _LOAD_EVERY_S * _MILLISECONDS:
            for request in watermarks.make():
                await self._deliver(request)  # what is there already may be refused
            self._loaded_at = at
        written = self._written if self._written is not None else await self._found()
        changed = [row for row in rows if row.stream == _CLUSTER or not _same(row, written.get(row.stream))]
        gone = written.keys() - {row.stream for row in rows}
        done = await self._deliver(watermarks.write(changed))
        if done and gone:
            done = await self._deliver(watermarks.remove(sorted(gone)))
        if not done:
            self._written, self._loaded_at = dict.fromkeys(written), float("-inf")
            return False
        self._written = {row.stream: row for row in rows}
        position.marked = low
        return True

    async def _found(self) -> dict[str, Row | None]:
        """Return what another process has written: to be written anew, or removed."""
        try:
            found = await _rows(self._cluster, self._clusters, self._timeout_s, fresh=True)
        except (CallError, ValueError):
            return {}
        return dict.fromkeys(row.stream for row in found if not is_claim(row))

    async def _deliver(self, request: Request) -> bool:
        delivery = await self._clusters.deliver(self._cluster, request.method, request.message, "", self._timeout_s)
        return delivery.outcome is Outcome.DONE


async def read(cluster: str, clusters: Clusters, timeout_s: float, *, fresh: bool = False) -> Mark | None:
    """Read a cluster's mark; None if it has none.

    Args:
        cluster: Its name.
        clusters: The fleet.
        timeout_s: Time allowed, seconds.
        fresh: Whether what was written just before has to be seen.

    Raises:
        CallError: The cluster cannot be read, or has no collection of marks.
        ValueError: What is there is no mark.
    """
    return mark_of(await _rows(cluster, clusters, timeout_s, fresh=fresh))


async def _rows(cluster: str, clusters: Clusters, timeout_s: float, *, fresh: bool) -> list[Row]:
    request = watermarks.read(fresh=fresh)
    return watermarks.read_rows(await clusters.ask(cluster, request.method, request.message, "", timeout_s))


def rows_of(position: Position, head: int, at: int) -> list[Row]:
    """Return the rows of a mark, the cluster's own first."""
    whole = position.standing not in (Standing.NEEDS_RESEED, Standing.RESEEDING)
    stamps = position.timestamps
    rows = [Row(_CLUSTER, head, position.low if whole else -1, at, stamps.get(BARRIER, 0))]
    for stream in sorted({*position.ahead, *position.parked, *stamps} - {BARRIER}):
        low = -1 if stream in position.parked else position.low
        rows.append(Row(text_of(stream), position.applied(stream), low, at, stamps.get(stream, 0)))
    return rows


def mark_of(rows: Sequence[Row]) -> Mark | None:
    """Read the rows of a mark; None if the cluster's own is not among them."""
    known = {row.stream: row for row in rows}
    own = known.pop(_CLUSTER, None)
    if own is None:
        return None
    position = Position(low=max(own.low, 0), standing=Standing.IN_SYNC if own.low >= 0 else Standing.RESEEDING)
    if own.stamp:
        position.timestamps[BARRIER] = own.stamp
    for text, row in known.items():
        if is_claim(row):
            continue
        stream = stream_of(text)
        if row.low < 0:
            position.parked[stream] = Parked(row.seq + 1, "")
        elif row.seq > position.low:
            position.ahead[stream] = row.seq
        if row.stamp:
            position.timestamps[stream] = row.stamp
    return Mark(position, own.seq, own.at)


def _same(row: Row, written: Row | None) -> bool:
    """Say whether a row needs no writing: of a stream ``low`` tells no more than whether it has stopped."""
    return written is not None and (row.seq, row.low < 0, row.stamp) == (written.seq, written.low < 0, written.stamp)


@final
class WatermarkWatch:
    """Keeps a record of progress from the clusters' marks.

    Args:
        clusters: The fleet.
        progress: The record; nobody else may change it.
        every_s: Time between two looks, seconds.
        needed: Says whether anybody wants to know.
        news: Called when the log has become longer.
        loop: Its time is the clock.
    """

    def __init__(
        self,
        clusters: Clusters,
        progress: Progress,
        every_s: float,
        needed: Callable[[], bool],
        news: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.progress = progress
        self._clusters = clusters
        self._every_s = every_s
        self._needed = needed
        self._news = news
        self._loop = loop
        self._looked_at = float("-inf")
        self._at: dict[str, int] = {}

    async def run(self) -> None:
        """Look for as long as the process lives."""
        while True:
            if self._needed():
                await self._look()
            await asyncio.sleep(self._every_s)

    async def _look(self) -> None:
        """Ask every cluster; none waits for another."""
        before, self._looked_at = self._looked_at, self._loop.time()
        names = [member.name for member in self._clusters.members() if not member.drained]
        looks: list[Coroutine[Any, Any, bool]] = [self._ask(name) for name in names]
        if any(await asyncio.gather(*looks)):
            self.progress.heard(before - self._every_s)

    async def _ask(self, cluster: str) -> bool:
        """Take a cluster's mark; says whether it is a new one."""
        try:
            mark = await read(cluster, self._clusters, self._every_s)
        except (CallError, ValueError):
            return False  # what was known of it stays true
        if mark is None:
            self.progress.moved(cluster, Position(standing=Standing.NEEDS_RESEED))
            return False
        if mark.head > self.progress.head:
            rows = Mutation(b"", "Upsert", BARRIER, b"")
            self.progress.saw([Entry(mark.head, mark.at / _MILLISECONDS, rows, 0)])
            self._news()
        self.progress.moved(cluster, mark.position)
        new = mark.at != self._at.get(cluster)
        self._at[cluster] = mark.at
        return new
