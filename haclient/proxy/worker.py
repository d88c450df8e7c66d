"""A worker's process: one server on one event loop, steered by the supervisor.

Decision made here: only the supervisor stops a worker. Signals meant for the whole group are left to it, and a worker
whose supervisor is gone finishes its calls and ends by itself.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, final

from prometheus_client import CollectorRegistry

from haclient.config import Config
from haclient.errors import ConfigError
from haclient.events import EventBus
from haclient.fleet.model import FleetView
from haclient.listeners.logging import LoggingListener
from haclient.listeners.prometheus import PrometheusListener
from haclient.proxy import control, logs, metrics
from haclient.proxy.report import ClusterReport, EndpointReport, WorkerReport
from haclient.proxy.server import Server
from haclient.proxy.settings import read
from haclient.proxy.totals import Tally

REPORT_EVERY_S: Final = 1.0
_log = logging.getLogger("haclient.proxy")

#: Makes the server; `Server` unless a test has another one.
Make = Callable[[Config, EventBus, asyncio.AbstractEventLoop], Server]


@final
class Worker:
    """One server, and what the supervisor asks of it.

    Args:
        listening: The bound socket of every slot; those that are not its own are closed when it knows which one is.
        make: Makes the server.
    """

    def __init__(self, listening: Sequence[socket.socket], make: Make = Server) -> None:
        self._slot = -1
        self._listening = listening
        self._make = make
        self._config: Config | None = None
        self._server: Server | None = None
        self._drained: frozenset[str] = frozenset()
        self._finished = False
        self._tally = Tally()
        self._registry = CollectorRegistry()
        self._gauges = PrometheusListener(self._registry)
        self._bus = EventBus()
        self._unsubscribe_log: Callable[[], None] = lambda: None

    async def run(self, end: socket.socket) -> None:
        """Serve until the supervisor has had it finished, or is gone.

        Args:
            end: This end of the control channel.
        """
        channel = await control.connect(end, self._answer, lambda what, value: None)
        self._bus.subscribe(self._tally)
        self._bus.subscribe(self._gauges)
        self._bus.subscribe(LoggingListener(_stream(channel)), per_call=False)
        reporting = asyncio.create_task(self._report(channel))
        try:
            await channel.run()
            if not self._finished and self._config is not None:
                _log.warning("the supervisor is gone: this worker finishes its calls and ends")
                await self._finish(self._config.proxy.grace_s)
        finally:
            reporting.cancel()
            if self._server is not None:
                await self._server.aclose()

    async def _answer(self, what: str, value: Any) -> Any:
        match what:
            case "start":
                await self._start(value["slot"], read(value["config"]), frozenset(value["drained"]))
            case "reload":
                self._reload(read(value))
            case "drain":
                self._drain(frozenset(value))
            case "metrics":
                return self._metrics()
            case "finish":
                cut = await self._finish(value)
                return {"cut": cut, "report": self._state(), "metrics": self._metrics()}
            case _:
                raise ConfigError(f"{what!r} is nothing that can be asked of a worker")
        return self._state()

    async def _start(self, slot: int, config: Config, drained: frozenset[str]) -> None:
        self._slot = slot
        for i, each in enumerate(self._listening):
            if i != slot:
                each.close()
        self._configure(config)
        server = self._server = self._make(config, self._bus, asyncio.get_running_loop())
        await server.start(self._listening[slot])
        self._drain(drained)

    def _configure(self, config: Config) -> None:
        self._config = config
        logs.configure(config.proxy, self._slot)
        self._unsubscribe_log()
        self._unsubscribe_log = self._bus.subscribe(LoggingListener(), per_call=config.proxy.log_level == "debug")

    def _reload(self, config: Config) -> None:
        self._running().reload(config)
        self._configure(config)
        self._drain(self._drained)

    def _drain(self, names: frozenset[str]) -> None:
        """Have just these names drained: clusters and endpoints, also some that only other workers have."""
        fleet = self._running().core.fleet
        for name in self._drained - names:
            with suppress(ConfigError):
                fleet.drain(name, drained=False)
        self._drained = names
        # Only those that are not out yet: an endpoint may have come back by its own name, or been discovered.
        back = {name for node in fleet.nodes() if not node.drained for name in (node.name, node.cluster.name)}
        for name in names & back:
            fleet.drain(name)

    async def _finish(self, grace_s: float) -> int:
        """Finish the calls under way; returns how many were cut off."""
        self._finished = True
        for each in self._listening:
            each.close()  # or the kernel would go on connecting clients that nobody accepts
        return 0 if self._server is None else await self._server.drain(grace_s)

    def _running(self) -> Server:
        if self._server is None:
            raise ConfigError("this worker has not been started yet")
        return self._server

    # What it says of itself.

    async def _report(self, channel: control.Channel) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            if self._server is not None:
                self._drain(self._drained)  # discovery may have found more of a drained cluster
                channel.tell("report", self._state())

    def _state(self) -> dict[str, Any]:
        server = self._running()
        ready, reason = server.ready
        return WorkerReport(
            ready=ready,
            reason=reason,
            connections=server.connections,
            calls=server.calls,
            memory_bytes=server.memory_bytes,
            totals=self._tally.totals(server.shed),
            clusters=_clusters(server.core.view()),
        ).model_dump()

    def _metrics(self) -> list[metrics.Family]:
        self._gauges.observe(self._running().core.view())
        return metrics.families(self._registry)


def _clusters(view: FleetView) -> list[ClusterReport]:
    return [
        ClusterReport(
            name=cluster.name,
            zone=cluster.zone,
            priority=cluster.priority,
            weight=cluster.weight,
            endpoints=[
                EndpointReport(
                    name=e.name,
                    address=e.address,
                    state=e.state,
                    latency_s=e.latency_s,
                    in_flight=e.in_flight,
                    ready=dict(e.ready),
                    server_version=e.server_version,
                    last_error=e.last_error,
                )
                for e in cluster.endpoints
            ],
            standing=cluster.standing,
            lag=cluster.lag,
            parked=list(cluster.parked),
            asynchronous=cluster.asynchronous,
            lag_s=cluster.lag_s,
        )
        for cluster in view.clusters
    ]


@final
class _Telling(logging.Handler):
    """Tells the supervisor what a `LoggingListener` lets through: it has bounded how often."""

    def __init__(self, channel: control.Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        fields = dict(record.__dict__["haclient"])
        event = {
            "at": record.created,
            "kind": fields.pop("event"),
            "level": record.levelname.lower(),
            "text": record.getMessage(),
            "fields": fields,
        }
        self._channel.tell("event", event)


def _stream(channel: control.Channel) -> logging.Logger:
    """Return a logger of its own, so that the level of the log does not decide what the dashboard shows."""
    logger = logging.Logger("haclient.events", logging.INFO)
    logger.addHandler(_Telling(channel))
    return logger


def main() -> None:
    """Run a worker; the supervisor gives the numbers of the sockets that it inherits."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    _raise_descriptors()
    gc.freeze()  # modules and classes stay: no need to look at them again and again
    end, *listening = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(Worker(listening).run(end))


def _raise_descriptors() -> None:
    """Use as many descriptors as the process may have: the usual limit is far below `ProxyLimits.connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
