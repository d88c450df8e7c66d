"""The core: fleet, policies and wire put together. Every front door stands on it.

The stack of a call, outermost first; each layer says why it stands where it does:

    observe      counts what the application saw, so it must see everything below
    retry        above quarantine and hedge: a retry is a fresh, hedged try
    plan         below retry: before each try, who has caught up by now (only where writes are replicated)
    quarantine   above hedge: a suspect is not hedged
    hedge        above the fleet: each attempt of a race goes to another endpoint
    fleet.send   picks, takes the breaker's permit, rewrites for the cluster and hands the bytes to the wire

A call's deadline is one absolute moment. The race enforces it with the timer it has anyway, and a retry is not
started that would end after it, so no layer of its own is needed for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import final

from haclient.call import Action, Attempt, Call, Kind, Metadata, Method, Reply, Session
from haclient.config import Config, Timeouts
from haclient.errors import CallError, ConfigError, DeadlineExceeded, HAClientError, Unavailable, WriteRefused
from haclient.events import CallFinished, ConfigRejected, EventBus, FailedOver
from haclient.exchange import Exchange
from haclient.external import External
from haclient.fleet.fleet import Fleet, routes_as_write
from haclient.fleet.flight import Flight
from haclient.fleet.keeper import Keeper
from haclient.fleet.look import Dialect
from haclient.fleet.membership import Connect
from haclient.fleet.model import FleetView
from haclient.fleet.probe import MILVUS
from haclient.milvus.requests import Facts, inspect
from haclient.mirror import FleetClusters, Mirror
from haclient.policy.budget import Budget
from haclient.policy.hedge import Hedging
from haclient.policy.quarantine import Quarantine
from haclient.policy.retry import Retrying
from haclient.replication.past import Kept, Past

_TIMEOUT_FIELDS = {
    Kind.READ: "read_s",
    Kind.PROBE: "read_s",
    Kind.SESSION: "read_s",
    Kind.WRITE: "write_s",
    Kind.DDL: "ddl_s",
    Kind.ADMIN: "ddl_s",
    Kind.ACCESS: "ddl_s",
}


@final
class Core:
    """One client's fleet and policies, bound to one event loop.

    Args:
        config: What is configured.
        connect: Makes transports; the wire's, or a simulation's.
        bus: Takes events.
        rng: Source of all randomness.
        loop: The loop to live on.
        clock: Loop time, if there is a finer one than ``loop.time``.
        dialect: What the servers speak.
        wall: Time of day, seconds since 1970; loop time unless given.

    Attributes:
        clusters: The fleet, cluster by cluster, for what replicates or copies.
        mirror: Replicates writes; None unless configured.
        reader: Says which clusters may answer a read; None unless writes are mirrored.
        external: Knows the roles of clusters that replicate among themselves; None unless configured.
    """

    def __init__(
        self,
        config: Config,
        connect: Connect,
        bus: EventBus,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] | None = None,
        dialect: Dialect = MILVUS,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self.loop = loop
        self.bus = bus
        self._rng = rng
        self.fleet = Fleet(config, connect, bus, loop, rng, clock, dialect)
        self.keeper = Keeper(self.fleet, bus, loop, rng)
        self._starting: asyncio.Future[None] | None = None
        self._started = False
        #: Sessions of servers that are haclient proxies.
        self._kept = Kept()
        self._budget = Budget(config.retry.budget_ratio, config.retry.budget_floor)
        self._hedging = Hedging(self.fleet.send, config.hedge, self._budget, loop, bus, self.fleet.doubts.contradicted)
        self._quarantine = Quarantine(self._hedging, config.retry.quarantine_s, loop, bus)
        self._timeouts = _by_kind(config.timeouts)
        self._exchanges: set[asyncio.Task[None]] = set()
        self.clusters = FleetClusters(self.fleet, self._hedging, loop)
        self.mirror: Mirror | None = None
        if config.replication.mode == "mirror":
            time = wall or loop.time
            self.mirror = Mirror(config.replication, self.clusters, self._answer, self.fleet, bus, rng, loop, time)
        self.reader = self.mirror.reader if self.mirror is not None else None
        self.external: External | None = None
        if config.replication.mode == "external":
            self.external = External(self.fleet, self.clusters, self._answer, bus, loop)
        self._stack = self._assemble(config)

    def _assemble(self, config: Config) -> Retrying:
        """Build the stack; what has a memory (budget, latencies, suspects) is kept when the configuration changes."""
        retry = config.retry
        self._budget.ratio, self._budget.floor = retry.budget_ratio, retry.budget_floor
        self._hedging.settings = config.hedge
        self._quarantine.for_s = retry.quarantine_s
        tries = self._quarantine if self.reader is None and self.external is None else self._planned
        return Retrying(tries, self.fleet.untried, retry, self._budget, self.loop, self._rng, self.bus)

    async def start(self) -> None:
        """Probe the endpoints and return as soon as one serves, or none can.

        Concurrent callers share one start.

        Raises:
            ConfigError: Endpoints declared as one cluster are not.
        """
        if self._started:
            return
        if self._starting is None:
            self._starting = self.loop.create_task(self._start())
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except BaseException:
            if starting.done():
                self._starting = None
            raise
        self._started = True

    async def _start(self) -> None:
        await self.keeper.start()
        if self.mirror is not None:
            await self.mirror.start()
        if self.external is not None:
            await self.external.start()

    async def aclose(self) -> None:
        """Stop probing and close every connection; calls under way fail."""
        for task in self._exchanges:
            task.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)
        if self.mirror is not None:
            await self.mirror.aclose()
        if self.external is not None:
            await self.external.aclose()
        await self.keeper.aclose()
        await self.fleet.aclose()
        self._hedging.alarms.close()

    async def request(self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None) -> Reply:
        """Answer one unary call of the application; see `answer`."""
        reply, _ = await self.answer(method, message, metadata, timeout_s)
        return reply

    async def answer(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata,
        timeout_s: float | None,
        facts: Facts | None = None,
    ) -> tuple[Reply, Call]:
        """Answer one unary call of the application, and say how it went.

        Args:
            method: Which RPC.
            message: The serialised request.
            metadata: The application's metadata, without authorisation.
            timeout_s: Time allowed, seconds; None takes the configured one for this kind of method.
            facts: What `inspect` would find in the request, if the caller knows.

        Returns:
            What a server answered (its body or gRPC status may carry an error that is the request's own fault), and
            the call with its attempts.

        Raises:
            CallError: No server could be brought to answer.
            ConfigError: At start-up, see `start`.
        """
        if not self._started or (routes_as_write(method.kind) and self._may_be_one() and self.keeper.meeting):
            timeout_s = await self._start_within(method, timeout_s)
        call = self._call(method, message, metadata, timeout_s, facts)
        start = self.fleet.clock()
        self._budget.deposit(start)
        answering = self._stack(call) if self._read(call) else self._write(call)
        return await self._observe(call, answering, start), call

    def _read(self, call: Call) -> bool:
        """Say whether a call goes to one server, whichever it is, and not to all clusters or the primary."""
        return (self.mirror is None and self.external is None) or not routes_as_write(call.method.kind)

    def _may_be_one(self) -> bool:
        """Say whether a write is allowed only if what looks like several clusters turns out to be one."""
        return self.mirror is None and self.external is None and not self.fleet.single_cluster()

    def _write(self, call: Call) -> Awaitable[Reply]:
        replicated = self.mirror or self.external
        assert replicated is not None
        return replicated.write(call)

    async def _answer(self, call: Call) -> Reply:
        return await self._stack(call)

    async def _planned(self, call: Call) -> Attempt | None:
        """Make one try, as soon as somebody can show what the call has to see."""
        if call.plan is not None:
            await call.plan.ready(call)
        return await self._quarantine(call)

    def lend(self, method: Method, metadata: Metadata, credentials: Metadata, deadline: float) -> Flight | None:
        """Choose an endpoint for a stream that the caller opens there himself; None if all are drained.

        The flight's ``landed`` must be called when the stream ends.
        """
        call = Call(method, b"", metadata, deadline, credentials=credentials)
        call.pin = self.fleet.homes.of(call)
        return self.fleet.lend(call)

    def begin(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata,
        timeout_s: float | None,
        done: Callable[[Reply | HAClientError], None],
        *,
        credentials: Metadata = (),
        session: Session | None = None,
        past: Past | None = None,
    ) -> Exchange:
        """Answer one call of the application by calling back; the core has been started before.

        A call whose first try is answered well makes no task and no future.

        Args:
            method: See `answer`.
            message: See `answer`.
            metadata: See `answer`.
            timeout_s: See `answer`.
            done: Gets the reply or the error, once, unless the exchange is cancelled first.
            credentials: See `haclient.call.Call`.
            session: See `haclient.call.Call`.
            past: See `haclient.call.Call`; this core's own unless given.

        Raises:
            CallError: At once, if the call is not to be sent at all.
        """
        call = self._call(method, message, metadata, timeout_s, past=past)
        call.credentials = credentials
        call.session = session
        exchange = Exchange(self, call, done)
        exchange.start()
        return exchange

    async def _start_within(self, method: Method, timeout_s: float | None) -> float:
        """Start in the time of the call that needs it; return what is left of that time, seconds.

        A read needs one endpoint that serves; a write has to know which endpoints are one cluster.
        """
        allowed = self._timeouts[method.kind] if timeout_s is None else timeout_s
        deadline = self.loop.time() + allowed
        try:
            async with asyncio.timeout_at(deadline):
                await self.start()
                if routes_as_write(method.kind) and self._may_be_one():
                    await self.keeper.met()
        except TimeoutError:
            text = f"{method.name}: the endpoints were still being looked at when its {allowed:g} s were over"
            raise DeadlineExceeded(f"{text}; start the client before it is needed, or allow more time") from None
        return deadline - self.loop.time()

    def _call(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata,
        timeout_s: float | None,
        facts: Facts | None = None,
        past: Past | None = None,
    ) -> Call:
        if facts is None:
            facts = inspect(method, message, metadata)
        if facts.needs_key:
            key = self.fleet.keys.get((facts.database, facts.collection))
            if key is not None:
                facts = inspect(method, message, metadata, key)
        now = self.loop.time()
        if timeout_s is None:
            timeout_s = self._timeouts[method.kind]
        elif timeout_s <= 0:
            raise DeadlineExceeded(f"{method.name}: the timeout given, {timeout_s} s, leaves no time; give more than 0")
        call = Call(
            method,
            message,
            metadata,
            now + timeout_s,
            facts.collection,
            facts.database,
            facts.idempotent,
            facts.hedgeable,
        )
        if facts.guarantee_timestamp > 2 or facts.inner_timestamp > 2:
            call.guarantee_timestamp = max(facts.guarantee_timestamp, facts.inner_timestamp)
            call.pin = self.fleet.owner(facts.guarantee_timestamp)
        if self.reader is not None:
            self.reader.enter(call, past)
        elif self._kept.tokens:
            call.metadata = self._kept.add(call.database, call.collection, metadata)
        if facts.pinned and call.pin is None:
            call.pin = self.fleet.homes.of(call, facts.collection_id)
        if method.kind is Kind.READ:
            if self.reader is not None:
                call.plan = self.reader.plan(call, facts)
            elif self.external is not None:
                call.plan = self.external.plan(call, facts)
        elif routes_as_write(method.kind) and self._may_be_one():
            raise _refused(call, self.fleet)
        return call

    async def _observe(self, call: Call, answering: Awaitable[Reply], start: float) -> Reply:
        """Count what the application saw. Outermost: it must see everything below."""
        outcome = "cancelled"
        try:
            reply = await answering
            outcome = "ok" if self._went_well(call, reply) else "error"
        except (Unavailable, DeadlineExceeded) as error:
            outcome = type(error).__name__
            rest = self.fleet.left_out(call)
            if not rest:
                raise
            raise type(error)(f"{error.summary} Not tried: {rest}.", error.attempts, code=error.code) from None
        except CallError as error:
            outcome = type(error).__name__
            raise
        else:
            return self._learnt(call, reply)
        finally:
            self._report(call, outcome, start)

    def _went_well(self, call: Call, reply: Reply) -> bool:
        if call.attempts:
            return call.attempts[-1].action is Action.OK or winner(call) is not None
        return self.mirror is not None and self.mirror.went_well(call.method, reply)

    def _learnt(self, call: Call, reply: Reply) -> Reply:
        """Learn from an answer, and return it as the application is to see it."""
        self.fleet.learn(call, reply)
        if self.reader is not None:
            won = winner(call)
            if won is not None:
                reply = self.reader.answered(call, won.cluster, reply)
        elif reply.trailers:
            self._kept.keep(call.database, call.collection, reply.trailers)
        return reply if self.mirror is None else self.mirror.shown(call, reply)

    def _report(self, call: Call, outcome: str, start: float) -> None:
        took_s = self.fleet.clock() - start
        if self.bus.counters:
            self.bus.count(call, outcome, took_s)
        if not self.bus.per_call and len(call.attempts) < 2:
            return
        won = winner(call)
        attempts = call.attempts
        now = self.loop.time()
        if won is not None and won is not attempts[0]:
            first = attempts[0]
            if (first.cluster, first.endpoint) != (won.cluster, won.endpoint):
                self.bus.emit(
                    FailedOver(
                        at=now,
                        method=call.method.name,
                        from_cluster=first.cluster,
                        from_endpoint=first.endpoint,
                        to_cluster=won.cluster,
                        to_endpoint=won.endpoint,
                    )
                )
        self.bus.emit(
            CallFinished(
                at=now,
                method=call.method.name,
                kind=call.method.kind.value,
                collection=call.collection,
                outcome=outcome,
                duration_s=took_s,
                cluster=won.cluster if won else "",
                endpoint=won.endpoint if won else "",
                attempts=len(attempts),
                hedges=sum(a.hedge for a in attempts),
                tries=tuple(attempts),
            )
        )

    # Looking at it and steering it.

    def view(self) -> FleetView:
        """Freeze the fleet for someone to look at."""
        view = self.fleet.view()
        return view if self.mirror is None else self.mirror.seen(view)

    async def refresh(self) -> FleetView:
        """Probe every endpoint and every loaded collection now, and freeze what was found."""
        if not self._started:
            await self.start()
        await self.keeper.examine()
        return self.view()

    def reconfigure(self, config: Config) -> None:
        """Go over to another configuration without losing a call."""
        self.fleet.reconfigure(config)
        self._timeouts = _by_kind(config.timeouts)
        self._stack = self._assemble(config)

    async def follow(self, stamp: Callable[[], object], read: Callable[[], Config], every_s: float = 1.0) -> None:
        """Reconfigure whenever ``stamp()`` (of a file, say) changes and the configuration read is sound."""
        seen = stamp()
        while True:
            await asyncio.sleep(every_s)
            now = stamp()
            if now == seen:
                continue
            seen = now
            try:
                self.reconfigure(read())
            except (ConfigError, OSError) as error:
                self.bus.emit(ConfigRejected(at=self.loop.time(), reason=str(error)))


def winner(call: Call) -> Attempt | None:
    """Return the attempt that answered a call, None if none did."""
    for attempt in call.attempts:
        if attempt.action is Action.OK:
            return attempt
    return None


def _by_kind(timeouts: Timeouts) -> dict[Kind, float]:
    return {kind: getattr(timeouts, name) for kind, name in _TIMEOUT_FIELDS.items()}


def _refused(call: Call, fleet: Fleet) -> WriteRefused:
    names = ", ".join(cluster.name for cluster in fleet.clusters)
    return WriteRefused(
        f"{call.method.name} {call.collection}: not sent. There are {len(fleet.clusters)} clusters ({names}) and "
        'replication.mode = "none", so a write to one would make them differ. Set replication.mode = "mirror" to write '
        "to all of them, or, if these are endpoints of one cluster, list them under one [[cluster]]."
    )
