"""Into the log, and then until enough clusters have it.

Decision made here: before the append a write has certainly not happened, and its errors say so; after it, it certainly
happens, and the only error left is that this is not confirmed yet. An append without an answer is repeated, since an
operation is in the log once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar, final

from haclient.acknowledge import Ack
from haclient.call import Method
from haclient.errors import (
    DeadlineExceeded,
    LogError,
    LogFull,
    LogUnavailable,
    Unavailable,
    WriteNotConfirmed,
    WriteRefused,
)
from haclient.replication.log import Mutation, Stream
from haclient.replication.past import Past
from haclient.replication.shared import Shared
from haclient.replication.timing import Backoff

T = TypeVar("T")

#: Milvus' code for "too many requests": what a full log is to the caller.
_RATE_LIMITED: Final = 8
#: Not worth another try with less time left than this, seconds.
_LEAST_S: Final = 0.01


class Void(Exception):
    """Every cluster refuses a write that is in the log; nothing happened.

    Attributes:
        reply: The answer of the server that refused it first.
    """

    def __init__(self, reply: bytes) -> None:
        super().__init__("refused by every cluster")
        self.reply = reply


@final
@dataclass(frozen=True, slots=True)
class Write:
    """One call that changes something.

    Attributes:
        method: An RPC that `haclient.milvus.ddl.mirrored` sends to the log.
        message: The user's request.
        database: Of the call, "" for the default one.
        deadline: Loop time by which it must be answered.
        ack: What it waits for.
        past: Its session, which remembers what it wrote; None if it belongs to none.
    """

    method: Method
    message: bytes
    database: str
    deadline: float
    ack: Ack
    past: Past | None


@final
class Commit:
    """Appends of one process.

    Args:
        shared: The parts that everybody uses.
        appended: Told of mutations that have been appended, with their seqs.
    """

    def __init__(self, shared: Shared, appended: Callable[[list[int], list[Mutation]], None]) -> None:
        self._shared = shared
        self._appended = appended

    async def append(self, call: Write, stream: Stream, requests: Sequence[tuple[str, bytes]]) -> int:
        """Append requests (method, message) of one call, in order; return the seq of the last.

        Raises:
            Unavailable: Nothing was appended.
            WriteRefused: Nothing was, and never will be: another log has taken this one's place.
            WriteNotConfirmed: They may have been.
        """
        shared, name = self._shared, f"{call.method.name} {stream[1]}".rstrip()
        if shared.superseded:
            raise WriteRefused(f"{name}: not written. {shared.superseded}.")
        draw = shared.rng.randbytes
        listed = [Mutation(draw(16), method, stream, message, call.database) for method, message in requests]
        await self._room(name, call.deadline)
        backoff, sent = Backoff(shared.rng), False
        while True:
            failure: LogError
            try:
                async with asyncio.timeout_at(call.deadline):
                    seqs = await shared.log.append(listed)
            except LogFull as error:
                failure = error
            except LogUnavailable as error:
                failure, sent = error, sent or error.sent
            except TimeoutError:
                failure, sent = LogUnavailable("no answer in time", sent=True), True
            else:
                self._appended(seqs, listed)
                if call.past is not None:
                    call.past.wrote(stream, seqs[-1])
                return seqs[-1]
            left_s = call.deadline - shared.loop.time()
            if left_s < _LEAST_S:
                raise _not_appended(name, failure, sent)
            await asyncio.sleep(min(backoff.next(), left_s))

    async def _room(self, name: str, deadline: float) -> None:
        """Hold a write back while no cluster takes any."""
        shared = self._shared

        def blocked() -> str:
            names = [member.name for member in shared.counted() if not member.drained]
            reasons = [shared.progress.blocked(one) for one in names]
            return f"{names[0]}: {reasons[0]}" if reasons and all(reasons) else ""

        if not await shared.progress.until(lambda: not blocked(), deadline):
            text = f"{name}: not written. Every cluster refuses writes for now ({blocked()})"
            raise Unavailable(f"{text}. Give them memory, disk or quota; reads go on.", code=_RATE_LIMITED)
        if shared.loop.time() >= deadline:
            raise DeadlineExceeded(f"{name}: not written, its time was over before it could be")

    async def acknowledged(self, call: Write, stream: Stream, seq: int) -> None:
        """Wait until as many clusters have an entry as the call wants.

        Raises:
            Void: Every cluster refuses it.
            WriteNotConfirmed: The deadline came first.
        """
        shared, ack = self._shared, call.ack
        if ack == "log":
            return
        progress = shared.progress

        def enough() -> bool:
            if ack == "one":
                return shared.has(stream, seq)
            members = shared.counted()
            # Who was drained on purpose is not waited for, but if all are somebody has to come back.
            present = [progress.has(member.name, stream, seq) for member in members if not member.drained]
            return sum(present) >= max(len(present) // 2 + 1 if ack == "quorum" else len(present), 1)

        if not await progress.until(lambda: seq in shared.void or enough(), call.deadline):
            have = [member.name for member in shared.counted() if progress.has(member.name, stream, seq)]
            raise WriteNotConfirmed(
                f"{call.method.name} {stream[1]}: it is entry {seq} of the mutation log and will happen on every "
                f'cluster, once. So far {", ".join(have) or "none"} has it, and ack = "{ack}" asks for more. '
                "Do not repeat it.",
                seq=seq,
            )
        void = shared.void.get(seq)
        if void is not None:
            raise Void(void.reply)

    async def logged(self, work: Awaitable[T], call: Write) -> T:
        """Await something that the log has to do before a write is appended.

        Raises:
            Unavailable: It did not; nothing was appended.
        """
        try:
            async with asyncio.timeout_at(call.deadline):
                return await work
        except (LogError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            raise Unavailable(f"{call.method.name}: not written. The mutation log does not answer: {why}") from None


def _not_appended(name: str, failure: LogError, sent: bool) -> Unavailable | WriteNotConfirmed:
    if sent:
        text = f"{name}: the mutation log gave no answer ({failure}), so it may or may not happen"
        return WriteNotConfirmed(f"{text}. Read the data before you repeat it.")
    if isinstance(failure, LogFull):
        text = f"{name}: not written. The mutation log is full ({failure}): the clusters do not keep up"
        return Unavailable(f"{text}. See `haclient log show`.", code=_RATE_LIMITED)
    return Unavailable(f"{name}: not written. The mutation log cannot be written: {failure}")
