"""A mutation log in memory: the model of what every engine does, and the log of simulations.

Decision made here: everything that changes is one synchronous step of a `MemoryStore`, which several `MemoryLog`s (one
for each simulated process) have open. Before and after that step a log calls its fault hook, which may wait, raise or
be cancelled: before it nothing has happened, after it everything has, so that a `LogUnavailable` raised there is a lost
answer. Without a hook each side yields to the loop once, so that operations of several processes mix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from haclient.errors import LogFull, LogTrimmed, LogUnavailable
from haclient.replication.log import Bounds, Entry, Fact, Lease, Mutation, nobody

#: Called with the name of the operation, before and after its step.
Hook = Callable[[str, Literal["before", "after"]], Awaitable[None]]


@dataclass(slots=True)
class _Held:
    epoch: int = 0
    until: float | None = None
    holder: str = ""


@final
class MemoryStore:
    """What is stored; synchronous, shared by several logs of one event loop.

    Args:
        max_entries: Most entries it holds.
        max_bytes: Most bytes of messages it holds.
    """

    def __init__(self, *, max_entries: int = 1_000_000, max_bytes: int = 4 << 30) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.entries: dict[int, Entry] = {}
        self.operations: dict[bytes, int] = {}
        self.facts: dict[str, Fact] = {}
        self.leases: dict[str, _Held] = {}
        self.head = 0
        self.size = 0
        self.revision = 1
        self._waiting: set[asyncio.Future[None]] = set()

    def bounds(self) -> Bounds:
        return Bounds(next(iter(self.entries), self.head + 1), self.head, self.size)

    def append(self, mutations: Sequence[Mutation], at: float) -> list[int]:
        new = {one.operation: one for one in reversed(mutations) if one.operation not in self.operations}
        size = sum(len(one.message) for one in new.values())
        if new and (len(self.entries) + len(new) > self.max_entries or self.size + size > self.max_bytes):
            raise LogFull("the log in memory is full")
        for one in mutations:
            if one.operation in self.operations:
                continue
            self.head += 1
            self.operations[one.operation] = self.head
            self.entries[self.head] = Entry(self.head, at, one, len(one.message))
        self.size += size
        if new:
            self._changed()
        return [self.operations[one.operation] for one in mutations]

    def read(self, after: int, limit: int, max_bytes: int, bodies: bool) -> list[Entry]:
        bounds = self.bounds()
        if after + 1 < bounds.first:
            raise LogTrimmed(f"the log in memory begins at {bounds.first}")
        found: list[Entry] = []
        size = 0
        for seq in range(after + 1, min(after + limit, bounds.head) + 1):
            entry = self.entries[seq]
            found.append(entry if bodies else replace(entry, mutation=replace(entry.mutation, message=b"")))
            size += entry.size if bodies else 0
            if size >= max_bytes:
                break
        return found

    def trim(self, through: int) -> None:
        for seq in range(self.bounds().first, min(through, self.head) + 1):
            self.size -= self.entries.pop(seq).size

    def put(self, changes: Mapping[str, bytes | None], expect: Mapping[str, int], lease: Lease | None) -> bool:
        if any((self.facts[name].version if name in self.facts else 0) != version for name, version in expect.items()):
            return False
        if lease is not None and not self._held(lease):
            return False
        self._changed()
        for name, value in changes.items():
            if value is None:
                self.facts.pop(name, None)
            else:
                self.facts[name] = Fact(value, self.revision)
        return True

    def acquire(
        self, name: str, ttl_s: float, now: float, holder: str = "", is_dead: Callable[[str], bool] = nobody
    ) -> Lease | None:
        held = self.leases.setdefault(name, _Held())
        orphaned = held.until is not None and is_dead(held.holder)
        if held.until is not None and now < held.until and not orphaned:
            return None
        held.epoch += 1
        held.until = now + ttl_s
        held.holder = holder
        self._changed()
        return Lease(name, held.epoch, held.until, orphaned)

    def renew(self, lease: Lease, ttl_s: float, now: float) -> Lease | None:
        if not self._held(lease):
            return None
        self.leases[lease.name].until = now + ttl_s
        return Lease(lease.name, lease.epoch, now + ttl_s)

    def release(self, lease: Lease) -> None:
        if self._held(lease):
            self.leases[lease.name].until = None
            self._changed()

    def _held(self, lease: Lease) -> bool:
        held = self.leases.get(lease.name)
        return held is not None and held.epoch == lease.epoch and held.until is not None

    def _changed(self) -> None:
        self.revision += 1
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def news(self) -> None:
        """Wait until somebody may find something new."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


