"""What one cluster is to be sent next, and how far it is.

Decision made here: order is kept by the schedule and by nothing else. It is synchronous and free of I/O: entries are
offered in the order of the log, `Schedule.next` hands out what may be begun now (one batch per stream at a time, a
barrier alone), and the outcome is reported back. What a batch may hold beside its first entry is the caller's to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from haclient.replication.log import BARRIER, Entry, Stream
from haclient.replication.position import Parked, Position


@final
@dataclass(slots=True)
class Batch:
    """Consecutive entries of one stream that go out as one request.

    Attributes:
        stream: Theirs.
        entries: At least one, in order.
        again: They may have been begun before: they are applied in the way that does no harm twice.
    """

    stream: Stream
    entries: list[Entry]
    again: bool

    @property
    def last(self) -> int:
        """Seq of the last entry."""
        return self.entries[-1].seq


#: Says whether an entry may be begun at all now.
May = Callable[[Entry], bool]
#: Says whether an entry may join those taken already, all of which may have been begun before if the flag is set.
Joins = Callable[[list[Entry], Entry, bool], bool]


@final
class Schedule:
    """The entries that one cluster has not done yet.

    Args:
        position: The cluster's; changed here only, while its applier is at work.
        fresh_after: Entries up to this seq may have been begun by somebody before.
        may: What may be begun; the stream of an entry that may not waits.

    Attributes:
        tail: Entries up to this seq have been offered.
        size: Bytes of the messages waiting.
        count: Entries waiting.
    """

    def __init__(self, position: Position, fresh_after: int, may: May = lambda entry: True) -> None:
        self.position = position
        self._may = may
        self.tail = position.low
        self.size = 0
        self.count = 0
        self._fresh_after = fresh_after
        self._queues: dict[Stream, deque[Entry]] = {}
        self._busy: dict[Stream, Batch] = {}
        self._barriers: deque[int] = deque()
        #: Streams whose entries up to a seq go out one by one, because together they failed.
        self._singly: dict[Stream, int] = {}
        #: Streams whose entries up to a seq may have been begun, although they came later than `fresh_after`.
        self._doubtful: dict[Stream, int] = {}
        for parked in position.parked.values():
            if not parked.reason:
                self.tail = min(self.tail, parked.seq - 1)

    # What comes in.

    def offer(self, entries: Iterable[Entry]) -> None:
        """Take further entries of the log, in order; those done, waiting or parked already are passed over."""
        for entry in entries:
            if entry.seq <= self.tail:
                continue
            self.tail = entry.seq
            stream = entry.mutation.stream
            if self._is_known(stream, entry.seq):
                continue
            self._queues.setdefault(stream, deque()).append(entry)
            self.size += entry.size
            self.count += 1
            if stream == BARRIER:
                self._barriers.append(entry.seq)
        self._advance()

    def _is_known(self, stream: Stream, seq: int) -> bool:
        parked = self.position.parked.get(stream)
        if parked is not None and parked.reason:
            return True
        if seq <= self.position.applied(stream):
            return True
        busy, queue = self._busy.get(stream), self._queues.get(stream)
        return (busy is not None and seq <= busy.last) or (queue is not None and seq <= queue[-1].seq)

    # What goes out.

    def next(self, joins: Joins, most_bytes: int) -> Batch | None:
        """Take the batch that is to be begun next, None if nothing may be begun now."""
        heads = sorted((queue[0].seq, stream) for stream, queue in self._queues.items() if stream not in self._busy)
        for seq, stream in heads:
            if self._may_begin(stream, seq) and self._may(self._queues[stream][0]):
                batch = self._busy[stream] = self._take(stream, joins, most_bytes)
                return batch
        return None

    def _may_begin(self, stream: Stream, seq: int) -> bool:
        if not self._barriers:
            return True
        if stream != BARRIER:
            return seq < self._barriers[0]
        return all(first > seq for other, first in self._firsts() if other != BARRIER)

    def _take(self, stream: Stream, joins: Joins, most_bytes: int) -> Batch:
        queue = self._queues[stream]
        limit = self._barriers[0] if self._barriers else None
        taken = [queue.popleft()]
        doubtful = max(self._fresh_after, self._doubtful.get(stream, 0))
        again = taken[0].seq <= doubtful
        size = taken[0].size
        alone = stream == BARRIER or taken[0].seq <= self._singly.get(stream, 0)
        while queue and not alone:
            entry = queue[0]
            late = limit is not None and entry.seq > limit
            if late or size + entry.size > most_bytes or (entry.seq <= doubtful) is not again:
                break
            if not self._may(entry) or not joins(taken, entry, again):
                break
            size += entry.size
            taken.append(queue.popleft())
        if not queue:
            del self._queues[stream]
        self.size -= size
        self.count -= len(taken)
        return Batch(stream, taken, again)

    def is_alone(self, batch: Batch) -> bool:
        """Say whether a batch goes out alone because it failed together with others before."""
        return len(batch.entries) == 1 and batch.last <= self._singly.get(batch.stream, 0)

    @property
    def busy(self) -> bool:
        """Whether anything has been handed out and not been reported back."""
        return bool(self._busy)

    # What became of it.

    def done(self, batch: Batch, timestamp: int | None = 0) -> None:
        """Note that a batch has been applied, or is void.

        Args:
            batch: What was handed out.
            timestamp: The cluster's own, from which on it is to be seen; 0 if no read needs one, None if unknown.
        """
        stream, position = batch.stream, self.position
        self._release(batch)
        parked = position.parked.get(stream)
        if parked is not None:
            parked.seq = batch.last + 1
        elif batch.last > position.low:
            position.ahead[stream] = batch.last
        if timestamp != 0:
            # The newest comes last; one that is older than this batch must not be taken for enough.
            position.timestamps.pop(stream, None)
        if timestamp:
            position.timestamps[stream] = timestamp
        self._advance()

    def again(self, batch: Batch, *, doubtful: bool, singly: bool = False) -> None:
        """Put a batch back: it is to be sent once more.

        Args:
            batch: What was handed out.
            doubtful: It may have been carried out.
            singly: Its entries go out one by one.
        """
        stream = batch.stream
        self._release(batch)
        queue = self._queues.setdefault(stream, deque())
        queue.extendleft(reversed(batch.entries))
        self.size += sum(entry.size for entry in batch.entries)
        self.count += len(batch.entries)
        if stream == BARRIER:
            self._barriers.appendleft(batch.last)
        if doubtful:
            self._doubtful[stream] = max(batch.last, self._doubtful.get(stream, 0))
        if singly:
            self._singly[stream] = max(batch.last, self._singly.get(stream, 0))

    def park(self, batch: Batch, reason: str) -> None:
        """Stop a stream at a batch's first entry, until it is resumed."""
        stream = batch.stream
        self._release(batch)
        self.position.parked[stream] = Parked(batch.entries[0].seq, reason)
        self.position.ahead.pop(stream, None)
        for entry in self._queues.pop(stream, ()):
            self.size -= entry.size
            self.count -= 1
        if stream == BARRIER:
            self._barriers.clear()
        self._advance()

    def resume(self, stream: Stream, *, skip: bool = False) -> None:
        """Go on with a parked stream: at the entry where it stopped, or behind it.

        Its entries have to be offered anew: `tail` goes back to where it stopped.
        """
        parked = self.position.parked[stream]
        parked.reason = ""
        if skip:
            parked.seq += 1
        self._doubtful[stream] = max(parked.seq, self._doubtful.get(stream, 0))
        self.tail = min(self.tail, parked.seq - 1)

    # How far it is.

    def _release(self, batch: Batch) -> None:
        del self._busy[batch.stream]
        if batch.stream == BARRIER and self._barriers and self._barriers[0] <= batch.last:
            self._barriers.popleft()

    def _firsts(self) -> Iterable[tuple[Stream, int]]:
        """Yield the first entry not done of each stream that has one."""
        for stream, batch in self._busy.items():
            yield stream, batch.entries[0].seq
        for stream, queue in self._queues.items():
            if stream not in self._busy:
                yield stream, queue[0].seq

    def _advance(self) -> None:
        """Raise ``low`` as far as everything is done, and forget what it says by itself."""
        position = self.position
        firsts = dict(self._firsts())
        low = min((seq for stream, seq in firsts.items() if stream not in position.parked), default=self.tail + 1) - 1
        position.low = max(position.low, min(low, self.tail) if firsts else self.tail)
        for stream, parked in list(position.parked.items()):
            if not parked.reason and stream not in firsts and self.tail >= position.low and parked.seq <= self.tail + 1:
                # It has caught up with the others.
                del position.parked[stream]
                position.ahead[stream] = parked.seq - 1
        position.ahead = {stream: seq for stream, seq in position.ahead.items() if seq > position.low}
