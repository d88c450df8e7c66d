"""What the log means: the state that every cluster must come to, and every state on the way there.

Decision made here: the log's entries are carried out one by one, in their order, on a model of a Milvus to which
nothing ever happens. What that model refuses is void; what a curse made clusters refuse is void if the log says so.
"""

from __future__ import annotations

import functools
from typing import Any

from haclient.replication.log import Entry, Stream
from tests.simulation.replication import milvus
from tests.simulation.replication.milvus import Milvus, Refused
from tests.simulation.replication.requests import VERSION


@functools.lru_cache(maxsize=4096)
def written(method: str, message: bytes) -> tuple[tuple[Any, int], ...]:
    """Return the keys and versions of an entry's rows."""
    columns = milvus.rows_of(method, message)
    key = milvus.parse(method, message).fields_data[0].field_name
    return tuple(zip(columns[key], columns[VERSION], strict=True))


class Reference:
    """What has been in the log so far, and what it comes to.

    Attributes:
        entries: By seq, whatever has been trimmed since.
        seqs: Of each row's version, and of each key that is deleted: the entries that name it.
        changes: By stream and key: (seq, version or None), oldest first; of what was not refused.
    """

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.refused: set[int] = set()
        self.seqs: dict[int, list[int]] = {}
        self.changes: dict[Stream, dict[Any, list[tuple[int, int | None]]]] = {}
        self._milvus = Milvus()

    def add(self, entry: Entry) -> None:
        """Take the next entry."""
        seq, mutation = entry.seq, entry.mutation
        self.entries[seq] = entry
        method, message = mutation.method, mutation.message
        if method in ("Insert", "Upsert"):
            for _, version in written(method, message):
                self.seqs.setdefault(version, []).append(seq)
        elif method == "Delete":
            for key in milvus.deleted_keys(milvus.parse(method, message).expr) or ():
                self.seqs.setdefault(key, []).append(seq)
        if not execute(self._milvus, entry):
            self.refused.add(seq)
            return
        self._note(entry)

    def _note(self, entry: Entry) -> None:
        method, message = entry.mutation.method, entry.mutation.message
        changed = self.changes.setdefault(entry.mutation.stream, {})
        if method in ("Insert", "Upsert"):
            for key, version in written(method, message):
                changed.setdefault(key, []).append((entry.seq, version))
        elif method == "Delete":
            for key in milvus.deleted_keys(milvus.parse(method, message).expr) or ():
                if key in changed:
                    changed[key].append((entry.seq, None))
        elif method == "DropCollection":
            for history in changed.values():
                history.append((entry.seq, None))

    def before(self, moment: float) -> int:
        """Return the last entry that was appended before a moment."""
        return max((seq for seq, entry in self.entries.items() if entry.at < moment), default=0)

    def at(self, stream: Stream, key: Any, seq: int) -> tuple[int, int | None]:
        """Return the last change of a key up to a seq: (seq, version or None)."""
        for change in reversed(self.changes.get(stream, {}).get(key, ())):
            if change[0] <= seq:
                return change
        return 0, None

    def final(self, void: set[int]) -> dict[Any, Any]:
        """Return the state after the whole log, without the entries that are void."""
        fresh = Milvus()
        for seq, entry in sorted(self.entries.items()):
            if seq not in void:
                execute(fresh, entry)
        return fresh.snapshot()


def execute(on: Milvus, entry: Entry) -> bool:
    """Carry an entry out; False if it is refused."""
    mutation = entry.mutation
    method = "Upsert" if mutation.method == "Insert" else mutation.method
    try:
        on.execute(method, mutation.message, mutation.database)
    except Refused:
        return False
    return True