@final
class MemoryLog:
    """One process' handle of a store; a `haclient.replication.log.MutationLog`. Loop time is all its clocks.

    Args:
        store: What is stored.
        hook: Called before and after the step of each operation.
    """

    def __init__(self, store: MemoryStore, hook: Hook | None = None) -> None:
        self.store = store
        self.hook = hook
        self._closed = False

    async def open(self) -> None:
        await self._moment("open", "before")

    async def append(self, mutations: Sequence[Mutation]) -> list[int]:
        await self._moment("append", "before")
        seqs = self.store.append(mutations, self._now())
        await self._moment("append", "after")
        return seqs

    async def read(self, after: int, *, limit: int = 256, max_bytes: int = 4 << 20, bodies: bool = True) -> list[Entry]:
        await self._moment("read", "before")
        entries = self.store.read(after, limit, max_bytes, bodies)
        await self._moment("read", "after")
        return entries

    async def bounds(self) -> Bounds:
        await self._moment("bounds", "before")
        bounds = self.store.bounds()
        await self._moment("bounds", "after")
        return bounds

    async def trim(self, through: int) -> None:
        await self._moment("trim", "before")
        self.store.trim(through)
        await self._moment("trim", "after")

    async def changed(self, revision: int) -> int:
        await self._moment("changed", "before")
        while self.store.revision <= revision:
            await self.store.news()
            self._check()
        newest = self.store.revision
        await self._moment("changed", "after")
        return newest

    async def facts(self, prefix: str = "") -> dict[str, Fact]:
        await self._moment("facts", "before")
        facts = {name: fact for name, fact in self.store.facts.items() if name.startswith(prefix)}
        await self._moment("facts", "after")
        return facts

    async def put(
        self,
        changes: Mapping[str, bytes | None],
        *,
        expect: Mapping[str, int] | None = None,
        lease: Lease | None = None,
    ) -> bool:
        await self._moment("put", "before")
        done = self.store.put(changes, expect or {}, lease)
        await self._moment("put", "after")
        return done

    async def acquire(
        self, name: str, holder: str, ttl_s: float, is_dead: Callable[[str], bool] = nobody
    ) -> Lease | None:
        asked = self._now()
        await self._moment("acquire", "before")
        lease = self.store.acquire(name, ttl_s, self._now(), holder, is_dead)
        await self._moment("acquire", "after")
        return lease and replace(lease, until=asked + ttl_s)

    async def renew(self, lease: Lease, ttl_s: float) -> Lease | None:
        asked = self._now()
        await self._moment("renew", "before")
        renewed = self.store.renew(lease, ttl_s, self._now())
        await self._moment("renew", "after")
        return renewed and replace(renewed, until=asked + ttl_s)

    async def release(self, lease: Lease) -> None:
        await self._moment("release", "before")
        self.store.release(lease)
        await self._moment("release", "after")

    async def aclose(self) -> None:
        self._closed = True
        self.store.wake()

    async def _moment(self, operation: str, moment: Literal["before", "after"]) -> None:
        if self.hook is not None:
            await self.hook(operation, moment)
        else:
            await asyncio.sleep(0)
        if moment == "before":
            self._check()

    def _check(self) -> None:
        if self._closed:
            raise LogUnavailable("the log in memory was closed", sent=False)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
