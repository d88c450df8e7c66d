"""The embedded log: its file, its groups, its leases, and every way in which a disk lets it down."""

import asyncio
import errno
import os
import random
import sqlite3
import stat
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from haclient.config import Replication
from haclient.errors import ConfigError, LogCorrupt, LogError, LogFull, LogUnavailable
from haclient.replication import sqlite, sqlite_file, sqlite_store
from haclient.replication.log import Bounds
from haclient.replication.sqlite import SqliteLog
from haclient.replication.sqlite_file import LogFile
from tests.unit.replication.log_engines import mutation

MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.db"


@pytest.fixture
async def opened(path):
    """``await opened(**settings)`` opens one more handle; ``boot`` and ``wall_clock`` are the log's own arguments."""
    logs = []

    async def opener(boot="boot", wall_clock=time.time, **settings):
        log = SqliteLog(Replication(log=str(path), **settings), wall_clock, lambda: boot)
        await log.open()
        logs.append(log)
        return log

    yield opener
    for log in logs:
        await log.aclose()


def looked_at(path):
    """Another program's view of the file."""
    return closing(sqlite3.connect(path, isolation_level=None))


async def refused(path):
    """What opening it says; and no thread stays behind."""
    log = SqliteLog(Replication(log=str(path)), time.time, lambda: "boot")
    with pytest.raises(ConfigError) as caught:
        await log.open()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("haclient-log")]
    return str(caught.value)


# --- the file -----------------------------------------------------------------------------------------------


async def test_only_its_owner_may_read_it(opened, path):
    """Rows are in it, so that goes for every file beside it too; nothing else is left when it is closed."""
    log = await opened()
    await log.append([mutation(1)])
    assert {name.name for name in path.parent.iterdir()} == {
        "log.db", "log.db-wal", "log.db-shm", "log.db-lock", "log.db-turn",
    }  # fmt: skip
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}
    await log.aclose()
    assert {name.name for name in path.parent.iterdir()} == {"log.db", "log.db-lock", "log.db-turn"}
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("haclient-log")]


async def test_commits_are_durable(opened):
    """Each waits for the disk, on a connection of which the file keeps its log beside it."""
    log = await opened()
    connection = log._writer.connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def foreign(path):
    with looked_at(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
        connection.execute("PRAGMA journal_mode = WAL")


def newer(path):
    file = LogFile(path)
    file.prepare()
    file.release()
    with looked_at(path) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (foreign, "is not a log of haclient; write another path, or move it away"),
        (lambda path: path.write_bytes(b"some text " * 1000), "is not a log of haclient; write another path"),
        (lambda path: path.write_bytes(b""), "is not a log of haclient; write another path"),
        (lambda path: path.mkdir(), "is no file; write another path"),
        (newer, "has tables of version 99, and this haclient knows version 1; use the haclient that made it"),
        (
            lambda path: path.with_name("log.db-wal").write_bytes(b"x"),
            "which is a part of it, is there; put the log back",
        ),
    ],
    ids=["database", "text", "empty", "folder", "newer", "torn"],
)
async def test_what_is_no_log_is_refused_and_not_touched(path, make, what):
    """A path written wrongly costs nobody their data."""
    make(path)

    def everything():
        return {
            one.name: one.read_bytes() if one.is_file() else None
            for one in path.parent.iterdir()
            if one.name not in ("log.db-lock", "log.db-turn")
        }

    before = everything()
    problem = await refused(path)
    assert problem.startswith("replication.log: ")
    assert str(path) in problem
    assert what in problem
    assert everything() == before


async def test_a_folder_that_is_missing_or_on_another_host(tmp_path, monkeypatch):
    """Said before anything is made."""
    missing = tmp_path / "missing"
    assert await refused(missing / "log.db") == f'replication.log: the folder "{missing}" does not exist; create it'
    device = os.stat(tmp_path).st_dev
    own = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:1 / /proc rw - proc proc rw\n31 1 {own} / /data rw,relatime shared:1 - nfs4 h:/x rw\n")
    monkeypatch.setattr(sqlite_file, "_MOUNTS", mounts)
    assert "is on a network file system (nfs4)" in await refused(tmp_path / "log.db")
    assert not (tmp_path / "log.db").exists()
    mounts.write_text(mounts.read_text().replace("nfs4", "ext4"))
    log = SqliteLog(Replication(log=str(tmp_path / "log.db")), time.time)
    await log.open()
    await log.aclose()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists locks")
