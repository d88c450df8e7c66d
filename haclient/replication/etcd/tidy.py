"""What keeps the log in etcd small: trimming, unfinished uploads, etcd's own history.

Decision made here: every process that has the log open tidies it, without agreeing with the others, since each step may
be done by several, and may stop anywhere. First an entry stops being in the log, then what is left of it is removed.

etcd keeps every old value until its history is compacted. The log does that itself, up to where it was a minute ago;
but not in an etcd that it shares, whose owner must have it done (``--auto-compaction-retention``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, final

from haclient.errors import LogCorrupt, LogError, LogUnavailable
from haclient.replication.etcd.ends import Ends
from haclient.replication.etcd.layout import End, Keys, Record
from haclient.replication.etcd.txn import (
    GROUP,
    Operation,
    Transactions,
    batches,
    delete,
    delete_under,
    get,
    put,
    span,
    unchanged,
    under,
)

_log = logging.getLogger("haclient")
#: Time between two rounds; the history kept is one to two of it.
_EVERY_S: Final = 60.0
#: Entries that are known to have been appended, also when they were removed.
REMEMBERED: Final = 50_000
#: Records looked at in one step of trimming.
_STEP: Final = 64


@final
class Tidy:
    """Removes what is not needed any more.

    Args:
        log: Runs transactions.
        keys: Where everything is.
        ends: What is known of the log's ends.
        compacts: Whether etcd's history is ours to compact.
    """

    def __init__(self, log: Transactions, keys: Keys, ends: Ends, *, compacts: bool) -> None:
        self._log = log
        self._keys = keys
        self._ends = ends
        self._compacts = compacts
        self._revision = 0

    async def run(self) -> None:
        """Tidy now and then, until cancelled."""
        while True:
            try:
                await self.clean()
                await self.compact()
            except LogUnavailable as error:  # the next round will do
                _log.debug("the log was not tidied: %s", error)
            except LogError as error:
                _log.warning("the log cannot be tidied: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def trim(self, through: int) -> None:
        """See `haclient.replication.log.MutationLog.trim`."""
        keys = self._keys
        tail, _ = await self._ends.look()
        through = min(through, tail.end.seq)
        while through > self._ends.removed.seq:
            _, (records, (removed,)) = await self._ends.look(keys.records_after(through - 1, 1), get(keys.removed))
            if not records:
                raise LogCorrupt(f"the log {self._log.client.name} has no entry {through}")
            end = End(through, Record.decode(records[0].value).bytes_through(through))
            if through > self._ends.removed.seq:  # else somebody was first; the transaction sees who comes in between
                await self._log.do([unchanged(keys.removed, removed.revision)], [put(keys.removed, end.encode())])
                await self._ends.look()
        await self._sweep()

    async def _sweep(self) -> None:
        """Remove the chunks of removed entries, and after a while all that is left of them."""
        keys, removed = self._keys, self._ends.removed.seq
        while True:
            (found,) = (await self._log.read(get(keys.swept))).found
            swept = int(found[0].value) if found else 0
            records = await self._records(swept + 1, removed)
            if not records:
                break
            chunks = [delete_under(keys.chunks(record.upload)) for record in records]
            await self._log.do([], [*chunks, put(keys.swept, b"%d" % records[-1].last)])
        forgotten = min(swept, self._ends.tail.end.seq - REMEMBERED)
        while records := await self._records(1, forgotten):
            await self._remove(
                [change for record in records for change in self._traces(record, keys.record(record.last))]
            )

    async def _records(self, first: int, last: int) -> list[Record]:
        """Return some of the records that end between two seqs, both included."""
        wanted = span(self._keys.record(first), self._keys.record(last + 1), limit=_STEP)
        return [Record.decode(one.value) for one in (await self._log.read(wanted)).found[0]] if first <= last else []

    async def clean(self) -> None:
        """Remove uploads whose writers have died."""
        keys = self._keys
        staged, writers = (await self._log.read(under(keys.staged_uploads), under(keys.writers, keys_only=True))).found
        alive = {one.key for one in writers}
        for one in staged:
            record = Record.decode(one.value)
            if keys.writer(record.upload) not in alive:  # so it cannot get into the log any more
                await self._remove(self._traces(record, one.key))

    def _traces(self, record: Record, name: bytes) -> list[Operation]:
        """Remove all that a record names and then, so that nothing is forgotten half-way, the key that it is under."""
        keys, upload = self._keys, record.upload
        operations = [delete(keys.operation(bytes.fromhex(head.operation), upload)) for head in record.heads]
        return [*operations, delete_under(keys.chunks(upload)), delete(keys.upload(upload)), delete(name)]

    async def _remove(self, changes: Sequence[Operation]) -> None:
        for some in batches(changes, GROUP):
            await self._log.do([], some)

    async def compact(self) -> None:
        """Let etcd forget what was replaced or removed before the last round."""
        revision, self._revision = self._revision, (await self._log.read()).revision
        if self._compacts and revision:
            await self._log.client.call("/v3/kv/compaction", {"revision": str(revision)}, writes=True)
