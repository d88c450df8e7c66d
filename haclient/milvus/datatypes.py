"""The numbers of Milvus' data types and functions, as of 3.0: an older pymilvus knows fewer of them."""

from __future__ import annotations

import enum


class DataType(enum.IntEnum):
    """``schema.DataType``."""

    Bool = 1
    Int8 = 2
    Int16 = 3
    Int32 = 4
    Int64 = 5
    Float = 10
    Double = 11
    String = 20
    VarChar = 21
    Array = 22
    JSON = 23
    Geometry = 24
    Text = 25
    Timestamptz = 26
    Mol = 27
    Date = 28
    Time = 29
    Decimal = 30
    BinaryVector = 100
    FloatVector = 101
    Float16Vector = 102
    BFloat16Vector = 103
    SparseFloatVector = 104
    Int8Vector = 105
    ArrayOfVector = 106
    ArrayOfStruct = 200
    Struct = 201


class FunctionType(enum.IntEnum):
    """``schema.FunctionType``."""

    BM25 = 1
    TextEmbedding = 2
    Rerank = 3
    MinHash = 4
    MolFingerprint = 5
