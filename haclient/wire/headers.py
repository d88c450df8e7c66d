"""Header blocks (RFC 7541): written without state, read with `hpack` and a cache.

Decision made here: what we send never touches the peer's dynamic table, so a block is the concatenation of
cached pieces and may be dropped, repeated or sent in any order. What we receive does use the table, as peers
please; as gRPC peers send the same few blocks again and again once their tables are warm, a block's decoded
form is remembered for as long as the table has not changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, Generic, NamedTuple, TypeVar, final

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from haclient.call import Metadata
from haclient.wire.frames import DEFAULT_HEADER_TABLE_SIZE

T = TypeVar("T")
RawHeaders = list[tuple[bytes, bytes]]

#: Forget cached encodings (and decodings) beyond this many; a program has few distinct ones.
_CACHE_ENTRIES: Final = 1_024
#: Blocks longer than this are decoded every time, so that the caches stay small.
_CACHED_BYTES: Final = 2_048

#: Encoded first in a block: "I use no dynamic table" (RFC 7541 section 6.3).
TABLE_SIZE_ZERO: Final = b"\x20"

#: Fields that differ from call to call.
VOLATILE: Final = frozenset(
    (b"client-request-unixmsec", b"client-request-id", b"grpc-timeout", b"haclient-session", b"traceparent")
)
#: Lengths up to here are one byte, and not Huffman-coded (RFC 7541 section 5.2).
_SHORT: Final = 0x7E
#: Bytes by which shapes of one length are told apart: path and method are among them.
_SHAPE_BYTES: Final = 8

_NAME: Final = re.compile(r"[0-9a-z_.\-]+")
# gRPC's ASCII-Value: printable ASCII and space. Tab and everything else that could end a line is refused.
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_BAD_NAME_BYTES: Final = re.compile(rb"[\x00-\x20A-Z\x7f-\xff:]")
_BAD_VALUE_BYTES: Final = re.compile(rb"[\x00\r\n]")


class MalformedHeaders(ValueError):
    """A header block is well encoded, but not what HTTP/2 allows: an error of its stream only."""


class CompressionFault(ValueError):
    """A header block cannot be decoded: the connection's header state is lost."""


class HeadersTooLarge(ValueError):
    """A header block inflates beyond the limit announced."""


def check_metadata(name: str, value: str) -> None:
    """Refuse metadata that gRPC does not allow, before anything is sent.

    Raises:
        ValueError: For a name or value with illegal characters, or a reserved name. The value is not
            quoted in the message: it may be a secret.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"metadata name {name!r} is not allowed: use lower-case letters, digits, '_', '-' and '.'")
    if name.startswith("grpc-") or name in _RESERVED:
        raise ValueError(f"metadata name {name!r} is reserved by gRPC or HTTP/2: leave it out")
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"the value of metadata {name!r} has characters that gRPC does not allow (printable ASCII and spaces "
            f"only); for other data use a name that ends in '-bin' and base64"
        )


_RESERVED: Final = frozenset(("te", "content-type", "host", *(name.decode() for name in _CONNECTION_SPECIFIC)))


def _integer(value: int, prefix_bits: int, first: int) -> bytes:
    """Encode an integer (RFC 7541 section 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: bytes, value: bytes, *, never_indexed: bool = False) -> bytes:
    """Encode one field as a literal that leaves the dynamic table alone (RFC 7541 sections 6.2.2 and 6.2.3).

    ``never_indexed`` also forbids every hop behind us to put it into a table: for secrets.
    """
    first = b"\x10" if never_indexed else b"\x00"
    return first + _integer(len(name), 7, 0) + name + _integer(len(value), 7, 0) + value


