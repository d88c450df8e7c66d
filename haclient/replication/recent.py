"""The newest entries of the log, kept in memory for the appliers of this process.

Decision made here: what this process appends it need not read back, and what one applier reads the others need not read
again. The memory holds one gapless run that ends with the newest entry known; everything older is read from the log.
"""

from __future__ import annotations

from collections import deque
from typing import Final, final

from haclient.replication.log import Entry, MutationLog

#: Bytes of messages kept.
_MOST_BYTES: Final = 64 << 20


@final
class Recent:
    """A gapless run of the newest entries.

    Args:
        log: Where older ones are.
    """

    def __init__(self, log: MutationLog) -> None:
        self._log = log
        self._entries: deque[Entry] = deque()
        self._size = 0

    @property
    def last(self) -> int:
        """Seq of the newest entry kept, 0 if there is none."""
        return self._entries[-1].seq if self._entries else 0

    def add(self, entries: list[Entry]) -> None:
        """Keep entries; those that leave a gap replace what was kept."""
        for entry in entries:
            if self._entries and entry.seq <= self.last:
                continue
            if self._entries and entry.seq != self.last + 1:
                self._entries.clear()
                self._size = 0
            self._entries.append(entry)
            self._size += entry.size
        while self._size > _MOST_BYTES and len(self._entries) > 1:
            self._size -= self._entries.popleft().size

    async def read(self, after: int, head: int, max_bytes: int) -> list[Entry]:
        """Return entries above ``after``, in order; none if ``head``, the newest known, is not above it.

        Raises:
            LogTrimmed: They are gone.
            LogUnavailable: The log cannot be read.
        """
        if after >= head:
            return []
        if not self._entries or after + 1 < self._entries[0].seq or after >= self.last:
            return await self._log.read(after, max_bytes=max_bytes)
        found: list[Entry] = []
        size = 0
        for entry in self._from(after):
            found.append(entry)
            size += entry.size
            if size >= max_bytes:
                break
        return found

    def _from(self, after: int) -> list[Entry]:
        # Seqs have no gaps, so the place is known; a deque is walked from its nearer end.
        skip = after + 1 - self._entries[0].seq
        if skip <= len(self._entries) // 2:
            return list(self._entries)[skip:]
        count = len(self._entries) - skip
        return [self._entries[-count + i] for i in range(count)]
