"""``haclient demo``: real questions to three real servers while they are killed, frozen and emptied of what they serve.

Decision made here: nothing is simulated and nothing is left to luck. Servers are processes, faults are signals and
RPCs, each answer is compared with an exact search made before, and a fault waits until another server is well, so
that a right answer is always possible; that it is given is the client's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from haclient.drill import demo_view
from haclient.drill.corpus import QUESTIONS, Passage, read_corpus
from haclient.drill.demo_story import Answer, Report, Story, report
from haclient.drill.measure import open_loop
from haclient.drill.servers.lite import LiteServer
from haclient.errors import ConfigError, HAClientError
from haclient.retrieval.embed import Embedder, HashingEmbedder, SentenceTransformerEmbedder, Vectors

if TYPE_CHECKING:
    from haclient.client import AsyncMilvusClient
    from haclient.retrieval import Retriever

T = TypeVar("T")

COLLECTION = "python_reference"
SERVERS = ("a", "b", "c")
#: What is done when, as a share of the time. Kill and freeze overlap: two of three are then bad. Each hits the
#: server that answers most questions then, where it hurts most.
PLAN = ((0.1, "kill"), (0.25, "freeze"), (0.4, "thaw"), (0.47, "restart"), (0.72, "release"))
#: Rows in one insert.
_BATCH = 100
#: Scores closer than this are a tie: float32 on the server and here round differently.
_TIE = 1e-5
#: How long one call of the drill itself may take, seconds.
_PATIENCE_S = 20.0
#: Redraws a second.
_FRAMES = 4
#: Without a terminal, totals are printed this often, seconds.
_TOTALS_EVERY_S = 5.0
#: Questions go on for so long where a server takes its time to restart, and so long after the last fault, seconds.
_LATE_S = 10.0
_AFTERMATH_S = 2.0
#: How long the client may take after the last question to see all servers well again, seconds.
_HEAL_S = 5.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What can be chosen.

    Attributes:
        embedder: ``hashing``, or ``sentence-transformers`` with an optional ``:model``.
        seconds: How long questions are asked.
        rate: Questions a second.
        seed: Seed of the order of the questions.
        keep: Leave the servers' folder in place.
        json: Print the report as one line of JSON, and all else to standard error.

    Raises:
        ConfigError: A value is wrong.
    """

    embedder: str = "hashing"
    seconds: float = 25.0
    rate: float = 20.0
    seed: int = 0
    keep: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        if not 10 <= self.seconds <= 3600:
            raise ConfigError(f"seconds must be from 10 to 3600, got {self.seconds:g}; servers take a while to restart")
        if not 1 <= self.rate <= 1000:
            raise ConfigError(f"rate must be from 1 to 1000 questions a second, got {self.rate:g}; write 20, say")
        if not re.fullmatch(r"hashing|sentence-transformers(:.+)?", self.embedder):
            raise ConfigError(
                f"unknown embedder {self.embedder!r}; write hashing, sentence-transformers, or "
                "sentence-transformers:MODEL"
            )


