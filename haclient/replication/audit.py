"""Collections compared, mended and adopted, one after the other: what ``haclient verify`` does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, final

from haclient.config.replication import Replication
from haclient.errors import ConfigError
from haclient.replication.adopt import Adoption
from haclient.replication.clusters import Clusters
from haclient.replication.log import MutationLog, Stream
from haclient.replication.repair import Repaired, Repairer
from haclient.replication.site import SiteFailed
from haclient.replication.verify import Verified, Verifier


@final
@dataclass(slots=True)
class Audited:
    """One collection.

    Attributes:
        found: What was found out, before anything was mended.
        repaired: What was mended; None if nothing was to be.
        adopted: Its writes are mirrored from now on.
        failure: Why it could not be mended or adopted, "" if it was, or was not to be.
    """

    found: Verified
    repaired: Repaired | None = None
    adopted: bool = False
    failure: str = ""

    @property
    def now(self) -> Verified:
        """The collection as it was found last."""
        return self.found if self.repaired is None or self.repaired.after is None else self.repaired.after

    @property
    def well(self) -> bool:
        """Whether all is as it should be in the end."""
        return self.now.well and not self.failure

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        repaired = asdict(self.repaired) if self.repaired is not None else None
        told = {"found": self.found.as_json(), "repaired": repaired, "adopted": self.adopted}
        return {"well": self.well, **told, "failure": self.failure}


@final
@dataclass(slots=True)
class Report:
    """All collections.

    Attributes:
        collections: One after the other.
        rows: Rows read.
        seconds: Time it took.
    """

    collections: list[Audited] = field(default_factory=list)
    rows: int = 0
    seconds: float = 0.0

    @property
    def well(self) -> bool:
        """Whether all is as it should be in the end."""
        return all(one.well for one in self.collections)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        listed = [one.as_json() for one in self.collections]
        return {"well": self.well, "rows": self.rows, "seconds": self.seconds, "collections": listed}


async def audit(
    clusters: Clusters,
    settings: Replication,
    log: MutationLog | None,
    wanted: Collection[str] = (),
    *,
    holder: str,
    rng: random.Random,
    loop: asyncio.AbstractEventLoop,
    repair: bool = False,
    trusted: str = "",
    adopt: bool = False,
    report: Callable[[Report, str], None] = lambda _, __: None,
) -> Report:
    """Compare collections, and mend or adopt them if wanted.

    Args:
        clusters: The fleet.
        settings: What is configured.
        log: The mutation log; None compares without it.
        wanted: Names of collections (or database.name), all if empty.
        holder: Name of this process.
        rng: Source of randomness.
        loop: Its time is the clock.
        repair: Mend rows that differ.
        trusted: The cluster that is right where nothing else says what is.
        adopt: Mirror the writes to collections that are the same everywhere.
        report: Told how far it is, and of which collection.

    Raises:
        ConfigError: There is no such collection or cluster.
        SiteFailed: A cluster could not be read.
        LogError: The log failed.
    """
    names = [member.name for member in clusters.members()]
    if trusted and trusted not in names:
        raise ConfigError(f"there is no cluster {trusted!r}; write one of {', '.join(names)}")
    began, done = loop.time(), Report()
    verifier = Verifier(clusters, settings, rng, loop, log)
    repairer = Repairer(verifier, holder, loop, trusted)
    adoption = Adoption(verifier, settings.adopt_rows)
    for stream in await verifier.collections(wanted):

        def read(rows: int, name: str = stream[1]) -> None:
            done.rows += rows
            done.seconds = loop.time() - began
            report(done, name)

        one = Audited(await verifier.verify(stream, read))
        done.collections.append(one)
        if repair and one.found.differing:
            await _repair(one, stream, repairer)
        if adopt and not one.failure:
            one.failure = await adoption.adopt(stream, one.now)
            one.adopted = not one.failure
        done.seconds = loop.time() - began
    return done


async def _repair(one: Audited, stream: Stream, repairer: Repairer) -> None:
    try:
        one.repaired = await repairer.repair(stream)
    except SiteFailed as error:
        one.failure = str(error)
        return
    if one.repaired.undecided:
        count = len(one.repaired.undecided)
        one.failure = f"neither the log nor a majority says what is right of {count} rows; name a cluster with --from"
