"""What a reply asks for: one table from gRPC codes, Milvus' codes and the texts behind its catch-all to an `Action`.

Decisions made here:

* Success is gRPC OK *and* no error in the body; Milvus signals most failures inside a gRPC-OK reply. A success may
  carry a reason ("search result is empty"), so the presence of bytes means nothing.
* Milvus Lite uses the same numbers for other things, so there is one table per `Flavour`.
* 65535 is Milvus' catch-all: its text decides. The user's mistakes are looked for first, because 2.3.5 retries them
  inside and wraps them in the text of an outage ("failed to search/query delegator ...: vector dimension mismatch").
  A text that is neither is an `Verdict.ambiguous` fail-over for a read: another endpoint may be asked, and no breaker
  may be tripped by it alone.
* `Verdict.rejected` says that the server certainly did not carry the request out, so that even a write which must not
  be repeated may be sent elsewhere. Only refusals that Milvus makes before it executes count.

Sources: milvus pkg/merr/errors.go for the numbers (2.3 to master), statuses recorded from Milvus 2.3.5 and Lite 3.2.2.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final, final

from haclient.call import STATUS_IS, STATUS_NONE, Action, Kind, Method, Reply
from haclient.milvus.wireformat import BYTES, VARINT, fields, read_varint, signed


class Flavour(enum.Enum):
    """Which family of numbers a server speaks."""

    REAL = "milvus"
    LITE = "milvus_lite"
    #: Not known yet (no Connect or GetVersion was answered): told apart by the legacy code where numbers clash.
    UNKNOWN = "unknown"


@final
@dataclass(frozen=True, slots=True)
class Status:
    """``milvus.proto.common.Status`` of a reply.

    Attributes:
        code: Milvus' error code (field 3).
        error_code: The deprecated enum (field 1); the only one that servers before 2.3 set.
        reason: Text for a person.
        retriable: The server thinks that the same request may succeed later; never set by 2.3 and Lite.
        input_error: The server says that the request is at fault (``extra_info["is_input_error"]``).
    """

    code: int = 0
    error_code: int = 0
    reason: str = ""
    retriable: bool = False
    input_error: bool = False


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply asks for.

    Attributes:
        action: What to do.
        reason: One line for a person, "" for a success.
        ambiguous: The request may be at fault as well as the server: do not trip a breaker on this alone.
        rejected: The server certainly did not carry the request out.
        code: Milvus' code, the legacy one if that is all there is, or the gRPC code of a reply without a status.
    """

    action: Action
    reason: str = ""
    ambiguous: bool = False
    rejected: bool = False
    code: int = 0


OK: Final = Verdict(Action.OK)

_EMPTY_STATUS: Final = b"\n\0"


def peek(method: Method, message: bytes) -> Status | None:
    """Return the error that a response carries, or None if it is a success.

    Looks at the first bytes only, except for the few methods whose status is not field 1. A response without a
    status is a success.

    Raises:
        ValueError: There should be a status, and it cannot be read.
    """
    where = method.status
    if where == 1:
        if message.startswith(_EMPTY_STATUS) or not message.startswith(b"\n"):
            return None
        size, start = read_varint(message, 1)
        return _error(message, start, start + size)
    if where == STATUS_IS:
        return _error(message, 0, len(message)) if message else None
    if where == STATUS_NONE:
        return None
    for number, kind, a, b in fields(message):
        if number == where and kind == BYTES:
            return _error(message, a, b)
    return None


def _error(message: bytes, start: int, end: int) -> Status | None:
    if end > len(message):
        raise ValueError("truncated status")
    if start == end or message[start] > 0x20:
        # Fields are written in order: one that starts behind retriable (#4) has neither code nor error_code.
        return None
    code = error_code = 0
    reason = ""
    retriable = input_error = False
    for number, kind, a, b in fields(message, start, end):
        if kind == VARINT:
            if number == 3:
                code = signed(a)
            elif number == 1:
                error_code = signed(a)
            elif number == 4:
                retriable = a != 0
        elif kind == BYTES:
            if number == 2:
                reason = str(message[a:b], "utf-8", "replace")
            elif number == 6:
                input_error |= message[a:b] == b"\n\x0eis_input_error\x12\x04true"
    if code == 0 and error_code == 0:
        return None
    return Status(code, error_code, reason, retriable, input_error)


