"""A proxy for the dashboard to show: a backend whose fleet, history and events are made up, behind the real admin API.

Decision made here: its clock stands still unless a test moves it, so that what the page shows is known to the digit.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar, final

from haclient.errors import ConfigError
from haclient.proxy.admin import create_app, serve
from haclient.proxy.journal import Journal
from haclient.proxy.report import (
    Burn,
    ClusterReport,
    EndpointReport,
    EventReport,
    FleetReport,
    History,
    Point,
    Totals,
    WorkerStatus,
)

T = TypeVar("T")

#: 16:00 UTC on a day of November 2025.
NOW = 1_764_086_400.0
STARTED = NOW - 3 * 86_400 - 4 * 3_600


def endpoint(name: str, **changes: Any) -> EndpointReport:
    """An endpoint that is up and serves two collections."""
    usual = EndpointReport(
        name=name,
        address=f"{name}.milvus.internal:19530",
        state="up",
        latency_s=0.0031,
        in_flight=3,
        ready={"docs": True, "tickets": True},
        server_version="2.3.5",
        last_error="",
    )
    return usual.model_copy(update=changes)


def fleet_of_three() -> list[ClusterReport]:
    """Two endpoints near, one far away; all is well."""
    near = [endpoint("fra-1", in_flight=9, latency_s=0.0028), endpoint("fra-2", in_flight=7, latency_s=0.0034)]
    far = [endpoint("dub-1", in_flight=0, latency_s=0.0217, server_version="2.3.4")]
    return [
        ClusterReport(name="frankfurt", zone="eu-central-1a", priority=0, weight=1.0, endpoints=near),
        ClusterReport(name="dublin", zone="eu-west-1", priority=1, weight=0.5, endpoints=far),
    ]


@final
class FakeBackend:
    """What the admin API stands on; a test changes its attributes, on the server's loop or with it stopped.

    Attributes:
        asked: What was to be drained or undrained, oldest first: (name, drained).
        gate: A drain waits for it.
        following: How many follow the events.
    """

    def __init__(self) -> None:
        self.now, self.started = NOW, STARTED
        self.is_ready, self.reason = True, ""
        self.clusters = fleet_of_three()
        self.drained: set[str] = set()
        self.burn = [(300.0, 0.0), (3_600.0, 0.31), (21_600.0, 0.62), (86_400.0, 0.4)]
        self.workers = [_worker(0, 4127, 71, 11), _worker(1, 4128, 57, 8)]
        self.history_points = {1.0: _points(NOW, 1.0, 600), 60.0: _points(NOW, 60.0, 1_440)}
        self.journal = Journal(lambda: self.now)
        self.asked: list[tuple[str, bool]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fleets_read = 0
        self.following = 0

    def ready(self) -> tuple[bool, str]:
        return self.is_ready, self.reason

    def fleet(self) -> FleetReport:
        self.fleets_read += 1
        states = [e.state for cluster in self.clusters for e in cluster.endpoints]
        return FleetReport(
            version="0.1.0",
            started=self.started,
            now=self.now,
            ready=self.is_ready,
            reason=self.reason,
            up=states.count("up"),
            endpoints=len(states),
            clusters=self.clusters,
            drained=sorted(self.drained),
            workers=self.workers,
            totals=Totals(
                ok=58_112_804, refused=1_204, failed=5_377, shed=31, hedges=9_120, retries=811, failovers=702
            ),
            objective=0.999,
            burn=[Burn(window_s=w, availability=1 - burn * 0.001, burn=burn) for w, burn in self.burn],
        )

    def history(self, every_s: float) -> History:
        return History(every_s=every_s, points=self.history_points[every_s])

    async def metrics(self) -> bytes:
        return b""

    async def drain(self, name: str, *, drained: bool) -> None:
        self.asked.append((name, drained))
        await self.gate.wait()
        hit = [(c, e) for c in self.clusters for e in c.endpoints if name in (c.name, e.name)]
        if not hit:
            raise ConfigError(f"no endpoint or cluster is named {name!r}")
        (self.drained.add if drained else self.drained.discard)(name)
        for cluster, one in hit:
            self.change(cluster.name, one.name, "drained" if drained else "up", "by the operator", in_flight=0)

    def recent(self, after: int) -> list[EventReport]:
        return self.journal.recent(after)

    async def events(self, after: int) -> AsyncIterator[EventReport]:
        self.following += 1
        try:
            async for event in self.journal.follow(after):
                yield event
        finally:
            self.following -= 1

    def change(self, cluster: str, name: str, state: str, reason: str, **also: Any) -> None:
        """Let an endpoint change its state, and everyone hear of it."""
        before = self.update(cluster, name, state=state, **also).state
        for worker in self.workers:
            text = f"EndpointChanged cluster={cluster} endpoint={name} before={before} after={state} reason={reason!r}"
            fields = {"cluster": cluster, "endpoint": name, "before": before, "after": state, "reason": reason}
            self.say(text, "warning" if state == "down" else "info", "EndpointChanged", worker.slot, **fields)

    def update(self, cluster: str, name: str, **changes: Any) -> EndpointReport:
        """Change what is reported of an endpoint; returns what was reported before."""
        i, found = next((i, c) for i, c in enumerate(self.clusters) if c.name == cluster)
        before = next(e for e in found.endpoints if e.name == name)
        changed = [e.model_copy(update=changes) if e is before else e for e in found.endpoints]
        self.clusters[i] = found.model_copy(update={"endpoints": changed})
        return before

    def say(self, text: str, level: str = "info", kind: str = "Told", worker: int = 0, **fields: Any) -> None:
        """Let a worker tell of an event."""
        event = {"at": self.now, "kind": kind, "level": level, "text": text, "fields": fields}
        self.journal.hear(worker, event)


def _worker(slot: int, pid: int, connections: int, calls: int) -> WorkerStatus:
    return WorkerStatus(
        slot=slot,
        pid=pid,
        state="serving",
        started=STARTED,
        connections=connections,
        calls=calls,
        memory_bytes=calls * 98_304,
    )


def _points(now: float, every_s: float, count: int) -> list[Point]:
    """Traffic that goes up and down, with one bad minute (of points) three tenths of the way back."""
    rng = random.Random(every_s)
    points = []
    for i in range(count):
        bad = count * 0.62 <= i < count * 0.7
        ok = int(every_s * (210 + 60 * math.sin(i / count * 5) + rng.gauss(0, 9)))
        p50 = 0.0029 * (1 + 0.05 * rng.random())
        points.append(
            Point(
                at=now - (count - 1 - i) * every_s,
                ok=ok,
                refused=rng.random() < 0.05,
                failed=rng.randint(1, 4) if bad and rng.random() < 0.25 else 0,
                shed=0,
                hedges=rng.randint(8, 30) if bad else int(rng.random() < 0.2) * rng.randint(1, 3),
                retries=rng.randint(0, 6) if bad else int(rng.random() < 0.02),
                failovers=rng.randint(2, 9) if bad else 0,
                p50_s=p50 * (1.6 if bad else 1),
                p99_s=p50 * (14 + 9 * rng.random() if bad else 3 + rng.random()),
            )
        )
    return points


def bad_day(backend: FakeBackend) -> None:
    """Show everything at once: an endpoint down, a collection not ready, a cluster drained, a burning budget."""

    def at(seconds_ago: float, what: Callable[[], None]) -> None:
        backend.now = NOW - seconds_ago
        what()

    refused = "connect to 10.0.1.12:19530: connection refused"
    at(566, lambda: backend.say("FleetReconfigured added=('dublin',) removed=() kept=2", kind="FleetReconfigured"))
    at(420, lambda: backend.change("frankfurt", "fra-2", "down", "3 attempts in a row failed: deadline exceeded"))
    at(391, lambda: backend.change("frankfurt", "fra-2", "probation", "a probe succeeded; on trial"))
    at(360, lambda: backend.change("frankfurt", "fra-2", "up", "the trials succeeded"))
    at(231, lambda: backend.change("frankfurt", "fra-2", "down", refused, in_flight=0, latency_s=None))
    at(230, lambda: backend.say("BudgetExhausted method='Search' wanted='hedge'", "warning", "BudgetExhausted", 1))
    at(188, lambda: backend.change("frankfurt", "fra-2", "probation", "a probe succeeded; on trial"))
    at(171, lambda: backend.change("frankfurt", "fra-2", "down", refused, last_error=refused))
    at(96, lambda: backend.drained.add("dublin"))
    at(96, lambda: backend.change("dublin", "dub-1", "drained", "drained by the operator"))
    alarm = "DataAlarm cluster=frankfurt endpoint=fra-1 collection=images reason='finds nothing where fra-2 found rows'"
    at(40, lambda: backend.say(alarm, "error", "DataAlarm", 1))
    ready = {"docs": True, "images": False, "tickets": True, "wiki": True}
    backend.update("frankfurt", "fra-1", ready=ready, in_flight=19)
    backend.update("frankfurt", "fra-2", ready=dict.fromkeys(ready, False))
    backend.burn = [(300.0, 14.4), (3_600.0, 2.1), (21_600.0, 0.62), (86_400.0, 0.4)]
    backend.now = NOW


@final
class FakeProxy:
    """The admin API on a thread of its own, on one port for its whole life, so that it can go and come back."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.backend = FakeBackend()
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], object] = lambda: None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="fake-proxy")
        self._thread.start()
        assert started.wait(20), "the admin API did not start"

    def stop(self) -> None:
        if self._thread is not None:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(20)
            self._thread = None

    def do(self, what: Callable[[FakeBackend], T]) -> T:
        """Change or look at the backend on the server's loop."""

        async def work() -> T:
            return what(self.backend)

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(20)

    async def _serve(self, started: threading.Event) -> None:
        stop = asyncio.Event()
        self._loop, self._stop = asyncio.get_running_loop(), stop.set
        async with serve(create_app(self.backend, self.token), "127.0.0.1", self.port) as self.port:
            started.set()
            await stop.wait()
            self.backend.journal.close()
        # What comes back is another process: it has started later, and its events are counted from one again.
        self.backend.started = self.backend.now
        self.backend.journal = Journal(lambda: self.backend.now)
