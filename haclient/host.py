"""Where a client's core lives: on which event loop, and for how long.

Decision made here: a core belongs to one event loop, and is made by the first call on it. When that loop is gone, or
the process has forked, the next call makes a new one. A sync client's core lives on the portal's loop
(`haclient.portal`), so that sync and async code share everything below this module.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, final

from haclient.call import Call, Metadata, Method, Reply
from haclient.config import Config, EndpointConfig
from haclient.config.sources import stamp
from haclient.core import Core
from haclient.events import EventBus
from haclient.milvus.requests import Facts
from haclient.portal import Pending, portal, wait
from haclient.seam import ConfigError
from haclient.transport import connector

T = TypeVar("T")

#: Makes a core that lives on a loop.
Build = Callable[[Config, EventBus, asyncio.AbstractEventLoop], Core]

_forks = 0
_lite_starts = threading.Lock()


def _forked() -> None:
    global _forks  # noqa: PLW0603 - a process has one fork count
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@final
class Host:
    """Makes, finds and closes the core for the loop at hand. Holds no reference to the client.

    Args:
        config: What is configured.
        reload: Reads the configuration again, when its file has changed.
        bus: Takes events.
        on_portal: The core is to live on the portal's loop, not on the first caller's.
        what: What the errors call its owner.
        build: Makes the core; one for Milvus unless given.
    """

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config],
        bus: EventBus,
        *,
        on_portal: bool = False,
        what: str = "client",
        build: Build | None = None,
    ) -> None:
        self.config = config
        self.bus = bus
        self.closed = False
        self._on_portal = on_portal
        self._what = what
        self._build = build or _milvus_core
        self._reload = reload
        self._core: Core | None = None
        self._forks = _forks
        self._following: asyncio.Task[None] | None = None

    @property
    def core(self) -> Core | None:
        """The core that this process has made, if any."""
        return self._core if self._forks == _forks else None

    async def request(self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None) -> Reply:
        """Answer one call on the running loop; see `haclient.core.Core.request`."""
        core = self.core
        if core is None or core.loop is not asyncio.get_running_loop():
            core = await self.enter()
        return await core.request(method, message, metadata, timeout_s)

    def submit(self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None) -> Pending[Reply]:
        """Start one call on the portal's loop, for a thread to wait for."""
        return portal().submit(self.request(method, message, metadata, timeout_s))

    async def answer(
        self,
        method: Method,
        message: bytes,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        facts: Facts | None = None,
    ) -> tuple[Reply, Call]:
        """Answer one call, and say how it went; see `haclient.core.Core.answer`."""
        core = self.core
        if core is None or core.loop is not asyncio.get_running_loop():
            core = await self.enter()
        return await core.answer(method, message, metadata, timeout_s, facts)

    def is_here(self) -> bool:
        """Say whether the core lives on the running loop."""
        core = self.core
        return core is not None and core.loop is asyncio.get_running_loop()

    async def bring(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the core's loop, whichever loop this is."""
        loop = self._loop()
        if loop is None or loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the core's loop, which is the portal's if there is none yet, and block until it ends.

        Raises:
            ConfigError: This thread runs the core's loop itself, or that loop stands still.
        """
        loop = self._loop() or portal().loop
        if not loop.is_running():
            work.close()
            raise ConfigError("this client's event loop does not run any more; make a new client for blocking calls")
        return wait(work, loop)

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that everything has to happen on, None if any will do."""
        if self._on_portal:
            return portal().loop
        core = self.core
        return core.loop if core is not None and not core.loop.is_closed() else None

    async def enter(self) -> Core:
        """Return the core of the running loop, making it if need be."""
        if self.closed:
            raise ConfigError(f"this {self._what} is closed; make a new one")
        loop = asyncio.get_running_loop()
        core = self.core
        if core is not None:
            if core.loop is loop:
                return core
            if not core.loop.is_closed():
                raise ConfigError(
                    f"this {self._what} is in use on another event loop; connections cannot be shared between loops, "
                    f"so make one {self._what} per loop"
                )
        if self._on_portal and loop is not portal().loop:
            raise ConfigError("the core of a MilvusClient lives on the portal's event loop, and answers only there")
        self._forks = _forks
        self._core = None
        return await self._make(loop)

    async def _make(self, loop: asyncio.AbstractEventLoop) -> Core:
        config = await _with_local_servers(self.config)
        if self.closed:
            raise ConfigError(f"this {self._what} was closed while it started")
        if self._core is not None and self._core.loop is loop:
            return self._core  # another first call was quicker
        core = self._core = self._build(config, self.bus, loop)
        if config.source is not None:
            source = config.source
            self._following = loop.create_task(core.follow(lambda: stamp(source), self._reload))
        return core

    async def aclose(self) -> None:
        """Stop probing and close every connection, if this is the core's loop."""
        self.closed = True
        core, self._core = self.core, None
        if core is None or core.loop is not asyncio.get_running_loop():
            return
        if self._following is not None:
            self._following.cancel()
        await core.aclose()

    def close(self) -> None:
        """Close the core, if there is one, and block until that is done."""
        if self.core is None:
            self.closed = True
        else:
            self.run(self.aclose())

    def forget(self) -> None:
        """Close in the background, when a client was dropped without ``close()``."""
        core = self.core
        if core is not None and not self.closed and not core.loop.is_closed():
            core.loop.call_soon_threadsafe(lambda: core.loop.create_task(self.aclose()))


def _milvus_core(config: Config, bus: EventBus, loop: asyncio.AbstractEventLoop) -> Core:
    rng = random.Random()
    return Core(config, connector(config, loop, rng), bus, rng, loop, time.monotonic, wall=time.time)


async def _with_local_servers(config: Config) -> Config:
    """Start milvus-lite for every ``.db`` file, in a thread since it takes seconds, and put its address in."""
    clusters = []
    for cluster in config.clusters:
        endpoints = []
        for endpoint in cluster.endpoints:
            if endpoint.scheme == "lite":
                uri = await asyncio.to_thread(_start_lite, endpoint.path)
                endpoints.append(EndpointConfig.model_validate({"name": endpoint.name, "uri": uri}))
            else:
                endpoints.append(endpoint)
        clusters.append(cluster.model_copy(update={"endpoints": tuple(endpoints)}))
    return config.model_copy(update={"clusters": tuple(clusters)})


def _start_lite(path: str) -> str:
    try:
        from milvus_lite.server_manager import server_manager_instance  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"{path}: a .db file needs milvus-lite: pip install 'haclient[demo]'") from error
    with _lite_starts:  # two starts of one file at once would find it locked by each other
        uri = server_manager_instance.start_and_get_uri(path)
    if uri is None:
        raise ConfigError(f"{path}: milvus-lite could not open it; see its log, and check that the folder exists")
    return str(uri)
