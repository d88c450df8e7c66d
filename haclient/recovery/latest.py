"""Which of the rows in a backup are the newest of their key.

Decision made here: what has been written over is not restored at all. So a restore writes each row once and deletes
none, in any order, and can be repeated from any place. The price is one number in memory for each key that the log
has touched since the full backup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from haclient.milvus.messages import Key


@final
class Latest:
    """The newest entry of each key of one collection that the log has touched since its copy.

    A partition is its name; "" where the servers choose it.
    """

    __slots__ = ("_dropped", "_emptied", "_hidden", "_newest", "_partitions")

    def __init__(self) -> None:
        #: Seq of the entry that the row is in; 0 if it has been deleted.
        self._newest: dict[Key, int] = {}
        #: The partition, where it is not the default one.
        self._partitions: dict[Key, str] = {}
        #: Partitions that a key has been deleted from, when it was not known which one it is in.
        self._hidden: dict[Key, set[str]] = {}
        self._dropped: set[str] = set()
        self._emptied = False

    def wrote(self, keys: Iterable[Key], partition: str, seq: int) -> None:
        """Take an entry that wrote rows."""
        for key in keys:
            self._newest[key] = seq
            if partition:
                self._partitions[key] = partition
            else:
                self._partitions.pop(key, None)

    def deleted(self, keys: Iterable[Key], partition: str | None) -> None:
        """Take an entry that deleted rows, in one partition only unless that is None."""
        for key in keys:
            if partition is None:
                self._newest[key] = 0
            elif key not in self._newest:
                self._hidden.setdefault(key, set()).add(partition)
            elif self._partitions.get(key, "") == partition:
                self._newest[key] = 0

    def dropped(self, partition: str) -> None:
        """Take an entry that dropped a partition with its rows."""
        self._dropped.add(partition)
        for key in [key for key, where in self._partitions.items() if where == partition]:
            self._newest[key] = 0

    def emptied(self) -> None:
        """Take an entry that deleted everything."""
        for known in (self._newest, self._partitions, self._hidden, self._dropped):
            known.clear()
        self._emptied = True

    def keeps(self, key: Key, partition: str) -> bool:
        """Say whether a row of the copy is the newest of its key."""
        if self._emptied or partition in self._dropped or key in self._newest:
            return False
        return partition not in self._hidden.get(key, ())

    def is_newest(self, key: Key, seq: int) -> bool:
        """Say whether a row of an entry is the newest of its key."""
        return self._newest.get(key) == seq
