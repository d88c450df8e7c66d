"""Appending to the log in etcd.

Decision made here: an append is the transaction that moves the tail from where its writer saw it. So of several
writers, and of several copies of one transaction, one at most succeeds, and what became of a copy without an answer is
read. What comes while a transaction is under way goes together into the next. What is too large for one is staged
before, where nobody sees it, and is in the log from the moment that a last transaction names it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, final

from haclient.errors import LogFull, LogUnavailable
from haclient.replication.etcd.ends import Ends, Tail
from haclient.replication.etcd.layout import CHUNK, Head, Keys, Record, packed
from haclient.replication.etcd.txn import (
    GROUP,
    Answer,
    KeyValue,
    Operation,
    Transactions,
    batches,
    delete,
    get,
    none_under,
    present,
    put,
    unchanged,
    under,
)
from haclient.replication.log import Mutation

#: Time after which a staged upload is taken for one whose writer has died, whole seconds.
WRITER_S: Final = 300


@final
@dataclass(slots=True)
class _Upload:
    """Where the bodies of a record are.

    Attributes:
        id: Its name.
        heads: Of all that was staged; none if nothing was, and the bodies go with the record.
    """

    id: str
    heads: Sequence[Head] = ()


@final
@dataclass(slots=True)
class _Pending:
    """One call of `Appender.append`."""

    mutations: Sequence[Mutation]
    at: float
    done: asyncio.Future[list[int]]
    staged: _Upload | None = None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(len(one.message) for one in self.mutations)

    def answer(self, known: dict[bytes, int]) -> bool:
        """Answer it if all of it is in the log."""
        if not all(one.operation in known for one in self.mutations):
            return False
        self.done.set_result([known[one.operation] for one in self.mutations])
        return True


@final
class Appender:
    """Appends for one process.

    Args:
        log: Runs transactions.
        keys: Where everything is.
        ends: What is known of the tail.
        max_entries: Most entries in the log.
        wall_clock: Seconds since 1970.
        rng: Names uploads.

    Attributes:
        max_bytes: Most bytes of messages in it.
    """

    def __init__(
        self,
        log: Transactions,
        keys: Keys,
        ends: Ends,
        max_entries: int,
        max_bytes: int,
        wall_clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._log = log
        self._keys = keys
        self._ends = ends
        self._max_entries = max_entries
        self.max_bytes = max_bytes
        self._wall_clock = wall_clock
        self._rng = rng
        self._queue: deque[_Pending] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def append(self, mutations: Sequence[Mutation]) -> list[int]:
        """See `haclient.replication.log.MutationLog.append`."""
        pending = _Pending(mutations, self._wall_clock(), asyncio.get_running_loop().create_future())
        if len(mutations) > GROUP or pending.size > CHUNK:
            try:
                await self._stage(pending)
            except LogUnavailable as error:
                raise LogUnavailable(str(error), sent=False) from None
        if not pending.done.done():
            self._queue.append(pending)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.get_running_loop().create_task(self._work())
        return await pending.done

    async def aclose(self) -> None:
        """Wait until nothing is under way, which is at once when the client is closed."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        while self._queue:
            group = self._next_group()
            try:
                await self._append_all(group)
            except Exception as error:  # whatever it is, those who wait must hear of it
                for pending in group:
                    if not pending.done.done():
                        pending.done.set_exception(error)

    def _next_group(self) -> list[_Pending]:
        """Take from the queue what goes into one transaction: something staged goes alone."""
        group = [self._queue.popleft()]
        count, size = len(group[0].mutations), group[0].size
        while self._queue and group[0].staged is None:
            following = self._queue[0]
            count, size = count + len(following.mutations), size + following.size
            if following.staged is not None or count > GROUP or size > CHUNK:
                break
            group.append(self._queue.popleft())
        return group

    async def _append_all(self, group: Sequence[_Pending]) -> None:
        """Append what a group asks for and answer it."""
        staged = group[0].staged
        tail, known = self._ends.tail, dict[bytes, int]()
        # Whether all others are known not to be in the log, as long as the tail has not moved. Mostly nobody asks: the
        # transaction finds out.
        absent_known = staged is not None or not tail.revision or not self._has_room(_all_of(group, known))
        if absent_known:
            tail, _ = await self._ends.look()
            known = await self._find(_all_of(group, known))
        doubt = False
        try:
            while new := self._wanted(group, known):
                upload = staged or _Upload(self._new_id())
                record, answer = await self._try(tail, new, upload, look=not absent_known)
                doubt = doubt or answer.repeated
                if answer.done:
                    tail = self._ends.moved(record.tail, answer.revision)
                    known |= _operations(record)
                else:
                    tail, found = await self._failed(tail, new, upload, answer)
                    known |= found
                absent_known = not answer.done
        except LogUnavailable as error:
            raise LogUnavailable(str(error), sent=error.sent or doubt) from None

    def _wanted(self, group: Sequence[_Pending], known: dict[bytes, int]) -> dict[bytes, tuple[Mutation, float]]:
        """Answer what is in the log, refuse what has no room; return the operations that are to be appended."""
        admitted: list[_Pending] = []
        for pending in group:
            if pending.done.done() or pending.answer(known):
                continue
            if self._has_room(_all_of([*admitted, pending], known)):
                admitted.append(pending)
            else:
                pending.done.set_exception(self._full(pending.size))
        return _all_of(admitted, known)

    def _has_room(self, new: dict[bytes, tuple[Mutation, float]]) -> bool:
        bounds = self._ends.bounds
        entries = bounds.head - bounds.first + 1 + len(new)
        size = bounds.size + sum(len(one.message) for one, _ in new.values())
        return not new or (entries <= self._max_entries and size <= self.max_bytes)

    def _full(self, size: int) -> LogFull:
        bounds = self._ends.bounds
        return LogFull(
            f"the log {self._log.client.name} is full: it holds {bounds.head - bounds.first + 1} of at most "
            f"{self._max_entries} entries and {bounds.size} of at most {self.max_bytes} bytes, and has no room for "
            f"{size} bytes more; entries are removed once every cluster has them: see which one is behind"
        )

    async def _try(
        self, tail: Tail, new: dict[bytes, tuple[Mutation, float]], upload: _Upload, *, look: bool
    ) -> tuple[Record, Answer]:
        """Run the transaction that appends; ``look``: it also sees that no operation is in any upload."""
        keys = self._keys
        if upload.heads:
            heads = [head for head in upload.heads if bytes.fromhex(head.operation) in new]
            compare = [present(keys.writer(upload.id))]
            then = [delete(keys.writer(upload.id)), delete(keys.staged(upload.id))]
        else:
            heads, body = packed(list(new.values()))
            compare = [none_under(keys.uploads_of(name)) for name in new] if look else []
            then = [put(keys.operation(name, upload.id), b"") for name in new]
            then += [put(keys.chunk(upload.id, 0), body)] if body else []
        record = Record(tail.end.seq + 1, tail.end.total, upload.id, heads)
        answer = await self._log.do(
            [unchanged(keys.tail, tail.revision), *compare],
            [
                put(keys.tail, record.tail.encode()),
                put(keys.record(record.last), record.encode()),
                put(keys.upload(upload.id), b"%d" % record.last),
                *then,
            ],
            [*self._ends.ranges, get(keys.upload(upload.id)), *([] if upload.heads else self._uploads_of(new))],
        )
        return record, answer

    async def _failed(
        self, tail: Tail, new: Collection[bytes], upload: _Upload, answer: Answer
    ) -> tuple[Tail, dict[bytes, int]]:
        """Take what a transaction that did not hold has read: the tail, and which operations the log had then."""
        seen = self._ends.saw(answer.found, tail.end.seq)
        own, *others = answer.found[2:]
        if not upload.heads:
            return seen, await self._in_log([upload.id] if own else _names(others))
        if seen == tail:
            raise LogUnavailable(
                f"the log {self._log.client.name}: a large append took longer than {WRITER_S} s; try again", sent=False
            )
        return seen, await self._find(new)

    # What is in the log already.

    def _uploads_of(self, operations: Collection[bytes]) -> list[Operation]:
        return [under(self._keys.uploads_of(name), keys_only=True) for name in operations]

    async def _find(self, operations: Collection[bytes]) -> dict[bytes, int]:
        """Return the seqs of those operations that are in the log, and of others appended with them."""
        known: dict[bytes, int] = {}
        for some in batches(list(operations), GROUP):
            known |= await self._in_log(_names((await self._log.read(*self._uploads_of(some))).found))
        return known

    async def _in_log(self, uploads: Collection[str]) -> dict[bytes, int]:
        """Return the seqs of all operations of those uploads that are in the log."""
        known: dict[bytes, int] = {}
        for some in batches(list(uploads), GROUP):
            found = (await self._log.read(*(get(self._keys.upload(one)) for one in some))).found
            records = [get(self._keys.record(int(one.value))) for ones in found for one in ones]
            for ones in (await self._log.read(*records)).found if records else ():
                for one in ones:
                    known |= _operations(Record.decode(one.value))
        return known

    # What is too large for one transaction.

    async def _stage(self, pending: _Pending) -> None:
        """Write a large append's parts, unless it is in the log; nobody sees them yet.

        Raises:
            LogFull: There is no room for it.
        """
        keys, everything = self._keys, _all_of([pending], {})
        heads, body = packed(list(everything.values()))
        upload = _Upload(self._new_id(), heads)
        written = Record(0, 0, upload.id, heads).encode()
        if len(written) > CHUNK:
            raise ValueError(f"{len(heads)} mutations are too many for one append to etcd; append fewer at once")
        await self._ends.look()
        known = await self._find(everything)
        if pending.answer(known):
            return
        if not self._has_room(_all_of([pending], known)):
            raise self._full(pending.size)
        granted = await self._log.client.call("/v3/lease/grant", {"TTL": WRITER_S}, writes=True)
        lease = int(granted.fields["ID"])
        await self._log.do([], [put(keys.writer(upload.id), b"", lease=lease), put(keys.staged(upload.id), written)])
        for number, at in enumerate(range(0, len(body), CHUNK)):
            await self._log.do([], [put(keys.chunk(upload.id, number), body[at : at + CHUNK])])
        for some in batches(heads, GROUP):
            names = [keys.operation(bytes.fromhex(head.operation), upload.id) for head in some]
            await self._log.do([], [put(name, b"") for name in names])
        pending.staged = upload

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"


def _all_of(group: Sequence[_Pending], known: Collection[bytes]) -> dict[bytes, tuple[Mutation, float]]:
    """Return what a group asks for, each operation once and in order, without those that are known."""
    wanted: dict[bytes, tuple[Mutation, float]] = {}
    for pending in group:
        for one in pending.mutations:
            if one.operation not in known:
                wanted.setdefault(one.operation, (one, pending.at))
    return wanted


def _operations(record: Record) -> dict[bytes, int]:
    return {bytes.fromhex(head.operation): seq for seq, head in enumerate(record.heads, record.first)}


def _names(found: Sequence[Sequence[KeyValue]]) -> set[str]:
    """Return the uploads that keys name in their last part."""
    return {one.key.rpartition(b"/")[2].decode() for ones in found for one in ones}