def classify(method: Method, reply: Reply, flavour: Flavour = Flavour.REAL, *, known: bool = False) -> Verdict:
    """Decide what a reply asks for.

    Args:
        method: The RPC that was called.
        reply: What came back.
        flavour: Which numbers the server speaks.
        known: The catalogue says that the collection exists, so "collection not found" is lag or loss, not a mistake.
            The first time it asks for `Action.REFRESH`; if it comes again, read elsewhere.

    Returns:
        The verdict; for a success always the same object, `OK`.
    """
    if reply.code == 0:
        message = reply.message
        if method.status == 1 and message.startswith(_EMPTY_STATUS):
            return OK
        try:
            status = peek(method, message)
        except ValueError as error:
            return Verdict(Action.FAILOVER, f"the reply is not one of Milvus' ({error})", ambiguous=True, code=65535)
        return OK if status is None else judge(method.kind, status, flavour, known=known)
    return _grpc(method, reply)


def judge(kind: Kind, status: Status, flavour: Flavour = Flavour.REAL, *, known: bool = False) -> Verdict:
    """Decide what an error in a reply's body asks for; see `classify`."""
    code = status.code or status.error_code
    if status.input_error:
        return _verdict(Action.FAIL_FAST, status, kind)
    lite = flavour is Flavour.LITE or (flavour is Flavour.UNKNOWN and _like_lite(status))
    if lite:
        action, ambiguous = _lite(kind, status)
    elif code == CATCH_ALL or not status.code:
        action, ambiguous = _by_text(kind, status)
    elif (listed := ACTIONS.get(code)) is not None:
        action, ambiguous = listed, code in AMBIGUOUS
    else:
        # A code that is not in the table: a newer server's.
        action, ambiguous = (Action.FAILOVER, True) if kind is Kind.READ or status.retriable else _UNSURE
    if code == COLLECTION_NOT_FOUND and known and action is Action.FAIL_FAST:
        action = Action.REFRESH
    return _verdict(action, status, kind, ambiguous=ambiguous, lite=lite)


def _verdict(action: Action, status: Status, kind: Kind, *, ambiguous: bool = False, lite: bool = False) -> Verdict:
    code = status.code or status.error_code
    if kind is not Kind.READ and action is Action.FAILOVER_COLLECTION:
        action = Action.FAIL_FAST
    if kind is not Kind.WRITE and action is Action.WRITE_BLOCKED:
        # Memory, disk or a denial met by anything but a write: the cluster is short of something, ask another one.
        action = Action.BACK_OFF
    if status.code:
        rejected = action in _REFUSALS or code in (REJECTED_LITE if lite else REJECTED)
    else:
        rejected = action in _REFUSALS or code in REJECTED_LEGACY
    reason = f"{status.reason[:300] or 'no reason given'} (code {code})"
    return Verdict(action, reason, ambiguous, rejected, code)


CATCH_ALL: Final = 65535
COLLECTION_NOT_FOUND: Final = 100

_UNSURE: Final = (Action.FAIL_FAST, True)


def _spread(action: Action, *codes: int | range) -> dict[int, Action]:
    return {code: action for one in codes for code in (one if isinstance(one, range) else (one,))}


# merr codes of real servers, by what they ask for.
ACTIONS: Final[dict[int, Action]] = {
    **_spread(Action.FAILOVER, 1, 2, 10001, 401, range(500, 508), range(600, 606), range(901, 907)),
    **_spread(Action.FAILOVER, 1001, 1002, 1003, range(1300, 1303), 2200),
    **_spread(Action.FAILOVER_COLLECTION, 101, 103, 106, 201, 202, 400),
    **_spread(Action.ROUTE_CHANGE, 6, 108, 1900),
    **_spread(Action.BACK_OFF, 4, 8, 12, 305, 1807),
    **_spread(Action.WRITE_BLOCKED, 3, 7, 9, 11, 1303),
    **_spread(Action.REFRESH, 109, 110, range(2307, 2310), range(2311, 2314), 2316),
    **_spread(Action.FAIL_FAST, COLLECTION_NOT_FOUND, 102, 104, 105, 107, 200, 250, range(300, 304)),
    **_spread(Action.FAIL_FAST, range(700, 704), range(800, 803), range(1100, 1103), range(1400, 1403)),
    **_spread(Action.FAIL_FAST, range(1600, 1604), 1700, 1701, range(1800, 1807), range(1901, 1904)),
    **_spread(Action.FAIL_FAST, range(2000, 2100), 2100, 2201, range(2300, 2307), 2310, 2314, 2315, 2400, 3000),
    **_spread(Action.ALARM, 10, 604, 1000, range(1004, 1010), 2101, 2401, 2500, 3001),
    **_spread(Action.DROPPED, 10000, 2038),  # cancelled, and cancelled inside segcore
}

