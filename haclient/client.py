"""`AsyncMilvusClient`: pymilvus' own class over our core, so every method of it is there.

Decision made here: the client is a thin shell. It belongs to no event loop until its first call, and makes a new
core when it finds itself on another loop whose predecessor is gone, or in a forked child. On a second loop
beside a living first one it says so, since connections cannot be shared between loops. What it has in common with
the sync client (`haclient.sync`) is `DropIn`.
"""

from __future__ import annotations

import inspect
import itertools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Self, TypeVar

import pymilvus
from pymilvus.exceptions import MilvusException
from pymilvus.orm.connections import connections

from haclient import errors
from haclient.config import Config
from haclient.core import Core
from haclient.events import EventBus, Listener
from haclient.fleet.model import FleetView
from haclient.host import Host
from haclient.listeners.logging import LoggingListener
from haclient.seam import ConfigError, make_handler, milvus_error

T = TypeVar("T")

_numbers = itertools.count(1)


class DropIn:
    """What a client of pymilvus' becomes by standing on a core; mixed in before its class.

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

    #: Whether the core lives on the portal's loop, not on that of the first call.
    _on_portal: ClassVar[bool] = False

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
            raise milvus_error(error) from None
        self._bus = EventBus()
        self._bus.subscribe(LoggingListener(), per_call=False)
        # A file that has changed is read with the same arguments beside it.
        #: Holds the core; for what is built on this client.
        self.host = Host(
            settings, lambda: Config.load(None, settings.source, **kwargs), self._bus, on_portal=self._on_portal
        )
        self._using = f"haclient-{next(_numbers)}"
        self._timeout = timeout
        self._manager = None
        self._closed = False
        self.is_self_hosted = True
        self._config = SimpleNamespace(uri="", address=self._using, token="", db_name=settings.database)
        self._handler = self._make_handler(settings.database)
        connections._alias_handlers[self._using] = self._handler
        connections._alias_config[self._using] = {"address": self._using, "db_name": settings.database}
        self._finalizer = weakref.finalize(self, _drop, self._using, self.host)

    # What differs between the two.

    def _make_handler(self, database: str) -> Any:
        """Make pymilvus' handler over this client's core."""
        raise NotImplementedError

    @staticmethod
    def _on_loop(function: Callable[[], T]) -> T:
        """Call a function where the core and its listeners may be touched."""
        return function()

    # What pymilvus' methods call.

    def _get_connection(self) -> Any:
        if self._closed:
            raise MilvusException(message="should create connection first: this client is closed")
        return self._handler

    def get_server_type(self) -> str:
        """Return what pymilvus calls the kind of server: always self-hosted here."""
        return "milvus"

    async def _start(self) -> Core:
        """Start the core, if no call has done so."""
        core = await self.host.enter()
        try:
            await core.start()
        except errors.ConfigError as error:
            raise milvus_error(error) from error
        return core

    async def _refresh(self) -> FleetView:
        return await (await self._start()).refresh()

    def _shut(self) -> None:
        """Refuse new calls, and be forgotten by pymilvus."""
        self._closed = True
        self._finalizer.detach()
        _unregister(self._using)

    # What is ours.

    @property
    def fleet(self) -> FleetView:
        """The fleet now: immutable, cheap; without endpoints before the first call."""
        core = self.host.core
        return self._on_loop(core.view) if core is not None else FleetView((), 0.0)

    def drain(self, name: str) -> None:
        """Take an endpoint or a cluster out of rotation, by name; calls under way finish."""
        self._on_loop(partial(self._running().fleet.drain, name))

    def undrain(self, name: str) -> None:
        """Put an endpoint or a cluster back into rotation."""
        self._on_loop(partial(self._running().fleet.drain, name, drained=False))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Hear of every event (`haclient.events`); returns the function that stops it."""
        on_loop, unsubscribe = self._on_loop, self._on_loop(partial(self._bus.subscribe, listener))
        return lambda: on_loop(unsubscribe)

    def _running(self) -> Core:
        core = self.host.core
        if core is None:
            raise ConfigError("this client has not been used yet: there is nothing to drain; a `with` block starts it")
        return core

    def __repr__(self) -> str:
        name = type(self).__name__
        if self.host.core is None:
            clusters = ", ".join(cluster.name for cluster in self.host.config.clusters)
            return f"<{name} {'closed' if self._closed else 'not started'}: {clusters}>"
        return f"<{name} {self.fleet}>"


class AsyncMilvusClient(DropIn, pymilvus.AsyncMilvusClient):  # type: ignore[misc]
    """pymilvus' AsyncMilvusClient whose calls survive the failure of any single server; `DropIn` says what it takes."""

    def _make_handler(self, database: str) -> Any:
        return make_handler(self.host.request, self._using, database)

    async def _connect(self) -> None:
        """Start, if the first call has not done so; pymilvus calls it too."""
        await self._start()

    if inspect.iscoroutinefunction(pymilvus.AsyncMilvusClient._get_connection):  # from 2.6 on

        async def _get_connection(self) -> Any:
            return super()._get_connection()

    async def refresh(self) -> FleetView:
        """Probe every endpoint and collection now, and return what was found."""
        return await self._refresh()

    async def close(self) -> None:
        """Stop probing and close every connection."""
        self._shut()
        await self.host.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self._connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _drop(using: str, host: Host) -> None:
    _unregister(using)
    host.forget()


def _unregister(using: str) -> None:
    connections._alias_handlers.pop(using, None)
    connections._alias_config.pop(using, None)
