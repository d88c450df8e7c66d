"""How far a backup is that is being made: small files beside its own, so that one that was cut off can go on.

Decision made here: the journal is written after each file, and names only files that are whole; what it does not name
is written again. It bears the mark of the process that writes: who takes a cut-off backup over puts his own there, and
a process that finds another's stops.
"""

from __future__ import annotations

from typing import Final, final
from urllib.parse import quote

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from haclient.milvus.digest import Digest
from haclient.recovery.errors import BackupError
from haclient.recovery.manifest import MANIFEST, PROGRESS, Collection, RowsFile
from haclient.recovery.store import Store
from haclient.replication.log import Stream

_HEAD: Final = f"{PROGRESS}/backup.json"
_PLACES: Final = f"{PROGRESS}/collections"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


@final
class Head(_Part):
    """What is being made.

    Attributes:
        id: Name of the backup.
        created: When it was begun.
        parent: The backup that it goes on from, "" for a full one.
        wanted: Collections asked for; all if empty.
        cluster: The cluster that is read.
        log_id: Name of the mutation log, "" without one.
        from_seq: Entries behind this one are to be added from the log.
        writer: The process that makes it.
    """

    id: str
    created: AwareDatetime
    parent: str = ""
    wanted: list[str] = []
    cluster: str
    log_id: str = ""
    from_seq: int = 0
    writer: str


@final
class Place(_Part):
    """How far one collection is.

    Attributes:
        database: Its database, "" for the default one.
        name: Its name.
        seq: Entries of its stream up to this one are in it.
        partitions: Those that are done.
        files: Files that are done.
        total: Digest of the rows in them: 32 hexadecimal digits.
        collection: All of it, when it is done; None of one that is not, or that is not there.
        done: Nothing is left to do.
        exact: It was read once more when everything had been read, and was the same.
        counted: Rows that the server counted after it was read.
    """

    database: str
    name: str
    seq: int = 0
    partitions: list[str] = []
    files: list[RowsFile] = []
    total: str = "0" * 32
    collection: Collection | None = None
    done: bool = False
    exact: bool = False
    counted: int = 0

    @property
    def stream(self) -> Stream:
        """Its database and name."""
        return self.database, self.name

    @property
    def rows(self) -> int:
        """Rows in the files that are done."""
        return sum(file.rows for file in self.files)

    @property
    def digest(self) -> Digest:
        """Digest of the rows in the files that are done."""
        return Digest(self.rows, int(self.total, 16))

    def add(self, file: RowsFile, digest: Digest) -> None:
        """Note that a file is done."""
        whole = self.digest + digest
        self.files.append(file)
        self.total = f"{whole.total:032x}"


@final
class Journal:
    """The journal of one backup; it blocks.

    Args:
        store: Where the backup is.
        head: What is being made.
    """

    def __init__(self, store: Store, head: Head) -> None:
        self.head = head
        self._store = store

    def begin(self) -> None:
        """Write down what is being made, and by whom."""
        self._store.write(f"{self.head.id}/{_HEAD}", self.head.model_dump_json().encode())

    def save(self, place: Place) -> None:
        """Write down how far a collection is.

        Raises:
            BackupError: Another process makes this backup now.
        """
        found = _read(self._store, self.head.id)
        if found is None or found.writer != self.head.writer:
            raise BackupError(
                f"another process goes on with the backup {self.head.id} at {self._store.url}: let it, or wait until "
                "it has ended; one process at a time makes backups at one place"
            )
        self._store.write(self._path(place.stream), place.model_dump_json().encode())

    def places(self) -> list[Place]:
        """Read how far every collection is."""
        files = self._store.files(f"{self.head.id}/{_PLACES}")
        return [Place.model_validate_json(self._store.read(file.path)) for file in files]

    def _path(self, stream: Stream) -> str:
        database, name = (quote(part, safe="") for part in (stream[0] or "default", stream[1]))
        return f"{self.head.id}/{_PLACES}/{database}/{name}.json"


def unfinished(store: Store) -> list[Head]:
    """Return the backups that were cut off, the newest last; it blocks."""
    names = [name for name in store.folders() if not store.exists(f"{name}/{MANIFEST}")]
    heads = [head for name in names if (head := _read(store, name)) is not None]
    return sorted(heads, key=lambda head: (head.created, head.id))


def _read(store: Store, backup: str) -> Head | None:
    try:
        return Head.model_validate_json(store.read(f"{backup}/{_HEAD}"))
    except (FileNotFoundError, ValidationError):
        return None
