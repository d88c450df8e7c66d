"""One run: real replicators in simulated processes on one log, simulated clusters, the drawn history, the checker."""

from __future__ import annotations

import asyncio
import gc
import random
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final
from unittest.mock import patch

from haclient.replication import replicator, sharing
from haclient.replication.applier import APPLY
from haclient.replication.decisions import decide
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.roles import Roles
from tests.servers.memory_log import MemoryLog, MemoryStore
from tests.simulation.replication.checker import Checker
from tests.simulation.replication.client import Client
from tests.simulation.replication.harm import Harm
from tests.simulation.replication.processes import Process, Processes
from tests.simulation.replication.reads import Read
from tests.simulation.replication.scenario import FAR, Operation, Scenario, draw
from tests.simulation.replication.world import World
from tests.virtual_time import Deadlock

#: Everything must be everywhere this long after all is well again, seconds.
RECOVERY_S: Final = 60.0
#: A call that has not ended by then never will: its process has died.
_PATIENCE_S: Final = 20.0

#: So little is written in a run that nothing would ever be removed from the log, nor does a run last as long as it
#: takes to share the clusters out.
_QUICK: Final = {replicator: {"_TRIM_S": 0.2, "_KEPT": 2}, sharing: {"_LOOK_S": 0.1}}


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
    with ExitStack() as stack:
        for module, values in _QUICK.items():
            stack.enter_context(patch.multiple(module, **values))
        return _play(scenario, trace)


def _play(scenario: Scenario, trace: bool) -> Result:
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
    records, violations, deliveries = run.checker.records, run.world.violations, run.world.deliveries
    outcomes: dict[str, int] = {}
    for record in records:
        outcomes[record.outcome] = outcomes.get(record.outcome, 0) + 1
    digest = hash((deliveries, *((one.start, one.end, one.seq) for one in records)))
    return Result(scenario.seed, violations, len(records), deliveries, outcomes, digest)


