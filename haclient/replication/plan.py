"""Which clusters may answer a read: the four consistency levels, with one meaning across clusters.

Decision made here: a level is a demand on a cluster's place in the log, checked before each attempt.

    Strong      it has all that was in the log when the call began
    Bounded     what it lacks is younger than `bounded_s`, as far as a log heard of that lately can tell
    Session     it has all that the session has written; and it gave the session's last answer about the collection, or
                has all that was in the log when that was given
    Eventually  it is whole: neither being copied from another cluster, nor about to be

A read for which no cluster qualifies waits until one does, up to the call's deadline: it is never answered by less than
it asks for. The cluster is then sent its own timestamp of what must be seen, or Strong: an applied write is not yet a
visible one. A timestamp that is neither a token nor special asks for Strong: nobody knows what it stands for elsewhere.

What shows no rows (descriptions, lists, load states) must show what the session itself has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from haclient.call import Call
from haclient.errors import CallError, DeadlineExceeded, Unavailable
from haclient.milvus.requests import Facts
from haclient.milvus.timestamps import BOUNDED, EVENTUALLY, SESSION, SPECIAL, STRONG, TOKEN, effective_level
from haclient.replication.log import BARRIER, Stream
from haclient.replication.past import Past, mark
from haclient.replication.progress import Progress
from haclient.replication.token import seq_of

if TYPE_CHECKING:
    from haclient.replication.reader import Reader

#: What nobody tells (that a cluster is up again, that marks have been read) is looked at this often, seconds.
_LOOK_S: Final = 0.1
#: So long a read that has failed waits for a cluster that has not been tried, and one that could do without the log for
#: the log, seconds.
_PATIENCE_S: Final = 1.0


@final
class Plan:
    """What one read has to see, and who can show it.

    Args:
        reader: What it shares with other reads.
        call: The read.
        past: Its session.
        facts: What `haclient.milvus.requests.inspect` read from it.
    """

    __slots__ = (
        "_default", "_facts", "_heard", "_last", "_level", "_moment", "_needs", "_past", "_reader", "_stream",
    )  # fmt: skip

    def __init__(self, reader: Reader, call: Call, past: Past, facts: Facts) -> None:
        self._reader = reader
        self._past = past
        self._facts = facts
        #: What the collection is, and its own level; None while that is not known, or does not matter.
        self._stream: Stream | None = None
        self._default: int | None = None
        self._level: int = EVENTUALLY
        #: What must be there in each stream.
        self._needs: list[tuple[Stream, int]] = []
        #: All that was in the log at this loop time must be there, too, unless the cluster is `_last`; is it known?
        self._moment: float | None = None
        self._last: int | None = None
        self._heard = False
        name = (call.database, call.collection)
        if not facts.reads_rows:
            self._level = SESSION
            self._stream = reader.stream(*name)
            self._needs = past.all_written() if not call.collection else self._written(self._stream)
        elif self._effective() == EVENTUALLY:
            self._stream = reader.stream(*name)
        elif (shape := reader.known(*name)) is not None:
            self._settle((call.database, shape.collection), shape.consistency_level, name)

    # What it has to see.

    def _effective(self) -> int | None:
        facts = self._facts
        return effective_level(
            facts.guarantee_timestamp, facts.consistency_level, facts.use_default_consistency, self._default
        )

    def _written(self, stream: Stream) -> list[tuple[Stream, int]]:
        return [(stream, self._past.written(stream)), (BARRIER, self._past.written(BARRIER))]

    def _settle(self, stream: Stream, default: int | None, name: Stream) -> None:
        """Decide what must be seen of a collection that is known now."""
        self._stream, self._default = stream, default
        level = self._effective()
        if level in (BOUNDED, EVENTUALLY):
            self._level = level
            return
        facts = self._facts
        foreign = SPECIAL < facts.guarantee_timestamp < TOKEN
        if foreign and facts.is_iterator:
            return  # a later page, whose snapshot is of its own cluster
        if level is None or level == STRONG or foreign:
            self._level, self._moment = STRONG, self._reader.loop.time()
            return
        self._level = SESSION
        given = max(seq_of(facts.guarantee_timestamp), seq_of(facts.inner_timestamp))
        self._needs = [*self._written(stream), (stream, given)]
        sight = self._past.sight(name) if level == SESSION else None
        if sight is not None:
            self._moment, self._last = sight.at, sight.cluster

    # Who can show it.

    def quick(self, call: Call) -> bool:
        """Say whether the call's next attempt may be made now, and note in the call by whom not."""
        if self._stream is None:
            return False
        rotation = self._reader.rotation()
        if call.pin is not None:
            rotation = {call.pin: rotation.get(call.pin, False)}
        able = [name for name in rotation if self._shows(name)]
        if not able or (any(rotation.values()) and not any(rotation[name] for name in able)):
            return False  # those that can are down, and one that is up may soon be able to
        # Who has yet to create or load the collection would refuse, so he is passed over while another has done it.
        prepared = [name for name in able if not self._reader.unprepared(name, self._stream)]
        taken = prepared if any(rotation[name] for name in prepared) else able
        call.behind = frozenset(rotation.keys() - taken)
        return True

    def message(self, call: Call, cluster: str) -> bytes:
        """Return the read as it is to be sent to a cluster."""
        reader = self._reader
        required = self._level == SESSION and (self._moment is not None or any(seq for _, seq in self._needs))
        if not self._facts.reads_rows or not (required or call.guarantee_timestamp):
            return call.message
        assert self._stream is not None
        applied = reader.progress.timestamp(cluster, self._stream)
        if self._moment is not None and not self._has_all_of(self._moment, cluster, reader.progress):
            applied = 0  # it may have shown what it is not known to have
        return reader.stamps.for_cluster(
            call.method,
            call.message,
            self._facts,
            cluster,
            clusters=len(reader.rotation()),
            applied=applied,
            required=required,
            default_level=self._default,
        )

    def answered(self, call: Call, cluster: str) -> None:
        """Note in the session that a cluster has just answered."""
        if not self._facts.reads_rows:
            return
        name, progress = (call.database, call.collection), self._reader.progress
        sight = self._past.sight(name)
        going_on = sight is None or mark(cluster) == sight.cluster
        if sight is not None and not going_on and self._reader.known(*name) is not None:
            # It may have been a read that did not ask for what the session has seen.
            going_on = progress.fresh_at > sight.at and self._has_all_of(sight.at, cluster, progress)
        self._past.saw(name, cluster if going_on else None, self._reader.loop.time())

    def _has_all_of(self, moment: float, cluster: str, progress: Progress) -> bool:
        """Say whether a cluster has all that was in the log at a moment."""
        streams = (self._stream or BARRIER, BARRIER)
        return all(progress.has(cluster, one, progress.by(one, moment)) for one in streams)

    def lag(self, cluster: str) -> str:
        """Say in words how far a cluster is behind."""
        reader, progress = self._reader, self._reader.progress
        standing = progress.standing(cluster)
        if not reader.fit(cluster):
            return f"behind: {standing.value if standing is not None else 'nothing is known of how far it is'}"
        streams = (self._stream or BARRIER, BARRIER)
        writes = max(
            *(progress.lag(cluster, one) for one in streams),
            *(seq - progress.applied(cluster, one) for one, seq in self._needs),
        )
        if writes <= 0:
            return "behind: what was written last is not known here yet"
        seconds = max(progress.stale_s(cluster, one) for one in streams)
        return f"behind: lacks up to {writes} writes" + (f", {seconds:.1f} s" if 0 < seconds < float("inf") else "")

    def _shows(self, cluster: str) -> bool:
        """Say whether a cluster can show what has to be seen."""
        reader = self._reader
        # Where the log ends only the log can say.
        progress = reader.logged if self._level == STRONG else reader.progress
        if not reader.fit(cluster):
            return False
        if self._level == BOUNDED:
            bound = reader.bounded_s
            heard = reader.loop.time() - progress.fresh_at <= bound
            return heard and all(progress.stale_s(cluster, one) <= bound for one in (self._stream or BARRIER, BARRIER))
        if not all(progress.has(cluster, stream, seq) for stream, seq in self._needs):
            return False
        moment = self._moment
        if moment is None or mark(cluster) == self._last:
            return True
        heard = progress.fresh_at > moment or (self._heard and progress is reader.logged)
        return heard and self._has_all_of(moment, cluster, progress)

    async def ready(self, call: Call) -> None:
        """Wait until the call's next attempt may be made.

        Raises:
            CallError: It may not before the deadline, or never.
        """
        if call.attempts:
            await self._another(call)
        if self.quick(call):
            return
        if self._stream is None:
            await self._describe(call)
        if not self.quick(call):
            await self._complete(call)
            await self._wait(call)

    async def _another(self, call: Call) -> None:
        """Give a cluster that has not been tried a moment to catch up, rather than go back to one that has failed."""
        reader, tried = self._reader, {attempt.cluster for attempt in call.attempts}

        def found() -> bool:
            others = [name for name, up in reader.rotation().items() if up and name not in tried]
            return not others or (self.quick(call) and any(name not in call.behind for name in others))

        if call.pin is None:
            await reader.progress.until(found, min(call.deadline, reader.loop.time() + _PATIENCE_S))

    async def _describe(self, call: Call) -> None:
        name = (call.database, call.collection)
        try:
            shape = await self._reader.describe(*name, call.deadline)
        except (Unavailable, DeadlineExceeded):
            raise
        except CallError:
            self._settle(name, None, name)  # the servers refuse it, and will tell the user so themselves
        else:
            self._settle((call.database, shape.collection), shape.consistency_level, name)

    async def _complete(self, call: Call) -> None:
        """Have all that is in the log known here, if that is needed to tell who can show what has to be seen."""
        reader, progress = self._reader, self._reader.logged
        wanted = max((seq for _, seq in self._needs), default=0)
        unheard = self._moment is not None and progress.fresh_at <= self._moment
        if not unheard and wanted <= progress.head:
            return
        what = f"{call.method.name} {call.collection}".rstrip()
        try:
            if self._level == STRONG:
                await reader.complete(what, call.deadline)
            else:
                await reader.complete(what, min(call.deadline, reader.loop.time() + _PATIENCE_S))
        except (Unavailable, DeadlineExceeded):
            if self._level == STRONG:
                raise
            return  # what is needed may still be heard of in time
        if wanted > progress.head:
            raise Unavailable(
                f"{what}: its session has written entry {wanted} of the mutation log, which ends at {progress.head}. "
                "The session's token is of another log, or the log has lost its end; begin a new session.",
                call.attempts,
            )
        self._heard = True

    async def _wait(self, call: Call) -> None:
        reader, deadline = self._reader, call.deadline
        while not self.quick(call):
            now = reader.loop.time()
            if now >= deadline:
                call.behind = frozenset(reader.rotation())
                raise DeadlineExceeded(
                    f"{call.method.name} {call.collection}: no cluster had what it must show before the deadline.",
                    call.attempts,
                )
            await reader.progress.until(lambda: self.quick(call), min(deadline, now + _LOOK_S))