async def test_looking_at_the_file_drops_no_lock(opened, path):
    """Whoever closes a file, however it was opened, drops all locks of its process: SQLite's too."""

    def locks():
        inode = f":{path.stat().st_ino} "
        lines = Path("/proc/locks").read_text().splitlines()
        return [line.split(": ")[1] for line in lines if inode in line and " POSIX " in line]

    log = await opened()
    await log.append([mutation(1)])
    before = locks()
    assert before
    await (await opened()).aclose()
    assert locks() == before


async def test_a_process_that_died_while_it_made_the_log(opened, path):
    """What it left is of no use and does no harm."""
    for suffix in ("-new", "-new-journal", "-new-wal", "-new-shm"):
        path.with_name(path.name + suffix).write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" * 100)
    log = await opened()
    assert await log.append([mutation(1)]) == [1]
    assert not list(path.parent.glob("*-new*"))


async def test_many_open_a_new_log_at_once(opened):
    """One makes it, all use it."""
    logs = await asyncio.gather(*(opened() for _ in range(6)))
    seqs = await asyncio.gather(*(log.append([mutation(i)]) for i, log in enumerate(logs)))
    assert sorted(seqs) == [[n] for n in range(1, 7)]


async def test_a_log_that_is_taken_away_while_it_is_open(opened, path):
    """Nothing is written into a file that nobody would find again, or beside one that took its place."""
    log = await opened()
    await log.append([mutation(1)])
    moved = path.with_name("moved.db")
    path.rename(moved)
    with pytest.raises(LogCorrupt, match="was removed or replaced while it was open"):
        await log.append([mutation(2)])
    path.write_bytes(b"")
    with pytest.raises(LogCorrupt, match="was removed or replaced while it was open"):
        await log.put({"x": b"1"})
    path.unlink()
    moved.rename(path)
    assert await log.append([mutation(3)]) == [2]


# --- groups -------------------------------------------------------------------------------------------------


@contextmanager
def commits(log):
    """Count transactions that write."""
    seen = []
    log._writer.connection.set_trace_callback(lambda sql: seen.append(sql) if sql == "COMMIT" else None)
    yield seen
    log._writer.connection.set_trace_callback(None)


async def test_what_waits_is_committed_together(opened):
    """Whatever it is, each with its own result; one that finds no room does not concern the others."""
    log = await opened(max_entries=70)
    with commits(log) as seen:
        results = await asyncio.gather(
            *(log.append([mutation(n)]) for n in range(1, 65)),
            log.put({"x": b"1"}, expect={"x": 7}),
            log.append([mutation(n) for n in range(100, 110)]),
            log.put({"x": b"2"}, expect={"x": 0}),
            log.acquire("lease", "a", 60.0),
            return_exceptions=True,
        )
    assert results[:64] == [[n] for n in range(1, 65)]
    assert results[64] is False
    assert isinstance(results[65], LogFull)
    assert results[66] is True
    assert results[67].epoch == 1
    assert len(seen) == 1
    assert (await log.facts())["x"].value == b"2"


async def test_a_group_is_not_larger_than_it_must(opened, monkeypatch):
    """Nobody waits for many megabytes of others."""
    monkeypatch.setattr(sqlite, "_GROUP_BYTES", 250)
    log = await opened()
    with commits(log) as seen:
        await asyncio.gather(*(log.append([mutation(n, bytes(100))]) for n in range(1, 8)))
    assert len(seen) == 3


async def test_who_no_longer_waits_is_left_out(opened):
    """Before it is its turn; after that it is in the log once."""
    log = await opened()
    first = asyncio.ensure_future(log.append([mutation(1)]))
    for _ in range(3):
        await asyncio.sleep(0)
    second = asyncio.ensure_future(log.append([mutation(2)]))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    assert await log.append([mutation(3)]) == [2]
    assert [entry.mutation for entry in await log.read(0)] == [mutation(1), mutation(3)]


