"""Both ends of the log in etcd, as far as this process knows them.

Decision made here: neither end ever goes back. One that does shows that etcd was restored from an older copy, and then
what this process knows is worth nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from haclient.errors import LogCorrupt
from haclient.replication.etcd.layout import End, Keys
from haclient.replication.etcd.txn import KeyValue, Operation, Transactions, get
from haclient.replication.log import Bounds


@final
class Tail(NamedTuple):
    """The last entry, and the revision at which it became the last; 0 if that is not known."""

    end: End = End()
    revision: int = 0


@final
class Ends:
    """Where the log begins and ends.

    Args:
        log: Runs transactions.
        keys: Where everything is.

    Attributes:
        tail: The last entry.
        removed: The last entry that was removed.
    """

    def __init__(self, log: Transactions, keys: Keys) -> None:
        self.tail = Tail()
        self.removed = End()
        self._log = log
        self._keys = keys

    @property
    def bounds(self) -> Bounds:
        """What the log holds."""
        tail, removed = self.tail.end, self.removed
        return Bounds(removed.seq + 1, tail.seq, tail.total - removed.total)

    @property
    def ranges(self) -> list[Operation]:
        """What to read for `saw`."""
        return [get(self._keys.tail), get(self._keys.removed)]

    async def look(self, *further: Operation) -> tuple[Tail, list[list[KeyValue]]]:
        """Read them, and something else at the same moment.

        Returns:
            The tail at that moment, and what each further range has.
        """
        known = self.tail.end.seq
        answer = await self._log.read(*self.ranges, *further)
        return self.saw(answer.found, known), answer.found[2:]

    def saw(self, found: Sequence[Sequence[KeyValue]], known: int) -> Tail:
        """Take what was read.

        Args:
            found: What `ranges` have, first of all.
            known: Seq of the last entry known when it was asked for: it must still be there.

        Returns:
            The tail read, which need not be the newest one known.

        Raises:
            LogCorrupt: It has gone back.
        """
        if not (found[0] and found[1]):
            raise LogCorrupt(f"the log {self._log.client.name} has lost where it begins and ends")
        (tail,), (removed,) = found[:2]
        end = End.decode(tail.value)
        if end.seq < known:
            raise LogCorrupt(
                f"the log {self._log.client.name} ended at {known} and ends at {end.seq} now: etcd was restored from "
                "an older copy; restart to accept that, and compare the clusters"
            )
        self.removed = max(self.removed, End.decode(removed.value))
        return self.moved(end, tail.revision)

    def moved(self, end: End, revision: int) -> Tail:
        """Take what the tail became at a revision; return it."""
        tail = Tail(end, revision)
        if revision > self.tail.revision:  # else a newer answer came first
            self.tail = tail
        return tail
