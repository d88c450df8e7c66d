"""Failures that give no error: the endpoint that hangs, and the one that is much slower than its peers.

Decision made here:

- *Stalled*: when an attempt takes longer than usual, a PING goes out on the same connection. HTTP/2 answers a
  PING from its connection loop, so a busy server still answers while a stopped process, a black hole or a
  dead host does not. No answer and no reply within ``ping_timeout_s`` opens the breaker: it takes one
  slow call, not a run of time-outs, to find a frozen server.
- *Slow*: an endpoint that keeps losing to hedges, or whose probes are slow, is compared with the median of the
  other endpoints of the fleet. It must be slower by a ratio *and* by an amount, so that two fast endpoints are
  never told apart by noise, and at most half the fleet is set aside for slowness.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterable
from typing import final

from haclient.call import Call
from haclient.config import Health
from haclient.errors import WireError
from haclient.fleet import breaker
from haclient.fleet.node import Node, PeakEwma

#: Hedges lost in a row before an endpoint is compared with the others.
_LOSSES = 3
#: PINGs to an endpoint between two of its replies, and how far apart, seconds. gRPC servers close the connection, with
#: every call on it, at the third PING too many; one that follows a reply is free (gRPC proposal A8, "ping strikes").
_MOST_PINGS = 3
_PINGS_APART_S = 1.0
#: A timer this late means that our own event loop was blocked: what it shows is ours, not the server's.
_LATE_S = 0.05
#: A cluster at another site gets so many times as long to answer a PING.
_FAR = 4.0


@final
class Detector:
    """Opens the gates of endpoints that stall or lag.

    Args:
        nodes: Every node of the fleet, now.
        elsewhere: Whether a call has a healthy endpoint left that it has not been sent to.
        settings: Time-outs and ratios.
        loop: Runs the timers; its time is the clock.
    """

    def __init__(
        self,
        nodes: Callable[[], Iterable[Node]],
        elsewhere: Callable[[Call], bool],
        settings: Health,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._nodes = nodes
        self._elsewhere = elsewhere
        self._settings = settings
        self._loop = loop

    def suspect(self, node: Node) -> None:
        """Check whether an endpoint that is taking long is there at all."""
        if node.pinging or node.gate.state == breaker.OPEN:
            return
        now = self._loop.time()
        if node.pings >= _MOST_PINGS or (node.pings and now - node.pinged_at < _PINGS_APART_S):
            return
        node.pinging = True
        node.pings += 1
        node.pinged_at = now
        _Ping(self, node, self._loop, self._patience_s(node))

    def _patience_s(self, node: Node) -> float:
        """Return the time in which an endpoint must answer a PING, seconds."""
        return self._settings.ping_timeout_s * (_FAR if node.cluster.follows else 1.0)

    def lost(self, node: Node) -> None:
        """Look at an endpoint that has lost to a hedge."""
        if node.losses >= _LOSSES and node.gate.state == breaker.CLOSED:
            reason = self.lagging(node, node.latency.mean, lambda other: other.latency)
            if reason:
                node.gate.open(reason, slow=True)

    def stalled(self, node: Node) -> None:
        """Open the gate of an endpoint that is not there, and send its calls on where they have somewhere to go."""
        reason = f"stalled: no answer to a PING within {self._patience_s(node) * 1e3:.0f} ms"
        node.last_error = reason
        node.gate.open(reason)
        node.stalled = True
        self._send_on(node, reason)

    def rescue(self) -> None:
        """Send the calls of stalled endpoints on, now that another endpoint is back to take them."""
        for node in self._nodes():
            if node.stalled:
                self._send_on(node, "stalled, and another endpoint is back")

    def _send_on(self, node: Node, reason: str) -> None:
        for flight in [f for f in node.flights if f.call.idempotent and self._elsewhere(f.call)]:
            flight.abort(reason)

    def lagging(self, node: Node, mine: float, latency: Callable[[Node], PeakEwma]) -> str:
        """Say why an endpoint that took ``mine`` seconds counts as too slow beside the others, or ""."""
        if mine < self._settings.slow_excess_s:
            return ""  # at once, for every probe of a large fleet comes here
        # A cluster in another zone, or kept for disasters, is farther away by design.
        level = node.cluster.level
        peers = [n for n in self._nodes() if n.cluster.level == level]
        others = [n for n in peers if n is not node and not n.drained and not n.refused]
        usable = [n for n in others if n.gate.state == breaker.CLOSED and latency(n).seen]
        if not usable or (node.gate.state == breaker.CLOSED and 2 * len(usable) <= len(others)):
            return ""
        median = statistics.median(latency(n).mean for n in usable)
        settings = self._settings
        if mine < settings.slow_ratio * median or mine < settings.slow_excess_s + median:
            return ""
        return f"slow: {mine * 1e3:.0f} ms where the others take {median * 1e3:.0f} ms"


@final
class _Ping:
    """One PING and the timer that waits for its answer."""

    __slots__ = ("_detector", "_loop", "_node", "_sent_at", "_timeout_s", "_timer")

    def __init__(self, detector: Detector, node: Node, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._detector = detector
        self._node = node
        self._loop = loop
        self._timeout_s = timeout_s
        self._sent_at = loop.time()
        self._timer: asyncio.TimerHandle | None = loop.call_later(timeout_s, self._silent, self._sent_at + timeout_s)
        node.data.ping(self._answered)

    def _answered(self, outcome: float | WireError) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._node.pinging = False

    def _silent(self, due: float) -> None:
        node, now = self._node, self._loop.time()
        if now - due > _LATE_S:
            self._timer = self._loop.call_later(self._timeout_s, self._silent, now + self._timeout_s)
            return
        self._timer = None
        node.pinging = False
        if node.heard_at >= self._sent_at or node.gate.state == breaker.OPEN:
            return
        self._detector.stalled(node)
