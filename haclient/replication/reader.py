"""What reads of one process have in common: their sessions, the end of the log, and what is known of collections.

Decision made here: the log is asked where it ends only by reads that cannot do without, and once for all that ask at
the same time. Every other question is answered from what the process knows anyway: from the log (`Progress`), or while
it cannot be reached from the clusters' own marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, final

from haclient.call import Call, Metadata, Reply
from haclient.config.replication import Replication
from haclient.errors import DeadlineExceeded, LogError, Unavailable
from haclient.milvus import watermarks
from haclient.milvus.requests import Facts
from haclient.milvus.shape import Shape
from haclient.milvus.timestamps import Timestamps
from haclient.replication.log import BARRIER, MutationLog, Stream
from haclient.replication.past import SESSION, Past
from haclient.replication.plan import Plan
from haclient.replication.position import Standing
from haclient.replication.progress import Progress

#: A cluster that lacks nothing older than this is not said to lag, seconds: who is written to always lacks something.
_LAGS_S: Final = 1.0


@final
class Reader:
    """Plans of reads, and what they share.

    Args:
        settings: What is configured.
        sources: What is known of everybody's place in the log: from the log, if there is one, and from marks.
        log: The mutation log; None in a process without one, which can read all but Strong.
        rotation: Returns the clusters by name, and whether each takes calls now.
        known: Returns what is known of a collection (database, name or alias), None if nothing is.
        describe: Finds it out, by a deadline; raises `CallError`.
        stamps: Of the fleet.
        loop: Its time is the clock.

    Attributes:
        logged: What is known from the log, if there is one.
        past: The session of calls that belong to no other.
    """

    def __init__(
        self,
        settings: Replication,
        sources: Sequence[Progress],
        log: MutationLog | None,
        rotation: Callable[[], Mapping[str, bool]],
        known: Callable[[str, str], Shape | None],
        describe: Callable[[str, str, float], Awaitable[Shape]],
        stamps: Timestamps,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.logged = sources[0]
        self._sources = sources
        self.bounded_s = settings.bounded_s
        self.rotation = rotation
        self.known = known
        self.describe = describe
        self.stamps = stamps
        self.loop = loop
        self.past = Past()
        self._log = log
        self._running: asyncio.Task[tuple[float, int]] | None = None
        self._next: asyncio.Task[tuple[float, int]] | None = None

    @property
    def progress(self) -> Progress:
        """What was heard of last: never both, since what one of them has heard long ago may not hold any more."""
        return max(self._sources, key=_freshness)

    async def aclose(self) -> None:
        """Ask the log nothing more."""
        asking = [task for task in (self._running, self._next) if task is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    # A call begins and ends.

    def enter(self, call: Call, past: Past | None) -> None:
        """Find a call's session, first the one that its metadata names; keep clusters from it that are not whole."""
        call.past = past or self.past
        for name, value in call.metadata:
            if name == SESSION:
                call.past = Past.of(value, self.loop.time()) or call.past
                call.metadata = tuple(field for field in call.metadata if field[0] != SESSION)
                break
        if self.progress.positions:
            call.behind = self.unfit()

    def plan(self, call: Call, facts: Facts) -> Plan:
        """Work out what a read has to see; its session must be known."""
        assert call.past is not None
        return Plan(self, call, call.past, facts)

    def answered(self, call: Call, cluster: str, reply: Reply) -> Reply:
        """Remember who has answered a read; returns the answer without what is ours."""
        if isinstance(call.plan, Plan):
            call.plan.answered(call, cluster)
        if call.method.name == "ShowCollections" and reply.code == 0:
            reply.message = watermarks.hide(reply.message)
        return reply

    def trailer(self, call: Call) -> Metadata:
        """Return the metadata by which a call's session goes on anywhere."""
        assert call.past is not None
        name = (call.database, call.collection)
        return ((SESSION, call.past.token(name, self.stream(*name))),)

    # What is known.

    def stream(self, database: str, name: str) -> Stream:
        """Return a collection's stream; its name is taken for the real one if it is not known."""
        shape = self.known(database, name)
        return (database, shape.collection if shape is not None else name)

    def fit(self, cluster: str) -> bool:
        """Say whether a cluster is whole: neither being copied from another one, nor about to be."""
        standing = self.progress.standing(cluster)
        if standing is None:
            return not self.progress.positions  # it is new, unless nothing is known of any
        return standing not in (Standing.NEEDS_RESEED, Standing.RESEEDING)

    def unfit(self) -> frozenset[str]:
        """Return the clusters that are not whole."""
        return frozenset(name for name in self.rotation() if not self.fit(name))

    def lagging(self, cluster: str, key: Stream) -> bool:
        """Say whether what a cluster lacks of a collection may be lacking only because it is still to come."""
        progress, stream = self.progress, self.stream(*key)
        late = any(progress.stale_s(cluster, one) > _LAGS_S for one in (stream, BARRIER))
        return late or not self.fit(cluster) or self.unprepared(cluster, stream)

    def unprepared(self, cluster: str, stream: Stream) -> bool:
        """Say whether a cluster is known to lack a change of a collection itself, such as that it was loaded."""
        progress = self.progress
        return not all(progress.has(cluster, one, progress.changed(one)) for one in (stream, BARRIER))

    # The log.

    async def complete(self, what: str, deadline: float) -> None:
        """Wait until this process knows all that was in the log when this was called.

        Args:
            what: Who needs it, for errors.
            deadline: Loop time.

        Raises:
            Unavailable: There is no log here, or it cannot be read.
            DeadlineExceeded: It took too long.
        """
        if self._log is None:
            raise Unavailable(
                f"{what}: it needs the end of the mutation log, and this process has none (replication.log is empty). "
                "Read with Bounded, Session or Eventually, or give the process the log."
            )
        progress, asking = self.logged, self._ask(self._log)
        # Others wait for the same answer: whoever gives up leaves the question alone.
        await asyncio.wait([asking], timeout=max(deadline - self.loop.time(), 0.0))
        if not asking.done():
            raise DeadlineExceeded(f"{what}: the mutation log has not said where it ends when the call's time was over")
        if asking.cancelled():
            raise Unavailable(f"{what}: the client was closed")
        try:
            asked_at, head = asking.result()
        except LogError as error:
            raise Unavailable(
                f"{what}: the mutation log cannot be read, so nobody knows what the newest write is: {error}. "
                "Reads with Bounded, Session or Eventually go on without it."
            ) from None
        if not await progress.until(lambda: progress.head >= head, deadline):
            raise DeadlineExceeded(
                f"{what}: the mutation log ends at {head} and was read up to {progress.head} when time was over"
            )
        progress.heard(asked_at)

    def _ask(self, log: MutationLog) -> asyncio.Task[tuple[float, int]]:
        """Ask where the log ends, once for all who ask before the question is put."""
        if self._next is None:
            self._next = self.loop.create_task(self._head(log, self._running))
            # Those who wait may have gone away.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._next

    async def _head(self, log: MutationLog, before: asyncio.Task[tuple[float, int]] | None) -> tuple[float, int]:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        asked_at = self.loop.time()
        return asked_at, (await log.bounds()).head


def _freshness(progress: Progress) -> float:
    return progress.fresh_at
