"""Milvus' RESTful API through the core: the same failover rules as gRPC.

Decision made here: a request's body is passed on as it came, and read only for what routing needs. What cannot be
read, or is too long to be read beside other calls, is sent once, and the server says what is wrong with it.
A server's own answer is handed on unchanged; only where there is none does the proxy speak for itself, with an HTTP
status that says whether to try again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, final
from urllib.parse import parse_qs

import orjson

from haclient.call import Kind, Metadata, Method, Reply
from haclient.core import Core
from haclient.errors import (
    AccessDenied,
    CallError,
    DeadlineExceeded,
    HAClientError,
    PoisonedCall,
    TransportClosed,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
    describe,
)
from haclient.milvus.requests import READS, Facts, listed_keys_field
from haclient.milvus.timestamps import BOUNDED, CUSTOMIZED, EVENTUALLY, SESSION, STRONG
from haclient.proxy.head import token_of
from haclient.proxy.rest_routes import V1, VERB, http_status, is_rest, route

#: Bodies longer than this are not looked into: reading this much takes some 25 ms, in which nothing else happens.
_MOST_READ: Final = 4 << 20
_MOST_TIMEOUT_S: Final = 86_400
#: Headers of one connection (RFC 9110 section 7.6.1), and those that every sender makes for itself.
_HOP_BY_HOP: Final = frozenset((
    "connection", "content-length", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip
#: A compressed answer could not be judged; how long the server has is said anew for each attempt.
_NOT_SENT: Final = _HOP_BY_HOP | {"host", "expect", "accept-encoding", "request-timeout"}

#: Milvus' codes for what the proxy says itself; `UNEXPECTED` is its catch-all.
UNEXPECTED, _NOT_AUTHENTICATED, _RATE_LIMIT = 65535, 1800, 1807
_STATUS: Final[dict[type[CallError], int]] = {
    AccessDenied: 403,
    PoisonedCall: 422,
    # Not one of the statuses at which clients repeat a request by themselves.
    WriteNotConfirmed: 500,
    WriteRefused: 501,
    Unavailable: 503,
    DeadlineExceeded: 504,
}
#: The database of a request whose body names none; v1 has no such header.
_DATABASE: Final = "db-name"
_RETRY_AFTER: Final = ("retry-after", "1")
#: Consistency levels by the names that bodies give them.
_LEVELS: Final = {
    "Strong": STRONG, "Session": SESSION, "Bounded": BOUNDED, "Eventually": EVENTUALLY, "Customized": CUSTOMIZED,
}  # fmt: skip


@final
@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request, whole.

    Attributes:
        verb: HTTP's method.
        target: Path and query.
        headers: Lower-case names, in the order given; no pseudo-headers.
        body: Without any transfer coding.
    """

    verb: str
    target: str
    headers: Metadata
    body: bytes

    def header(self, name: str) -> str:
        """Return the first header of a (lower-case) name, "" if there is none."""
        return next((value for key, value in self.headers if key == name), "")


@final
@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response, whole; who writes it adds what frames it."""

    status: int
    headers: Metadata
    body: bytes


def refusal(status: int, message: str, code: int = UNEXPECTED, *headers: tuple[str, str]) -> HttpResponse:
    """Say no in the form that Milvus' clients expect."""
    body = orjson.dumps({"code": code, "message": message})
    return HttpResponse(status, (("content-type", "application/json"), *headers), body)


def shed(reason: str) -> HttpResponse:
    """Refuse a request because there is too much to do."""
    return refusal(429, reason, _RATE_LIMIT, _RETRY_AFTER)


