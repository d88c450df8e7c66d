"""What the operator sees of the log, and decides about streams that have stopped.

Decision made here: of an entry is shown what it is about (names, keys, sizes), by a list of what may be shown. Values
of rows, passwords and whatever later versions add are not on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pymilvus.grpc_gen import milvus_pb2

from haclient.errors import ConfigError
from haclient.milvus import batch
from haclient.milvus.messages import Key
from haclient.replication.batching import MERGED, key_field
from haclient.replication.clusters import Clusters
from haclient.replication.decisions import decide
from haclient.replication.hold import position_of
from haclient.replication.log import Bounds, Entry, MutationLog, Stream
from haclient.replication.position import POSITION, Parked, Position, read_positions
from haclient.replication.refusals import REFUSED, Refusal

#: Keys of one entry that are shown.
_KEYS: Final = 20
#: Fields of requests that are shown.
_SHOWN: Final = frozenset(
    (
        *("alias", "collection_name", "db_name", "field_name", "index_name", "newDBName", "newName", "oldName"),
        *("partition_name", "partition_names", "replica_number", "role_name", "shards_num", "username"),
    )
)


@final
@dataclass(frozen=True, slots=True)
class ClusterAt:
    """One cluster's place in the log.

    Attributes:
        name: Its name.
        drained: The operator has taken it out.
        standing: Name of a `haclient.replication.position.Standing`; "new" if it has no place yet.
        applied: Every entry up to this one is done, but for parked streams.
        behind: Entries that it has not done, those of parked streams not counted.
        blocked: Why it takes no writes now, "" if it does.
        parked: The entry at which each parked stream has stopped, and why; "database.collection" by name.
    """

    name: str
    drained: bool
    standing: str
    applied: int
    behind: int
    blocked: str = ""
    parked: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether it applies everything as it comes."""
        return self.standing == "in_sync" and not self.parked and not self.blocked


@final
@dataclass(frozen=True, slots=True)
class LogView:
    """The log, and how far each cluster is."""

    bounds: Bounds
    clusters: tuple[ClusterAt, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@final
@dataclass(frozen=True, slots=True)
class EntryView:
    """What an entry is about.

    Attributes:
        seq: Its number.
        at: When it was appended, seconds since 1970.
        method: Name of the RPC.
        stream: "database.collection", or "all".
        size: Bytes.
        rows: Number of keys, 0 if it is not about rows.
        keys: The first of them.
        about: What else may be shown of it.
        refused: Clusters that have refused it, with their reasons.
        parked: Clusters whose stream has stopped here, with the reason.
    """

    seq: int
    at: float
    method: str
    stream: str
    size: int
    rows: int
    keys: list[Key]
    about: dict[str, Any]
    refused: dict[str, str]
    parked: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def title(stream: Stream) -> str:
    """Write a stream for people."""
    return f"{stream[0] or 'default'}.{stream[1]}" if stream[1] else "all"


async def look(log: MutationLog, clusters: Clusters) -> LogView:
    """Look how far every cluster is."""
    bounds = await log.bounds()
    members = clusters.members()
    positions = read_positions(await log.facts(POSITION), [member.name for member in members])
    views = []
    for member in members:
        position = positions.get(member.name)
        if position is None:
            views.append(ClusterAt(member.name, member.drained, "new", 0, bounds.head))
            continue
        parked = {title(stream): (one.seq, one.reason) for stream, one in position.parked.items()}
        behind = max(bounds.head - position.low, 0)
        views.append(
            ClusterAt(
                member.name, member.drained, position.standing.value, position.low, behind, position.blocked, parked
            )
        )
    return LogView(bounds, tuple(views))


async def inspect(log: MutationLog, clusters: Clusters, seq: int) -> EntryView:
    """Say what an entry is about.

    Raises:
        ConfigError: The log does not hold it.
    """
    bounds = await log.bounds()
    if not bounds.first <= seq <= bounds.head:
        holds = f"it holds {bounds.first} to {bounds.head}" if bounds.head >= bounds.first else "it is empty"
        raise ConfigError(f"the log does not hold entry {seq}: {holds}")
    entry = (await log.read(seq - 1, limit=1))[0]
    facts = await log.facts(f"{REFUSED}{seq}")
    refused = facts.get(f"{REFUSED}{seq}")
    stopped = {
        cluster: parked.reason
        for cluster, stream, parked in await parked_streams(log, clusters)
        if parked.seq == seq and stream == entry.mutation.stream
    }
    keys = _keys(entry)
    return EntryView(
        seq=seq,
        at=entry.at,
        method=entry.mutation.method,
        stream=title(entry.mutation.stream),
        size=entry.size,
        rows=len(keys),
        keys=keys[:_KEYS],
        about=_about(entry),
        refused=Refusal.decode(refused.value).clusters if refused is not None else {},
        parked=stopped,
    )


async def parked_streams(log: MutationLog, clusters: Clusters) -> list[tuple[str, Stream, Parked]]:
    """Return every stream that has stopped: cluster, stream, where and why."""
    positions = read_positions(await log.facts(POSITION), [member.name for member in clusters.members()])
    return [
        (cluster, stream, parked)
        for cluster, position in sorted(positions.items())
        for stream, parked in sorted(position.parked.items())
        if parked.reason
    ]


async def skip(log: MutationLog, cluster: str, seq: int) -> str:
    """Have a cluster pass over the entry at which a stream has stopped; returns the stream.

    Raises:
        ConfigError: No stream of the cluster has stopped there.
    """
    position = await position_of(log, cluster)
    for stream, parked in position.parked.items():
        if parked.reason and parked.seq == seq:
            await decide(log, cluster, "skip", seq)
            return title(stream)
    raise ConfigError(f"no collection of cluster {cluster!r} has stopped at entry {seq}; {_stopped(position)}")


async def retry(log: MutationLog, cluster: str, collection: str = "") -> list[str]:
    """Have a cluster try again what it could not take; returns the streams.

    Args:
        log: The mutation log.
        cluster: Which.
        collection: Its name, or database.name; "" for all that have stopped.

    Raises:
        ConfigError: None has stopped.
    """
    position = await position_of(log, cluster)
    stopped = {
        stream: parked.seq
        for stream, parked in position.parked.items()
        if parked.reason and collection in ("", stream[1], title(stream))
    }
    if not stopped:
        what = f"collection {collection!r}" if collection else "no collection"
        raise ConfigError(f"{what} of cluster {cluster!r} has stopped; {_stopped(position)}")
    for seq in stopped.values():
        await decide(log, cluster, "retry", seq)
    return sorted(map(title, stopped))


def _stopped(position: Position) -> str:
    listed = [f"{title(stream)} at {one.seq}" for stream, one in sorted(position.parked.items()) if one.reason]
    return f"stopped are: {', '.join(listed)}" if listed else "nothing has stopped there"


def _keys(entry: Entry) -> list[Key]:
    one = entry.mutation
    if one.method not in MERGED:
        return []
    try:
        return batch.keys_of(one.method, one.message, key_field(one))
    except ValueError:
        return []


def _about(entry: Entry) -> dict[str, Any]:
    kind = getattr(milvus_pb2, f"{entry.mutation.method}Request", None)
    if kind is None:
        return {}
    try:
        message = kind.FromString(entry.mutation.message)
    except DecodeError:
        return {}
    return {
        told.name: list(value) if told.name == "partition_names" else value
        for told, value in message.ListFields()
        if told.name in _SHOWN
    }
