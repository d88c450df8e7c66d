"""One attempt under way, and what its outcome teaches about the endpoint.

Decision made here: an outcome is scored exactly once, against the endpoint and the breaker generation it was
sent in, before the policies hear of it. What is the caller's fault, or our own (a cancelled attempt), never
counts against an endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, final

from haclient.call import Action, Attempt, Call, Kind, Metadata, Outcome, Reply, StreamHandle
from haclient.errors import AttemptTimeout, ConnectFailed, TransportClosed
from haclient.fleet.node import Node
from haclient.milvus.requests import READS
from haclient.milvus.status import COLLECTION_NOT_FOUND, Verdict

if TYPE_CHECKING:
    from haclient.fleet.fleet import Fleet

Done = Callable[[Attempt], None]

#: A reply slower than this, and `_TIMEOUT_RATIO` times slower than usual, counts against the endpoint when
#: it times out; a shorter time allowed by the caller says nothing about the endpoint.
_TIMEOUT_S = 1.0
_TIMEOUT_RATIO = 5.0
#: gRPC's code for wrong or missing credentials.
UNAUTHENTICATED = 16
#: How long reads avoid a cluster that says it is over its quota, seconds.
_QUOTA_PAUSE_S = 1.0


@final
class Flight:
    """One attempt under way. Ends once: by the transport (`landed`), or by us (`cancel`, `abort`)."""

    __slots__ = ("_done", "_fleet", "_handle", "_permit", "attempt", "call", "node")

    def __init__(self, fleet: Fleet, call: Call, node: Node, permit: int, attempt: Attempt, done: Done) -> None:
        self._fleet = fleet
        self._permit = permit
        self._done = done
        self._handle: StreamHandle | None = None
        self.call = call
        self.node = node
        self.attempt = attempt

    def launch(self, message: bytes, timeout_s: float) -> None:
        """Send it."""
        node = self.node
        node.flights.add(self)
        self._handle = node.data.start(self.call.method.path, message, self.metadata(), timeout_s, self.landed)

    def metadata(self) -> Metadata:
        """Return what goes out with the message: the application's, and what is particular to the endpoint."""
        node, call = self.node, self.call
        fields = call.metadata + (node.cluster.authorization or call.credentials)
        return fields + call.session.get((node.cluster.name, node.name), ()) if call.session is not None else fields

    def landed(self, outcome: Outcome) -> None:
        """Take what came back, score it, and hand the finished attempt on."""
        fleet, node, attempt, call = self._fleet, self.node, self.attempt, self.call
        node.flights.discard(self)
        now = attempt.ended = fleet.clock()
        if type(outcome) is Reply:
            node.heard_at = now
            node.stalled = False
            node.pings = 0
            attempt.reply = outcome
            verdict = fleet.classify(call.method, outcome, node.flavour)
            attempt.action = verdict.action
            attempt.reason = verdict.reason
            attempt.code = verdict.code
            attempt.rejected = verdict.rejected
            self._score_reply(verdict, now)
        else:
            assert isinstance(outcome, Exception)
            attempt.error = outcome
            attempt.action = Action.FAILOVER
            attempt.reason = str(outcome)
            self._score_error(now)
        fleet.finished(call, attempt)
        self._done(attempt)

    def cancel(self) -> None:
        """Give the attempt up for our own reasons: it lost to another, or the caller went away."""
        now = self._end(Action.CANCELLED, "given up")
        self.node.gate.record(self._permit, None)
        self._fleet.finished(self.call, self.attempt)
        self.node.latency.at_least(now - self.attempt.started, now)

    def suspect(self) -> None:
        """Look into it: it takes longer than usual."""
        self._fleet.detector.suspect(self.node)

    def lose(self) -> None:
        """Give the attempt up because another endpoint, asked later, answered first."""
        self.cancel()
        self.node.losses += 1
        self._fleet.detector.lost(self.node)

    def expire(self) -> None:
        """Give the attempt up because the call's time is over."""
        now = self._end(Action.FAILOVER, "no answer in time")
        self.attempt.error = AttemptTimeout("no answer in time", sent=True)
        self._score_error(now)
        self._fleet.finished(self.call, self.attempt)

    def abort(self, reason: str) -> None:
        """Fail the attempt, because its endpoint was found stalled; the call may go elsewhere."""
        now = self._end(Action.FAILOVER, reason)
        self.attempt.error = AttemptTimeout(reason, sent=True)
        self.node.latency.at_least(now - self.attempt.started, now)
        self.node.gate.record(self._permit, None)
        self._fleet.finished(self.call, self.attempt)
        self._done(self.attempt)

    def _end(self, action: Action, reason: str) -> float:
        if self._handle is not None:
            self._handle.cancel()
        self.node.flights.discard(self)
        self.attempt.action = action
        self.attempt.reason = reason
        now = self.attempt.ended = self._fleet.clock()
        return now

    def _score_reply(self, verdict: Verdict, now: float) -> None:
        node, call, action = self.node, self.call, verdict.action
        if action is Action.OK:
            node.gate.record(self._permit, True)
            if call.hedgeable:
                node.latency.observe(now - self.attempt.started, now)
                node.losses = 0
            key = (call.database, call.collection)
            if call.method.name in READS and not node.ready.get(key, False) and key not in node.distrusted:
                # Metadata (DescribeCollection and the like) is answered for collections that are not loaded, too.
                self._fleet.mark(node, key, True, "it answered a read")
            return
        node.last_error = verdict.reason
        if action in (Action.FAILOVER, Action.DROPPED):
            # An ambiguous text (a wrong vector on old servers looks like an outage) is settled by a probe.
            node.gate.record(self._permit, None if verdict.ambiguous else False)
            node.wake()
            return
        node.gate.record(self._permit, True)
        key = (call.database, call.collection)
        reading = call.method.kind is Kind.READ
        if action is Action.FAILOVER_COLLECTION or (
            verdict.code == COLLECTION_NOT_FOUND and reading and self._fleet.doubts.lost(node, key, call)
        ):
            self.attempt.action = Action.FAILOVER_COLLECTION
            if not self._fleet.doubts.lagging(node.cluster.name, key):
                self._fleet.mark(node, key, False, verdict.reason)
        elif self.attempt.reply is not None and self.attempt.reply.code == UNAUTHENTICATED:
            if call.credentials and not node.cluster.authorization:
                return  # the application's own were wrong
            self._fleet.deny(node, True)
            if reading and self._fleet.doubts.welcome_elsewhere(call, node):
                self.attempt.action = Action.ROUTE_CHANGE
        elif action is Action.ALARM:
            self._fleet.alarm(node, key, verdict.reason)
        elif action is Action.BACK_OFF:
            node.cluster.blocked_until = now + _QUOTA_PAUSE_S
            self._fleet.balancer.changed()

    def _score_error(self, now: float) -> None:
        node, error = self.node, self.attempt.error
        node.last_error = self.attempt.reason
        if isinstance(error, TransportClosed):
            node.gate.record(self._permit, None)
        elif isinstance(error, ConnectFailed):
            # Nobody listens: certain knowledge, and a probe finds out at no risk when it is over.
            node.gate.record(self._permit, None)
            node.gate.open(self.attempt.reason)
            node.life += 1
        elif isinstance(error, AttemptTimeout):
            waited = now - self.attempt.started
            slow = waited >= _TIMEOUT_S and waited >= _TIMEOUT_RATIO * node.latency.value
            node.gate.record(self._permit, False if slow else None)
            node.latency.at_least(waited, now)
        else:
            node.pings = 0  # the next connection starts afresh
            node.gate.record(self._permit, False)
            node.wake()
