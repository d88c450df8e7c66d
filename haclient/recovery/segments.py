"""Entries of the mutation log as Parquet, and back, without a loss.

    with write_segment(store, path) as writer:
        writer.add(entries)
    file = writer.described("log/...")                         # for the manifest

    for entries in read_segment(store, backup, file): ...

Decision made here: messages stay protobuf, as clusters get them; what is around them (which, when, on what) are columns
of their own, so that a log can be searched by other programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.parquet as pq

from haclient.recovery.errors import BackupDamaged
from haclient.recovery.manifest import FORMAT, LogFile
from haclient.recovery.rows import FORMAT_KEY, opened
from haclient.recovery.store import Sink, Store
from haclient.replication.log import Entry, Mutation

_OPERATION_BYTES: Final = 16
_COLUMNS: Final = pa.schema(
    [
        pa.field("seq", pa.int64(), False),
        #: Seconds since 1970.
        pa.field("at", pa.float64(), False),
        pa.field("operation", pa.binary(_OPERATION_BYTES), False),
        pa.field("method", pa.string(), False),
        #: Whose order it belongs to; both are empty for what concerns several collections.
        pa.field("stream_database", pa.string(), False),
        pa.field("stream_collection", pa.string(), False),
        #: What it was sent to.
        pa.field("database", pa.string(), False),
        pa.field("message", pa.binary(), False),
    ],
    {FORMAT_KEY: str(FORMAT).encode()},
)


@final
class SegmentWriter:
    """A file of entries that is being written; made by `write_segment`.

    Attributes:
        rows: Entries so far.
        first: Seq of the first one, 0 if there is none.
        last: Seq of the last one.
    """

    def __init__(self, writer: pq.ParquetWriter, sink: Sink) -> None:
        self.rows = self.first = self.last = 0
        self._writer = writer
        self._sink = sink

    def add(self, entries: Sequence[Entry]) -> None:
        """Add entries, with their messages; they are in memory together when they are read.

        Raises:
            ValueError: They do not follow what has been added.
        """
        for entry in entries:
            if self.rows and entry.seq != self.last + 1:
                raise ValueError(f"entry {entry.seq} of the log does not follow entry {self.last}")
            self.first = self.first or entry.seq
            self.last = entry.seq
            self.rows += 1
        if entries:
            rows = [_row(entry) for entry in entries]
            self._writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_COLUMNS))

    def described(self, path: str) -> LogFile:
        """Return what the manifest says of the file, when it is written: after the block of `write_segment`.

        Args:
            path: Below the backup's folder.
        """
        sink = self._sink
        span = {"first": self.first, "last": self.last}
        return LogFile(path=path, rows=self.rows, bytes=sink.size, sha256=sink.sha256, **span)


@contextmanager
def write_segment(store: Store, path: str) -> Iterator[SegmentWriter]:
    """Write a file of entries; it is there when the block is left, and unless that raises.

    Args:
        store: Where to.
        path: Below the store's root.
    """
    texts = [field.name for field in _COLUMNS if pa.types.is_string(field.type)]
    with (
        store.open_write(path) as sink,
        pq.ParquetWriter(sink, _COLUMNS, compression="zstd", use_dictionary=texts, write_statistics=["seq"]) as writer,
    ):
        yield SegmentWriter(writer, sink)


def read_segment(store: Store, backup: str, file: LogFile) -> Iterator[list[Entry]]:
    """Read a file that `write_segment` wrote; yields entries as they were added.

    Args:
        store: Where from.
        backup: Name of the backup.
        file: The file, as the manifest has it.

    Raises:
        BackupDamaged: It is missing, or is not what was written.
    """
    with opened(store, backup, file) as found:
        if found.schema_arrow != _COLUMNS:
            raise BackupDamaged("its columns are not those of entries of the log")
        for group in range(found.num_row_groups):
            yield [_entry(row) for row in found.read_row_group(group).to_pylist()]


def _row(entry: Entry) -> dict[str, Any]:
    one = entry.mutation
    row = {"seq": entry.seq, "at": entry.at, "operation": one.operation, "method": one.method, "message": one.message}
    return row | {"stream_database": one.stream[0], "stream_collection": one.stream[1], "database": one.database}


def _entry(row: dict[str, Any]) -> Entry:
    stream = (row["stream_database"], row["stream_collection"])
    mutation = Mutation(row["operation"], row["method"], stream, row["message"], row["database"])
    return Entry(row["seq"], row["at"], mutation, len(row["message"]))
