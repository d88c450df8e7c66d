"""What the header block of a request says, read once per distinct block.

Decision made here: everything that can be known from the headers alone (the method, the metadata to pass on, whether
the client may come in) is worked out when a block is first seen; the wire remembers it with the block.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Collection
from typing import Final, final

from haclient.call import Metadata, Method
from haclient.milvus.methods import METHODS
from haclient.wire.grpc import decode_timeout
from haclient.wire.headers import MalformedHeaders, RawHeaders, check_metadata, split_pseudo

#: Fields that end here: of the connection, of gRPC itself, or ours to make.
_NOT_PASSED: Final = frozenset(
    (b"te", b"content-type", b"content-length", b"user-agent", b"host", b"authorization", b"identifier")
)
REQUEST_ID: Final = "client-request-id"


@final
class Head:
    """A request's header block.

    Attributes:
        verb: The ``:method``.
        path: The ``:path``.
        grpc: Whether the content type is gRPC's.
        method: The RPC, if it is one that is known.
        metadata: What is passed on.
        credentials: The ``authorization`` that is passed on to clusters without credentials of their own, or ().
        timeout_s: ``grpc-timeout`` in seconds, None if there is none.
        encoding: ``grpc-encoding``.
        request_id: ``client-request-id``, "" if the client gives none.
        identifier: What the client was called when it introduced itself; see `haclient.proxy.sessions`.
        admitted: The client has shown a token that is accepted, or none is asked for.
        fields: All regular fields, for plain HTTP; () for gRPC.
    """

    __slots__ = (
        "admitted", "credentials", "encoding", "fields", "grpc", "identifier", "metadata", "method", "path",
        "request_id", "timeout_s", "verb",
    )  # fmt: skip

    def __init__(self, verb: str, path: str, grpc: bool) -> None:
        self.verb = verb
        self.path = path
        self.grpc = grpc
        self.method: Method | None = METHODS.get(path) if grpc else None
        self.metadata: Metadata = ()
        self.credentials: Metadata = ()
        self.timeout_s: float | None = None
        self.encoding = "identity"
        self.request_id = ""
        self.identifier = ""
        self.admitted = True
        self.fields: Metadata = ()


def parser(admit: Callable[[str], bool] | None, database: str) -> Callable[[RawHeaders], Head]:
    """Make the function that reads header blocks.

    Args:
        admit: Says whether a bare token is accepted; None asks for none, and passes credentials on.
        database: Named for clients that name none; "" leaves it.
    """

    def parse(raw: RawHeaders) -> Head:
        pseudo, regular = split_pseudo(raw)
        try:
            verb, path = pseudo.pop(b":method"), pseudo.pop(b":path")
            pseudo.pop(b":scheme")
        except KeyError as error:
            raise MalformedHeaders(f"no {error.args[0].decode()}") from None
        pseudo.pop(b":authority", None)
        if pseudo or not path.startswith((b"/", b"*")):
            raise MalformedHeaders("an unknown pseudo-header, or a path that is none")
        known = dict(regular)
        kind = known.get(b"content-type", b"")
        grpc = verb == b"POST" and kind.startswith(b"application/grpc") and not kind.startswith(b"application/grpc-web")
        head = Head(verb.decode("latin-1"), path.decode("latin-1"), grpc)
        if grpc:
            _read_grpc(head, regular, known, database)
        else:
            head.fields = tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in regular])
        token = known.get(b"authorization", b"").decode("latin-1")
        if admit is not None:
            head.admitted = admit(token_of(token))
        elif token and grpc:
            head.credentials = (("authorization", token),)
        return head

    return parse


def _read_grpc(head: Head, regular: RawHeaders, known: dict[bytes, bytes], database: str) -> None:
    """Read what gRPC's headers say; raises `MalformedHeaders` for what cannot be passed on."""
    metadata: list[tuple[str, str]] = []
    try:
        for name, value in regular:
            if name in _NOT_PASSED or name.startswith(b"grpc-"):
                continue
            field = name.decode("ascii"), value.decode("latin-1")
            check_metadata(*field)
            if field[0] == REQUEST_ID:
                head.request_id = field[1]
            elif field[1]:
                metadata.append(field)
        if database and not known.get(b"dbname"):
            metadata.append(("dbname", database))
        timeout = known.get(b"grpc-timeout")
        head.timeout_s = decode_timeout(timeout.decode("latin-1")) if timeout is not None else None
    except ValueError as error:
        raise MalformedHeaders(str(error)) from None
    head.metadata = tuple(metadata)
    head.identifier = known.get(b"identifier", b"").decode("latin-1")
    head.encoding = known.get(b"grpc-encoding", b"identity").decode("latin-1")


def token_of(authorization: str) -> str:
    """Return the bare token in an ``authorization``: Milvus' SDKs send it in base64, its RESTful API behind Bearer."""
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    try:
        return base64.b64decode(authorization, validate=True).decode()
    except (binascii.Error, ValueError):
        return authorization


def admission(tokens: Collection[str]) -> Callable[[str], bool] | None:
    """Return what says whether a token is one of these, in the same time whichever it is; None if there are none."""
    if not tokens:
        return None
    accepted = [token.encode() for token in tokens]

    def admit(token: str) -> bool:
        given = token.encode()
        return sum([hmac.compare_digest(given, one) for one in accepted]) > 0

    return admit
