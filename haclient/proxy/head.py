"""What the header block of a request says, read once per distinct block.

Decision made here: everything that can be known from the headers alone (the method, the metadata to pass on, whether
the client may come in) is worked out when a block is first seen; the wire remembers it with the block.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
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
_REQUEST_ID: Final = REQUEST_ID.encode()
_GRPC: Final = re.compile(rb"application/grpc(?!-web)")
_VERB: Final = re.compile(rb"[A-Za-z-]{1,32}")
# Nothing that could end a line, or the path, on its way on.
_PATH: Final = re.compile(rb"/[\x21-\x7e]*|\*")


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

    def copy(self) -> Head:
        """Return another one that says the same."""
        other = Head.__new__(Head)
        other.verb = self.verb
        other.path = self.path
        other.grpc = self.grpc
        other.method = self.method
        other.metadata = self.metadata
        other.credentials = self.credentials
        other.timeout_s = self.timeout_s
        other.encoding = self.encoding
        other.request_id = self.request_id
        other.identifier = self.identifier
        other.admitted = self.admitted
        other.fields = self.fields
        return other

    @property
    def trailers(self) -> bool:
        """It is no request, but can end one."""
        return not self.verb


@final
class HeadParser:
    """Reads header blocks.

    Args:
        admit: Says whether a bare token is accepted; None asks for none, and passes credentials on.
        database: Named for clients that name none; "" leaves it.
    """

    __slots__ = ("_admit", "_database")

    def __init__(self, admit: Callable[[str], bool] | None, database: str) -> None:
        self._admit = admit
        self._database = database

    def __call__(self, raw: RawHeaders) -> Head:
        """Read a whole block.

        Raises:
            MalformedHeaders: It is not what a request can begin with.
        """
        pseudo, regular = split_pseudo(raw)
        if not pseudo:
            return Head("", "", False)
        try:
            verb, path = pseudo.pop(b":method"), pseudo.pop(b":path")
            pseudo.pop(b":scheme")
        except KeyError as error:
            raise MalformedHeaders(f"no {error.args[0].decode()}") from None
        pseudo.pop(b":authority", None)
        if pseudo or not _VERB.fullmatch(verb) or not _PATH.fullmatch(path):
            raise MalformedHeaders("an unknown pseudo-header, a method that is none, or a path that is none")
        known = dict(regular)
        kind = known.get(b"content-type", b"")
        grpc = verb == b"POST" and path != b"*" and _GRPC.match(kind) is not None
        head = Head(verb.decode("latin-1"), path.decode("latin-1"), grpc)
        if grpc:
            _take(head, regular)
            head.identifier = known.get(b"identifier", b"").decode("latin-1")
            head.encoding = known.get(b"grpc-encoding", b"identity").decode("latin-1")
            if self._database and not known.get(b"dbname"):
                head.metadata += (("dbname", self._database),)
        else:
            head.fields = tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in regular])
        token = known.get(b"authorization", b"").decode("latin-1")
        if self._admit is not None:
            head.admitted = self._admit(token_of(token))
        elif token and grpc:
            head.credentials = (("authorization", token),)
        return head

    def amend(self, base: Head, volatile: RawHeaders) -> Head:
        """Make the head of a block that differs from another only in these fields; see `HeaderReader`."""
        head = base.copy()
        for name, value in volatile:
            text = value.decode("latin-1")
            if not (text.isascii() and text.isprintable()):
                raise MalformedHeaders(f"illegal value of field {name!r}")
            if not head.grpc:
                head.fields += ((name.decode(), text),)
            elif name == _REQUEST_ID:
                head.request_id = text
            elif name == b"grpc-timeout":
                head.timeout_s = _timeout(text)
            elif text:
                head.metadata += ((name.decode(), text),)
        return head


def _take(head: Head, fields: RawHeaders) -> None:
    """Take what gRPC's fields say; raises `MalformedHeaders` for what cannot be passed on."""
    metadata = list(head.metadata)
    try:
        for name, value in fields:
            if name == b"grpc-timeout":
                head.timeout_s = _timeout(value.decode("latin-1"))
            elif name not in _NOT_PASSED and not name.startswith(b"grpc-"):
                field = name.decode("ascii"), value.decode("latin-1")
                check_metadata(*field)
                if field[0] == REQUEST_ID:
                    head.request_id = field[1]
                elif field[1]:
                    metadata.append(field)
    except ValueError as error:
        raise MalformedHeaders(str(error)) from None
    head.metadata = tuple(metadata)


def _timeout(text: str) -> float:
    try:
        return decode_timeout(text)
    except ValueError as error:
        raise MalformedHeaders(str(error)) from None


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
