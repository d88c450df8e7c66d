"""One term of office: what an applier does for its cluster while it holds the cluster's lease.

Decision made here: nothing is sent unless the lease still runs, and a cluster that does not answer is left alone until
it does, and then for as long as it may still be working on what went unanswered. Only then the same entries are
applied again, and all that follows: a request that a server or the network held back cannot undo what came after it.
Of a predecessor that is known to have died the connections are gone, so what it waited for is over as soon as what was
sent over a connection that broke.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

from haclient.errors import CallError, LogTrimmed, LogUnavailable
from haclient.events import StandingChanged
from haclient.milvus import messages
from haclient.replication.applying import Applying
from haclient.replication.claims import Guard
from haclient.replication.clusters import Member
from haclient.replication.decisions import decisions
from haclient.replication.ending import HandedOver, LeaseLost, NeedsReseed
from haclient.replication.loads import restore
from haclient.replication.log import Entry, Lease
from haclient.replication.loss import LossCheck
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.refusals import REFUSED, void_entries
from haclient.replication.schedule import Schedule
from haclient.replication.shared import Shared
from haclient.replication.timing import Backoff, lasting
from haclient.replication.watermark import Watermark

#: Entries read ahead at most.
_MOST_AHEAD: Final = 4_096
#: Positions are written this far apart; processes that wait for one wait no longer than that, seconds.
_SAVE_S: Final = 0.01
#: A cluster that has lost its newest entries gets this many before them again: what it wrote last need not be what it
#: lost last.
_MARGIN: Final = 1_000
#: The applier looks again at least this often, seconds: the operator may have drained the cluster.
_LOOK_S: Final = 0.5


@final
class Term:
    """One term of office.

    Args:
        shared: What the appliers of a process have in common.
        cluster: Whom it serves.
        lease: Under which it serves.
        position: The cluster's, as last written.
        head: Highest seq in the log when the term began.
    """

    def __init__(self, shared: Shared, cluster: str, lease: Lease, position: Position, head: int) -> None:
        self.position = position
        self._shared = shared
        self._cluster = cluster
        self._lease = lease
        self._unclean_s = max(position.inherited_s(lease), shared.settings.settle_s) if position.open else 0.0
        doubtful = max(position.begun, head) if position.open else position.begun
        if position.follows is None:  # what follows begins nothing that may still become void
            position.begun = doubtful
        self._schedule = Schedule(position, doubtful, self._may_apply)
        self._applying = Applying(shared, cluster, self)
        self._backoff = Backoff(shared.rng)
        settings = shared.settings
        self._watermark = Watermark(cluster, shared.clusters, settings.apply_timeout_s, shared.wall)
        self._guard = Guard(cluster, shared, self.wake)
        self._loss = LossCheck(cluster, shared.clusters)
        self._whole = False
        self._wake = asyncio.Event()
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._trouble = ""
        self._quiet_s = self._resting_s = 0.0
        #: As long as it applies, it may send a batch of rows at any moment.
        self._least_s = settings.apply_timeout_s
        self._closing = self._loading = False

    # What those who work on a batch need.

    @property
    def schedule(self) -> Schedule:
        """What the cluster is to be sent."""
        return self._schedule

    def holds(self) -> bool:
        """Say whether the lease still runs."""
        return self._shared.loop.time() < self._lease.until

    def member(self) -> Member:
        """Return the cluster as the fleet sees it now.

        Raises:
            LeaseLost: It is no longer configured.
        """
        for member in self._shared.clusters.members():
            if member.name == self._cluster:
                return member
        raise LeaseLost("the cluster is no longer configured")

    def follows(self) -> bool:
        """Say whether the cluster is to follow others, as far as this process knows."""
        return self._shared.roles.follows(self.member())

    def _may_apply(self, entry: Entry) -> bool:
        after, seq = self.position.follows, entry.seq
        settled = seq in self._shared.void or self._shared.has(entry.mutation.stream, seq)
        return after is None or seq <= after or settled

    def moved(self) -> None:
        """Tell everybody how far the cluster is now."""
        self._shared.progress.moved(self._cluster, self.position)
        self._dirty.set()
        self._wake.set()

    def trouble(self, reason: str, quiet_s: float = 0.0) -> None:
        """Leave the cluster alone until it answers, and then for a while, seconds."""
        self._quiet_s = max(self._quiet_s, quiet_s)
        self._trouble = self._trouble or reason
        self._wake.set()

    def wake(self) -> None:
        """Look again: something has changed."""
        self._wake.set()

    # The term.

    async def serve(self) -> None:
        """Apply the log for as long as the lease is held.

        Raises:
            LeaseLost: It is.
            NeedsReseed: The cluster lacks what the log no longer has.
        """
        position = self.position
        position.epoch, position.by = self._lease.epoch, self._shared.name
        position.standing = Standing.AWAY
        self.trouble("its applier has just begun", self._unclean_s)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew())
                group.create_task(self._save())
                group.create_task(self._mark())
                group.create_task(self._drive())
                group.create_task(self._guard.run())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:
            await self._applying.cancel()

    async def finish(self, grace_s: float) -> bool:
        """Begin nothing more, and wait a while for what is under way; returns whether nothing is left."""
        self._closing = True
        return await lasting(self._applying.calm(), grace_s)

    async def close(self) -> bool:
        """Write down where the successor goes on; returns whether nothing was left under way."""
        self._least_s = 0.0
        try:
            await self._write()
        except (LogUnavailable, LeaseLost):
            return False
        return True

    async def _drive(self) -> None:
        while True:
            self._wake.clear()
            if self.member().drained:
                self.trouble("drained by the operator")
            if self.follows() is (self.position.follows is None):
                self.trouble("it is decided anew whether it counts")
            if self._trouble:
                await self._recover()
            await self._obey()
            self._pass_void()
            if self._may_begin():
                self._applying.begin()
            if not await self._feed():
                await lasting(self._wake.wait(), _LOOK_S)

    def _may_begin(self) -> bool:
        busy = self._trouble or self._closing or self._loading
        return not (busy or self.member().drained) and self.holds() and self._guard.holds()

    async def _feed(self) -> bool:
        """Read further entries; returns whether there were any."""
        schedule, shared = self._schedule, self._shared
        size = shared.settings.batch_bytes
        if schedule.count >= _MOST_AHEAD or schedule.size >= 4 * size:
            return False
        try:
            entries = await shared.recent.read(schedule.tail, shared.progress.head, size)
        except LogTrimmed as error:
            raise NeedsReseed(f"the log no longer holds what it lacks: {error}") from error
        except LogUnavailable as error:
            shared.complain(error)
            return False
        schedule.offer(entries)
        if entries:
            self.moved()
        return bool(entries)

    async def _obey(self) -> None:
        """Carry out what the operator has decided about parked streams."""
        shared = self._shared
        if self._cluster not in shared.decided:
            return
        shared.decided.discard(self._cluster)
        try:
            for decision in await decisions(shared.log, self._cluster):
                await shared.log.put({decision.name: None}, lease=self._lease)
                if decision.action == "reseed":
                    raise NeedsReseed("asked for by the operator")
                if decision.action == "share":
                    await self._share()
                for stream, parked in list(self.position.parked.items()):
                    if parked.reason and parked.seq == decision.seq:
                        self._schedule.resume(stream, skip=decision.action == "skip")
                self.moved()
                await self._write()
                await self._read_void()
        except LogUnavailable as error:
            shared.complain(error)
            shared.decided.add(self._cluster)

    def _pass_void(self) -> None:
        """Go on with streams that stopped at what has turned out to be void since."""
        for stream, parked in list(self.position.parked.items()):
            if parked.reason and parked.seq in self._shared.void:
                self._schedule.resume(stream)
                self.moved()

    async def _share(self) -> None:
        """Leave the cluster to another process if this one has several, and nothing is under way for long.

        Raises:
            HandedOver: It is left.
        """
        serving = self._shared.serving
        if len(serving) > 1:
            serving.discard(self._cluster)
            if await self.finish(self._shared.settings.lease_s):
                raise HandedOver("another process, which had no cluster, has asked for it")
            self._closing = False
            serving.add(self._cluster)

    # A cluster that does not answer.

    async def _recover(self) -> None:
        """Go away, come back when the cluster answers and has come to rest."""
        await self._applying.calm()
        await self._stand(Standing.AWAY, self._trouble)
        tries = 0
        while True:
            while not await self._answers():
                tries += 1
                await asyncio.sleep(self._backoff.of(tries))
            self._resting_s, self._quiet_s = self._quiet_s, 0.0
            if not self._resting_s:
                break
            await asyncio.sleep(self._resting_s)
        if self.position.blocked:
            await asyncio.sleep(self._backoff.next())
        else:
            self._backoff.reset()
        self._trouble = ""
        self._whole = False
        self._loss.begin()
        if self.follows() is (self.position.follows is None):
            self.position.follows = self.position.begun if self.follows() else None
        await self._stand(Standing.IN_SYNC, "it answers")
        await self._read_void()

    async def _answers(self) -> bool:
        if self.member().drained:
            return False
        asked = messages.show_collections()
        try:
            await self._shared.clusters.ask(self._cluster, asked.method, asked.message, "", 1.0)
        except CallError:
            return False
        return True

    async def _stand(self, standing: Standing, reason: str) -> None:
        """Change what the cluster is to the others, durably."""
        position, before = self.position, self.position.standing
        position.standing = standing
        await self._shared.surely(self._write)
        self._shared.progress.moved(self._cluster, position)
        if before is not standing:
            now = self._shared.loop.time()
            change = StandingChanged(
                at=now, cluster=self._cluster, before=before.value, after=standing.value, reason=reason
            )
            self._shared.bus.emit(change)

    async def _read_void(self) -> None:
        async def read() -> None:
            self._shared.void.update(void_entries(await self._shared.log.facts(REFUSED)))

        await self._shared.surely(read)

    # The lease and the position.

    async def _renew(self) -> None:
        shared = self._shared
        ttl_s = shared.settings.lease_s
        while True:
            await asyncio.sleep(ttl_s / 3)
            try:
                lease = await shared.log.renew(self._lease, ttl_s)
            except LogUnavailable as error:
                shared.complain(error)
                if not self.holds():
                    raise LeaseLost("the log could not be reached to renew it") from error
                continue
            if lease is None:
                raise LeaseLost("another process has it")
            self._lease = lease

    async def _save(self) -> None:
        saved_at = float("-inf")
        while True:
            await self._dirty.wait()
            await asyncio.sleep(max(saved_at + _SAVE_S - self._shared.loop.time(), 0.0))
            self._dirty.clear()
            await self._shared.surely(self._write)
            saved_at = self._shared.loop.time()

    async def _mark(self) -> None:
        """Write into the cluster how far it is, once it is known to have what its last mark says."""
        while True:
            if not self._trouble and self.holds() and await self._guard.opened():
                if not self._whole:
                    self._whole = await self._loss.look(self.position) and await self._load()
                    if self._loss.convinced:
                        await self._shared.surely(self._go_back)
                elif await self._watermark.write(self.position, self._shared.progress.head, self._shared.claim):
                    self._dirty.set()
            await asyncio.sleep(self._shared.settings.watermark_s)

    async def _go_back(self) -> None:
        """Begin anew where a cluster that has lost data says that it is, and well before that.

        Raises:
            NeedsReseed: It does not say, or the log no longer holds what it lacks.
            LeaseLost: Always, else: the next term begins there.
        """
        position, low = self.position, self._loss.low
        bounds = await self._shared.log.bounds()
        if low is None or low + 1 < bounds.first:
            raise NeedsReseed(self._loss.reason)
        position.low = max(min(low - _MARGIN, position.low), bounds.first - 1)
        position.begun = max(position.begun, bounds.head)
        position.marked = 0
        position.ahead.clear()
        position.timestamps.clear()
        raise LeaseLost(f"{self._loss.reason}; it is brought up from entry {position.low}")

    async def _load(self) -> bool:
        """Have the cluster load again what it has forgotten to; nothing newer may come in between meanwhile."""
        self._loading = True
        try:
            await self._applying.calm()
            await restore(self._shared.log, self._shared.clusters, self._cluster, self.position)
        except LogUnavailable as error:
            self._shared.complain(error)
            return False
        finally:
            self._loading = False
            self._wake.set()
        return True

    async def may_send(self) -> bool:
        """Say whether it still may, once it is written down how long what is under way may be worked on."""
        if self._rest_s() > self.position.open:
            try:
                await self._shared.surely(self._write)
            except LeaseLost:
                return False
        return self.holds() and self._guard.holds() and not self.member().drained

    def _rest_s(self) -> float:
        """Return how long the cluster may still work on what it was sent, seconds."""
        return max(self._least_s, self._applying.longest_s(), self._left_s())

    def _left_s(self) -> float:
        """Return how long the cluster may still work on what nobody waits for any more, seconds."""
        return max(self._quiet_s, self._resting_s)

    async def _write(self) -> None:
        async with self._writing:
            self.position.open, self.position.left = self._rest_s(), self._left_s()
            value = self.position.encode()
            if not await self._shared.log.put({POSITION + self._cluster: value}, lease=self._lease):
                raise LeaseLost("another process has it")
