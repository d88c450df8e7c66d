"""One collection compared across clusters, range of keys by range of keys, while it is written to.

Decisions made here:

* Every cluster is read once, in the order of keys, side by side. A range ends where the nearest page does; ranges whose
  digests agree are done with, in the others the keys are told apart by the hashes that are at hand.
* What differs then is only suspected: a write may have reached one cluster and not yet another. Suspects are read again
  when every cluster has applied the log as far as it went before; those that still differ, and that nothing in the log
  has touched since, do differ.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Final, final

from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.messages import Key
from haclient.milvus.pages import Page
from haclient.milvus.shape import Shape
from haclient.replication.site import Site, ahead

#: Suspects that are looked at together.
_SUSPECTS: Final = 1_000
#: Times that keys which are written all the time are looked at.
_MOST_LOOKS: Final = 10
#: Time between two looks without a log, seconds.
_PAUSE_S: Final = 0.5


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose row is not the same everywhere.

    Attributes:
        key: The key.
        partition: The partition that was compared, "" for the whole collection.
        rows: The row's hash on each cluster, None where there is no such row.
        seq: End of the log that they all had then, 0 without a log.
    """

    key: Key
    partition: str
    rows: Mapping[str, bytes | None]
    seq: int


@final
@dataclass(slots=True)
class Counted:
    """What has been compared.

    Attributes:
        rows: Rows seen on each cluster.
        digests: Digest of all rows of each cluster, as they were seen.
        moving: Keys that were written each time they were looked at; whether they differ is not known.
    """

    rows: dict[str, int]
    digests: dict[str, Digest]
    moving: int = 0


class Settling:
    """How a comparison waits for clusters to have the same writes; this one knows of no log, and just waits."""

    async def settle(self) -> int:
        """Wait until what was written before this call is on every cluster; return the end of the log then."""
        await asyncio.sleep(_PAUSE_S)
        return 0

    async def touched(self, keys: Collection[Key]) -> set[Key]:
        """Return those of some keys that have been written to since the last `settle` began."""
        return set()


@final
class Comparison:
    """One collection on several clusters.

    Args:
        sites: The clusters.
        shape: The collection.
        settling: Waits for writes.
        read: Told of rows as they are read.
    """

    def __init__(
        self, sites: Sequence[Site], shape: Shape, settling: Settling, read: Callable[[int], None] = lambda _: None
    ) -> None:
        self.counted = Counted({site.name: 0 for site in sites}, {site.name: Digest() for site in sites})
        self._sites = sites
        self._shape = shape
        self._settling = settling
        self._read = read

    async def run(self) -> AsyncGenerator[Difference]:
        """Compare everything; yields what differs.

        Raises:
            SiteFailed: A cluster cannot be read.
            CallError: A cluster cannot read the collection.
        """
        for partition in await self._sites[0].partitions(self._shape):
            suspects: list[Key] = []
            async with aclosing(self._suspects(partition)) as found:
                async for key in found:
                    suspects.append(key)
                    if len(suspects) == _SUSPECTS:
                        for difference in await self.confirm(suspects, partition):
                            yield difference
                        suspects = []
            for difference in await self.confirm(suspects, partition):
                yield difference

    # Range by range.

    async def _suspects(self, partition: str) -> AsyncGenerator[Key]:
        await self._settling.settle()
        async with AsyncExitStack() as stack:
            readers = []
            for site in self._sites:
                pages = site.pages(self._shape, partition=partition, timestamp=await site.fence())
                coming = await stack.enter_async_context(aclosing(ahead(pages)))
                readers.append(_Reader(site.name, coming))
            while True:
                await asyncio.gather(*(reader.fill() for reader in readers))
                ends = [reader.keys[-1] for reader in readers if reader.keys and not reader.ended]
                if not ends and not any(reader.keys for reader in readers):
                    return
                through = min(ends) if ends else None
                for key in self._differing([(one.name, one.take(through)) for one in readers]):
                    yield key

    def _differing(self, ranges: list[tuple[str, dict[Key, bytes]]]) -> list[Key]:
        """Return the keys of a range that are not the same on all clusters."""
        digests = []
        for name, rows in ranges:
            digests.append(digest(list(rows.values())))
            self.counted.rows[name] += len(rows)
            self.counted.digests[name] += digests[-1]
            self._read(len(rows))
        if len(set(digests)) == 1:
            return []
        keys = {key for _, rows in ranges for key in rows}
        return sorted(key for key in keys if len({rows.get(key) for _, rows in ranges}) > 1)

    # Key by key.

    async def confirm(self, keys: Collection[Key], partition: str) -> list[Difference]:
        """Return those of some keys that do differ."""
        found: list[Difference] = []
        left = list(keys)
        for _ in range(_MOST_LOOKS):
            if not left:
                return found
            differing = await self._look(left, partition, await self._settling.settle())
            touched = await self._settling.touched([one.key for one in differing])
            found += [one for one in differing if one.key not in touched]
            left = [one.key for one in differing if one.key in touched]
        self.counted.moving += len(left)
        return found

    async def _look(self, keys: list[Key], partition: str, seq: int) -> list[Difference]:
        """Read keys on every cluster; return those whose rows are not the same."""

        async def read(site: Site) -> dict[Key, bytes]:
            found: dict[Key, bytes] = {}
            fence = await site.fence()
            rest = iter(keys)
            while some := list(islice(rest, _SUSPECTS)):
                found |= row_hashes(await site.rows(self._shape, some, partition=partition, timestamp=fence))
            return found

        rows = dict(zip([site.name for site in self._sites], await _all(read, self._sites), strict=True))
        told = [Difference(key, partition, {name: one.get(key) for name, one in rows.items()}, seq) for key in keys]
        return [one for one in told if len(set(one.rows.values())) > 1]


async def _all(read: Callable[[Site], Awaitable[dict[Key, bytes]]], sites: Sequence[Site]) -> list[dict[Key, bytes]]:
    return await asyncio.gather(*map(read, sites))


@final
class _Reader:
    """The rows of one cluster, in the order of their keys, as far as they have been read and not been compared."""

    def __init__(self, name: str, pages: AsyncGenerator[Page]) -> None:
        self.name = name
        self.keys: list[Key] = []
        self.ended = False
        self._rows: dict[Key, bytes] = {}
        self._pages = pages

    async def fill(self) -> None:
        """Have at least one row, unless there is none left."""
        if self.keys or self.ended:
            return
        page = await anext(self._pages, None)
        self.ended = page is None
        self._rows = row_hashes(page) if page is not None else {}
        self.keys = list(self._rows)

    def take(self, through: Key | None) -> dict[Key, bytes]:
        """Return the rows up to a key, and keep the rest."""
        count = len(self.keys) if through is None else bisect_right(self.keys, through)
        taken = {key: self._rows[key] for key in self.keys[:count]}
        self.keys = self.keys[count:]
        return taken
