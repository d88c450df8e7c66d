"""Batches under way to one cluster, and what follows from the outcome of each.

Decision made here: an outcome is judged once, here, and ends in one of five ways: done, once more, once more one by
one, void, or the stream is parked. Trouble with the cluster itself is the term's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, final

from haclient.errors import LogUnavailable
from haclient.events import StreamParked
from haclient.milvus import ddl
from haclient.milvus.status import COLLECTION_NOT_FOUND, Flavour
from haclient.replication import creation, loads
from haclient.replication.batching import MERGED, Keys, request
from haclient.replication.clusters import Delivery, Outcome
from haclient.replication.log import BARRIER, Entry, Stream
from haclient.replication.refusals import Refusal, Verdict, refuse
from haclient.replication.schedule import Batch
from haclient.replication.shared import Shared
from haclient.replication.timing import Backoff

if TYPE_CHECKING:
    from haclient.replication.term import Term

#: Requests under way to one cluster at once, each of another collection.
_MOST_BUSY: Final = 8
#: A schema change, an index or a load may take this many times as long as a batch of rows.
_DDL_FACTOR: Final = 12
#: An entry that has cost the connection this often, sent alone, is taken for what kills the server.
_MOST_DEATHS: Final = 2
#: An entry answered by an error that says neither "later" nor "never" is refused after this many tries.
_MOST_TRIES: Final = 6
#: Streams whose newest timestamp is remembered.
_MOST_TIMESTAMPS: Final = 512
#: The longest time allowed for one batch of rows, seconds.
_LONGEST_S: Final = 60.0


@final
class Applying:
    """The batches under way in one term.

    Args:
        shared: What the appliers of a process have in common.
        cluster: Where they go.
        term: Whose.
    """

    def __init__(self, shared: Shared, cluster: str, term: Term) -> None:
        self._shared = shared
        self._cluster = cluster
        self._term = term
        self._keys = Keys()
        self._backoff = Backoff(shared.rng)
        self._tasks: dict[asyncio.Task[None], Batch] = {}
        #: How long the cluster may work on the request under way of each stream, seconds.
        self._under_way: dict[Stream, float] = {}
        self._sending = 0
        self._calm = asyncio.Event()
        self._calm.set()
        self._timeouts = 0
        self._deaths: dict[int, int] = {}
        self._tries: dict[int, int] = {}

    def begin(self) -> None:
        """Begin every batch that may be begun now."""
        schedule = self._term.schedule
        while len(self._tasks) < _MOST_BUSY:
            batch = schedule.next(self._joins, self._shared.settings.batch_bytes)
            if batch is None:
                return
            if batch.entries[0].seq in self._shared.void:
                self._done(batch)
                continue
            task = self._shared.loop.create_task(self._apply(batch))
            self._tasks[task] = batch
            task.add_done_callback(self._ended)

    def _joins(self, taken: list[Entry], entry: Entry, again: bool) -> bool:
        void = self._shared.void
        if entry.seq in void or taken[0].seq in void:
            return False
        return self._keys.joins(taken, entry, again)

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A mistake of ours must not stop the other collections, nor be passed over.
            text = f"haclient itself failed: {error!r}; please report it"
            self._shared.loop.call_exception_handler({"message": text, "exception": error})
            self._park(batch, text)
        self._term.wake()

    async def calm(self) -> None:
        """Wait until no request is under way, and what was done is noted; who waits for a verdict may be left."""
        await self._calm.wait()

    async def cancel(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _apply(self, batch: Batch) -> None:
        term = self._term
        flavour = term.member().flavour
        timeout_s = self._timeout_s(batch)
        self._sending += 1
        self._calm.clear()
        try:
            delivery = await self._deliver(batch, flavour, timeout_s)
            if delivery is not None and delivery.outcome is Outcome.DONE:
                await self._note(batch)
        finally:
            self._sending -= 1
            if not self._sending:
                self._calm.set()
        if delivery is None:
            term.schedule.again(batch, doubtful=False)
        else:
            await self._take(batch, delivery, timeout_s, flavour)

    async def _deliver(self, batch: Batch, flavour: Flavour, timeout_s: float) -> Delivery | None:
        """Send a batch; None if the lease is over."""
        clusters, cluster, first = self._shared.clusters, self._cluster, batch.entries[0].mutation
        method, message = request(batch, flavour)
        creates = method.name == "CreateCollection"
        existed = creates and (batch.again or await creation.exists(clusters, cluster, first, timeout_s))
        self._under_way[batch.stream] = timeout_s
        if not await self._term.may_send():
            del self._under_way[batch.stream]
            return None
        self._term.position.begun = max(self._term.position.begun, batch.last)
        # Cancelled here, it stays under way.
        delivery = await clusters.deliver(cluster, method, message, first.database, timeout_s)
        del self._under_way[batch.stream]
        if creates and delivery.outcome is Outcome.DONE:
            return await creation.check(clusters, cluster, first, existed=existed, timeout_s=timeout_s)
        return delivery

    def longest_s(self) -> float:
        """Return how long the cluster may still work on the requests under way, seconds; 0 if there are none."""
        return max(self._under_way.values(), default=0.0)

    def _timeout_s(self, batch: Batch) -> float:
        base = self._shared.settings.apply_timeout_s
        longer = min(base * 2.0 ** min(self._timeouts, 6), max(base, _LONGEST_S))
        return longer if batch.entries[0].mutation.method in MERGED else max(longer, base * _DDL_FACTOR)

    async def _take(self, batch: Batch, delivery: Delivery, timeout_s: float, flavour: Flavour) -> None:
        outcome, term, shared = delivery.outcome, self._term, self._shared
        if outcome is Outcome.DONE:
            self._timeouts = 0
            stamp = await shared.stamp(self._cluster, batch.entries[0].mutation, delivery.reply, flavour)
            self._done(batch, stamp)
        elif outcome is Outcome.REFUSED:
            await self._refused(batch, delivery, flavour)
        elif outcome is Outcome.LATER and delivery.sent and not delivery.blocked:
            await self._unsure(batch, delivery, flavour)
        elif outcome is Outcome.LATER:
            term.position.blocked = delivery.reason if delivery.blocked else ""
            term.schedule.again(batch, doubtful=delivery.sent)
            term.trouble(delivery.reason)
        elif outcome is Outcome.UNANSWERED:
            self._timeouts += 1
            term.schedule.again(batch, doubtful=True)
            term.trouble(delivery.reason, max(timeout_s, shared.settings.settle_s))
        else:
            self._lost(batch, delivery)
            term.trouble(delivery.reason, shared.settings.settle_s)

    async def _note(self, batch: Batch) -> None:
        """Note what decides about loading, before it counts as done."""
        method, tries = batch.entries[0].mutation.method, 0
        while method in loads.DECIDES:
            try:
                return await loads.note(self._shared.log, batch.stream, batch.last, method)
            except LogUnavailable as error:
                self._shared.complain(error)
                tries += 1
                await asyncio.sleep(self._backoff.of(tries))

    def _done(self, batch: Batch, timestamp: int | None = 0) -> None:
        for entry in batch.entries:
            self._deaths.pop(entry.seq, None)
            self._tries.pop(entry.seq, None)
        position = self._term.position
        position.blocked = ""
        self._term.schedule.done(batch, timestamp)
        while len(position.timestamps) > _MOST_TIMESTAMPS:
            del position.timestamps[next(iter(position.timestamps))]
        self._term.moved()

    def _lost(self, batch: Batch, delivery: Delivery) -> None:
        """Count a lost connection against an entry that was sent alone; suspect each of several by itself."""
        schedule, seq = self._term.schedule, batch.last
        if schedule.is_alone(batch) or batch.entries[0].mutation.method not in MERGED:
            self._deaths[seq] = self._deaths.get(seq, 0) + 1
        if self._deaths.get(seq, 0) >= _MOST_DEATHS:
            self._park(batch, f"the server's connection died each time it was sent: {delivery.reason}")
        else:
            schedule.again(batch, doubtful=True, singly=True)

    async def _unsure(self, batch: Batch, delivery: Delivery, flavour: Flavour) -> None:
        """Try again what failed for a reason that may pass, for a while."""
        seq = batch.entries[0].seq
        tries = self._tries[seq] = self._tries.get(seq, 0) + 1
        if tries >= _MOST_TRIES:
            await self._refused(batch, delivery, flavour)
            return
        await asyncio.sleep(self._backoff.of(tries + 2))
        self._term.schedule.again(batch, doubtful=True)

    # What a server refuses.

    async def _refused(self, batch: Batch, delivery: Delivery, flavour: Flavour) -> None:
        if len(batch.entries) > 1:
            self._term.schedule.again(batch, doubtful=delivery.outcome is not Outcome.REFUSED, singly=True)
            return
        entry = batch.entries[0]
        so_already = ddl.already(entry.mutation.method, delivery.code, delivery.reason, flavour)
        if so_already and batch.again:
            self._done(batch)
            return
        verdict = await self._judge(batch, delivery)
        if verdict is Verdict.VOID or so_already:
            self._done(batch)
        else:
            self._park(batch, delivery.reason)

    async def _judge(self, batch: Batch, delivery: Delivery) -> Verdict:
        """Find out what becomes of an entry that this cluster refuses; its stream waits meanwhile."""
        after = self._term.position.follows
        if after is not None and batch.last > after:
            return Verdict.PARK  # a cluster that counts has it
        log, tries, revision = self._shared.log, 0, 0
        members = self._shared.clusters.members()
        stream, seq = batch.stream, batch.last
        # What concerns several collections holds up all of them: it does not wait for who is away.
        lacks = delivery.code == COLLECTION_NOT_FOUND and stream != BARRIER
        while True:
            try:
                newest = await log.changed(revision)
                verdict = await refuse(
                    log, members, self._cluster, stream, seq, delivery.reason, delivery.reply, lacks=lacks
                )
                revision = newest
            except LogUnavailable as error:
                self._shared.complain(error)
                tries += 1
                await asyncio.sleep(self._backoff.of(tries))
                continue
            if verdict is Verdict.VOID:
                # Known here before the cluster counts as having passed it: who waits for it must not take it for done.
                self._shared.void.setdefault(seq, Refusal(reply=delivery.reply, void=True))
            if verdict is not Verdict.WAIT:
                return verdict

    def _park(self, batch: Batch, reason: str) -> None:
        entry = batch.entries[0]
        self._term.schedule.park(batch, reason)
        self._term.moved()
        database, collection = batch.stream
        parked = StreamParked(
            at=self._shared.loop.time(),
            cluster=self._cluster,
            database=database,
            collection=collection,
            seq=entry.seq,
            reason=f"{entry.mutation.method}: {reason}; see `haclient log inspect {entry.seq}`",
        )
        self._shared.bus.emit(parked)
