"""The collections that writes go to: what each looks like, and which are mirrored.

Decision made here: that a collection is mirrored is a fact in the log, noted when it is created through haclient or has
been compared on all clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from haclient.replication.descriptions import Descriptions
from haclient.replication.log import Entry, Stream
from haclient.replication.progress import ROWS
from haclient.replication.shared import Shared

#: Facts: collections whose rows all came, or were compared, through the log: collection/<database>/<name>.
COLLECTION: Final = "collection/"


def fact_of(stream: Stream) -> str:
    """Return the name of the fact that a collection is mirrored."""
    return f"{COLLECTION}{stream[0]}/{stream[1]}"


@final
class Catalog:
    """The collections of one process.

    Args:
        shared: The parts that everybody uses.

    Attributes:
        descriptions: What they look like; ``shape`` is its method.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.descriptions = Descriptions(shared.clusters, shared.progress, shared.loop)
        self.shape = self.descriptions.shape
        self._mirrored: set[Stream] = set()

    def saw(self, entries: Sequence[Entry]) -> None:
        """Forget what entries of the log change."""
        self.descriptions.saw(entries)
        for entry in entries:
            if entry.mutation.method not in ROWS:
                self._mirrored.discard(entry.mutation.stream)

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
