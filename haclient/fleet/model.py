"""What the outside sees of the fleet: states, and an immutable snapshot.

Decision made here: nothing mutable of the fleet ever leaves it. Whoever wants to look (``client.fleet``,
``haclient status``, the dashboard) gets plain frozen values that were true at one moment.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final


class State(enum.Enum):
    """The state of one endpoint."""

    UP = "up"
    #: The breaker is open: traffic or probes showed that it cannot serve.
    DOWN = "down"
    #: On trial, or in slow start after it.
    PROBATION = "probation"
    #: Taken out on purpose; calls under way are finishing.
    DRAINING = "draining"
    #: Taken out on purpose, and idle.
    DRAINED = "drained"


@final
@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint at one moment.

    Attributes:
        name: Configured name, ``host:port`` unless given.
        address: Where it is.
        state: Value of a `State`.
        latency_s: Recent latency of reads (peak EWMA), of probes before the first one, seconds; None before any.
        in_flight: Calls under way.
        ready: Collection name to whether this endpoint can serve it, for collections in use.
        server_version: As the server says, "" until known.
        last_error: The last failure seen, "" if none.
    """

    name: str
    address: str
    state: str
    latency_s: float | None
    in_flight: int
    ready: Mapping[str, bool] = field(default_factory=dict)
    server_version: str = ""
    last_error: str = ""


@final
@dataclass(frozen=True, slots=True)
class ClusterView:
    """One cluster at one moment; lower ``priority`` is preferred.

    Attributes:
        standing: Where writes are mirrored, what it is to the others ("in_sync", "away", "needs_reseed", "reseeding"),
            "" if that is not known or nothing is mirrored.
        lag: Entries of the mutation log up to which it lacks some.
        parked: Collections that have stopped on it at an entry that it cannot take.
        asynchronous: It follows the others from another site.
        lag_s: Of one that does, the age of the oldest entry that it lacks, seconds; None if that is not known.
    """

    name: str
    zone: str
    priority: int
    weight: float
    endpoints: tuple[EndpointView, ...]
    standing: str = ""
    lag: int = 0
    parked: tuple[str, ...] = ()
    asynchronous: bool = False
    lag_s: float | None = None


@final
@dataclass(frozen=True, slots=True)
class FleetView:
    """The whole fleet at one moment.

    Attributes:
        clusters: In the order configured.
        at: Loop time of the snapshot, seconds.
    """

    clusters: tuple[ClusterView, ...]
    at: float

    @property
    def endpoints(self) -> tuple[EndpointView, ...]:
        """Every endpoint of every cluster."""
        return tuple(e for c in self.clusters for e in c.endpoints)

    def __str__(self) -> str:
        return "; ".join(f"{c.name}: " + ", ".join(f"{e.name} {e.state}" for e in c.endpoints) for c in self.clusters)