async def test_closing_finishes_what_has_begun(opened, monkeypatch):
    """What has not is refused, and surely not in the log."""
    monkeypatch.setattr(sqlite, "_GROUP_BYTES", 250)
    log = await opened()
    writing = [asyncio.ensure_future(log.append([mutation(n, bytes(100))])) for n in range(1, 10)]
    for _ in range(3):
        await asyncio.sleep(0)
    await log.aclose()
    results = await asyncio.gather(*writing, return_exceptions=True)
    acknowledged = [result for result in results if isinstance(result, list)]
    refusals = [result for result in results if isinstance(result, LogUnavailable)]
    assert acknowledged == [[1], [2], [3]]
    assert len(refusals) == 6
    assert not any(error.sent for error in refusals)
    assert (await (await opened()).bounds()).head == 3


async def test_entries_have_the_wall_time_of_their_writer(opened):
    """Whatever it is set to."""
    times = iter([1000.0, 500.0])
    log = await opened(wall_clock=lambda: next(times))
    await log.append([mutation(1), mutation(2)])
    await log.append([mutation(3)])
    assert [entry.at for entry in await log.read(0)] == [1000.0, 1000.0, 500.0]


# --- reading ------------------------------------------------------------------------------------------------


async def test_a_change_of_this_process_wakes_at_once(opened, monkeypatch):
    """Looking for those of others is for those of others."""
    monkeypatch.setattr(sqlite, "_SOON_S", 3600.0)
    log = await opened()
    seen = await log.changed(0)
    waiting = asyncio.ensure_future(log.changed(seen))
    await log.bounds()  # by now it has looked, and waits
    await log.append([mutation(1)])
    async with asyncio.timeout(30):
        assert await waiting > seen


async def test_reads_do_not_wait_for_commits(opened):
    """However long one takes."""
    log, other = await opened(), await opened()
    await log.append([mutation(1)])
    with other._file.writing():
        appending = asyncio.ensure_future(log.append([mutation(2)]))
        for _ in range(3):  # until its thread has it
            await asyncio.sleep(0)
        assert [entry.seq for entry in await log.read(0)] == [1]
        assert not appending.done()
    assert await appending == [2]


async def test_a_read_sees_one_moment(opened, monkeypatch):
    """A trim in the middle of it leaves no hole."""
    log, other = await opened(), await opened()
    await log.append([mutation(n) for n in range(1, 11)])
    bounds = sqlite_store.Store.bounds

    def then_trimmed(store):
        found = bounds(store)
        if store is log._reader:
            other._transact([lambda store: store.trim(5)])
        return found

    monkeypatch.setattr(sqlite_store.Store, "bounds", then_trimmed)
    assert [entry.seq for entry in await log.read(0)] == list(range(1, 11))
    assert (await other.bounds()).first == 6


# --- trimming -----------------------------------------------------------------------------------------------


async def test_a_trim_lets_writers_in_between(opened):
    """It takes many small steps, and leaves what was appended after it began, however far it was to go."""
    log = await opened()
    await log.append([mutation(n) for n in range(1, 5 * sqlite_store._STEP_ENTRIES)])
    head = (await log.bounds()).head
    trimming = asyncio.ensure_future(log.trim(10**9))
    for _ in range(3):
        await asyncio.sleep(0)
    assert await log.append([mutation(10**6)]) == [head + 1]
    assert not trimming.done()
    await trimming
    assert await log.bounds() == Bounds(head + 1, head + 1, len(b"rows"))


async def test_space_is_used_again_and_given_back(opened, path):
    """A log that is trimmed does not grow; one that was long does not stay so."""
    log = await opened()

    async def write(start, count):
        for n in range(start, start + count):
            await log.append([mutation(n, bytes(MIB))])

    spare = sqlite_store._SPARE_PAGES * 4096
    await write(1, 12)
    for start in range(13, 61, 12):
        await log.trim(start - 1)
        await write(start, 12)
    assert path.stat().st_size < 14 * MIB
    await write(61, 40)
    await log.trim(10**9)
    await log.aclose()
    assert path.stat().st_size <= spare + 5 * MIB


