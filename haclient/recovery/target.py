"""Where a backup is restored to: one cluster, or a fleet whose writes are mirrored.

Decision made here: to a mirrored fleet everything goes through the log, like any write, so all of its clusters get it
in the same order, those that are away as well. A restore waits for the clusters that are in sync, lest it fill the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, final

from haclient.acknowledge import METADATA
from haclient.errors import CallError, ConfigError, WriteNotConfirmed
from haclient.milvus import batch
from haclient.milvus.messages import Request
from haclient.milvus.methods import named
from haclient.milvus.status import Flavour, peek
from haclient.recovery.source import Fleet
from haclient.replication.position import Standing
from haclient.replication.replicator import Replicator
from haclient.replication.site import Site, SiteFailed

#: Entries of the log that a cluster in sync may be behind a restore.
_MOST_BEHIND: Final = 16
#: Time for one write through the log, and in which clusters in sync must have it, seconds.
_PATIENCE_S: Final = 120.0


class Target(Protocol):
    """Where rows and collections go.

    Attributes:
        mirrored: Whether haclient makes the keys of auto_id collections there.
    """

    mirrored: bool

    def sites(self) -> Sequence[Site]:
        """Return the clusters that have everything after `settle`."""

    async def change(self, request: Request, database: str) -> None:
        """Carry out what is no write of rows; what is so already counts as done.

        Raises:
            SiteFailed: It is refused, or nobody answers.
        """

    async def write(self, message: bytes, database: str) -> None:
        """Write whole rows with their keys (an UpsertRequest); those that are there are replaced.

        Raises:
            SiteFailed: They are refused, or nobody answers.
        """

    async def settle(self) -> None:
        """Wait until what was written before is on every cluster of `sites`."""


@final
class OneCluster:
    """A `Target`: one cluster.

    Args:
        fleet: Whose.
        cluster: Its name; "" if there is only one.

    Raises:
        ConfigError: There is none of that name, or it is not said which.
    """

    mirrored = False

    def __init__(self, fleet: Fleet, cluster: str) -> None:
        names = [member.name for member in fleet.clusters.members()]
        if cluster and cluster not in names:
            raise ConfigError(f"there is no cluster {cluster!r}; write one of {', '.join(names)}")
        if not cluster and len(names) > 1:
            raise ConfigError(
                f"there are {len(names)} clusters ({', '.join(names)}), and writes are not mirrored: name the one to "
                "restore to with --cluster"
            )
        self._site = fleet.site(cluster or names[0])

    def sites(self) -> Sequence[Site]:
        """Return the cluster."""
        return [self._site]

    async def change(self, request: Request, database: str) -> None:
        """See `Target.change`."""
        await self._site.change(request, database)

    async def write(self, message: bytes, database: str) -> None:
        """See `Target.write`."""
        method = named(batch.replaces_rows(self._site.member.flavour))
        await self._site.change(Request(method, message), database)

    async def settle(self) -> None:
        """Return: who has answered has it."""


@final
class Mirrored:
    """A `Target`: all clusters, through the mutation log.

    Args:
        fleet: Whose.
        replicator: Writes to the log, and applies it.
    """

    mirrored = True

    def __init__(self, fleet: Fleet, replicator: Replicator) -> None:
        self._fleet = fleet
        self._replicator = replicator

    def sites(self) -> Sequence[Site]:
        """Return the clusters that are in sync."""
        names = [name for name in self._names() if self._replicator.progress.standing(name) is Standing.IN_SYNC]
        if not names:
            raise SiteFailed("no cluster is in sync with the mutation log: see `haclient log show`")
        return [self._fleet.site(name) for name in names]

    async def change(self, request: Request, database: str) -> None:
        """See `Target.change`."""
        method, deadline = request.method, self._fleet.loop.time() + _PATIENCE_S
        try:
            write = self._replicator.write
            reply = await write(method, request.message, ((METADATA, "one"),), database, deadline)
        except CallError as error:
            raise SiteFailed(f"{method.name} could not be written to the mutation log: {error}") from error
        status = peek(method, reply.message) if reply.message else None
        if status is not None and (status.code or status.error_code):
            raise SiteFailed(f"the fleet refuses {method.name}: {status.reason}")
        await self.settle()

    async def write(self, message: bytes, database: str) -> None:
        """See `Target.write`."""
        loop = self._fleet.loop
        deadline = loop.time() + _PATIENCE_S
        try:
            seq = await self._replicator.restore(named("Upsert"), message, database, deadline)
        except WriteNotConfirmed as error:
            if not error.seq:
                raise SiteFailed(f"rows could not be written to the mutation log: {error}") from error
            seq = error.seq  # it happens; whether it does in time is seen next
        except CallError as error:
            raise SiteFailed(f"rows could not be written to the mutation log: {error}") from error
        await self._behind(seq - _MOST_BEHIND)

    async def settle(self) -> None:
        """See `Target.settle`."""
        await self._behind((await self._replicator.shared.log.bounds()).head)

    async def _behind(self, seq: int) -> None:
        """Wait until every cluster that is in sync has applied the log up to an entry."""
        progress = self._replicator.progress

        def done() -> bool:
            positions = [progress.positions.get(name) for name in self._names()]
            present = [one for one in positions if one is not None and one.standing is Standing.IN_SYNC]
            return bool(present) and all(one.low >= seq or one.parked for one in present)

        if not await progress.until(done, self._fleet.loop.time() + _PATIENCE_S):
            raise SiteFailed(
                f"the clusters have not applied entry {seq} of the mutation log for {_PATIENCE_S:g} s: see "
                "`haclient log show`. Run this again when they keep up; it goes on where it stopped"
            )
        for name in self._names():
            position = progress.positions.get(name)
            for stream, parked in position.parked.items() if position is not None else ():
                if parked.reason:
                    raise SiteFailed(f"cluster {name} has stopped at an entry of {stream[1]}: {parked.reason}")

    def _names(self) -> list[str]:
        members = self._fleet.clusters.members()
        return [member.name for member in members if not member.drained and not member.asynchronous]


def versions(target: Target) -> dict[str, tuple[Flavour, str]]:
    """Return flavour and version of each cluster, by name."""
    members = [site.member for site in target.sites()]
    return {member.name: (member.flavour, member.version) for member in members}
