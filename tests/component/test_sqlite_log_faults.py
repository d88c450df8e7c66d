"""The embedded log between real processes, and on real disks that fill up and fail."""

import asyncio
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from haclient.config import Replication
from haclient.errors import ConfigError, LogUnavailable
from haclient.replication import sqlite_file, sqlite_store
from haclient.replication.log import Mutation
from haclient.replication.sqlite import SqliteLog

WRITER = Path(__file__).with_name("sqlite_writer.py")
MIB = 1 << 20
#: How often a process is killed.
KILLS = 10


@asynccontextmanager
async def writer(path, lanes, *operations):
    """A process that appends; it is gone at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, WRITER, path, str(lanes), *map(str, operations), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        process._transport.close()
        await process.wait()


async def said(process):
    """The next line of a writer, in words; [] at its end. A line that was cut off by its death says nothing."""
    line = await process.stdout.readline()
    return line.split() if line.endswith(b"\n") else []


async def acknowledged(process):
    """All that a writer says until its end: seq by operation."""
    found = {}
    while words := await said(process):
        assert words[0] != b"!", words
        found[int(words[0])] = int(words[1])
    return found


@asynccontextmanager
async def opened(path):
    log = SqliteLog(Replication(log=str(path)), time.time)
    await log.open()
    try:
        yield log
    finally:
        await log.aclose()


async def operations(log):
    """Operation by seq, of all entries."""
    found = {}
    while entries := await log.read(len(found), limit=5000, max_bytes=64 * MIB):
        for entry in entries:
            assert entry.seq == len(found) + 1
            found[entry.seq] = int.from_bytes(entry.mutation.operation, "big")
    return found


def check(path, there, acknowledged):
    """Every acknowledged operation is in the log, where it was said to be; none is there twice."""
    assert len(set(there.values())) == len(there)
    assert acknowledged == {operation: seq for seq, operation in there.items() if operation in acknowledged}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def entry(number, size=1024):
    return Mutation(number.to_bytes(16, "big"), "Upsert", ("", "docs"), bytes(size))


async def test_four_processes_append_at_once(tmp_path):
    """Their entries have numbers without gaps; what several of them append is there once, and all are told where."""
    path = tmp_path / "log.db"
    shared = list(range(100))
    async with AsyncExitStack() as stack:
        processes = []
        for i in range(4):
            numbers = shared + list(range(1000 * (i + 1), 1000 * (i + 1) + 150))
            random.Random(i).shuffle(numbers)
            processes.append(await stack.enter_async_context(writer(path, 4, *numbers)))
        found = await asyncio.gather(*map(acknowledged, processes))
        assert [await process.wait() for process in processes] == [0] * 4
    async with opened(path) as log:
        there = await operations(log)
    assert len(there) == 100 + 4 * 150
    for one in found:
        assert len(one) == 250
        check(path, there, one)


async def test_a_change_in_one_process_wakes_another(tmp_path):
    """It need not ask."""
    path = tmp_path / "log.db"
    async with opened(path) as log:
        seen = await log.changed(0)
        waiting = asyncio.ensure_future(log.changed(seen))
        async with writer(path, 1, 7) as process:
            assert await acknowledged(process) == {7: 1}
            async with asyncio.timeout(30):
                assert await waiting > seen
        assert list((await operations(log)).values()) == [7]


@pytest.mark.slow
async def test_kill_in_the_middle_of_appends(tmp_path):
    """One of two processes, again and again: what was acknowledged is there, none twice, and the other one goes on."""
    path = tmp_path / "log.db"
    rng = random.Random(5)
    known = {}

    async def take(process, count):
        for _ in range(count):
            number, seq = await said(process)
            known[int(number)] = int(seq)

    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(writer(path, 4, "0.."))
        for attempt in range(1, KILLS + 1):
            one, other = other, await stack.enter_async_context(writer(path, 4, f"{attempt * 10**6}.."))
            await take(other, 1)  # it has started
            await take(one, rng.randrange(1, 60))
            if attempt % 3 == 0:  # one that hangs, perhaps with the lock, keeps nobody out once it is dead
                one.send_signal(signal.SIGSTOP)
            one.kill()
            known |= await acknowledged(one)
            await take(other, 10)
        other.kill()
        known |= await acknowledged(other)
    async with opened(path) as log:
        check(path, await operations(log), known)
    assert len(known) > 10 * KILLS


async def test_writes_fail_and_work_again(tmp_path):
    """A process whose file may not grow says so, loses nothing, and goes on without being started again."""
    path = tmp_path / "log.db"
    known, failures = {}, []
    async with writer(path, 4, "1..") as process:
        for _ in range(3):
            for _ in range(20):
                words = await said(process)
                if words[0] != b"!":
                    known[int(words[0])] = int(words[1])
            size = max(one.stat().st_size for one in tmp_path.iterdir())
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            while (words := await said(process))[0] != b"!":
                known[int(words[0])] = int(words[1])
            failures.append(words[1])
            async with opened(path) as log:
                check(path, await operations(log), known)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        while (words := await said(process))[0] == b"!":
            failures.append(words[1])
        known[int(words[0])] = int(words[1])
        process.kill()
        while words := await said(process):
            if words[0] != b"!":
                known[int(words[0])] = int(words[1])
    assert set(failures) == {b"LogUnavailable"}
    async with opened(path) as log:
        check(path, await operations(log), known)


@contextmanager
def small_disk(folder, size):
    """A file system of a few megabytes."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"needs root to mount a small disk: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def nothing_spared(monkeypatch):
    """Appends may fill the disk."""
    monkeypatch.setattr(sqlite_file, "_SPARE_BYTES", 0)


