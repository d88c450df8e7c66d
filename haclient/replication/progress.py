"""What one process knows of the log and of how far every cluster is; whoever waits for progress waits here.

Decision made here: there is one such record in a process, synchronous and free of I/O. The appliers of this process
change it directly, positions that other processes wrote reach it as facts, and writers, readers and views only look.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, final

from haclient.replication.log import BARRIER, Entry, Stream
from haclient.replication.position import Position, Standing

#: Looks at the log whose times are remembered for telling the staleness of one stream.
_MOST_TIMES: Final = 4_096
#: Entries that change rows; all others change what a collection is.
ROWS: Final = frozenset(("Insert", "Upsert", "Delete"))


@final
class Progress:
    """Heads of streams, positions of clusters, and those who wait for them.

    Args:
        loop: Its time is the clock.

    Attributes:
        head: Highest seq that this process knows of.
        positions: Of every cluster with a position, by name.
        fresh_at: Loop time up to which this process knows all that was in the log.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.head = 0
        self.positions: dict[str, Position] = {}
        self.fresh_at = float("-inf")
        self._loop = loop
        #: Entries up to this one are not known by their streams.
        self._since = 0
        self._last: dict[Stream, int] = {}
        self._changed: dict[Stream, int] = {}
        #: For each look at the log: the last entry of a stream that it found, and since when that may have been there.
        self._times: dict[Stream, deque[tuple[int, float]]] = {}
        #: Up to where the times of a stream are forgotten.
        self._forgotten: dict[Stream, int] = {}
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    # The log.

    def saw(self, entries: Iterable[Entry]) -> None:
        """Note entries that are in the log, in order; those known already do no harm."""
        # They came after the last look that found everything; how long after it nobody knows.
        at = self.fresh_at
        for entry in entries:
            if entry.seq <= self.head:
                continue
            self.head = entry.seq
            stream = entry.mutation.stream
            self._last[stream] = entry.seq
            if entry.mutation.method not in ROWS:
                self._changed[stream] = entry.seq
            times = self._times.setdefault(stream, deque())
            merged = times and (times[-1][1] == at or len(times) >= _MOST_TIMES)
            times.append((entry.seq, times.pop()[1] if merged else at))
        self._wake()

    def heard(self, asked_at: float | None = None) -> None:
        """Note that the log has been read to its end.

        Args:
            asked_at: Loop time at which the read that found nothing more was begun; now, unless given.
        """
        self.fresh_at = max(self.fresh_at, self._loop.time() if asked_at is None else asked_at)
        self._wake()

    def skip_to(self, head: int) -> None:
        """Take what was before this process looked as given: no entry of it is known by its stream."""
        self.head = max(self.head, head)
        self._since = max(self._since, head)

    def last(self, stream: Stream) -> int:
        """Return the highest known seq of a stream; if none came since this process looks, where it began to look."""
        return max(self._last.get(stream, 0), self._since)

    def changed(self, stream: Stream) -> int:
        """Return the highest known seq of a stream that changed more than rows (it was created, loaded, dropped)."""
        return self._changed.get(stream, 0)

    def by(self, stream: Stream, moment: float) -> int:
        """Return the highest seq of a stream that may have been in the log at a moment.

        Right if `fresh_at` is past the moment. It may be too high where every cluster that is known has it.
        """
        found = (seq for seq, since in reversed(self._times.get(stream, ())) if since <= moment)
        return next(found, self._undated(stream))

    # The clusters.

    def moved(self, cluster: str, position: Position) -> None:
        """Take a cluster's new position; the object is kept, not copied."""
        self.positions[cluster] = position
        for stream in list(self._times):
            self._forget(stream)
        self._wake()

    def applied(self, cluster: str, stream: Stream) -> int:
        """Return the seq up to which a cluster has a stream; 0 if nothing is known of it."""
        position = self.positions.get(cluster)
        return position.applied(stream) if position is not None else 0

    def has(self, cluster: str, stream: Stream, seq: int) -> bool:
        """Say whether a cluster has everything of a stream up to a seq."""
        return self.applied(cluster, stream) >= seq

    def timestamp(self, cluster: str, stream: Stream) -> int:
        """Return the cluster's own timestamp from which on all is seen that it has of a stream, 0 if unknown."""
        position = self.positions.get(cluster)
        if position is None:
            return 0
        return position.timestamps.get(stream) or position.timestamps.get(BARRIER, 0)

    def standing(self, cluster: str) -> Standing | None:
        """Return what a cluster is to the others, None if nothing is known of it."""
        position = self.positions.get(cluster)
        return position.standing if position is not None else None

    def follows(self, cluster: str) -> bool:
        """Say whether a cluster is known to follow others, at another site."""
        position = self.positions.get(cluster)
        return position is not None and position.follows is not None

    def blocked(self, cluster: str) -> str:
        """Return why a cluster takes no writes at present, "" if it does."""
        position = self.positions.get(cluster)
        return position.blocked if position is not None else ""

    def lag(self, cluster: str, stream: Stream) -> int:
        """Return up to which many seqs a cluster is behind the stream's last one; 0 if it has all."""
        return max(self.last(stream) - self.applied(cluster, stream), 0)

    def stale_s(self, cluster: str, stream: Stream) -> float:
        """Return the age of the oldest entry of a stream that a cluster lacks, seconds: never too little; 0 if none."""
        applied = self.applied(cluster, stream)
        if applied >= self.last(stream):
            return 0.0
        times = self._times.get(stream)
        if not times or applied < self._undated(stream):
            return float("inf")
        at = bisect_right(times, applied, key=lambda one: one[0])
        return self._loop.time() - times[at][1]

    def _undated(self, stream: Stream) -> int:
        """Return the seq up to which it is not known when entries of a stream came."""
        return max(self._since, self._forgotten.get(stream, 0))

    def _forget(self, stream: Stream) -> None:
        """Drop the times of what every cluster has."""
        times = self._times[stream]
        everywhere = min((position.applied(stream) for position in self.positions.values()), default=0)
        while times and times[0][0] <= everywhere:
            self._forgotten[stream] = times.popleft()[0]
        if not times:
            del self._times[stream]

    # Waiting.

    async def until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Wait until a condition on this record holds; False if the deadline (loop time) comes first."""
        if condition():
            return True
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[future] = condition
        try:
            async with asyncio.timeout_at(deadline):
                await future
        except TimeoutError:
            return condition()
        finally:
            self._waiting.pop(future, None)
        return True

    def _wake(self) -> None:
        for future, condition in list(self._waiting.items()):
            if not future.done() and condition():
                future.set_result(None)