async def test_operations_of_trimmed_entries_are_forgotten_in_the_end(opened, monkeypatch):
    """The last ones are kept, so that the file is bounded."""
    monkeypatch.setattr(sqlite_store, "_REMEMBERED", 10)
    log = await opened()
    await log.append([mutation(n) for n in range(1, 101)])
    await log.trim(90)
    assert await log.append([mutation(81), mutation(95)]) == [81, 95]
    assert await log.append([mutation(80)]) == [101]
    assert log._writer.connection.execute("SELECT count(*) FROM operation").fetchone() == (21,)


# --- leases -------------------------------------------------------------------------------------------------


async def test_a_lease_of_before_a_reboot_is_free(opened):
    """Its holder is dead, and the clock that its end was told by has started again."""
    log = await opened(boot="before")
    held = await log.acquire("x", "a", 3600.0)
    assert await (await opened(boot="before")).acquire("x", "b", 3600.0) is None
    await log.aclose()
    taken = await (await opened(boot="after")).acquire("x", "b", 3600.0)
    assert taken is not None
    assert taken.epoch > held.epoch


async def test_setting_the_wall_clock_moves_no_lease(opened):
    """Leases are counted by the event loop's clock alone."""
    now = [1000.0]
    log = await opened(wall_clock=lambda: now[0])
    lease = await log.acquire("x", "a", 60.0)
    now[0] += 10**6
    assert await log.acquire("x", "b", 60.0) is None
    assert await log.renew(lease, 60.0) is not None


def test_the_boot_is_the_same_in_all_processes():
    """And has a name."""
    assert sqlite.boot_id() == sqlite.boot_id()
    assert len(sqlite.boot_id()) > 8


# --- what goes wrong ----------------------------------------------------------------------------------------


async def test_a_full_disk(opened):
    """The append is refused and surely not there; reading goes on, and so does writing once there is room."""
    log = await opened()
    await log.append([mutation(1)])
    connection = log._writer.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LogUnavailable, match="its disk is full; free some space, and writes go on") as caught:
        await log.append([mutation(2, bytes(MIB))])
    assert not caught.value.sent
    assert [entry.seq for entry in await log.read(0)] == [1]
    connection.execute("PRAGMA max_page_count = 1000000")
    assert await log.append([mutation(2, bytes(MIB)), mutation(1)]) == [2, 1]


async def test_a_disk_that_is_nearly_full(opened, monkeypatch):
    """Appends leave room for what makes room: positions, leases, trims."""
    log = await opened()
    await log.append([mutation(1), mutation(2)])
    monkeypatch.setattr(sqlite_file, "_SPARE_BYTES", 1 << 60)
    refused, done = await asyncio.gather(log.append([mutation(3)]), log.put({"x": b"1"}), return_exceptions=True)
    assert isinstance(refused, LogUnavailable)
    assert not refused.sent
    assert "its disk is nearly full" in str(refused)
    assert done is True
    assert await log.append([mutation(2)]) == [2], "it is there already"
    await log.trim(1)
    assert await log.bounds() == Bounds(2, 2, len(b"rows"))


@pytest.mark.parametrize(
    ("code", "committing", "kind", "sent", "what"),
    [
        (sqlite3.SQLITE_FULL, True, LogUnavailable, False, "its disk is full"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, True, LogUnavailable, False, "cannot be written; look at its permissions"),
        (sqlite3.SQLITE_CANTOPEN, False, LogUnavailable, False, "cannot be opened; look at its folder"),
        (sqlite3.SQLITE_BUSY, False, LogUnavailable, False, "another program has locked it for 5 s; close it"),
        (sqlite3.SQLITE_IOERR_WRITE, False, LogUnavailable, False, "its disk fails (SQLITE_IOERR_WRITE)"),
        (sqlite3.SQLITE_IOERR_FSYNC, True, LogUnavailable, True, "its disk fails (SQLITE_IOERR_FSYNC)"),
        (sqlite3.SQLITE_PROTOCOL, True, LogUnavailable, True, "the text (SQLITE_PROTOCOL)"),
        (sqlite3.SQLITE_CORRUPT_INDEX, True, LogCorrupt, None, "is damaged: the text (SQLITE_CORRUPT_INDEX)"),
        (sqlite3.SQLITE_NOTADB, False, LogCorrupt, None, "copy every cluster anew from the best one"),
        (None, False, LogCorrupt, None, "is damaged: the text"),
    ],
)
def test_every_error_says_where_what_and_what_to_do(path, code, committing, kind, sent, what):
    """And whether the change may be in the log all the same: after a failed fsync nobody knows."""
    error = sqlite3.OperationalError("the text")
    if code is not None:
        names = {getattr(sqlite3, name): name for name in dir(sqlite3) if name.startswith("SQLITE_")}
        error.sqlite_errorcode, error.sqlite_errorname = code, names[code]
    told = LogFile(path).explain(error, committing=committing)
    assert type(told) is kind
    assert getattr(told, "sent", None) is sent
    assert str(told).startswith(f'the log "{path}"')
    assert what in str(told)


