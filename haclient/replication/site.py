"""One cluster that is read from, or written to, at length: with patience, and without leaving anything under way.

Decision made here: a request that may still be worked on is never passed over. After one that went unanswered the
cluster is left alone until it answers again, and then for as long as the request was allowed to take; only then the
same request is sent once more. So nothing of a copy or a repair can land after what the log brings later.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final, TypeVar, final

from haclient.config.replication import Replication
from haclient.errors import CallError, ConfigError, DeadlineExceeded, HAClientError, Unavailable
from haclient.milvus import ddl, messages, structure
from haclient.milvus.messages import Key, LoadState, Request
from haclient.milvus.pages import MOST_ROWS, Page, page_query, read_page, rows_query
from haclient.milvus.schema import describe_index
from haclient.milvus.shape import Shape, read_shape
from haclient.replication.clusters import Clusters, Delivery, Member, Outcome
from haclient.replication.loads import is_wanted
from haclient.replication.log import MutationLog, Stream
from haclient.replication.timing import Backoff

T = TypeVar("T")

#: Time for one read, seconds.
_READ_S: Final = 30.0
#: Time without any good answer after which a cluster is given up, seconds.
_PATIENCE_S: Final = 60.0
#: A schema change, an index or a load may take this many times as long as a batch of rows.
_DDL_FACTOR: Final = 12
#: A request that has cost the connection this often is taken for what kills the server.
_MOST_DEATHS: Final = 3
#: A request answered this often by an error that says neither "later" nor "never" is refused.
_MOST_TRIES: Final = 6
#: Rows of a first page; later ones have as many as the bytes wanted allow.
_FIRST_ROWS: Final = 256
#: Time between two looks whether a collection is loaded, seconds.
_LOOK_S: Final = 0.2


class SiteFailed(HAClientError):
    """A cluster could not be read or written in the end; what was done before stays, and need not be done again."""


@final
class Site:
    """One cluster.

    Args:
        clusters: The fleet.
        name: Which of it.
        settings: What is configured.
        rng: Source of randomness.
        loop: Its time is the clock.
        holds: Says whether it may be written to now; raises if not.
    """

    def __init__(
        self,
        clusters: Clusters,
        name: str,
        settings: Replication,
        rng: random.Random,
        loop: asyncio.AbstractEventLoop,
        holds: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._clusters = clusters
        self._settings = settings
        self._rng = rng
        self._loop = loop
        self._holds = holds

    @property
    def member(self) -> Member:
        """The cluster as the fleet sees it.

        Raises:
            SiteFailed: It is not configured.
        """
        for member in self._clusters.members():
            if member.name == self.name:
                return member
        raise SiteFailed(f"there is no cluster {self.name!r} any more")

    @property
    def longest_s(self) -> float:
        """The longest that a change may be worked on, seconds."""
        return max(self._settings.apply_timeout_s * _DDL_FACTOR, _PATIENCE_S)

    # Reading.

    async def ask(self, request: Request, database: str) -> bytes:
        """Send a read, again for a while if the cluster does not answer.

        Raises:
            SiteFailed: It has given no answer for too long.
            CallError: Its answer is an error.
        """
        backoff, until = Backoff(self._rng), self._loop.time() + _PATIENCE_S
        while True:
            try:
                return await self._clusters.ask(self.name, request.method, request.message, database, _READ_S)
            except (Unavailable, DeadlineExceeded) as error:
                if self._loop.time() >= until:
                    text = f"cluster {self.name} has not answered {request.method.name} for {_PATIENCE_S:g} s"
                    raise SiteFailed(f"{text}: {error}") from error
            await asyncio.sleep(backoff.next())

    async def databases(self) -> list[str]:
        """Return the names of its databases; "" is the default one."""
        return structure.read_databases(await self.ask(structure.list_databases(), ""))

    async def catalogue(self) -> list[tuple[str, str]]:
        """Return (database, collection) of everything it has."""
        found = []
        for database in await self.databases():
            reply = await self.ask(messages.show_collections(database=database), database)
            found += [(database, name) for name in messages.read_collections(reply)]
        return sorted(found)

    async def aliases(self, database: str) -> dict[str, str]:
        """Return the collection that each alias of a database stands for."""
        reply = await self.ask(messages.show_collections(database=database), database)
        found: dict[str, str] = {}
        for name in messages.read_collections(reply):
            try:
                told = await self.ask(structure.list_aliases(name, database), database)
            except CallError:
                continue  # dropped meanwhile
            found |= dict.fromkeys(structure.read_aliases(told), name)
        return found

    async def describe(self, database: str, collection: str) -> bytes:
        """Describe a collection; b"" if there is none.

        Raises:
            CallError: The cluster's answer is another error.
        """
        try:
            return await self.ask(messages.describe_collection(collection, database=database), database)
        except CallError:
            reply = await self.ask(messages.show_collections(database=database), database)
            if collection in messages.read_collections(reply):
                raise
            return b""

    async def shape(self, database: str, collection: str) -> Shape | None:
        """Describe a collection; None if there is none."""
        description = await self.describe(database, collection)
        return read_shape(description, database) if description else None

    async def partitions(self, shape: Shape) -> list[str]:
        """Return the partitions by which rows are to be read: "" is all at once, where the servers choose them."""
        if shape.partition_key:
            return [""]
        reply = await self.ask(structure.list_partitions(shape.collection, shape.database), shape.database)
        names = structure.read_partitions(reply)
        return [""] if names == [structure.DEFAULT_PARTITION] else names

    async def indexes(self, shape: Shape) -> list[structure.Index]:
        """Return a collection's indexes."""
        request = describe_index(shape.collection, database=shape.database)
        try:
            return structure.read_indexes(await self.ask(request, shape.database))
        except CallError:
            return []  # Milvus calls having none an error

    async def replicas(self, shape: Shape) -> int:
        """Return how many replicas a loaded collection has, as far as the servers tell of any."""
        request = structure.list_replicas(shape.collection, shape.database)
        try:
            return max(structure.read_replicas(await self.ask(request, shape.database)), 1)
        except CallError:
            return 1  # milvus-lite

    async def fence(self) -> int:
        """Return a timestamp of the cluster's own: a read as fresh as that sees every write answered before.

        0 stands for a Strong read, where there are no timestamps (milvus-lite, for which it costs nothing).
        """
        try:
            return messages.read_timestamp(await self.ask(messages.alloc_timestamp(), ""))
        except CallError:
            return 0

    async def pages(
        self,
        shape: Shape,
        *,
        partition: str = "",
        after: Key | None = None,
        through: Key | None = None,
        timestamp: int = 0,
    ) -> AsyncGenerator[Page]:
        """Read rows in ascending order of the key, page by page; arguments as in `page_query`."""
        limit = _FIRST_ROWS
        wanted = self._settings.batch_bytes // 2
        while True:
            query = page_query(shape, after, limit, through=through, partition=partition, timestamp=timestamp)
            if query is None:
                return
            page = read_page(await self.ask(query, shape.database), shape)
            if not page.keys:
                return
            yield page
            after = max(page.keys)
            limit = max(min(wanted * len(page.keys) // page.size, 4 * limit, MOST_ROWS), 1)

    async def rows(self, shape: Shape, keys: list[Key], *, partition: str = "", timestamp: int = 0) -> Page:
        """Read the rows with these keys, those that are there."""
        request = rows_query(shape, keys, partition=partition, timestamp=timestamp)
        return read_page(await self.ask(request, shape.database), shape)

    async def is_loaded(self, shape: Shape) -> bool:
        """Say whether a collection can be read; if it is just being loaded, wait for that."""
        while True:
            request = messages.get_load_state(shape.collection, database=shape.database)
            state = messages.read_load_state(await self.ask(request, shape.database))
            if state is not LoadState.LOADING:
                return state is LoadState.LOADED
            await asyncio.sleep(_LOOK_S)

    @asynccontextmanager
    async def readable(self, shape: Shape, log: MutationLog | None = None) -> AsyncGenerator[bool]:
        """Have a collection loaded for a time; yields False if it certainly never had a row and need not be.

        Args:
            shape: The collection.
            log: Says whether somebody wants it loaded by the end; then it stays so.
        """
        if await self.is_loaded(shape):
            yield True
            return
        await self.change(structure.flush(shape.collection, shape.database), shape.database)
        request = structure.count_inserted(shape.collection, shape.database)
        if structure.read_inserted(await self.ask(request, shape.database)) == 0:
            yield False
            return
        try:
            await self.load(shape)
        except SiteFailed as error:
            text = f"{shape.collection} has rows on cluster {self.name}, but is not loaded there and so cannot be read"
            raise SiteFailed(f"{text}: {error}. Index and load it, or drop it, and run this again") from error
        try:
            yield True
        finally:
            now = await self.shape(shape.database, shape.collection)
            wanted = log is not None and await is_wanted(log, (shape.database, shape.collection))
            if not wanted and now is not None and now.id == shape.id:  # not another one that bears its name by now
                await self.change(structure.release(shape.collection, shape.database), shape.database)

    # Writing.

    async def load(self, shape: Shape, replicas: int = 1) -> None:
        """Load a collection, and wait until that is done."""
        await self.change(structure.load(shape.collection, shape.database, replicas), shape.database)
        if not await self.is_loaded(shape):
            raise SiteFailed(f"cluster {self.name} has not loaded {shape.collection}, though it said that it would")

    async def change(self, request: Request, database: str) -> None:
        """Send a request that changes something until it is carried out; what is so already counts as done.

        Raises:
            SiteFailed: The cluster refuses it, dies of it, or has given no good answer for too long.
        """
        backoff, until, deaths, tries = Backoff(self._rng), self._loop.time() + _PATIENCE_S, 0, 0
        timeout_s = self._settings.apply_timeout_s
        if request.method.name not in ("Insert", "Upsert", "Delete"):
            timeout_s *= _DDL_FACTOR
        while True:
            self._holds()
            delivery = await self._clusters.deliver(self.name, request.method, request.message, database, timeout_s)
            if delivery.outcome is Outcome.DONE:
                return
            tries += delivery.outcome is Outcome.LATER and delivery.sent and not delivery.blocked
            if delivery.outcome is Outcome.REFUSED or tries >= _MOST_TRIES:
                if ddl.already(request.method.name, delivery.code, delivery.reason, self.member.flavour):
                    return
                raise SiteFailed(f"cluster {self.name} refuses {request.method.name}: {delivery.reason}")
            if delivery.outcome is Outcome.LOST:
                deaths += 1
                if deaths >= _MOST_DEATHS:
                    text = f"cluster {self.name} closes the connection each time it gets this {request.method.name}"
                    raise SiteFailed(f"{text}: {delivery.reason}")
            if self._loop.time() >= until:
                text = f"cluster {self.name} has not carried out {request.method.name} for {_PATIENCE_S:g} s"
                raise SiteFailed(f"{text}: {delivery.reason}")
            await self._settle(delivery, timeout_s)
            if delivery.outcome is Outcome.UNANSWERED:
                timeout_s = min(2 * timeout_s, self.longest_s)
            await asyncio.sleep(backoff.next())

    async def _settle(self, delivery: Delivery, timeout_s: float) -> None:
        if delivery.outcome is Outcome.UNANSWERED:
            await self.rest(max(timeout_s, self._settings.settle_s))
        elif delivery.outcome is Outcome.LOST:
            await self.rest(self._settings.settle_s)

    async def rest(self, quiet_s: float) -> None:
        """Wait until the cluster answers, and then for a time, seconds.

        Raises:
            SiteFailed: It has given no answer for too long.
        """
        await self.ask(messages.show_collections(), "")
        await asyncio.sleep(quiet_s)


async def ahead(items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Fetch the next item while the last one is worked on."""

    async def fetch() -> T | None:
        return await anext(items, None)

    coming = asyncio.ensure_future(fetch())
    try:
        while (item := await coming) is not None:
            coming = asyncio.ensure_future(fetch())
            yield item
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await items.aclose()


def chosen(there: Collection[Stream], wanted: Collection[str], lacks: str) -> list[Stream]:
    """Return the collections that are wanted by name (or database.name); all if none is named.

    Args:
        there: Those there are.
        wanted: Names.
        lacks: Who has not got one that is wanted, for the message: "no cluster has a".

    Raises:
        ConfigError: One of them is not there.
    """
    found: set[Stream] = set()
    for name in wanted:
        matching = {one for one in there if name in (one[1], f"{one[0] or 'default'}.{one[1]}")}
        if not matching:
            raise ConfigError(f"{lacks} collection {name!r}")
        found |= matching
    return sorted(found if wanted else there)
