"""`AsyncMilvusClient`: pymilvus' own class over our core, so every method of it is there.

Decision made here: the client is a thin shell. It belongs to no event loop until its first call, and makes a new
core when it finds itself on another loop whose predecessor is gone, or in a forked child. On a second loop
beside a living first one it says so, since connections cannot be shared between loops.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import pymilvus
from pymilvus.exceptions import MilvusException
from pymilvus.orm.connections import connections

from haclient import errors
from haclient.call import Metadata, Method, Reply
from haclient.config import Config, EndpointConfig
from haclient.core import Core
from haclient.events import EventBus, Listener
from haclient.fleet.model import FleetView
from haclient.listeners.logging import LoggingListener
from haclient.seam import ConfigError, make_handler
from haclient.transport import connector

_numbers = itertools.count(1)
_forks = 0
_lite_starts = threading.Lock()


def _forked() -> None:
    global _forks  # noqa: PLW0603 - a process has one fork count
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Host:
    """Makes, finds and closes the core for the loop at hand. Holds no reference to the client."""

    def __init__(self, config: Config, reload: Callable[[], Config], bus: EventBus) -> None:
        self.config = config
        self._reload = reload
        self.bus = bus
        self.core: Core | None = None
        self.closed = False
        self._forks = _forks
        self._following: asyncio.Task[None] | None = None

    async def request(self, method: Method, message: bytes, metadata: Metadata, timeout_s: float | None) -> Reply:
        core = self.core
        if core is None or core.loop is not asyncio.get_running_loop() or self._forks != _forks:
            core = await self.enter()
        return await core.request(method, message, metadata, timeout_s)

    async def enter(self) -> Core:
        """Return the core of the running loop, making it if need be."""
        if self.closed:
            raise ConfigError("this client is closed; make a new one")
        loop = asyncio.get_running_loop()
        core = self.core
        if core is not None and self._forks == _forks:
            if core.loop is loop:
                return core
            if not core.loop.is_closed():
                raise ConfigError(
                    "this client is in use on another event loop; connections cannot be shared between loops, so make "
                    "one client per loop"
                )
        self._forks = _forks
        self.core = None
        return await self._make(loop)

    async def _make(self, loop: asyncio.AbstractEventLoop) -> Core:
        config = await _with_local_servers(self.config)
        if self.closed:
            raise ConfigError("this client was closed while it started")
        if self.core is not None and self.core.loop is loop:
            return self.core  # another first call was quicker
        rng = random.Random()
        core = self.core = Core(config, connector(config, loop, rng), self.bus, rng, loop, time.monotonic)
        if config.source is not None:
            source = config.source
            self._following = loop.create_task(core.follow(lambda: _stamp(source), self._reload))
        return core

    async def aclose(self) -> None:
        self.closed = True
        core, self.core = self.core, None
        if core is None or core.loop is not asyncio.get_running_loop() or self._forks != _forks:
            return
        if self._following is not None:
            self._following.cancel()
        await core.aclose()

    def forget(self) -> None:
        """Close in the background, when a client was dropped without ``close()``."""
        core = self.core
        if core is not None and not self.closed and self._forks == _forks and not core.loop.is_closed():
            core.loop.call_soon_threadsafe(lambda: core.loop.create_task(self.aclose()))


class AsyncMilvusClient(pymilvus.AsyncMilvusClient):  # type: ignore[misc]
    """pymilvus' AsyncMilvusClient whose calls survive the failure of any single server.

    Args:
        uri: One URI, several separated by commas, or a list. Each is a cluster of its own; endpoints that turn out
            to hold the same collections (by id) are recognised as one cluster. ``http``, ``https``, ``tcp``, ``unix:``
            and ``.db`` files (milvus-lite) work. Default: ``HACLIENT_URI``, ``HACLIENT_CONFIG``, ``MILVUS_URI``, then
            ``http://localhost:19530``.
        user: With ``password``: credentials, for every cluster.
        password: See ``user``.
        db_name: Database.
        token: Token, for every cluster.
        timeout: Time to connect, seconds (as in pymilvus); each method takes its own ``timeout``.
        config: Path of a TOML file, a mapping of the same shape, or a `haclient.config.Config`.
        kwargs: pymilvus' others: ``secure``, ``server_pem_path``, ``client_pem_path``, ``client_key_path``,
            ``ca_pem_path``, ``server_name``.

    Raises:
        ConfigError: What is given is wrong; the message says where and what to write.
    """

    def __init__(
        self,
        uri: str | Sequence[str] | None = None,
        user: str = "",
        password: str = "",
        db_name: str = "",
        token: str = "",
        timeout: float | None = None,
        *,
        config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
        **kwargs: Any,
    ) -> None:
        # pymilvus' __init__ is not called on purpose: it would dial.
        for name in ("dedicated", "cluster_id", "alias"):
            kwargs.pop(name, None)
        if timeout is not None:
            kwargs["timeouts"] = {"connect_s": timeout}
        kwargs |= {"user": user, "password": password, "db_name": db_name, "token": token}
        try:
            settings = Config.load(uri, config, **kwargs)
        except errors.ConfigError as error:
            raise ConfigError(str(error)) from None
        self._bus = EventBus()
        self._bus.subscribe(LoggingListener(), per_call=False)
        # A file that has changed is read with the same arguments beside it.
        self._host = _Host(settings, lambda: Config.load(None, settings.source, **kwargs), self._bus)
        self._using = f"haclient-{next(_numbers)}"
        self._timeout = timeout
        self._manager = None
        self._closed = False
        self.is_self_hosted = True
        self._config = SimpleNamespace(uri="", address=self._using, token="", db_name=settings.database)
        self._handler = make_handler(self._host.request, self._using, settings.database)
        connections._alias_handlers[self._using] = self._handler
        connections._alias_config[self._using] = {"address": self._using, "db_name": settings.database}
        self._finalizer = weakref.finalize(self, _drop, self._using, self._host)

    # What pymilvus' methods call.

    async def _connect(self) -> None:
        """Start, if the first call has not done so."""
        core = await self._host.enter()
        try:
            await core.start()
        except errors.ConfigError as error:
            raise ConfigError(str(error)) from error

    def _open_handler(self) -> Any:
        if self._closed:
            raise MilvusException(message="should create connection first: this client is closed")
        return self._handler

    async def _await_handler(self) -> Any:
        return self._open_handler()

    #: pymilvus awaits it from 2.6 on.
    _get_connection: Any = (
        _await_handler if inspect.iscoroutinefunction(pymilvus.AsyncMilvusClient._get_connection) else _open_handler
    )

    def get_server_type(self) -> str:
        """Return what pymilvus calls the kind of server: always self-hosted here."""
        return "milvus"

    async def close(self) -> None:
        """Stop probing and close every connection."""
        self._closed = True
        self._finalizer.detach()
        _unregister(self._using)
        await self._host.aclose()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # What is ours.

    @property
    def fleet(self) -> FleetView:
        """The fleet now: immutable, cheap; without endpoints before the first call."""
        core = self._host.core
        return core.view() if core is not None else FleetView((), 0.0)

    async def refresh(self) -> FleetView:
        """Probe every endpoint and collection now, and return what was found."""
        return await (await self._host.enter()).refresh()

    def drain(self, name: str) -> None:
        """Take an endpoint or a cluster out of rotation, by name; calls under way finish."""
        self._running().fleet.drain(name)

    def undrain(self, name: str) -> None:
        """Put an endpoint or a cluster back into rotation."""
        self._running().fleet.drain(name, drained=False)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Hear of every event (`haclient.events`); returns the function that stops it."""
        return self._bus.subscribe(listener)

    def _running(self) -> Core:
        core = self._host.core
        if core is None:
            raise ConfigError("this client has not been used yet: there is nothing to drain; `async with` starts it")
        return core

    def __repr__(self) -> str:
        core = self._host.core
        if core is None:
            names = ", ".join(cluster.name for cluster in self._host.config.clusters)
            return f"<AsyncMilvusClient {'closed' if self._closed else 'not started'}: {names}>"
        return f"<AsyncMilvusClient {core.view()}>"


def _drop(using: str, host: _Host) -> None:
    _unregister(using)
    host.forget()


def _unregister(using: str) -> None:
    connections._alias_handlers.pop(using, None)
    connections._alias_config.pop(using, None)


def _stamp(path: os.PathLike[str]) -> object:
    """Return what changes when a file is written anew (or a link is turned, as Kubernetes does)."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


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
