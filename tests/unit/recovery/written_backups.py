"""Small backups to look at and to damage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from every_type import D, dynamic_column, field_of, ids, shape_of
from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus.digest import Digest, digest, row_hashes
from haclient.milvus.pages import Page
from haclient.milvus.shape import Shape
from haclient.recovery.manifest import Collection, Database, IndexPart, Manifest, finish, log_path, rows_path
from haclient.recovery.rows import from_arrow, to_arrow, write_rows
from haclient.recovery.segments import write_segment
from haclient.recovery.store import Store
from haclient.replication.log import Entry, Mutation

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def docs(keys: range) -> list[Any]:
    """Rows with a vector and a text."""
    text, vector, title = docs_fields()
    columns = [ids(*keys), dynamic_column([b'{"page":%d}' % key for key in keys])]
    for field in (text, vector, title):
        column = columns[0].__class__(field_name=field.name, type=field.data_type)
        if field is vector:
            column.vectors.dim = 16
            column.vectors.float_vector.data.extend(np.sin(np.arange(16 * len(keys), dtype=np.float32) + keys.start))
        else:
            column.scalars.string_data.data.extend(f"{field.name} {key}" for key in keys)
        columns.append(column)
    columns[-1].valid_data.extend(key % 3 != 0 for key in keys)
    return columns


def docs_fields() -> list[Any]:
    return [
        field_of(D.VarChar, name="text"),
        field_of(D.FloatVector, name="vector"),
        field_of(D.VarChar, name="title", nullable=True),
    ]


def docs_shape() -> Shape:
    return shape_of(*docs_fields(), dynamic=True)


def description(shape: Shape) -> bytes:
    told = milvus_pb2.DescribeCollectionResponse(collection_name=shape.collection, schema=shape.schema, shards_num=1)
    return bytes(told.SerializeToString())


def entries(first: int, last: int) -> list[Entry]:
    return [
        Entry(seq, 1.7e9 + seq / 7, Mutation(seq.to_bytes(16, "big"), "Upsert", ("", "docs"), b"m" * seq, "db"), seq)
        for seq in range(first, last + 1)
    ]


def full(store: Store, backup: str = "full", *, log: tuple[int, int] = (5, 8), **more: Any) -> Manifest:
    """Write a backup of 30 rows in two files, and of entries of the log."""
    shape, total, files = docs_shape(), Digest(), []
    for number, keys in enumerate((range(20), range(20, 30))):
        path = rows_path("", "docs", "_default", number)
        with write_rows(store, f"{backup}/{path}", shape) as writer:
            writer.add(docs(keys))
        files.append(writer.described(path, "_default"))
        page = Page(from_arrow(shape, to_arrow(shape, docs(keys))), shape.key)
        total += digest(list(row_hashes(page).values()))
    collection = Collection(
        database="",
        name="docs",
        description=description(shape),
        partitions=["_default"],
        indexes=[IndexPart(name="v", field="vector", params={"index_type": "FLAT", "metric_type": "L2"})],
        aliases=["texts"],
        loaded=True,
        replicas=1,
        count=total.rows,
        digest=f"{total.total:032x}",
        files=files,
    )
    manifest = Manifest(
        **{
            "id": backup,
            "created": BEGAN,
            "kind": "full",
            "from_seq": log[0],
            "seq": log[1],
            "databases": [Database(name="")],
            "collections": [collection],
            "log": [segment(store, backup, *log)] if log[1] > log[0] else [],
            **more,
        }
    )
    finish(store, manifest)
    return manifest


def incremental(store: Store, backup: str, parent: str, after: int, last: int, **more: Any) -> Manifest:
    """Write a backup of entries of the log."""
    log = [segment(store, backup, after, last)] if last > after else []
    span = {"from_seq": after, "seq": last}
    manifest = Manifest(id=backup, created=BEGAN, kind="incremental", parent=parent, log=log, **span, **more)
    finish(store, manifest)
    return manifest


def segment(store: Store, backup: str, after: int, last: int) -> Any:
    path = log_path(0)
    with write_segment(store, f"{backup}/{path}") as writer:
        writer.add(entries(after + 1, last))
    return writer.described(path)
