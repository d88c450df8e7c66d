"""`HTTPEmbedder` and its servers: what the caller sees of every kind of trouble."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from haclient.errors import (
    AccessDenied,
    CallError,
    ConfigError,
    DeadlineExceeded,
    EmbeddingError,
    Overloaded,
    Unavailable,
)
from haclient.events import EndpointChanged, Event
from haclient.retrieval.embed import Embedder, Fingerprint, HTTPEmbedder, QueryMemo
from tests.servers.embedding_server import EmbeddingServer

KEY = "sk-very-secret-0123456789"
MakeServer = Callable[..., Awaitable[EmbeddingServer]]
MakeEmbedder = Callable[..., HTTPEmbedder]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
async def server() -> AsyncIterator[MakeServer]:
    """``await server()`` starts one more; all end with the test."""
    servers: list[EmbeddingServer] = []

    async def make(**options: Any) -> EmbeddingServer:
        servers.append(EmbeddingServer(**options))
        await servers[-1].start()
        return servers[-1]

    yield make
    for one in servers:
        await one.kill()


@pytest.fixture
async def embedder() -> AsyncIterator[MakeEmbedder]:
    """``embedder(*servers)`` makes one over them; all are closed with the test, and leave nothing."""
    made: list[HTTPEmbedder] = []

    def make(*servers: EmbeddingServer, **options: Any) -> HTTPEmbedder:
        made.append(HTTPEmbedder([one.url for one in servers], "small", **options))
        return made[-1]

    before = asyncio.all_tasks()
    yield make
    for one in made:
        await one.aclose()
    left = {task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if "_connected" not in repr(task)}
    assert not left, left


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def befall(server: EmbeddingServer, fault: str | int) -> None:
    """Switch a fault on, or make all well again."""
    if fault == "dead":
        await server.kill()
    elif server.fault == "dead":
        await server.start()
    server.fault = fault


def questions(count: int) -> list[str]:
    return [f"How is question number {i} answered?" for i in range(count)]


async def ask(embedder: Embedder, server: EmbeddingServer, count: int) -> None:
    """Ask questions all at once; every answer must be right."""
    texts = questions(count)
    rows = await asyncio.gather(*(embedder.embed([text], queries=True) for text in texts))
    assert np.allclose(np.concatenate(rows), server.vectors(texts), atol=1e-6)


class TestAnswers:
    async def test_vectors(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """Rows are in the order of the texts, over several requests."""
        one = await server()
        several = embedder(one, batch_size=7)
        assert isinstance(several, Embedder)
        texts = questions(20)
        rows = await several.embed(texts)
        assert rows.dtype == np.float32
        assert np.allclose(rows, one.vectors(texts), atol=1e-6)
        assert [len(asked["input"]) for asked in one.asked] == [1, 7, 7, 6], "the first is the probe"
        assert (await several.embed([])).shape == (0, 16)
        assert await several.fingerprint() == Fingerprint("small", 16, normalised=True)
        assert all("dimensions" not in asked for asked in one.asked)

    async def test_servers_that_know_no_base64(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        one = await server()
        one.numbers = True
        await ask(embedder(one), one, 3)

    async def test_shortened(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """A dimension is asked for; what comes is brought to length 1, unless that is not wanted."""
        one = await server()
        short, plain = embedder(one, dimension=5), embedder(one, dimension=5, normalise=False)
        rows = await short.embed(questions(4))
        assert rows.shape == (4, 5)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1.0)
        assert np.allclose(await plain.embed(questions(4)), one.vectors(questions(4))[:, :5])
        assert (await plain.fingerprint()) == Fingerprint("small", 5, normalised=False)

    async def test_fingerprint_of_a_dead_server(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        one = await server()
        await one.kill()
        with pytest.raises(Unavailable, match=f"{one.port}/v1/embeddings"):
            await embedder(one).fingerprint()

    @pytest.mark.both_loops
    async def test_two_hundred_at_once(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """Requests beyond what may be under way wait; nobody is refused."""
        one, two = await server(), await server()
        one.delay_s = two.delay_s = 0.005
        await ask(embedder(one, two, max_in_flight=8), one, 200)
        assert one.busiest + two.busiest <= 2 * 8, "each of them may be hedged"
        assert min(len(one.asked), len(two.asked)) > 20

    async def test_memo_in_front(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """The same question, asked often and at once, reaches a server once; garbage is not kept."""
        one = await server()
        memo = QueryMemo(embedder(one))
        await memo.fingerprint()
        before = len(one.asked)
        one.fault = "zeros"
        with pytest.raises(Unavailable):
            await memo.embed(["What now?"], queries=True)
        failed = len(one.asked)
        assert failed > before
        one.fault = ""
        rows = await asyncio.gather(*(memo.embed(["What now?"], queries=True) for _ in range(50)))
        assert np.allclose(np.concatenate(rows), one.vectors(["What now?"]), atol=1e-6)
        assert sum(asked["input"] == ["What now?"] for asked in one.asked[failed:]) == 1


class TestTrouble:
    @pytest.mark.parametrize(
        "fault", ["dead", "hang", "reset", "html", 500, 404, 307, "NaN", "wrong length", "too few", "wrong model"]
    )
    async def test_one_of_two(self, fault: str | int, server: MakeServer, embedder: MakeEmbedder) -> None:
        """Whatever befalls one of two servers in the middle of the work, no question fails, and it is told of."""
        good, bad = await server(), await server()
        both = embedder(good, bad)
        events: list[Event] = []
        both.subscribe(events.append)
        await ask(both, good, 20)
        await befall(bad, fault)
        for _ in range(5):
            await ask(both, good, 20)
        down = [e for e in events if isinstance(e, EndpointChanged) and e.after == "down"]
        assert {e.cluster for e in down} == {f"127.0.0.1:{bad.port}"}

    @pytest.mark.parametrize("fault", ["dead", "hang", 500, "NaN"])
    async def test_it_comes_back(self, fault: str | int, server: MakeServer, embedder: MakeEmbedder) -> None:
        """A server that has got well is asked again, and only once a probe has seen it embed."""
        good, bad = await server(), await server()
        both = embedder(good, bad)
        await ask(both, good, 4)
        await befall(bad, fault)
        await ask(both, good, 20)
        bad.asked.clear()
        await befall(bad, "")

        async def asked_again() -> None:
            while not any(asked["input"] != ["probe"] for asked in bad.asked):
                await ask(both, good, 4)

        await asyncio.wait_for(asked_again(), 30)
        assert bad.asked[0]["input"] == ["probe"]

    async def test_one_is_dead_from_the_beginning(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        good, bad = await server(), await server()
        await bad.kill()
        await ask(embedder(bad, good), good, 50)

    @pytest.mark.parametrize("fault", ["dead", 500, "NaN"])
    async def test_both(self, fault: str | int, server: MakeServer, embedder: MakeEmbedder) -> None:
        """The error names every server and what is wrong with it."""
        one, two = await server(), await server()
        both = embedder(one, two)
        await ask(both, one, 1)
        for bad in (one, two):
            await befall(bad, fault)
        with pytest.raises(Unavailable) as caught:
            await both.embed(["Anyone there?"], queries=True)
        for bad in (one, two):
            assert f"127.0.0.1:{bad.port}/v1/embeddings" in str(caught.value)
        assert {"dead": "cannot connect", 500: "HTTP 500", "NaN": "no"}[fault] in str(caught.value)

    async def test_both_hang(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """The call ends when its time is over, and leaves no connection behind."""
        one, two = await server(), await server()
        both = embedder(one, two, timeout_s=0.3)
        await ask(both, one, 1)
        one.fault = two.fault = "hang"
        with pytest.raises(DeadlineExceeded) as caught:
            await both.embed(["Anyone there?"], queries=True)
        assert len(caught.value.attempts) >= 1
        await both.aclose()
        await until(lambda: one.connections + two.connections == 0)

    async def test_the_texts_are_at_fault(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """What a server refuses is not asked of the others, and its words are passed on."""
        one, two = await server(), await server()
        both = embedder(one, two)
        await ask(both, one, 1)
        before = len(one.asked) + len(two.asked)
        one.fault = two.fault = 413
        one.text = two.text = "at most 32 texts, please"
        with pytest.raises(EmbeddingError, match=r"HTTP 413.*at most 32 texts, please.*batch_size"):
            await both.embed(questions(50))
        assert len(one.asked) + len(two.asked) == before + 1

    async def test_too_many_requests(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """Servers over their quota are avoided, and told of when none is left; their breakers stay shut."""
        one, two = await server(), await server()
        both = embedder(one, two)
        events: list[Event] = []
        both.subscribe(events.append)
        await ask(both, one, 1)
        two.fault = 429
        await ask(both, one, 50)
        one.fault = 429
        with pytest.raises(Unavailable, match="HTTP 429") as caught:
            await both.embed(["Once more?"], queries=True)
        assert {attempt.cluster for attempt in caught.value.attempts} == {f"127.0.0.1:{s.port}" for s in (one, two)}
        assert not [e for e in events if isinstance(e, EndpointChanged) and e.after == "down"]

    async def test_overload(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """A full queue refuses at once; who gives up makes room."""
        one = await server()
        narrow = embedder(one, max_in_flight=1, max_queue=1)
        await ask(narrow, one, 1)
        one.fault = "hang"
        first, second = (asyncio.create_task(narrow.embed([text])) for text in ("one", "two"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 requests wait already while 1 are under way"):
            await narrow.embed(["three"])
        one.fault = ""
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await ask(narrow, one, 2)

    @pytest.mark.both_loops
    async def test_giving_up(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """At whatever moment a caller gives up, no connection stays behind, and the others are answered."""
        one = await server()
        one.delay_s = 0.01
        only = embedder(one)
        await ask(only, one, 1)

        async def impatient(patience_s: float) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(only.embed(["patience"]), patience_s)

        for _ in range(3):
            await asyncio.gather(ask(only, one, 10), *(impatient(i * 0.002) for i in range(20)))
        one.fault = "hang"
        await asyncio.gather(*(impatient(0.05) for _ in range(5)))
        one.fault = ""
        await ask(only, one, 3)
        await only.aclose()
        await until(lambda: one.connections == 0)


class TestOneModel:
    @pytest.mark.parametrize("other", [{"model": "large"}, {"dimension": 24}])
    async def test_two_models(self, other: dict[str, Any], server: MakeServer, embedder: MakeEmbedder) -> None:
        """Servers that turn out to differ while the embedder starts are refused, both named."""
        one, two = await server(), await server(**other)
        both = embedder(one, two)
        with pytest.raises(EmbeddingError, match="must not be mixed") as caught:
            await both.fingerprint()
        for each in (one, two):
            assert str(each.port) in str(caught.value)
        with pytest.raises(EmbeddingError, match="must not be mixed"):
            await both.embed(["still?"])

    async def test_asked_for_another_dimension(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        """A server that ignores the dimension asked for is of no use, and its vectors are not handed on."""
        one = await server()
        with pytest.raises(Unavailable, match="vectors of 16 numbers came where 20 were asked for"):
            await embedder(one, dimension=20).embed(["long"])


class TestKey:
    async def test_it_is_sent_and_never_shown(
        self,
        server: MakeServer,
        embedder: MakeEmbedder,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Not even if a server repeats it in its errors."""
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("MY_KEY", f"{KEY}\n")
        one = await server()
        secrets: dict[str, Any] = {"api_key_env": "MY_KEY", "headers": {"x-tenant": "tenant-secret-42"}}
        only = embedder(one, **secrets)
        shown: list[object] = [only, vars(only)["_host"]]
        only.subscribe(shown.append)
        await ask(only, one, 1)
        assert one.headers["authorization"] == f"Bearer {KEY}"
        assert one.headers["x-tenant"] == "tenant-secret-42"
        one.text = f"wrong key {KEY} of tenant-secret-42, {'x' * 230} {KEY}"
        for fault in (400, 401, 429, 500, "reset", "html", "hang"):
            one.fault = fault
            with pytest.raises((CallError, EmbeddingError)) as caught:
                async with asyncio.timeout(5):
                    await embedder(one, **secrets, timeout_s=0.2).embed(["x"])
            shown += [caught.value, repr(caught.value), getattr(caught.value, "attempts", ())]
        text = "\n".join([*map(str, shown), *map(repr, shown), caplog.text])
        assert "***" in text
        assert KEY[:15] not in text, "not even where a long text is cut"
        assert "tenant-secret-42" not in text

    @pytest.mark.parametrize("status", [401, 403])
    async def test_refused(
        self, status: int, server: MakeServer, embedder: MakeEmbedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A refused key is an error of its own, asked once; a server that takes it is preferred from then on."""
        one, two = await server(), await server()
        both = embedder(one, two)
        await ask(both, one, 1)
        one.fault = status
        outcomes = [(await asyncio.gather(ask(both, one, 1), return_exceptions=True))[0] for _ in range(30)]
        refusals = [outcome for outcome in outcomes if outcome is not None]
        assert len(refusals) <= 1
        for refusal in refusals:
            assert isinstance(refusal, AccessDenied)
            assert "What was sent is no key" in str(refusal)
            assert len(refusal.attempts) == 1
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with pytest.raises(AccessDenied, match="the key in the environment variable OPENAI_API_KEY"):
            await embedder(one).embed(["x"])

    async def test_one_that_is_refused_comes_back(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        one = await server()
        one.fault = 401
        only = embedder(one)
        with pytest.raises(AccessDenied):
            await only.embed(["x"])
        one.fault = ""
        await ask(only, one, 1)


class TestLoops:
    async def test_another_loop_beside_a_living_one(self, server: MakeServer, embedder: MakeEmbedder) -> None:
        one = await server()
        only = embedder(one)
        await ask(only, one, 1)
        with pytest.raises(ConfigError, match="this embedder is in use on another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(only.embed(["x"])))

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_a_loop_after_another(self, server: MakeServer) -> None:
        """When the first loop is gone, the next call starts anew."""
        one = await server()
        only = HTTPEmbedder(one.url, "small")

        async def last() -> None:
            await only.embed(["x"])
            await only.aclose()

        await asyncio.to_thread(lambda: asyncio.run(only.embed(["x"])))
        await asyncio.to_thread(lambda: asyncio.run(last()))
        gc.collect()  # the first loop was ended with its connections open
        with pytest.raises(ConfigError, match="this embedder is closed"):
            await only.embed(["x"])