class Failing:
    """A connection of which one statement fails, once."""

    def __init__(self, connection, statement):
        self._connection = connection
        self._statement = statement

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, statement, *values):
        if statement.startswith(self._statement):
            self._statement = "never again"
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC"
            raise error
        return self._connection.execute(statement, *values)


@pytest.mark.parametrize(
    ("statement", "sent"), [("BEGIN", False), ("INSERT INTO entry", False), ("UPDATE state", False), ("COMMIT", True)]
)
async def test_whether_a_failed_change_may_have_happened(opened, statement, sent):
    """Only if it failed while it was committed; nothing of it is left over, and repeating it is safe."""
    log = await opened()
    log._writer.connection = Failing(log._writer.connection, statement)
    results = await asyncio.gather(
        log.append([mutation(1)]), log.put({"x": b"1"}), log.append([mutation(2)]), return_exceptions=True
    )
    assert [type(result) for result in results] == [LogUnavailable] * 3
    assert [result.sent for result in results] == [sent] * 3
    assert await log.bounds() == Bounds(1, 0, 0)
    assert await log.facts() == {}
    assert await log.append([mutation(1), mutation(2)]) == [1, 2]


async def test_locked_by_another_program_for_too_long(opened, path, monkeypatch):
    """The append is refused, nothing of it is there, and the next one works."""
    monkeypatch.setattr(sqlite_file, "_LOCK_S", 0.05)
    log = await opened()
    with looked_at(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable, match="another program has locked it") as caught:
            await log.append([mutation(1)])
        assert not caught.value.sent
        assert await log.read(0) == []
    assert await log.append([mutation(1)]) == [1]


async def test_held_by_another_process_for_too_long(opened, monkeypatch):
    """One that is stopped in the middle of a commit; closing does not hang either."""
    monkeypatch.setattr(sqlite_file, "_LOCK_S", 0.05)
    log, other, third = await opened(), await opened(), await opened()
    await log.append([mutation(1)])
    with other._file.writing():
        with pytest.raises(
            LogUnavailable, match=r"another process has held it for 0\.05 s; it may be stopped"
        ) as caught:
            await log.append([mutation(2)])
        assert not caught.value.sent
        assert [entry.seq for entry in await log.read(0)] == [1]
        await third.aclose()
    assert await log.append([mutation(2)]) == [2]


