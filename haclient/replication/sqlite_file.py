"""The file of an SQLite log: what it must be before it is used, who may write to it, what its errors mean.

Decision made here: SQLite opens a file only once it is known to be a log of ours, and never makes one. A new log is
made whole under another name and then renamed, so that it is either there or not; no other database is ever touched.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, final
from urllib.parse import quote

from haclient.errors import ConfigError, LogCorrupt, LogError, LogUnavailable

#: "HAcL" in the file's header; beside it the version of the tables.
_APPLICATION: Final = 0x4841634C
_SCHEMA: Final = 1

#: How long a lock of another process is waited for, seconds; twice at most.
_LOCK_S: Final = 5.0
#: Time between two looks at a lock, at first and at most, seconds.
_LOOK_S: Final = (0.0002, 0.002)

#: Where Linux lists what is mounted.
_MOUNTS: Final = Path("/proc/self/mountinfo")
#: File systems whose locks and shared memory do not reach from host to host, as far as they are known by name.
_NETWORK: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)

#: What appends leave free on the disk, bytes: trimming needs some, as do positions and leases.
_SPARE_BYTES: Final = 64 << 20

#: Errors of a commit after which its mark is surely not in the write-ahead log, so that no restart can find it there.
_NOT_COMMITTED: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN}
)

_TABLES: Final = """
PRAGMA auto_vacuum = INCREMENTAL;
BEGIN;
CREATE TABLE state (head INTEGER NOT NULL, size INTEGER NOT NULL, revision INTEGER NOT NULL);
INSERT INTO state VALUES (0, 0, 1);
CREATE TABLE operation (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, method TEXT NOT NULL, stream_database TEXT NOT NULL,
    stream_collection TEXT NOT NULL, database TEXT NOT NULL, size INTEGER NOT NULL, checksum INTEGER NOT NULL,
    message BLOB NOT NULL
);
CREATE TABLE fact (name TEXT PRIMARY KEY, version INTEGER NOT NULL, checksum INTEGER NOT NULL, value BLOB NOT NULL);
CREATE TABLE lease (
    name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, holder TEXT NOT NULL, boot TEXT NOT NULL, until REAL
);
COMMIT;
"""

#: Of each connection. What is deleted is not overwritten with zeros, which would write trimmed entries once more.
_SETTINGS: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA fullfsync = ON;
PRAGMA checkpoint_fullfsync = ON;
PRAGMA secure_delete = OFF;
PRAGMA cell_size_check = ON;
PRAGMA journal_size_limit = 67108864;
"""


