"""A call that is answered by calling back, as the proxy wants it.

Decision made here: a call whose first try is answered well makes no task and no future; whatever does not end well
there goes on in a task, through the same layers as every other call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, final

from haclient.call import Action, Attempt, Call, Reply
from haclient.errors import CallError, HAClientError
from haclient.policy.hedge import Race

if TYPE_CHECKING:
    from haclient.core import Core


@final
class Exchange:
    """One call that is answered by calling back; made by `Core.begin`.

    The first try is a race without a task. Whatever does not end well there goes on in a task, through the same
    layers as every other call.

    Attributes:
        call: What is answered, with its attempts so far.
    """

    __slots__ = ("_core", "_done", "_race", "_start", "_task", "call")

    def __init__(self, core: Core, call: Call, done: Callable[[Reply | HAClientError], None]) -> None:
        self._core = core
        self.call = call
        self._done = done
        self._start = core.fleet.clock()
        self._race: Race | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Make the first try, or go through all layers if somebody is suspected of killing servers."""
        core = self._core
        core._budget.deposit(self._start)
        if not core._read(self.call):
            self._go_on(lambda: core._write(self.call))
        elif core._quarantine.idle and (self.call.plan is None or self.call.plan.quick(self.call)):
            race = core._hedging.begin(self.call, self._tried)
            if self._task is None:
                self._race = race
        else:
            self._go_on(lambda: core._stack(self.call))

    def _tried(self, attempt: Attempt | None) -> None:
        """Take the outcome of the first try."""
        self._race = None
        core, call = self._core, self.call
        if attempt is None or attempt.action is not Action.OK:
            if attempt is not None:
                core._quarantine.note(call)
            self._go_on(lambda: core._stack.after(call, attempt))
            return
        reply = attempt.reply
        assert reply is not None
        reply = core._learnt(call, reply)
        core._report(call, "ok", self._start)
        self._done(reply)

    def _go_on(self, answer: Callable[[], Awaitable[Reply]]) -> None:
        core = self._core
        task = self._task = core.loop.create_task(self._finish(answer))
        core._exchanges.add(task)
        task.add_done_callback(core._exchanges.discard)

    async def _finish(self, answer: Callable[[], Awaitable[Reply]]) -> None:
        # Begun here, not by whoever makes the task: one that is cancelled before its first step leaves nothing behind.
        outcome: Reply | HAClientError
        try:
            outcome = await self._core._observe(self.call, answer(), self._start)
        except HAClientError as error:
            outcome = error
        except Exception as error:
            # Nobody waits for the task: a mistake of ours must not leave the caller without an answer.
            text = f"{self.call.method.name}: haclient itself failed: {error!r}; please report it"
            self._core.loop.call_exception_handler({"message": text, "exception": error})
            outcome = CallError(text, self.call.attempts)
        self._done(outcome)

    def cancel(self) -> None:
        """Give up, on the servers too; nothing is called back after this."""
        if self._task is not None:
            self._task.cancel()
        elif self._race is not None:
            self._race.close()
            self._race = None
            self._core._report(self.call, "cancelled", self._start)
