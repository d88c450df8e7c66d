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

from haclient.replication.log import Entry, Stream
from haclient.replication.position import Position, Standing

#: Entries of one stream whose times are remembered for telling staleness; of more, only the oldest and the newest.
_MOST_TIMES: Final = 4_096


@final
class Progress:
    """Heads of streams, positions of clusters, and those who wait for them.

    Args:
        loop: Its time is the clock.

    Attributes:
        head: Highest seq that this process knows of.
        positions: Of every cluster with a position, by name.
        fresh_at: Loop time at which the log was last heard of; what is known is at least as old.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.head = 0
        self.positions: dict[str, Position] = {}
        self.fresh_at = float("-inf")
        self._loop = loop
        self._last: dict[Stream, int] = {}
        self._times: dict[Stream, deque[tuple[int, float]]] = {}
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}

    # The log.

    def saw(self, entries: Iterable[Entry]) -> None:
        """Note entries that are in the log, in order; those known already do no harm."""
        now = self._loop.time()
        for entry in entries:
            if entry.seq <= self.head:
                continue
            self.head = entry.seq
            stream = entry.mutation.stream
            self._last[stream] = entry.seq
            times = self._times.setdefault(stream, deque())
            if len(times) >= _MOST_TIMES:
                times.pop()
            times.append((entry.seq, now))
        self.heard()

    def heard(self) -> None:
        """Note that the log has been read to its end just now."""
        self.fresh_at = self._loop.time()
        self._wake()

    def skip_to(self, head: int) -> None:
        """Take what was before this process looked as given: no entry of it is known by its stream."""
        self.head = max(self.head, head)

    def last(self, stream: Stream) -> int:
        """Return the highest known seq of a stream; 0 if none came since this process looks."""
        return self._last.get(stream, 0)

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
        """Return the cluster's own timestamp of the newest write it has of a stream, 0 if unknown."""
        position = self.positions.get(cluster)
        return position.timestamps.get(stream, 0) if position is not None else 0

    def standing(self, cluster: str) -> Standing | None:
        """Return what a cluster is to the others, None if nothing is known of it."""
        position = self.positions.get(cluster)
        return position.standing if position is not None else None

    def lag(self, cluster: str, stream: Stream) -> int:
        """Return up to which many seqs a cluster is behind the stream's last one; 0 if it has all."""
        return max(self.last(stream) - self.applied(cluster, stream), 0)

    def stale_s(self, cluster: str, stream: Stream) -> float:
        """Return how long ago this process saw the first entry of a stream that a cluster lacks, seconds; 0 if none."""
        times = self._times.get(stream)
        if not times:
            return 0.0
        applied = self.applied(cluster, stream)
        at = bisect_right(times, applied, key=lambda one: one[0])
        return self._loop.time() - times[at][1] if at < len(times) else 0.0

    def _forget(self, stream: Stream) -> None:
        """Drop the times of entries that every cluster has."""
        times = self._times[stream]
        everywhere = min((position.applied(stream) for position in self.positions.values()), default=0)
        while times and times[0][0] <= everywhere:
            times.popleft()
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
