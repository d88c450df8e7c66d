"""Where backups are: a folder or a bucket, as a flat space of files that are written whole or not at all.

Decision made here: a file appears under its name when its last byte is safe, never before, so whatever is listed is
complete however its writer died. In a folder it is written beside its place (``.part``), synced and renamed; in a
bucket, which shows an object once its upload is complete, it is spooled to an unnamed temporary file and then sent.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO, Final, final
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from haclient.errors import ConfigError
from haclient.recovery.errors import BackupDamaged, StoreFailed

#: Ending of files that are being written; one that is left behind was cut off.
PART: Final = ".part"
_PART_OF_PATH: Final = re.compile(r"[A-Za-z0-9_%~-][A-Za-z0-9._%~=-]*")
_BLOCK_BYTES: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """One file.

    Attributes:
        path: Its path below the root.
        size: Bytes.
    """

    path: str
    size: int


@final
class Sink(io.RawIOBase):
    """A file that is being written, from its beginning to its end.

    Attributes:
        size: Bytes written so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.size = 0
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of what has been written, in hexadecimal digits."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def tell(self) -> int:
        """Return how much has been written."""
        return self.size

    def write(self, data: object, /) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._file.write(view)
        self._hash.update(view)
        self.size += len(view)
        return len(view)


def is_safe(path: str) -> bool:
    """Say whether a path stays below the root on every storage, and means the same on each."""
    return all(_PART_OF_PATH.fullmatch(part) for part in path.split("/"))


def open_store(url: str) -> Store:
    """Open a folder or a bucket; nothing is read or made yet.

    Args:
        url: A folder, or ``s3://bucket/prefix``. Credentials and the endpoint of a bucket come from the usual
            environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ...) or
            profiles, or from the URL's parameters ``endpoint_override``, ``region`` and ``scheme``.

    Raises:
        ConfigError: It is neither.
    """
    if not url.startswith("s3://"):
        if "://" in url:
            scheme = url.partition("://")[0]
            raise ConfigError(f"backups cannot be kept at {scheme}://: write a folder, or s3://bucket/prefix")
        folder = Path(url).expanduser().absolute()
        return Store(str(folder), fs.LocalFileSystem(), str(folder), folder)
    shown = _without_secrets(url)
    try:
        system, root = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, OSError, ValueError) as error:
        # The text of the error may hold the URL, and the URL a secret.
        told = str(error).replace(url, shown)
        raise ConfigError(f"{shown} is no usable address of a bucket (s3://bucket/prefix): {told}") from None
    return Store(shown, system, root.rstrip("/"), None)


def _without_secrets(url: str) -> str:
    """Return a bucket's address without user, password and parameters."""
    rest = url.removeprefix("s3://").rpartition("@")[2]
    return f"s3://{urlsplit('//' + rest).netloc}{urlsplit('//' + rest).path}"


@final
class Store:
    """A folder or a bucket; made by `open_store`.

    Paths are relative to its root, of parts of letters, digits and ``._%~=-`` between slashes.

    Every method may raise:
        StoreFailed: The storage could not be reached, or refused.
    """

    def __init__(self, url: str, system: fs.FileSystem, root: str, folder: Path | None) -> None:
        self.url = url
        self._system = system
        self._root = root
        self._folder = folder

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def read(self, path: str) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: There is none.
        """
        with self.open_read(path) as file, self._failing("read", path):
            return bytes(file.read())

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file, all or nothing; one that is there is replaced."""
        with self.open_write(path) as sink:
            sink.write(data)

    @contextmanager
    def open_read(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a file for reading anywhere in it.

        Raises:
            FileNotFoundError: There is none.
        """
        with self._failing("read", path):
            file = self._system.open_input_file(self._full(path))
        with file:
            yield file

    @contextmanager
    def open_write(self, path: str) -> Iterator[Sink]:
        """Open a file for writing; it is there when the block is left, and unless that raises.

        One file is written by one writer at a time.
        """
        full = self._full(path)
        if self._folder is not None:
            with self._failing("write", path), _replacing(Path(full), self._folder) as file:
                yield Sink(file)
            return
        with tempfile.TemporaryFile() as file:
            yield Sink(file)
            file.seek(0)
            with self._failing("write", path), self._system.open_output_stream(full) as stream:
                while block := file.read(8 * _BLOCK_BYTES):
                    stream.write(block)

    @contextmanager
    def open_checked(self, path: str, size: int, sha256: str) -> Iterator[IO[bytes]]:
        """Open a file for reading once all of it is known to be what was written: a copy, so that it stays that.

        Raises:
            BackupDamaged: It is not, or is missing.
        """
        with tempfile.TemporaryFile() as copy:
            sink = Sink(copy)
            try:
                with self.open_read(path) as file, self._failing("read", path):
                    while block := file.read(_BLOCK_BYTES):
                        sink.write(block)
            except FileNotFoundError:
                raise BackupDamaged(f"{self.url}/{path} is missing") from None
            if sink.size != size:
                raise BackupDamaged(f"{self.url}/{path} has {sink.size} bytes instead of {size}")
            if sink.sha256 != sha256:
                raise BackupDamaged(f"{self.url}/{path} is not what was written: its SHA-256 is another one")
            copy.seek(0)
            yield copy

    def files(self, prefix: str = "") -> list[Stored]:
        """Return all files below a folder, sorted; none if there is no such folder."""
        return [
            Stored(info.path.removeprefix(f"{self._root}/"), info.size)
            for info in self._infos(prefix, recursive=True)
            if info.type == fs.FileType.File
        ]

    def folders(self) -> list[str]:
        """Return the names of the folders directly below the root, sorted."""
        return [info.base_name for info in self._infos("", recursive=False) if info.type == fs.FileType.Directory]

    def exists(self, path: str) -> bool:
        """Say whether there is a file of that path."""
        with self._failing("look for", path):
            return bool(self._system.get_file_info(self._full(path)).type == fs.FileType.File)

    def delete(self, path: str) -> None:
        """Delete a file; one that is not there is deleted already."""
        with self._failing("delete", path), contextlib.suppress(FileNotFoundError):
            self._system.delete_file(self._full(path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder with everything below it; one that is not there is deleted already."""
        with self._failing("delete", path), contextlib.suppress(FileNotFoundError):
            self._system.delete_dir(self._full(path))

    def _infos(self, prefix: str, *, recursive: bool) -> list[fs.FileInfo]:
        folder = self._full(prefix) if prefix else self._root
        with self._failing("list", prefix):
            selector = fs.FileSelector(folder, recursive=recursive, allow_not_found=True)
            return sorted(self._system.get_file_info(selector), key=lambda info: info.path)

    def _full(self, path: str) -> str:
        if not is_safe(path):
            raise ValueError(f"{path!r} is no path of a file in a backup")
        return f"{self._root}/{path}"

    @contextmanager
    def _failing(self, what: str, path: str) -> Iterator[None]:
        """Say which file of which storage an error is about."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError) and what in ("read", "delete"):
                raise
            raise StoreFailed(f"cannot {what} {path or 'the root'} at {self.url}: {error}") from error


@contextmanager
def _replacing(path: Path, root: Path) -> Iterator[IO[bytes]]:
    """Write a local file beside its place, and put it there when it is safe on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    # The file's name is in its folder, and the name of that in the one above.
    for folder in takewhile(lambda one: one != root.parent, path.parents):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
