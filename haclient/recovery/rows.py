"""Rows as Parquet, and back, without a loss.

with store.open_write(path) as sink, RowsWriter(sink, shape) as writer:
    writer.add(page.columns.values())          # schema_pb2.FieldData, as a server answers
file = RowsFile(path=..., rows=writer.rows, bytes=sink.size, sha256=sink.sha256, first=writer.first, ...)

with store.open_read(path) as file:
    for batch in read_rows(file, shape):
        page = Page(from_arrow(shape, batch), shape.key)   # rows_message(page, ...), row_hashes(page)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, final

import pyarrow as pa

from haclient.milvus.messages import Key
from haclient.milvus.shape import Shape
from haclient.recovery.store import Sink


def to_arrow(shape: Shape, fields_data: Iterable[Any]) -> pa.RecordBatch:
    """Return columns (``FieldData``) as a batch of Arrow, its columns in alphabetical order."""
    raise NotImplementedError


def from_arrow(shape: Shape, batch: pa.RecordBatch) -> list[Any]:
    """Return a batch as columns (``FieldData``), in the form of writes: null cells have no place in the data."""
    raise NotImplementedError


@final
class RowsWriter:
    """Writes rows to one Parquet file.

    Attributes:
        rows: Rows so far.
        first: Lowest key.
        last: Highest key.
    """

    def __init__(self, sink: Sink, shape: Shape) -> None:
        self.rows = 0
        self.first: Key | None = None
        self.last: Key | None = None

    def add(self, fields_data: Iterable[Any]) -> None:
        """Add the rows of a page."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        raise NotImplementedError


def read_rows(file: pa.NativeFile, shape: Shape, *, size: int = 4096) -> Iterator[pa.RecordBatch]:
    """Read a file that `RowsWriter` wrote, in batches of at most so many rows."""
    raise NotImplementedError