def run(options: DemoOptions, console: Console | None = None) -> int:
    """Run the demo; returns the exit code: 0, 1 if anything failed, 130 after Ctrl-C."""
    console = console or Console(stderr=options.json, highlight=False)
    try:
        with _quiet(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            result = runner.run(_main(options, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped; all servers are gone.")
        return 130
    except Exception as error:
        cause = _innermost(error)
        if not isinstance(cause, _expected()):
            raise
        console.print(Text.assemble(("The demo could not run: ", "bold red"), str(cause)))
        return 1
    console.print(demo_view.finished(result))
    if options.json:
        print(json.dumps(result.as_json()), flush=True)
    return 0 if result.ok else 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep logs out of the live table: the story tells state changes, the report failed calls."""
    levels = {"haclient": logging.ERROR, "pymilvus": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _expected() -> tuple[type[BaseException], ...]:
    """What can go wrong on a machine without being a bug of ours."""
    from pymilvus.exceptions import MilvusException  # noqa: PLC0415

    return HAClientError, OSError, MilvusException


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415 - not there on every platform

    return uvloop.new_event_loop


async def _main(options: DemoOptions, console: Console) -> Report:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # Windows
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with _folder(console, keep=options.keep) as folder:
        return await _Demo(options, console, folder).run()


@contextlib.contextmanager
def _folder(console: Console, *, keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="haclient-demo-"))
    try:
        yield folder
    finally:
        if keep:
            console.print(f"The servers' data and logs are in {folder}", markup=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@final
class _Demo:
    """One run."""

    def __init__(self, options: DemoOptions, console: Console, folder: Path) -> None:
        self.options = options
        self.console = console
        self.servers = {name: LiteServer(folder / name, name=name) for name in SERVERS}
        self.story = Story()
        self.passages: list[Passage] = []
        self.embedder: Embedder
        self.best: list[frozenset[int]] = []
        self.order: list[int] = []

    async def run(self) -> Report:
        """Start, load, ask, and sum up."""
        start = time.monotonic()
        async with AsyncExitStack() as stack:
            for server in self.servers.values():
                stack.push_async_callback(server.close)
            await self._prepare()
            stack.push_async_callback(self.embedder.aclose)
            async with self._client() as client:
                load_s = time.monotonic() - start
                await self._ask_and_break(client)
        return report(
            self.story,
            passages=len(self.passages),
            embedder=self.options.embedder,
            loop=type(asyncio.get_running_loop()).__module__.partition(".")[0],
            total_s=time.monotonic() - start,
            load_s=load_s,
        )

    # Before the questions.

    async def _prepare(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, disable=not terminal, transient=True) as progress:
            starting = progress.add_task("starting three milvus-lite servers", total=len(SERVERS))

            async def launch(server: LiteServer) -> None:
                await server.start()
                progress.advance(starting)

            async with asyncio.TaskGroup() as group:
                for server in self.servers.values():
                    group.create_task(launch(server))
                rows = await self._embed()
            async with asyncio.TaskGroup() as group:
                for name, server in self.servers.items():
                    bar = progress.add_task(f"loading the Python language reference into {name}", total=len(rows))
                    group.create_task(_in_thread(_load, server.uri, rows, _advance(progress, bar)))
        self.console.print(f"Three milvus-lite servers serve {len(rows)} passages of the Python reference each.")

    async def _embed(self) -> list[dict[str, Any]]:
        """Embed passages and questions, and find the best passages of each question by exact search."""
        passages = self.passages = await _in_thread(_read)
        texts = [passage.words for passage in passages]
        embedder = self.embedder = await _in_thread(make_embedder, self.options.embedder, texts)
        vectors = await embedder.embed(texts)
        questions = await embedder.embed([question.text for question in QUESTIONS], queries=True)
        self.best = best_passages(questions, vectors)
        return [
            {"id": i, "topic": p.topic, "title": p.title, "text": p.text, "vector": vector.tolist()}
            for i, (p, vector) in enumerate(zip(passages, vectors, strict=True))
        ]

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncMilvusClient]:
        from haclient.client import AsyncMilvusClient  # noqa: PLC0415 - see `_read`

        clusters = [{"name": n, "endpoints": [{"name": n, "uri": s.uri}]} for n, s in self.servers.items()]
        config = {"cluster": clusters, "health": {"load_collections": True}}
        async with AsyncMilvusClient(config=config) as client:
            stop = client.subscribe(self.story.listen)
            try:
                yield client
            finally:
                stop()

    # The questions, and what is done meanwhile.

    async def _ask_and_break(self, client: AsyncMilvusClient) -> None:
        from haclient.retrieval import Retriever  # noqa: PLC0415 - see `_read`

        options, story = self.options, self.story
        retriever = Retriever(client, COLLECTION, embedder=self.embedder, output_fields=["title"])
        rng = random.Random(options.seed)
        while len(self.order) < options.rate * options.seconds:
            self.order += rng.sample(range(len(QUESTIONS)), len(QUESTIONS))
        story.began = time.monotonic()
        if not self.console.is_terminal:
            story.told = lambda line: self.console.print(demo_view.plain_line(line, story.began), soft_wrap=True)
        async with asyncio.TaskGroup() as group:
            show = group.create_task(self._show(client))
            faults = group.create_task(self._break())

            async def ask(number: int) -> Answer:
                return await self._ask(retriever, self.order[(asked + number) % len(self.order)])

            asked, seconds = 0, options.seconds
            while True:
                asked += len(await open_loop(ask, rate=options.rate, seconds=seconds, done=story.asked))
                late = time.monotonic() - story.began - options.seconds
                if late > _LATE_S or (faults.done() and time.monotonic() - story.faults[-1].at > _AFTERMATH_S):
                    break
                seconds = 1.0
            if not faults.done():
                faults.cancel()
                story.problems.append("not all faults were made: a server did not come back in time")
            await self._heal(client)
            show.cancel()

    async def _ask(self, retriever: Retriever, question: int) -> Answer:
        found = await retriever.retrieve(QUESTIONS[question].text, 3)
        right = bool(found) and found[0].id in self.best[question]
        title = found[0].metadata["title"] if found else "no passage found"
        return Answer(QUESTIONS[question].text, str(title), right)

    async def _break(self) -> None:
        story = self.story
        done: dict[str, str] = {}
        for share, what in PLAN:
            await asyncio.sleep(max(0.0, story.began + share * self.options.seconds - time.monotonic()))
            if what == "thaw":
                name = done["freeze"]
            elif what == "restart":
                name = done["kill"]
            else:
                # One more server than the one to be hurt must be well: a right answer stays possible.
                while sum(map(story.well, SERVERS)) < 2:  # noqa: ASYNC110 - the story is told by many events
                    await asyncio.sleep(0.05)
                name = story.busiest(filter(story.well, SERVERS))
            done[what] = name
            server = self.servers[name]
            if what == "release":
                # Plain pymilvus, behind the back of the client under test; connected before the clock starts.
                other = await _in_thread(_connect, server.uri)
                story.did(what, name)
                await _in_thread(partial(other.release_collection, COLLECTION, timeout=_PATIENCE_S))
                await _in_thread(other.close)
                continue
            story.did(what, name)
            if what == "kill":
                await server.kill()
            elif what == "freeze":
                server.freeze()
            elif what == "thaw":
                server.thaw()
            else:
                await server.start()

    async def _heal(self, client: AsyncMilvusClient) -> None:
        """Wait until the client sees every server well again; one that does not come back is a problem."""
        limit = time.monotonic() + _HEAL_S
        while time.monotonic() < limit:
            ill = [e.name for e in client.fleet.endpoints if e.state == "down" or e.ready.get(COLLECTION) is False]
            if not ill:
                return
            await asyncio.sleep(0.1)
        self.story.problems.append(f"not back in rotation at the end: {', '.join(ill)}")

    async def _show(self, client: AsyncMilvusClient) -> None:
        story = self.story
        if not self.console.is_terminal:
            while True:
                await asyncio.sleep(_TOTALS_EVERY_S)
                self.console.print(demo_view.plain_totals(story, time.monotonic()), soft_wrap=True)

        def draw() -> Any:
            now = time.monotonic()
            return demo_view.live(story, client.fleet, now=now, seconds=self.options.seconds, collection=COLLECTION)

        # Without its own thread: what is drawn belongs to this loop.
        with Live(draw(), console=self.console, auto_refresh=False, transient=True) as screen:
            while True:
                await asyncio.sleep(1 / _FRAMES)
                screen.update(draw(), refresh=True)


def _read() -> list[Passage]:
    import haclient.client  # noqa: F401, PLC0415 - takes a second, while the servers start

    return read_corpus()


def make_embedder(name: str, texts: Sequence[str]) -> Embedder:
    """Make what ``--embedder`` names, ready for these texts."""
    kind, _, model = name.partition(":")
    if kind == "hashing":
        return HashingEmbedder().fit(texts)
    return SentenceTransformerEmbedder(model) if model else SentenceTransformerEmbedder()


def best_passages(questions: Vectors, passages: Vectors) -> list[frozenset[int]]:
    """Return the passages nearest to each question by exact cosine; several if they tie."""
    scores = questions.astype(np.float64) @ passages.astype(np.float64).T
    best = scores >= scores.max(axis=1, keepdims=True) - _TIE
    return [frozenset(np.flatnonzero(row).tolist()) for row in best]


def _advance(progress: Progress, bar: Any) -> Callable[[int], None]:
    return lambda count: progress.advance(bar, count)


def _load(uri: str, rows: Sequence[dict[str, Any]], done: Callable[[int], None]) -> None:
    """Fill one server with plain pymilvus, as any program would."""
    from pymilvus import DataType  # noqa: PLC0415 - see `_read`

    client = _connect(uri)
    try:
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        for name in ("topic", "title", "text"):
            schema.add_field(name, DataType.VARCHAR, max_length=65535)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(rows[0]["vector"]))
        client.create_collection(COLLECTION, schema=schema, timeout=_PATIENCE_S)
        for i in range(0, len(rows), _BATCH):
            batch = list(rows[i : i + _BATCH])
            client.insert(COLLECTION, batch, timeout=_PATIENCE_S)
            done(len(batch))
        # milvus-lite searches unflushed rows slowly.
        client.flush(COLLECTION, timeout=_PATIENCE_S)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        client.create_index(COLLECTION, index, timeout=_PATIENCE_S)
        client.load_collection(COLLECTION, timeout=_PATIENCE_S)
    finally:
        client.close()


def _connect(uri: str) -> Any:
    from pymilvus import MilvusClient  # noqa: PLC0415 - see `_read`

    return MilvusClient(uri, timeout=_PATIENCE_S)


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Run blocking work; when cancelled, wait for its end first, so that no server dies under it."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


if __name__ == "__main__":
    sys.exit(run(DemoOptions()))
