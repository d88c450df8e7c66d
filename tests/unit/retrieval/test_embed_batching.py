"""Batches: what waits together is computed together, each caller gets their own, and nobody suffers for another."""

from __future__ import annotations

import asyncio
import threading

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from haclient.errors import ConfigError, EmbeddingError, Overloaded
from haclient.retrieval.embed import Vectors
from haclient.retrieval.embed.batching import BatchQueue, Ticket, Worker


def row(text: str) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text)))]


class Model:
    """Computes `row`s, one batch whenever the test lets it.

    Attributes:
        batches: What it was given, and whether as queries.
        gate: Released once per batch, if it is held back.
    """

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[tuple[list[str], bool]] = []
        self.threads: set[int] = set()
        self.gate = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.held = held

    def __call__(self, texts: list[str], queries: bool) -> Vectors:
        self.batches.append((texts, queries))
        self.threads.add(threading.get_ident())
        self.entered.release()
        if self.held:
            assert self.gate.acquire(timeout=30)
        if "bad" in texts:
            raise EmbeddingError("a bad text")
        return np.asarray([row(text) for text in texts], np.float32)

    async def busy(self) -> None:
        """Wait until it computes something."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)


class TestQueue:
    def test_first_come_first_served(self) -> None:
        """A batch is whoever waits longest, and those of the same kind that fit."""
        queue = BatchQueue(batch_size=4, max_queue=20)
        a, b, c, d = (queue.add(["x"] * n, q) for n, q in ((2, False), (1, True), (3, False), (2, False)))
        assert queue.waiting == 8
        assert [queue.take() for _ in range(4)] == [[a, d], [b], [c], []]
        assert queue.waiting == 0

    def test_full(self) -> None:
        queue = BatchQueue(batch_size=2, max_queue=3)
        first = queue.add(["a", "b"], True)
        with pytest.raises(Overloaded, match=r"2 texts wait for the model already, and 3 may.*max_queue"):
            queue.add(["c", "d"], True)
        queue.add(["c"], True)
        queue.drop(first)
        queue.drop(first)
        assert queue.waiting == 1
        queue.add(["d", "e"], True)

    @pytest.mark.parametrize(("sizes", "message"), [((0, 5), "batch_size must be"), ((8, 7), "write at least 8")])
    def test_bad_sizes(self, sizes: tuple[int, int], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            BatchQueue(*sizes)

    @given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans())))
    def test_everyone_is_taken_once(self, calls: list[tuple[int, bool, bool]]) -> None:
        """Whatever comes and goes, each ticket is taken once, in batches of one kind that are never too large."""
        queue = BatchQueue(batch_size=5, max_queue=10_000)
        tickets = [(queue.add(["x"] * size, kind), dropped) for size, kind, dropped in calls]
        for ticket, dropped in tickets:
            if dropped:
                queue.drop(ticket)
        taken: list[Ticket] = []
        oldest = [ticket for ticket, dropped in tickets if not dropped]
        while batch := queue.take():
            assert batch[0] is oldest[0]
            assert sum(len(ticket.texts) for ticket in batch) <= 5
            assert len({ticket.queries for ticket in batch}) == 1
            taken += batch
            oldest = [ticket for ticket in oldest if ticket not in batch]
        assert not oldest
        assert len(taken) == len({id(ticket) for ticket in taken})
        assert queue.waiting == 0


class TestWorker:
    async def test_callers_share_batches(self) -> None:
        """Those who come while a batch is computed are in the next one, together, and get what is theirs."""
        model = Model(held=True)
        worker = Worker(model, batch_size=8, max_queue=100)
        texts = [[f"text {i} of {n}" for i in range(n % 3 + 1)] for n in range(20)]
        first = asyncio.create_task(worker.embed(["first"], True))
        await model.busy()
        others = [asyncio.create_task(worker.embed(one, True)) for one in texts]
        await asyncio.sleep(0)
        model.held = False
        model.gate.release()
        assert (await first).tolist() == [row("first")]
        for mine, rows in zip(texts, await asyncio.gather(*others), strict=True):
            assert rows.tolist() == [row(text) for text in mine]
        assert len(model.batches) <= 1 + 7
        assert len(model.threads) == 1
        await worker.aclose()

    async def test_many_texts_hold_nobody_up(self) -> None:
        """A large call is cut into batches, and a question that comes meanwhile is answered after one of them."""
        model = Model(held=True)
        worker = Worker(model, batch_size=4, max_queue=8)
        texts = [str(i) * (i % 5 + 1) for i in range(40)]
        large = asyncio.create_task(worker.embed(texts, False))
        await model.busy()
        question = asyncio.create_task(worker.embed(["now?"], True))
        await asyncio.sleep(0)
        model.held = False
        model.gate.release()
        assert (await large).tolist() == [row(text) for text in texts]
        await question
        assert [queries for _, queries in model.batches[:3]] == [False, True, False]
        lengths = [[len(text) for text in batch] for batch, queries in model.batches if not queries]
        assert lengths == [sorted(some) for some in lengths]
        assert [some[-1] for some in lengths] == sorted(some[-1] for some in lengths), "likes with likes"
        await worker.aclose()

    async def test_one_bad_text(self) -> None:
        """Only its caller hears of it."""
        model = Model(held=True)
        worker = Worker(model, batch_size=8, max_queue=8)
        first = asyncio.create_task(worker.embed(["first"], True))
        await model.busy()
        calls = [asyncio.create_task(worker.embed([text], True)) for text in ("good", "bad", "fine")]
        await asyncio.sleep(0)
        model.held = False
        model.gate.release()
        await first
        good, bad, fine = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(bad, EmbeddingError)
        assert isinstance(good, np.ndarray)
        assert isinstance(fine, np.ndarray)
        assert good.tolist() == [row("good")]
        await worker.aclose()

    async def test_whoever_gives_up_is_not_computed(self) -> None:
        """Their texts leave the queue at once, if they are in it still."""
        model = Model(held=True)
        worker = Worker(model, batch_size=2, max_queue=2)
        first = asyncio.create_task(worker.embed(["first"], True))
        await model.busy()
        gone = asyncio.create_task(worker.embed(["gone", "too"], True))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await worker.embed(["refused"], True)
        first.cancel()
        gone.cancel()
        await asyncio.wait([first, gone])
        stays = asyncio.create_task(worker.embed(["stays"], True))
        await asyncio.sleep(0)
        model.held = False
        model.gate.release()
        assert (await stays).tolist() == [row("stays")]
        assert [texts for texts, _ in model.batches] == [["first"], ["stays"]]
        await worker.aclose()

    async def test_closing(self) -> None:
        """What is computed is still answered, what waits is refused, and the thread is gone."""
        model = Model(held=True)
        worker = Worker(model, batch_size=2, max_queue=10)
        first = asyncio.create_task(worker.embed(["first"], True))
        await model.busy()
        waiting = asyncio.create_task(worker.embed(["second"], True))
        await asyncio.sleep(0)
        closing = asyncio.create_task(worker.aclose())
        with pytest.raises(ConfigError, match="closed before"):
            await waiting
        model.gate.release()
        assert (await first).tolist() == [row("first")]
        await closing
        with pytest.raises(ConfigError, match="closed; make a new one"):
            await worker.embed(["third"], True)
        await worker.aclose()
        assert not [t for t in threading.enumerate() if t.name.startswith("haclient-embed")]

    async def test_several_loops(self) -> None:
        """Callers on different event loops share it."""
        worker = Worker(Model(), batch_size=2, max_queue=10)
        here = worker.embed(["here"], True)
        there = asyncio.to_thread(lambda: asyncio.run(worker.embed(["there"], True)))
        assert [rows.tolist() for rows in await asyncio.gather(here, there)] == [[row("here")], [row("there")]]
        await worker.aclose()
