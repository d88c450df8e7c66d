"""How a framework's vector store comes to have our clients.

Decisions made here:

* A store makes its clients by their names in its module. Its constructor runs as a copy that finds ours behind those
  names, so the module itself is not patched: stock stores in the same process keep pymilvus' clients.
* Both clients of a store share one core. So they know the same servers, a read by one sees what the other wrote, and,
  as that core lives on the portal, the async client serves any number of event loops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast, final

from haclient.call import Metadata, Method, Reply
from haclient.client import AsyncMilvusClient
from haclient.core import Core
from haclient.fleet.model import FleetView
from haclient.seam import make_handler
from haclient.sync import MilvusClient

T = TypeVar("T")


def with_names(function: Callable[..., T], **names: object) -> Callable[..., T]:
    """Copy a function, with other objects behind some names of its module."""
    original = cast(FunctionType, function)
    copy = FunctionType(
        original.__code__,
        {**original.__globals__, **names},
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    copy.__kwdefaults__ = original.__kwdefaults__
    return functools.update_wrapper(copy, original)


@final
class SharedAsyncClient(AsyncMilvusClient):
    """An async client over a sync one's core; whoever owns the sync one closes the core."""

    def __init__(self, client: MilvusClient) -> None:
        self._client = client
        super().__init__(config=client.host.config)
        self.host, self._bus = client.host, client._bus

    def _make_handler(self, database: str) -> Any:
        host = self._client.host

        async def request(method: Method, message: bytes, metadata: Metadata, timeout_s: float | None) -> Reply:
            return await host.bring(host.request(method, message, metadata, timeout_s))

        # pymilvus remembers times of writes by address: with the same one, either client knows of the other's writes.
        return make_handler(request, self._client._using, database)

    _on_loop = staticmethod(MilvusClient._on_loop)

    async def _start(self) -> Core:
        return await self.host.bring(super()._start())

    async def refresh(self) -> FleetView:
        """Probe every endpoint and collection now, and return what was found."""
        return await self.host.bring(self._refresh())

    async def close(self) -> None:
        """Refuse new calls."""
        self._shut()
