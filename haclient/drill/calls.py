"""The calls of one client, each recorded with what became of it, and what the client says by itself meanwhile.

Decision made here: a call has failed only if it is certain that it was not carried out and will not be. Whatever else
is raised leaves a write unknown, and the judgement at the end allows for both.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, final

from pymilvus.client.cache import GlobalCache

from haclient.call import Call
from haclient.client import AsyncMilvusClient
from haclient.drill.history import Operation, Recorder, Value
from haclient.errors import ConfigError, DeadlineExceeded, PoisonedCall, Unavailable, WriteNotConfirmed, WriteRefused
from haclient.events import PER_CALL, BudgetExhausted, Event, FailedOver, HedgeStarted, RetryScheduled
from haclient.replication.token import seq_of

#: What says that the call was not carried out and will not be, unless it was sent (then it may be repeated).
_FAILED: Final = (ConfigError, Unavailable, DeadlineExceeded, PoisonedCall, WriteRefused)
#: What happens to single calls: that something is known to be wrong is another matter.
_OF_CALLS: Final = (*PER_CALL, BudgetExhausted, FailedOver, HedgeStarted, RetryScheduled)
#: The calls whose requests are counted; pymilvus makes others by itself.
_COUNTED: Final = frozenset(("Search", "Query", "Insert", "Upsert", "Delete"))

_current: ContextVar[Operation | None] = ContextVar("operation", default=None)


@final
class Caller:
    """Makes calls and records them.

    Args:
        client: Its client, started.
        recorder: Takes the calls.
    """

    def __init__(self, client: AsyncMilvusClient, recorder: Recorder) -> None:
        self.client = client
        self.recorder = recorder
        self._writing: dict[int, bool] = {}  # writes under way; whether each has been the only one
        client.subscribe(_Witness(recorder))

    async def call(
        self,
        kind: str,
        work: Callable[..., Awaitable[Any]],
        *,
        timeout_s: float,
        due: float | None = None,
        sets: Mapping[str, Value] | None = None,
        level: str = "",
        of: str = "",
        then: Callable[[Operation, Any], None] | None = None,
    ) -> Operation:
        """Make one call.

        Args:
            kind: What it is.
            work: Makes it; takes ``timeout``.
            timeout_s: Its limit.
            due: When it was to begin, ``time.monotonic``; now unless given.
            sets: Of a write: the registers it gives new values.
            level: Of a read: the consistency level.
            of: Of a write to rows: their collection, so that its place in the log can be found out.
            then: Takes the answer.
        """
        now = time.monotonic()
        op = Operation(self.recorder.client, kind, now, timeout_s, now if due is None else due, sets or {}, level)
        token = _current.set(op)
        self._begin(op)
        try:
            with self.recorder.record(op):
                try:
                    answer = await work(timeout=timeout_s)
                except WriteNotConfirmed as error:
                    op.seq, op.error = error.seq, _told(error)
                except _FAILED as error:
                    sent = any(attempt.sent for attempt in getattr(error, "attempts", ()))
                    op.outcome, op.error = "unknown" if sent else "failed", _told(error)
                except Exception as error:
                    op.error = _told(error)
                else:
                    op.outcome = "ok"
                    # The session's newest place is this write's if it had no other under way.
                    op.seq = await self._newest(of) if of and self._writing[id(op)] else 0
                    if then is not None:
                        then(op, answer)
        finally:
            self._writing.pop(id(op), None)
            _current.reset(token)
        return op

    def _begin(self, op: Operation) -> None:
        if op.sets:
            alone = not self._writing
            self._writing = dict.fromkeys(self._writing, False)
            self._writing[id(op)] = alone

    async def _newest(self, collection: str) -> int:
        """The place in the log of this session's newest write to a collection."""
        handler = await self.client._get_connection()
        return seq_of(GlobalCache.collection_ts.get(handler.server_address, "", collection))


@final
class _Witness:
    """Listens to a client; see `haclient.events.Counter`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, event: Event) -> None:
        if not isinstance(event, _OF_CALLS):
            names = (getattr(event, "cluster", ""), getattr(event, "endpoint", ""))
            self._recorder.notice(type(event).__name__, tuple(filter(None, names)), str(event))

    def count(self, call: Call, outcome: str, duration_s: float) -> None:
        op = _current.get()
        if op is not None and call.method.name in _COUNTED:
            op.attempts += sum(attempt.sent for attempt in call.attempts)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
