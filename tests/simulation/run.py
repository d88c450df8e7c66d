"""One run: the real core, the simulated world, the drawn history, the checker."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
from dataclasses import dataclass
from typing import Final

from haclient.core import Core
from haclient.errors import HAClientError
from haclient.events import EventBus
from haclient.fleet.flight import Flight
from tests.simulation import replies, world
from tests.simulation.checker import Checker
from tests.simulation.replies import SEARCH
from tests.simulation.scenario import Fault, Scenario, Steering, draw
from tests.simulation.world import Operation, Server, World
from tests.virtual_time import Deadlock, VirtualTimeLoop

#: Everything must be in use again this long after the last fault, seconds.
RECOVERY_S: Final = 6.0


class _Complaints(logging.Handler):
    """Hears of exceptions that the core caught and logged: it goes on, the run has failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(f"{record.getMessage()}: {record.exc_info[1]!r}" if record.exc_info else record.getMessage())


_complaints = _Complaints()
_log = logging.getLogger("haclient")


def _prepare() -> None:
    replies.speed_up()
    if _complaints not in _log.handlers:
        _log.addHandler(_complaints)
    # The fleet keeps flights in sets; by address their order would change from run to run.
    Flight.__hash__ = lambda self: hash(self.attempt.started)  # type: ignore[method-assign]


@dataclass(slots=True)
class Result:
    """What came of one seed."""

    seed: int
    violations: list[tuple[str, str]]
    calls: int
    attempts: int
    digest: int


def run_seed(seed: int, trace: bool = False) -> Result:
    """Run one history; the same seed gives the same one."""
    _prepare()
    scenario = draw(seed)
    loop = VirtualTimeLoop(seed, scenario.begin, steps=200_000)
    asyncio.set_event_loop(None)
    run = _Run(scenario, loop, trace)
    left = True
    try:
        loop.run_until_complete(run.main())
        left = _leaks(run, loop)
    except Deadlock as error:
        run.world.violated("leak", f"deadlock: {error}")
    finally:
        if left:
            _end(loop)
        loop.close()
    while _complaints.heard:
        run.world.violated("error", _complaints.heard.pop())
    attempts = sum(len(op.seen) for op in run.world.operations)
    return Result(seed, run.world.violations, len(run.world.operations), attempts, hash(tuple(run.world.log)))


def _leaks(run: _Run, loop: VirtualTimeLoop) -> bool:
    for _ in range(3):
        if loop._ready:
            loop.call_soon(loop.stop)
            loop.run_forever()
    violated = run.world.violated
    left = loop.tasks()
    if left:
        violated("leak", f"tasks: {left}")
    own = (_Run, Server)
    timers = [t for t in loop.timers() if not isinstance(getattr(t._callback, "__self__", None), own)]
    if timers:
        violated("leak", f"timers: {timers}")
    if loop.errors:
        violated("error", f"raised in a callback: {loop.errors}")
    return bool(left)


def _end(loop: VirtualTimeLoop) -> None:
    left = loop.tasks()
    for task in left:
        task.cancel()
    if left:
        with contextlib.suppress(Deadlock):
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


