"""What must hold in every run.

Decision made here: an invariant is judged by what the servers saw and what the caller got, and only where that cannot
tell by the core's own records (which endpoint it believed to be shut). Each has a name; a planted bug must fall to one.

    deadline      no call outlives its deadline
    leak          after everything: no task, timer, stream, flight, permit or lock is left
    read          while one server serves throughout, a read with enough time succeeds
    write         a write that must not be repeated is executed once at most; OK means executed, failed means not
    hedged-write  a write is never under way twice at once
    same          an attempt never goes where the call has been while another healthy endpoint is left
    poison        a request that kills servers kills two at most
    budget        retries and hedges stay within their budget
    cause         a breaker opens only if the server gave cause; mistakes of users and our own cancelling are none
    shut          nothing goes to an endpoint known to be down, or unready, while a healthy one is left
    trial         while half open, no more calls are under way than there are permits
    reopened      a breaker does not let calls to a server that still cannot serve them
    recovery      once all is well again, every endpoint is in use within a bounded time
    success       any success beats any failure
    loser         when a call ends, none of its attempts is under way any more
    drained       nothing goes to a drained or refused endpoint
    timestamp     no cluster sees a timestamp that another gave out
    pin           what belongs to one cluster does not change cluster
    wrong         a server with wrong data gives no answers once the canary has found it out
    attempts      an error lists every attempt made
    start         one live endpoint is enough to start, and no dead one delays it
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from haclient.call import Kind, Reply
from haclient.core import Core
from haclient.errors import (
    CallError,
    ConfigError,
    DeadlineExceeded,
    PoisonedCall,
    Unavailable,
    WriteRefused,
)
from haclient.events import BudgetExhausted, CallQuarantined, DataAlarm, EndpointChanged, Event
from haclient.fleet import breaker
from haclient.fleet.node import Node
from haclient.milvus.requests import fingerprint, inspect
from tests.simulation import replies
from tests.simulation.scenario import GENEROUS_S, Scenario
from tests.simulation.world import DEAD, GOOD, HARMLESS, REFUSING, RESETTING, WRONG, Operation, Server, Transport, World

if TYPE_CHECKING:
    from tests.simulation.world import Handle

KEY: Final = ("", replies.COLLECTION)

#: How long after the last harm a breaker may still open because of it, seconds.
_AFTER_S: Final = 1.5
#: A look at a server that is well lasts no longer than this, seconds.
_LOOK_S: Final = 0.6


class Checker:
    """Judges one run."""

    def __init__(self, scenario: Scenario, run_world: World) -> None:
        self.scenario = scenario
        self.world = run_world
        self.core: Core | None = None
        self.calls = self.extras = self.reconfigured = 0
        self.first_call: float | None = None
        self.exhausted: list[float] = []
        self.convicted: list[tuple[float, str]] = []
        self.generations: dict[Handle, int] = {}
        self.pages: set[int] = set()
        self.rotation_changed = False
        self.canary = bool(scenario.configs[0].health.canary)
        run_world.check_start = self.starting
        run_world.check_end = self.attempt_ended

    # As it happens.

    def listen(self, event: Event) -> None:
        """Take the core's events."""
        world = self.world
        kind = type(event)
        if kind is EndpointChanged:
            server = world.servers[int(event.endpoint[1:])]  # type: ignore[attr-defined]
            self._changed(server, event.before, event.after, event.reason)  # type: ignore[attr-defined]
        elif kind is BudgetExhausted:
            self.exhausted.append(event.at)
        elif kind is CallQuarantined:
            self.convicted.append((event.at, event.fingerprint))
        elif kind is DataAlarm:
            server = world.servers[int(event.endpoint[1:])]  # type: ignore[attr-defined]
            if server.state == WRONG and server.known_unready is None:
                server.known_unready = event.at
        if world.trace:
            world.say(f"  {event}")

    def _changed(self, server: Server, before: str, after: str, reason: str) -> None:
        now = self.world.loop._clock
        if after == "down" and before != "down":
            if server.state in HARMLESS and now - server.harmed_until > _AFTER_S:
                self.world.violated("cause", f"{server.name} was opened while {server.state}: {reason}")
        elif before == "down" and not server.drained and server.state in DEAD and now - server.since > _LOOK_S:
            self.world.violated("reopened", f"{server.name} went from down to {after} while {server.state}")

    def starting(self, transport: Transport, op: Operation, handle: Handle) -> None:
        """Judge an attempt before it is recorded."""
        world, core = self.world, self.core
        assert core is not None
        server = transport.server
        if op.active:
            if op.method.kind is Kind.WRITE:
                world.violated("hedged-write", f"{op} is under way on {op.active[0].transport.server.name} already")
            if any(other.transport is transport for other in op.active):
                world.violated("same", f"{op} is under way on {server.name} already")
        node: Node | None = None
        others: list[Node] = []
        for other in core.fleet.nodes():
            gate = other.gate
            if gate.state == breaker.HALF_OPEN and not 0 <= gate._permits <= gate.settings.trial_permits:
                world.violated("trial", f"{other.name} has {gate._permits} permits of {gate.settings.trial_permits}")
            if other.data is transport:
                node = other
            elif (
                not other.drained
                and not other.refused
                and not other.denied
                and other.gate.state == breaker.CLOSED
                and other.ready.get(KEY) is not False
                and other.name not in op.seen
            ):
                others.append(other)
        if node is None or server.drained or node.refused:
            world.violated("drained", f"{op} goes to {server.name}, which is out of rotation")
            return
        self.generations[handle] = node.gate.generation
        if op.page:
            self._page(op, server)
        elif len(core.fleet.clusters) > 1 and op.timestamp:
            timestamp = inspect(op.method, handle.message).guarantee_timestamp
            if world.timestamps.get(timestamp, server.cluster) != server.cluster:
                world.violated("timestamp", f"{op} carries a timestamp of another cluster to {server.name}")
        elif others:
            self._better(op, node, server, others, transport)

    def _better(self, op: Operation, node: Node, server: Server, others: list[Node], transport: Transport) -> None:
        violated = self.world.violated
        names = ", ".join(other.name for other in others)
        state = node.gate.state
        if node.name in op.seen:
            violated("same", f"{op} goes to {node.name} again, {names} is left")
        if state == breaker.OPEN:
            violated("shut", f"{op} goes to {node.name}, which is down; {names} is left")
        elif state == breaker.HALF_OPEN:
            generation = node.gate.generation
            under_way = 1 + sum(self.generations.get(h) == generation for h in transport.active)
            if under_way > self.scenario.configs[0].breaker.trial_permits:
                violated("trial", f"{under_way} calls try {node.name} at once; {names} is left")
        if node.ready.get(KEY) is False:
            violated("shut", f"{op} goes to {node.name}, which is not ready; {names} is left")
        known = server.known_unready
        if known is not None and op.started > known and any(self.server(o).state in GOOD for o in others):
            violated("wrong" if server.state == WRONG else "shut", f"{op} goes to {node.name}: {server.state}")
        elif (
            server.state == WRONG
            and self.canary
            and op.started > server.since + 2.6
            and any(self.server(o).state in GOOD for o in others)
        ):
            violated("wrong", f"{op} goes to {node.name}, whose data has been wrong since {server.since:.3f}")

    def _page(self, op: Operation, server: Server) -> None:
        self.pages.add(server.cluster)
        if len(self.pages) > 1 and not self.rotation_changed:
            self.world.violated("pin", f"{op} goes to {server.name}; earlier pages came from another cluster")

    def server(self, node: Node) -> Server:
        return self.world.servers[int(node.name[1:])]

    def attempt_ended(self, op: Operation, sent: bool) -> None:
        """Count what loads the servers."""
        if not sent:
            return
        op.sent += 1
        if op.sent < 2:
            return
        self.extras += 1
        now = self.world.loop._clock
        if self.first_call is None or now - self.first_call > 8.0:
            return
        retry = self.scenario.configs[0].retry
        allowed = max(retry.budget_ratio * self.calls, retry.budget_floor) * (1 + self.reconfigured)
        if self.extras > allowed:
            self.world.violated("budget", f"{self.extras} extra attempts for {self.calls} calls; allowed {allowed}")

    # When a call ends.

    def ended(self, op: Operation, outcome: object) -> None:
        """Judge one call."""
        world = self.world
        violated = world.violated
        now = op.ended = world.loop._clock
        op.outcome = outcome
        timeout = 4.0 if op.timeout is None else op.timeout
        if now > op.started + timeout + 1e-6:
            violated("deadline", f"{op} took {now - op.started:.3f} s, allowed {timeout:.3f} s: {outcome!r}")
        if op.active:
            violated("loser", f"{op} has ended, still under way: {[h.transport.server.name for h in op.active]}")
        good = type(outcome) is Reply and outcome.message.startswith(replies.OK) and outcome.code == 0
        if isinstance(outcome, CallError) and [a.endpoint for a in outcome.attempts] != op.seen:
            violated("attempts", f"{op} went to {op.seen}; its error lists {[str(a) for a in outcome.attempts]}")
        if not isinstance(outcome, (Reply, CallError, ConfigError, asyncio.CancelledError)):
            violated("error", f"{op}: {outcome!r}")
        if isinstance(outcome, ConfigError) and self.scenario.stranger < 0:
            violated("error", f"{op}: {outcome!r}")
        if not good and op.oks and not op.cancelled:
            violated("success", f"{op} failed although a server had answered it: {outcome!r}")
        if op.method.kind is not Kind.WRITE and not op.poison:
            self._read(op, outcome, good, timeout)

    def _write(self, op: Operation) -> None:
        """Judge a write once all is over: a server that was frozen may execute it long after its caller has left."""
        violated, outcome = self.world.violated, op.outcome
        good = type(outcome) is Reply and outcome.code == 0 and outcome.message.startswith(replies.OK)
        if not op.idempotent:
            if op.executions > 1:
                violated("write", f"{op} was executed {op.executions} times")
            if op.executions and isinstance(outcome, (Unavailable, DeadlineExceeded, WriteRefused)):
                violated("write", f"{op} was executed, and reported as failed: {outcome!r}")
        if good and not op.executions:
            violated("write", f"{op} was confirmed and not executed")

    def _read(self, op: Operation, outcome: object, good: bool, timeout: float) -> None:
        if good or op.cancelled or timeout < GENEROUS_S or op.page or op.timestamp:
            return
        if op.mistake and type(outcome) is Reply:
            return
        if isinstance(outcome, ConfigError) or outcome is replies.UNAUTHENTICATED:
            return
        start, end = op.started, op.ended
        serving = [s for s in self.world.servers if s.good_since <= start and s.rotation_since <= start]
        if self.scenario.stranger >= 0 and self.core is not None:
            # Whoever was met first is the cluster; the others are refused, well or not.
            refused = {node.name for node in self.core.fleet.nodes() if node.refused}
            serving = [s for s in serving if s.index != self.scenario.stranger and s.name not in refused]
        if outcome is replies.NOT_FOUND:
            # Said by one, and by the other when it was last looked at: believed until the next look.
            serving = [s for s in serving if s.good_since <= start - 1.5]
        if not serving or any(start <= at <= end for at in self.exhausted):
            return
        deadly = {f.server for f in self.scenario.faults if f.state in (RESETTING, REFUSING, "restart")}
        if isinstance(outcome, PoisonedCall) and len(deadly) > 1:
            return  # two connections died under it by chance: it looks like a killer
        names = ", ".join(s.name for s in serving)
        self.world.violated("read", f"{op} failed although {names} served throughout: {outcome!r}")

    # When everything is over.

    def crashed(self, op: Operation) -> None:
        """Judge a death by poison."""
        now = self.world.loop._clock
        mark = fingerprint(op.method, op.message).hex()
        if any(at < now < at + 20.0 and convict == mark for at, convict in self.convicted):
            self.world.violated("poison", f"{op} kills another server although it was convicted")
        if len(self.world.crash_times) > 2:
            self.world.violated("poison", f"{op} kills server number {len(self.world.crash_times)}")

    def settled(self) -> None:
        """Judge what is left once nothing is under way."""
        world, core = self.world, self.core
        assert core is not None
        for op in world.operations:
            if op.method.kind is Kind.WRITE:
                self._write(op)
        for node in core.fleet.nodes():
            if node.flights:
                world.violated("leak", f"flights on {node.name}: {len(node.flights)}")
            if node.pinging:
                world.violated("leak", f"{node.name} waits for a PING for ever")
            gate = node.gate
            if gate.state == breaker.HALF_OPEN and gate._permits != gate.settings.trial_permits:
                world.violated("leak", f"{node.name} has {gate._permits} permits of {gate.settings.trial_permits}")
        if len(core._hedging.alarms):
            world.violated("leak", f"alarms: {len(core._hedging.alarms)}")
        for transport in world.transports:
            if not transport.probe and transport.active:
                world.violated("leak", f"streams on {transport.server.name}: {len(transport.active)}")

    def well(self) -> str:
        """Say what is not well again yet, "" if all is."""
        core = self.core
        assert core is not None
        bad = []
        now = self.world.loop._clock
        for node in core.fleet.nodes():
            if node.refused:
                continue
            state = node.state(now).value
            if state not in ("up", "probation") or node.ready.get(KEY) is False:
                bad.append(f"{node.name} is {state}, ready: {node.ready}, last error: {node.last_error}")
        return "; ".join(bad)
