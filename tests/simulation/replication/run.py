"""One run: real replicators in simulated processes on one log, simulated clusters, the drawn history, the checker."""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import dataclass
from typing import Any, Final, Literal

from haclient.errors import HAClientError, LogUnavailable
from haclient.events import Event, EventBus, LogTrouble, StreamParked
from haclient.milvus.methods import named
from haclient.replication import replicator
from haclient.replication.applier import APPLY
from haclient.replication.decisions import decide
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.replicator import Replicator
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.simulation.replication import world as states
from tests.simulation.replication.checker import Checker, Record
from tests.simulation.replication.processes import Process, Processes
from tests.simulation.replication.scenario import Fault, Operation, Scenario, draw
from tests.simulation.replication.world import Ways, World
from tests.virtual_time import Deadlock

#: Everything must be everywhere this long after all is well again, seconds.
RECOVERY_S: Final = 60.0
#: Seconds from 1970 to the beginning of loop time.
_WALL: Final = 1.7e9


# So little is written in a run that nothing would ever be removed from the log.
replicator._TRIM_S = 0.2  # type: ignore[misc]
replicator._KEPT = 2  # type: ignore[misc]


@dataclass(slots=True)
class Result:
    """What came of one seed."""

    seed: int
    violations: list[tuple[str, str]]
    writes: int
    deliveries: int
    outcomes: dict[str, int]
    digest: int


def run_seed(seed: int, trace: bool = False) -> Result:
    """Run one history; the same seed gives the same one."""
    return play(draw(seed), trace)


def play(scenario: Scenario, trace: bool = False) -> Result:
    """Run a history."""
    loop = Processes(scenario.seed, steps=400_000)
    asyncio.set_event_loop(None)
    run = Run(scenario, loop, trace)
    try:
        loop.run_until_complete(run.main())
        run.leaks()
    except Deadlock as error:
        run.world.violated("leak", f"deadlock: {error}")
    finally:
        loop.bury()
        loop.close()
    outcomes: dict[str, int] = {}
    for record in run.checker.records:
        outcomes[record.outcome] = outcomes.get(record.outcome, 0) + 1
    digest = hash((run.world.deliveries, *((one.start, one.end, one.seq) for one in run.checker.records)))
    violations = run.world.violations
    return Result(scenario.seed, violations, len(run.checker.records), run.world.deliveries, outcomes, digest)


@dataclass(slots=True, eq=False)
class Client:
    """One process that writes: it dies and is started again under another name."""

    index: int
    life: int = 0
    process: Process | None = None
    replicator: Replicator | None = None
    starting: asyncio.Task[Any] | None = None
    closing: asyncio.Task[Any] | None = None


