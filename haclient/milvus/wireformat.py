"""A walk over serialised protobuf messages, without the messages' classes.

Decision made here: payloads are skipped by their length and never copied, so a walk costs the number of fields and
not the number of bytes. What cannot be walked (truncated, wrong, groups) raises ValueError; the callers then treat
the message as opaque and leave the verdict to the server.

Format: https://protobuf.dev/programming-guides/encoding/ . Positions are absolute indices into the message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

_U64: Final = (1 << 64) - 1


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Decode the varint at a position.

    Returns:
        Its value (unsigned, 64 bits) and the position behind it.

    Raises:
        ValueError: It is truncated or longer than ten bytes.
    """
    try:
        value = message[at]
        if value < 0x80:
            return value, at + 1
        byte = message[at + 1]
        if byte < 0x80:
            return value & 0x7F | byte << 7, at + 2
        value = value & 0x7F | (byte & 0x7F) << 7
        at += 2
        shift = 14
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _U64, at
            shift += 7
            if shift > 63:
                raise ValueError("varint longer than ten bytes")
    except IndexError:
        raise ValueError("truncated varint") from None


def varint(value: int) -> bytes:
    """Encode a varint; a negative number becomes its 64-bit two's complement, as int32, int64 and enums do."""
    value &= _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> int:
    """Read a 64-bit varint's value as int64 (or as int32, which is encoded in 64 bits too)."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """Walk the fields of a message, or of the embedded message at ``[start:end]``.

    Yields:
        ``(number, wire type, a, b)``. For a varint, ``a`` is the value and ``b`` the position behind it; for any
        other wire type the payload is ``message[a:b]``. The next field starts at ``b``.

    Raises:
        ValueError: The message is malformed; fields before that place have been yielded.
    """
    if end is None:
        end = len(message)
    at = start
    try:
        while at < end:
            tag = message[at]
            at += 1
            if tag > 0x7F:
                tag, at = read_varint(message, at - 1)
            kind = tag & 7
            if kind == 2:
                size = message[at]
                at += 1
                if size > 0x7F:
                    size, at = read_varint(message, at - 1)
                begin = at
                at += size
            elif kind == 0:
                begin = message[at]
                at += 1
                if begin > 0x7F:
                    begin, at = read_varint(message, at - 1)
            elif kind == 5:
                begin = at
                at += 4
            elif kind == 1:
                begin = at
                at += 8
            else:
                raise ValueError(f"wire type {kind}")
            if at > end:
                raise ValueError("truncated field")
            if not 8 <= tag < 0x1_0000_0000:
                raise ValueError("field number out of range")
            yield tag >> 3, kind, begin, at
    except IndexError:
        raise ValueError("truncated message") from None


def bytes_field(message: bytes, number: int, start: int = 0, end: int | None = None) -> bytes | None:
    """Return the first length-delimited field of that number, or None.

    Raises:
        ValueError: The message is malformed before that field.
    """
    for found, kind, a, b in fields(message, start, end):
        if found == number and kind == BYTES:
            return message[a:b]
    return None


def varint_field(message: bytes, number: int, start: int = 0, end: int | None = None) -> int:
    """Return the value of a singular varint field (the last one wins), 0 if it is not there.

    Raises:
        ValueError: The message is malformed.
    """
    value = 0
    for found, kind, a, _ in fields(message, start, end):
        if found == number and kind == VARINT:
            value = a
    return value


def replace_varints(message: bytes, values: dict[int, int]) -> bytes:
    """Set singular varint fields: every occurrence is cut out and the new value appended; 0 just removes it.

    One pass, one copy. The result differs from what a protobuf library would write in the order of fields only.

    Raises:
        ValueError: The message is malformed.
    """
    parts: list[bytes | memoryview] = []
    view = memoryview(message)
    kept_from = at = 0
    for number, kind, _, b in fields(message):
        if number in values and kind == VARINT:
            if at > kept_from:
                parts.append(view[kept_from:at])
            kept_from = b
        at = b
    if at > kept_from:
        parts.append(view[kept_from:at])
    parts += [varint(number << 3) + varint(value) for number, value in values.items() if value]
    return b"".join(parts)


def replace_varint(message: bytes, number: int, value: int) -> bytes:
    """Set one singular varint field; see `replace_varints`."""
    return replace_varints(message, {number: value})


def embed(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field: its tag, its length, its payload."""
    return varint(number << 3 | BYTES) + varint(len(payload)) + payload
