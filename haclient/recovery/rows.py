"""Rows as Parquet, and back, without a loss.

    with write_rows(store, path, shape) as writer:
        writer.add(page.columns.values())                      # FieldData, as a server answers
    file = writer.described("rows/...", partition)             # for the manifest

    for batch in read_rows(store, backup, file, shape):
        page = Page(from_arrow(shape, batch), shape.key)       # for row_hashes(page), rows_message(page, ...)

Decision made here: what a file means is said by the collection's schema, which it carries; a file whose columns are not
those of the schema that it is read by is refused. What was read comes back in the form of writes: null cells have no
place in the data, empty arrays have a type, nothing is of one cluster. How cells are written: `cells`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pymilvus.grpc_gen import schema_pb2

from haclient.milvus.datatypes import DataType
from haclient.milvus.messages import Key
from haclient.milvus.pages import stored
from haclient.milvus.shape import DYNAMIC, Shape
from haclient.recovery.cells import Codec, codec, fill, to_array
from haclient.recovery.errors import BackupDamaged
from haclient.recovery.manifest import FORMAT, File, RowsFile
from haclient.recovery.store import Sink, Store

#: Keys of the metadata of a file and of a column.
FORMAT_KEY: Final = b"haclient.format"
SCHEMA_KEY: Final = b"haclient.schema"
TYPE_KEY: Final = b"milvus.type"
#: Uncompressed bytes after which a group of rows is written; a reader has one in memory.
_GROUP_BYTES: Final = 16 << 20


def to_arrow(shape: Shape, fields_data: Iterable[Any]) -> pa.RecordBatch:
    """Return the columns of some rows as Arrow.

    Args:
        shape: The collection.
        fields_data: ``FieldData`` of all columns that a client writes (`haclient.milvus.pages.stored`), in any order.

    Returns:
        The rows; columns in alphabetical order.

    Raises:
        ValueError: A column is missing, or is not such as the schema says.
    """
    given = {column.field_name: column for column in fields_data}
    arrays = []
    for name, (part, _) in (columns := _columns(shape)).items():
        if name not in given:
            raise ValueError(f"{shape.collection}: the column {name} is missing")
        try:
            arrays.append(to_array(given[name], part))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{shape.collection}: the column {name} {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=_arrow_schema(shape, columns))


def from_arrow(shape: Shape, batch: pa.RecordBatch) -> list[Any]:
    """Return rows as ``FieldData``, in the form of writes.

    Raises:
        BackupDamaged: The columns are not those of the collection.
    """
    columns = _columns(shape)
    _check(shape, _arrow_schema(shape, columns), batch.schema)
    made = []
    for name, (part, field) in columns.items():
        column = schema_pb2.FieldData(field_name=name, type=_type(field), is_dynamic=name == DYNAMIC)
        fill(column, part, batch.column(name), nullable=field.nullable)
        made.append(column)
    return made


def null_column(field: Any, count: int) -> Any:
    """Return a column (``FieldData``) that is null in all of so many rows, in the form of writes."""
    column = schema_pb2.FieldData(field_name=field.name, type=field.data_type)
    part = codec(field)
    fill(column, part, pa.nulls(count, part.type), nullable=True)
    return column


@final
class RowsWriter:
    """A file of rows that is being written; made by `write_rows`.

    Attributes:
        rows: Rows so far.
        first: Lowest key, None of no rows.
        last: Highest key.
    """

    def __init__(self, shape: Shape, writer: pq.ParquetWriter, sink: Sink) -> None:
        self.rows = 0
        self.first: Key | None = None
        self.last: Key | None = None
        self._shape = shape
        self._writer = writer
        self._sink = sink
        self._group: list[pa.RecordBatch] = []

    def add(self, fields_data: Iterable[Any]) -> None:
        """Add the rows of a page; arguments and errors as of `to_arrow`."""
        batch = to_arrow(self._shape, fields_data)
        if not batch.num_rows:
            return
        span = pc.min_max(batch.column(self._shape.key)).as_py()
        self.first = span["min"] if self.first is None else min(self.first, span["min"])
        self.last = span["max"] if self.last is None else max(self.last, span["max"])
        self.rows += batch.num_rows
        self._group.append(batch)
        if sum(one.nbytes for one in self._group) >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._group:
            self._writer.write_table(pa.Table.from_batches(self._group))
            self._group = []

    def described(self, path: str, partition: str) -> RowsFile:
        """Return what the manifest says of the file, when it is written: after the block of `write_rows`.

        Args:
            path: Below the backup's folder.
            partition: Whose rows they are.
        """
        sink = self._sink
        span = {"first": self.first, "last": self.last}
        return RowsFile(path=path, rows=self.rows, bytes=sink.size, sha256=sink.sha256, partition=partition, **span)


@contextmanager
def write_rows(store: Store, path: str, shape: Shape) -> Iterator[RowsWriter]:
    """Write a file of rows; it is there when the block is left, and unless that raises.

    Args:
        store: Where to.
        path: Below the store's root.
        shape: The collection.
    """
    schema = _arrow_schema(shape, _columns(shape))
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    with (
        store.open_write(path) as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression="zstd",
            # Numbers hardly ever repeat as a whole, but their exponents do; DuckDB takes halves only as they are.
            use_dictionary=[leaf for leaf, kind in leaves if pa.types.is_string(kind)],
            use_byte_stream_split=[leaf for leaf, kind in leaves if kind in (pa.float32(), pa.float64())],
            write_statistics=[shape.key],
        ) as writer,
    ):
        rows = RowsWriter(shape, writer, sink)
        yield rows
        rows.flush()


def read_rows(
    store: Store, backup: str, file: RowsFile, shape: Shape, *, max_bytes: int = 8 << 20
) -> Iterator[pa.RecordBatch]:
    """Read a file that `write_rows` wrote.

    Args:
        store: Where from.
        backup: Name of the backup.
        file: The file, as the manifest has it.
        shape: The collection.
        max_bytes: Most bytes of a batch, unless it is a single row.

    Raises:
        BackupDamaged: It is missing, is not what was written, or has other columns than the collection.
    """
    with opened(store, backup, file) as found:
        _check(shape, _arrow_schema(shape, _columns(shape)), found.schema_arrow)
        for group in range(found.num_row_groups):
            for batch in found.read_row_group(group).combine_chunks().to_batches():
                yield from _split(batch, max_bytes)


@contextmanager
def opened(store: Store, backup: str, file: File) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a backup; whatever is wrong with it names the file.

    Raises:
        BackupDamaged: It is missing, or is not what was written.
    """
    path = f"{backup}/{file.path}"
    with store.open_checked(path, file.bytes, file.sha256) as copy:
        try:
            yield _counted(pq.ParquetFile(copy), file)
        except (pa.ArrowException, OSError, ValueError, BackupDamaged) as error:
            raise BackupDamaged(f"{store.url}/{path} cannot be read: {error}") from error