async def test_an_error_that_nobody_expects_reaches_who_asked(opened):
    """And the log goes on."""
    log = await opened()
    with pytest.raises(AttributeError):
        await log.append(["no mutation"])
    assert await log.append([mutation(1)]) == [1]


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The file of a log with some of everything, its entries and its facts."""
    path = tmp_path_factory.mktemp("full") / "log.db"

    async def fill():
        log = SqliteLog(Replication(log=str(path)), time.time, lambda: "boot")
        await log.open()
        await log.append([mutation(n, f"message {n:03} ".encode() * n) for n in range(1, 200)])
        await log.put({f"position/{n}": f"value {n:03}".encode() for n in range(50)})
        await log.acquire("lease", "a", 60.0)
        found = await log.read(0, limit=1000), await log.facts()
        await log.aclose()
        return found

    entries, facts = asyncio.run(fill())
    return path.read_bytes(), entries, facts


@pytest.fixture
def filled(full, path):
    """It is there, to be damaged."""
    path.write_bytes(full[0])


def change(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


async def test_a_changed_byte_in_a_message_is_found_when_it_is_read(opened, path, filled):
    """SQLite itself does not see it; the entries before it can still be read."""
    change(path, b"message 042", b"message 043")
    log = await opened()
    with pytest.raises(LogCorrupt, match="entry 42 has another checksum"):
        await log.read(0, limit=100)
    assert [entry.seq for entry in await log.read(0, limit=41)] == list(range(1, 42))


@pytest.mark.parametrize(
    ("old", "new"), [(b"Upsert", b"Delete"), (b"docs", b"dogs"), ((7).to_bytes(16, "big"), (700).to_bytes(16, "big"))]
)
async def test_a_changed_byte_beside_a_message_is_found_when_it_is_read(opened, path, filled, monkeypatch, old, new):
    """What is done with it matters as much."""
    monkeypatch.setattr(sqlite_store.Store, "check", lambda _: None)
    change(path, old, new)
    log = await opened()
    with pytest.raises(LogCorrupt, match="entry 7 has another checksum"):
        await log.read(6)


async def test_a_changed_byte_in_a_fact_is_found_when_it_is_read(opened, path, filled):
    """A position that is wrong would skip entries."""
    change(path, b"value 007", b"value 070")
    log = await opened()
    with pytest.raises(LogCorrupt, match='the fact "position/7" has another checksum'):
        await log.facts()


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
async def test_a_truncated_file_is_found_when_it_is_opened(opened, path, filled, share):
    """Nothing is written to it."""
    os.truncate(path, int(path.stat().st_size * share) // 4096 * 4096)
    before = path.read_bytes()
    with pytest.raises(LogCorrupt, match="is damaged: "):
        await opened()
    assert path.read_bytes() == before


async def test_nothing_is_written_to_a_log_once_damage_was_seen(opened, path, filled, monkeypatch):
    """Also where it is not damaged."""
    monkeypatch.setattr(sqlite_store.Store, "check", lambda _: None)
    with looked_at(path) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'fact'").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    log = await opened()
    assert await log.append([mutation(1000)]) == [200]
    with pytest.raises(LogCorrupt, match="is damaged: "):
        await log.put({"position/1": b"x"})
    with pytest.raises(LogCorrupt, match="nothing more is written to it"):
        await log.append([mutation(1001)])
    assert (await log.bounds()).head == 200


async def test_checking_a_large_file_is_cut_short(opened, filled, monkeypatch):
    """It opens all the same, in bounded time."""
    stopped = []

    def endless(store):
        try:
            store.connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
            ).fetchone()
        except sqlite3.OperationalError as error:
            stopped.append(error.sqlite_errorname)
            raise

    check = sqlite_store.Store._one
    monkeypatch.setattr(
        sqlite_store.Store,
        "_one",
        lambda store, sql, *values: endless(store) if "quick_check" in sql else check(store, sql, *values),
    )
    monkeypatch.setattr(sqlite, "_CHECK_S", 0.05)
    log = await opened()
    assert stopped == ["SQLITE_INTERRUPT"]
    assert (await log.bounds()).head == 199


@pytest.mark.parametrize("seed", range(12))
async def test_random_damage_is_never_taken_for_data(opened, path, full, seed):
    """Whatever bytes change: what can be read is what was written, or an error says that it is not."""
    _, entries, facts = full
    rng = random.Random(seed)
    data = bytearray(full[0])
    for _ in range(rng.choice([1, 4, 64])):
        at = rng.randrange(len(data))
        size = rng.choice([1, 1, 16, 512])
        data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    path.write_bytes(data)
    try:
        log = await opened()
    except (LogError, ConfigError):
        return
    for entry in entries:
        try:
            (read, *_) = await log.read(entry.seq - 1, limit=1)
        except LogError:
            continue
        assert (read.seq, read.mutation) == (entry.seq, entry.mutation)
    try:
        found = await log.facts()
    except LogError:
        return
    assert {name: fact.value for name, fact in found.items()} == {name: fact.value for name, fact in facts.items()}


async def test_an_operating_system_that_refuses(opened, path, monkeypatch):
    """An error of the system's while the log is made is told like one of SQLite's."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(LogUnavailable, match="No space left on device; look at its disk"):
        await opened()
    monkeypatch.undo()
    assert await (await opened()).append([mutation(1)]) == [1]
