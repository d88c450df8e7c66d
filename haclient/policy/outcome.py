"""What the caller gets when the tries are over: the server's own answer, or one error that tells the story.

Decision made here: if a server has said why it refuses the request itself (or the write), the caller gets that
answer unchanged, as if there were no haclient. Everything else becomes one `CallError` that lists every attempt
and says what to do next.
"""

from __future__ import annotations

from haclient.call import Action, Attempt, Call, Kind, Reply
from haclient.errors import CallError, DeadlineExceeded, Unavailable, WriteNotConfirmed

_ANSWERS = (Action.OK, Action.FAIL_FAST, Action.BACK_OFF, Action.WRITE_BLOCKED, Action.REFRESH)


def conclude(call: Call, attempt: Attempt, now: float) -> Reply:
    """Turn the last attempt of a call into what its caller gets.

    Raises:
        WriteNotConfirmed: A write was sent, and whether it happened is not known.
        DeadlineExceeded: Time ran out.
        Unavailable: No endpoint could answer.
    """
    if attempt.reply is not None and (attempt.action in _ANSWERS or not call.idempotent):
        return attempt.reply
    name = f"{call.method.name} {call.collection}".rstrip()
    code = next((a.code for a in reversed(call.attempts) if a.code), 65535)
    if call.method.kind is not Kind.READ and not call.idempotent and any(a.sent for a in call.attempts):
        raise WriteNotConfirmed(
            f"{name}: sent, but no answer came; it may or may not have been applied. Read the data before you "
            "repeat it, or make it repeatable: upsert whole rows with keys of your own, delete by primary key.",
            call.attempts,
            code=code,
        )
    if now >= call.deadline:
        raise DeadlineExceeded(
            f"{name}: no endpoint answered before the deadline. Raise the call's timeout if the time was short; "
            "otherwise see the attempts for what is wrong with each endpoint.",
            call.attempts,
            code=code,
        )
    raise Unavailable(
        f"{name}: no endpoint could answer. See the attempts for what is wrong with each, and "
        "`haclient status` for the fleet now; the call may be repeated.",
        call.attempts,
        code=code,
    )


def nowhere(call: Call) -> CallError:
    """Say that there is no endpoint to send a call to."""
    if call.pin is not None:
        return Unavailable(
            f"{call.method.name}: it belongs to cluster {call.pin!r} (an iterator, a job or a timestamp of that "
            "cluster), which has no endpoint in rotation. Start it anew to run on another cluster.",
            call.attempts,
        )
    return Unavailable(f"{call.method.name}: every endpoint is drained; undrain one.", call.attempts)


def exhausted(ratio: float) -> str:
    """Explain why a failed try was not repeated."""
    return f" (not repeated: the retry budget, {ratio:.0%} of recent calls, is spent)"
