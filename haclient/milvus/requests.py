"""What haclient needs to know of a request, read from its bytes.

Decisions made here:

* Nothing is guessed in the dangerous direction. A write is idempotent only if the request itself, together with what
  is known of the collection's key, proves it: a whole-row Upsert with keys made by the client; a Delete whose filter
  is nothing but a list of keys; an Import with its own idempotency key. Whether a field is the key, and whether the
  server makes the keys, stands in the schema and not in the request: without `KeyField` such a write is not
  idempotent, and `Facts.needs_key` says that knowing it would help.
* A page of an iterator names things of one cluster (collection id, session, snapshot): it is pinned, never hedged,
  but may be asked again of the same cluster.
* A request that cannot be walked is opaque: it is sent once, and the server says what is wrong with it.
* The body's database wins over the ``dbname`` metadata if both are set (measured on 2.3.5 and Lite).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, final

from haclient.call import Metadata, Method
from haclient.milvus.wireformat import BYTES, VARINT, bytes_field, fields, read_varint, varint_field

#: Top-level fields of one request that are looked at; a request with more is opaque. Bounds the time a hostile one
#: can take; pymilvus writes one field per output field, partition, search parameter or column.
MAX_FIELDS: Final = 16_384


@final
@dataclass(frozen=True, slots=True)
class KeyField:
    """A collection's primary key.

    Attributes:
        name: The field's name.
        auto_id: The server makes the keys.
    """

    name: str
    auto_id: bool


@final
@dataclass(slots=True)
class Facts:
    """What `inspect` read from one request; not to be changed, since requests share it.

    Attributes:
        collection: Name of the collection or alias, "" if it names none.
        database: Name of the database, "" for the default one.
        guarantee_timestamp: As sent by the client; 0, 1 and 2 are special (see `haclient.milvus.timestamps`).
        consistency_level: As sent, 0 (Strong) if absent.
        use_default_consistency: The collection's own level applies.
        is_iterator: It is a page of an iterator.
        collection_id: The collection's id that a page of an iterator names, which is of one cluster; 0 if none.
        idempotent: It may be sent twice.
        hedgeable: A second copy may run beside the first.
        pinned: It must not change cluster.
        needs_key: It is not idempotent as far as is known, and could be if the collection's `KeyField` were given.
        opaque: Its bytes could not be walked.
        reads_rows: Its answer shows rows, so that it has a consistency level.
        inner_timestamp: Highest guarantee timestamp of the searches inside a HybridSearch, 0 if none has one.
    """

    collection: str = ""
    database: str = ""
    guarantee_timestamp: int = 0
    consistency_level: int = 0
    use_default_consistency: bool = False
    is_iterator: bool = False
    idempotent: bool = False
    hedgeable: bool = False
    pinned: bool = False
    needs_key: bool = False
    opaque: bool = False
    collection_id: int = 0
    reads_rows: bool = False
    inner_timestamp: int = 0


# Field number of db_name where the collection is not field 3 (with it, db_name is field 2 everywhere).
DATABASE_FIELD: Final[dict[str, int]] = {
    "AlterDatabase": 2,
    "BatchDescribeCollection": 1,
    "CreateDatabase": 2,
    "CreateSnapshot": 4,
    "DescribeAlias": 2,
    "DescribeDatabase": 2,
    "DescribeSnapshot": 3,
    "DropAlias": 2,
    "DropDatabase": 2,
    "DropSnapshot": 3,
    "ExportSnapshot": 3,
    "FlushAll": 2,
    "GetFlushAllState": 3,
    "GetFlushState": 3,
    "GetLoadState": 4,
    "GetLoadingProgress": 4,
    "GetReplicas": 5,
    "Import": 7,
    "ListImportTasks": 3,
    "LoadBalance": 6,
    "ManualCompaction": 5,
    "OperatePrivilegeV2": 5,
    "PinSnapshotData": 3,
    "RestoreSnapshot": 3,
    "RunAnalyzer": 6,
    "ShowCollections": 2,
    "TransferReplica": 6,
}

# Guarantee timestamp, consistency level, use_default_consistency, key-value parameters.
READS: Final[dict[str, tuple[int, int, int, int]]] = {
    "Search": (11, 14, 15, 9),
    "Query": (8, 11, 12, 9),
    "HybridSearch": (8, 11, 12, 6),
}

# KeyValuePair{key=1, value=2}: the start of a pair whose presence makes a read a page of an iterator.
_ITERATOR: Final = b"\n\x08iterator"
_COLLECTION_ID: Final = b"\n\rcollection_id"
_PAGE_KEYS: Final = frozenset(
    b"\n" + bytes([len(key)]) + key
    for key in (
        b"collection_id",
        b"iterator_session_ts",
        b"query_iter_last_element_offset",
        b"query_iter_last_pk",
        b"search_iter_id",
        b"search_iter_last_bound",
        b"search_iter_v2",
        b"session_ts",
        b"iterator",
    )
)
_PAGE_INITIALS: Final = frozenset(key[2] for key in _PAGE_KEYS)


_LITERAL = r"""(?:[+-]?\d++|"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')"""
_KEYS_ONLY: Final = re.compile(
    rf"""\s*+(?P<field>[A-Za-z_]\w*+)\s*+
    (?:==\s*+{_LITERAL}
    |(?:in|IN)\s*+(?:\[\s*+(?:{_LITERAL}\s*+(?:,\s*+{_LITERAL}\s*+)*+,?\s*+)?+\]|\{{\s*+\w++\s*+\}}))\s*+""",
    re.VERBOSE | re.DOTALL,
)


def listed_keys_field(expression: str) -> str | None:
    """Return the field of a filter that is nothing but ``field in [..]`` or ``field == x``, else None.

    Whether that field is the key is for the caller to say. In doubt it is None; time is linear.
    """
    found = _KEYS_ONLY.fullmatch(expression)
    return found["field"] if found else None


def inspect(method: Method, message: bytes, metadata: Metadata = (), key: KeyField | None = None) -> Facts:
    """Read a request's facts from its bytes.

    Args:
        method: The RPC.
        message: The serialised request; it is not copied, payloads are skipped.
        metadata: The call's metadata, lower-case names.
        key: The primary key of the collection, if it is known; matters to Upsert and Delete only.

    Returns:
        The facts; `Facts.opaque` if the message is malformed. Never raises for the message's sake.
    """
    place = None
    if method.name == "Search":
        place = _without_vectors(message, metadata)
        known = _searches.get(place) if place is not None else None
        if known is not None:
            return known
    facts = Facts("", "", 0, 0, False, False, method.idempotent, method.hedgeable, method.pinned, False, False)
    try:
        read = READS.get(method.name)
        if read is not None:
            _read(facts, message, read, method.name == "HybridSearch")
        else:
            writer = _WRITES.get(method.name)
            database = 2 if method.collection == 3 else DATABASE_FIELD.get(method.name, 0)
            if writer is not None:
                writer(facts, message, key)
            elif method.collection or database:
                _names(facts, message, method.collection, database)
    except ValueError:
        facts = Facts(pinned=method.pinned, opaque=True)
    if not facts.database and metadata:
        for name, value in metadata:
            if name == "dbname":
                facts.database = value
    if place is not None:
        if len(_searches) >= _MOST_SEARCHES:
            _searches.clear()
        _searches[place] = facts
    return facts


def _without_vectors(message: bytes, metadata: Metadata) -> tuple[Metadata, bytes] | None:
    """Return what a search's facts depend on: all but the vectors (#6), and the metadata; None if that is long."""
    at = 0
    try:
        while True:
            tag, begin = message[at], at
            size, at = message[at + 1], at + 2
            if size > 0x7F:
                size, at = read_varint(message, at - 1)
            at += size
            if tag == 0x32:
                break
            if tag & 7 != BYTES or tag > 0x32:
                return None
    except (IndexError, ValueError):
        return None
    end = len(message)
    if at > end or begin + end - at > _LONGEST_KEY:
        return None
    return tuple([field for field in metadata if field[0] == "dbname"]), message[:begin] + message[at:]


#: Facts of searches, by `_without_vectors`: an application asks the same way again and again.
_searches: dict[tuple[Metadata, bytes], Facts] = {}
_MOST_SEARCHES: Final = 1_024
_LONGEST_KEY: Final = 2_048


def _read(facts: Facts, message: bytes, numbers: tuple[int, int, int, int], hybrid: bool) -> None:
    # The hot path: `wireformat.fields` unrolled for one-byte tags and lengths, which halves its time.
    timestamp, level, default, params = numbers
    pair = params << 3 | BYTES
    end = len(message)
    at = 0
    try:
        for _ in range(MAX_FIELDS):
            if at >= end:
                break
            tag = message[at]
            value = message[at + 1]
            at += 2
            if value > 0x7F or tag > 0x7F:
                if tag == 0x32 and message[at] < 0x80:
                    value += (message[at] << 7) - 0x80  # the vectors: two bytes of length
                    at += 1
                else:
                    tag, value, at = _long(message, tag, at - 2)
            kind = tag & 7
            if kind == 2:
                begin = at
                at += value
                if tag == pair:
                    if (
                        value > 2
                        and message[begin + 2] in _PAGE_INITIALS
                        and message[begin : begin + 2 + message[begin + 1]] in _PAGE_KEYS
                    ):
                        facts.is_iterator |= _is_page(message[begin:at])
                        if message.startswith(_COLLECTION_ID, begin):
                            facts.collection_id = _number(bytes_field(message[begin:at], 2))
                elif tag == 0x1A:
                    facts.collection = str(message[begin:at], "utf-8")
                elif tag == 0x12:
                    facts.database = str(message[begin:at], "utf-8")
                elif tag == 0x2A and hybrid:
                    facts.is_iterator |= _has_page(message, begin, at)
                    facts.inner_timestamp = max(facts.inner_timestamp, varint_field(message, 11, begin, at))
            elif kind == 0:
                number = tag >> 3
                if number == timestamp:
                    facts.guarantee_timestamp = value
                elif number == level:
                    facts.consistency_level = value
                elif number == default:
                    facts.use_default_consistency = value != 0
            elif kind == 5:
                at += 3
            elif kind == 1:
                at += 7
            else:
                raise ValueError(f"wire type {kind}")
    except IndexError:
        raise ValueError("truncated message") from None
    if at != end:
        raise ValueError("truncated message, or too many fields")
    facts.reads_rows = True
    if facts.is_iterator:
        facts.hedgeable = False
        facts.pinned = True


def _long(message: bytes, tag: int, at: int) -> tuple[int, int, int]:
    """Read a field's head the general way: its tag, its value or length, the position behind them."""
    if tag > 0x7F:
        tag, at = read_varint(message, at)
    else:
        at += 1
    if tag & 7 in (VARINT, BYTES):
        value, at = read_varint(message, at)
        return tag, value, at
    return tag, 0, at + 1  # a fixed width: its first byte is passed, as in the caller's short cut


def _has_page(message: bytes, start: int, end: int) -> bool:
    """Whether the SearchRequest at ``[start:end]`` is a page; it is walked only if the bytes are there at all."""
    if all(message.find(key, start, end) < 0 for key in _PAGE_KEYS):
        return False
    return any(
        message[a : a + 2 + message[a + 1]] in _PAGE_KEYS and _is_page(message[a:b])
        for number, kind, a, b in islice(fields(message, start, end), MAX_FIELDS)
        if number == 9 and kind == BYTES and b - a > 1
    )


def _is_page(pair: bytes) -> bool:
    """Whether a pair that starts with one of `_PAGE_KEYS` says so; only ``iterator`` can deny it."""
    if not pair.startswith(_ITERATOR):
        return True
    value = bytes_field(pair, 2) or b""
    return value.lower() not in (b"false", b"0", b"f", b"")


def _number(value: bytes | None) -> int:
    return int(value) if value and value.isdigit() and len(value) < 20 else 0


def _names(facts: Facts, message: bytes, collection: int, database: int) -> None:
    at = 0
    for number, kind, a, b in islice(fields(message), MAX_FIELDS):
        at = b
        if kind == BYTES:
            if number == collection:
                # A list of names (Flush, BatchDescribeCollection): the first stands for all.
                facts.collection = facts.collection or str(message[a:b], "utf-8")
            elif number == database:
                facts.database = str(message[a:b], "utf-8")
    _whole(message, at)


def _upsert(facts: Facts, message: bytes, key: KeyField | None) -> None:
    _names(facts, message, 3, 2)
    whole_row = True
    for number, kind, a, _ in fields(message):
        if (number == 9 and kind == VARINT and a) or number == 11:
            # partial_update reads the old row; field_ops append to it.
            whole_row = False
    facts.idempotent = whole_row and key is not None and not key.auto_id
    facts.needs_key = whole_row and key is None


def _delete(facts: Facts, message: bytes, key: KeyField | None) -> None:
    _names(facts, message, 3, 2)
    expression = ""
    for number, kind, a, b in fields(message):
        if number == 5 and kind == BYTES:
            expression = str(message[a:b], "utf-8")
    listed = listed_keys_field(expression)
    facts.idempotent = listed is not None and key is not None and listed == key.name
    facts.needs_key = listed is not None and key is None


def _import(facts: Facts, message: bytes, key: KeyField | None) -> None:
    _names(facts, message, 1, 7)
    # idempotency_key = 9 of milvus-proto's head: a client that sets it knows that its servers honour it.
    facts.idempotent = bool(bytes_field(message, 9))


_WRITES: Final[dict[str, Callable[[Facts, bytes, KeyField | None], None]]] = {
    "Upsert": _upsert,
    "Delete": _delete,
    "Import": _import,
}


def _whole(message: bytes, at: int) -> None:
    if at != len(message):
        raise ValueError(f"more than {MAX_FIELDS} fields")


# Fields that differ between two sendings of the same logical request: base (message id and time), timestamps, and
# the consistency that goes with them, which haclient itself rewrites per cluster.
_VOLATILE: Final[dict[str, frozenset[int]]] = {
    "Search": frozenset((1, 10, 11, 14, 15)),
    "Query": frozenset((1, 7, 8, 11, 12)),
    "HybridSearch": frozenset((1, 7, 8, 11, 12)),
    "Insert": frozenset((1, 8)),
    "Upsert": frozenset((1, 8)),
    "Delete": frozenset((1,)),
}


def fingerprint(method: Method, message: bytes) -> bytes:
    """Name a logical request in 16 bytes, to recognise one that kills servers.

    The same rows, filter and vectors give the same name however often they are sent and to whichever cluster: the
    guarantee timestamp moves with the clock, the schema timestamp and the consistency are rewritten per cluster, so
    they are left out, also in the searches inside a HybridSearch. What can be left out is decided by field number
    only; an opaque message is hashed whole.
    """
    digest = hashlib.blake2b(method.path.encode(), digest_size=16)
    volatile = _VOLATILE.get(method.name, frozenset())
    try:
        _digest(digest.update, message, volatile, method.name == "HybridSearch")
    except ValueError:
        digest = hashlib.blake2b(method.path.encode(), digest_size=16)
        digest.update(message)
    return digest.digest()


_Update = Callable[[bytes | memoryview], None]


def _digest(update: _Update, message: bytes, volatile: frozenset[int], hybrid: bool) -> None:
    view = memoryview(message)
    kept_from = at = 0
    for number, kind, a, b in islice(fields(message), MAX_FIELDS):
        inner = hybrid and number == 5 and kind == BYTES
        if inner or number in volatile:
            update(view[kept_from:at])
            kept_from = b
            if inner:
                _digest(update, message[a:b], _VOLATILE["Search"], hybrid=False)
        at = b
    _whole(message, at)
    update(view[kept_from:at])
