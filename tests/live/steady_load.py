"""A steady load of questions whose answers are known, and a record of what happened meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from haclient import AsyncMilvusClient
from haclient.drill.servers.process import ServerProcess
from haclient.events import EndpointChanged, Event
from tests.servers import fill
from tests.servers.shared import ROWS

#: How long a test waits for what must happen at some time; generous, since the machine may be busy.
PATIENCE_S = 120.0

E = TypeVar("E", bound=Event)
Ask = Callable[[int], Awaitable[list[Any]]]


@dataclass(slots=True)
class Question:
    """One question of the load.

    Attributes:
        key: The row whose own vector is asked for; the right answer.
        due: When it was to be asked, loop time: latency counts from here, also if we were late.
        ended: When its outcome was known.
        got: The keys found.
        error: What was raised instead.
    """

    key: int
    due: float
    ended: float = 0.0
    got: list[Any] | None = None
    error: Exception | None = None

    @property
    def took_s(self) -> float:
        return self.ended - self.due

    @property
    def right(self) -> bool:
        return self.error is None and self.got is not None and self.got[:1] == [self.key]

    @property
    def wrong(self) -> bool:
        return self.error is None and not self.right

    def __str__(self) -> str:
        return f"row {self.key} after {self.took_s * 1e3:.0f} ms: {self.error if self.error else self.got}"


class Load:
    """Asks at a fixed rate, whether or not earlier questions have been answered; an async context manager.

    Args:
        ask: Answers the keys nearest to a row's own vector.
        rate: Questions per second.
        rows: Keys are drawn below this.
    """

    def __init__(self, ask: Ask, *, rate: float = 20.0, rows: int = ROWS, seed: int = 1) -> None:
        self.questions: list[Question] = []
        #: Answers that a test has shown to be the server's own doing, and not ours.
        self.excused: list[Question] = []
        self._ask = ask
        self._gap_s = 1.0 / rate
        self._rows = rows
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_ended = asyncio.Event()
        self._pace: asyncio.Task[None] | None = None

    async def more(self, count: int = 30) -> list[Question]:
        """Wait until ``count`` questions asked from now on are answered, or have failed; return them."""
        first = len(self.questions)
        async with asyncio.timeout(PATIENCE_S):
            while len(asked := self.questions[first : first + count]) < count or not all(q.ended for q in asked):
                self._one_ended.clear()
                await self._one_ended.wait()
        return asked

    def since(self, moment: float) -> list[Question]:
        """Questions that were due after a moment of loop time and have ended."""
        return [q for q in self.questions if q.due >= moment and q.ended]

    def failures(self) -> list[Question]:
        return [q for q in self.questions if q.ended and not q.right]

    def assert_all_right(self, *, but: Sequence[Question] = ()) -> None:
        """Every question so far was answered, and rightly."""
        bad = [question for question in self.failures() if question not in but]
        shown = "\n".join(str(q) for q in bad[:5])
        assert not bad, f"{len(bad)} of {len(self.questions)} questions failed or were answered wrongly:\n{shown}"
        assert self.questions

    async def __aenter__(self) -> Self:
        self._pace = asyncio.create_task(self._go_on())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._pace is not None
        self._pace.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pace
        await asyncio.gather(*self._tasks)

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            question = Question(self._random.randrange(self._rows), due)
            self.questions.append(question)
            task = asyncio.create_task(self._one(question))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due += self._gap_s
            await asyncio.sleep(due - loop.time())

    async def _one(self, question: Question) -> None:
        try:
            question.got = await self._ask(question.key)
        except Exception as error:
            question.error = error
        question.ended = asyncio.get_running_loop().time()
        self._one_ended.set()


def searching(client: Any, collection: str = fill.COLLECTION, limit: int = 1, **arguments: Any) -> Ask:
    """Ask by searching, through any client with pymilvus' async interface."""

    async def ask(key: int) -> list[Any]:
        hits = await client.search(collection, data=[fill.vector(key)], limit=limit, **arguments)
        return [hit["id"] for hit in hits[0]]

    return ask


class Watch:
    """Every event of a client, and the means to wait for one."""

    def __init__(self, client: AsyncMilvusClient) -> None:
        self.events: list[Event] = []
        self._heard = asyncio.Event()
        client.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._heard.set()

    def of(self, kind: type[E], *, after_number: int = 0, **wanted: Any) -> list[E]:
        """Events of one kind whose fields are as wanted; a callable is asked about the value."""

        def fits(event: E) -> bool:
            values = {f.name: getattr(event, f.name) for f in fields(event)}
            return all(want(values[k]) if callable(want) else values[k] == want for k, want in wanted.items())

        return [event for event in self.events[after_number:] if isinstance(event, kind) and fits(event)]

    async def until(self, kind: type[E], *, after_number: int = 0, **wanted: Any) -> E:
        """Wait for such an event and return the first, which may have come already."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := self.of(kind, after_number=after_number, **wanted)):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            story = "\n".join(str(event) for event in self.states())
            raise AssertionError(f"no {kind.__name__} with {wanted}; the states were:\n{story}") from None
        return found[0]

    def states(self) -> list[EndpointChanged]:
        """What became of the endpoints, in order."""
        return self.of(EndpointChanged)

    def mark(self) -> int:
        """The number of events so far, for ``after_number``."""
        return len(self.events)


def state(client: AsyncMilvusClient, endpoint: str) -> str:
    """The state of one endpoint now."""
    return next(e.state for e in client.fleet.endpoints if e.name == endpoint)


async def eventually(true: Callable[[], bool], what: str = "") -> None:
    """Wait until something that has no event is true."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never came true: {what or true}") from None


async def until_up(client: AsyncMilvusClient, *endpoints: str) -> None:
    """Wait until endpoints have their full share of the traffic."""
    await eventually(lambda: all(state(client, e) == "up" for e in endpoints), f"up: {endpoints} in {client!r}")


async def until_serving(client: AsyncMilvusClient, *endpoints: str) -> None:
    """Wait until endpoints serve every collection in use: a real Milvus is up before it has loaded them."""
    await until_up(client, *endpoints)

    def serving() -> bool:
        return all(all(e.ready.values()) for e in client.fleet.endpoints if e.address in endpoints)

    await eventually(serving, f"serving: {endpoints} in {client!r}")


async def until_revived(client: AsyncMilvusClient, server: ServerProcess) -> None:
    """Wait until a server that was thawed is up.

    If its lease ran out meanwhile it ends by itself some seconds later, or hangs for ever while it shuts down; then it
    is killed and started, as a liveness probe would have it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while server.alive and state(client, server.address) != "up":
                await asyncio.sleep(0.02)
    if state(client, server.address) != "up":
        await server.restart()
        await until_up(client, server.address)


@contextlib.asynccontextmanager
async def opened(*args: Any, **kwargs: Any) -> AsyncIterator[tuple[AsyncMilvusClient, Watch]]:
    """A started client and the record of its events."""
    health = {"slow_start_s": 1.0, "failback_dwell_s": 1.0, **kwargs.pop("health", {})}
    client = AsyncMilvusClient(*args, health=health, **kwargs)
    watch = Watch(client)
    async with client:
        yield client, watch
