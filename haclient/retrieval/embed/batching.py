"""Many callers, one model: texts that come while a batch is computed go into the next one.

Decision made here: the queue is a synchronous state machine (`BatchQueue`), and the `Worker` around it has one thread:
a model uses all cores by itself, and tokenizers must not be shared. Nobody waits for company: a batch is whoever waits
when the thread is free, so a lone text is computed at once and a crowd shares one forward pass. A call of many texts
has one batch in the queue at a time, so that it holds nobody up for longer than that.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, final

import numpy as np

from haclient.errors import ConfigError, Overloaded
from haclient.retrieval.embed.embedder import Vectors

T = TypeVar("T")

#: Computes the rows of a batch of texts; the second argument says that they are queries.
Encode = Callable[[list[str], bool], Vectors]


@final
class Ticket:
    """Texts of one caller; they stay together.

    Attributes:
        texts: One batch of them at most.
        queries: They are questions, which are never in one batch with passages.
        rows: Gets their vectors.
    """

    __slots__ = ("queries", "rows", "texts")

    def __init__(self, texts: Sequence[str], queries: bool) -> None:
        self.texts = texts
        self.queries = queries
        self.rows: Future[Vectors] = Future()


@final
class BatchQueue:
    """What waits, in the order in which it came.

    Args:
        batch_size: Texts in a batch, at most.
        max_queue: Texts that may wait.

    Raises:
        ConfigError: No batch would ever fit.
    """

    def __init__(self, batch_size: int, max_queue: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}; write for example batch_size=64")
        if max_queue < batch_size:
            raise ConfigError(f"max_queue ({max_queue}) must hold a batch; write at least {batch_size}")
        self.batch_size = batch_size
        self.waiting = 0
        self._max_queue = max_queue
        self._tickets: list[Ticket] = []

    def add(self, texts: Sequence[str], queries: bool) -> Ticket:
        """Let the texts of one caller, one batch at most, wait.

        Raises:
            Overloaded: Too many wait already.
        """
        if self.waiting + len(texts) > self._max_queue:
            raise Overloaded(
                f"{self.waiting} texts wait for the model already, and {self._max_queue} may: ask again later, embed "
                "fewer texts at once, or allow a longer queue (max_queue)"
            )
        ticket = Ticket(texts, queries)
        self._tickets.append(ticket)
        self.waiting += len(texts)
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Forget texts that nobody waits for any more, if they wait still."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            self.waiting -= len(ticket.texts)

    def take(self) -> list[Ticket]:
        """Return the next batch: whoever waits longest, and those of the same kind that fit in with it."""
        batch: list[Ticket] = []
        left: list[Ticket] = []
        room = self.batch_size
        for ticket in self._tickets:
            fits = len(ticket.texts) <= room and ticket.queries is self._tickets[0].queries
            (batch if fits else left).append(ticket)
            room -= len(ticket.texts) if fits else 0
        self._tickets = left
        self.waiting -= self.batch_size - room
        return batch


@final
class Worker:
    """One thread, and the queue it works off.

    Args:
        encode: Computes a batch, in the thread.
        batch_size: See `BatchQueue`.
        max_queue: See `BatchQueue`.
    """

    def __init__(self, encode: Encode, *, batch_size: int, max_queue: int) -> None:
        self._encode = encode
        self._queue = BatchQueue(batch_size, max_queue)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="haclient-embed")
        self._process = 0
        self._busy = False
        self._closed = False

    async def embed(self, texts: list[str], queries: bool) -> Vectors:
        """Return one row per text, of which there is at least one.

        Raises:
            Overloaded: Too many texts wait already.
        """
        count, size = len(texts), self._queue.batch_size
        # Texts of like length go together: every text of a batch takes as long as the longest.
        order = sorted(range(count), key=lambda i: len(texts[i]))
        parts = [[texts[i] for i in order[start : start + size]] for start in range(0, count, size)]
        computed = np.concatenate([await self._rows(part, queries) for part in parts])
        rows = np.empty_like(computed)
        rows[order] = computed
        return rows

    async def _rows(self, texts: Sequence[str], queries: bool) -> Vectors:
        with self._lock:
            self._check()
            ticket = self._queue.add(texts, queries)
            if not self._busy:
                self._busy = True
                self._thread.submit(self._work_off)
        try:
            return await asyncio.wrap_future(ticket.rows)
        except asyncio.CancelledError:
            with self._lock:
                self._queue.drop(ticket)
            raise

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run something in the thread that computes the batches."""
        with self._lock:
            self._check()
            return self._thread.submit(work)

    def _check(self) -> None:
        if self._closed:
            raise ConfigError("this embedder is closed; make a new one")
        self._process = self._process or os.getpid()
        if self._process != os.getpid():
            raise ConfigError(
                "this embedder was in use before the process forked, and its thread is not in the child; make an "
                "embedder in each process"
            )

    def _work_off(self) -> None:
        while True:
            with self._lock:
                batch = self._queue.take()
                if not batch:
                    self._busy = False
                    return
            self._compute([ticket for ticket in batch if ticket.rows.set_running_or_notify_cancel()])

    def _compute(self, batch: list[Ticket]) -> None:
        if not batch:
            return
        try:
            rows = self._encode([text for ticket in batch for text in ticket.texts], batch[0].queries)
        except Exception as error:
            if len(batch) == 1:
                batch[0].rows.set_exception(error)
                return
            for ticket in batch:  # the texts of one may be at fault: the others are not to suffer for it
                self._compute([ticket])
            return
        start = 0
        for ticket in batch:
            ticket.rows.set_result(rows[start : start + len(ticket.texts)])
            start += len(ticket.texts)

    async def aclose(self) -> None:
        """Refuse what waits, and end the thread once the batch under way is done."""
        with self._lock:
            self._closed = True
            while batch := self._queue.take():
                for ticket in batch:
                    if ticket.rows.set_running_or_notify_cancel():
                        ticket.rows.set_exception(ConfigError("this embedder was closed before the texts' turn came"))
        await asyncio.to_thread(self._thread.shutdown)
