"""Keeps looking at every endpoint, for as long as the client lives.

Decision made here: one task per endpoint, each with its own rhythm and jitter, so that one dead server delays no
other's probes. The rhythm quickens while an endpoint is on trial, and traffic can wake a task early.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import final

from haclient.config import EndpointConfig
from haclient.errors import ConfigError
from haclient.events import ConfigRejected, EventBus
from haclient.fleet import breaker, identity
from haclient.fleet.fleet import Fleet
from haclient.fleet.look import Look
from haclient.fleet.node import Cluster, Node
from haclient.fleet.probe import HTTPClient

_log = logging.getLogger("haclient")

#: Once one endpoint serves, the others get this long to be found before the first call goes out, seconds.
_GRACE_S = 0.25
#: Looks at one endpoint are at least this far apart, however often it is woken, seconds.
_GAP_S = 0.1
#: A look at an endpoint on trial, seconds.
_TRIAL_S = 0.2
#: Names are resolved anew this often, seconds.
_RESOLVE_S = 15.0


@final
class Keeper:
    """The background tasks of a fleet.

    Args:
        fleet: What to look after.
        bus: Takes events.
        loop: Runs the tasks.
        rng: Spreads the looks.
    """

    def __init__(self, fleet: Fleet, bus: EventBus, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self._fleet = fleet
        self._bus = bus
        self._loop = loop
        self._rng = rng
        self._looks: dict[Node, Look] = {}
        self._first: dict[Node, asyncio.Future[None]] = {}
        self._settled = False
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self._http: HTTPClient | None = None

    async def start(self) -> None:
        """Look at every endpoint; return once one serves (and the others had a moment), or all have failed.

        Raises:
            ConfigError: Endpoints declared as one cluster are not.
        """
        fleet = self._fleet
        # A start that was refused may be tried again: what runs already is kept.
        self._http = self._http or HTTPClient()
        fleet.watch(self._watch, self._unwatch)
        await self._discover()
        if self not in self._tasks:
            self._run(self, self._keep_discovering())
        for node in list(fleet.nodes()):
            if node not in self._looks:
                self._watch(node)
        await self._settle()
        self._settled = True
        fleet.recognise()

    async def _settle(self) -> None:
        limit = self._loop.time() + self._fleet.config.timeouts.connect_s
        pending = set(self._first.values())
        while pending and not any(look.found for look in self._looks.values()):
            left = limit - self._loop.time()
            if left <= 0:
                return
            _, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            await asyncio.wait(pending, timeout=_GRACE_S)

    @property
    def meeting(self) -> bool:
        """Whether the first look at some endpoint goes on still."""
        return not all(first.done() for first in self._first.values())

    async def met(self) -> None:
        """Wait until every endpoint has been looked at once, and it is known which of them are one cluster."""
        pending = [first for first in self._first.values() if not first.done()]
        if pending:
            await asyncio.wait(pending, timeout=self._fleet.config.timeouts.connect_s)

    async def examine(self) -> None:
        """Look at every endpoint and every collection now."""
        await asyncio.gather(*(look.everything() for look in list(self._looks.values())))

    async def aclose(self) -> None:
        """Stop looking."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()

    def _run(self, owner: object, work: Coroutine[None, None, None]) -> None:
        self._tasks[owner] = self._loop.create_task(work)

    def _watch(self, node: Node) -> None:
        look = self._looks[node] = self._fleet.dialect.look(self._fleet, node, self._loop, self._http)
        first = self._first[node] = self._loop.create_future()
        self._run(node, self._look_after(node, look, first))

    def _unwatch(self, node: Node) -> None:
        self._looks.pop(node, None)
        self._first.pop(node, None)
        task = self._tasks.pop(node, None)
        if task is not None:
            task.cancel()

    async def _look_after(self, node: Node, look: Look, first: asyncio.Future[None]) -> None:
        woken = asyncio.Event()
        node.wake = woken.set
        try:
            while True:
                known = look.found
                try:
                    await look.once()
                except Exception:
                    _log.exception("a probe of %s failed in a way nobody thought of; probing goes on", node.name)
                if look.found and not known and self._settled:
                    await self._recognise()
                if not first.done():
                    first.set_result(None)
                await asyncio.sleep(_GAP_S)
                # Not wait_for: on Python 3.11 it swallows a cancellation that comes together with the wake-up.
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(self._pause(node) - _GAP_S, 0.0)):
                        await woken.wait()
                woken.clear()
        finally:
            if not first.done():
                first.cancel()

    def _pause(self, node: Node) -> float:
        health = self._fleet.config.health
        if node.gate.state == breaker.CLOSED:
            pause = health.interval_s
        elif node.gate.state == breaker.HALF_OPEN:
            pause = min(_TRIAL_S, health.interval_s)
        else:
            pause = min(max(node.gate.retry_at - self._loop.time(), _TRIAL_S), health.interval_s)
        return pause * (0.9 + 0.2 * self._rng.random())

    async def _recognise(self) -> None:
        """Compare again now that another endpoint has been seen; a running client is not stopped by a stranger.

        Catalogues are listed at different moments and collections come and go: only fresh ones convict.
        """
        suspects = {n for cluster in self._fleet.clusters for pair in identity.strangers(cluster) for n in pair}
        await asyncio.gather(*(self._looks[node].identify_anew() for node in suspects if node in self._looks))
        try:
            self._fleet.recognise()
        except ConfigError as error:
            self._bus.emit(ConfigRejected(at=self._loop.time(), reason=str(error)))

    async def _keep_discovering(self) -> None:
        while True:
            await asyncio.sleep(_RESOLVE_S * (0.9 + 0.2 * self._rng.random()))
            await self._discover()

    async def _discover(self) -> None:
        for cluster in list(self._fleet.clusters):
            if cluster.config.discovery == "dns":
                await self._resolve(cluster, cluster.config.endpoints)

    async def _resolve(self, cluster: Cluster, declared: tuple[EndpointConfig, ...]) -> None:
        """Make every address behind the declared names an endpoint; a name that does not resolve keeps what it had."""
        found: dict[str, EndpointConfig] = {}
        for endpoint in declared:
            try:
                answers = await self._loop.getaddrinfo(endpoint.host, endpoint.port, type=1)
            except OSError as error:
                for node in cluster.nodes:
                    node.last_error = f"the name {endpoint.host} does not resolve: {error}"
                return
            for *_, address in answers:
                one = EndpointConfig(host=str(address[0]), port=endpoint.port, secure=endpoint.secure)
                found[one.address] = one
        if not cluster.config.server_name and declared[0].secure:
            cluster.config = cluster.config.model_copy(update={"server_name": declared[0].host})
        self._fleet.set_endpoints(cluster, list(found.values()))
