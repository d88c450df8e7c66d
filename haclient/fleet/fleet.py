"""The fleet: the one step that turns a call into an attempt, and what is learnt from it.

Decision made here: `Fleet.send` is synchronous. Picking, taking the permit, rewriting for the cluster and
handing the bytes to the transport is one step without an await, so no other call can come between.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import final

from haclient.call import Attempt, Call, Kind, Reply
from haclient.config import Config, EndpointConfig
from haclient.errors import ConfigError
from haclient.events import (
    AttemptFinished,
    ConfigRejected,
    DataAlarm,
    EndpointChanged,
    EventBus,
    ReadinessChanged,
)
from haclient.fleet import breaker
from haclient.fleet.balancer import Balancer
from haclient.fleet.detector import Detector
from haclient.fleet.doubts import Doubts
from haclient.fleet.flight import Done, Flight
from haclient.fleet.homes import Homes
from haclient.fleet.look import Dialect
from haclient.fleet.membership import Connect, Membership
from haclient.fleet.model import FleetView, State
from haclient.fleet.node import Cluster, Key, Node, PeakEwma
from haclient.milvus import messages
from haclient.milvus.requests import KeyField, inspect
from haclient.milvus.timestamps import TOKEN, Timestamps

#: Collections asked for within this time are kept under watch by probes, seconds.
_IN_USE_S = 600.0
#: A read that several endpoints sit on for this long may be asked again of one of them, seconds: two proxies can both
#: wait for the same dead query node, and ask a living one the next time.
_STUCK_S = 1.0
#: Readiness entries kept per endpoint.
_MOST_READY = 1024
#: Endpoints named in the error of a call that was not sent to them.
_MOST_TOLD = 8


@final
class Fleet:
    """All clusters of one client.

    Args:
        config: What is configured.
        connect: Makes transports.
        bus: Takes events.
        loop: Runs the timers.
        rng: Source of randomness.
        clock: Loop time, if there is a finer one than the loop's own (uvloop's counts whole milliseconds).
        dialect: What the servers speak.
    """

    def __init__(
        self,
        config: Config,
        connect: Connect,
        bus: EventBus,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        clock: Callable[[], float] | None,
        dialect: Dialect,
    ) -> None:
        self.config = config
        self.clock = clock or loop.time
        self.dialect = dialect
        self.classify = dialect.classify
        self.timestamps = Timestamps()
        #: Primary keys of collections, as described; they decide whether a write may be repeated.
        self.keys: dict[Key, KeyField] = {}
        self.homes = Homes(self)
        self.doubts = Doubts(self)
        self._bus = bus
        self._rng = rng
        #: Timers of slow starts.
        self._rising: dict[Node, asyncio.TimerHandle] = {}
        self._loop = loop
        self.balancer = Balancer(self.nodes, config.zone, self.clock, rng)
        self.detector = Detector(self.nodes, self.untried, config.health, loop)
        self._members = Membership(config, connect, self._gate_changed, bus, loop, self.clock)

    # What is in it.

    @property
    def clusters(self) -> list[Cluster]:
        """Every cluster, in the order configured."""
        return self._members.clusters

    def nodes(self) -> Iterator[Node]:
        """Every endpoint, in the order configured."""
        return self._members.nodes()

    def view(self) -> FleetView:
        """Freeze it for someone to look at."""
        now = self.clock()
        return FleetView(tuple(cluster.view(now) for cluster in self.clusters), now)

    def in_use(self) -> list[Key]:
        """Return the collections that the application has asked for lately."""
        return self.balancer.collections(self.clock() - _IN_USE_S)

    # The path of a call.

    def send(self, call: Call, hedge: bool, done: Done) -> Flight | None:
        """Start one attempt on the best endpoint not tried yet.

        Args:
            call: What to send; the attempt is appended to it.
            hedge: Whether this is a hedge: it goes to another endpoint than those under way or not at all (but see
                `_STUCK_S`).
            done: Gets the finished attempt, unless the flight is cancelled first.

        Returns:
            The flight, or None if there is no endpoint to send it to.
        """
        attempts = call.attempts
        tried = self.tried(attempts) if attempts else ()
        if attempts and call.plan is not None:
            call.plan.quick(call)  # somebody may have caught up since
        picked = self.balancer.pick(call, tried)
        if picked is None:
            return None
        node, permit = picked
        now = self.clock()
        if hedge and not self._worth_hedging(call, node, permit, tried, now):
            node.gate.record(permit, None)
            return None
        attempt = Attempt(node.name, node.cluster.name, now, hedge=hedge, life=node.life)
        attempts.append(attempt)
        message = call.message
        if call.plan is not None:
            message = call.plan.message(call, node.cluster.name)
        elif call.guarantee_timestamp and (call.guarantee_timestamp >= TOKEN or len(self.clusters) > 1):
            facts = inspect(call.method, message)
            name, count = node.cluster.name, len(self.clusters)
            message = self.timestamps.for_cluster(call.method, message, facts, name, clusters=count)
        flight = Flight(self, call, node, permit, attempt, done)
        flight.launch(message, call.deadline - now)
        return flight

    def lend(self, call: Call) -> Flight | None:
        """Start an attempt that the caller carries out himself, on the endpoint's transport; see `send`."""
        picked = self.balancer.pick(call)
        if picked is None:
            return None
        node, permit = picked
        attempt = Attempt(node.name, node.cluster.name, self.clock(), life=node.life)
        call.attempts.append(attempt)
        flight = Flight(self, call, node, permit, attempt, lambda attempt: None)
        node.flights.add(flight)
        return flight

    def _worth_hedging(self, call: Call, node: Node, permit: int, tried: tuple[Node, ...], now: float) -> bool:
        if permit == breaker.REFUSED or node.ready.get((call.database, call.collection)) is False:
            return False
        return node not in tried or (len(tried) > 1 and now - call.attempts[-1].started >= _STUCK_S)

    def tried(self, attempts: list[Attempt]) -> tuple[Node, ...]:
        """Return the endpoints that attempts went to."""
        seen = {(a.cluster, a.endpoint) for a in attempts}
        return tuple(node for node in self.nodes() if (node.cluster.name, node.name) in seen)

    def finished(self, call: Call, attempt: Attempt) -> None:
        """Tell listeners of a finished attempt."""
        if self._bus.per_call:
            assert attempt.ended is not None
            assert attempt.action is not None
            self._bus.emit(
                AttemptFinished(
                    at=attempt.ended,
                    cluster=attempt.cluster,
                    endpoint=attempt.endpoint,
                    method=call.method.name,
                    action=attempt.action.value,
                    duration_s=attempt.ended - attempt.started,
                    hedge=attempt.hedge,
                    reason=attempt.reason,
                )
            )

    def untried(self, call: Call) -> bool:
        """Say whether an endpoint that answers is left that the call has not been sent to."""
        tried = self.tried(call.attempts)
        return any(
            n not in tried and not n.drained and not n.refused and (n.gate.state != breaker.OPEN or n.gate.slow)
            for n in self.nodes()
            if (call.pin is None or n.cluster.name == call.pin) and n.cluster.name not in call.behind
        )

    def left_out(self, call: Call) -> str:
        """Say of the endpoints that a failed call was not sent to what is wrong with each, "" if there are none."""
        now, tried = self.clock(), self.tried(call.attempts)
        rest = [n for n in self.nodes() if n not in tried and (call.pin is None or n.cluster.name == call.pin)]
        told = []
        for node in rest[:_MOST_TOLD]:
            why = node.refused or node.last_error
            if call.plan is not None and node.cluster.name in call.behind:
                why = call.plan.lag(node.cluster.name)
            told.append(f"{node.cluster.name}/{node.name} ({node.state(now).value}{': ' + why if why else ''})")
        if len(rest) > _MOST_TOLD:
            told.append(f"{len(rest) - _MOST_TOLD} more")
        return ", ".join(told)

    def rotation(self) -> dict[str, bool]:
        """Return the names of the clusters, and whether each has an endpoint that takes calls now."""
        return {
            cluster.name: any(not n.drained and not n.refused and n.gate.state != breaker.OPEN for n in cluster.nodes)
            for cluster in self.clusters
        }

    def owner(self, timestamp: int) -> str | None:
        """Return the cluster that handed out a timestamp, if there are several and it is known."""
        return None if self.single_cluster() else self.timestamps.owner(timestamp)

    # What is learnt.

    def learn(self, call: Call, reply: Reply) -> None:
        """Learn from an answer that passes through: timestamps of writes, primary keys of collections."""
        name = call.method.name
        if name == "DescribeCollection" and reply.code == 0:
            with suppress(ValueError):
                key = messages.read_collection(reply.message).key
                if key is not None:
                    self.keys[call.database, call.collection] = key
        elif call.method.kind is Kind.WRITE and len(self.clusters) > 1 and call.attempts:
            cluster = call.attempts[-1].cluster
            self.timestamps.observe_write(cluster, call.database, call.collection, reply.message)

    def mark(self, node: Node, key: Key, ready: bool, reason: str) -> None:
        """Note whether an endpoint can serve a collection now."""
        before = node.ready.get(key)
        if before is ready or not key[1]:
            return
        if len(node.ready) >= _MOST_READY:
            node.ready.clear()
        node.ready[key] = ready
        if ready and before is None:
            # Ready, as was assumed: nothing changes for the balancer, and nobody needs to hear of it.
            return
        self.balancer.changed()
        if not ready:
            node.wake()
        database, collection = key
        self._bus.emit(
            ReadinessChanged(
                at=self.clock(),
                cluster=node.cluster.name,
                endpoint=node.name,
                database=database,
                collection=collection,
                ready=ready,
                reason=reason,
            )
        )

    def deny(self, node: Node, denied: bool) -> None:
        """Note whether an endpoint refuses our credentials: it is up, and of no use to us."""
        if node.denied is not denied:
            node.denied = denied
            self.balancer.changed()

    def alarm(self, node: Node, key: Key, reason: str) -> None:
        """Take an endpoint out for one collection until a probe finds its data right, and tell the operator why."""
        if len(node.distrusted) < _MOST_READY:
            node.distrusted.add(key)
        self.mark(node, key, False, reason)
        self._bus.emit(
            DataAlarm(at=self.clock(), cluster=node.cluster.name, endpoint=node.name, collection=key[1], reason=reason)
        )

    def _changed(self, node: Node, before: State, reason: str) -> None:
        now = self.clock()
        self.balancer.changed()
        after = node.state(now)
        if after is not before:
            self._bus.emit(
                EndpointChanged(
                    at=now,
                    cluster=node.cluster.name,
                    endpoint=node.name,
                    before=before.value,
                    after=after.value,
                    reason=reason,
                )
            )

    def _gate_changed(self, node: Node, before: int, after: int, reason: str) -> None:
        now = self.clock()
        states = {breaker.OPEN: State.DOWN, breaker.HALF_OPEN: State.PROBATION, breaker.CLOSED: State.UP}
        if after == breaker.CLOSED:
            health = self.config.health
            node.joined_at, node.ramp_s = now, health.slow_start_s
            node.preferred_at = now + health.failback_dwell_s * (1.0 + 0.2 * self._rng.random())
            node.losses = 0
            node.latency = PeakEwma()  # it is another server now, or the same one cured
            if node.ramp_s:
                self._stop_rising(node)
                self._rising[node] = self._loop.call_later(node.ramp_s, self._risen, node, now)
            node.stalled = False
            self._loop.call_soon(self.detector.rescue)
        elif after == breaker.OPEN:
            node.last_error = reason
            node.wake()
        self._changed(node, states[before], reason)

    def _risen(self, node: Node, joined_at: float) -> None:
        """Tell that a slow start is over, unless another one has begun or the endpoint is out again."""
        self._rising.pop(node, None)
        if node.joined_at == joined_at and node.state(self.clock()) is State.UP:
            self._changed(node, State.PROBATION, "its slow start is over")

    def _stop_rising(self, node: Node) -> None:
        timer = self._rising.pop(node, None)
        if timer is not None:
            timer.cancel()

    # Maintenance.

    def drain(self, name: str, drained: bool = True) -> None:
        """Take an endpoint or a whole cluster out of rotation, or back in.

        Calls under way finish. Raises `ConfigError` if nothing has that name.
        """
        found = [n for n in self.nodes() if name in (n.name, n.cluster.name)]
        if not found:
            known = ", ".join(f"{n.cluster.name}/{n.name}" for n in self.nodes())
            raise ConfigError(f"no endpoint or cluster is named {name!r}; there are: {known}")
        for node in found:
            before = node.state(self.clock())
            node.drained = drained
            self._changed(node, before, "drained by the operator" if drained else "put back by the operator")

    def follow(self, names: Collection[str]) -> None:
        """Take reads to these clusters only when no other one can answer: they follow the others from another site."""
        for cluster in self.clusters:
            if cluster.follows is not (cluster.name in names):
                cluster.follows = cluster.name in names
                self.balancer.changed()

    def recognise(self) -> None:
        """Compare what the endpoints hold; merge clusters given apart that are one.

        Raises:
            ConfigError: Endpoints declared as one cluster hold different collections.
        """
        try:
            for first, second in self._members.recognise():
                # What belongs to the second by name (iterators under way, timestamps) belongs to the first now.
                self.homes.rename(second, first)
                self.timestamps.rename(second, first)
        finally:
            self.balancer.changed()

    def reconfigure(self, config: Config) -> None:
        """Go over to another configuration: what is the same stays connected, what is gone finishes its calls."""
        self.config = config
        self._members.replace(config)
        # The balancer knows which collections are in use, and must go on knowing.
        self.balancer.zone = config.zone
        self.detector = Detector(self.nodes, self.untried, config.health, self._loop)
        try:
            self.recognise()
        except ConfigError as error:
            self._bus.emit(ConfigRejected(at=self.clock(), reason=str(error)))

    def watch(self, added: Callable[[Node], None], removed: Callable[[Node], None]) -> None:
        """Hear of every endpoint that comes and goes from now on."""
        self._members.added, self._members.removed = added, removed

    def set_endpoints(self, cluster: Cluster, endpoints: list[EndpointConfig]) -> None:
        """Replace a cluster's endpoints by those discovery has found."""
        if self._members.set_endpoints(cluster, endpoints):
            self.balancer.changed()

    async def aclose(self) -> None:
        """Close every transport; calls under way fail."""
        for timer in self._rising.values():
            timer.cancel()
        self._rising.clear()
        await self._members.aclose()

    def single_cluster(self) -> bool:
        """Whether writes have one place to go."""
        return len(self.clusters) == 1


def routes_as_write(kind: Kind) -> bool:
    """Say whether a call of this kind changes something that other clusters would not hear of."""
    return kind in (Kind.WRITE, Kind.DDL, Kind.ADMIN, Kind.ACCESS)
