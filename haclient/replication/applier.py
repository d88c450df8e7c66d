"""The applier of one cluster: at most one at work at a time, over all processes that have the log open.

Decision made here: who has the lease ``apply/<cluster>`` applies, one term after another. A cluster that is to be
copied anew is left to whoever copies it.
"""

from __future__ import annotations

import asyncio
from typing import Final, final

from haclient.errors import LogError
from haclient.events import ApplierChanged, StandingChanged
from haclient.replication.claims import SUPERSEDED, Former, Superseded
from haclient.replication.ending import HandedOver, LeaseLost, NeedsReseed
from haclient.replication.log import Lease
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.shared import Shared
from haclient.replication.term import Term
from haclient.replication.timing import Backoff, lasting

APPLY: Final = "apply/"
#: Who has no lease looks whether it has become free this often, in times of the lease's length.
_PATIENCE: Final = 0.25
#: Time for what is under way when the process ends in good order, seconds.
_GRACE_S: Final = 2.0


@final
class Applier:
    """One cluster's applier in this process.

    Attributes:
        term: The term of office under way, None while another process (or nobody) has one.
    """

    def __init__(self, shared: Shared, cluster: str) -> None:
        self.term: Term | None = None
        self._shared = shared
        self._cluster = cluster
        self._backoff = Backoff(shared.rng)

    def wake(self) -> None:
        """Look again: the log has changed."""
        if self.term is not None:
            self.term.wake()

    async def finish(self) -> None:
        """Let what is under way end, before the task of `run` is cancelled."""
        if self.term is not None:
            await self.term.finish(_GRACE_S)

    async def run(self) -> None:
        """Stand for office for as long as the process lives."""
        while True:
            try:
                lease = await self._campaign()
                await self._office(lease)
            except LogError as error:
                self._shared.complain(error)
                await asyncio.sleep(self._backoff.next())

    async def _campaign(self) -> Lease:
        """Wait until the cluster's lease is free, and take it."""
        shared = self._shared
        ttl_s = shared.settings.lease_s
        while True:
            position = await self._position()
            waiting = position is not None and position.standing in (Standing.NEEDS_RESEED, Standing.RESEEDING)
            if not waiting and not shared.superseded:
                lease = await shared.log.acquire(APPLY + self._cluster, shared.name, ttl_s, shared.is_dead)
                if lease is not None:
                    return lease
            await asyncio.sleep(ttl_s * _PATIENCE * (0.5 + shared.rng.random()))

    async def _position(self) -> Position | None:
        name = POSITION + self._cluster
        fact = (await self._shared.log.facts(name)).get(name)
        return Position.decode(fact.value) if fact is not None else None

    async def _office(self, lease: Lease) -> None:
        """Serve one term, and hand over."""
        shared = self._shared
        bounds = await shared.log.bounds()
        position = await self._position() or Position()
        if position.standing in (Standing.NEEDS_RESEED, Standing.RESEEDING):
            await shared.log.release(lease)
            return
        term = self.term = Term(shared, self._cluster, lease, position, bounds.head)
        shared.serving.add(self._cluster)
        shared.bus.emit(ApplierChanged(at=shared.loop.time(), cluster=self._cluster, active=True, reason="elected"))
        reason, pause_s = "this process is closing", 0.0
        try:
            await term.serve()
        except LeaseLost as lost:
            reason = str(lost)
        except HandedOver as given:
            reason, pause_s = str(given), shared.settings.lease_s
        except Superseded as later:
            reason = shared.superseded = str(later)
            await shared.log.put({SUPERSEDED: reason.encode()}, lease=lease)
        except (NeedsReseed, Former) as need:
            reason = str(need)
            before, position.standing = position.standing, Standing.NEEDS_RESEED
            change = StandingChanged(
                at=shared.loop.time(),
                cluster=self._cluster,
                before=before.value,
                after=position.standing.value,
                reason=reason,
            )
            shared.bus.emit(change)
        finally:
            self.term = None
            shared.serving.discard(self._cluster)
            await self._hand_over(term, lease)
            changed = ApplierChanged(at=shared.loop.time(), cluster=self._cluster, active=False, reason=reason)
            shared.bus.emit(changed)
        await asyncio.sleep(pause_s)

    async def _hand_over(self, term: Term, lease: Lease) -> None:
        """Write down the last position and give the lease back, if the log lets us in a moment."""

        async def hand_over() -> None:
            try:
                if await term.close():
                    await self._shared.log.release(lease)
            except LogError as error:
                self._shared.complain(error)

        await lasting(hand_over(), self._shared.settings.lease_s)
