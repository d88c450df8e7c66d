"""What an SQLite log holds, and each step that reads or changes it.

Decision made here: every step runs inside a transaction that somebody else begins and ends, and either does all that it
says or nothing. So any number of them, of any callers, can share one commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from itertools import takewhile
from typing import Any, Final, final
from zlib import crc32

from haclient.errors import LogFull, LogTrimmed
from haclient.replication.log import Bounds, Entry, Fact, Lease, Mutation
from haclient.replication.sqlite_file import LogFile

#: Most entries, and bytes of messages, that one step of a trim removes: a writer waits for one step at most.
_STEP_ENTRIES: Final = 256
_STEP_BYTES: Final = 2 << 20
#: Operation ids that are remembered of trimmed entries.
_REMEMBERED: Final = 100_000
#: Free pages (4 KiB) that stay in the file for what comes, and those given back to the disk in one step.
_SPARE_PAGES: Final = 4_096
_STEP_PAGES: Final = 512

_SELECT: Final = """
SELECT entry.seq, at, operation.id, method, stream_database, stream_collection, database, size, checksum, {message}
FROM entry JOIN operation USING (seq) WHERE entry.seq > ? ORDER BY entry.seq LIMIT ?
"""


@final
class Store:
    """The tables, through one connection.

    Args:
        connection: Used by nobody else meanwhile.
        file: Whose it is; makes the errors.
        max_entries: Most entries.
        max_bytes: Most bytes of messages.
        boot: What names this boot of the machine.
    """

    def __init__(
        self, connection: sqlite3.Connection, file: LogFile, *, max_entries: int, max_bytes: int, boot: str
    ) -> None:
        self.connection = connection
        self._file = file
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._boot = boot

    # Entries.

    def bounds(self) -> Bounds:
        """Return what is there."""
        first, head, size = self._one("SELECT (SELECT min(seq) FROM entry), head, size FROM state")
        return Bounds(first or head + 1, head, size)

    def append(self, mutations: Sequence[Mutation], at: float) -> list[int]:
        """Add those whose operation is not known yet; return the seq of each.

        Raises:
            LogFull: There is no room; nothing was added.
            LogUnavailable: There is too little room on its disk; nothing was added.
        """
        seqs: dict[bytes, int] = {}
        for one in mutations:
            if known := self._one("SELECT seq FROM operation WHERE id = ?", one.operation):
                seqs[one.operation] = known[0]
        new = {one.operation: one for one in mutations if one.operation not in seqs}
        if new:
            size = sum(len(one.message) for one in new.values())
            bounds = self.bounds()
            self._check_room(bounds, len(new), size)
            self._file.check_space(size)
            for seq, one in enumerate(new.values(), bounds.head + 1):
                self._insert(seq, at, one)
                seqs[one.operation] = seq
            self._do("UPDATE state SET head = head + ?, size = size + ?, revision = revision + 1", len(new), size)
        return [seqs[one.operation] for one in mutations]

    def read(self, after: int, limit: int, max_bytes: int, bodies: bool) -> list[Entry]:
        """Return entries above a seq.

        Raises:
            LogTrimmed: The next one has been removed.
            LogCorrupt: One of them is not what was written.
        """
        bounds = self.bounds()
        if after + 1 < bounds.first:
            what = f"entries up to {bounds.first - 1} have been removed, and {after + 1} was asked for"
            raise LogTrimmed(f'the log "{self._file.path}": {what}')
        found: list[Entry] = []
        size = 0
        with closing(self._do(_SELECT.format(message="message" if bodies else "x''"), after, limit)) as rows:
            for seq, at, operation, method, database, collection, sent_to, length, checksum, message in rows:
                mutation = Mutation(operation, method, (database, collection), message, sent_to)
                if bodies and checksum != _checksum(seq, mutation):
                    raise self._file.damaged(f"entry {seq} has another checksum")
                found.append(Entry(seq, at, mutation, length))
                size += len(message)
                if size >= max_bytes:
                    break
        if [entry.seq for entry in found] != list(range(after + 1, after + 1 + len(found))) or (
            not found and after < bounds.head
        ):
            raise self._file.damaged(f"entries are missing after {after}")
        return found

    def trim(self, through: int) -> int:
        """Remove the oldest entries up to a seq, some at a time.

        Returns:
            The seq up to which there are more to be removed, 0 if there are none; what is appended later stays.
        """
        through = min(through, self.bounds().head)
        last = removed = 0
        with closing(
            self._do("SELECT seq, size FROM entry WHERE seq <= ? ORDER BY seq LIMIT ?", through, _STEP_ENTRIES)
        ) as rows:
            for seq, size in rows:
                last, removed = seq, removed + size
                if removed >= _STEP_BYTES:
                    break
        if last:
            self._do("DELETE FROM entry WHERE seq <= ?", last)
            self._do("DELETE FROM operation WHERE seq <= ?", last - _REMEMBERED)
            self._do("UPDATE state SET size = size - ?", removed)
        (free,) = self._one("PRAGMA freelist_count")
        for _ in range(min(free - _SPARE_PAGES, _STEP_PAGES)):
            self._do("PRAGMA incremental_vacuum(1)")  # of a larger number, Python would take one step all the same
        return through if 0 < last < through else 0

    def _check_room(self, bounds: Bounds, count: int, size: int) -> None:
        entries = bounds.head - bounds.first + 1
        if entries + count > self._max_entries:
            what = f"{entries} entries of at most max_entries = {self._max_entries}"
        elif bounds.size + size > self._max_bytes:
            what = f"{bounds.size} bytes of at most max_bytes = {self._max_bytes}, and {size} were to be added"
        else:
            return
        raise LogFull(f'the log "{self._file.path}" is full: {what}; a cluster is far behind, or the bound is too low')

    def _insert(self, seq: int, at: float, one: Mutation) -> None:
        self._do("INSERT INTO operation VALUES (?, ?)", seq, one.operation)
        self._do(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(seq, at, one.method, *one.stream, one.database, len(one.message), _checksum(seq, one), one.message),
        )

    # Facts.

    def revision(self) -> int:
        """Return a number that grows with each change that somebody may wait for."""
        (revision,) = self._one("SELECT revision FROM state")
        return int(revision)

    def facts(self, prefix: str) -> dict[str, Fact]:
        """Return the facts whose names start with a prefix.

        Raises:
            LogCorrupt: One of them is not what was written.
        """
        found: dict[str, Fact] = {}
        query = "SELECT name, version, checksum, value FROM fact WHERE name >= ? ORDER BY name"
        with closing(self._do(query, prefix)) as rows:
            for name, version, checksum, value in takewhile(lambda row: row[0].startswith(prefix), rows):
                if checksum != crc32(value):
                    raise self._file.damaged(f'the fact "{name}" has another checksum')
                found[name] = Fact(value, version)
        return found

    def put(self, changes: Mapping[str, bytes | None], expect: Mapping[str, int], lease: Lease | None) -> bool:
        """Set facts if expectations and lease hold; return whether they did."""
        if lease is not None and not self._held(lease):
            return False
        for name, wanted in expect.items():
            (version,) = self._one("SELECT version FROM fact WHERE name = ?", name) or (0,)
            if version != wanted:
                return False
        # A revision is given once, so a fact's version does not start again when it is removed.
        revision = self._advance()
        for name, value in changes.items():
            if value is None:
                self._do("DELETE FROM fact WHERE name = ?", name)
            else:
                self._do("INSERT OR REPLACE INTO fact VALUES (?, ?, ?, ?)", name, revision, crc32(value), value)
        return True

    def _advance(self) -> int:
        self._do("UPDATE state SET revision = revision + 1")
        return self.revision()

    # Leases.
    #
    # Their times are those of the event loop, which is the system's monotonic clock: the same for all processes of this
    # host, and no step of the wall clock moves it. It is read before a step is queued. So a holder stops acting at the
    # very moment from which others may take the lease, and who comes to take it sees a time that is early, not late.
    # After a reboot that clock starts again and a time stored before means nothing; but all holders of then are
    # dead. So a lease of another boot is free, however far away its end seems. A machine that sleeps stops the clock
    # and its processes alike. Should all this fail, the epoch still fences off what an old holder writes.

    def acquire(self, name: str, holder: str, ttl_s: float, now: float, is_dead: Callable[[str], bool]) -> Lease | None:
        """Take a lease that is free."""
        query = "SELECT epoch, holder, boot, until FROM lease WHERE name = ?"
        epoch, before, boot, until = self._one(query, name) or (0, "", "", None)
        orphaned = until is not None and is_dead(before)
        if until is not None and boot == self._boot and now < until and not orphaned:
            return None
        values = (name, epoch + 1, holder, self._boot, now + ttl_s)
        self._do("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)", *values)
        self._advance()
        return Lease(name, epoch + 1, now + ttl_s, orphaned)

    def renew(self, lease: Lease, ttl_s: float, now: float) -> Lease | None:
        """Prolong a lease that nobody has taken or given back since."""
        if not self._held(lease):
            return None
        self._do("UPDATE lease SET until = ? WHERE name = ?", now + ttl_s, lease.name)
        return Lease(lease.name, lease.epoch, now + ttl_s)

    def release(self, lease: Lease) -> None:
        """Give a lease back; its epoch stays, so that the next one is higher."""
        if self._held(lease):
            self._do("UPDATE lease SET until = NULL WHERE name = ?", lease.name)
            self._advance()

    def _held(self, lease: Lease) -> bool:
        query = "SELECT 1 FROM lease WHERE name = ? AND epoch = ? AND until IS NOT NULL"
        return bool(self._one(query, lease.name, lease.epoch))

    # The whole.

    def check(self) -> None:
        """Look at the shape of the whole file, until somebody interrupts the connection.

        Raises:
            LogCorrupt: Something is wrong with it.
        """
        try:
            (found,) = self._one("PRAGMA quick_check(1)")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
        else:
            if found != "ok":
                raise self._file.damaged(found)

    def _do(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self.connection.execute(statement, values)

    def _one(self, statement: str, *values: object) -> tuple[Any, ...]:
        """Return the only row, () if there is none."""
        with closing(self._do(statement, *values)) as cursor:
            return cursor.fetchone() or ()


def _checksum(seq: int, one: Mutation) -> int:
    """SQLite checks the shape of its pages, not what is in them."""
    head = "\0".join((str(seq), one.method, *one.stream, one.database)).encode()
    return crc32(one.message, crc32(one.operation, crc32(head)))
