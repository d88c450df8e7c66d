"""`MilvusClient`: the sync drop-in, over the same core through one portal thread.

Decision made here: nothing is implemented twice. pymilvus' own sync client and handler run unchanged; each call is
handed to the portal's loop, where the core lives, and the calling thread waits. So any number of threads may share
one client, and a forked child goes on with a portal and a core of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import pymilvus

from haclient.blocking import make_blocking_handler
from haclient.client import DropIn
from haclient.fleet.model import FleetView
from haclient.portal import portal

T = TypeVar("T")


class MilvusClient(DropIn, pymilvus.MilvusClient):  # type: ignore[misc]
    """pymilvus' MilvusClient whose calls survive the failure of any single server; `DropIn` says what it takes."""

    _on_portal = True

    def _make_handler(self, database: str) -> Any:
        return make_blocking_handler(self.host.submit, self._using, database)

    @staticmethod
    def _on_loop(function: Callable[[], T]) -> T:
        return portal().call(function)

    def refresh(self) -> FleetView:
        """Probe every endpoint and collection now, and return what was found."""
        return self.host.run(self._refresh())

    def close(self) -> None:
        """Stop probing and close every connection."""
        self.host.close()
        self._shut()

    def __enter__(self) -> Self:
        try:
            self.host.run(self._start())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
