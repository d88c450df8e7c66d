"""Reading the log in etcd.

Decision made here: heads first, and then only those chunks that the entries chosen by them need. What is missing then
was trimmed meanwhile, or is corruption; every message is checked against what was written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, final

from haclient.errors import LogCorrupt, LogTrimmed
from haclient.replication.etcd.ends import Ends
from haclient.replication.etcd.layout import CHUNK, Head, Keys, Record
from haclient.replication.etcd.txn import GROUP, Transactions, get
from haclient.replication.log import Entry

#: Records looked at in one step.
_STEP: Final = 256
#: Bytes of chunks read at once.
_BYTES: Final = 4 * CHUNK


@final
class _Found(NamedTuple):
    """One entry, without its message."""

    seq: int
    upload: str
    head: Head


@final
class Reader:
    """Reads for one process.

    Args:
        log: Runs transactions.
        keys: Where everything is.
        ends: What is known of the log's ends.
    """

    def __init__(self, log: Transactions, keys: Keys, ends: Ends) -> None:
        self._log = log
        self._keys = keys
        self._ends = ends

    async def read(self, after: int, limit: int, max_bytes: int, *, bodies: bool) -> list[Entry]:
        """See `haclient.replication.log.MutationLog.read`."""
        found = await self._heads(after, limit, max_bytes if bodies else math.inf)
        if not bodies:
            return [one.head.entry(one.seq) for one in found]
        sizes = {key: size for one in found for key, size in self._chunks(one)}
        chunks: dict[bytes, bytes] = {}
        for some in _portions(sizes):
            read = await self._log.read(*map(get, some))
            chunks |= {one.key: one.value for ones in read.found for one in ones}
        if len(chunks) < len(sizes):
            await self._ends.look()
            self._check(after)
        return [
            one.head.entry(one.seq, one.head.message(b"".join(chunks.get(key, b"") for key, _ in self._chunks(one))))
            for one in found
        ]

    async def _heads(self, after: int, limit: int, max_bytes: float) -> list[_Found]:
        found: list[_Found] = []
        size, seq = 0, after
        while True:
            tail, (records,) = await self._ends.look(self._keys.records_after(seq, min(limit - len(found), _STEP)))
            self._check(after)
            for record in (Record.decode(one.value) for one in records):
                for own, head in enumerate(record.heads, record.first):
                    if own <= seq:
                        continue
                    if own != seq + 1:
                        break
                    seq = own
                    size += head.size
                    found.append(_Found(seq, record.upload, head))
                    if len(found) >= limit or size >= max_bytes:
                        return found
            if seq >= tail.end.seq:
                return found
            if not records or seq < Record.decode(records[-1].value).last:
                raise LogCorrupt(
                    f"the log {self._log.client.name} has no entry {seq + 1}, though it ends at {tail.end.seq}"
                )

    def _check(self, after: int) -> None:
        if after < self._ends.removed.seq:
            first = self._ends.bounds.first
            raise LogTrimmed(f"the log {self._log.client.name} begins at {first}: what came after {after} was removed")

    def _chunks(self, one: _Found) -> list[tuple[bytes, int]]:
        """Return the chunks with an entry's message, and about how large each is."""
        size = CHUNK if len(one.head.chunks) > 1 else one.head.size
        return [(self._keys.chunk(one.upload, number), size) for number in one.head.chunks]


def _portions(sizes: dict[bytes, int]) -> Iterator[Sequence[bytes]]:
    """Cut keys into parts that are read at once."""
    part: list[bytes] = []
    total = 0
    for key, size in sizes.items():
        if part and (total + size > _BYTES or len(part) == GROUP):
            yield part
            part, total = [], 0
        part.append(key)
        total += size
    if part:
        yield part