class _Run:
    def __init__(self, scenario: Scenario, loop: VirtualTimeLoop, trace: bool) -> None:
        self.scenario = scenario
        self.loop = loop
        self.world = World(loop, random.Random(scenario.seed + 1), scenario.auto_id, trace)
        self.world.servers = [Server(self.world, i, c) for i, c in enumerate(scenario.clusters)]
        self.checker = Checker(scenario, self.world)
        self.world.on_crash = lambda server, op: self.checker.crashed(op)
        self.bus = EventBus()
        self.bus.subscribe(self.checker.listen)
        self.left = 0
        self.idle = loop.create_future()
        self.config = 0

    async def main(self) -> None:
        scenario, loop = self.scenario, self.loop
        for fault in scenario.faults:
            if fault.at < 0:
                self.harm(fault)
        core = Core(scenario.configs[0], self.world.connect, self.bus, random.Random(scenario.seed + 2), loop)
        self.core = self.checker.core = core
        self.world.disturbed = lambda: len(core._quarantine.under_way) > 1
        try:
            if scenario.start_first:
                await self.start()
            self.schedule()
            await self.idle
            await self.heal()
            self.checker.settled()
        finally:
            await core.aclose()
        for transport in self.world.transports:
            if transport.active:
                self.world.violated("leak", f"streams on {transport.server.name} after closing")
        self.world.by_message.clear()

    async def start(self) -> None:
        begin = self.loop.time()
        try:
            await self.core.start()
        except HAClientError as error:
            if self.scenario.stranger < 0:
                self.world.violated("start", f"{error!r}")
        took = self.loop.time() - begin
        if self.scenario.safe >= 0 and took > 0.6:
            self.world.violated("start", f"took {took:.3f} s although s{self.scenario.safe} was up")

    def schedule(self) -> None:
        scenario, loop = self.scenario, self.loop
        now = loop.time()
        operations = self.world.operations
        for at, op in scenario.calls:
            operations.append(op)
            loop.call_at(now + at, self.call, op)
        self.left = len(scenario.calls)
        for at, op in scenario.cancels:
            loop.call_at(now + at + 1e-9, self.cancel, op)
        for fault in scenario.faults:
            if fault.at >= 0:
                loop.call_at(now + fault.at, self.harm, fault)
        for step in scenario.steering:
            loop.call_at(now + step.at, self.steer, step)
        if scenario.poison is not None:
            at, ops = scenario.poison
            operations.extend(ops)
            self.left += 1
            loop.call_at(now + at, self.poison, ops)

    # What happens.

    def call(self, op: Operation) -> None:
        world = self.world
        if op.timestamp:
            owner = op.id % len(self.scenario.clusters)
            cluster = world.servers[owner].cluster
            op.timestamp = world.stamp(cluster)
            op.message = replies.request(op.method, op.id, op.timestamp)
            if op.id % 2 and len(set(self.scenario.clusters)) == len(self.core.fleet.clusters):
                names = [c.name for c in self.core.fleet.clusters if any(n.name == f"s{owner}" for n in c.nodes)]
                for name in names:
                    self.core.fleet.timestamps.learn(name, op.timestamp)
        op.task = self.loop.create_task(self.perform(op, True))

    def cancel(self, op: Operation) -> None:
        if op.task is not None and not op.task.done():
            op.cancelled = True
            op.task.cancel()

    def poison(self, ops: list[Operation]) -> None:
        ops[0].task = self.loop.create_task(self.poisoner(ops))

    async def poisoner(self, ops: list[Operation]) -> None:
        for op in ops:
            await self.perform(op, False)
            await asyncio.sleep(0.1)
        self.done()

    async def perform(self, op: Operation, last: bool) -> None:
        world, checker = self.world, self.checker
        world.by_message[op.message] = op
        now = op.started = self.loop._clock
        checker.calls += 1
        if checker.first_call is None:
            checker.first_call = now
        outcome: object
        try:
            outcome = await self.ask(op)
        except asyncio.CancelledError as error:
            outcome = error
        except Exception as error:
            outcome = error
        if world.trace:
            world.say(f"{op} ended: {outcome!r}")
        checker.ended(op, outcome)
        if last:
            self.done()

    async def ask(self, op: Operation) -> object:
        """Ask as the SDK does, or as the proxy does: by being called back."""
        core = self.core
        if op.id % 2 == 0 or not core._started:
            return await core.request(op.method, op.message, (), op.timeout)
        answer = self.loop.create_future()
        exchange = core.begin(op.method, op.message, (), op.timeout, answer.set_result)
        try:
            outcome = await answer
        except asyncio.CancelledError:
            exchange.cancel()
            if exchange._task is not None:
                await asyncio.gather(exchange._task, return_exceptions=True)
            raise
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def done(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.idle.set_result(None)

    def harm(self, fault: Fault) -> None:
        server = self.world.servers[fault.server]
        if fault.state == "restart":
            server.crash(fault.for_s)
            return
        server.set(fault.state)
        server.slow = 20.0 + 30.0 * self.world.draw() if fault.state == world.SLOW else 1.0
        self.loop.call_later(fault.for_s, self.mend, server, server.epoch)

    def mend(self, server: Server, epoch: int) -> None:
        if server.epoch == epoch:
            server.set(world.UP)

    def steer(self, step: Steering) -> None:
        core, checker = self.core, self.checker
        checker.rotation_changed = True
        if self.world.trace:
            self.world.say(f"{step.what} {step.name or step.config}")
        now = self.loop.time()
        if step.what == "reconfigure":
            self.config = step.config
            checker.reconfigured += 1
            kept = {n for members in self.scenario.shapes[step.config] for n in members}
            before = {node.name for node in core.fleet.nodes()}
            for server in self.world.servers:
                if server.index not in kept:
                    server.rotation_since = float("inf")
                    server.drained = True
                elif server.name not in before:
                    server.rotation_since = now
                    server.drained = False
            core.reconfigure(self.scenario.configs[step.config])
            return
        server = self.world.servers[int(step.name[1:])]
        if all(node.name != step.name for node in core.fleet.nodes()):
            return
        drained = step.what == "drain"
        if drained and sum(not s.drained for s in self.world.servers) < 2:
            return
        if server.drained != drained:
            server.drained = drained
            server.rotation_since = float("inf") if drained else now
            core.fleet.drain(step.name, drained)

    async def heal(self) -> None:
        """Mend everything, and wait until the client has noticed."""
        loop, checker = self.loop, self.checker
        for server in self.world.servers:
            if server.state != world.UP:
                server.set(world.UP)
        present = {node.name: node for node in self.core.fleet.nodes()}
        for server in self.world.servers:
            if server.drained and server.name in present and present[server.name].drained:
                server.drained = False
                server.rotation_since = loop.time()
                self.core.fleet.drain(server.name, False)
        limit = loop.time() + RECOVERY_S
        while bad := checker.well():
            if loop.time() > limit:
                self.world.violated("recovery", f"{RECOVERY_S:g} s after everything is well: {bad}")
                break
            await asyncio.sleep(0.25)
        self.left = 3
        self.idle = loop.create_future()
        for _ in range(3):
            op = Operation(len(self.world.operations), SEARCH, b"", 3.0)
            op.message = replies.request(SEARCH, op.id)
            self.world.operations.append(op)
            self.call(op)
        await self.idle
        # PINGs and cancelled streams of the last calls may still be under way.
        await asyncio.sleep(0.3)


def freeze() -> None:
    """Keep the garbage collector from walking through what lives for ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 5)
