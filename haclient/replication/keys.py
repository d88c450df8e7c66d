"""Keys of auto_id collections: unique over all writers, ascending in time.

Decision made here: a key is milliseconds since 2015, the number of its maker and a counter. A maker's number is held
by a lease, and the time up to which it may make keys is written down ahead of it, so neither two processes nor two
lives of one, nor a clock that was set back, make the same key twice. All of them have 19 digits until 2084, so their
texts are in order, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final, final

from haclient.errors import LogUnavailable
from haclient.replication.log import Lease, MutationLog

#: 2015-01-01, milliseconds since 1970.
_EPOCH_MS: Final = 1_420_070_400_000
_COUNTER_BITS: Final = 12
_MAKER_BITS: Final = 10
_TTL_S: Final = 30.0
#: How far ahead of the clock keys may be made, milliseconds.
_AHEAD_MS: Final = 60_000
KEYS: Final = "keys/"


@final
class KeyMaker:
    """Makes the keys of one process.

    Args:
        log: Where makers' numbers are held.
        holder: Name of this process.
        wall: Time of day, seconds since 1970.
        rng: Source of randomness.
        loop: Its time is the clock of leases.
    """

    def __init__(
        self,
        log: MutationLog,
        holder: str,
        wall: Callable[[], float],
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._log = log
        self._holder = holder
        self._wall = wall
        self._rng = rng
        self._loop = loop
        self._lease: Lease | None = None
        self._maker = 0
        self._last = 0
        self._limit = 0
        self._busy = asyncio.Lock()

    async def make(self, count: int) -> list[int]:
        """Return new keys, ascending.

        Raises:
            LogUnavailable: The log could not be asked for the right to make them.
        """
        async with self._busy:
            await self._ready(count)
            now = int(self._wall() * 1e3) - _EPOCH_MS << _COUNTER_BITS
            first = max(self._last + 1, now)
            self._last = first + count - 1
            return [self._key(ticks) for ticks in range(first, first + count)]

    def _key(self, ticks: int) -> int:
        moment, counter = ticks >> _COUNTER_BITS, ticks & (1 << _COUNTER_BITS) - 1
        return (moment << _MAKER_BITS | self._maker) << _COUNTER_BITS | counter

    async def _ready(self, count: int) -> None:
        """See that a number is held, and that the time of the keys is written down ahead."""
        for _ in range(1 << _MAKER_BITS):
            if not await self._held():
                await self._acquire()
            now = int(self._wall() * 1e3) - _EPOCH_MS << _COUNTER_BITS
            last = max(self._last + 1, now) + count
            if last <= self._limit or await self._reserve(last):
                return
        raise LogUnavailable("the log lets nobody make keys: every maker's number is taken", sent=False)

    async def _held(self) -> bool:
        lease = self._lease
        if lease is None:
            return False
        left_s = lease.until - self._loop.time()
        if left_s <= 0:
            self._lease = None
        elif left_s < _TTL_S / 2:
            self._lease = await self._log.renew(lease, _TTL_S)
        return self._lease is not None

    async def _acquire(self) -> None:
        while self._lease is None:
            maker = self._rng.randrange(1 << _MAKER_BITS)
            self._lease = await self._log.acquire(f"{KEYS}{maker}", self._holder, _TTL_S)
            self._maker, self._limit = maker, 0
        name = f"{KEYS}{self._maker}"
        fact = (await self._log.facts(name)).get(name)
        # What an earlier holder of the number may have made lies below its limit.
        self._last = max(self._last, int(fact.value) if fact is not None else 0)

    async def _reserve(self, last: int) -> bool:
        limit = last + (_AHEAD_MS << _COUNTER_BITS)
        if await self._log.put({f"{KEYS}{self._maker}": b"%d" % limit}, lease=self._lease):
            self._limit = limit
            return True
        self._lease = None
        return False

    async def aclose(self) -> None:
        """Give the number back."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._log.release(lease)
