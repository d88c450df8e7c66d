"""What a backup is: its folder, and the manifest that says what must be in it.

    <id>/rows/<database>/<collection>/partition=<name>/00000.parquet    rows
    <id>/log/00000.parquet                                              entries of the mutation log
    <id>/SHA256SUMS                                                     of all files and the manifest: ``sha256sum -c``
    <id>/manifest.json                                                  written last

Decision made here: a folder is a backup once it has a manifest, which is written last and deleted first; until then it
is one that was cut off. Every file is named in the manifest with its SHA-256, and the manifest's own stands beside it.
That finds damage, and files that were mixed up; whoever can write to the storage can write sums that fit.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, final
from urllib.parse import quote

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from haclient.milvus.digest import Digest
from haclient.milvus.shape import Shape, read_shape
from haclient.milvus.structure import DEFAULT_DATABASE
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.store import Store, is_safe

#: Version of everything described here and in `haclient.recovery.rows` and `haclient.recovery.segments`.
FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
#: What the job that writes the backup notes for one that goes on with it; it is no part of the backup.
PROGRESS: Final = "progress"
#: In a folder that is being deleted, until all else is gone.
DELETING: Final = "deleting"

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")

Id = Annotated[str, Field(pattern=f"^{_ID.pattern}$")]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    # base64 in JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class File(_Part):
    """One file.

    Attributes:
        path: Below the backup's folder.
        rows: Rows in it.
        bytes: Its size.
        sha256: Its SHA-256, in hexadecimal digits.
    """

    path: str
    rows: Count
    bytes: Count
    sha256: Sha256

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        if not is_safe(self.path):
            raise ValueError(f"{self.path!r} is no path of a file in a backup")
        return self


@final
class RowsFile(File):
    """Rows of one partition of a collection, in the order of their keys (`haclient.recovery.rows`).

    Attributes:
        partition: The partition, "" if the collection was read as a whole.
        first: Lowest key, None of a file without rows.
        last: Highest key.
    """

    partition: str
    first: int | str | None
    last: int | str | None


@final
class LogFile(File):
    """Consecutive entries of the mutation log (`haclient.recovery.segments`).

    Attributes:
        first: Seq of the first entry.
        last: Seq of the last one.
    """

    first: int
    last: int


@final
class Database(_Part):
    """One database; the default one is "".

    Attributes:
        name: Its name.
        properties: Its properties, as far as the server tells them.
    """

    name: str
    properties: dict[str, str] = {}


@final
class IndexPart(_Part):
    """One index; attributes as those of `haclient.milvus.structure.Index`."""

    name: str
    field: str
    params: dict[str, str]


@final
class Collection(_Part):
    """One collection.

    Attributes:
        database: Its database, "" for the default one.
        name: Its name.
        description: The server's answer to DescribeCollection, as it came: schema, shards, consistency level,
            properties, number of partitions.
        readable: What of it people want to see; nothing is restored from this.
        partitions: Its partitions.
        indexes: Its indexes.
        aliases: Its aliases.
        loaded: Whether it could be searched.
        replicas: How often it was loaded, 0 if it was not.
        count: Rows in its files.
        digest: Sum of the hashes of the rows in its files, as `haclient.milvus.digest` makes it: 32 hexadecimal digits.
        files: Its rows.
    """

    database: str
    name: str
    description: bytes
    readable: dict[str, Any] = {}
    partitions: list[str]
    indexes: list[IndexPart] = []
    aliases: list[str] = []
    loaded: bool
    replicas: Count
    count: Count
    digest: str = Field(pattern="^[0-9a-f]{32}$")
    files: list[RowsFile]

    @property
    def shape(self) -> Shape:
        """The collection, as replicated writes see it.

        Raises:
            ValueError: Its description cannot be read.
        """
        return read_shape(self.description, self.database)

    @property
    def total(self) -> Digest:
        """Digest of all rows in its files."""
        return Digest(self.count, int(self.digest, 16))

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.count != sum(file.rows for file in self.files):
            raise ValueError(
                f"{self.name}: {self.count} rows, but {sum(file.rows for file in self.files)} in its files"
            )
        if self.shape.collection != self.name:
            raise ValueError(f"{self.name}: this is the description of {self.shape.collection}")
        return self


@final
class Manifest(_Part):
    """One backup.

    Attributes:
        format: Version of the format.
        id: Name of the backup, and of its folder.
        created: When it was begun.
        kind: ``full`` has the rows; ``incremental`` has what the log holds since its parent.
        parent: Of an incremental one, the backup that it goes on from; "" of a full one.
        seq: Entries of the mutation log up to this one are in it; None for a fleet without a log.
        from_seq: Entries up to this one are in its rows (or its parents); those behind it, up to ``seq``, in ``log``.
            The rows may hold some of these already, since they were read while writes went on.
        log_id: Name of the mutation log that the seqs are of; "" without one.
        exact: It is what the fleet held at one moment; False if rows that were read at different moments are in it.
        source: Version of each server that was read, by the cluster's name.
        notes: What the operator should know of it.
        databases: All databases.
        collections: All collections, in no order.
        log: Entries of the mutation log, in order.
    """

    format: Literal[1] = FORMAT
    id: Id
    created: AwareDatetime
    kind: Literal["full", "incremental"]
    parent: str = ""
    seq: Count | None = None
    from_seq: Count | None = None
    log_id: str = ""
    exact: bool = False
    source: dict[str, str] = {}
    notes: list[str] = []
    databases: list[Database] = []
    collections: list[Collection] = []
    log: list[LogFile] = []

    def files(self) -> Iterator[File]:
        """Go over all files but the manifest and its sums."""
        for collection in self.collections:
            yield from collection.files
        yield from self.log

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        paths = [file.path for file in self.files()]
        if len(set(paths)) < len(paths):
            raise ValueError("a file is named twice")
        if (self.kind == "incremental") != bool(self.parent):
            raise ValueError("an incremental backup has a parent, and a full one has none")
        if (self.seq is None) != (self.from_seq is None) or (self.seq is None and (self.log or self.parent)):
            raise ValueError("seq and from_seq say where the backup is in the log, or neither does")
        after = self.from_seq or 0
        for file in self.log:
            if file.first != after + 1 or file.last - after != file.rows:
                raise ValueError(f"{file.path}: entries {file.first} to {file.last} do not follow {after}")
            after = file.last
        if after != (self.seq or 0):
            raise ValueError(f"the log's entries end at {after}, not at {self.seq}")
        return self


def new_id(at: datetime, rng: random.Random) -> str:
    """Name a backup, so that names sort by time."""
    return f"{at:%Y%m%dT%H%M%SZ}-{rng.randrange(1 << 24):06x}"


def rows_path(database: str, collection: str, partition: str, number: int) -> str:
    """Return the path of a collection's rows, below the backup's folder.

    Partitions are written as other programs know them (``partition=_default``); most of these pass over folders whose
    names begin with ``_``.
    """
    folders = [quote(name, safe="") for name in (database or DEFAULT_DATABASE, collection)]
    if partition:
        folders.append(f"partition={quote(partition, safe='')}")
    return f"rows/{'/'.join(folders)}/{number:05}.parquet"


def log_path(number: int) -> str:
    """Return the path of entries of the log, below the backup's folder."""
    return f"log/{number:05}.parquet"


