"""Search answers, read as far as someone asks.

Decision made here: protobuf's C parser takes the bytes apart, and Python objects are made per column and only when a
column is asked for. What a cell becomes is what pymilvus makes of it (tests compare them value by value), but for
vectors, which are numpy rows.
"""

from __future__ import annotations

from typing import Any, Final, final

import numpy as np
import orjson
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

    __slots__ = ("_data", "_rows", "counts", "keys", "scores")

    def __init__(self, message: bytes) -> None:
        try:
            data = milvus_pb2.SearchResults.FromString(message).results
        except DecodeError as error:
            raise ValueError(f"not a SearchResults: {error}") from None
        ids = data.ids
        self._data = data
        self._rows: list[dict[str, Any]] | None = None
        self.counts: list[int] = data.topks[:]
        self.keys: list[Key] = ids.str_id.data[:] if ids.HasField("str_id") else ids.int_id.data[:]
        self.scores: list[float] = data.scores[:]
        if not sum(self.counts) == len(self.keys) == len(self.scores):
            raise ValueError(f"{self.counts} hits, {len(self.keys)} keys and {len(self.scores)} scores do not fit")

    def rows(self) -> list[dict[str, Any]]:
        """Return all fields of all hits, the dynamic ones among the others."""
        if self._rows is None:
            self._rows = self._read()
        return self._rows

    def _read(self) -> list[dict[str, Any]]:
        static: dict[str, list[Any]] = {}
        dynamic: list[Any] | None = None
        called = ""
        for field in self._data.fields_data:
            if field.is_dynamic:
                dynamic, called = _cells(field), field.field_name
            else:
                static[field.field_name] = _cells(field)
        if dynamic is not None:
            # No dynamic field asked for by its own name means that all were.
            wanted = set(self._data.output_fields).difference(static, (called,))
            dynamic = [_only(wanted, more) for more in dynamic]
            if not static:
                return dynamic
        if not static:
            return [{} for _ in self.keys]
        rows = [dict(zip(static, cells, strict=True)) for cells in zip(*static.values(), strict=True)]
        for row, more in zip(rows, dynamic or (), strict=False):
            row.update(more)
        return rows

    def vectors(self, name: str) -> FloatRows:
        """Return a float vector field of all hits, shape ``[hits, dimension]``."""
        vectors = next(field for field in self._data.fields_data if field.field_name == name).vectors
        return float_rows(vectors)


def _only(wanted: set[str], more: dict[str, Any] | None) -> dict[str, Any]:
    if not more:
        return {}
    return more if not wanted or more.keys() <= wanted else {k: v for k, v in more.items() if k in wanted}


def _cells(field: Any) -> list[Any]:
    valid = field.valid_data[:]
    if field.HasField("vectors"):
        return _spread(_vectors(field.vectors), valid)
    kind = field.scalars.WhichOneof("data")
    if kind is None:
        return [None] * len(valid)
    data = getattr(field.scalars, kind).data
    if kind == "json_data":
        # One document of all cells is parsed in half the time that each of them takes.
        cells: list[Any] = orjson.loads(b"[" + b",".join(cell or b"null" for cell in data) + b"]")
    elif kind == "array_data":
        cells = [_array(cell) for cell in data]
    else:
        cells = data[:]
    return [cell if ok else None for cell, ok in zip(cells, valid, strict=True)] if valid else cells


def _array(cell: Any) -> list[Any]:
    kind = cell.WhichOneof("data")
    return list(getattr(cell, kind).data) if kind else []


def _vectors(vectors: Any) -> list[Any]:
    kind = vectors.WhichOneof("data")
    if kind == "float_vector":
        return list(float_rows(vectors))
    if kind == "sparse_float_vector":
        return [_sparse(row) for row in vectors.sparse_float_vector.contents]
    if kind in _BITS:
        data, width = getattr(vectors, kind), vectors.dim * _BITS[kind] // 8
        return [data[at : at + width] for at in range(0, len(data), width)]
    return []


def float_rows(vectors: Any) -> FloatRows:
    """Return the rows of a ``VectorField`` of floats, shape ``[rows, dimension]``."""
    # Serialising it again gives the floats as one block, many times quicker than reading them one by one.
    packed = bytes_field(vectors.float_vector.SerializeToString(), 1) or b""
    return np.frombuffer(packed, dtype="<f4").reshape(-1, vectors.dim or 1)


def _sparse(row: bytes) -> dict[int, float]:
    pairs = np.frombuffer(row, dtype=[("index", "<u4"), ("value", "<f4")])
    return {int(pair["index"]): float(pair["value"]) for pair in pairs}


def _spread(cells: list[Any], valid: list[bool]) -> list[Any]:
    """Put None where a vector is null; unlike scalars, null vectors take no place in the data."""
    if not valid:
        return cells
    rest = iter(cells)
    return [next(rest) if ok else None for ok in valid]
