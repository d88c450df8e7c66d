"""Entries of the mutation log as Parquet, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, final

import pyarrow as pa

from haclient.recovery.store import Sink
from haclient.replication.log import Entry


@final
class SegmentWriter:
    """Writes entries to one Parquet file, in their order.

    Attributes:
        rows: Entries so far.
        first: Seq of the first one, 0 if there is none.
        last: Seq of the last one.
    """

    def __init__(self, sink: Sink) -> None:
        self.rows = self.first = self.last = 0

    def add(self, entries: Sequence[Entry]) -> None:
        """Add entries, with their messages."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        raise NotImplementedError


def read_segment(file: pa.NativeFile, *, size: int = 256) -> Iterator[list[Entry]]:
    """Read a file that `SegmentWriter` wrote, at most so many entries at once."""
    raise NotImplementedError
