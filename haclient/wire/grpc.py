"""gRPC on top of HTTP/2: message framing, time-outs, status (gRPC's PROTOCOL-HTTP2.md).

Decision made here: messages are never compressed and never looked into. As a client we never announce that we could
read a compressed reply, so one is refused with a clear text; a server has to take what clients send.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import unquote_to_bytes

from haclient.call import Metadata
from haclient.wire.headers import MalformedHeaders, RawHeaders, encode_fields, split_pseudo

# The status codes that the wire itself makes.
OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16

#: gRPC's http-grpc-status-mapping.md; anything else is UNKNOWN.
_FROM_HTTP: Final = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}

PREFIX: Final = struct.Struct(">BI")
PREFIX_SIZE: Final = 5
LARGEST_MESSAGE: Final = 2**32 - 1

# Not metadata of the application.
_TRANSPORT_FIELDS: Final = frozenset(
    (b"content-type", b"grpc-status", b"grpc-message", b"grpc-encoding", b"grpc-accept-encoding", b"te")
)


@final
@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's header block, or its trailers.

    Attributes:
        status: HTTP status; None in trailers.
        grpc: Whether the content type is gRPC's.
        code: ``grpc-status``, or None if it is absent or no number.
        details: ``grpc-message``, percent-decoded.
        metadata: The application's fields.
        encoding: ``grpc-encoding``; "identity" if absent.
    """

    status: int | None
    grpc: bool
    code: int | None
    details: str
    metadata: Metadata
    encoding: str


def parse_response(fields: RawHeaders) -> ResponseHead:
    """Make a `ResponseHead` from decoded fields.

    Raises:
        MalformedHeaders: If they are not a valid response head or trailers (RFC 9113 section 8.3.2).
    """
    pseudo, regular = split_pseudo(fields)
    status: int | None = None
    raw_status = pseudo.pop(b":status", None)
    if raw_status is not None:
        if len(raw_status) != 3 or not raw_status.isdigit():
            raise MalformedHeaders(f"illegal :status {raw_status[:20]!r}")
        status = int(raw_status)
    if pseudo:
        raise MalformedHeaders(f"unexpected pseudo-header {next(iter(pseudo))[:40]!r}")
    known = dict(regular)
    raw_code = known.get(b"grpc-status", b"")
    return ResponseHead(
        status=status,
        grpc=known.get(b"content-type", b"").startswith(b"application/grpc"),
        code=int(raw_code) if raw_code.isdigit() and len(raw_code) < 10 else None,
        details=decode_message(known.get(b"grpc-message", b"")),
        metadata=tuple(
            [
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in regular
                if name not in _TRANSPORT_FIELDS
            ]
        ),
        encoding=known.get(b"grpc-encoding", b"identity").decode("latin-1"),
    )


def status_from_http(status: int) -> int:
    """Map an HTTP status to a gRPC code, for a response without ``grpc-status``."""
    return _FROM_HTTP.get(status, UNKNOWN)


def decode_message(raw: bytes) -> str:
    """Percent-decode ``grpc-message``; broken escapes and bytes are kept as well as possible."""
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def trailers_block(code: int, details: str = "") -> bytes:
    """Encode trailers."""
    return encode_fields((("grpc-status", str(code)), ("grpc-message", encode_message(details))))


def status_block(code: int, details: str) -> bytes:
    """Encode the only header block of an answer that is a status and nothing else."""
    return RESPONSE + trailers_block(code, details)


def encode_message(text: str) -> str:
    """Percent-encode ``grpc-message``: all but printable ASCII, and the percent sign itself."""
    return "".join([chr(b) if 0x20 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in text.encode("utf-8")])


#: What every gRPC response begins with.
RESPONSE: Final = encode_fields(((":status", "200"), ("content-type", "application/grpc")))

_TIMEOUT_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
#: ``TimeoutValue`` has at most eight digits.
_TIMEOUT_LIMIT: Final = 10**8


def encode_timeout(timeout_s: float) -> bytes:
    """Encode a time-out in the finest unit from milliseconds up that fits; never shorter than asked."""
    value = math.ceil(timeout_s * 1e3 - 1e-6)
    return _timeouts.get(value) or _encode_timeout(value, timeout_s)


def _encode_timeout(value: int, timeout_s: float) -> bytes:
    if value < _TIMEOUT_LIMIT:
        encoded = b"%dm" % max(value, 1)
        if len(_timeouts) < _MOST_TIMEOUTS:
            _timeouts[value] = encoded
        return encoded
    for unit in "SMH":
        value = math.ceil(timeout_s / _TIMEOUT_UNITS[unit])
        if value < _TIMEOUT_LIMIT:
            return f"{value}{unit}".encode()
    return b"99999999H"


#: By milliseconds: an application has few.
_timeouts: dict[int, bytes] = {}
_MOST_TIMEOUTS: Final = 4_096


def decode_timeout(text: str) -> float:
    """Decode ``grpc-timeout`` into seconds.

    Raises:
        ValueError: If it is not one.
    """
    digits, unit = text[:-1], text[-1:]
    if unit not in _TIMEOUT_UNITS or not unit or not digits.isascii() or not digits.isdigit() or len(digits) > 8:
        raise ValueError(f"not a grpc-timeout: {text[:20]!r}")
    return int(digits) * _TIMEOUT_UNITS[unit]


def encode_binary(value: bytes) -> str:
    """Encode the value of a ``-bin`` field: base64 without padding."""
    return base64.b64encode(value).rstrip(b"=").decode("ascii")


def decode_binary(value: str) -> bytes:
    """Decode the value of a ``-bin`` field, padded or not.

    Raises:
        ValueError: If it is not base64.
    """
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def message_prefix(length: int) -> bytes:
    """Pack the five bytes in front of an uncompressed message.

    Raises:
        ValueError: If the message is longer than gRPC can say.
    """
    if length > LARGEST_MESSAGE:
        raise ValueError(f"a gRPC message has at most {LARGEST_MESSAGE} bytes, this one has {length}")
    return PREFIX.pack(0, length)
