"""What became of each collection of a full backup, entry of the log by entry; and of those created since.

Decision made here: a collection is followed through its names. An entry belongs to the collection that bore its name
then, so a restore knows from the beginning which collections there are in the end, under which names, and never
restores what has been dropped. Changes of aliases, indexes and loads are not repeated either, only what they led to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

from pymilvus.grpc_gen import milvus_pb2, schema_pb2

from haclient.milvus import batch, ddl, structure
from haclient.milvus.shape import parse
from haclient.milvus.status import Flavour
from haclient.milvus.structure import DEFAULT_PARTITION, Index
from haclient.recovery.latest import Latest
from haclient.recovery.manifest import Collection, Manifest
from haclient.replication.batching import MERGED, ROWS
from haclient.replication.log import BARRIER, Entry, Stream
from haclient.replication.survey import HARMLESS

#: Method of an entry that has no effect: every cluster has refused it.
VOID: Final = "Void"
#: What is repeated on the new collection, in its order, before any row is written.
_REPEATED: Final = frozenset(
    (
        *("AddCollectionField", "AddCollectionFunction", "AddCollectionStructField", "AlterCollection"),
        *("AlterCollectionField", "AlterCollectionFunction", "AlterCollectionSchema", "DropCollectionFunction"),
    )
)


@final
@dataclass(slots=True, eq=False)
class Life:
    """One collection, from its copy or its creation on.

    Attributes:
        number: Tells it from others that have borne its name.
        stream: Its database and name.
        copy: What the full backup has of it; None of one that was created later.
        created: The request that created it; b"" of one that was copied.
        key: Name of its primary key.
        partition_key: The servers choose the partitions of its rows.
        partitions: Those it has.
        indexes: Those it has, by field and name.
        replicas: How often it is loaded, 0 if it is not.
        changes: Entries that changed what it is, and are to be repeated.
        latest: The newest entry of each key.
    """

    number: int
    stream: Stream
    copy: Collection | None
    created: bytes
    key: str
    partition_key: bool
    partitions: set[str]
    indexes: dict[tuple[str, str], Index] = field(default_factory=dict)
    replicas: int = 0
    changes: list[Entry] = field(default_factory=list)
    latest: Latest = field(default_factory=Latest)

    def partition(self, named: str) -> str:
        """Return the partition of rows as `Latest` has it, by its name in a request or in a backup."""
        return "" if self.partition_key or named == DEFAULT_PARTITION else named


@final
class Lineage:
    """The collections of a full backup and of what goes on from it.

    Args:
        full: The full backup.

    Attributes:
        databases: Names of the databases.
        aliases: The collection that each alias stands for, by database and alias.
        notes: What cannot be restored as it was.
    """

    def __init__(self, full: Manifest) -> None:
        self.databases = {one.name for one in full.databases}
        self.aliases: dict[Stream, Life] = {}
        self.notes: list[str] = []
        self._number = 0
        self._from_lite = any(text.startswith(Flavour.LITE.value) for text in full.source.values())
        #: Who has borne a name, each from behind an entry on.
        self._bearers: dict[Stream, list[tuple[int, Life | None]]] = {}
        for one in full.collections:
            life = self._begin((one.database, one.name), 0, one, b"")
            for alias in one.aliases:
                self.aliases[one.database, alias] = life

    def living(self) -> dict[Stream, Life]:
        """Return the collections that there are, by database and name."""
        return {stream: bearers[-1][1] for stream, bearers in self._bearers.items() if bearers[-1][1] is not None}

    def owner(self, entry: Entry) -> Life | None:
        """Return the collection that an entry belongs to; None if it is in no backup, or belongs to none."""
        bearers = self._bearers.get(entry.mutation.stream, ())
        at = bisect_right(bearers, entry.seq, key=lambda one: one[0]) - 1
        return bearers[at][1] if at >= 0 else None

    # What happened to collections.

    def settle(self, entry: Entry) -> None:
        """Take an entry of the full backup's own log: all that it changed is in the copy, but for rows and loads."""
        if (life := self.owner(entry)) is not None and entry.mutation.method in HARMLESS - MERGED:
            _alter(life, entry)
        for stream in _changed(entry, self._bearers):
            life = self._bearers.get(stream, [(0, None)])[-1][1]
            self._bearers[stream] = [(0, None), (entry.seq, life)]
            if life is not None and life.copy is not None:
                life.replicas = _replicas(life.copy)  # it was read after this

    def take(self, entry: Entry) -> None:
        """Take an entry of a later backup's log."""
        method, stream = entry.mutation.method, entry.mutation.stream
        if method in MERGED or method == VOID:
            return
        if stream == BARRIER:
            self._general(entry)
        elif method == "CreateCollection":
            if self.owner(entry) is None:
                self._begin(stream, entry.seq, None, entry.mutation.message)
        elif (life := self.owner(entry)) is None:
            return
        elif method == "DropCollection":
            self._bear(stream, entry.seq, None)
        elif method in _REPEATED:
            life.changes.append(entry)
        else:
            _alter(life, entry)

    def _general(self, entry: Entry) -> None:
        method, message, database = entry.mutation.method, entry.mutation.message, entry.mutation.database
        if method == "RenameCollection":
            before, after = (_stream(*one) for one in structure.renamed(message, database))
            life = self.living().get(before)
            if life is not None:
                self._bear(before, entry.seq, None)
                self._bear(after, entry.seq, life)
                life.stream = after
        elif method == "CreateDatabase":
            self.databases.add(parse(milvus_pb2.CreateDatabaseRequest, message).db_name)
        elif method == "DropDatabase":
            name = structure.dropped_database(message)
            self.databases.discard(name)
            for stream in [one for one in self.living() if one[0] == name]:
                self._bear(stream, entry.seq, None)
        elif method in ("CreateAlias", "AlterAlias", "DropAlias"):
            told = parse(getattr(milvus_pb2, f"{method}Request"), message)
            alias = _stream(told.db_name or database, told.alias)
            self.aliases.pop(alias, None)
            life = self.living().get((alias[0], told.collection_name)) if method != "DropAlias" else None
            if life is not None:
                self.aliases[alias] = life

    def _begin(self, stream: Stream, seq: int, copy: Collection | None, created: bytes) -> Life:
        self._number += 1
        if copy is not None:
            shape = copy.shape
            key, divided = shape.key, bool(shape.partition_key)
        else:
            request = parse(milvus_pb2.CreateCollectionRequest, created)
            schema = parse(schema_pb2.CollectionSchema, request.schema)
            key = next(one.name for one in schema.fields if one.is_primary_key)
            divided = any(one.is_partition_key for one in schema.fields)
        partitions = {DEFAULT_PARTITION, *(copy.partitions if copy is not None else ())}
        life = Life(self._number, stream, copy, created, key, divided, partitions)
        if copy is not None:
            for part in copy.indexes:
                index = Index(part.name, part.field, tuple(sorted(part.params.items())))
                life.indexes[part.field, part.name] = self._told(index, copy.name) if self._from_lite else index
            life.replicas = _replicas(copy)
        self._bear(stream, seq, life)
        return life

    def _told(self, index: Index, collection: str) -> Index:
        """Return the index to make in place of one of milvus-lite."""
        told = structure.untold(index)
        if told != index and "AUTOINDEX" in dict(told.params).values():
            self.notes.append(
                f"{collection}.{index.field}: AUTOINDEX in place of {dict(index.params)['index_type']}, since "
                "milvus-lite does not tell the parameters of an index"
            )
        return told

    def _bear(self, stream: Stream, seq: int, life: Life | None) -> None:
        """Note who bears a name from behind an entry on."""
        self._bearers.setdefault(stream, [(0, None)] if seq else []).append((seq, life))

    # What happened to rows.

    @staticmethod
    def follow(life: Life, entry: Entry) -> None:
        """Take what an entry did to the rows of a collection."""
        method, message = entry.mutation.method, entry.mutation.message
        if method in ROWS:
            life.latest.wrote(batch.keys_of(method, message, life.key), partition_of(life, entry), entry.seq)
        elif method == "Delete":
            told = parse(milvus_pb2.DeleteRequest, message)
            named = life.partition(told.partition_name) if told.partition_name else None
            life.latest.deleted(batch.keys_of(method, message, life.key), named)
        elif method == "DropPartition":
            told = parse(milvus_pb2.DropPartitionRequest, message)
            life.latest.dropped(life.partition(told.partition_name))
        elif method == "TruncateCollection":
            life.latest.emptied()


