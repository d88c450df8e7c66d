"""Search answers, read as far as someone asks.

Decision made here: protobuf's C parser takes the bytes apart, and Python objects are made per column and only when a
column is asked for. What a cell becomes is what pymilvus makes of it (tests compare them value by value), but for
vectors, which are numpy rows.
"""

from __future__ import annotations

import json
from typing import Any, Final, final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pymilvus.grpc_gen import milvus_pb2

from haclient.milvus.vectors import FloatRows
from haclient.milvus.wireformat import bytes_field

Key = int | str

#: Bits per number of the vector types that travel as bytes (schema.proto, VectorField.data).
_BITS: Final = {"binary_vector": 1, "float16_vector": 16, "bfloat16_vector": 16, "int8_vector": 8}


@final
class SearchAnswer:
    """The hits of every question of one request, one after the other.

    Args:
        message: A serialised ``SearchResults`` whose status is OK.

    Attributes:
        counts: Number of hits per question.
        keys: Primary keys of all hits.
        scores: Their scores, as the server gives them.

    Raises:
        ValueError: The bytes are something else.
    """

    __slots__ = ("_columns", "_data", "_dynamic", "_fields", "counts", "keys", "scores")

    def __init__(self, message: bytes) -> None:
        try:
            data = milvus_pb2.SearchResults.FromString(message).results
        except DecodeError as error:
            raise ValueError(f"not a SearchResults: {error}") from None
        ids = data.ids
        self._data = data
        self._fields = {field.field_name: field for field in data.fields_data}
        self._dynamic = next((name for name, field in self._fields.items() if field.is_dynamic), "")
        self._columns: dict[str, list[Any]] = {}
        self.counts: list[int] = list(data.topks)
        self.keys: list[Key] = list(ids.str_id.data if ids.HasField("str_id") else ids.int_id.data)
        self.scores: list[float] = list(data.scores)
        if not sum(self.counts) == len(self.keys) == len(self.scores):
            raise ValueError(f"{self.counts} hits, {len(self.keys)} keys and {len(self.scores)} scores do not fit")

    def has(self, name: str) -> bool:
        """Say whether the hits carry a field."""
        return name in self._fields

    def column(self, name: str) -> list[Any]:
        """Return one field of all hits; None where a cell is null."""
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = _cells(self._fields[name])
        return found

    def row(self, index: int, *, without: str = "") -> dict[str, Any]:
        """Return all fields of one hit, the dynamic ones among the others.

        Args:
            index: Position among all hits.
            without: A field to leave out.
        """
        row = {name: self.column(name)[index] for name in self._fields if name not in (without, self._dynamic)}
        if self._dynamic:
            wanted = set(self._data.output_fields) - set(self._fields)
            more = self.column(self._dynamic)[index] or {}
            # No dynamic field asked for by name means that all were.
            row.update((k, v) for k, v in more.items() if k != without and (not wanted or k in wanted))
        return row

    def cell(self, name: str, index: int) -> Any:
        """Return one field of one hit, also a dynamic one; None if it has none of that name."""
        if name in self._fields:
            return self.column(name)[index]
        return (self.column(self._dynamic)[index] or {}).get(name) if self._dynamic else None

    def vectors(self, name: str) -> FloatRows:
        """Return a float vector field of all hits, shape ``[hits, dimension]``."""
        vectors = self._fields[name].vectors
        # Serialising it again gives the floats as one block, many times quicker than reading them one by one.
        packed = bytes_field(vectors.float_vector.SerializeToString(), 1) or b""
        return np.frombuffer(packed, dtype="<f4").reshape(-1, vectors.dim or 1)


def _cells(field: Any) -> list[Any]:
    valid = list(field.valid_data)
    if field.HasField("vectors"):
        return _spread(_vectors(field.vectors), valid)
    kind = field.scalars.WhichOneof("data")
    if kind is None:
        return [None] * len(valid)
    data = getattr(field.scalars, kind).data
    if kind == "json_data":
        cells: list[Any] = [json.loads(cell) if cell else None for cell in data]
    elif kind == "array_data":
        cells = [_array(cell) for cell in data]
    else:
        cells = list(data)
    return [cell if ok else None for cell, ok in zip(cells, valid, strict=True)] if valid else cells


def _array(cell: Any) -> list[Any]:
    kind = cell.WhichOneof("data")
    return list(getattr(cell, kind).data) if kind else []


def _vectors(vectors: Any) -> list[Any]:
    kind = vectors.WhichOneof("data")
    if kind == "float_vector":
        packed = bytes_field(vectors.float_vector.SerializeToString(), 1) or b""
        return list(np.frombuffer(packed, dtype="<f4").reshape(-1, vectors.dim))
    if kind == "sparse_float_vector":
        return [_sparse(row) for row in vectors.sparse_float_vector.contents]
    if kind in _BITS:
        data, width = getattr(vectors, kind), vectors.dim * _BITS[kind] // 8
        return [data[at : at + width] for at in range(0, len(data), width)]
    return []


def _sparse(row: bytes) -> dict[int, float]:
    pairs = np.frombuffer(row, dtype=[("index", "<u4"), ("value", "<f4")])
    return {int(pair["index"]): float(pair["value"]) for pair in pairs}


def _spread(cells: list[Any], valid: list[bool]) -> list[Any]:
    """Put None where a vector is null; unlike scalars, null vectors take no place in the data."""
    if not valid:
        return cells
    rest = iter(cells)
    return [next(rest) if ok else None for ok in valid]
