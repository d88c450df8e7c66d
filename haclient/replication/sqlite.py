"""The embedded engine of the mutation log: one SQLite file, shared by the processes of one host.

Decision made here: changes are committed in groups. One thread writes; what is asked for while it commits waits,
whatever it is, and goes into the next transaction together, each with its own result. So a commit costs one fsync,
however many wait for it, and one caller alone waits for nothing but that. Reads have a second connection and thread,
and do not wait for commits.

It survives the death of any process at any moment, and of the machine (WAL mode, ``synchronous=FULL``); not the loss of
its disk. What another process has changed is seen by looking: soon again at first, seldom after a while without news.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, final

from haclient.config.replication import Replication
from haclient.errors import LogCorrupt, LogFull, LogUnavailable
from haclient.replication.alive import boot_id
from haclient.replication.log import Bounds, Entry, Fact, Lease, Mutation, nobody
from haclient.replication.sqlite_file import LogFile
from haclient.replication.sqlite_store import Store

T = TypeVar("T")

#: Bytes of messages after which nothing more goes into a transaction: nobody waits for much more than that.
_GROUP_BYTES: Final = 8 << 20
#: Time that checking the file may take when it is opened, seconds; what it does not reach is found when it is read.
_CHECK_S: Final = 2.0
#: Time between two looks for changes of other processes, seconds: at first, how much longer each time, at most.
_SOON_S: Final = 0.002
_SLOWER: Final = 1.2
_SELDOM_S: Final = 0.05


@final
@dataclass(slots=True)
class _Step:
    """A change that waits to be committed."""

    work: Callable[[Store], Any]
    size: int
    result: asyncio.Future[Any]


@final
class SqliteLog:
    """A log in a file; see `haclient.replication.log.MutationLog`.

    Args:
        settings: ``log`` is its path, on a local disk; ``max_entries`` and ``max_bytes`` bound it.
        wall_clock: Seconds since 1970.
        boot: Names this boot of the machine.
    """

    def __init__(
        self, settings: Replication, wall_clock: Callable[[], float], boot: Callable[[], str] = boot_id
    ) -> None:
        self._settings = settings
        self._file = LogFile(Path(settings.log))
        self._wall_clock = wall_clock
        self._boot = boot
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="haclient-log-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="haclient-log-read")
        self._writer: Store | None = None
        self._reader: Store | None = None
        self._closed = False
        self._waiting: deque[_Step] = deque()
        self._committing: asyncio.Task[None] | None = None
        self._damage: LogCorrupt | None = None
        self._revision = 0
        self._news = asyncio.Event()

    async def open(self) -> None:
        """Make or check the file and open it."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._write_thread, self._open)
            assert self._reader is not None
            # Thread-safe, and without effect unless the check is still running.
            timer = loop.call_later(_CHECK_S, self._reader.connection.interrupt)
            try:
                await self._ask(Store.check)
            finally:
                timer.cancel()
        except BaseException:
            await self.aclose()
            raise

    async def append(self, mutations: Sequence[Mutation]) -> list[int]:
        """Add entries; durable when it returns."""
        at = self._wall_clock()
        return await self._change(lambda store: store.append(mutations, at), sum(len(one.message) for one in mutations))

    async def read(self, after: int, *, limit: int = 256, max_bytes: int = 4 << 20, bodies: bool = True) -> list[Entry]:
        """Return entries above a seq."""
        return await self._ask(lambda store: store.read(after, limit, max_bytes, bodies))

    async def bounds(self) -> Bounds:
        """Return what it holds now."""
        return await self._ask(Store.bounds)

    async def trim(self, through: int) -> None:
        """Remove entries, a few in each transaction, and give space back to the disk if much is free."""
        while through > 0:
            through = await self._change(partial(Store.trim, through=through))

    async def changed(self, revision: int) -> int:
        """Wait for something newer: changes of this process wake at once, those of others are looked for."""
        self._check_open()
        pause = _SOON_S
        while self._revision <= revision:
            self._saw(await self._ask(Store.revision))
            if self._revision <= revision:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._news.wait()
                pause = min(pause * _SLOWER, _SELDOM_S)
        return self._revision

    async def facts(self, prefix: str = "") -> dict[str, Fact]:
        """Return the facts whose names start with a prefix."""
        return await self._ask(lambda store: store.facts(prefix))

    async def put(
        self,
        changes: Mapping[str, bytes | None],
        *,
        expect: Mapping[str, int] | None = None,
        lease: Lease | None = None,
    ) -> bool:
        """Set facts; durable when it returns."""
        return await self._change(lambda store: store.put(changes, expect or {}, lease))

    async def acquire(
        self, name: str, holder: str, ttl_s: float, is_dead: Callable[[str], bool] = nobody
    ) -> Lease | None:
        """Take a lease that is free."""
        now = asyncio.get_running_loop().time()
        return await self._change(lambda store: store.acquire(name, holder, ttl_s, now, is_dead))

    async def renew(self, lease: Lease, ttl_s: float) -> Lease | None:
        """Prolong a lease that is still held."""
        now = asyncio.get_running_loop().time()
        return await self._change(lambda store: store.renew(lease, ttl_s, now))

    async def release(self, lease: Lease) -> None:
        """Give a lease back."""
        await self._change(lambda store: store.release(lease))

    async def aclose(self) -> None:
        """Close the file; what has not begun is refused, what has begun is finished."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        done = self._write_thread.submit(self._close)  # after the transaction under way; runs also if this is cancelled
        self._write_thread.shutdown(wait=False)
        await asyncio.wrap_future(done)
        self._write_thread.shutdown()
        if self._committing is not None:
            await asyncio.wait([self._committing])

    # Changes.

    async def _change(self, work: Callable[[Store], T], size: int = 0) -> T:
        """Have something done in the next transaction."""
        loop = asyncio.get_running_loop()
        step = _Step(work, size, loop.create_future())
        self._waiting.append(step)
        if self._committing is None:
            self._committing = loop.create_task(self._commit())
        result: T = await step.result
        return result

    async def _commit(self) -> None:
        """Carry out what waits, group by group."""
        loop = asyncio.get_running_loop()
        try:
            while group := self._next_group():
                results: Sequence[object]
                try:
                    self._check_open()
                    work = [step.work for step in group]
                    results, revision = await loop.run_in_executor(self._write_thread, self._transact, work)
                    self._saw(revision)
                except Exception as error:
                    results = [error] * len(group)
                for step, result in zip(group, results, strict=True):
                    if step.result.done():
                        continue
                    if isinstance(result, Exception):
                        step.result.set_exception(result)
                    else:
                        step.result.set_result(result)
        finally:
            self._committing = None

    def _next_group(self) -> list[_Step]:
        group: list[_Step] = []
        size = 0
        while self._waiting and size < _GROUP_BYTES:
            step = self._waiting.popleft()
            if not step.result.done():  # its caller still waits
                group.append(step)
                size += step.size
        return group

    def _saw(self, revision: int) -> None:
        if revision > self._revision:
            self._revision = revision
            self._news.set()
            self._news.clear()

    # In the threads.

    def _open(self) -> None:
        self._file.prepare()
        limits = {"max_entries": self._settings.max_entries, "max_bytes": self._settings.max_bytes}
        boot = self._boot()
        self._writer = Store(self._file.connect(), self._file, boot=boot, **limits)
        self._reader = Store(self._file.connect(), self._file, boot=boot, **limits)

    def _transact(self, steps: Sequence[Callable[[Store], object]]) -> tuple[list[object], int]:
        """Carry out steps in one transaction; return their results and the newest revision."""
        assert self._writer is not None
        if self._damage is not None:
            raise self._damage
        committing = False
        try:
            with self._file.writing(), _transaction(self._writer.connection, "IMMEDIATE") as connection:
                results = [_attempt(step, self._writer) for step in steps]
                revision = self._writer.revision()
                committing = True
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            told = self._file.explain(error, committing=committing)
            if isinstance(told, LogCorrupt):
                self._damage = told
            raise told from None
        return results, revision

    async def _ask(self, look: Callable[[Store], T]) -> T:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._read_thread, self._look, look)

    def _look(self, look: Callable[[Store], T]) -> T:
        """Read in one snapshot."""
        assert self._reader is not None
        try:
            with _transaction(self._reader.connection, "DEFERRED"):
                return look(self._reader)
        except sqlite3.Error as error:
            raise self._file.explain(error) from None

    def _close(self) -> None:
        self._read_thread.shutdown(wait=True)
        for store in (self._reader, self._writer):
            if store is not None:
                self._file.close(store.connection)
        self._file.release()

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable(f'the log "{self._file.path}" has been closed', sent=False)


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str) -> Iterator[sqlite3.Connection]:
    """Begin a transaction; whatever is not committed at the end is undone."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
    finally:
        if connection.in_transaction:  # not, if SQLite has undone it itself
            connection.execute("ROLLBACK")


def _attempt(step: Callable[[Store], object], store: Store) -> object:
    """A step that finds no room has changed nothing and does not concern the others."""
    try:
        return step(store)
    except (LogFull, LogUnavailable) as error:
        return error
