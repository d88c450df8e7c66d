"""Which cluster a timestamp belongs to, and reads rewritten so that it never reaches another one.

Every cluster has its own timestamp oracle (milliseconds << 18 | counter, from its own clock). The timestamp of a write
on cluster A, sent with a read to cluster B, is worse than useless: with A's clock ahead B waits for the time to come
(up to the deadline), with A's clock behind B answers at once from stale data and no error says so.

Decisions made here:

* A timestamp is passed on only to the cluster that gave it out; otherwise the read becomes Strong there (timestamp 0,
  level Strong, no default), which waits for everything that this cluster has. That is correct for any value, about
  200 ms dearer on 2.3.5. A timestamp of which nothing is known (given out before a restart, or forgotten) counts as
  another cluster's.
* The caller may know better: the target's own timestamp that covers the write (``applied``), or that the collection's
  default level ignores the timestamp (``default_level``); then the read stays as cheap as it was.
* Strong on B says nothing of writes that have not reached B: choosing a cluster that has them is replication's work.
* A session token (bit 62, see `haclient.replication.token`) is no cluster's timestamp: it is never passed on, whoever
  sends it and however many clusters there are.
* With one cluster no other timestamp is looked at, and nothing is copied.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple, final

from haclient.call import Method
from haclient.milvus.requests import READS, Facts
from haclient.milvus.status import Flavour
from haclient.milvus.wireformat import BYTES, VARINT, embed, fields, replace_varint, replace_varints, varint_field

STRONG: Final = 0
SESSION: Final = 1
BOUNDED: Final = 2
EVENTUALLY: Final = 3
CUSTOMIZED: Final = 4

#: 0 Strong, 1 Eventually, 2 Bounded: values of guarantee_timestamp that are no time.
SPECIAL: Final = 2
#: The special value that asks for no freshness; sent where the server ignores the value.
EVENTUALLY_TIMESTAMP: Final = 1

#: From here on it is no timestamp but a place in the mutation log; milliseconds << 18 stay below until the year 2527.
TOKEN: Final = 1 << 62

# A timestamp that two clusters gave out belongs to neither.
_SHARED: Final = ""


def effective_level(timestamp: int, level: int, default: bool, default_level: int | None) -> int | None:
    """Return the consistency level by which a server answers a read; None if that is the collection's, and not known.

    Absent levels read as Strong; then the timestamp says what old SDKs meant: a value that is a time asks for it, as
    Customized does.

    Args:
        timestamp: The guarantee timestamp as sent.
        level: The level as sent.
        default: The collection's own level applies.
        default_level: The collection's own level, None if unknown.
    """
    if default:
        return default_level
    if level != STRONG or timestamp == 0:
        return level
    return {EVENTUALLY_TIMESTAMP: EVENTUALLY, SPECIAL: BOUNDED}.get(timestamp, CUSTOMIZED)


def covering(method: Method, reply: bytes, flavour: Flavour) -> int | None:
    """Return the cluster's own timestamp from which on a delivered mutation is to be seen there.

    Args:
        method: What was carried out.
        reply: The server's answer to it.
        flavour: The kind of server.

    Returns:
        The timestamp; 0 if no read needs one (what it changed are no rows, or it is Lite, which reads its own writes at
        once); None if the server has not told it (2.3.5 answers deletes so): then one that it allocates
        (AllocTimestamp) after the answer covers it.
    """
    if flavour is Flavour.LITE or method.name not in ("Insert", "Upsert", "Delete"):
        return 0
    try:
        timestamp = varint_field(reply, 9)
    except ValueError:
        return None
    return timestamp if timestamp > SPECIAL else None


class _Target(NamedTuple):
    """Where a read goes; see `Timestamps.for_cluster`."""

    cluster: str
    clusters: int
    applied: int
    required: bool
    default_level: int | None
    is_iterator: bool


@final
class Timestamps:
    """Timestamps seen in replies, and the cluster that gave each out; forgets the oldest beyond a limit."""

    def __init__(self, limit: int = 65_536) -> None:
        self._limit = limit
        self._owners: OrderedDict[int, str] = OrderedDict()
        self._latest: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def observe_write(self, cluster: str, database: str, collection: str, message: bytes) -> int:
        """Take the timestamp of a MutationResult (#9).

        Returns:
            The timestamp, 0 if the reply has none (Lite) or cannot be read.
        """
        try:
            timestamp = varint_field(message, 9)
        except ValueError:
            return 0
        if timestamp > SPECIAL:
            self.learn(cluster, timestamp)
            place = (cluster, database, collection)
            self._latest[place] = max(timestamp, self._latest.get(place, 0))
            self._latest.move_to_end(place)
            if len(self._latest) > self._limit:
                self._latest.popitem(last=False)
        return timestamp

    def learn(self, cluster: str, timestamp: int) -> None:
        """Note that a cluster gave out a timestamp (a session's, AllocTimestamp's)."""
        if timestamp <= SPECIAL:
            return
        known = self._owners.get(timestamp)
        self._owners[timestamp] = cluster if known in (None, cluster) else _SHARED
        self._owners.move_to_end(timestamp)
        if len(self._owners) > self._limit:
            self._owners.popitem(last=False)

    def rename(self, old: str, new: str) -> None:
        """Give everything of one cluster to another: they turned out to be one."""
        for timestamp, cluster in self._owners.items():
            if cluster == old:
                self._owners[timestamp] = new
        for place in [place for place in self._latest if place[0] == old]:
            moved = (new, *place[1:])
            self._latest[moved] = max(self._latest.pop(place), self._latest.get(moved, 0))

    def owner(self, timestamp: int) -> str | None:
        """Return the cluster that gave a timestamp out; None if unknown, or if two clusters gave out the same."""
        return self._owners.get(timestamp) or None

    def latest(self, cluster: str, database: str, collection: str) -> int:
        """Return the newest timestamp of a write to a collection on one cluster, 0 if none was seen."""
        return self._latest.get((cluster, database, collection), 0)

    def for_cluster(
        self,
        method: Method,
        message: bytes,
        facts: Facts,
        cluster: str,
        *,
        clusters: int,
        applied: int = 0,
        required: bool = False,
        default_level: int | None = None,
    ) -> bytes:
        """Make a read fit to be sent to a cluster.

        Args:
            method: The RPC; only Search, Query and HybridSearch carry a guarantee timestamp.
            message: The serialised request.
            facts: What `haclient.milvus.requests.inspect` read from it.
            cluster: The cluster it goes to.
            clusters: How many clusters the fleet has.
            applied: The target's own timestamp at which it has what the client's timestamp stands for, 0 if unknown.
            required: What ``applied`` stands for must be seen, also where the client sends no timestamp.
            default_level: The collection's own consistency level, None if unknown.

        Returns:
            The message itself if nothing had to change, else a changed copy.
        """
        read = READS.get(method.name)
        if read is None or facts.opaque:
            return message
        target = _Target(cluster, clusters, applied, required, default_level, facts.is_iterator)
        if method.name == "HybridSearch":
            try:
                message = self._inner(message, target)
            except ValueError:
                return message  # a search inside is malformed: every server refuses it
        wanted = self._wanted(facts.guarantee_timestamp, facts.consistency_level, facts.use_default_consistency, target)
        if wanted is None:
            return message
        return replace_varints(message, dict(zip(read[:3], wanted, strict=True)))

    def _wanted(self, timestamp: int, level: int, default: bool, target: _Target) -> tuple[int, int, int] | None:
        """Decide on (guarantee timestamp, level, use default); None to leave them."""
        effective = effective_level(timestamp, level, default, target.default_level)
        if timestamp < TOKEN and self._stays(timestamp, effective, target):
            return None
        if effective in (BOUNDED, EVENTUALLY) or (default and effective == STRONG):
            # The server computes the time from the level and ignores what is sent.
            return EVENTUALLY_TIMESTAMP, level, int(default)
        if target.applied > SPECIAL:
            return target.applied, SESSION, 0
        return 0, STRONG, 0

    def _stays(self, timestamp: int, effective: int | None, target: _Target) -> bool:
        """Say whether a timestamp that is no token may go to a cluster as it is."""
        if timestamp <= SPECIAL:
            return not (target.required and effective == SESSION)
        owner = self._owners.get(timestamp)
        # A page's snapshot time; without the server's help the client takes it from its own clock. Pages are pinned, so
        # it is this cluster's.
        return target.clusters < 2 or owner == target.cluster or (target.is_iterator and owner is None)

    def _inner(self, message: bytes, target: _Target) -> bytes:
        """Rewrite the searches (#5) inside a HybridSearch, each by its own fields."""
        parts: list[bytes] = []
        kept_from = at = 0
        for number, kind, a, b in fields(message):
            if number == 5 and kind == BYTES:
                found = {11: 0, 14: 0, 15: 0}
                for inner, inner_kind, value, _ in fields(message, a, b):
                    if inner_kind == VARINT and inner in found:
                        found[inner] = value
                wanted = self._wanted(found[11], found[14], bool(found[15]), target)
                if wanted is not None:
                    search = replace_varints(message[a:b], dict(zip((11, 14, 15), wanted, strict=True)))
                    parts += (message[kept_from:at], embed(5, search))
                    kept_from = b
            at = b
        if not parts:
            return message
        parts.append(message[kept_from:])
        return b"".join(parts)


_SCHEMA_TIMESTAMP: Final = 8


def zero_schema_timestamp(method: Method, message: bytes) -> bytes:
    """Remove the schema timestamp (#8) of an Insert or Upsert that goes to a cluster other than the client's.

    It is the update time of the collection on one cluster; any other refuses it (109), and 0 skips the check.

    Returns:
        The message itself if it has none or cannot be read, else a changed copy.
    """
    if method.name not in ("Insert", "Upsert"):
        return message
    try:
        if varint_field(message, _SCHEMA_TIMESTAMP):
            return replace_varint(message, _SCHEMA_TIMESTAMP, 0)
    except ValueError:
        pass
    return message