def finish(store: Store, manifest: Manifest) -> None:
    """Make a folder a backup, when all its files are there; others, left by a job that was cut off, are deleted.

    A job that is cut off in here finds what it noted (`PROGRESS`), or a manifest.
    """
    data = manifest.model_dump_json(indent=1).encode()
    named = {f"{manifest.id}/{file.path}" for file in manifest.files()}
    for stored in store.files(manifest.id):
        if stored.path not in named and not stored.path.startswith(f"{manifest.id}/{PROGRESS}/"):
            store.delete(stored.path)
    store.write(f"{manifest.id}/{SUMS}", _sums(manifest, data))
    store.write(f"{manifest.id}/{MANIFEST}", data)
    store.delete_folder(f"{manifest.id}/{PROGRESS}")


def read_manifest(store: Store, backup: str) -> Manifest:
    """Read what a backup is.

    Raises:
        BackupDamaged: There is none of that name, it was cut off, or its manifest is not what was written.
    """
    where = f"{store.url}/{backup}/{MANIFEST}"
    if not _ID.fullmatch(backup):
        raise BackupDamaged(f"{backup!r} is no name of a backup")
    try:
        data = store.read(f"{backup}/{MANIFEST}")
    except FileNotFoundError:
        what = "was cut off before it was complete" if store.files(backup) else "is not there"
        raise BackupDamaged(f"the backup {backup} {what}: there is no {where}") from None
    _check_format(data, where)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise BackupDamaged(f"{where} is damaged: {place}: {first['msg']}") from None
    if manifest.id != backup:
        raise BackupDamaged(f"{where} is the manifest of another backup, {manifest.id}")
    try:
        sums = store.read(f"{backup}/{SUMS}")
    except FileNotFoundError:
        raise BackupDamaged(f"{store.url}/{backup}/{SUMS} is missing, so the manifest cannot be trusted") from None
    if sums != _sums(manifest, data):
        raise BackupDamaged(f"{where} is damaged, or {store.url}/{backup}/{SUMS} is: they do not agree")
    return manifest


