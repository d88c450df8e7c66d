"""The proxy's first process: it serves no client, and keeps those that do.

Decision made here: whatever may fail while serving is a worker's. The supervisor holds what must outlive a worker (the
listening sockets, the configuration, counts, history) and answers the admin API.

    SIGTERM, SIGINT   not ready, calls finish within proxy.grace_s, exit; a second SIGINT ends at once
    SIGHUP            read the configuration and TLS files again, as happens when one of them changes
    SIGUSR2           rolling restart of the workers
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, final

from haclient import __version__
from haclient.config import Config
from haclient.config.proxy import host_and_port
from haclient.config.sources import PROXY_TLS_FILES, TLS_FILES, stamp
from haclient.errors import ConfigError
from haclient.fleet.model import State
from haclient.proxy import admin, history, journal, listening, logs, merge, metrics, process, systemd
from haclient.proxy.pool import Pool
from haclient.proxy.report import ClusterReport, EventReport, FleetReport, History

_log = logging.getLogger("haclient.proxy")
_TICK_S: Final = 1.0
#: Fields of `haclient.config.Proxy` that a restart alone can change.
_FIXED: Final = ("listen", "admin", "admin_token", "workers")


def run(config: Config, reload: Callable[[], Config]) -> int:
    """Run the proxy until it is told to stop.

    Args:
        config: What is configured.
        reload: Reads the configuration again.

    Returns:
        0 if every call under way was finished, 1 if some were cut off.

    Raises:
        ConfigError: An address cannot be listened on, or the workers refuse the configuration.
    """
    logs.configure(config.proxy)
    sockets = listening.bind(config.proxy.listen, config.proxy.workers)

    async def serve() -> int:
        return await Supervisor(config, reload, sockets).run()

    return asyncio.run(serve())


@final
class Supervisor:
    """Keeps the workers, and answers for them; a `haclient.proxy.report.Backend`.

    Args:
        config: What is configured.
        reload: Reads the configuration again.
        sockets: One bound socket per worker, owned from now on.
        spawn: Starts a worker's process.
        clock: Unix time.
    """

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config],
        sockets: Sequence[socket.socket],
        spawn: process.Spawn = process.spawn,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._first = self._config = config
        self._read = reload
        self._clock = clock
        self._address = sockets[0].getsockname()
        self._journal = journal.Journal(clock)
        self.pool = Pool(config, sockets, self._journal, clock, spawn)
        self._started = clock()
        self._timeline = history.Timeline(self._started, self.pool.totals())
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._seen = _stamps(config)
        self._tasks: set[asyncio.Task[None]] = set()

    # Its life.

    async def run(self) -> int:
        """Serve until told to stop; see `run`."""
        async with AsyncExitStack() as stack:
            where = await self._serve_admin(stack)
            stack.callback(self._journal.close)  # or the admin API would wait for those who follow
            self._take_signals(stack)
            listen = _shown(self._address)
            text = f"haclient {__version__} listens on {listen}" + (f", admin on {where}" if where else "")
            self._journal.note("Starting", "info", text, listen=listen, admin=where)
            self.pool.start()
            stack.callback(self._cancel)
            self._do(self._watch())
            self._do(self._ticks())
            ends: set[asyncio.Future[Any]] = {self._over, self.pool.refused}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            cut = await self._stop()
        if self.pool.refused.done():
            raise ConfigError(self.pool.refused.result())
        return 1 if cut else 0

    async def _serve_admin(self, stack: AsyncExitStack) -> str:
        """Open the admin API; returns where it is, "" if nowhere."""
        settings = self._first.proxy
        if not settings.admin:
            return ""
        host, port = host_and_port(settings.admin)
        app = admin.create_app(self, settings.admin_token.get_secret_value())
        try:
            port = await stack.enter_async_context(admin.serve(app, host, port))
        except OSError as error:
            raise listening.cannot("admin", settings.admin, error) from None
        return _shown((host, port))

    def _take_signals(self, stack: AsyncExitStack) -> None:
        loop = asyncio.get_running_loop()
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self._interrupted,
            signal.SIGHUP: lambda: self._do(self.reload()),
            signal.SIGUSR2: lambda: self._do(self.pool.roll()),
        }
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
            stack.callback(loop.remove_signal_handler, number)

    def stop(self) -> None:
        """Begin to stop: not ready from now on."""
        if not self._over.done():
            self._over.set_result(None)

    def _interrupted(self) -> None:
        if self._over.done():
            self.pool.kill()
        self.stop()

    async def _stop(self) -> int:
        """Finish; returns how many calls were cut off."""
        self.stop()
        systemd.notify("STOPPING=1")
        grace_s = self._config.proxy.grace_s
        self._journal.note(
            "Stopping", "info", f"stopping: calls under way have {grace_s:g} s to finish", grace_s=grace_s
        )
        cut = await self.pool.stop(grace_s)
        level, text = (
            ("warning", f"stopped: {cut} calls were cut off") if cut else ("info", "stopped: no call was lost")
        )
        self._journal.note("Stopped", level, text, cut=cut)
        return cut

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task of the supervisor failed", exc_info=task.exception())

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ticks(self) -> None:
        """Look at everything once a second."""
        told, complete = False, False
        while True:
            await asyncio.sleep(_TICK_S)
            self.pool.tick()
            self._timeline.add(self._clock(), self.pool.totals())
            ready, reason = self.ready()
            if ready is not told and not self._over.done():
                told = ready
                level, text = ("info", "reads can be served") if ready else ("warning", f"not ready: {reason}")
                self._journal.note("ReadyChanged", level, text, ready=ready, reason=reason)
            if self.pool.complete and not complete:
                complete = True
                systemd.notify("READY=1")

    # Its configuration.

    async def _watch(self) -> None:
        """Reload when a file changes."""
        while True:
            await asyncio.sleep(_TICK_S)
            now = _stamps(self._config)
            if any(self._seen.get(path, stamped) != stamped for path, stamped in now.items()):
                await self.reload()
            self._seen = now

    async def reload(self) -> None:
        """Read the configuration again, and have every worker go over to it if it is sound."""
        self._seen = _stamps(self._config)
        try:
            config = self._read()
        except (ConfigError, OSError) as error:
            reason = "; ".join(str(error).splitlines())
            self._journal.note("ConfigRejected", "error", f"the old configuration stays: {reason}", reason=reason)
            return
        fixed = [name for name in _FIXED if getattr(config.proxy, name) != getattr(self._first.proxy, name)]
        if fixed:
            keys = ", ".join(f"proxy.{name}" for name in fixed)
            self._journal.note("RestartNeeded", "warning", f"only a restart of the proxy changes {keys}", keys=fixed)
        self._config = config
        logs.configure(config.proxy)
        await self.pool.reload(config)
        self._journal.note("ConfigReloaded", "info", "the configuration and the TLS files were read again")

    # What it answers.

    def ready(self) -> tuple[bool, str]:
        """See `haclient.proxy.report.Backend.ready`."""
        if self._over.done():
            return False, "the proxy is stopping"
        serving = self.pool.serving
        if any(worker.report.ready for worker in serving):
            return True, ""
        return False, serving[0].report.reason if serving else "no worker serves"

    def fleet(self) -> FleetReport:
        """See `haclient.proxy.report.Backend.fleet`."""
        now = self._clock()
        ready, reason = self.ready()
        clusters = self._clusters()
        states = [endpoint.state for cluster in clusters for endpoint in cluster.endpoints]
        return FleetReport(
            version=__version__,
            started=self._started,
            now=now,
            ready=ready,
            reason=reason,
            up=states.count(State.UP.value),
            endpoints=len(states),
            clusters=clusters,
            drained=sorted(self.pool.drained),
            workers=[worker.status() for worker in self.pool.workers],
            totals=self.pool.totals(),
            objective=self._config.proxy.objective,
            burn=self._timeline.burn(now, self._config.proxy.objective),
        )

    def _clusters(self) -> list[ClusterReport]:
        return merge.clusters([worker.report.clusters for worker in self.pool.workers if worker.state != "draining"])

    def history(self, every_s: float) -> History:
        """See `haclient.proxy.report.Backend.history`."""
        return History(every_s=every_s, points=self._timeline.points(every_s))

    async def metrics(self) -> bytes:
        """See `haclient.proxy.report.Backend.metrics`."""
        merged = await self.pool.measure()
        return metrics.text(merged, self.fleet(), self.pool.restarts)

    async def drain(self, name: str, *, drained: bool) -> None:
        """See `haclient.proxy.report.Backend.drain`."""
        clusters = self._clusters()
        known = {c.name for c in clusters} | {e.name for c in clusters for e in c.endpoints} | self.pool.drained
        if name not in known:
            there = ", ".join(f"{c.name} ({', '.join(e.name for e in c.endpoints)})" for c in clusters)
            raise ConfigError(f"no endpoint or cluster is named {name!r}; there are: {there or 'none yet'}")
        await self.pool.drain(merge.drained(self.pool.drained, name, clusters, out=drained))
        kind, what = ("Drained", "taken out of rotation") if drained else ("Undrained", "put back into rotation")
        self._journal.note(kind, "info", f"{name} was {what} by the operator", name=name)

    def recent(self, after: int) -> list[EventReport]:
        """See `haclient.proxy.report.Backend.recent`."""
        return self._journal.recent(after)

    def events(self, after: int) -> AsyncIterator[EventReport]:
        """See `haclient.proxy.report.Backend.events`."""
        return self._journal.follow(after)


def _stamps(config: Config) -> dict[str, object]:
    """Return what changes when a file of the configuration is written anew, by path."""
    paths = [getattr(config.proxy.tls, key) for key in PROXY_TLS_FILES]
    paths += [getattr(cluster, key) for cluster in config.clusters for key in TLS_FILES]
    if config.source is not None:
        paths.append(str(config.source))
    return {path: stamp(Path(path)) for path in paths if path}


def _shown(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