class Run:
    """One run under way.

    Attributes:
        processes: All there ever were, by name.
        log: How the log fares, for everybody (None) and for single clients.
        over: No process is started any more.
    """

    def __init__(self, scenario: Scenario, loop: Processes, trace: bool) -> None:
        self.scenario = scenario
        self.loop = loop
        self.rng = random.Random(scenario.seed + 1)
        self.world = World(loop, self.rng, scenario.main, FAR if scenario.far else "", trace)
        self.store = MemoryStore()
        self.checker = Checker(scenario, self.world, self.store)
        self.processes: dict[str, Process] = {}
        self.clients = [Client(self, i) for i in range(scenario.processes)]
        self.harm = Harm(self)
        self.log: dict[int | None, str] = {}
        self.over = False
        self._calls: list[asyncio.Task[None]] = []

    async def main(self) -> None:
        self.harm.curse()
        for client in self.clients:
            client.start()
        if self.scenario.early:
            self.harm.begin()
        for _, index, operation in self.scenario.operations:
            if operation.prologue:
                await self._ended(self._write(index, operation))
        if not self.scenario.early:
            self.harm.begin()
        await self._history()
        await self._heal()
        await self._close()
        self.checker.settled()

    # Calls.

    async def _history(self) -> None:
        begin, scenario = self.loop.time(), self.scenario
        written = [(at, index, one) for at, index, one in scenario.operations if not one.prologue]
        calls: list[tuple[float, int, Operation | Read]] = [*written, *scenario.reads]
        for at, index, call in sorted(calls, key=lambda one: one[0]):
            await asyncio.sleep(max(begin + at - self.loop.time(), 0.0))
            if isinstance(call, Operation):
                self._write(index, call)
            else:
                self._read(index, call)
        for task in self._calls:
            await self._ended(task)

    async def _ended(self, call: asyncio.Task[None] | None) -> None:
        """Wait for a call; it may never end because its process dies."""
        limit = self.loop.time() + _PATIENCE_S
        while call is not None and not call.done() and call in self._calls and self.loop.time() < limit:
            await asyncio.sleep(0.02)

    def _write(self, index: int, operation: Operation) -> asyncio.Task[None] | None:
        client = self.clients[index]
        process = client.process
        if process is None or not client.alive:
            return None
        record = self.checker.began(operation, process)
        record.disturbed = process.stopped or bool(self.log)
        task = process.create_task(client.write(operation, record))
        if operation.cancel_at < float("inf"):
            self.world.later(operation.cancel_at, task.cancel)
        self._calls.append(task)
        return task

    def _read(self, index: int, read: Read) -> None:
        client = self.clients[index]
        if client.process is not None and client.alive:
            self._calls.append(client.process.create_task(client.read(read)))

    def is_dead(self, name: str) -> bool:
        """Say whether a process has died and the others can tell: they are all on one host, in half of the runs."""
        return self.scenario.one_host and not self.processes[name].alive

    def disturbed(self, process: Process | None) -> None:
        """Note that the calls of a process (None: of all) did not go undisturbed; those of a dead one never end."""
        for record in self.checker.records:
            if record.end == float("inf") and (process is None or record.process == process.name):
                record.disturbed = True
        if process is not None and not process.alive:
            self._calls = [call for call in self._calls if self.loop.owner(call) is not process]

    # The end.

    async def _heal(self) -> None:
        """Make everything well, and wait until everybody has everything."""
        self.harm.end()
        await self._recovered("all is well but for what is refused", parked=True)
        self.harm.lift()
        await self._recovered("nothing is refused any more", parked=False)

    async def _recovered(self, since: str, *, parked: bool) -> None:
        """Wait until every cluster has everything, but for streams that have stopped if those may be."""
        limit = self.loop.time() + RECOVERY_S
        while bad := self._lagging(parked):
            if self.loop.time() > limit:
                self.world.violated("recovery", f"{RECOVERY_S:g} s after {since}: {bad}")
                return
            if not parked:
                await self._retry_parked()
            await asyncio.sleep(0.1)

    def _positions(self) -> dict[str, Position]:
        facts = self.store.facts
        return {n: Position.decode(facts[POSITION + n].value) for n in self.world.servers if POSITION + n in facts}

    def _lagging(self, parked: bool) -> str:
        positions = self._positions()
        counted = {member.name for member in Roles.of(self.store.facts).counted(self.world.members)}
        for name in self.world.servers:
            position = positions.get(name)
            if position is None:
                return f"{name} has no position"
            behind = position.low < self.store.head or position.standing is not Standing.IN_SYNC
            if parked and behind and name not in counted and self._held_up(position, positions, counted):
                continue
            if behind or (position.parked and not parked):
                return f"{name} is at {position}, the log at {self.store.head}"
        return ""

    @staticmethod
    def _held_up(position: Position, positions: dict[str, Position], counted: set[str]) -> bool:
        """Say whether a cluster that follows has all that it may have of a stream that all who count have stopped."""
        leaders = [positions[name] for name in counted if name in positions]
        stopped = set.intersection(*({s for s, one in leader.parked.items() if one.reason} for leader in leaders))
        return any(position.applied(s) >= max(one.applied(s) for one in leaders) for s in stopped)

    async def _retry_parked(self) -> None:
        """Do what an operator does once the cause is removed."""
        for name, position in self._positions().items():
            for parked in position.parked.values():
                if parked.reason:
                    await decide(MemoryLog(self.store), name, "retry", parked.seq)

    async def _close(self) -> None:
        self.over = True
        for client in self.clients:
            process = client.process
            if process is None or not process.alive:
                continue
            self.world.say(f"{process.name} closes")
            closing = client.closing or process.create_task(client.aclose())
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
        own = [n for n, holder in self.checker.holders.items() if holder in processes and n.startswith(APPLY)]
        held = [name for name in own if (self.store.leases[name].until or 0.0) > loop.time()]
        if held and not any(fault.what.startswith("log") for fault in self.scenario.faults):
            world.violated("leak", f"leases: {held}")
        if loop.errors:
            world.violated("error", f"raised in a callback: {loop.errors}")


def freeze() -> None:
    """Keep the garbage collector from walking through what lives for ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 5)
