"""Simulated clusters and the ways to them; implements what replication knows of the fleet.

Decision made here: a request is on its way, read by the server, worked on and answered, and a fault can come at each
of these moments. A server works on a request for as long as the request allows after it has read it, also when nobody
waits for the answer any more, and for `SETTLE_S` at most if the connection has died: that, and no more, is how late
something can still happen.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from haclient.call import Method
from haclient.errors import CallError, Unavailable
from haclient.milvus.status import Flavour
from haclient.replication.clusters import Delivery, Member, Outcome
from tests.simulation.replication import milvus
from tests.simulation.replication.milvus import OWN_PREFIX, Milvus, Refused
from tests.simulation.replication.processes import Process, Processes, current

#: How long a server works on a request whose connection has died, seconds.
SETTLE_S: Final = 0.1
_HOP_S: Final = 0.002
_AGAIN_S: Final = 0.03

UP: Final = "up"
DOWN: Final = "down"
STOPPED: Final = "stop"
NOT_READY: Final = "not ready"

_ROWS: Final = frozenset(("Insert", "Upsert", "Delete"))
_CHANGES: Final = _ROWS | {
    name for name in milvus.REQUESTS if name.startswith(("Alter", "Create", "Drop", "Load", "Re"))
}


def collection_of(name: str, message: bytes) -> str:
    """Return the collection that a request names, "" if none."""
    return getattr(milvus.parse(name, message), "collection_name", "") if name in milvus.REQUESTS else ""


@functools.lru_cache(maxsize=4096)
def marks(name: str, message: bytes) -> frozenset[Any]:
    """Return what a request can be told by: versions of its rows, or the keys that it deletes, or a role's name."""
    if name not in milvus.REQUESTS or collection_of(name, message).startswith(OWN_PREFIX):
        return frozenset()
    request = milvus.parse(name, message)
    if name in ("Insert", "Upsert"):
        return frozenset(milvus.rows_of(name, message).get("version", ()))
    if name == "Delete":
        return frozenset(milvus.deleted_keys(request.expr) or ())
    return frozenset((request.entity.name,)) if name == "CreateRole" else frozenset()


class Flight:
    """One request to one server, from its sending until nothing of it can happen any more.

    Attributes:
        answered: Gets what the sender hears.
        lost: Its connection has died.
        until: Loop time up to which the server may work on it, once it has read it.
    """

    __slots__ = (
        "answered", "database", "done", "lost", "message", "method", "own", "process", "server", "timeout_s", "timer",
        "until",
    )  # fmt: skip

    def __init__(
        self, server: Server, process: Process, method: Method, message: bytes, database: str, timeout_s: float
    ) -> None:
        self.server = server
        self.process = process
        self.method = method
        self.message = message
        self.database = database
        self.timeout_s = timeout_s
        self.answered: asyncio.Future[Delivery] = server.world.loop.create_future()
        #: It is about haclient's own collection, not about a user's.
        self.own = collection_of(method.name, message).startswith(OWN_PREFIX)
        self.lost = False
        self.done = False
        self.until = float("inf")
        self.timer: Any = None

    def answer(self, delivery: Delivery) -> None:
        if not self.answered.done():
            self.answered.set_result(delivery)

    def expire(self) -> None:
        """Give up waiting; the server is told, and may go on all the same."""
        self.answer(Delivery(Outcome.UNANSWERED, reason=f"{self.server.name}: no answer in {self.timeout_s:g} s"))
        self.give_up()

    def give_up(self) -> None:
        """The sender does not wait any more."""
        if not self.done and self.server.world.draw() < 0.5:
            self.server.forget(self)

    def cut(self) -> None:
        """The connection dies."""
        if not self.lost:
            self.lost = True
            now = self.server.world.loop.time()
            self.until = min(self.until, now + SETTLE_S)
            self.answer(Delivery(Outcome.LOST, reason=f"{self.server.name}: connection reset by peer"))
            self.give_up()

    def __str__(self) -> str:
        name = collection_of(self.method.name, self.message)
        told = sorted(marks(self.method.name, self.message)) or ""
        return f"{self.method.name} {name} {told} of {self.process.name}"


