"""Has a cluster lost what it had? Asked whenever it comes back, before its mark is written anew.

Decision made here: a cluster that is not what its position says must be copied anew, which drops what it holds, so one
look does not convict it. Servers that have just been started answer reads with nothing for a while; a collection of
marks that is not there at all says more.
"""

from __future__ import annotations

from typing import Final, final

from haclient.errors import CallError
from haclient.milvus import messages, watermarks
from haclient.milvus.status import COLLECTION_NOT_FOUND
from haclient.replication.clusters import Clusters
from haclient.replication.position import Position
from haclient.replication.watermark import lost, read

#: Looks in a row that must find the mark wanting, or its collection gone.
_CONVINCED: Final = 20
_CONVINCED_GONE: Final = 3
_TIMEOUT_S: Final = 5.0


@final
class LossCheck:
    """Repeated looks at one cluster.

    Args:
        cluster: Its name.
        clusters: The fleet.

    Attributes:
        reason: What the last look found wanting, "" if nothing.
        low: Entry up to which the cluster itself says that it has all; None if it says nothing.
    """

    def __init__(self, cluster: str, clusters: Clusters) -> None:
        self.reason = ""
        self.low: int | None = None
        self._cluster = cluster
        self._clusters = clusters
        self._gone = 0
        self._behind = 0

    def begin(self) -> None:
        """Start over: the cluster has been away."""
        self.reason = ""
        self.low = None
        self._gone = self._behind = 0

    async def look(self, position: Position) -> bool:
        """Look once; returns whether the cluster has what its position says."""
        if not position.marked:
            return True
        if not await self._is_there():
            self._gone += 1
            self.low = None
            self.reason = "it is empty: even the marks that were written into it are gone"
            return False
        self._gone = 0
        for request in watermarks.make():  # loads it; a server that was restarted may not have
            await self._clusters.deliver(self._cluster, request.method, request.message, "", _TIMEOUT_S)
        try:
            mark = await read(self._cluster, self._clusters, _TIMEOUT_S, fresh=True)
        except (CallError, ValueError):
            return False
        if not lost(mark, position):
            self.begin()
            return True
        self._behind += 1
        self.low = mark.position.low if mark is not None else None
        known = "nothing" if self.low is None else f"entry {self.low}"
        self.reason = f"it has lost data: it had entry {position.marked} of the log, and now knows of {known}"
        return False

    @property
    def convinced(self) -> bool:
        """Whether it is certain by now that something was lost."""
        return self._gone >= _CONVINCED_GONE or self._behind >= _CONVINCED

    async def _is_there(self) -> bool:
        asked = messages.describe_collection(watermarks.COLLECTION)
        try:
            await self._clusters.ask(self._cluster, asked.method, asked.message, "", _TIMEOUT_S)
        except CallError as error:
            return error.code != COLLECTION_NOT_FOUND
        return True
