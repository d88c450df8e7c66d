"""A cluster taken out of the appliers' hands for a time, to be copied anew or mended.

Decision made here: who works on a cluster holds its lease ``apply/<cluster>``, as an applier does, and its standing is
`Standing.RESEEDING` meanwhile. So nobody applies to it, nobody reads from it, and the log is not trimmed past it; and
whoever finds that standing without a holder knows that the work was cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar, final

from haclient.errors import HAClientError, LogError
from haclient.replication.applier import APPLY
from haclient.replication.decisions import decide, prefix
from haclient.replication.log import Lease, MutationLog
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.timing import lasting

T = TypeVar("T")

#: Time in which the applier must have given a cluster up, seconds.
_PATIENCE_S: Final = 30.0
#: Time between two tries to take the lease, seconds.
_LOOK_S: Final = 0.1
#: Times of the lease's length between two renewals.
_RENEWALS: Final = 1 / 3
#: Standings in which no applier wants the cluster.
WAITING: Final = (Standing.NEEDS_RESEED, Standing.RESEEDING)


class HoldLost(HAClientError):
    """The cluster could not be taken, or another process has taken it over; nothing of what was done is lost."""


@final
class Hold:
    """One cluster, held.

    Args:
        log: The mutation log.
        cluster: Which.
        lease: Under which.
        position: As found when it was taken.
        loop: Its time is the clock.
    """

    def __init__(
        self, log: MutationLog, cluster: str, lease: Lease, position: Position, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.position = position
        self._log = log
        self._cluster = cluster
        self._lease = lease
        self._loop = loop

    def check(self) -> None:
        """Return if the lease still runs.

        Raises:
            HoldLost: It does not.
        """
        if self._loop.time() >= self._lease.until:
            raise HoldLost(f"the lease of cluster {self._cluster} has run out: this process, or the log, was too slow")

    async def put(self, changes: Mapping[str, bytes | None]) -> None:
        """Change facts, if the cluster is still held.

        Raises:
            HoldLost: It is not.
        """
        if not await self._log.put(changes, lease=self._lease):
            raise HoldLost(f"another process has taken cluster {self._cluster} over")

    async def move(self, changes: Mapping[str, bytes | None] | None = None) -> None:
        """Write the position down, together with other facts."""
        self.position.epoch, self.position.by = self._lease.epoch, ""
        self.position.left = self.position.open
        await self.put({POSITION + self._cluster: self.position.encode(), **(changes or {})})

    async def renew(self, ttl_s: float) -> None:
        """Keep the lease, for as long as this runs.

        Raises:
            HoldLost: It is lost.
        """
        while True:
            await asyncio.sleep(ttl_s * _RENEWALS)
            lease = await self._log.renew(self._lease, ttl_s)
            if lease is None:
                raise HoldLost(f"another process has taken cluster {self._cluster} over")
            self._lease = lease

    async def release(self) -> None:
        """Give the lease back."""
        await self._log.release(self._lease)


async def position_of(log: MutationLog, cluster: str) -> Position:
    """Return a cluster's position as last written."""
    name = POSITION + cluster
    fact = (await log.facts(name)).get(name)
    return Position.decode(fact.value) if fact is not None else Position()


async def held(
    log: MutationLog,
    cluster: str,
    holder: str,
    ttl_s: float,
    loop: asyncio.AbstractEventLoop,
    work: Callable[[Hold], Awaitable[T]],
    *,
    ask: bool = True,
) -> T:
    """Do something with a cluster that nobody else touches meanwhile.

    Args:
        log: The mutation log.
        cluster: Which.
        holder: Name of this process.
        ttl_s: Length of the lease, seconds.
        loop: Its time is the clock.
        work: Says with `Hold.move` what the cluster is afterwards; until then it is reseeding.
        ask: Have its applier give it up, if it has one; else wait for one that ends by itself.

    Raises:
        HoldLost: The cluster could not be taken, or not be kept.
    """
    lease = await _take(log, cluster, holder, ttl_s, loop, ask)
    hold = Hold(log, cluster, lease, await position_of(log, cluster), loop)
    try:
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(hold.renew(ttl_s))
            result = await work(hold)
            renewing.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        with suppress(LogError):  # it runs out by itself
            await lasting(hold.release(), ttl_s)
    return result


async def _take(
    log: MutationLog, cluster: str, holder: str, ttl_s: float, loop: asyncio.AbstractEventLoop, ask: bool
) -> Lease:
    """Bring the applier to give the cluster up, and take its lease."""
    asked = f"{prefix(cluster)}reseed"
    if ask and (await position_of(log, cluster)).standing not in WAITING:
        await decide(log, cluster, "reseed")
    until = loop.time() + _PATIENCE_S
    while True:
        lease = await log.acquire(APPLY + cluster, holder, ttl_s)
        if lease is not None:
            if await log.put({asked: None}, lease=lease):
                return lease
            continue
        if loop.time() >= until:
            await log.put({asked: None})
            raise HoldLost(
                f"cluster {cluster} is in the hands of another process, which has not given it up for "
                f"{_PATIENCE_S:g} s: another reseed or repair may be running; see `haclient log show`"
            )
        await asyncio.sleep(_LOOK_S)