class Server:
    """One cluster: a Milvus, and all that can happen to it.

    Attributes:
        state: `UP`, `DOWN`, `STOPPED` or `NOT_READY`.
        blocked: It denies writes.
        flaky: Some changes fail with an error that leaves open whether they were made.
        mute: What it answers does not arrive.
        slow: How much longer it takes.
        drained: The operator has taken it out.
        refuses: Marks of requests that it takes for wrong, though others do not.
        dies_of: Marks of requests that kill it.
        armed: How it dies at the next request: before or after carrying it out; "" if it does not.
        emptied: It has lost its disk, and has not been filled again.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.milvus = Milvus(int(world.draw() * (1 << 40)) + (1 << 50))
        self.milvus.draw = world.draw
        self.state = UP
        self.blocked = self.flaky = self.mute = self.drained = self.emptied = False
        self.slow = 1.0
        self.latency = 0.001 + 0.004 * world.draw()
        self.refuses: set[Any] = set()
        self.dies_of: set[Any] = set()
        self.armed = ""
        #: Marks of what it has carried out.
        self.carried: set[Any] = set()
        #: How often the connection died under a request, by its marks or (without any) its bytes.
        self.losses: dict[Any, int] = {}
        self.life = 0
        #: Requests on their way or being worked on, oldest first, and those that arrived while it was stopped.
        self.flights: dict[Flight, None] = {}
        self._piled: list[Flight] = []

    # What happens to it.

    def set(self, state: str) -> None:
        before, self.state = self.state, state
        self.world.say(f"{self.name} is {state}")
        if state == DOWN:
            self.life += 1
            flights, self.flights = self.flights, {}
            self._piled.clear()
            for flight in flights:
                self._stop(flight)
                flight.answer(Delivery(Outcome.LOST, reason=f"{self.name}: connection reset by peer"))
        if before == STOPPED and state == UP:
            self._thaw()

    def crash(self, down_s: float, *, empty: bool = False) -> None:
        """Die, and come back after a while."""
        self.set(DOWN)
        if empty:
            self.milvus = Milvus(self.milvus.clock)
            self.milvus.draw = self.world.draw
            self.emptied = True
        self.world.later(down_s, self._restart, self.life)

    def _restart(self, life: int) -> None:
        if self.life == life and self.state == DOWN:
            self.set(NOT_READY)
            self.world.later(0.05, self._ready, life)

    def _ready(self, life: int) -> None:
        if self.life == life and self.state == NOT_READY:
            self.set(UP)

    def reset(self) -> None:
        """Every connection dies; what was being worked on may be finished, for a while."""
        for flight in list(self.flights):
            flight.cut()

    def forget(self, flight: Flight) -> None:
        """Stop working on a request."""
        self._stop(flight)
        self.flights.pop(flight, None)
        if flight in self._piled:
            self._piled.remove(flight)

    @staticmethod
    def _stop(flight: Flight) -> None:
        flight.done = True
        if flight.timer is not None:
            flight.timer.cancel()

    def _thaw(self) -> None:
        """Read what has piled up; it is carried out in any order, as late as each request allows."""
        piled, self._piled = self._piled, []
        for flight in piled:
            self._read(flight, late=True)

    # One request.

    def take(self, flight: Flight) -> None:
        """Let a request set out."""
        world = self.world
        if self.state == DOWN:
            refused = Delivery(Outcome.LATER, reason=f"{self.name}: connection refused", sent=False)
            flight.done = True
            world.later(0.0003, flight.answer, refused)
            return
        self.flights[flight] = None
        flight.timer = world.later(self.latency * (0.2 + world.draw()), self._arrive, flight)

    def _arrive(self, flight: Flight) -> None:
        if self.state == STOPPED:
            self._piled.append(flight)
        else:
            self._read(flight, late=False)

    def _read(self, flight: Flight, late: bool) -> None:
        world = self.world
        now = world.loop.time()
        flight.until = now + (SETTLE_S if flight.lost else flight.timeout_s)
        if self.state == NOT_READY:
            later = Delivery(Outcome.LATER, reason="Milvus Proxy is not ready yet", code=1, sent=False)
            self._reply(flight, later)
            return
        took = self.latency * (0.2 + world.draw()) * self.slow
        if late:
            took += flight.timeout_s * world.draw() * world.draw()
        flight.timer = world.at(min(now + took, flight.until), self._work, flight)

    def _work(self, flight: Flight) -> None:
        if self.state == STOPPED:
            self._piled.append(flight)
            return
        if flight.until < self.world.loop.time():
            # Its connection has died meanwhile, and its time is over.
            self.forget(flight)
            return
        name = flight.method.name
        cursed = self.dies_of and not self.dies_of.isdisjoint(marks(name, flight.message))
        armed = self.armed if name in _CHANGES else ""
        if armed:
            self.armed = ""
        if armed == "before" or (cursed and self.world.draw() < 0.5):
            self.crash(0.1 + 0.3 * self.world.draw())
            return
        delivery = self._carry_out(flight, name)
        if armed == "after" or cursed:
            self.crash(0.1 + 0.3 * self.world.draw())
        else:
            self._reply(flight, delivery)

    def _carry_out(self, flight: Flight, name: str) -> Delivery:
        world = self.world
        if self.blocked and name in _ROWS:
            return Delivery(Outcome.LATER, reason="memory quota exceeded", code=9, blocked=True, sent=False)
        if self.flaky and name in _CHANGES and world.draw() < 0.5:
            if world.draw() < 0.5:
                self._execute(flight, name)
            return Delivery(Outcome.LATER, reason="fail to get shard leader: channel not available", code=503)
        return self._execute(flight, name)

    def _execute(self, flight: Flight, name: str) -> Delivery:
        world = self.world
        try:
            if self.refuses and not self.refuses.isdisjoint(marks(name, flight.message)):
                raise Refused(1100, "the length exceeds max length of the field")
            reply = self.milvus.execute(name, flight.message, flight.database)
            self.carried |= marks(name, flight.message)
            if twice := self.milvus.twice:
                world.violated("duplicate", f"{self.name} has keys {sorted(twice)} twice after {flight}")
                twice.clear()
        except Refused as error:
            if world.trace:
                world.say(f"{self.name} refuses {flight}: {error}")
            reply = milvus.failure(name, error.code, error.reason, error.error_code)
            return Delivery(Outcome.REFUSED, reply, error.reason, error.code)
        if world.trace and name in _CHANGES:
            world.say(f"{self.name} has carried out {flight}")
        return Delivery(Outcome.DONE, reply)

    def _reply(self, flight: Flight, delivery: Delivery) -> None:
        self._stop(flight)
        flight.done = True
        if self.mute:
            self.flights.pop(flight, None)
        else:
            flight.timer = self.world.later(self.latency * (0.2 + self.world.draw()), self._landed, flight, delivery)

    def _landed(self, flight: Flight, delivery: Delivery) -> None:
        self.flights.pop(flight, None)
        flight.answer(delivery)


class World:
    """All servers, and what was seen of a run.

    Attributes:
        far: Name of the cluster that follows the others as configured, "" if there is none.
        violations: What did not hold: the invariant, and what happened.
        members: The fleet as every process sees it.
        sent: Looks at each request that sets out.
    """

    def __init__(self, loop: Processes, rng: random.Random, clusters: Sequence[str], far: str, trace: bool) -> None:
        self.far = far
        self.loop = loop
        self.draw = rng.random
        self.trace = trace
        self.violations: list[tuple[str, str]] = []
        self.servers = {name: Server(self, name) for name in (*clusters, *filter(None, (far,)))}
        self.members: list[Member] = []
        self.look()
        self.sent: Callable[[Flight], None] = lambda flight: None
        self.deliveries = 0

    def say(self, text: str) -> None:
        if self.trace:
            print(f"{self.loop.time() - 1000:9.4f}  {text}")

    def violated(self, invariant: str, text: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.append((invariant, f"at {self.loop.time() - 1000:.4f}: {text}"))
        self.say(f"VIOLATION {invariant}: {text}")

    def later(self, delay: float, callback: Callable[..., object], *arguments: object) -> Any:
        """Do something that belongs to no process."""
        return self.loop.call_later(delay, callback, *arguments, context=self.loop.world)

    def at(self, when: float, callback: Callable[..., object], *arguments: object) -> Any:
        """Do something that belongs to no process."""
        return self.loop.call_at(when, callback, *arguments, context=self.loop.world)

    def look(self) -> None:
        """Note who is drained."""
        self.members = [
            Member(one.name, one.drained, Flavour.REAL, "2.3.5", one.name == self.far) for one in self.servers.values()
        ]

    def died(self, process: Process) -> None:
        """Cut the connections of a process that is gone."""
        for server in self.servers.values():
            for flight in list(server.flights):
                if flight.process is process:
                    flight.cut()


class Ways:
    """One process' ways to the clusters; implements `haclient.replication.clusters.Clusters`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def members(self) -> Sequence[Member]:
        return self._world.members

    async def deliver(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Delivery:
        world = self._world
        flight = self._flight(cluster, method, message, database, timeout_s)
        world.deliveries += 1
        if world.trace:
            world.say(f"{flight} to {cluster}")
        world.sent(flight)
        return await self._send(flight)

    def _flight(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> Flight:
        process = current()
        assert process is not None
        return Flight(self._world.servers[cluster], process, method, message, database, timeout_s)

    async def _send(self, flight: Flight) -> Delivery:
        loop = self._world.loop
        timer = loop.call_later(flight.timeout_s, flight.expire)
        flight.server.take(flight)
        try:
            delivery = await flight.answered
            if delivery.outcome is Outcome.LOST:
                what = marks(flight.method.name, flight.message) or flight.message
                flight.server.losses[what] = flight.server.losses.get(what, 0) + 1
            return delivery
        finally:
            timer.cancel()
            if not flight.answered.done() or flight.answered.cancelled():
                flight.give_up()

    async def ask(self, cluster: str, method: Method, message: bytes, database: str, timeout_s: float) -> bytes:
        loop = self._world.loop
        deadline = loop.time() + timeout_s
        while (left := deadline - loop.time()) > 0:
            flight = self._flight(cluster, method, message, database, left)
            delivery = await self._send(flight)
            if delivery.outcome is Outcome.DONE:
                return delivery.reply
            if delivery.outcome is Outcome.REFUSED:
                raise CallError(delivery.reason, code=delivery.code)
            await asyncio.sleep(min(_AGAIN_S, max(deadline - loop.time(), 0.0)))
        raise Unavailable(f"{cluster}: no answer to {method.name} in {timeout_s:g} s")