def _check_format(data: bytes, where: str) -> None:
    """See that this version knows the format, before anything else of it is believed."""
    try:
        known = orjson.loads(data)["format"]
    except (ValueError, TypeError, KeyError):
        raise BackupDamaged(f"{where} is damaged: it is no manifest") from None
    if known != FORMAT:
        raise BackupDamaged(f"{where} has format {known!r}, and this haclient knows {FORMAT}: update haclient")


def _sums(manifest: Manifest, data: bytes) -> bytes:
    """Write the sums in the form of ``sha256sum``."""
    lines = [f"{file.sha256}  {file.path}\n" for file in sorted(manifest.files(), key=lambda file: file.path)]
    return "".join([*lines, f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n"]).encode()


def chain(store: Store, backup: str) -> list[Manifest]:
    """Read a backup and all that it goes on from, the full one first.

    Raises:
        BackupDamaged: One of them is, or is missing, or they do not follow each other.
    """
    found = [read_manifest(store, backup)]
    while found[0].parent:
        child = found[0]
        if child.parent in {one.id for one in found}:
            raise BackupDamaged(f"the backup {child.id} goes on from {child.parent}, which goes on from itself")
        try:
            parent = read_manifest(store, child.parent)
        except BackupDamaged as error:
            raise BackupDamaged(f"the backup {child.id} cannot be used without its parent: {error}") from error
        if parent.seq != child.from_seq:
            gap = f"goes on from entry {child.from_seq} of the log, and its parent {parent.id} ends at {parent.seq}"
            raise BackupDamaged(f"the backup {child.id} {gap}")
        found.insert(0, parent)
    return found


@final
@dataclass(frozen=True, slots=True)
class Listing:
    """What a store holds.

    Attributes:
        backups: All that can be read, oldest first.
        unusable: Why each of the others is none, by its name.
    """

    backups: Sequence[Manifest]
    unusable: dict[str, str] = field(default_factory=dict)


def list_backups(store: Store) -> Listing:
    """Find all backups, and what looks like one."""
    found: list[Manifest] = []
    listing = Listing(found)
    for name in store.folders():
        if store.exists(f"{name}/{DELETING}"):
            listing.unusable[name] = "it is being deleted: prune again to go on with that"
            continue
        try:
            found.append(read_manifest(store, name))
        except BackupDamaged as error:
            listing.unusable[name] = str(error)
    found.sort(key=lambda one: (one.created, one.id))
    return listing
