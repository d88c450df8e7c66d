"""The mutation log: what every engine offers, and the values in it.

Decision made here: an engine knows three things and nothing of Milvus. *Entries*: an append-only sequence of mutations,
numbered from 1 without gaps. *Facts*: small named values with versions, changed together or not at all. *Leases*: names
that one holder at a time has, for a limited time, under an epoch that only grows. Everything else (positions, refusals,
drains, progress of a copy) is built of these, so another engine is one module.

Durability: when `MutationLog.append` or `MutationLog.put` returns, what it wrote survives the failures that the engine
promises to survive (SQLite: of the process and of the machine, not of its disk; etcd: of a minority of its members).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, final

#: (database, collection); entries of one stream are applied in their order. ("", "") is everything at once.
Stream = tuple[str, str]

#: The stream of what concerns more than one collection (databases, aliases, users): a barrier for all others.
BARRIER: Final[Stream] = ("", "")


@final
@dataclass(frozen=True, slots=True)
class Mutation:
    """One write, in the form in which every cluster gets it.

    Attributes:
        operation: 16 bytes that name it: appended twice, it is in the log once.
        method: Name of the RPC. ``Insert`` means that no cluster can have the keys yet (haclient made them): the first
            application may insert, every other one upserts. Rows with keys of the user's are an ``Upsert``.
        stream: Whose order it belongs to.
        message: The serialised request, without anything that is of one cluster (base, schema timestamp).
        database: The database it is sent to, "" for the default one; a barrier has one too.
    """

    operation: bytes
    method: str
    stream: Stream
    message: bytes
    database: str = ""


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A mutation in the log.

    Attributes:
        seq: Its number, from 1.
        at: Wall time of its writer when it was appended, seconds since 1970; for people and for restoring.
        mutation: What it is; its message is empty if it was read without bodies.
        size: Bytes of its message.
    """

    seq: int
    at: float
    mutation: Mutation
    size: int


@final
@dataclass(frozen=True, slots=True)
class Bounds:
    """What the log holds.

    Attributes:
        first: Lowest seq still there; ``head + 1`` if it is empty.
        head: Highest seq ever given, 0 if none.
        size: Bytes of all messages in it.
    """

    first: int
    head: int
    size: int


class Fact(NamedTuple):
    """A value and its version: versions of one key only grow, also when it is removed and set again."""

    value: bytes
    version: int


@final
@dataclass(frozen=True, slots=True)
class Lease:
    """A name held for a time.

    Attributes:
        name: What is held.
        epoch: Grows with every new holder; never goes back.
        until: Loop time up to which its holder may act on it: counted from before it was asked for, so it ends for the
            holder before the log gives it to another.
        orphaned: Who had it before is known to have died with it.
    """

    name: str
    epoch: int
    until: float
    orphaned: bool = False


def nobody(holder: str) -> bool:
    """Say of no holder of a lease that it has died."""
    return False


class MutationLog(Protocol):
    """One log, opened by one process; several processes may have it open.

    Every method may raise:
        LogUnavailable: It cannot be reached or written now; ``sent`` says whether the change may have happened.
        LogCorrupt: What is stored is not what was written.
    """

    async def open(self) -> None:
        """Make it usable; called once, first.

        Raises:
            ConfigError: It can never work as configured (no such folder, not a log, wrong credentials).
        """

    async def append(self, mutations: Sequence[Mutation]) -> list[int]:
        """Add entries, in order and all or none; durable when it returns.

        An operation that is in the log already keeps its seq and is not added again.

        Returns:
            The seq of each.

        Raises:
            LogFull: It has no room; nothing was added. Entries are removed by `trim`.
        """

    async def read(self, after: int, *, limit: int = 256, max_bytes: int = 4 << 20, bodies: bool = True) -> list[Entry]:
        """Return entries with a seq above ``after``, in order, at least one if there is any.

        Args:
            after: Where to go on from.
            limit: Most entries.
            max_bytes: Bytes of messages after which no further entry is taken.
            bodies: Whether messages are wanted.

        Raises:
            LogTrimmed: Entries after ``after`` have been removed.
        """

    async def bounds(self) -> Bounds:
        """Return what it holds now: sees every append that returned, anywhere, before this was called."""

    async def trim(self, through: int) -> None:
        """Remove entries up to a seq, that one included; more than is there does no harm."""

    async def changed(self, revision: int) -> int:
        """Wait until something (an entry, a fact, a lease) is newer than a revision; return the newest one.

        ``changed(0)`` returns at once. Waking up for nothing is allowed, missing a change is not.
        """

    async def facts(self, prefix: str = "") -> dict[str, Fact]:
        """Return the facts whose names start with a prefix."""

    async def put(
        self,
        changes: Mapping[str, bytes | None],
        *,
        expect: Mapping[str, int] | None = None,
        lease: Lease | None = None,
    ) -> bool:
        """Set facts (None removes), all or none; durable when it returns.

        Args:
            changes: New values by name.
            expect: Version that each of these facts must have, 0 if it must not be there.
            lease: Must still be held: its epoch must be the newest of its name and not have been released.

        Returns:
            Whether it was done; False if an expectation or the lease did not hold.
        """

    async def acquire(
        self, name: str, holder: str, ttl_s: float, is_dead: Callable[[str], bool] = nobody
    ) -> Lease | None:
        """Take a lease that nobody holds, or whose time is over; None if somebody does.

        Args:
            name: What is to be held.
            holder: Who asks.
            ttl_s: How long it lasts unless it is renewed, seconds.
            is_dead: Says of a holder that it is known to have died: its lease is free at once. Called in any thread.
        """

    async def renew(self, lease: Lease, ttl_s: float) -> Lease | None:
        """Prolong a lease that is still held under its epoch; None if it is lost."""

    async def release(self, lease: Lease) -> None:
        """Give a lease back at once; does nothing if it is lost."""

    async def aclose(self) -> None:
        """Let go of files and connections; leases not released run out."""
