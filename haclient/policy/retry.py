"""What happens after the first try has failed: another one, or an error that says everything.

Decision made here: there is one retry layer, and it crosses endpoints (pymilvus' own is off). tenacity runs it, and
only from the first failure on, so a call that succeeds pays nothing for it. A retry that goes to an endpoint not
tried yet does not wait; one that comes back to the same endpoints backs off with jitter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import final

from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from haclient.call import Action, Attempt, Call, Kind, Reply
from haclient.config import Retry
from haclient.errors import ConnectionLost
from haclient.events import BudgetExhausted, EventBus, RetryScheduled
from haclient.policy.budget import Budget
from haclient.policy.outcome import conclude, exhausted, nowhere

Try = Callable[[Call], Awaitable[Attempt | None]]

#: A request whose connection died twice is not sent a third time (docs/milvus.md section 0: it may be the killer).
MOST_DEATHS = 2


def deaths(call: Call) -> int:
    """Count the attempts whose connection died after bytes were sent."""
    return sum(died(attempt) for attempt in call.attempts)


def died(attempt: Attempt) -> bool:
    """Say whether an attempt's connection died after bytes were sent."""
    return isinstance(attempt.error, ConnectionLost) and attempt.error.sent


@final
class Retrying:
    """Makes tries until one succeeds or nothing more is worth trying.

    Args:
        attempt: Makes one (hedged) try.
        untried: Whether a healthy endpoint is left that this call has not been sent to.
        settings: How many and how far apart.
        budget: Shared with hedging.
        loop: Its time is the clock.
        rng: Spreads the back-off.
        bus: Takes events.
    """

    def __init__(
        self,
        attempt: Try,
        untried: Callable[[Call], bool],
        settings: Retry,
        budget: Budget,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        bus: EventBus,
    ) -> None:
        self._try = attempt
        self._untried = untried
        self._settings = settings
        self._budget = budget
        self._loop = loop
        self._rng = rng
        self._bus = bus

    async def __call__(self, call: Call) -> Reply:
        """Make tries.

        Raises:
            CallError: Nothing answered; it lists the attempts.
        """
        return await self.after(call, await self._try(call))

    async def after(self, call: Call, attempt: Attempt | None) -> Reply:
        """Go on from a first try that was made already; see `__call__`."""
        if attempt is None:
            raise nowhere(call)
        if attempt.action is Action.OK:
            assert attempt.reply is not None
            return attempt.reply
        return conclude(call, await self._again(call, attempt), self._loop.time())

    async def _again(self, call: Call, first: Attempt) -> Attempt:
        """Run tenacity over the failed first try and those that follow it."""
        last = first
        fresh, anywhere = True, True

        async def step() -> Attempt:
            nonlocal last, fresh, anywhere
            if fresh:
                fresh = False
            else:
                attempt = await self._try(call)
                anywhere = attempt is not None
                last = attempt or last
            return last

        retrying = AsyncRetrying(
            retry=retry_if_result(lambda attempt: anywhere and self._worth(call, attempt)),
            stop=lambda state: self._stop(call, state),
            wait=lambda state: self._wait(call, state.attempt_number),
            before_sleep=lambda state: self._announce(call, state),
            sleep=asyncio.sleep,
            retry_error_callback=lambda state: last,
            reraise=True,
        )
        return await retrying(step)

    def _worth(self, call: Call, attempt: Attempt) -> bool:
        """Say whether another try may help and may be made."""
        if not self._may_repeat(call, attempt) or len(call.attempts) >= self._settings.max_attempts:
            return False
        # What never reached a server has loaded none, and one whose connection died, or that dropped it, works on it no
        # more: to go on to the next endpoint moves load and adds none, so it is free. A kill costs no call, however
        # many it had in hand.
        dropped = attempt.action is Action.DROPPED
        if (not attempt.sent or dropped or died(attempt)) and self._untried(call):
            return True
        now = self._loop.time()
        if self._budget.withdraw(now):
            return True
        attempt.reason += exhausted(self._settings.budget_ratio)
        self._bus.emit(BudgetExhausted(at=now, method=call.method.name, wanted="retry"))
        return False

    def _may_repeat(self, call: Call, attempt: Attempt) -> bool:
        action = attempt.action
        if action in (Action.OK, Action.FAIL_FAST, Action.CANCELLED) or deaths(call) >= MOST_DEATHS:
            return False
        if action is Action.BACK_OFF:
            return True
        if action is Action.ROUTE_CHANGE and call.pin is not None:
            return False  # who pinned it finds out where it belongs
        if action is Action.REFRESH:
            return call.method.kind is Kind.READ and sum(a.action is action for a in call.attempts) == 1
        if action is Action.WRITE_BLOCKED and call.method.kind is not Kind.READ:
            return False
        return call.idempotent or attempt.rejected or not attempt.sent

    def _wait(self, call: Call, tries: int) -> float:
        if call.attempts[-1].action is not Action.BACK_OFF and self._untried(call):
            return 0.0
        ceiling = min(self._settings.backoff_s * 2.0 ** (tries - 1), self._settings.max_backoff_s)
        return ceiling * (0.5 + 0.5 * self._rng.random())

    def _stop(self, call: Call, state: RetryCallState) -> bool:
        return self._loop.time() + state.upcoming_sleep >= call.deadline

    def _announce(self, call: Call, state: RetryCallState) -> None:
        self._bus.emit(
            RetryScheduled(
                at=self._loop.time(),
                method=call.method.name,
                attempt=len(call.attempts),
                delay_s=state.upcoming_sleep,
                reason=str(call.attempts[-1]),
            )
        )
