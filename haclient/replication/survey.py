"""What has been written to the log from some entry on: to which streams, and what changed more than rows.

Decision made here: changes are read once, without their bodies but for the few that say which collections they concern.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, final

from haclient.milvus import structure
from haclient.replication.batching import MERGED
from haclient.replication.log import BARRIER, Entry, MutationLog, Stream

#: What leaves a collection as it is, and may be done twice in any place.
HARMLESS: Final = MERGED | {"Flush", "LoadCollection", "ReleaseCollection", "LoadPartitions", "ReleasePartitions"}
_AT_ONCE: Final = 4_096


@final
class Survey:
    """The streams of a part of the log.

    Args:
        log: The mutation log.
    """

    def __init__(self, log: MutationLog) -> None:
        self._log = log
        self._seen = 0
        self._streams: set[Stream] = set()
        self._changed: dict[Stream, int] = {}
        self._databases: dict[str, int] = {}

    def start(self, after: int) -> None:
        """Begin behind an entry."""
        self._seen = after

    @property
    def seen(self) -> int:
        """The last entry that has been read."""
        return self._seen

    def streams(self) -> Collection[Stream]:
        """Return the streams that have anything in this part of the log."""
        return self._streams

    def changed(self, stream: Stream) -> int:
        """Return the last entry that changed more than rows of a stream, 0 if there is none."""
        return max(self._changed.get(stream, 0), self._databases.get(stream[0], 0) if stream != BARRIER else 0)

    async def look(self) -> None:
        """Read on to the end of the log.

        Raises:
            LogTrimmed: What was not read yet is gone.
        """
        while entries := await self._log.read(self._seen, limit=_AT_ONCE, bodies=False):
            for entry in entries:
                await self._take(entry)
            self._seen = entries[-1].seq

    async def _take(self, entry: Entry) -> None:
        stream, method = entry.mutation.stream, entry.mutation.method
        self._streams.add(stream)
        if method not in HARMLESS:
            self._changed[stream] = entry.seq
        if method in ("RenameCollection", "DropDatabase"):
            message = (await self._log.read(entry.seq - 1, limit=1))[0].mutation.message
            if method == "DropDatabase":
                self._databases[structure.dropped_database(message)] = entry.seq
            else:
                for name in structure.renamed(message, entry.mutation.database):
                    self._streams.add(name)
                    self._changed[name] = entry.seq