def partition_of(life: Life, entry: Entry) -> str:
    """Return the partition that an entry's rows are in, as `Latest` has it."""
    return life.partition(batch.partition_of(entry.mutation.message))


def _replicas(copy: Collection) -> int:
    return max(copy.replicas, 1) if copy.loaded else 0


def _stream(database: str, name: str) -> Stream:
    return ddl.default_as_empty(database), name


def _changed(entry: Entry, known: Any) -> Iterator[Stream]:
    """Yield the collections of which an entry changes more than rows."""
    method, message = entry.mutation.method, entry.mutation.message
    if method in HARMLESS or method == VOID:
        return
    if method == "RenameCollection":
        yield from (_stream(*one) for one in structure.renamed(message, entry.mutation.database))
    elif method == "DropDatabase":
        name = structure.dropped_database(message)
        yield from [stream for stream in known if stream[0] == name]
    elif entry.mutation.stream != BARRIER:
        yield entry.mutation.stream


def _alter(life: Life, entry: Entry) -> None:
    """Take what an entry did to partitions, indexes and loads."""
    method, message = entry.mutation.method, entry.mutation.message
    if method == "CreatePartition":
        life.partitions.add(parse(milvus_pb2.CreatePartitionRequest, message).partition_name)
    elif method == "DropPartition":
        life.partitions.discard(parse(milvus_pb2.DropPartitionRequest, message).partition_name)
    elif method == "LoadCollection":
        life.replicas = max(parse(milvus_pb2.LoadCollectionRequest, message).replica_number, 1)
    elif method == "LoadPartitions":
        life.replicas = max(parse(milvus_pb2.LoadPartitionsRequest, message).replica_number, 1)
    elif method == "ReleaseCollection":
        life.replicas = 0
    elif method == "CreateIndex":
        told = parse(milvus_pb2.CreateIndexRequest, message)
        params = tuple(sorted((pair.key, pair.value) for pair in told.extra_params))
        life.indexes[told.field_name, told.index_name] = Index(told.index_name, told.field_name, params)
    elif method == "DropIndex":
        told = parse(milvus_pb2.DropIndexRequest, message)
        for at in [at for at in life.indexes if _means(told.index_name, told.field_name, at)]:
            del life.indexes[at]
    elif method == "AlterIndex":
        told = parse(milvus_pb2.AlterIndexRequest, message)
        for at, index in life.indexes.items():
            if _means(told.index_name, "", at):
                given = dict(index.params) | {pair.key: pair.value for pair in told.extra_params}
                kept = sorted((key, value) for key, value in given.items() if key not in told.delete_keys)
                life.indexes[at] = replace(index, params=tuple(kept))


def _means(name: str, of_field: str, index: tuple[str, str]) -> bool:
    """Say whether an index is meant; one that was made without a name bears that of its field, to some servers."""
    where, own = index
    if name:
        return name == own or (not own and name == where) or (not own and name.startswith("_default_idx"))
    return where == of_field
