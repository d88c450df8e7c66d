"""One unary gRPC call on a fresh connection, in plain sockets.

Decision made here: whether a server serves is not judged by the client whose drill it is. This speaks
just enough HTTP/2 (RFC 9113) for one small request and one small reply, and shares no code with
`haclient.wire`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable

_SERVICE = "/milvus.proto.milvus.MilvusService/"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM = _ACK = 1
_END_HEADERS = 4


class PlainCallFailed(Exception):
    """The server answered, but not with a message, or with a Milvus error."""


async def call(
    host: str, port: int, method: str, message: bytes = b"", metadata: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Send one request and return the reply's message.

    Args:
        host: Where the server is.
        port: Its port.
        method: A method of MilvusService, for example ``Connect``, or a whole path.
        message: The serialised request.
        metadata: Extra headers, names in lower case; no value longer than 126 bytes.

    Raises:
        OSError: No connection, or it broke; also EOFError if it ended early.
        PlainCallFailed: The stream ended without a message (a gRPC error).
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method if method.startswith("/") else _SERVICE + method),
            (":authority", f"{host}:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        writer.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(k, v) for k, v in headers))
            + _frame(_DATA, _END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message)
        )
        body = b""
        while True:
            size, kind, flags, stream = struct.unpack(">IBBI", b"\0" + await reader.readexactly(9))
            payload = await reader.readexactly(size)
            if kind == _SETTINGS and not flags & _ACK:
                writer.write(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                writer.write(_frame(_PING, _ACK, 0, payload))
            elif kind == _DATA and stream == 1:
                body += payload
            elif kind in {_RST_STREAM, _GOAWAY}:
                raise PlainCallFailed(f"{method} at port {port}: the server gave up (frame type {kind})")
            if stream == 1 and flags & _END_STREAM:
                break
        if len(body) < 5:
            raise PlainCallFailed(f"{method} at port {port}: no message in the reply")
        return body[5:]
    finally:
        # Nothing is owed on this connection: no farewell that could hang on a frozen server.
        writer.transport.abort()


def check_status(reply: bytes) -> bytes:
    """Return a reply whose first field, ``common.Status``, is empty (success).

    Raises:
        PlainCallFailed: The status names an error.
    """
    if reply[:1] == b"\n" and reply[1:2] != b"\0":
        raise PlainCallFailed(f"the server answered an error: {reply[:200]!r}")
    return reply


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    # RFC 7541 section 6.2.2: literal without indexing, new name, no Huffman.
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