#: Failures that may be the caller's doing: its own cancellation or deadline.
AMBIGUOUS: Final = frozenset((10000, 10001, 2038))

# Actions that Milvus decides on before it executes.
_REFUSALS: Final = frozenset((Action.ROUTE_CHANGE, Action.BACK_OFF, Action.WRITE_BLOCKED))
#: Codes that Milvus gives before it executes: not ready; no such collection or database; stale schema; bad parameter.
REJECTED: Final = frozenset((1, 100, 109, 110, 800, 1100, 1101, 1102))
#: Of Lite: bad argument, no such collection. Not 1, which is any exception at any moment.
REJECTED_LITE: Final = frozenset((6, 100))
#: Of the deprecated enum: collection not found, not ready (twice), stale schema.
REJECTED_LEGACY: Final = frozenset((4, 56, 57, 62))

# The deprecated enum, where it says more than "unexpected error".
LEGACY: Final[dict[int, Action]] = {
    **_spread(Action.FAILOVER, 45, 46, 50, 56, 57),
    **_spread(Action.BACK_OFF, 49, 52),
    **_spread(Action.WRITE_BLOCKED, 48, 53, 54, 55),
    **_spread(Action.REFRESH, 62),
    **_spread(Action.FAIL_FAST, range(3, 14), 22, 23, 25, 28, range(29, 45), 51, range(58, 62)),
    **_spread(Action.ALARM, 14),
}

# The user's mistakes, recorded from 2.3.5 and named in the sources of later servers. Looked for before the outages.
_MISTAKE: Final = re.compile(
    r"dimension mismatch|metric type not match|illegal req sizes|Plan\.cpp:41"
    r"|cannot parse|failed to create (?:query|expr) plan|field \S+ not exist|fieldName\(\S*\) not found"
    r"|(?:topk|top k|nq|limit|offset|round_decimal|ef|nprobe) \[.*?\] is invalid|invalid max query result window"
    r"|empty expression should|partition name \S+ not found|should divide the dim|dim\(\d+\)"
    r"|is not supported|are not supported|invalid parameter|already exist|duplicate|different parameters"
    r"|not found the (?:role|user)|alias or database may have been changed|should be in range|to search is not of",
    re.DOTALL,
)
_OUTAGE: Final = re.compile(
    r"shard (?:delegator|leader)|no available|node not match|node offline|NodeOffline|not ready|recovering"
    r"|context deadline|incomplete query result|channel not available|not serviceable|not healthy"
    r"|connection refused|transport is closing|code = Unavailable|timed? ?out",
    re.IGNORECASE,
)
# A query node that has let go of a collection calls it not found; the catalogue, which is what counts, says so itself.
_NOT_LOADED: Final = re.compile(r"not (?:fully )?loaded|QueryNode ID=\d+, reason=collection not found")
_NOT_FOUND: Final = re.compile(r"collection not found|can't find collection")
_QUOTA: Final = re.compile(r"rate ?limit|too many requests", re.IGNORECASE)
_DENIED: Final = re.compile(r"deny to write|force deny|quota exceeded|quota exhausted", re.IGNORECASE)


def _by_text(kind: Kind, status: Status) -> tuple[Action, bool]:
    """Judge the catch-all code, or a server so old that it has no other: by the legacy enum, then by the text."""
    reason = status.reason
    if "REPLICATE_VIOLATION" in reason:
        return Action.ROUTE_CHANGE, False
    legacy = LEGACY.get(status.error_code)
    if legacy is not None:
        return legacy, False
    if _MISTAKE.search(reason):
        return Action.FAIL_FAST, False
    if "Timestamp lag too large" in reason:
        # The delegator lags, or the request's guarantee timestamp comes from a clock far ahead.
        return Action.FAILOVER, True
    if _DENIED.search(reason):
        return Action.WRITE_BLOCKED, False
    if _QUOTA.search(reason):
        return Action.BACK_OFF, False
    if _NOT_LOADED.search(reason):
        return Action.FAILOVER_COLLECTION, False
    if _NOT_FOUND.search(reason):
        return Action.FAIL_FAST, False
    if "context canceled" in reason:
        # 2.3.5 merges searches that wait: who cancels one, as the loser of a hedge, fails the others with it.
        return Action.DROPPED, True
    if _OUTAGE.search(reason):
        return Action.FAILOVER, False
    return (Action.FAILOVER, True) if kind is Kind.READ or status.retriable else _UNSURE


