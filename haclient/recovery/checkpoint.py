"""How far a restore is: one small file beside the backups, so that one that was cut off can go on.

Decision made here: it is kept with the backup, not with the target, and says for each collection what is certainly
there. What was under way when the process died is written once more, which changes nothing.
"""

from __future__ import annotations

import hashlib
from typing import Final, Self, final

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from haclient.milvus.digest import Digest
from haclient.recovery.errors import BackupError
from haclient.recovery.store import Store
from haclient.replication.log import Stream
from haclient.replication.position import text_of

_NONE: Final = str(Digest())


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


@final
class Done(_Part):
    """What is done of one collection.

    Attributes:
        begun: It may have been created by this restore.
        made: It has been created, with its partitions.
        files: Paths of the files of rows, and of the log, of which everything is written.
        read: Digest of all rows in these files of rows, ``rows:hash``.
        written: Digest of the rows of all these files that were written, ``rows:hash``.
        inexact: Rows of the log were written that servers give back in other words.
        verified: It has been read back.
    """

    begun: bool = False
    made: bool = False
    files: list[str] = []
    read: str = _NONE
    written: str = _NONE
    inexact: bool = False
    verified: bool = False

    def add(self, path: str, read: Digest, written: Digest) -> None:
        """Note that all of a file is written."""
        self.files.append(path)
        self.read = str(digest_of(self.read) + read)
        self.written = str(digest_of(self.written) + written)


class _All(_Part):
    writer: str
    collections: dict[str, Done]


@final
class Checkpoint:
    """How far one restore is.

    Args:
        store: Where the backups are.
        path: Of the file.
        writer: Names this process.
    """

    def __init__(self, store: Store, path: str, writer: str) -> None:
        self._store = store
        self._path = path
        self._all = _All(writer=writer, collections={})

    @classmethod
    def open(cls, store: Store, writer: str, *what: object) -> Self:
        """Take up a restore that was cut off, or begin; it blocks.

        Args:
            store: Where the backups are.
            writer: Names this process.
            what: What is restored, from where and to where: another restore has another file.
        """
        name = hashlib.sha256(orjson.dumps(what)).hexdigest()[:16]
        made = cls(store, f"restore-{name}.json", writer)
        known = made._read()
        if known is not None:
            made._all.collections = known.collections
        made.save()
        return made

    def of(self, stream: Stream) -> Done:
        """Return what is done of a collection, by its name on the target."""
        return self._all.collections.setdefault(text_of(stream), Done())

    def reset(self, stream: Stream) -> Done:
        """Forget what is done of a collection."""
        self._all.collections.pop(text_of(stream), None)
        return self.of(stream)

    def save(self, *, check: bool = False) -> None:
        """Write it down; it blocks.

        Raises:
            BackupError: Another process has taken the restore over.
        """
        found = self._read() if check else None
        if found is not None and found.writer != self._all.writer:
            raise BackupError(f"another process goes on with this restore, as {self._store.url}/{self._path} says")
        self._store.write(self._path, self._all.model_dump_json().encode())

    def delete(self) -> None:
        """Remove it: the restore is complete; it blocks."""
        self._store.delete(self._path)

    def _read(self) -> _All | None:
        try:
            return _All.model_validate_json(self._store.read(self._path))
        except (FileNotFoundError, ValidationError):
            return None


def digest_of(text: str) -> Digest:
    """Read what ``str`` of a digest wrote."""
    rows, _, total = text.partition(":")
    return Digest(int(rows), int(total, 16))
