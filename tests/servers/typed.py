"""Collections with a column of each type that a server takes, and rows that are hard to copy."""

from __future__ import annotations

from typing import Any

import numpy as np
from pymilvus import DataType, MilvusClient

DIM = 16
ROWS = 60
ELEMENTS = (
    *(DataType.BOOL, DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64, DataType.FLOAT),
    *(DataType.DOUBLE, DataType.VARCHAR),
)
_EDGES: dict[DataType, tuple[Any, Any]] = {
    DataType.BOOL: (True, False),
    DataType.INT8: (-128, 127),
    DataType.INT16: (-(2**15), 2**15 - 1),
    DataType.INT32: (-(2**31), 2**31 - 1),
    DataType.INT64: (-(2**63), 2**63 - 1),
    DataType.FLOAT: (float(np.float32(1e-38)), float(np.float32(-0.1))),
    DataType.DOUBLE: (5e-324, -0.1),
    DataType.VARCHAR: ("", 'é "quoted" \\ \n'),
}
_VECTORS: dict[DataType, Any] = {
    DataType.FLOAT_VECTOR: lambda row: [float(x) for x in row.astype("<f4")],
    DataType.BINARY_VECTOR: lambda row: np.packbits(row > 0).tobytes(),
    DataType.FLOAT16_VECTOR: lambda row: row.astype("<f2").tobytes(),
    DataType.SPARSE_FLOAT_VECTOR: lambda row: {i * 7: abs(float(x)) for i, x in enumerate(row.astype("<f4")[:3])},
}


def create(
    client: MilvusClient, name: str, vectors: dict[str, DataType], *, nullable: bool = False, metric: str = "L2"
) -> list[dict[str, Any]]:
    """Make a collection with texts as keys, two partitions and rows in both; returns the rows."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    index = client.prepare_index_params()
    for field, kind in vectors.items():
        schema.add_field(field, kind, **({} if kind == DataType.SPARSE_FLOAT_VECTOR else {"dim": DIM}))
        chosen = {
            DataType.BINARY_VECTOR: {"index_type": "BIN_FLAT", "metric_type": "HAMMING"},
            DataType.SPARSE_FLOAT_VECTOR: {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"},
        }.get(kind, {"index_type": "FLAT", "metric_type": metric})
        index.add_index(field, **chosen)
    schema.add_field("facts", DataType.JSON)
    for kind in ELEMENTS:
        more = {"max_length": 64} if kind == DataType.VARCHAR else {}
        schema.add_field(f"one_{kind.name.lower()}", kind, **more, **({"nullable": True} if nullable else {}))
        array = f"some_{kind.name.lower()}"
        schema.add_field(array, DataType.ARRAY, element_type=kind, max_capacity=8, **more)
    client.create_collection(name, schema=schema, index_params=index)
    client.create_partition(name, "second")
    made = [_row(number, vectors, nullable=nullable) for number in range(ROWS)]
    client.insert(name, made[: ROWS // 2])
    client.insert(name, made[ROWS // 2 :], partition_name="second")
    client.load_collection(name)
    return made


def _row(number: int, vectors: dict[str, DataType], *, nullable: bool) -> dict[str, Any]:
    drawn = np.random.default_rng(number).standard_normal(DIM)
    keys = ["", 'a "key"', "back\\slash", "é", "two\nlines", "'"]
    row: dict[str, Any] = {
        "id": keys[number] if number < len(keys) else f"key {number}",
        "facts": {"b": [1, 2.5, None], "a": {"n": number}, "c": 1e22, "é": "é"},
    }
    for field, kind in vectors.items():
        row[field] = _VECTORS[kind](drawn)
    for kind in ELEMENTS:
        edges = _EDGES[kind]
        row[f"one_{kind.name.lower()}"] = None if nullable and number % 3 == 0 else edges[number % 2]
        row[f"some_{kind.name.lower()}"] = list(edges) * (number % 3)
    if number % 4:
        row["beyond"] = {"n": number}
    return row


def held(client: MilvusClient, name: str) -> dict[str, dict[str, Any]]:
    """What a server holds: rows by partition and key, as pymilvus shows them."""
    found = {}
    for partition in client.list_partitions(name):
        rows = client.query(
            name, filter='id >= ""', output_fields=["*"], partition_names=[partition], consistency_level="Strong"
        )
        found |= {f"{partition}/{row['id']}": _shown(row) for row in rows}
    return found


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if name.startswith("some_") and value is not None else value for name, value in row.items()
    }
