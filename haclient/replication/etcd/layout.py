"""How the log lies in etcd: its keys, and what is in their values.

Decision made here: what one transaction appends is one *record*, stored under the seq of its last entry, so the record
that holds a seq is the first one at or above it. Bodies are apart from it, in chunks, so heads can be read alone.

    log                        who the log is
    state/tail                 seq of the last entry: an append is the transaction that moves it
    state/removed              seq of the last entry that was removed
    state/fact/NAME            a fact; its version is the revision of its last change
    state/epoch/NAME           newest epoch of a lease
    state/lease/NAME           there while the lease is held: hangs on a lease of etcd's
    data/swept                 seq up to which the chunks of removed entries are gone
    data/record/SEQ            heads of the entries up to SEQ
    data/upload/ID             SEQ of the record that has this upload's chunks
    data/chunk/ID/NUMBER       a part of the bodies
    data/operation/HEX/ID      an operation that is in this upload
    data/staged/ID             heads of an upload that is too large for one transaction, until it is in the log
    data/writer/ID             there while its writer is at it: hangs on a lease of etcd's

An upload counts from the moment that its record is there. Until then its chunks and operations mean nothing. Records
and operations outlive their entries for a while, so that an append that is repeated late is not done twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import orjson

from haclient.errors import LogCorrupt
from haclient.replication.etcd.txn import Operation, end_of, span
from haclient.replication.log import Entry, Mutation

#: Bytes of one chunk; a transaction with it stays below etcd's limit for requests, 1.5 MiB.
CHUNK: Final = 1_000_000


@final
class Keys:
    """The keys of one log.

    Args:
        prefix: Where they begin.
    """

    def __init__(self, prefix: str) -> None:
        root = prefix.rstrip("/").encode() + b"/"
        self.root = root
        self.log = root + b"log"
        self.state = root + b"state/"
        self.tail = root + b"state/tail"
        self.removed = root + b"state/removed"
        self.facts = root + b"state/fact/"
        self.records = root + b"data/record/"
        self.swept = root + b"data/swept"
        self.staged_uploads = root + b"data/staged/"
        self.writers = root + b"data/writer/"
        self._data = root + b"data/"

    def fact(self, name: str) -> bytes:
        """Where a fact is, or those whose names start so."""
        return self.facts + name.encode()

    def epoch(self, name: str) -> bytes:
        """Where the newest epoch of a lease is."""
        return self.state + b"epoch/" + name.encode()

    def lease(self, name: str) -> bytes:
        """Where it says who holds a lease."""
        return self.state + b"lease/" + name.encode()

    def record(self, last: int) -> bytes:
        """Where a record is."""
        return self.records + b"%020d" % last

    def records_after(self, seq: int, limit: int) -> Operation:
        """Read records with entries above a seq."""
        return span(self.record(seq + 1), end_of(self.records), limit=limit)

    def upload(self, upload: str) -> bytes:
        """Where it says in which record an upload is."""
        return self._data + b"upload/" + upload.encode()

    def chunks(self, upload: str) -> bytes:
        """Where the chunks of an upload are."""
        return self._data + b"chunk/" + upload.encode() + b"/"

    def chunk(self, upload: str, number: int) -> bytes:
        """Where a chunk is."""
        return self.chunks(upload) + b"%06d" % number

    def uploads_of(self, operation: bytes) -> bytes:
        """Where the uploads of an operation are."""
        return self._data + b"operation/" + operation.hex().encode() + b"/"

    def operation(self, operation: bytes, upload: str) -> bytes:
        """Where it says that an operation is in an upload."""
        return self.uploads_of(operation) + upload.encode()

    def staged(self, upload: str) -> bytes:
        """Where the heads of an unfinished upload are."""
        return self.staged_uploads + upload.encode()

    def writer(self, upload: str) -> bytes:
        """What is there while the writer of an upload is."""
        return self.writers + upload.encode()


@final
class Head(NamedTuple):
    """What is stored of an entry beside its message.

    Attributes:
        operation: In hexadecimal.
        offset: Where its message begins in the bodies of its upload.
        size: Bytes of it.
        checksum: CRC-32 of it.
    """

    operation: str
    method: str
    stream_database: str
    collection: str
    database: str
    at: float
    offset: int
    size: int
    checksum: int

    @property
    def chunks(self) -> range:
        """Numbers of the chunks with its message."""
        return range(self.offset // CHUNK, -(-(self.offset + self.size) // CHUNK) if self.size else 0)

    def message(self, chunks: bytes) -> bytes:
        """Cut its message out of its chunks.

        Raises:
            LogCorrupt: It is not what was written.
        """
        start = self.offset % CHUNK
        message = chunks[start : start + self.size]
        if len(message) != self.size or zlib.crc32(message) != self.checksum:
            raise LogCorrupt(f"the message of operation {self.operation} in etcd is not what was written")
        return message

    def entry(self, seq: int, message: bytes = b"") -> Entry:
        """Make the entry."""
        stream = (self.stream_database, self.collection)
        mutation = Mutation(bytes.fromhex(self.operation), self.method, stream, message, self.database)
        return Entry(seq, self.at, mutation, self.size)


@final
class End(NamedTuple):
    """A seq (the last one, or the last one removed), and the bytes of all messages ever appended up to it."""

    seq: int = 0
    total: int = 0

    def encode(self) -> bytes:
        """Write it as a value."""
        return orjson.dumps(list(self))

    @classmethod
    def decode(cls, value: bytes) -> End:
        """Read a value.

        Raises:
            LogCorrupt: It is none.
        """
        return cls(*fields_of(value, 2))


@final
@dataclass(frozen=True, slots=True)
class Record:
    """The entries that one transaction appended.

    Attributes:
        first: Seq of the first of them.
        before: Bytes of all messages ever appended before it.
        upload: Where the bodies are.
        heads: One for each entry.
    """

    first: int
    before: int
    upload: str
    heads: Sequence[Head]

    @property
    def last(self) -> int:
        """Seq of the last entry."""
        return self.first + len(self.heads) - 1

    @property
    def tail(self) -> End:
        """The tail of the log once it is there."""
        return End(self.last, self.bytes_through(self.last))

    def bytes_through(self, seq: int) -> int:
        """Return the bytes of all messages ever appended up to an entry of it."""
        return self.before + sum(head.size for head in self.heads[: seq - self.first + 1])

    def encode(self) -> bytes:
        """Write it as a value."""
        return orjson.dumps([self.first, self.before, self.upload, [list(head) for head in self.heads]])

    @classmethod
    def decode(cls, value: bytes) -> Record:
        """Read a value.

        Raises:
            LogCorrupt: It is none.
        """
        first, before, upload, heads = fields_of(value, 4)
        return cls(first, before, upload, [Head(*head) for head in heads])


def fields_of(value: bytes, size: int) -> list[Any]:
    """Read a value that is a list.

    Raises:
        LogCorrupt: It is something else.
    """
    try:
        fields = orjson.loads(value)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, list) or len(fields) != size:
        raise LogCorrupt(f"the log in etcd has a value that haclient did not write: {value[:80]!r}")
    return fields


def packed(mutations: Sequence[tuple[Mutation, float]]) -> tuple[list[Head], bytes]:
    """Lay messages one after the other.

    Args:
        mutations: What is to be stored, and when each was appended.

    Returns:
        A head for each, and the bodies.
    """
    heads: list[Head] = []
    offset = 0
    for one, at in mutations:
        size = len(one.message)
        checksum = zlib.crc32(one.message)
        heads.append(Head(one.operation.hex(), one.method, *one.stream, one.database, at, offset, size, checksum))
        offset += size
    return heads, b"".join(one.message for one, _ in mutations)
