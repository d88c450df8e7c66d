"""Whose a cluster is: the log that writes to it has left its mark there.

Decision made here: logs that take each other's place are numbered. A log that ``haclient failover --force`` begins at
another site has a higher generation than all before it, and writes that into the clusters it takes, beside their
marks. Whoever applies looks at it again and again, and sends only if he has seen no later log there in the last
`fence_s` seconds: like a lease, but kept in the cluster, so it holds for who can reach nothing else. Then:

* a cluster shows a later log: this one is *superseded*. That is noted in it, and no process writes to it any more;
* a cluster shows an earlier log: it may hold what this one has never seen, so it has to be copied anew.

A log that nothing has taken the place of has generation 0 and leaves no claim. Fleets without another site do not look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, final

import orjson

from haclient.errors import CallError
from haclient.milvus import messages, watermarks
from haclient.milvus.messages import LoadState, Request
from haclient.milvus.status import COLLECTION_NOT_FOUND
from haclient.milvus.watermarks import Row
from haclient.replication.clusters import Clusters
from haclient.replication.log import Fact
from haclient.replication.roles import SITE

if TYPE_CHECKING:
    from haclient.replication.shared import Shared

CLAIM: Final = f"{SITE}claim"
SUPERSEDED: Final = f"{SITE}superseded"
#: Rows of claims are named so, and then by their generation; what names a stream has a slash in it.
_ROW: Final = "log "
#: Who has not seen a cluster's claim for so many times `watermark_s` sends nothing more.
_FENCE: Final = 5.0
#: Time for each step of having the marks loaded, seconds.
_LOAD_S: Final = 5.0


class Claim(NamedTuple):
    """Names a log.

    Attributes:
        generation: Higher than that of every log in whose place it came; 0 for a first one.
        log: A number drawn when it was begun, 0 for a first one.
    """

    generation: int = 0
    log: int = 0

    def encode(self) -> bytes:
        """Write it as a fact's value."""
        return orjson.dumps([*self])

    def row(self) -> Row:
        """Write it as a row of a cluster's marks."""
        return Row(f"{_ROW}{self.generation}", self.generation, self.log, 0)

    def take(self) -> list[Request]:
        """Return the requests that make a cluster this log's; a first log leaves no claim."""
        return [*watermarks.make(), watermarks.write([self.row()])] if self.generation else []


FIRST: Final = Claim()


class Superseded(Exception):
    """The cluster belongs to a later log."""


class Former(Exception):
    """The cluster belongs to an earlier log."""


def claim_of(facts: Mapping[str, Fact]) -> Claim:
    """Return which log this is, by its facts."""
    fact = facts.get(CLAIM)
    return Claim(*orjson.loads(fact.value)) if fact is not None else FIRST


def superseded_by(facts: Mapping[str, Fact]) -> str:
    """Return what is noted about a later log, "" if there is none."""
    fact = facts.get(SUPERSEDED)
    return fact.value.decode() if fact is not None else ""


def is_claim(row: Row) -> bool:
    """Say whether a row of marks is no mark but a claim."""
    return row.stream.startswith(_ROW)


def latest(rows: Iterable[Row]) -> Claim:
    """Return the newest claim among the rows of a cluster's marks."""
    return max((Claim(row.seq, row.low) for row in rows if is_claim(row)), default=FIRST)


async def read_claim(cluster: str, clusters: Clusters, timeout_s: float) -> Claim | None:
    """Return the newest claim on a cluster; None if nothing of haclient's is there.

    Raises:
        CallError: The cluster gives no answer.
        ValueError: What is there are no marks.
    """
    asked = watermarks.read(fresh=True)
    try:
        rows = watermarks.read_rows(await clusters.ask(cluster, asked.method, asked.message, "", timeout_s))
    except CallError as error:
        if error.code == COLLECTION_NOT_FOUND:
            return None
        raise
    return latest(rows) if rows else None


def fence_s(watermark_s: float) -> float:
    """Return how long a look at a cluster's claim is good for, seconds."""
    return _FENCE * watermark_s


@final
class Guard:
    """Looks at one cluster's claim for as long as a term lasts.

    Args:
        cluster: Its name.
        shared: What replication in this process has in common.
        wake: Called when the cluster may be written to, and could not before.
    """

    def __init__(self, cluster: str, shared: Shared, wake: Callable[[], None]) -> None:
        self._cluster = cluster
        self._shared = shared
        self._looked_at = float("-inf")
        self._wake = wake

    def holds(self) -> bool:
        """Say whether the cluster may be written to, as far as other logs are concerned."""
        shared = self._shared
        fresh = shared.loop.time() - self._looked_at < fence_s(shared.settings.watermark_s)
        return fresh or not self._needed()

    async def opened(self) -> bool:
        """Say whether the cluster may be written to; if not, see to it that its claim can be read.

        Whoever made the collection of marks may have died before it was loaded, and servers forget to load it.
        """
        if self.holds():
            return True
        clusters, asked = self._shared.clusters, messages.get_load_state(watermarks.COLLECTION)
        try:
            reply = await clusters.ask(self._cluster, asked.method, asked.message, "", _LOAD_S)
            state = messages.read_load_state(reply)
        except (CallError, ValueError):
            return False
        if state is LoadState.NOT_LOADED:
            for request in watermarks.make():
                await clusters.deliver(self._cluster, request.method, request.message, "", _LOAD_S)
        return False

    def _needed(self) -> bool:
        """Only where there is another site can there be another log."""
        shared = self._shared
        elsewhere = any(member.asynchronous or shared.roles.follows(member) for member in shared.clusters.members())
        return elsewhere or shared.claim.generation > 0

    async def run(self) -> None:
        """Look again and again.

        Raises:
            Superseded: A later log has taken the cluster.
            Former: The cluster is of an earlier log.
        """
        while True:
            if self._needed():
                await self._look()
            await asyncio.sleep(self._shared.settings.watermark_s)

    async def _look(self) -> None:
        shared, own, began = self._shared, self._shared.claim, self._shared.loop.time()
        try:
            found = await read_claim(self._cluster, shared.clusters, fence_s(shared.settings.watermark_s) / 2)
        except (CallError, ValueError):
            return  # a server that has just been started may not have loaded it
        if found is None or found == own:
            shut, self._looked_at = not self.holds(), began
            if shut:
                self._wake()
        elif found.generation < own.generation:
            raise Former("it belongs to a former log, and may hold what was written there and never came here")
        else:
            raise Superseded(
                f"cluster {self._cluster} belongs to a later log (generation {found.generation}, this one has "
                f"{own.generation}): the fleet was failed over to another site. Stop what still uses this log, and "
                "give its processes the configuration of that site"
            )