def encode_fields(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode a header list as literals; ``authorization`` is marked as never to be indexed."""
    return b"".join(
        [literal(name.encode("ascii"), value.encode("utf-8"), never_indexed=name in _SECRET) for name, value in fields]
    )


_fields: dict[tuple[str, str], bytes] = {}


def encode_metadata(metadata: Metadata) -> bytes:
    """Check and encode a call's metadata; fields that come again (a token, a database) are remembered.

    Raises:
        ValueError: A name or value is not allowed; see `check_metadata`.
    """
    return b"".join([_fields.get(field) or _encode_field(field) for field in metadata])


def _encode_field(field: tuple[str, str]) -> bytes:
    name, value = field
    start = _starts.get(name)
    if start is not None and len(value) <= _SHORT and value.isascii() and value.isprintable():
        return start + _LENGTHS[len(value)] + value.encode()
    check_metadata(name, value)
    encoded = encode_fields((field,))
    if name.encode() in VOLATILE:
        _starts[name] = literal(name.encode(), b"")[:-1]
    elif len(encoded) <= _CACHED_BYTES:
        if len(_fields) >= _CACHE_ENTRIES:
            _fields.clear()
        _fields[field] = encoded
    return encoded


#: What the literals of volatile fields begin with, by name.
_starts: dict[str, bytes] = {}
_LENGTHS: Final = tuple([bytes([length]) for length in range(_SHORT + 1)])
_SECRET: Final = frozenset(("authorization", "cookie", "proxy-authorization"))


@final
class _WatchedTable(HeaderTable):
    """A dynamic table that counts its changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)


@final
class HeaderReader(Generic[T]):
    """Decode header blocks of one connection into values of type ``T``.

    Args:
        parse: Makes the value from the decoded fields; may raise `MalformedHeaders`. One that has an ``amend`` is
            given only the `VOLATILE` fields of a block that differs in nothing else from a known one.
        max_list_bytes: Limit on the decoded size (RFC 9113 section 6.5.2: 32 bytes per field on top).
        table_bytes: The dynamic table's size that we have announced.
    """

    __slots__ = ("_amend", "_cache", "_decoder", "_parse", "_shapes", "_table")

    def __init__(
        self,
        parse: Callable[[RawHeaders], T],
        max_list_bytes: int,
        table_bytes: int = DEFAULT_HEADER_TABLE_SIZE,
    ) -> None:
        self._parse = parse
        self._amend: Callable[[T, RawHeaders], T] | None = getattr(parse, "amend", None)
        self._shapes: dict[tuple[int, bytes], _Shape[T]] = {}
        self._decoder = Decoder(max_header_list_size=max_list_bytes)
        self._table = _WatchedTable()
        self._decoder.header_table = self._table
        self._decoder.max_allowed_table_size = table_bytes
        self._cache: dict[bytes, T] = {}

    def read(self, block: bytes) -> T:
        """Decode one complete block.

        Raises:
            CompressionFault: The block is broken; the connection cannot go on.
            HeadersTooLarge: It inflates beyond the limit; the connection cannot go on.
            MalformedHeaders: Only the stream is wrong.
        """
        value = self._cache.get(block)
        if value is not None:
            return value
        if self._amend is not None:
            shape = self._shapes.get((len(block), block[:_SHAPE_BYTES]))
            if shape is not None:
                volatile = shape.volatile_of(block)
                if volatile is not None:
                    return self._amend(shape.base, volatile)
            places = find_volatile(block)
            if places:
                return self._amended(block, places)
        return self._read(block)

    def _read(self, block: bytes) -> T:
        """Decode with `hpack`, and remember if the table has not changed."""
        before = self._table.changes
        try:
            fields = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError as error:
            raise HeadersTooLarge(str(error)) from None
        except (HPACKError, IndexError, ValueError) as error:
            raise CompressionFault(f"header block cannot be decoded: {error}"[:200]) from None
        # A size update (RFC 7541 section 4.2) stands first in its block.
        if self._table.changes != before or (block and block[0] & 0xE0 == 0x20):
            self._cache.clear()
            self._shapes.clear()
            return self._parse(fields)  # type: ignore[arg-type]
        value = self._parse(fields)  # type: ignore[arg-type]
        if len(block) <= _CACHED_BYTES:
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.clear()
            self._cache[block] = value
        return value

    def _amended(self, block: bytes, places: list[_Place]) -> T:
        """Make the value of a block with volatile fields, and remember its shape."""
        assert self._amend is not None
        rest, at = b"", 0
        for place in places:
            rest += block[at : place.start]
            at = place.end
        rest += block[at:]
        base = self._cache.get(rest) or self._read(rest)
        shape = _Shape(block, places, base)
        if rest in self._cache:
            if len(self._shapes) >= _CACHE_ENTRIES:
                self._shapes.clear()
            self._shapes[len(block), block[:_SHAPE_BYTES]] = shape
        volatile = shape.volatile_of(block)
        assert volatile is not None
        return self._amend(base, volatile)

    def forget(self) -> None:
        """Drop the cache (the connection is over)."""
        self._cache.clear()
        self._shapes.clear()


