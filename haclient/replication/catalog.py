"""The collections that writes go to: what each looks like, and which are mirrored.

Decision made here: a description comes from a cluster that has applied every schema change in the log that this process
knows of, and is kept until the next one is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from haclient.errors import CallError, DeadlineExceeded
from haclient.milvus import messages
from haclient.milvus.shape import Shape, read_shape
from haclient.replication.batching import MERGED
from haclient.replication.log import BARRIER, Entry, Stream
from haclient.replication.position import Standing
from haclient.replication.shared import Shared

#: Facts: collections whose rows all came, or were compared, through the log: collection/<database>/<name>.
COLLECTION: Final = "collection/"
_MOST: Final = 4_096


def fact_of(stream: Stream) -> str:
    """Return the name of the fact that a collection is mirrored."""
    return f"{COLLECTION}{stream[0]}/{stream[1]}"


@final
class Catalog:
    """Descriptions by database and name or alias.

    Args:
        shared: The parts that everybody uses.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._shapes: dict[Stream, Shape] = {}
        self._changed: dict[Stream, int] = {}
        self._mirrored: set[Stream] = set()

    def saw(self, entries: Iterable[Entry]) -> None:
        """Forget what entries of the log change."""
        for entry in entries:
            if entry.mutation.method in MERGED:
                continue
            stream = entry.mutation.stream
            self._changed[stream] = entry.seq
            self._mirrored.discard(stream)
            if stream == BARRIER:
                self._shapes.clear()
                continue
            for name, shape in list(self._shapes.items()):
                if stream in (name, (shape.database, shape.collection)):
                    del self._shapes[name]

    async def shape(self, database: str, name: str, deadline: float) -> Shape:
        """Describe a collection.

        Raises:
            CallError: No cluster could; a collection that is not there has Milvus' own code.
        """
        known = self._shapes.get((database, name))
        if known is not None:
            return known
        description = await self._describe(database, name, deadline)
        if len(self._shapes) >= _MOST:
            self._shapes.clear()
        shape = self._shapes[database, name] = read_shape(description, database)
        return shape

    async def _describe(self, database: str, name: str, deadline: float) -> bytes:
        shared = self._shared
        stream = (database, name)
        needed = {one: self._changed.get(one, 0) for one in (BARRIER, stream)}

        def ready() -> list[str]:
            progress = shared.progress
            members = [member.name for member in shared.clusters.members() if not member.drained]
            found = [one for one in members if all(progress.has(one, s, seq) for s, seq in needed.items())]
            return sorted(found, key=lambda one: progress.standing(one) is not Standing.IN_SYNC)

        asked = messages.describe_collection(name, database=database)
        last: CallError | None = None
        if await shared.progress.until(lambda: bool(ready()), deadline):
            for cluster in ready():
                left_s = deadline - shared.loop.time()
                try:
                    return await shared.clusters.ask(cluster, asked.method, asked.message, database, max(left_s, 0.01))
                except CallError as error:
                    last = error
        raise last or DeadlineExceeded(f"{name}: no cluster that has its latest schema could describe it in time")

    # Which are mirrored.

    async def is_mirrored(self, stream: Stream) -> bool:
        """Say whether all of a collection's rows came, or were compared, through the log."""
        if stream not in self._mirrored and fact_of(stream) in await self._shared.log.facts(fact_of(stream)):
            self._mirrored.add(stream)
        return stream in self._mirrored

    async def adopt(self, stream: Stream) -> None:
        """Note that a collection is mirrored from now on."""
        await self._shared.log.put({fact_of(stream): b"{}"})
        self._mirrored.add(stream)

    async def drop(self, stream: Stream) -> None:
        """Note that a collection is no longer there."""
        await self._shared.log.put({fact_of(stream): None})
        self._mirrored.discard(stream)
