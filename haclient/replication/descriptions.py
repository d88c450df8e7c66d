"""What collections look like: descriptions by database and name or alias.

Decision made here: a description comes from a cluster that has applied every schema change that this process knows of,
and is kept until the next one is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Final, final

from haclient.errors import DeadlineExceeded
from haclient.milvus import messages
from haclient.milvus.shape import Shape, read_shape
from haclient.replication.asking import ask_any
from haclient.replication.clusters import Clusters
from haclient.replication.log import BARRIER, Entry, Stream
from haclient.replication.position import Standing
from haclient.replication.progress import ROWS, Progress

_MOST: Final = 4_096
#: Time in which a cluster describes a collection before another one is asked, seconds.
_PATIENCE_S: Final = 1.0


@final
class Descriptions:
    """Descriptions of collections.

    Args:
        clusters: Who is asked.
        progress: Who has which schema changes.
        loop: Its time is the clock.
    """

    def __init__(self, clusters: Clusters, progress: Progress, loop: asyncio.AbstractEventLoop) -> None:
        self._clusters = clusters
        self._progress = progress
        self._loop = loop
        self._shapes: dict[Stream, Shape] = {}
        self._changes = 0

    def saw(self, entries: Iterable[Entry]) -> None:
        """Forget what entries of the log change."""
        for entry in entries:
            if entry.mutation.method in ROWS:
                continue
            stream = entry.mutation.stream
            if stream == BARRIER:
                self.forget()
                continue
            self._changes += 1
            for name, shape in list(self._shapes.items()):
                if stream in (name, (shape.database, shape.collection)):
                    del self._shapes[name]

    def forget(self) -> None:
        """Forget everything: something may have changed."""
        self._changes += 1
        self._shapes.clear()

    def known(self, database: str, name: str) -> Shape | None:
        """Return what is known of a collection, None if it has to be asked for."""
        return self._shapes.get((database, name))

    async def shape(self, database: str, name: str, deadline: float) -> Shape:
        """Describe a collection.

        Raises:
            CallError: No cluster could; a collection that is not there has Milvus' own code.
        """
        known = self.known(database, name)
        if known is not None:
            return known
        changes = self._changes
        shape = read_shape(await self._describe(database, name, deadline), database)
        if changes == self._changes:  # or it may be out of date already
            if len(self._shapes) >= _MOST:
                self._shapes.clear()
            self._shapes[database, name] = shape
        return shape

    async def _describe(self, database: str, name: str, deadline: float) -> bytes:
        progress = self._progress
        needed = [(one, progress.changed(one)) for one in (BARRIER, (database, name))]

        def ready() -> list[str]:
            members = [member.name for member in self._clusters.members() if not member.drained]
            found = [one for one in members if all(progress.has(one, stream, seq) for stream, seq in needed)]

            def rank(cluster: str) -> tuple[bool, bool]:
                return progress.follows(cluster), progress.standing(cluster) is not Standing.IN_SYNC

            return sorted(found, key=rank)

        asked = messages.describe_collection(name, database=database)

        def ask(cluster: str, timeout_s: float) -> Awaitable[bytes]:
            return self._clusters.ask(cluster, asked.method, asked.message, database, timeout_s)

        description = await ask_any(progress, ready, ask, _PATIENCE_S, deadline)
        if description is None:
            raise DeadlineExceeded(f"{name}: no cluster that has its latest schema could describe it in time")
        return description