def _counted(found: pq.ParquetFile, file: File) -> pq.ParquetFile:
    if found.metadata.num_rows != file.rows:
        raise BackupDamaged(f"it has {found.metadata.num_rows} rows instead of {file.rows}")
    return found


def _split(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    if batch.nbytes <= max_bytes or batch.num_rows < 2:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _split(batch.slice(0, half), max_bytes)
    yield from _split(batch.slice(half), max_bytes)


_Columns = dict[str, tuple[Codec, Any]]


def _columns(shape: Shape) -> _Columns:
    """Return how each column that a client writes travels, and its field, in alphabetical order."""
    fields = {**shape.fields, **shape.structs, DYNAMIC: _META}
    return {name: (codec(fields[name]), fields[name]) for name in stored(shape)}


#: The column of dynamic fields, which schemas do not list.
_META: Final = schema_pb2.FieldSchema(name=DYNAMIC, data_type=DataType.JSON)


def _type(field: Any) -> int:
    return DataType.ArrayOfStruct if isinstance(field, schema_pb2.StructArrayFieldSchema) else field.data_type


def _arrow_schema(shape: Shape, columns: _Columns) -> pa.Schema:
    fields = []
    for name, (part, field) in columns.items():
        nullable = name == DYNAMIC or field.nullable or bool(getattr(field, "default_value", None))
        fields.append(pa.field(name, part.type, nullable, {TYPE_KEY: schema_pb2.DataType.Name(_type(field)).encode()}))
    message = base64.b64encode(shape.schema.SerializeToString())
    return pa.schema(fields, {FORMAT_KEY: str(FORMAT).encode(), SCHEMA_KEY: message})


def _check(shape: Shape, wanted: pa.Schema, found: pa.Schema) -> None:
    """See that the columns of a file are those of the collection."""
    one, other = ({field.name: str(field.type) for field in schema} for schema in (wanted, found))
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            what = f"{other.get(name, 'missing')} instead of {one.get(name, 'missing')}"
            raise BackupDamaged(f"the column {name} is {what}: these are not rows of {shape.collection}")


def _leaves(path: str, kind: Any) -> Iterator[tuple[str, pa.DataType]]:
    """Yield the columns that Parquet makes of one: their paths, and what they hold."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind
