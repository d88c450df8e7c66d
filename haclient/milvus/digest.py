"""Rows compared across clusters by their hashes.

Decisions made here:

* A row's hash is that of its canonical form, which does not depend on the order of columns, on how a server writes JSON
  (spaces, order of keys, ``2.5e300`` or ``2.5e+300``), on place-holders of null cells, or on whether an empty array
  has a type. Numbers are compared by their bits.
* The digest of a range is the number of its rows and the sum of their hashes, so it does not depend on their order, and
  digests of adjacent ranges add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
import orjson

from haclient.milvus.hits import float_rows
from haclient.milvus.messages import Key
from haclient.milvus.pages import Page
from haclient.milvus.shape import DYNAMIC

_HASH_BYTES: Final = 16
_ALL: Final = (1 << 128) - 1

#: How numbers of each scalar kind are laid out.
_NUMBERS: Final = {
    "bool_data": "?",
    "int_data": "<i4",
    "long_data": "<i8",
    "float_data": "<f4",
    "double_data": "<f8",
    "timestamptz_data": "<i8",
}
#: Bits per number of the vector types that travel as bytes.
_BITS: Final = {"binary_vector": 1, "float16_vector": 16, "bfloat16_vector": 16, "int8_vector": 8}

Block = npt.NDArray[np.uint8]


@final
@dataclass(frozen=True, slots=True)
class Digest:
    """What a set of rows is, without the rows.

    Attributes:
        rows: How many there are.
        total: Sum of their hashes, modulo 2 to the power of 128.
    """

    rows: int = 0
    total: int = 0

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, self.total + other.total & _ALL)

    def __str__(self) -> str:
        return f"{self.rows}:{self.total:032x}"


def digest(hashes: Sequence[bytes]) -> Digest:
    """Return the digest of rows, by their hashes."""
    if not hashes:
        return Digest()
    # Halves of 32 bits add up without overflow, and in C.
    parts = np.frombuffer(b"".join(hashes), dtype="<u4").reshape(-1, _HASH_BYTES // 4).sum(axis=0, dtype=np.uint64)
    return Digest(len(hashes), sum(int(part) << 32 * i for i, part in enumerate(parts)) & _ALL)


def row_hashes(page: Page) -> dict[Key, bytes]:
    """Return the hash of every row of a page, in ascending order of the key.

    Raises:
        ValueError: A column is of a kind that cannot be compared.
    """
    count = len(page.keys)
    if not count:
        return {}
    fixed: list[Block] = []
    varying: list[list[bytes]] = []
    nulls = [b""] * count
    for name in sorted(page.columns):
        column = page.columns[name]
        valid = list(column.valid_data)
        try:
            cells = _cells(column, count, valid)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if isinstance(cells, list):
            varying.append(cells)
        else:
            fixed.append(cells)
        if valid and column.field_name != DYNAMIC:
            for row in (i for i, ok in enumerate(valid) if not ok):
                nulls[row] += name.encode() + b"\0"
    rows = _join(count, fixed, [*varying, nulls])
    return dict(sorted(zip(page.keys, rows, strict=True)))


def _join(count: int, fixed: list[Block], varying: list[list[bytes]]) -> list[bytes]:
    """Hash each row: its fixed part, then every other cell behind its length."""
    block = np.concatenate(fixed, axis=1) if fixed else np.empty((count, 0), np.uint8)
    width, data = block.shape[1], memoryview(block.tobytes())
    lengths = np.array([[len(cell) for cell in cells] for cells in varying], dtype="<u4").T.tobytes()
    head = 4 * len(varying)
    blake2b = hashlib.blake2b
    return [
        blake2b(
            b"".join((data[i * width : (i + 1) * width], lengths[i * head : (i + 1) * head], *cells)),
            digest_size=_HASH_BYTES,
        ).digest()
        for i, cells in enumerate(zip(*varying, strict=True))
    ]


def _cells(column: Any, count: int, valid: list[bool]) -> Block | list[bytes]:
    """Return one column's cells: rows of equal width, or a list of bytes; those of null cells are empty."""
    if column.HasField("vectors"):
        return _vectors(column.vectors, count, valid)
    if column.HasField("struct_arrays"):
        return _fill(_structs(column.struct_arrays.fields), count, valid)
    if not column.HasField("scalars"):
        if all(valid) and count:
            raise ValueError("its kind of data cannot be compared yet; update haclient")
        return [b""] * count
    kind = column.scalars.WhichOneof("data")
    if kind is None:
        return [b""] * count
    data = getattr(column.scalars, kind).data
    if kind in _NUMBERS:
        numbers = np.array(data, dtype=_NUMBERS[kind])
        return _spread(numbers.view(np.uint8).reshape(-1, numbers.itemsize), count, valid)
    cells: list[bytes]
    if kind == "json_data":
        cells = _documents(data, b"{}" if column.field_name == DYNAMIC else b"null")
    elif kind == "array_data":
        cells = [_array(cell) for cell in data]
    else:
        cells = [cell.encode() if isinstance(cell, str) else cell for cell in data]
    return _fill(cells, count, valid)


def _vectors(vectors: Any, count: int, valid: list[bool]) -> Block | list[bytes]:
    kind = vectors.WhichOneof("data")
    if kind == "sparse_float_vector":
        return _fill([_sparse(row) for row in vectors.sparse_float_vector.contents], count, valid)
    if kind == "float_vector":
        rows = float_rows(vectors)
        return _spread(rows.view(np.uint8).reshape(len(rows), 4 * rows.shape[1]), count, valid)
    if kind in _BITS:
        data = np.frombuffer(getattr(vectors, kind), np.uint8)
        return _spread(data.reshape(-1, max(vectors.dim * _BITS[kind] // 8, 1)), count, valid)
    if kind == "vector_array":
        return _fill([_vector_array(cell) for cell in vectors.vector_array.data], count, valid)
    if kind is None:
        return [b""] * count
    raise ValueError(f"{kind} cannot be compared yet; update haclient")


def _vector_array(cell: Any) -> bytes:
    """Write the vectors of one cell."""
    kind = cell.WhichOneof("data")
    if kind == "float_vector":
        return float_rows(cell).tobytes()
    if kind in _BITS:
        return bytes(getattr(cell, kind))
    if kind is None:
        return b""
    raise ValueError(f"arrays of {kind} cannot be compared yet; update haclient")


def _structs(columns: Iterable[Any]) -> list[bytes]:
    """Write each row's array of structs, field by field."""
    parts = []
    for column in sorted(columns, key=lambda one: str(one.field_name)):
        held = column.vectors.vector_array if column.HasField("vectors") else column.scalars.array_data
        count = len(column.valid_data) or len(held.data)
        cells = [bytes(cell) for cell in _cells(column, count, list(column.valid_data))]
        parts.append([column.field_name.encode() + len(cell).to_bytes(4, "little") + cell for cell in cells])
    return [b"".join(row) for row in zip(*parts, strict=True)]


def _spread(rows: Block, count: int, valid: list[bool]) -> Block:
    """Put zeros where a cell is null, whether or not it has a place in the data."""
    if not valid or all(valid):
        return rows
    is_valid = np.array(valid)
    spread = np.zeros((count, rows.shape[1]), np.uint8)
    spread[is_valid] = rows[is_valid] if len(rows) == count else rows
    return spread


def _fill(cells: list[bytes], count: int, valid: list[bool]) -> list[bytes]:
    """Put nothing where a cell is null, whether or not it has a place in the data."""
    if not valid or all(valid):
        return cells
    if len(cells) == count:
        return [cell if ok else b"" for cell, ok in zip(cells, valid, strict=True)]
    rest = iter(cells)
    return [next(rest) if ok else b"" for ok in valid]


def _documents(cells: Iterable[bytes], empty: bytes) -> list[bytes]:
    """Write JSON in one way; what is none stays as it is."""
    texts = [cell or empty for cell in cells]
    try:
        # One document of all cells is parsed in half the time that each of them takes.
        values = orjson.loads(b"[" + b",".join(texts) + b"]")
    except orjson.JSONDecodeError:
        return [_document(text) for text in texts]
    return [orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for value in values]


def _document(text: bytes) -> bytes:
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError:
        return text


def _array(cell: Any) -> bytes:
    """Write an array field's cell; an empty one is the same whether or not it has a type."""
    kind = cell.WhichOneof("data")
    if kind is None:
        return b""
    data = getattr(cell, kind).data
    if kind in _NUMBERS:
        return np.array(data, dtype=_NUMBERS[kind]).tobytes()
    return b"".join(len(one).to_bytes(4, "little") + one for one in (text.encode() for text in data))


def _sparse(row: bytes) -> bytes:
    pairs = np.frombuffer(row, dtype=[("index", "<u4"), ("value", "<f4")])
    return np.sort(pairs, order="index").tobytes()