@final
class RestGateway:
    """Answers requests to Milvus' RESTful API.

    Args:
        core: The fleet and its policies; made with `haclient.proxy.rest_routes.MILVUS_AND_REST` and a connector from
            `haclient.proxy.rest_transport.with_rest`.
        known: Says whether a client's token ("user:password" or an API key) is one that lets it in; None asks for
            none, and passes on what clients present to clusters without credentials of their own.
    """

    def __init__(self, core: Core, known: Callable[[str], bool] | None = None) -> None:
        self._core = core
        self._known = known

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """Answer one request, whatever happens."""
        path, _, query = request.target.partition("?")
        if not (is_rest(path) and request.target.isascii() and request.target.isprintable() and " " not in query):
            text = "there is nothing here; this proxy answers Milvus' gRPC, /v2/vectordb/... and /v1/vector/..."
            return refusal(404, f"{request.verb} {path[:200]}: {text}")
        # Browsers ask whether they may ask without credentials (CORS), and Milvus answers that to everybody.
        preflight = request.verb == "OPTIONS" and request.header("access-control-request-method")
        if self._known is not None and not preflight and not self._known(_token(request)):
            text = "the token is missing or wrong; send the header Authorization: Bearer TOKEN"
            return refusal(401, text, _NOT_AUTHENTICATED, ("www-authenticate", "Bearer"))
        method, rpc = route(request.verb, path)
        if query:
            method = replace(method, path=request.target)
        facts = self._facts(method, rpc, request, query)
        if facts.opaque and method.kind is Kind.READ:
            # A refusal of it must not be taken for one of the collection that it may be about.
            method = replace(method, kind=Kind.SESSION)
        try:
            timeout_s = _timeout(request)
            reply, call = await self._core.answer(method, request.body, self._metadata(request), timeout_s, facts)
        except HAClientError as error:
            return _failure(request, error)
        return _handed_on(reply, self._core.reader.trailer(call) if self._core.reader is not None else ())

    def _facts(self, method: Method, rpc: str, request: HttpRequest, query: str) -> Facts:
        """Read what routing needs; see `haclient.milvus.requests.inspect`, which does so for gRPC."""
        asked = _members(request, query)
        if asked is None:
            return Facts(pinned=method.pinned, opaque=True)
        collection, database = (_string(asked.get(name)) for name in ("collectionName", "dbName"))
        if not database and not method.path.startswith(V1):
            database = request.header(_DATABASE) or self._core.fleet.config.database
        facts = Facts(
            collection, database, idempotent=method.idempotent, hedgeable=method.hedgeable, pinned=method.pinned
        )
        if rpc in READS:
            level = _LEVELS.get(_string(asked.get("consistencyLevel")))
            facts.reads_rows, facts.use_default_consistency, facts.consistency_level = True, level is None, level or 0
        elif rpc in ("Upsert", "Delete"):
            facts.idempotent = self._may_be_repeated(rpc, asked, (database, collection))
        return facts

    def _metadata(self, request: HttpRequest) -> Metadata:
        """Carry over the headers that are for the server; see `haclient.proxy.rest_routes`."""
        named = {
            word.strip().lower() for name, value in request.headers if name == "connection" for word in value.split(",")
        }
        if self._known is not None:
            named.add("authorization")  # it was for us
        carried = [(name, value) for name, value in request.headers if name not in _NOT_SENT and name not in named]
        database = self._core.fleet.config.database
        if database and not request.header(_DATABASE):
            carried.append((_DATABASE, database))
        return (VERB, request.verb), *carried

    def _may_be_repeated(self, rpc: str, asked: dict[str, Any], key: tuple[str, str]) -> bool:
        """Say whether a write may be sent twice: whole rows with keys of the client's own, or a delete by key."""
        known = self._core.fleet.keys.get(key)
        if rpc == "Upsert":
            return known is not None and not known.auto_id and not asked.get("partialUpdate")
        if "id" in asked and not asked.get("filter"):
            return True  # v1
        return known is not None and listed_keys_field(_string(asked.get("filter"))) == known.name


def _members(request: HttpRequest, query: str) -> dict[str, Any] | None:
    """Return what a request says by name; None if it cannot be read, or is too long to be."""
    if request.verb == "GET":
        return {name: values[0] for name, values in parse_qs(query).items()}
    if not request.body:
        return {}
    try:
        asked = orjson.loads(request.body) if len(request.body) <= _MOST_READ else None
    except ValueError:
        return None
    return asked if isinstance(asked, dict) else None


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _token(request: HttpRequest) -> str:
    """Return the token that a request presents, "" if none; Milvus' REST takes HTTP's own form of a password, too."""
    scheme, _, rest = request.header("authorization").partition(" ")
    return token_of(rest.strip()) if scheme.lower() == "basic" else token_of(request.header("authorization"))


def _timeout(request: HttpRequest) -> float | None:
    """Return the time that the client allows, in seconds, if it says so; Milvus takes whole numbers only."""
    text = request.header("request-timeout")
    return float(min(int(text), _MOST_TIMEOUT_S)) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _handed_on(reply: Reply, own: Metadata = ()) -> HttpResponse:
    headers = tuple(header for header in reply.headers[1:] if header[0] not in _HOP_BY_HOP)
    return HttpResponse(http_status(reply), headers + own, reply.message)


def _failure(request: HttpRequest, error: HAClientError) -> HttpResponse:
    """Say why no server has answered well: in the words of the last one that has answered at all, or in ours."""
    attempts = error.attempts if isinstance(error, CallError) else ()
    if isinstance(error, Unavailable):
        for attempt in reversed(attempts):
            if attempt.reply is not None:
                return _handed_on(attempt.reply)
        if attempts and all(isinstance(attempt.error, TransportClosed) for attempt in attempts):
            text = "no endpoint offers this route of Milvus' RESTful API; use gRPC, or servers of another version"
            return refusal(404, describe(f"{request.verb} {request.target[:200]}: {text}.", attempts))
    code = error.code if isinstance(error, CallError) else UNEXPECTED
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 503)
    return refusal(status, str(error), code, *((_RETRY_AFTER,) if status == 503 else ()))
