"""The simulated servers and the transports that lead to them.

Decision made here: the seam is `haclient.call.Transport`. Above it everything is the real client; below it a server is
one of a few states, an attempt is one timer, and every effect of a write is counted where it happens.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from haclient.call import Metadata, Method, Outcome, Reply
from haclient.config import ClusterConfig, EndpointConfig
from haclient.errors import AttemptTimeout, ConnectFailed, ConnectionLost, StreamReset, TransportClosed, WireError
from tests.simulation import replies
from tests.virtual_time import VirtualTimeLoop

UP: Final = "up"
SLOW: Final = "slow"
REFUSING: Final = "refusing"
STOPPED: Final = "stopped"
RESETTING: Final = "resetting"
GOING: Final = "going away"
NOT_READY: Final = "not ready"
UNLOADED: Final = "unloaded"
LOST: Final = "lost"
WRONG: Final = "wrong data"
LIMITED: Final = "rate limited"
BLOCKED: Final = "write blocked"
ODD: Final = "ambiguous errors"
OFFLINE: Final = "query node offline"
UNAVAILABLE: Final = "unavailable"
DENYING: Final = "unauthenticated"

#: States in which a server answers every read rightly and in time.
GOOD: Final = frozenset((UP, BLOCKED))
#: States in which no probe that reads can succeed.
DEAD: Final = frozenset((REFUSING, STOPPED, RESETTING, NOT_READY, OFFLINE, UNAVAILABLE))

#: States that are no cause to take an endpoint out: the collection, the quota or the user is at fault.
HARMLESS: Final = frozenset((UP, UNLOADED, LOST, WRONG, LIMITED, BLOCKED, DENYING))

_CONNECT_S: Final = 2.0
_READS: Final = frozenset(("Search", "Query"))
_WRITES: Final = frozenset(("Insert", "Upsert", "Delete"))

# What a state answers, where it is the same for all methods, for reads, for writes.
_ALL: Final = {NOT_READY: replies.NOT_READY, DENYING: replies.UNAUTHENTICATED}
_READ: Final = {
    UNLOADED: replies.NOT_LOADED,
    LOST: replies.NOT_FOUND,
    LIMITED: replies.RATE_LIMITED,
    ODD: replies.ODD,
    OFFLINE: replies.OFFLINE,
    UNAVAILABLE: replies.UNAVAILABLE,
}
_WRITE: Final = {**_READ, BLOCKED: replies.WRITE_DENIED}
del _WRITE[UNLOADED]
#: Errors of writes after which they may have happened all the same.
_PERHAPS: Final = frozenset((ODD, OFFLINE, UNAVAILABLE))


class Operation:
    """One call of the application, and what the servers saw of it."""

    __slots__ = (
        "active", "cancelled", "ended", "executions", "id", "idempotent", "message", "method", "mistake", "oks",
        "outcome", "page", "poison", "seen", "sent", "started", "task", "timeout", "timestamp",
    )  # fmt: skip

    def __init__(self, op_id: int, method: Method, message: bytes, timeout: float | None) -> None:
        self.id = op_id
        self.method = method
        self.message = message
        self.timeout = timeout
        self.poison = self.mistake = self.page = self.cancelled = False
        self.idempotent = True
        self.timestamp = 0
        self.started = self.ended = -1.0
        self.outcome: Any = None
        self.task: asyncio.Task[None] | None = None
        #: Every attempt, as endpoint names in order; those under way; executions; successes handed to the client.
        self.seen: list[str] = []
        self.active: list[Handle] = []
        self.executions = 0
        self.oks = 0
        self.sent = 0

    def __str__(self) -> str:
        marks = "".join(f" {m}" for m in ("poison", "mistake", "page") if getattr(self, m))
        return f"op {self.id} {self.method.name}{marks}"


class Server:
    """One Milvus process."""

    def __init__(self, world: World, index: int, cluster: int) -> None:
        self.world = world
        self.index = index
        self.name = f"s{index}"
        self.cluster = cluster
        self.state = UP
        self.latency = 0.002 + 0.01 * world.draw()
        self.slow = 1.0
        #: Since when it has been good without a break; infinity while it is not.
        self.good_since = float("-inf")
        self.good_until = float("inf")
        self.since = 0.0
        #: Until when it last gave cause to be taken out.
        self.harmed_until = float("-inf")
        #: Since when it has been in rotation without a break.
        self.rotation_since = float("-inf")
        self.drained = False
        self.incarnation = 0
        self.epoch = 0
        self.transports: list[Transport] = []
        self.frozen: list[Handle] = []
        self.pings: list[tuple[Transport, Callable[[float | WireError], None]]] = []
        #: Loop time at which a client first heard that it cannot serve the collection, while that lasts.
        self.known_unready: float | None = None
        self.described, self.listed = replies.catalogue(cluster, world.auto_id)

    def set(self, state: str) -> None:
        """Go over to another state."""
        before, self.state = self.state, state
        now = self.world.loop._clock
        self.epoch += 1
        self.since = now
        self.known_unready = None
        if state != SLOW:
            self.slow = 1.0
        if before not in HARMLESS:
            self.harmed_until = now
        if self.world.trace:
            self.world.say(f"{self.name} is {state}")
        if state in GOOD:
            if before not in GOOD:
                self.good_since, self.good_until = now, float("inf")
        elif before in GOOD:
            self.good_since, self.good_until = float("inf"), now
        if state == REFUSING:
            self.incarnation += 1
            self._kill()
        if before == STOPPED:
            self._thaw()

    def crash(self, down_s: float) -> None:
        """Die now; come back after a while, not ready at first."""
        self.set(REFUSING)
        epoch = self.epoch
        loop = self.world.loop
        loop.call_later(down_s, self._restart, epoch)

    def _restart(self, epoch: int) -> None:
        if self.epoch == epoch:
            self.set(NOT_READY)
            self.world.loop.call_later(0.2, self._ready, self.epoch)

    def _ready(self, epoch: int) -> None:
        if self.epoch == epoch:
            self.set(UP)

    def _kill(self) -> None:
        self.frozen.clear()
        for transport in self.transports:
            for handle in list(transport.active):
                if handle in transport.active:
                    if handle.connecting:
                        handle.finish(ConnectFailed(f"{self.name}: connection refused"))
                    else:
                        handle.finish(ConnectionLost(f"{self.name}: connection reset by peer", sent=True))
        pings, self.pings = self.pings, []
        for transport, done in pings:
            if not transport.closed:
                done(ConnectionLost(f"{self.name}: gone", sent=True))

    def _thaw(self) -> None:
        frozen, self.frozen = self.frozen, []
        for handle in frozen:
            if handle.done is not None:
                handle.again(self.latency)
            elif handle.name in _WRITES and not handle.connecting:
                self.answer(handle.name, handle.message, handle.op)  # it had been received; nobody waits any more
        pings, self.pings = self.pings, []
        for _, done in pings:
            self.world.loop.call_later(0.001, done, 0.5)

    def answer(self, name: str, message: bytes, op: Operation | None) -> Reply:
        """What it replies now; the effects of a write happen here."""
        state = self.state
        found = _ALL.get(state)
        if found is not None:
            return found
        if name in _READS:
            found = _READ.get(state)
            if found is not None:
                if op is not None and op.mistake and state == ODD:
                    return replies.MISTAKE
                return found
            if op is None:
                if message == replies.CANARY:
                    return replies.WRONG_ROWS if state == WRONG else replies.RIGHT_ROWS
                return replies.RIGHT_ROWS
            return replies.MISTAKE if op.mistake else replies.hit(self.index, state == WRONG)
        if name in _WRITES:
            assert op is not None
            found = _WRITE.get(state)
            if op.mistake and found is None:
                return replies.MISTAKE
            if found is not None:
                if state in _PERHAPS and self.world.draw() < 0.5:
                    op.executions += 1
                return found
            op.executions += 1
            return self.world.mutated(self)
        if name == "Connect":
            return replies.UNAVAILABLE if state == UNAVAILABLE else replies.CONNECTED
        if name == "GetVersion":
            return replies.VERSION
        if name == "ShowCollections":
            return replies.NO_COLLECTIONS if state == LOST else self.listed
        return replies.NOT_FOUND if state == LOST else self.described


class Handle:
    """One unary call under way."""

    __slots__ = ("begun", "connecting", "deadline", "done", "message", "name", "op", "timer", "transport")

    def __init__(
        self, transport: Transport, name: str, message: bytes, deadline: float, done: Callable[[Outcome], None]
    ) -> None:
        self.transport = transport
        self.name = name
        self.message = message
        self.begun = transport.world.loop._clock
        self.deadline = deadline
        self.done: Callable[[Outcome], None] | None = done
        self.op: Operation | None = None
        self.connecting = False
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        if self.done is not None:
            self.done = None
            self._end()
            if self.op is not None:
                world = self.transport.world
                world.check_end(self.op, not self.connecting)
                if world.trace:
                    world.say(f"{self.op} cancelled on {self.transport.server.name}")

    def finish(self, outcome: Outcome) -> None:
        """Hand the outcome over, once."""
        done = self.done
        if done is None:
            return
        self.done = None
        self._end()
        if self.op is not None:
            self.transport.world.landed(self, outcome)
        done(outcome)

    def _end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.transport.active.pop(self, None)
        if self.op is not None:
            self.op.active.remove(self)

    def again(self, delay: float) -> None:
        """Be served after ``delay`` seconds, or time out first."""
        if self.timer is not None:
            self.timer.cancel()
        loop = self.transport.world.loop
        now = loop._clock
        if now + delay < self.deadline:
            self.timer = loop.call_at(now + delay, self.serve)
        else:
            self.timer = loop.call_at(self.deadline, self.expire)

    def expire(self) -> None:
        self.finish(AttemptTimeout("no answer in time", sent=not self.connecting))

    def serve(self) -> None:
        """The request has reached the server."""
        transport = self.transport
        server = transport.server
        state = server.state
        if state == STOPPED:
            self.freeze()
            return
        self.connecting = False
        transport.incarnation = server.incarnation
        op = self.op
        if state == GOING:
            self.finish(StreamReset(f"{server.name}: going away", code=7, sent=False))
            return
        if op is not None and op.poison:
            server.world.crashed(server, op, server.world.loop._clock - self.begun, len(op.active) > 1)
            return
        if state == RESETTING:
            if self.name in _WRITES and server.world.draw() < 0.5:
                server.answer(self.name, self.message, op)
            self.finish(ConnectionLost(f"{server.name}: reset", sent=True))
            return
        reply = server.answer(self.name, self.message, op)
        if self.name in _WRITES:
            back = server.latency * 0.5
            loop = server.world.loop
            if loop._clock + back < self.deadline:
                self.timer = loop.call_later(back, self.finish, reply)
            else:
                self.timer = loop.call_at(self.deadline, self.expire)
        else:
            self.finish(reply)

    def freeze(self) -> None:
        """Wait for a stopped server; only time can end it."""
        transport = self.transport
        transport.server.frozen.append(self)
        loop = transport.world.loop
        if self.connecting and loop._clock + _CONNECT_S < self.deadline:
            self.timer = loop.call_later(_CONNECT_S, self.finish, ConnectFailed(f"{transport.server.name}: no answer"))
        else:
            self.timer = loop.call_at(self.deadline, self.expire)


class Transport:
    """One endpoint as the core sees it; implements `haclient.call.Transport`."""

    def __init__(self, world: World, server: Server, probe: bool) -> None:
        self.world = world
        self.server = server
        self.probe = probe
        self.closed = False
        self.incarnation = -1
        #: In the order started: the order of a set would change from run to run.
        self.active: dict[Handle, None] = {}
        server.transports.append(self)

    def start(
        self, path: str, message: bytes, metadata: Metadata, timeout_s: float, done: Callable[[Outcome], None]
    ) -> Handle:
        world, server = self.world, self.server
        loop = world.loop
        handle = Handle(self, replies.NAMES[path], message, loop._clock + timeout_s, done)
        if not self.probe:
            handle.op = world.starting(self, handle)
        self.active[handle] = None
        state = server.state
        if self.closed:
            handle.timer = loop.call_later(0.0, handle.finish, TransportClosed())
        elif state == REFUSING:
            handle.connecting = True
            handle.timer = loop.call_later(0.0003, handle.finish, ConnectFailed(f"{server.name}: connection refused"))
        else:
            delay = server.latency * (0.5 + world.draw()) * server.slow
            if self.incarnation != server.incarnation:
                handle.connecting = True
                delay += 0.001
            if state == STOPPED:
                handle.freeze()
            else:
                handle.again(delay)
        return handle

    def ping(self, done: Callable[[float | WireError], None]) -> None:
        state = self.server.state
        loop = self.world.loop
        if self.closed:
            loop.call_later(0.0, done, TransportClosed())
        elif state == REFUSING:
            loop.call_later(0.0003, done, ConnectFailed(f"{self.server.name}: connection refused"))
        elif state == STOPPED:
            self.server.pings.append((self, done))
        else:
            loop.call_later(0.001, done, 0.001)

    async def aclose(self) -> None:
        self.closed = True
        for handle in list(self.active):
            handle.finish(TransportClosed())


class World:
    """All servers, and everything that is recorded of a run."""

    def __init__(self, loop: VirtualTimeLoop, rng: random.Random, auto_id: bool, trace: bool) -> None:
        self.loop = loop
        self.draw = rng.random
        self.auto_id = auto_id
        self.trace = trace
        self.servers: list[Server] = []
        self.operations: list[Operation] = []
        self.by_message: dict[bytes, Operation] = {}
        self.transports: list[Transport] = []
        self.violations: list[tuple[str, str]] = []
        self.crash_times: list[tuple[float, int]] = []
        self.timestamps: dict[int, int] = {}
        #: Every attempt: when, of which operation, to which server.
        self.log: list[tuple[float, int, int]] = []
        self._next_timestamp = 1 << 60
        #: Looks at each attempt as it starts; see `tests.simulation.checker`.
        self.check_start: Callable[[Transport, Operation, Handle], None] = lambda transport, op, handle: None
        self.check_end: Callable[[Operation, bool], None] = lambda op, sent: None
        #: Whether the client tries more than one suspect at once, because the first takes long.
        self.disturbed: Callable[[], bool] = lambda: False
        self.on_crash: Callable[[Server, Operation], None] = lambda server, op: None

    def say(self, text: str) -> None:
        print(f"{self.loop._clock:9.4f}  {text}")

    def violated(self, invariant: str, text: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.append((invariant, f"at {self.loop._clock:.4f}: {text}"))
        if self.trace:
            self.say(f"VIOLATION {invariant}: {text}")

    def connect(self, cluster: ClusterConfig, endpoint: EndpointConfig, probe: bool) -> Transport:
        """The core's way to its servers."""
        transport = Transport(self, self.servers[int(endpoint.name[1:])], probe)
        self.transports.append(transport)
        return transport

    def stamp(self, cluster: int) -> int:
        """A new timestamp of one cluster."""
        self._next_timestamp += 1 << 18
        self.timestamps[self._next_timestamp] = cluster
        return self._next_timestamp

    def mutated(self, server: Server) -> Reply:
        return replies.mutation(self.stamp(server.cluster))

    def starting(self, transport: Transport, handle: Handle) -> Operation:
        """An attempt begins."""
        message = handle.message
        op = self.by_message.get(message)
        if op is None:
            op = self.operations[replies.op_of(message)]
        if self.trace:
            self.say(f"{op} -> {transport.server.name}")
        self.log.append((self.loop._clock, op.id, transport.server.index))
        self.check_start(transport, op, handle)
        op.seen.append(transport.server.name)
        op.active.append(handle)
        return op

    def landed(self, handle: Handle, outcome: Outcome) -> None:
        """An attempt has ended by itself."""
        op = handle.op
        assert op is not None
        server = handle.transport.server
        if type(outcome) is Reply:
            self.check_end(op, True)
            if outcome.code == 0 and outcome.message.startswith(replies.OK):
                op.oks += 1
            elif outcome is replies.NOT_LOADED and server.known_unready is None and server.state == UNLOADED:
                server.known_unready = self.loop._clock
        else:
            # On what died with its connection nobody works any more.
            self.check_end(op, outcome.sent and not isinstance(outcome, ConnectionLost))  # type: ignore[union-attr]
        if self.trace:
            text = f"{outcome.code} {outcome.message!r}" if type(outcome) is Reply else f"{outcome!r}"
            self.say(f"{op} <- {server.name}: {text}")

    def crashed(self, server: Server, op: Operation, took: float, hedged: bool) -> None:
        # One that hung there so long, or beside one that did, is not told from others that died with it; and what
        # was hedged before anything was known of it may kill where its hedge is too.
        if took < 0.5 and not hedged and not self.disturbed():
            self.crash_times.append((self.loop._clock, op.id))
        self.on_crash(server, op)
        server.crash(0.3 + 0.5 * self.draw())
