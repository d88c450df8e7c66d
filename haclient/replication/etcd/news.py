"""Waiting for something new in the log in etcd.

Decision made here: a watch only wakes, and nothing depends on it. It may be late, silent (a frozen member), cancelled
(by compaction) or lost; whoever waits also asks for etcd's revision every second, takes a greater one for news, and has
the watch begun anew, since it should have told.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, final

import anyio

from haclient.errors import LogUnavailable
from haclient.replication.etcd.txn import Transactions, end_of, text

_POLL_S: Final = 1.0


@final
class News:
    """The newest revision at which something changed.

    Args:
        log: Runs transactions.
        prefix: Of the keys whose changes are news.
    """

    def __init__(self, log: Transactions, prefix: bytes) -> None:
        self._log = log
        self._prefix = prefix
        self._newest = 0
        self._watch: asyncio.Task[None] | None = None
        self._listening: anyio.CancelScope | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    async def after(self, revision: int) -> int:
        """Wait for something newer than a revision; return the newest one."""
        while self._newest <= revision and not self._closed:
            if not self._newest or not await self._woken():
                await self._poll()
        if self._closed:
            raise LogUnavailable(f"the log {self._log.client.name} was closed", sent=False)
        return self._newest

    async def aclose(self) -> None:
        """End the watch, and wake everybody."""
        self._closed = True
        self._wake()
        self._listen_anew()
        if self._watch is not None:
            await self._watch

    async def _poll(self) -> None:
        revision = (await self._log.read()).revision
        if revision > self._newest:
            self._heard(revision)
            self._listen_anew()

    async def _woken(self) -> bool:
        """Wait for the watch, though not long; say whether it has told of something."""
        loop = asyncio.get_running_loop()
        if self._watch is None:
            self._watch = loop.create_task(self._run())
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(_POLL_S):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True

    async def _run(self) -> None:
        while not self._closed:
            request = {"key": text(self._prefix), "range_end": text(end_of(self._prefix))}
            create = {"create_request": {**request, "start_revision": str(self._newest + 1)}}
            with anyio.CancelScope() as self._listening:
                await self._log.client.stream("/v3/watch", create, self._told)
                await asyncio.sleep(_POLL_S)

    def _listen_anew(self) -> None:
        if self._listening is not None:
            self._listening.cancel()

    def _told(self, message: dict[str, Any]) -> None:
        if "events" in (result := message.get("result", {})):
            self._heard(int(result["header"]["revision"]))

    def _heard(self, revision: int) -> None:
        self._newest = max(self._newest, revision)
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