@final
class LogFile:
    """One log's file, with -wal and -shm (SQLite's), -turn and -lock (for turns; they stay) beside it.

    Its errors can be made in any thread; the rest is for the one that writes.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._turn: _Turn | None = None
        self._identity = (0, 0)

    def prepare(self) -> None:
        """Make sure that the log is there and can be used; make it if there is none.

        Raises:
            ConfigError: It cannot work here.
            LogUnavailable: It cannot be made now.
        """
        folder = self.path.parent
        if not folder.is_dir():
            raise ConfigError(f'replication.log: the folder "{folder}" does not exist; create it')
        if kind := _network(folder):
            what = f'"{folder}" is on a network file system ({kind}), which does not lock as SQLite needs it'
            raise ConfigError(f"replication.log: {what}; write a path on a local disk, or use etcd")
        for path in (folder, *([self.path] if self.path.exists() else [])):
            if not os.access(path, os.R_OK | os.W_OK):
                raise ConfigError(f'replication.log: "{path}" cannot be written; allow it, or write another path')
        if self.path.exists():
            self._refuse_others()
        try:
            self._turn = _Turn(self.path)
            with self._turn.taken():
                if not self.path.exists():
                    self._create()
            status = self.path.stat()
        except (sqlite3.Error, OSError) as error:
            raise self.explain(error) from None
        self._identity = status.st_dev, status.st_ino

    def connect(self) -> sqlite3.Connection:
        """Open it once more; the connection may move to another thread.

        Raises:
            LogCorrupt: It cannot be read.
            LogUnavailable: It cannot be opened now.
        """
        # psow (the usual): nothing is padded behind a commit's mark, so a full disk always leaves it unfinished.
        uri = f"file:{quote(str(self.path))}?mode=rw&psow=1"
        try:
            connection = sqlite3.connect(uri, uri=True, timeout=_LOCK_S, isolation_level=None, check_same_thread=False)
            try:
                connection.executescript(_SETTINGS)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise self.explain(error) from None
        return connection

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep all other processes from writing; bounded in time.

        Raises:
            LogUnavailable: Another process has not let go.
            LogCorrupt: The file is not the one that was opened.
        """
        assert self._turn is not None
        with self._turn.taken():
            try:
                status = self.path.stat()
                same = self._identity == (status.st_dev, status.st_ino)
            except FileNotFoundError:
                same = False
            if not same:
                raise LogCorrupt(
                    f'the log "{self.path}" was removed or replaced while it was open: nothing more is written; '
                    "put it back, and restart every process that uses it"
                )
            yield

    def check_space(self, size: int) -> None:
        """Raise `LogUnavailable` if so many bytes more would not leave enough on the disk for what makes room again."""
        disk = os.statvfs(self.path.parent)
        left = disk.f_bavail * disk.f_frsize
        if left < size + _SPARE_BYTES:
            what = (
                f"its disk is nearly full: {left >> 20} MiB are left, and appends leave {_SPARE_BYTES >> 20} MiB free"
            )
            raise LogUnavailable(f'the log "{self.path}": {what}; free some space, and they go on', sent=False)

    def close(self, connection: sqlite3.Connection) -> None:
        """Close a connection; the last one copies what is left into the file."""
        assert self._turn is not None
        try:
            with self._turn.taken():
                connection.close()
        except LogUnavailable:  # somebody else has it open, so this is not the last one
            connection.close()

    def release(self) -> None:
        """Let go of what is held beside connections."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def explain(self, error: sqlite3.Error | OSError, *, committing: bool = False) -> LogError:
        """Say what an error of SQLite's or of the system's means.

        Args:
            error: What was raised.
            committing: Whether it was raised by COMMIT.
        """
        if isinstance(error, OSError):
            return LogUnavailable(f'the log "{self.path}": {error.strerror}; look at its disk', sent=committing)
        # Without a code it is Python's: a text that is no UTF-8.
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.damaged(f"{error} ({name})")
        what = {
            sqlite3.SQLITE_FULL: "its disk is full; free some space, and writes go on",
            sqlite3.SQLITE_READONLY: "it cannot be written; look at its permissions and how its disk is mounted",
            sqlite3.SQLITE_CANTOPEN: "it cannot be opened; look at its folder and the number of open files",
            sqlite3.SQLITE_BUSY: f"another program has locked it for {_LOCK_S:g} s; close it",
            sqlite3.SQLITE_IOERR: f"its disk fails ({name}); look at the system's log",
        }.get(code, f"{error} ({name})")
        return LogUnavailable(f'the log "{self.path}": {what}', sent=committing and code not in _NOT_COMMITTED)

    def damaged(self, how: str) -> LogCorrupt:
        """Make the error of a file that does not hold what was written."""
        return LogCorrupt(
            f'the log "{self.path}" is damaged: {how}; nothing more is written to it. Stop all that use it, move it'
            " away with its -wal and -shm, start again with a new one, and copy every cluster anew from the best one"
        )

    def _refuse_others(self) -> None:
        """Raise if what is there is no log of ours; it is only looked at, without a lock or a file beside it."""
        instead = "write another path, or move it away"
        if not self.path.is_file():
            raise ConfigError(f'replication.log: "{self.path}" is no file; {instead}')
        # Through SQLite and not by reading: closing a file drops all locks that this process has on it.
        uri = f"file:{quote(str(self.path))}?mode=ro&immutable=1"
        application, schema = _APPLICATION, _SCHEMA
        try:
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (schema,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
                application = 0
            # Any other error may be that somebody writes just now; if not, it comes again once it is opened.
        if application != _APPLICATION:
            raise ConfigError(f'replication.log: "{self.path}" is not a log of haclient; {instead}')
        if schema != _SCHEMA:
            what = f"has tables of version {schema}, and this haclient knows version {_SCHEMA}"
            raise ConfigError(f'replication.log: "{self.path}" {what}; use the haclient that made it, or another path')

    def _create(self) -> None:
        """Make an empty log."""
        left = self.path.with_name(f"{self.path.name}-wal")
        if left.exists():
            what = f'"{self.path}" is gone but "{left}", which is a part of it, is there'
            raise ConfigError(f"replication.log: {what}; put the log back, or remove that too")
        new = self.path.with_name(f"{self.path.name}-new")
        for suffix in ("", "-journal", "-wal", "-shm"):  # of a process that died here
            new.with_name(f"{new.name}{suffix}").unlink(missing_ok=True)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(new, isolation_level=None)) as connection:
            connection.executescript(_TABLES)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
            connection.execute("PRAGMA journal_mode = WAL")
        new.rename(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@final
class _Turn:
    """Which process may write to a log, or copy its write-ahead log into it: one at a time, each in its turn.

    SQLite has a lock for writing. This one is around it for two reasons. Who waits for SQLite's own sleeps up to 100 ms
    between two looks, so a process that writes all the time shuts the others out for seconds. And in SQLite below
    3.51.3 a checkpoint that begins while a commit elsewhere restarts the write-ahead log may lose what was committed
    (sqlite.org/wal.html, "The WAL-Reset Bug"); commits, with the checkpoints they make, are never at once here.

    There are two locks: who waits for the inner one holds the outer one, and who has just written must pass both again.
    The system drops them when their process dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outer, self._inner = (
            os.open(path.with_name(path.name + suffix), os.O_CREAT | os.O_RDWR, 0o600) for suffix in ("-turn", "-lock")
        )

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold it.

        Raises:
            LogUnavailable: Another process has held it for too long.
        """
        self._take(self._outer)
        try:
            self._take(self._inner)
        finally:
            fcntl.flock(self._outer, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._inner, fcntl.LOCK_UN)

    def _take(self, lock: int) -> None:
        never = threading.Event()
        waited, (pause, longest) = 0.0, _LOOK_S
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waited >= _LOCK_S:
                    what = f"another process has held it for {_LOCK_S:g} s; it may be stopped or its disk may hang"
                    text = f'the log "{self._path}": {what} (`lslocks` shows which one)'
                    raise LogUnavailable(text, sent=False) from None
            never.wait(pause)
            waited, pause = waited + pause, min(pause * 1.2, longest)

    def close(self) -> None:
        os.close(self._outer)
        os.close(self._inner)


def _network(folder: Path) -> str:
    """Name the network file system that a folder is on; "" if it is on none, or that cannot be told."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for mount in mounts:
        where, _, what = mount.partition(" - ")
        if where.split()[2] == wanted and (kind := what.split()[0]) in _NETWORK:
            return kind
    return ""
