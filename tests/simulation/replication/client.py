"""One process that writes and reads: a real replicator and a real reader on the shared log.

Decision made here: a client outlives its processes. One that dies, or closes, is started again under another name, with
nothing of what its predecessor knew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from haclient.call import Reply
from haclient.errors import HAClientError, LogUnavailable
from haclient.events import Event, EventBus, LogTrouble, StreamParked
from haclient.milvus import timestamps
from haclient.milvus.methods import named
from haclient.milvus.status import Flavour
from haclient.replication.log import Mutation
from haclient.replication.reader import Reader
from haclient.replication.replicator import Replicator
from tests.servers.memory_log import MemoryLog
from tests.simulation.replication import reads
from tests.simulation.replication.checker import Record
from tests.simulation.replication.processes import Process
from tests.simulation.replication.reads import Read, Session
from tests.simulation.replication.scenario import SESSIONS, Operation
from tests.simulation.replication.world import Ways

if TYPE_CHECKING:
    from tests.simulation.replication.run import Run

#: Seconds from 1970 to the beginning of loop time.
_WALL: Final = 1.7e9


class Client:
    """One client.

    Attributes:
        process: Its present process, None while it has none.
        closing: Its end in good order, if that is under way.
    """

    def __init__(self, run: Run, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.closing: asyncio.Task[None] | None = None
        self._run = run
        self._life = 0

    @property
    def alive(self) -> bool:
        """Whether it takes calls now."""
        return self.process is not None and self.process.alive and self.closing is None

    def start(self) -> None:
        """Start a process."""
        run = self._run
        if run.over:
            return
        self._life += 1
        process = self.process = Process(run.loop, f"p{self.index}.{self._life}")
        run.processes[process.name] = process
        rng = random.Random(run.rng.random())
        skew = max(0.0, 8.0 * run.rng.random() - 4.0)
        self.sessions = [Session() for _ in range(SESSIONS)]
        process.run(self._make, process, rng, lambda: _WALL + skew + run.loop.time())
        self.starting = process.create_task(self._start(process))
        run.world.say(f"{process.name} starts")

    def _make(self, process: Process, rng: random.Random, wall: Callable[[], float]) -> None:
        run, settings = self._run, self._run.scenario.settings
        bus, ways, log = EventBus(), Ways(run.world), MemoryLog(run.store, _Hook(run, self.index, process))
        bus.subscribe(lambda event: self._listen(process, event))
        made = self.replicator = Replicator(
            settings, log, ways, bus, rng, run.loop, process.name, wall=wall, stamp=_stamp, is_dead=run.is_dead
        )
        known, describe = made.catalog.descriptions.known, made.catalog.descriptions.shape
        stamps = timestamps.Timestamps()
        self.reader = Reader(
            settings, [made.progress], log, lambda: reads.rotation(run.world), known, describe, stamps, run.loop
        )

    async def _start(self, process: Process) -> None:
        for _ in range(200):
            try:
                await self.replicator.start()
                break
            except HAClientError as error:
                self._run.world.say(f"{process.name} could not start: {error}")
                await asyncio.sleep(0.05)

    def _listen(self, process: Process, event: Event) -> None:
        if isinstance(event, StreamParked):
            self._run.checker.parked(event.cluster, event.seq, event.reason)
        if self._run.world.trace and not isinstance(event, LogTrouble):
            self._run.world.say(f"  {process.name}: {event}")

    async def aclose(self) -> None:
        """End in good order."""
        if not self.starting.done():
            self.starting.cancel()
            await asyncio.gather(self.starting, return_exceptions=True)
        await self.reader.aclose()
        await self.replicator.aclose()

    # Calls.

    async def write(self, operation: Operation, record: Record) -> None:
        """Make one write, as its process."""
        session, deadline = self.sessions[operation.session], record.start + operation.timeout_s
        metadata = (("haclient-ack", operation.ack),) if operation.ack else ()
        outcome: object
        try:
            # A client that is not started yet is no fault of the write's.
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self.starting)
        except TimeoutError:
            record.outcome, record.end = "failed", self._run.loop.time()
            return
        except asyncio.CancelledError:
            return
        method, message = named(operation.method), operation.message
        try:
            outcome = await self.replicator.write(method, message, metadata, operation.database, deadline, session.past)
        except (Exception, asyncio.CancelledError) as error:
            outcome = error
        self._run.checker.ended(record, outcome)
        if isinstance(outcome, Reply) and record.seq and operation.collection:
            session.wrote[operation.collection] = max(record.seq, session.wrote.get(operation.collection, 0))

    async def read(self, read: Read) -> None:
        """Make one read, as its process."""
        assert self.process is not None
        run = self._run
        await reads.perform(run.world, run.checker, self.reader, self.process, self.sessions[read.session], read)


async def _stamp(cluster: str, mutation: Mutation, reply: bytes, flavour: Flavour) -> int | None:
    return timestamps.covering(named(mutation.method), reply, flavour)


class _Hook:
    """Everything a process does with the log passes here."""

    def __init__(self, run: Run, index: int, process: Process) -> None:
        self._run = run
        self._index = index
        self._process = process

    async def __call__(self, operation: str, moment: Literal["before", "after"]) -> None:
        run = self._run
        if moment == "after":
            run.checker.stepped(self._process)
        trouble: Any = run.log.get(None) or run.log.get(self._index) if run.log else None
        if trouble == "log down" and moment == "before":
            await asyncio.sleep(0.005)
            raise LogUnavailable("the log is down", sent=False)
        if trouble == "log lost" and moment == "after" and operation != "changed":
            await asyncio.sleep(0.005)
            raise LogUnavailable("the log's answer is lost", sent=True)
        if trouble == "log slow" and operation != "changed":
            await asyncio.sleep(0.05 * run.world.draw())
        elif moment == "before" and operation in ("append", "put", "acquire"):
            await asyncio.sleep(0.001 * run.world.draw())
