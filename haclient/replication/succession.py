"""A new log in the place of one that was lost with its site: what ``haclient failover --force`` does then.

Decision made here: the new log begins with one cluster as it is. First that cluster is claimed for it, so that whatever
is left of the former log lets go; then its own marks tell how far it had come, which is all that can be known of what
was lost; then everything that the new log has to know is written at once, or nothing is. No other cluster may bring
back what this one never had, so all others are to be copied from it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from haclient.config.replication import Replication
from haclient.errors import CallError, ConfigError
from haclient.milvus import watermarks
from haclient.replication.catalog import fact_of
from haclient.replication.claims import CLAIM, FIRST, Claim, fence_s, latest
from haclient.replication.clusters import Clusters
from haclient.replication.failover import FailoverFailed
from haclient.replication.loads import loaded
from haclient.replication.log import MutationLog, Stream
from haclient.replication.position import POSITION, Position, Standing
from haclient.replication.roles import ROLES, decided
from haclient.replication.site import Site
from haclient.replication.watermark import Mark, mark_of

#: Time in which a cluster must show its marks, seconds.
_MARKS_S: Final = 5.0
_MOST_FACTS: Final = 64
_MILLISECONDS: Final = 1_000


@final
@dataclass(frozen=True, slots=True)
class Loss:
    """What is known of what was lost with the log.

    Attributes:
        cluster: The one that the new log begins with.
        through: It has every entry of the former log up to this one.
        head: The furthest end of that log that any cluster knows of.
        at: When its mark was written, seconds since 1970: it may lack what was written after that.
        age_s: How long ago that was, seconds.
        stopped: Collections that had stopped on it, with the entry at which each has.
        unseen: Clusters that showed no marks: nobody knows what they have.
    """

    cluster: str
    through: int
    head: int
    at: float
    age_s: float
    stopped: Mapping[str, int]
    unseen: tuple[str, ...]

    @property
    def least(self) -> int:
        """Entries that are missing at least."""
        return max(self.head - self.through, 0)


@final
@dataclass(frozen=True, slots=True)
class Begun:
    """A new log.

    Attributes:
        generation: Of the log.
        loss: What was lost.
        collections: Collections that go on in it.
        left: Collections that do not, and why.
        others: Clusters that are to be copied from the one that counts.
        rest_s: How long that one is left alone before it is written to, seconds.
    """

    generation: int
    loss: Loss
    collections: tuple[str, ...]
    left: Mapping[str, str]
    others: tuple[str, ...]
    rest_s: float


async def is_new(log: MutationLog) -> bool:
    """Say whether nobody has used a log yet."""
    return not (await log.bounds()).head and not await log.facts(POSITION) and not await log.facts(CLAIM)


async def assess(clusters: Clusters, cluster: str, now: float) -> tuple[Loss, Claim]:
    """Find out what would be lost, and the newest claim on any cluster.

    Args:
        clusters: The fleet.
        cluster: The one that the new log is to begin with.
        now: Time of day, seconds since 1970.

    Raises:
        ConfigError: There is no such cluster.
        FailoverFailed: It shows no marks, or is not whole.
    """
    names = [member.name for member in clusters.members()]
    if cluster not in names:
        raise ConfigError(f"there is no cluster {cluster!r}; write one of {', '.join(names)}")
    found = dict(zip(names, await asyncio.gather(*(_marks(clusters, name) for name in names)), strict=True))
    mark = found[cluster][0]
    if mark is None:
        raise FailoverFailed(
            f"cluster {cluster} does not answer, or holds no mark of how far it had come. If haclient never wrote to "
            "it, start with the new log, and adopt its collections with haclient verify --adopt"
        )
    if mark.position.standing is Standing.RESEEDING:
        raise FailoverFailed(f"cluster {cluster} was being copied from another one when that ended: it is not whole")
    ends = [end for other, _ in found.values() if other is not None for end in (other.head, other.position.low)]
    stopped = {".".join(filter(None, stream)) or "all": one.seq for stream, one in mark.position.parked.items()}
    unseen = tuple(name for name, (other, _) in found.items() if other is None)
    at = mark.at / _MILLISECONDS
    loss = Loss(cluster, mark.position.low, max(ends), at, max(now - at, 0.0), stopped, unseen)
    return loss, max(claim for _, claim in found.values())


async def begin(
    log: MutationLog,
    clusters: Clusters,
    settings: Replication,
    cluster: str,
    former: Claim,
    now: float,
    *,
    rng: random.Random,
) -> Begun:
    """Begin a new log with one cluster; what was begun and cut off is begun anew.

    Args:
        log: The new log.
        clusters: The fleet.
        settings: What is configured.
        cluster: The cluster.
        former: The newest claim on any cluster, see `assess`.
        now: Time of day, seconds since 1970.
        rng: Source of randomness.

    Raises:
        FailoverFailed: Somebody uses the log already, or the cluster cannot be read.
        SiteFailed: The cluster could not be read or written.
        LogError: The log failed.
    """
    site = Site(clusters, cluster, settings, rng, asyncio.get_running_loop())
    claim = Claim(former.generation + 1, rng.getrandbits(62))
    for request in claim.take():
        await site.change(request, "")
    loss, _ = await assess(clusters, cluster, now)  # what the former log's processes wrote until now counts
    names = [member.name for member in clusters.members()]
    known, left = await _collections(site)
    facts = {fact_of(stream): b"{}" for stream in known}
    facts |= {name: value for stream, is_loaded in known.items() if is_loaded for name, value in [loaded(stream)]}
    listed = list(facts)
    for at in range(0, len(listed), _MOST_FACTS):
        await log.put({name: facts[name] for name in listed[at : at + _MOST_FACTS]})
    rest_s = fence_s(settings.watermark_s) + settings.apply_timeout_s
    begun = Position(standing=Standing.AWAY, open=rest_s)
    others = Position(standing=Standing.NEEDS_RESEED)
    changes: dict[str, bytes | None] = {CLAIM: claim.encode(), **decided(clusters.members(), [cluster])}
    changes |= {POSITION + name: (begun if name == cluster else others).encode() for name in names}
    if not await log.put(changes, expect=dict.fromkeys([CLAIM, ROLES, *(POSITION + name for name in names)], 0)):
        raise FailoverFailed("another process has begun to use the new log meanwhile; begin with another one")
    rest = tuple(name for name in names if name != cluster)
    return Begun(claim.generation, loss, tuple(sorted(map(_title, known))), left, rest, rest_s)


async def _marks(clusters: Clusters, cluster: str) -> tuple[Mark | None, Claim]:
    """Read what a cluster says of itself, and the newest claim on it."""
    load, asked = watermarks.make()[-1], watermarks.read(fresh=True)
    # A server that was started anew may have forgotten that it is loaded.
    await clusters.deliver(cluster, load.method, load.message, "", _MARKS_S)
    try:
        rows = watermarks.read_rows(await clusters.ask(cluster, asked.method, asked.message, "", _MARKS_S))
    except (CallError, ValueError):
        return None, FIRST
    return mark_of(rows), latest(rows)


async def _collections(site: Site) -> tuple[dict[Stream, bool], dict[str, str]]:
    """Return the collections that can be mirrored and whether each is loaded, and the others and why they cannot."""
    known: dict[Stream, bool] = {}
    left: dict[str, str] = {}
    for stream in await site.catalogue():
        shape = await site.shape(*stream)
        if shape is None or stream[1] == watermarks.COLLECTION:
            continue
        if shape.native_auto_id:
            left[_title(stream)] = "the servers make its keys, so no two clusters can get the same ones"
        else:
            known[stream] = await site.is_loaded(shape)
    return known, left


def _title(stream: Stream) -> str:
    return ".".join(filter(None, stream))
