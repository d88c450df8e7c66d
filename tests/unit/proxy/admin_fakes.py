"""A proxy that is not there, for the tests of the admin API and of what asks it."""

import asyncio
from collections.abc import AsyncIterator

from haclient.errors import ConfigError
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

UP = EndpointReport(
    name="e1", address="10.0.0.1:19530", state="up", latency_s=0.0032, in_flight=2,
    ready={"docs": True, "books": False}, server_version="2.5.4", last_error="",
)  # fmt: skip
DOWN = EndpointReport(
    name="unix:/tmp/a b?#%.sock", address="unix:/tmp/a b?#%.sock", state="down", latency_s=None, in_flight=0,
    ready={}, server_version="", last_error="Connect: refused\x1b[2J",
)  # fmt: skip


def cluster(*endpoints: EndpointReport) -> ClusterReport:
    return ClusterReport(name="a", zone="eu-1", priority=0, weight=1.0, endpoints=list(endpoints))


def event(number: int) -> EventReport:
    fields = {"cluster": "a", "endpoint": "e1", "before": "up", "after": "down"}
    return EventReport(
        id=number, at=1e9 + number, kind="EndpointChanged", worker=0, level="warning", text="e1 is down\nreally",
        fields=fields,
    )  # fmt: skip


class FakeBackend:
    """Answers what it was given; keeps what was drained, and who still listens to events."""

    def __init__(self, *clusters: ClusterReport) -> None:
        self.clusters = clusters or (cluster(UP, DOWN),)
        self.readiness = (True, "")
        self.drained: list[str] = []
        self.kept = [event(1), event(2), event(3)]
        self.streams = 0
        self.changed = asyncio.Condition()
        self.stopped = False

    def ready(self) -> tuple[bool, str]:
        return self.readiness

    def fleet(self) -> FleetReport:
        ready, reason = self.readiness
        endpoints = [each for c in self.clusters for each in c.endpoints]
        return FleetReport(
            version="1.2.3", started=1e9, now=1e9 + 60, ready=ready, reason=reason,
            up=sum(each.state == "up" for each in endpoints), endpoints=len(endpoints), clusters=list(self.clusters),
            drained=self.drained, totals=Totals(ok=3, latency=[1, 2]), objective=0.999,
            workers=[WorkerStatus(slot=0, pid=7, state="serving", started=1e9, connections=1, calls=0, memory_bytes=0)],
            burn=[Burn(window_s=300.0, availability=None, burn=None)],
        )  # fmt: skip

    def history(self, every_s: float) -> History:
        point = Point(
            at=1e9, ok=1, refused=0, failed=0, shed=0, hedges=0, retries=0, failovers=0, p50_s=0.001, p99_s=None
        )
        return History(every_s=every_s, points=[point])

    async def metrics(self) -> bytes:
        return b"# TYPE haclient_calls counter\nhaclient_calls_total 3.0\n"

    async def drain(self, name: str, *, drained: bool) -> None:
        names = [*(c.name for c in self.clusters), *(e.name for c in self.clusters for e in c.endpoints)]
        if name not in names:
            raise ConfigError(f"nothing has that name; there are {', '.join(names)}\x1b[2J")
        if drained:
            self.drained.append(name)
        else:
            self.drained = [each for each in self.drained if each != name]

    def recent(self, after: int) -> list[EventReport]:
        return [each for each in self.kept if each.id > after]

    async def events(self, after: int) -> AsyncIterator[EventReport]:
        self.streams += 1
        try:
            while True:
                for each in self.recent(after):
                    yield each
                    after = each.id
                async with self.changed:
                    await self.changed.wait_for(lambda: self.stopped or self.recent(after))  # noqa: B023
                if self.stopped:
                    return
        finally:
            self.streams -= 1
            async with self.changed:
                self.changed.notify_all()

    async def tell(self, new: EventReport | None) -> None:
        """Tell everybody of one more event, or that the proxy stops."""
        async with self.changed:
            if new is None:
                self.stopped = True
            else:
                self.kept.append(new)
            self.changed.notify_all()

    async def nobody_listens(self) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.streams == 0)