class _Place(NamedTuple):
    """A volatile field in a block: the positions of its literal and of its value."""

    start: int
    value: int
    end: int
    name: bytes


@final
class _Shape(Generic[T]):
    """A block with room for other values of the same lengths in its volatile fields."""

    __slots__ = ("_fixed", "_places", "base")

    def __init__(self, block: bytes, places: list[_Place], base: T) -> None:
        self.base = base
        self._places = places
        starts = [0, *[place.end for place in places]]
        ends = [*[place.value for place in places], len(block)]
        self._fixed = [(a, b, block[a:b]) for a, b in zip(starts, ends, strict=True)]

    def volatile_of(self, block: bytes) -> RawHeaders | None:
        """Return the volatile fields of a block of the same length, None if it differs in anything else."""
        for start, end, bytes_there in self._fixed:
            if block[start:end] != bytes_there:
                return None
        return [(place.name, block[place.value : place.end]) for place in self._places]


def find_volatile(block: bytes) -> list[_Place]:
    """Find the `VOLATILE` fields of a block, by its bytes alone.

    gRPC's C-core, which most SDKs stand on, writes what it has sent before as single bytes, and an application's
    metadata behind that as plain literals which leave the dynamic table alone (RFC 7541 sections 6.1 and 6.2.2). Such
    a block can be taken apart without being decoded.

    Returns:
        Their places; none if there are none, or the block is written in another way.
    """
    at, end = 0, len(block)
    while at < end and 0x80 < block[at] < 0xFF:
        at += 1
    places = []
    try:
        while at < end:
            length = block[at + 1]
            name_end = at + 2 + length
            size = block[name_end]
            if block[at] or length > _SHORT or size > _SHORT:
                return []
            value_end = name_end + 1 + size
            name = block[at + 2 : name_end]
            if name in VOLATILE:
                places.append(_Place(at, name_end + 1, value_end, name))
            at = value_end
    except IndexError:
        return []
    return places if at == end else []


def split_pseudo(fields: RawHeaders) -> tuple[dict[bytes, bytes], RawHeaders]:
    """Separate pseudo-header fields from the rest and check what HTTP/2 asks of both (RFC 9113 section 8.2).

    Raises:
        MalformedHeaders: For an upper-case or illegal name, an illegal value, a pseudo-header that comes
            late or twice, or a connection-specific field.
    """
    pseudo: dict[bytes, bytes] = {}
    regular: RawHeaders = []
    for name, value in fields:
        if name[:1] == b":":
            if regular:
                raise MalformedHeaders(f"pseudo-header {name!r} behind a regular field")
            if name in pseudo:
                raise MalformedHeaders(f"pseudo-header {name!r} twice")
            pseudo[name] = value
            continue
        if not name or _BAD_NAME_BYTES.search(name):
            raise MalformedHeaders(f"illegal field name {name[:40]!r}")
        if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
            raise MalformedHeaders(f"connection-specific field {name!r}")
        if _BAD_VALUE_BYTES.search(value):
            raise MalformedHeaders(f"illegal value of field {name!r}")
        regular.append((name, value))
    return pseudo, regular