async def filled(log, numbers):
    """Append until it is refused; returns what was acknowledged, and why it ended."""
    known = {}
    for number in numbers:
        try:
            (known[number],) = await log.append([entry(number, 20_000)])
        except LogUnavailable as error:
            if error.sent:
                raise
            return known, str(error)
    raise AssertionError("the disk is too large")


async def put_often(log):
    while True:
        await log.put({"x": bytes(100_000)})


async def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    """Appends stop while there is still room for what frees some; then they go on."""
    monkeypatch.setattr(sqlite_file, "_SPARE_BYTES", 4 * MIB)
    monkeypatch.setattr(sqlite_store, "_SPARE_PAGES", 64)
    with small_disk(tmp_path / "disk", 16 * MIB) as disk:
        async with opened(disk / "log.db") as log:
            known, why = await filled(log, range(1, 10_000))
            assert "its disk is nearly full: 3 MiB are left, and appends leave 4 MiB free; free some space" in why
            assert await log.put({"x": b"1"})
            await log.trim(len(known) - 10)
            assert (await log.bounds()).first == len(known) - 9
            more, _ = await filled(log, range(10_001, 20_000))
            assert len(more) > 100
        check(disk / "log.db", {seq: number for number, seq in known.items()} | {s: n for n, s in more.items()}, more)


async def test_a_disk_that_others_fill(tmp_path, nothing_spared):
    """Writes are refused, and surely not in the log; reading goes on, and so does the rest once there is room."""
    with small_disk(tmp_path / "disk", 12 * MIB) as disk:
        path, ballast = disk / "log.db", disk / "ballast"
        ballast.write_bytes(bytes(4 * MIB))
        async with opened(path) as log:
            known, why = await filled(log, range(1, 10_000))
            assert "free some space" in why
            assert len(known) > 100
            check(path, await operations(log), known)
            with pytest.raises(LogUnavailable, match="its disk is full; free some space, and writes go on") as caught:
                await put_often(log)
            assert not caught.value.sent
            ballast.unlink()
            assert await log.put({"x": b"1"})
            more, _ = await filled(log, range(10_001, 20_000))
            check(path, await operations(log), known | more)
        async with opened(path) as log:
            check(path, await operations(log), known | more)


async def test_no_room_for_a_new_log(tmp_path, nothing_spared):
    """It is not half made: with room it works."""
    with small_disk(tmp_path / "disk", MIB) as disk:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(LogUnavailable, match=r"its disk is full|No space left"):
            async with opened(disk / "log.db"):
                pass
        ballast.unlink()
        async with opened(disk / "log.db") as log:
            assert await log.append([entry(1)]) == [1]


async def test_a_disk_that_is_mounted_read_only(tmp_path, nothing_spared):
    """Said at once when the log is opened; nothing is wrong with it afterwards."""
    with small_disk(tmp_path / "disk", 4 * MIB) as disk:
        path = disk / "log.db"
        async with opened(path) as log:
            await log.append([entry(1)])
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for wanted in (path, disk / "other.db"):
            with pytest.raises(ConfigError, match="cannot be written; allow it, or write another path"):
                async with opened(wanted):
                    pass
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        async with opened(path) as log:
            assert await log.append([entry(2), entry(1)]) == [2, 1]


async def test_a_log_that_loses_its_end_while_it_is_used(tmp_path):
    """Damage that comes later is told, to readers and writers, and is not made worse."""
    path = tmp_path / "log.db"
    async with opened(path) as log:
        await log.append([entry(number, 10_000) for number in range(1, 500)])
    async with opened(path) as log:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        size = path.stat().st_size
        failures = []
        for work in (
            lambda: operations(log),
            lambda: log.append([entry(1000 + number, 10_000) for number in range(100)]),
            lambda: log.append([entry(2000)]),
        ):
            try:
                await work()
            except Exception as error:
                failures.append((type(error).__name__, str(error)))
        assert failures
        assert {name for name, _ in failures} == {"LogCorrupt"}, failures
        assert path.stat().st_size == size
