"""Every error of haclient.

    HAClientError
    ├── ConfigError              what was configured is wrong: fix it, nothing was sent
    ├── BadQuery                 the question itself is wrong: nothing was sent
    ├── EmbeddingError           an embedder failed, or answered something that is no vectors
    ├── Overloaded               too many wait already: nothing was sent, try again later
    ├── WireError                one attempt's transport failed (never reaches a user by itself)
    │   ├── ConnectFailed        nothing listens, or TLS failed: not sent
    │   ├── ConnectionLost       the connection died
    │   ├── StreamReset          the peer reset this one stream
    │   ├── AttemptTimeout       no answer within the attempt's time
    │   ├── ProtocolError        the peer broke HTTP/2 or gRPC framing
    │   └── TransportClosed      we closed it
    ├── LogError                 the mutation log failed
    │   ├── LogUnavailable       it cannot be reached or written now
    │   ├── LogFull              it has no room for another entry
    │   ├── LogTrimmed           the entries asked for have been removed
    │   └── LogCorrupt           what is stored is not what was written
    └── CallError                a call failed; carries every attempt
        ├── Unavailable          no endpoint could answer: try again later
        ├── DeadlineExceeded     time ran out first
        ├── PoisonedCall         this very request was seen to kill servers: do not send it again
        ├── WriteNotConfirmed    a write may or may not have happened: read before repeating it
        ├── WriteRefused         nothing was sent: configure where writes go
        └── AccessDenied         the servers refuse the credentials, or what they allow

A branch means different behaviour for the caller. In the drop-in clients the `CallError`s are also
`pymilvus.exceptions.MilvusException`s, so ``except`` clauses written for pymilvus keep working.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from haclient.call import Attempt


class HAClientError(Exception):
    """Base of every error raised by haclient; survives pickling, whatever its constructor takes."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[HAClientError], args: tuple[object, ...], state: dict[str, object]) -> HAClientError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ConfigError(HAClientError, ValueError):
    """The configuration is wrong; the message names the key and what to write instead."""


class BadQuery(HAClientError, ValueError):
    """What was asked for cannot be asked (an empty question, k below 1, an unknown field); the message says what."""


class EmbeddingError(HAClientError):
    """An embedder failed, or answered something that is no vectors; nothing of it is kept."""


class Overloaded(HAClientError):
    """Too much is waiting already; nothing was sent. Ask less at once, or allow a longer queue."""


class WireError(HAClientError):
    """One attempt's transport failed.

    Attributes:
        sent: Whether any byte of the request may have reached the server's process. False means it is
            certain that the server has not seen the request, so even a write may be sent again.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@final
class ConnectFailed(WireError):
    """No connection could be made (refused, unreachable, name unknown, TLS handshake failed)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


@final
class ConnectionLost(WireError):
    """The connection ended before the reply did."""


@final
class StreamReset(WireError):
    """The peer reset this stream with an HTTP/2 error code (RFC 9113 section 7).

    REFUSED_STREAM (7) guarantees that nothing was processed: then ``sent`` is False.
    """

    def __init__(self, message: str, *, code: int, sent: bool) -> None:
        super().__init__(message, sent=sent)
        self.code = code


@final
class AttemptTimeout(WireError):
    """No complete reply within the attempt's time."""


@final
class ProtocolError(WireError):
    """The peer broke HTTP/2 or gRPC framing, or a message was over the size limit."""


@final
class TransportClosed(WireError):
    """The transport was closed on our side."""

    def __init__(self, message: str = "the transport was closed", *, sent: bool = False) -> None:
        super().__init__(message, sent=sent)


class LogError(HAClientError):
    """The mutation log failed; the message says which log, what happened and what to do."""


@final
class LogUnavailable(LogError):
    """The log cannot be reached or written now (connection, quorum, disk full, read-only).

    Attributes:
        sent: Whether the change may have happened all the same.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@final
class LogFull(LogError):
    """The log has no room; nothing was added."""


@final
class LogTrimmed(LogError):
    """The entries asked for have been removed: whoever needs them must be copied anew."""


@final
class LogCorrupt(LogError):
    """What is stored is not what was written; nothing more is written to it."""


class CallError(HAClientError):
    """A call failed for good.

    Attributes:
        summary: What happened, and what to do, in one or two sentences.
        attempts: Every try, oldest first.
        code: Milvus' error code of the last reply that had one, else the gRPC code, else 65535.
    """

    def __init__(self, summary: str, attempts: Sequence[Attempt] = (), *, code: int = 65535) -> None:
        self.summary = summary
        self.attempts = tuple(attempts)
        self.code = code
        super().__init__(describe(summary, self.attempts))


class Unavailable(CallError):
    """No endpoint could answer in the time and number of tries allowed."""


class DeadlineExceeded(CallError):
    """The call's deadline came first."""


class PoisonedCall(CallError):
    """This request was seen to kill servers and is refused for a while."""


class WriteNotConfirmed(CallError):
    """The write was sent and no answer came: it may or may not have happened.

    Attributes:
        seq: Its number in the mutation log: it happens, once, and only when is not known. 0 if it has none.
    """

    def __init__(self, summary: str, attempts: Sequence[Attempt] = (), *, code: int = 65535, seq: int = 0) -> None:
        super().__init__(summary, attempts, code=code)
        self.seq = seq


class WriteRefused(CallError):
    """The write was not sent: several clusters are configured and nothing says how to write to them."""


class AccessDenied(CallError):
    """The server refused the credentials, or does not allow them this call."""


def describe(summary: str, attempts: Sequence[Attempt]) -> str:
    """Join a summary and its attempts into the text of an error."""
    if not attempts:
        return summary
    lines = "".join(f"\n  {i}. {attempt}" for i, attempt in enumerate(attempts, 1))
    return f"{summary}\nattempts:{lines}"
