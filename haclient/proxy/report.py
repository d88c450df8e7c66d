"""What workers tell the supervisor, and the supervisor tells whoever asks: plain values, as JSON on the way.

Decision made here: times that leave a process are Unix time, since loop time means nothing to another one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol, final

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """A frozen value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class EndpointReport(Value):
    """One endpoint, as one worker or most workers see it; see `haclient.fleet.model.EndpointView`."""

    name: str
    address: str
    #: up, down, probation, draining or drained.
    state: str
    latency_s: float | None
    in_flight: int
    #: Collection to whether the endpoint can serve it.
    ready: dict[str, bool]
    server_version: str
    last_error: str


@final
class ClusterReport(Value):
    """One cluster; lower ``priority`` is preferred."""

    name: str
    zone: str
    priority: int
    weight: float
    endpoints: list[EndpointReport]
    #: Where writes are mirrored: what the cluster is to the others, entries it is behind, collections stopped on it.
    standing: str = ""
    lag: int = 0
    parked: list[str] = []
    #: It follows the others from another site, and the age of the oldest entry that it lacks.
    asynchronous: bool = False
    lag_s: float | None = None


@final
class Totals(Value):
    """What one worker, or all together, have counted since they started; merged by adding up."""

    #: Calls that ended, by what the client saw: answered well, refused by a server for the client's own fault, failed.
    ok: int = 0
    refused: int = 0
    failed: int = 0
    #: Calls refused because the proxy had too much to do.
    shed: int = 0
    hedges: int = 0
    retries: int = 0
    failovers: int = 0
    #: Calls by how long they took: one more entry than `LATENCY_BOUNDS_S`, the last for all that took longer.
    latency: list[int] = Field(default_factory=list)


#: Upper bounds of the entries of `Totals.latency`, seconds: half a millisecond, and each 1.25 times the one before.
LATENCY_BOUNDS_S = tuple(0.0005 * 1.25**i for i in range(50))


@final
class WorkerReport(Value):
    """What a worker says of itself once a second."""

    #: A read can be served now; if not, ``reason`` says why.
    ready: bool
    reason: str
    #: Clients' connections, calls under way, and bytes of requests and replies held.
    connections: int
    calls: int
    memory_bytes: int
    totals: Totals
    clusters: list[ClusterReport]


@final
class WorkerStatus(Value):
    """One worker, as the supervisor sees it."""

    slot: int
    pid: int
    state: Literal["starting", "serving", "draining"]
    #: Unix time of its start.
    started: float
    connections: int
    calls: int
    memory_bytes: int


@final
class Point(Value):
    """What happened in one interval of the history, all workers together.

    Attributes:
        at: Unix time of its end.
        p50_s: Median latency of the calls that ended in it, seconds; None if none did.
    """

    at: float
    ok: int
    refused: int
    failed: int
    shed: int
    hedges: int
    retries: int
    failovers: int
    p50_s: float | None
    p99_s: float | None


@final
class Burn(Value):
    """How fast the error budget is spent over the last ``window_s`` seconds: 1.0 is just as fast as is allowed."""

    window_s: float
    #: Share of calls answered, None if there were none; calls refused for the client's own fault count as answered.
    availability: float | None
    burn: float | None


@final
class FleetReport(Value):
    """The answer of ``GET /api/fleet``."""

    version: str
    #: Unix times.
    started: float
    now: float
    ready: bool
    reason: str
    #: Endpoints that are up, of how many.
    up: int
    endpoints: int
    clusters: list[ClusterReport]
    #: Names drained by an operator: clusters and endpoints.
    drained: list[str]
    workers: list[WorkerStatus]
    totals: Totals
    #: Wanted share of answered calls, and how it stands; shortest window first.
    objective: float
    burn: list[Burn]


@final
class History(Value):
    """The answer of ``GET /api/history``: oldest first, one point per ``every_s`` seconds."""

    every_s: float
    points: list[Point]


@final
class EventReport(Value):
    """One event of a worker or the supervisor, as ``GET /api/events`` streams it.

    Attributes:
        id: Grows by one with every event of this supervisor.
        at: Unix time.
        kind: The event's class, for example ``EndpointChanged`` (see `haclient.events`).
        worker: Slot of the worker that saw it; None for the supervisor's own.
        level: debug, info, warning or error.
        text: One line for a person.
        fields: The event's fields.
    """

    id: int
    at: float
    kind: str
    worker: int | None
    level: str
    text: str
    fields: dict[str, Any]


class Backend(Protocol):
    """What the admin API stands on; the supervisor is one."""

    def ready(self) -> tuple[bool, str]:
        """Say whether a read can be served now, and if not, why."""

    def fleet(self) -> FleetReport:
        """Say how everything is."""

    def history(self, every_s: float) -> History:
        """Say how it was, in intervals of 1 s (the last ten minutes) or 60 s (the last day)."""

    async def metrics(self) -> bytes:
        """Collect the metrics of all workers, in Prometheus' text format."""

    async def drain(self, name: str, *, drained: bool) -> None:
        """Take an endpoint or a cluster out of rotation in every worker, or put it back.

        Raises:
            ConfigError: Nothing has that name; the message says what there is.
        """

    def recent(self, after: int) -> list[EventReport]:
        """Return the events kept (the last thousand or so) whose id is greater than ``after``, oldest first."""

    def events(self, after: int) -> AsyncIterator[EventReport]:
        """Yield those of `recent` and then every new one; ends when the proxy stops."""
