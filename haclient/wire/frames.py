"""HTTP/2 frames: their numbers, and how they are packed (RFC 9113 sections 4 and 6).

Decision made here: a frame that goes out is one ``bytes`` made by one function, so that a connection's
writes are a list of byte strings joined once per loop turn. Parsing is not here: it is one loop in
`haclient.wire.connection`, because a function call per frame is what a general library pays for.
"""

from __future__ import annotations

import struct
from typing import Final

#: What a client sends first (RFC 9113 section 3.4).
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types (section 6). ORIGIN, ALTSVC and the rest of the registry are unknown to us and ignored.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

# Flags.
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

# Settings (section 6.5.2).
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

# Error codes (section 7).
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
SETTINGS_TIMEOUT: Final = 4
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
CONNECT_ERROR: Final = 10
ENHANCE_YOUR_CALM: Final = 11
INADEQUATE_SECURITY: Final = 12
HTTP_1_1_REQUIRED: Final = 13

_ERROR_NAMES: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)

#: Largest window (section 6.9.1) and largest stream identifier (section 5.1.1).
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65_535
DEFAULT_MAX_FRAME_SIZE: Final = 16_384
LARGEST_MAX_FRAME_SIZE: Final = 2**24 - 1
DEFAULT_HEADER_TABLE_SIZE: Final = 4_096
FRAME_HEADER_SIZE: Final = 9

#: Length (as 16 + 8 bits), type, flags, stream identifier: the nine bytes before every payload.
FRAME_HEADER: Final = struct.Struct(">HBBBI")
_U32: Final = struct.Struct(">I")
_TWO_U32: Final = struct.Struct(">II")
_SETTING: Final = struct.Struct(">HI")
_pack_header = FRAME_HEADER.pack

SETTINGS_ACK: Final = _pack_header(0, 0, SETTINGS, ACK, 0)


def error_name(code: int) -> str:
    """Name an HTTP/2 error code; unknown ones are shown in hexadecimal."""
    return _ERROR_NAMES[code] if code < len(_ERROR_NAMES) else f"0x{code:x}"


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Pack the nine bytes in front of a payload of ``length`` bytes."""
    return _pack_header(length >> 8, length & 0xFF, kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Pack one whole frame."""
    length = len(payload)
    return _pack_header(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_frame_size: int) -> bytes:
    """Pack a header block as HEADERS and as many CONTINUATION as it takes (section 6.10)."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [frame(HEADERS, flags, stream_id, block[:max_frame_size])]
    for at in range(max_frame_size, len(block), max_frame_size):
        piece = block[at : at + max_frame_size]
        last = at + max_frame_size >= len(block)
        parts.append(frame(CONTINUATION, END_HEADERS if last else 0, stream_id, piece))
    return b"".join(parts)


def settings(values: dict[int, int]) -> bytes:
    """Pack a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join([_SETTING.pack(key, value) for key, value in values.items()]))


def window_update(stream_id: int, increment: int) -> bytes:
    """Pack a WINDOW_UPDATE; ``increment`` is at least 1."""
    return frame(WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """Pack a RST_STREAM."""
    return frame(RST_STREAM, 0, stream_id, _U32.pack(code))


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """Pack a PING with eight opaque bytes."""
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """Pack a GOAWAY."""
    return frame(GOAWAY, 0, 0, _TWO_U32.pack(last_stream_id, code) + debug)
