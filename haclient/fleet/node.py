"""The fleet's own records of clusters and endpoints: mutable, private, single-threaded.

Decision made here: one endpoint's whole state is one object, changed only from the event loop, so there is
no lock anywhere. What callers see is the frozen view in `haclient.fleet.model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from haclient.call import Metadata, Transport
from haclient.config import ClusterConfig
from haclient.fleet import breaker
from haclient.fleet.breaker import Gate
from haclient.fleet.model import ClusterView, EndpointView, State
from haclient.milvus.status import Flavour

if TYPE_CHECKING:
    from haclient.fleet.flight import Flight

#: (database, collection)
Key = tuple[str, str]

#: Time constant of the latency average, seconds (as in finagle's peak EWMA).
_TAU_S = 10.0
#: An endpoint that has had no call for this long is asked again, whatever was known of its latency.
_FADED_S = 10.0
#: What an endpoint that has never answered is assumed to take, seconds: small, so that it gets tried.
_GUESS_S = 1e-3
#: Attempts that the mean looks back on, and how much of the past each leaves.
_RECENT = 16
_KEPT = 1.0 - 1.0 / _RECENT


@final
class PeakEwma:
    """Latency that believes bad news at once and good news slowly.

    A sample above the average replaces it; one below pulls it down with time constant `_TAU_S`
    (finagle's ``PeakEwma``, linkerd's default).

    Attributes:
        value: The average, seconds.
        at: Loop time of the last news.
        seen: Whether there has been any.
    """

    __slots__ = ("_ends", "_time", "at", "seen", "value")

    def __init__(self) -> None:
        self.value = _GUESS_S
        self.at = 0.0
        self.seen = False
        #: Of the last attempts: time spent, and answers.
        self._time = 0.0
        self._ends = 0.0

    @property
    def mean(self) -> float:
        """Mean latency of the last `_RECENT` attempts or so, seconds: time spent waiting, by answers that came.

        Unlike an average of answers it is right when slow attempts are given up (the "total time on test" of
        survival analysis): their time counts, and there is no answer to go with it.
        """
        return self._time / self._ends if self._ends > 1.0 else self._time

    def observe(self, sample_s: float, now: float) -> None:
        """Add a measured latency."""
        if not self.seen or sample_s > self.value:
            self.value = sample_s
        else:
            self.value += (sample_s - self.value) * (1.0 - math.exp((self.at - now) / _TAU_S))
        self.at = now
        self.seen = True
        self._time = self._time * _KEPT + sample_s
        self._ends = self._ends * _KEPT + 1.0

    def at_least(self, floor_s: float, now: float) -> None:
        """Learn from an attempt given up after ``floor_s``: it would have taken at least that long.

        A hedge's loser is no sample, but to forget it would hide the slowest servers best.
        """
        self._time = self._time * _KEPT + floor_s
        self._ends *= _KEPT
        self.value = max(self.value if self.seen else 0.0, floor_s, self.mean)
        self.at = now
        self.seen = True


@final
class Cluster:
    """One cluster: endpoints that share one storage.

    Attributes:
        follows: It is at another site and behind the others, so it takes no reads while one of them can.
    """

    __slots__ = ("authorization", "blocked_until", "config", "follows", "name", "nodes", "priority", "weight", "zone")

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.name = config.name
        self.zone = config.zone
        self.priority = config.priority
        self.weight = config.weight
        self.follows = config.asynchronous
        token = config.authorization()
        self.authorization: Metadata = (("authorization", token),) if token else ()
        self.nodes: list[Node] = []
        #: Loop time until which reads go to other clusters, because this one is over its quota.
        self.blocked_until = 0.0

    @property
    def level(self) -> tuple[bool, int, str]:
        """Clusters of one level are expected to be equally fast."""
        return self.follows, self.priority, self.zone

    def view(self, now: float) -> ClusterView:
        """Freeze it."""
        endpoints = tuple(node.view(now) for node in self.nodes)
        return ClusterView(self.name, self.zone, self.priority, self.weight, endpoints, asynchronous=self.follows)


@final
class Node:
    """One endpoint: how to reach it, whether it may be used, and what is known of it."""

    __slots__ = (
        "address",
        "catalogue",
        "cluster",
        "data",
        "denied",
        "distrusted",
        "drained",
        "flavour",
        "flights",
        "found",
        "gate",
        "heard_at",
        "joined_at",
        "last_error",
        "latency",
        "life",
        "losses",
        "met_at",
        "name",
        "pinged_at",
        "pinging",
        "pings",
        "preferred_at",
        "probe",
        "probe_failures",
        "probe_latency",
        "ramp_s",
        "ready",
        "refused",
        "rows",
        "stalled",
        "version",
        "wake",
    )

    def __init__(
        self, name: str, address: str, cluster: Cluster, data: Transport, probe: Transport, gate: Gate
    ) -> None:
        self.name = name
        self.address = address
        self.cluster = cluster
        #: Carries the application's calls.
        self.data = data
        #: Carries probes, so that they never wait behind the application's large replies.
        self.probe = probe
        self.gate = gate
        #: A probe has found it whole at least once.
        self.found = False
        self.drained = False
        #: It refuses our credentials.
        self.denied = False
        #: Why it must not be used whatever its health (declared in a cluster it is not part of), or "".
        self.refused = ""
        self.flights: set[Flight] = set()
        self.latency = PeakEwma()
        self.probe_latency = PeakEwma()
        self.probe_failures = 0
        #: See `haclient.call.Attempt.life`.
        self.life = 0
        #: Hedges lost in a row, without a win between.
        self.losses = 0
        self.pinging = False
        #: It was found to answer nothing, not even a PING, and has answered nothing since.
        self.stalled = False
        #: PINGs sent since the last reply to a call, and when the last one was.
        self.pings = 0
        self.pinged_at = 0.0
        self.heard_at = 0.0
        #: Collections that it is known to serve (True) or not to serve (False) now.
        self.ready: dict[Key, bool] = {}
        #: Those whose data was found wrong: that it answers proves nothing.
        self.distrusted: set[Key] = set()
        #: Whether the last probe of a collection found a row.
        self.rows: dict[Key, bool] = {}
        #: Start of the slow start, and from when it is preferred again (failback dwell).
        self.joined_at = float("-inf")
        self.preferred_at = float("-inf")
        self.ramp_s = 0.0
        #: (database, collection) to collection id, as last listed; see `haclient.fleet.identity`.
        self.catalogue: dict[Key, int] = {}
        #: Loop time at which it first showed a catalogue.
        self.met_at = float("inf")
        self.flavour = Flavour.UNKNOWN
        self.version = ""
        self.last_error = ""
        #: Wakes its prober early.
        self.wake: Callable[[], None] = _nothing

    def load(self, now: float) -> float:
        """Expected wait if one more call goes here, scaled by weight: the balancer takes the lower one.

        The latency of an idle endpoint fades, to nothing in `_FADED_S`: however slow its last answer was, it is
        asked again by then. (To fade by a constant share, as finagle's does, would leave one whose first answer after
        a restart took two seconds without calls for a minute.)
        """
        latency = self.latency
        idle = now - latency.at
        value = latency.value * max(1.0 - idle / _FADED_S, 0.0) + _GUESS_S if idle > 1.0 else latency.value
        cost = value * (len(self.flights) + 1) / self.cluster.weight
        age = now - self.joined_at
        return cost if age >= self.ramp_s else cost / max(age / self.ramp_s, 0.05)

    def state(self, now: float) -> State:
        """Say in one word how it is."""
        if self.drained or self.refused:
            return State.DRAINING if self.flights else State.DRAINED
        if self.gate.state == breaker.OPEN:
            return State.DOWN
        if self.gate.state == breaker.HALF_OPEN or now - self.joined_at < self.ramp_s:
            return State.PROBATION
        return State.UP

    def view(self, now: float) -> EndpointView:
        """Freeze it."""
        return EndpointView(
            name=self.name,
            address=self.address,
            state=self.state(now).value,
            latency_s=next((e.value for e in (self.latency, self.probe_latency) if e.seen), None),
            in_flight=len(self.flights),
            ready={f"{db}.{name}" if db else name: ok for (db, name), ok in self.ready.items()},
            server_version=self.version,
            last_error=self.refused or self.last_error,
        )

    def __repr__(self) -> str:
        return f"<Node {self.cluster.name}/{self.name} {breaker.NAMES[self.gate.state]}>"


def _nothing() -> None:
    """Wake nobody."""