def _like_lite(status: Status) -> bool:
    # Lite copies its code into error_code, whose enum has no 6; a real "not ready" (1) is 56 in it.
    return (status.code, status.error_code) in ((6, 6), (1, 0), (1, 1))


def _lite(kind: Kind, status: Status) -> tuple[Action, bool]:
    if status.code == 101:
        return Action.FAILOVER_COLLECTION, False
    if status.code != 1:
        return Action.FAIL_FAST, False
    # Any unexpected Python exception; numpy's says that the vector's length is wrong.
    if re.search(r"could not be broadcast|mismatch|already exists|Error parsing message", status.reason):
        return Action.FAIL_FAST, False
    return (Action.FAILOVER, True) if kind is Kind.READ else _UNSURE


_GRPC: Final[dict[int, tuple[str, Action, bool, bool]]] = {
    # code: name, action, ambiguous, rejected
    1: ("CANCELLED", Action.DROPPED, True, False),  # by the server's side; our own never becomes a reply
    2: ("UNKNOWN", Action.FAILOVER, True, False),
    3: ("INVALID_ARGUMENT", Action.FAIL_FAST, False, True),
    4: ("DEADLINE_EXCEEDED", Action.FAILOVER, False, False),
    5: ("NOT_FOUND", Action.FAIL_FAST, False, True),
    6: ("ALREADY_EXISTS", Action.FAIL_FAST, False, True),
    7: ("PERMISSION_DENIED", Action.FAIL_FAST, False, True),
    8: ("RESOURCE_EXHAUSTED", Action.BACK_OFF, False, True),
    9: ("FAILED_PRECONDITION", Action.FAIL_FAST, False, True),
    10: ("ABORTED", Action.FAILOVER, True, False),
    11: ("OUT_OF_RANGE", Action.FAIL_FAST, False, True),
    12: ("UNIMPLEMENTED", Action.FAIL_FAST, False, True),  # passed on unchanged, clients fall back on it
    13: ("INTERNAL", Action.FAILOVER, True, False),
    14: ("UNAVAILABLE", Action.FAILOVER, False, False),
    15: ("DATA_LOSS", Action.ALARM, False, False),
    16: ("UNAUTHENTICATED", Action.FAIL_FAST, False, True),
}
_TOO_BIG: Final = re.compile(r"larger than max|message.{0,20}too (?:large|big)|exceeds? (?:the )?max", re.IGNORECASE)
_UNREADABLE: Final = re.compile(r"unmarshal|deserializing request", re.IGNORECASE)


def _grpc(method: Method, reply: Reply) -> Verdict:
    code, details = reply.code, reply.details
    name, action, ambiguous, rejected = _GRPC.get(code, (f"gRPC code {code}", Action.FAILOVER, True, False))
    if "REPLICATE_VIOLATION" in details:
        action, ambiguous, rejected = Action.ROUTE_CHANGE, False, True
    elif code == 2 and "not ready" in details:
        # Returned by the interceptor while the proxy has no meta cache yet: 15 to 30 s after a restart.
        ambiguous, rejected = False, True
    elif code == 8 and _TOO_BIG.search(details):
        action = Action.FAIL_FAST
        # The limit may have been met by the answer, after the work was done.
        rejected = method.kind is Kind.READ
    elif code == 12 and "unknown service" in details:
        # grpc-go's words: something listens here, but it is not Milvus.
        action = Action.FAILOVER if "milvus.MilvusService" in details else action
    elif code == 13 and _UNREADABLE.search(details):
        action, ambiguous, rejected = Action.FAIL_FAST, False, True
    return Verdict(action, f"{name}: {details[:300]}", ambiguous, rejected, code)