class Run:
    """One run under way."""

    def __init__(self, scenario: Scenario, loop: Processes, trace: bool) -> None:
        self.scenario = scenario
        self.loop = loop
        self.rng = random.Random(scenario.seed + 1)
        self.world = World(loop, self.rng, scenario.clusters, trace)
        self.store = MemoryStore()
        self.checker = Checker(scenario, self.world, self.store)
        self.clients = [Client(i) for i in range(scenario.processes)]
        self.calls: list[asyncio.Task[None]] = []
        #: What is still to go wrong.
        self.ahead: list[Any] = []
        self.over = False
        #: How the log fares, for everybody (None) and for single processes.
        self.log: dict[int | None, str] = {}

    async def main(self) -> None:
        for operation, cluster, what in self.scenario.curses:
            server = self.world.servers[cluster]
            (server.refuses if what == "refuses" else server.dies_of).update(operation.marks)
        for client in self.clients:
            self.start(client)
        if self.scenario.early:
            self._faults()
        for _, index, operation in self.scenario.operations:
            if operation.prologue:
                await self._ended(self.call(index, operation))
        if not self.scenario.early:
            self._faults()
        await self._operations()
        await self.heal()
        await self.close()
        self.checker.settled()

    async def _operations(self) -> None:
        begin = self.loop.time()
        for at, index, operation in self.scenario.operations:
            if not operation.prologue:
                await asyncio.sleep(max(begin + at - self.loop.time(), 0.0))
                self.call(index, operation)
        for call in self.calls:
            await self._ended(call)

    async def _ended(self, call: asyncio.Task[None] | None) -> None:
        """Wait for a call; it may never end because its process dies."""
        limit = self.loop.time() + 20.0
        while call is not None and not call.done() and call in self.calls and self.loop.time() < limit:
            await asyncio.sleep(0.02)

    # Processes.

    def start(self, client: Client) -> None:
        if self.over:
            return
        client.life += 1
        process = client.process = Process(self.loop, f"p{client.index}.{client.life}")
        bus = EventBus()
        bus.subscribe(lambda event: self._listen(process, event))
        hook = _Hook(self, client.index, process)
        rng = random.Random(self.rng.random())
        skew = max(0.0, 8.0 * self.rng.random() - 4.0)
        client.replicator = process.run(
            Replicator,
            self.scenario.settings,
            MemoryLog(self.store, hook),
            Ways(self.world),
            bus,
            rng,
            self.loop,
            process.name,
            wall=lambda: _WALL + skew + self.loop.time(),
        )
        client.starting = process.create_task(self._start(client.replicator, process))
        self.world.say(f"{process.name} starts")

    async def _start(self, started: Replicator, process: Process) -> None:
        for _ in range(200):
            try:
                await started.start()
                break
            except HAClientError as error:
                if self.world.trace:
                    self.world.say(f"{process.name} could not start: {error}")
                await asyncio.sleep(0.05)

    def _listen(self, process: Process, event: Event) -> None:
        if isinstance(event, StreamParked):
            self.checker.parked(event.cluster, event.seq, event.reason)
        if self.world.trace and not isinstance(event, LogTrouble):
            self.world.say(f"  {process.name}: {event}")

    def die(self, client: Client, down_s: float) -> None:
        process = client.process
        if process is not None and process.alive and client.closing is None:
            self.world.say(f"{process.name} dies")
            process.die()
            self.world.died(process)
            self._disturb(process)
            self.world.later(down_s, self.start, client)

    def _disturb(self, process: Process) -> None:
        dead = not process.alive
        for record in self.checker.records:
            if record.process == process.name and record.end == float("inf"):
                record.disturbed = True
        if dead:
            self.calls = [call for call in self.calls if self.loop.owner(call) is not process]

    # Writes.

    def call(self, index: int, operation: Operation) -> asyncio.Task[None] | None:
        client = self.clients[index]
        process = client.process
        if process is None or not process.alive or client.closing is not None:
            return None
        assert client.replicator is not None
        record = self.checker.began(operation, process)
        record.disturbed = process.stopped or bool(self.log)
        task = process.create_task(self._write(client, client.replicator, operation, record))
        if operation.cancel_at < float("inf"):
            self.world.later(operation.cancel_at, task.cancel)
        self.calls.append(task)
        return task

    async def _write(self, client: Client, writer: Replicator, operation: Operation, record: Record) -> None:
        deadline = record.start + operation.timeout_s
        metadata = (("haclient-ack", operation.ack),) if operation.ack else ()
        outcome: object
        try:
            # A client that is not started yet is no fault of the write's.
            if client.starting is not None and not client.starting.done():
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(client.starting)
            outcome = await writer.write(
                named(operation.method), operation.message, metadata, operation.database, deadline
            )
        except TimeoutError:
            record.outcome, record.end = "failed", self.loop.time()
            return
        except (Exception, asyncio.CancelledError) as error:
            outcome = error
        self.checker.ended(record, outcome)

    # What goes wrong.

    def _faults(self) -> None:
        self.ahead = [self.world.later(fault.at, self.harm, fault) for fault in self.scenario.faults]

    def harm(self, fault: Fault) -> None:
        what = fault.what
        if what.startswith("log"):
            self._harm_log(fault)
        elif isinstance(fault.who, int):
            self._harm_process(fault)
        else:
            self._harm_server(fault)

    def _harm_server(self, fault: Fault) -> None:
        server, what, later = self.world.servers[fault.who], fault.what, self.world.later
        self.world.say(f"{server.name}: {what} for {fault.for_s:.3f}")
        if what == "crash":
            server.crash(fault.for_s)
        elif what == "stop" and server.state == states.UP:
            server.set(states.STOPPED)
            later(fault.for_s, self._mend, server, states.STOPPED)
        elif what == "not ready" and server.state == states.UP:
            server.set(states.NOT_READY)
            later(fault.for_s, self._mend, server, states.NOT_READY)
        elif what == "slow":
            server.slow = 20.0 + 200.0 * self.world.draw()
            later(fault.for_s, setattr, server, "slow", 1.0)
        elif what in ("blocked", "flaky", "mute"):
            setattr(server, what, True)
            later(fault.for_s, setattr, server, what, False)
        elif what == "reset":
            server.reset()
        elif what == "arm":
            server.armed = "before" if self.world.draw() < 0.4 else "after"
        elif what == "drain":
            self._drain(server.name, True)
            later(fault.for_s, self._drain, server.name, False)

    def _mend(self, server: states.Server, state: str) -> None:
        if server.state == state:
            server.set(states.UP)

    def _drain(self, name: str, drained: bool) -> None:
        server = self.world.servers[name]
        server.drained = drained
        self.world.look()
        self.checker.drained_at[name] = self.loop.time()

    def _harm_process(self, fault: Fault) -> None:
        client = self.clients[fault.who]
        process = client.process
        if process is None or not process.alive:
            return
        if fault.what == "die":
            process.after(fault.count, self.die, client, fault.for_s)
        elif fault.what == "stop process":
            process.after(fault.count, self._stop, process, fault.for_s)
        elif client.closing is None:
            client.closing = process.create_task(self._close(client, fault.for_s))

    def _stop(self, process: Process, for_s: float) -> None:
        if process.alive and not process.stopped:
            self.world.say(f"{process.name} is stopped")
            process.stop()
            self._disturb(process)
            self.world.later(for_s, self._go_on, process)

    def _go_on(self, process: Process) -> None:
        if process.alive and process.stopped:
            self.world.say(f"{process.name} goes on")
            process.go_on()

    async def _close(self, client: Client, down_s: float) -> None:
        """End a process in good order, and start it again."""
        assert client.process is not None
        assert client.replicator is not None
        self._disturb(client.process)
        if client.starting is not None and not client.starting.done():
            client.starting.cancel()
            await asyncio.gather(client.starting, return_exceptions=True)
        await client.replicator.aclose()
        self.world.say(f"{client.process.name} has closed")
        client.closing = client.process = None
        self.world.later(down_s, self.start, client)

    def _harm_log(self, fault: Fault) -> None:
        self.world.say(f"{fault.what} for {'all' if fault.who is None else fault.who} for {fault.for_s:.3f}")
        self.log[fault.who] = fault.what
        for record in self.checker.records:
            if record.end == float("inf"):
                record.disturbed = True
        self.world.later(fault.for_s, self.log.pop, fault.who, None)

    # The end.

    async def heal(self) -> None:
        """Make everything well, and wait until everybody has everything."""
        self.world.say("all is well")
        self.log.clear()
        for timer in self.ahead:
            timer.cancel()
        for server in self.world.servers.values():
            server.refuses.clear()
            server.dies_of.clear()
            server.armed, server.slow = "", 1.0
            server.blocked = server.flaky = server.mute = False
            if server.drained:
                self._drain(server.name, False)
            if server.state != states.UP:
                server.set(states.UP)
        for client in self.clients:
            if client.process is not None:
                client.process.spare()
                self._go_on(client.process)
        limit = self.loop.time() + RECOVERY_S
        while bad := self._lagging():
            if self.loop.time() > limit:
                self.world.violated("recovery", f"{RECOVERY_S:g} s after everything is well: {bad}")
                return
            await self._retry_parked()
            await asyncio.sleep(0.1)

    def positions(self) -> dict[str, Position]:
        facts = self.store.facts
        return {n: Position.decode(facts[POSITION + n].value) for n in self.world.servers if POSITION + n in facts}

    def _lagging(self) -> str:
        positions = self.positions()
        for name in self.world.servers:
            position = positions.get(name)
            if position is None:
                return f"{name} has no position"
            if position.parked or position.low < self.store.head or position.standing is not Standing.IN_SYNC:
                return f"{name} is at {position}, the log at {self.store.head}"
        return ""

    async def _retry_parked(self) -> None:
        """Do what an operator does once the cause is removed."""
        for name, position in self.positions().items():
            for parked in position.parked.values():
                if parked.reason:
                    await decide(MemoryLog(self.store), name, "retry", parked.seq)

    async def close(self) -> None:
        self.over = True
        for client in self.clients:
            process = client.process
            if process is None or not process.alive or client.replicator is None:
                continue
            self.world.say(f"{process.name} closes")
            if client.starting is not None and not client.starting.done():
                client.starting.cancel()
            closing = client.closing or process.create_task(client.replicator.aclose())
            limit = self.loop.time() + 10.0
            while not closing.done() and self.loop.time() < limit:
                await asyncio.sleep(0.02)
            if not closing.done():
                self.world.violated("leak", f"{process.name} does not end")
            elif closing.exception() is not None:
                self.world.violated("error", f"{process.name} ends with {closing.exception()!r}")

    def leaks(self) -> None:
        loop, world = self.loop, self.world
        for _ in range(3):
            if loop._ready:
                loop.call_soon(loop.stop)
                loop.run_forever()
        if left := loop.left():
            world.violated("leak", f"tasks: {left}")
        processes = [client.process for client in self.clients if client.process is not None and client.process.alive]
        if timers := [timer for timer in loop.timers() if loop.process_of(timer) in processes]:
            world.violated("leak", f"timers: {timers}")
        # Those who closed earlier may have found the log down.
        own = [n for n, holder in self.checker.holders.items() if holder in processes and n.startswith(APPLY)]
        held = [name for name in own if (self.store.leases[name].until or 0.0) > loop.time()]
        if held:
            world.violated("leak", f"leases: {held}")
        if loop.errors:
            world.violated("error", f"raised in a callback: {loop.errors}")


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
        trouble = run.log.get(None) or run.log.get(self._index) if run.log else None
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


def freeze() -> None:
    """Keep the garbage collector from walking through what lives for ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 5)
