"""A backup examined without being restored.

Decision made here: examined is what a restore would read, in the way it would read it: the chain of manifests, every
file through to its last row, and the digest of each collection's rows. So what is found well can be restored, as far as
that depends on the backup.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import final

from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.messages import Key
from haclient.milvus.pages import Page
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.manifest import MANIFEST, PROGRESS, SUMS, Collection, File, Manifest, chain
from haclient.recovery.rows import from_arrow, read_rows
from haclient.recovery.segments import read_segment
from haclient.recovery.store import Store


@final
@dataclass(slots=True)
class Findings:
    """What was examined.

    Attributes:
        backups: Names of the backups, the full one first.
        problems: What is wrong; each names its file.
        files: Files read.
        rows: Rows and entries of the log read.
        bytes: Bytes read.
        of_bytes: Bytes that there are to read.
    """

    backups: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: int = 0
    rows: int = 0
    bytes: int = 0
    of_bytes: int = 0

    @property
    def well(self) -> bool:
        """Whether it can be restored."""
        return not self.problems


def verify(store: Store, backup: str, report: Callable[[Findings], None] = lambda _: None) -> Findings:
    """Read a backup through, with all that it goes on from; it blocks.

    Args:
        store: Where it is.
        backup: Its name.
        report: Told after each file; may raise to stop.

    Raises:
        StoreFailed: The storage could not be read.
    """
    found = Findings()
    try:
        manifests = chain(store, backup)
    except BackupDamaged as error:
        found.problems.append(str(error))
        return found
    found.backups = [manifest.id for manifest in manifests]
    found.of_bytes = sum(file.bytes for manifest in manifests for file in manifest.files())
    for manifest in manifests:
        found.problems += _extra(store, manifest)
        for collection in manifest.collections:
            _collection(store, manifest, collection, found, report)
        for file in manifest.log:
            with _Examined(found, file, report):
                for entries in read_segment(store, manifest.id, file):
                    found.rows += len(entries)
    return found


def _extra(store: Store, manifest: Manifest) -> list[str]:
    """Say which files nobody has written there."""
    named = {MANIFEST, SUMS, *(file.path for file in manifest.files())}
    paths = [stored.path.removeprefix(f"{manifest.id}/") for stored in store.files(manifest.id)]
    return [
        f"{store.url}/{manifest.id}/{path} is no part of the backup"
        for path in paths
        if path not in named and not path.startswith(f"{PROGRESS}/")
    ]


def _collection(
    store: Store, manifest: Manifest, collection: Collection, found: Findings, report: Callable[[Findings], None]
) -> None:
    """Read a collection's files; its digest is looked at if all of them can be read."""
    shape, total, problems = collection.shape, Digest(), len(found.problems)
    for file in collection.files:
        with _Examined(found, file, report):
            keys: list[Key] = []
            for batch in read_rows(store, manifest.id, file, shape):
                page = Page(from_arrow(shape, batch), shape.key)
                total += digest(list(row_hashes(page).values()))
                found.rows += len(page.keys)
                keys = [min([*keys[:1], *page.keys]), max([*keys[1:], *page.keys])]
            if keys != [key for key in (file.first, file.last) if key is not None]:
                raise BackupDamaged(f"{store.url}/{manifest.id}/{file.path} has other keys than {MANIFEST} says")
    if len(found.problems) == problems and total != collection.total:
        what = f"{collection.name}: its rows are {total}, and were {collection.total} (rows:hash) when they were read"
        found.problems.append(f"{store.url}/{manifest.id}/{MANIFEST}: {what}")


@final
class _Examined:
    """Counts a file, and keeps what is wrong with it."""

    def __init__(self, found: Findings, file: File, report: Callable[[Findings], None]) -> None:
        self._found = found
        self._file = file
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if error is not None and not isinstance(error, BackupDamaged):
            return False
        if error is not None:
            self._found.problems.append(str(error))
        self._found.files += 1
        self._found.bytes += self._file.bytes
        self._report(self._found)
        return True
