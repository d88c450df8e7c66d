"""One try of a call: an attempt, and a second one if the first takes long.

Decision made here (after Dean and Barroso, "The Tail at Scale"):

- A read that has not been answered after the delay at which all but a few are, is sent to another endpoint too.
  The first success wins, the loser is cancelled on the wire. Any success beats any failure: a fast error
  never wins over a slow success.
- The delay follows the latency of winning attempts, each counted from its own start. Counted from the start of
  the call, a frozen server would push the delay up with every hedge that it causes.
- An empty answer where answers are hardly ever empty is checked on another endpoint: Milvus answers searches with
  success and no hits while a collection is being released, and for a moment after it has lost a query node.
- The hot path makes no task, no future and no timer of its own: attempts are callbacks, so is the end of the race, and
  one alarm serves first as the hedging delay and then as the call's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, final

from haclient.alarms import Alarm, Alarms
from haclient.call import Action, Attempt, Call, Kind
from haclient.config import Hedge
from haclient.events import BudgetExhausted, EventBus, HedgeStarted
from haclient.milvus.results import found_nothing
from haclient.policy.budget import Budget
from haclient.policy.latency import LatencyDigest
from haclient.policy.retry import deaths

_MOST_DIGESTS = 1024
#: An empty answer is doubted if fewer than this share of answers are empty.
_SELDOM_EMPTY = 0.1
#: A hedge goes out this much later than the quantile, so that about the promised share is hedged.
_MARGIN = 1.25


class Flight(Protocol):
    """An attempt under way, as the fleet makes them."""

    attempt: Attempt

    def suspect(self) -> None:
        """Find out whether its endpoint is there at all: it takes longer than usual."""

    def cancel(self) -> None:
        """Give it up because the caller went away."""

    def lose(self) -> None:
        """Give it up because another that was sent later answered first."""

    def expire(self) -> None:
        """Give it up because the call's time is over."""


class Sender(Protocol):
    """The fleet's one step: start an attempt on the best endpoint not tried yet."""

    def __call__(self, call: Call, hedge: bool, done: Callable[[Attempt], None], /) -> Flight | None:
        """Return the flight, or None if there is nowhere to send it."""


@final
class Hedging:
    """Makes tries.

    Args:
        send: Starts one attempt.
        settings: Delays.
        budget: Shared with retries.
        loop: Its time is the clock.
        bus: Takes events.
        contradicted: Told of an attempt that found nothing where another endpoint has found something.
    """

    def __init__(
        self,
        send: Sender,
        settings: Hedge,
        budget: Budget,
        loop: asyncio.AbstractEventLoop,
        bus: EventBus,
        contradicted: Callable[[Call, Attempt], None] | None = None,
    ) -> None:
        self.contradicted = contradicted
        self.send = send
        self.settings = settings
        self.budget = budget
        self.loop = loop
        self.bus = bus
        self.alarms = Alarms(loop)
        self._digests: dict[tuple[str, str], LatencyDigest] = {}

    async def __call__(self, call: Call) -> Attempt | None:
        """Make one try.

        Returns:
            The attempt that decided it: the first success, else the last failure. None if there was no
            endpoint to send it to.
        """
        future: asyncio.Future[Attempt | None] = self.loop.create_future()
        race = self.begin(call, lambda attempt: None if future.done() else future.set_result(attempt))
        try:
            return await future
        finally:
            race.close()

    def begin(self, call: Call, done: Callable[[Attempt | None], None]) -> Race:
        """Start one try; ``done`` gets what `__call__` returns, at once if there is no endpoint to send it to."""
        race = Race(self, call, done)
        race.start()
        return race

    def digest(self, call: Call) -> LatencyDigest:
        """Return the latencies of calls like this one."""
        key = (call.method.name, call.collection)
        digest = self._digests.get(key)
        if digest is None:
            if len(self._digests) >= _MOST_DIGESTS:
                self._digests.clear()
            digest = self._digests[key] = LatencyDigest(self.settings.quantile)
        return digest

    def delay(self, digest: LatencyDigest) -> float:
        """Return the hedging delay in seconds."""
        settings = self.settings
        usual = digest.value()
        if usual is None:
            return settings.initial_delay_s
        return min(max(usual * _MARGIN, settings.min_delay_s), settings.max_delay_s)


@final
class Race:
    """The attempts of one try; made by `Hedging.begin`."""

    __slots__ = (
        "_alarm", "_call", "_decided", "_delay", "_digest", "_done", "_flights", "_hedges", "_owner", "_standby",
        "_waiting",
    )  # fmt: skip

    def __init__(self, owner: Hedging, call: Call, done: Callable[[Attempt | None], None]) -> None:
        self._owner = owner
        self._call = call
        self._done = done
        self._decided = False
        self._flights: list[Flight] = []
        self._hedges = 0
        #: The result if no better one comes: a refusal of the request itself, or an empty answer that is doubted.
        self._standby: Attempt | None = None
        self._alarm: Alarm | None = None
        #: A hedge was wanted and could not be made; told once.
        self._waiting = False
        self._digest = owner.digest(call)
        self._delay = owner.delay(self._digest)

    def start(self) -> None:
        """Send the first attempt and set the timer."""
        owner, call = self._owner, self._call
        flight = owner.send(call, False, self._landed)
        if flight is None:
            self._decided = True
            self._done(None)
            return
        self._flights.append(flight)
        self._arm(owner.loop.time() + self._delay)

    def close(self, winner: Attempt | None = None) -> None:
        """Give up whatever is still under way; nothing is called back after this."""
        self._decided = True
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._flights:
            for flight in self._flights:
                # Only one that had a head start has lost; a hedge that came too late shows nothing.
                if winner is not None and flight.attempt.started < winner.started:
                    flight.lose()
                else:
                    flight.cancel()
            self._flights.clear()

    def _arm(self, when: float) -> None:
        deadline = self._call.deadline
        self._alarm = self._owner.alarms.set(when if when < deadline else deadline, self._wake)

    def _wake(self) -> None:
        """The hedging delay is over, or the call's time."""
        owner, call = self._owner, self._call
        if self._decided:
            return
        if owner.loop.time() >= call.deadline:
            self._expire()
            return
        if not self._waiting:
            for flight in tuple(self._flights):
                flight.suspect()
        if self._standby is not None:
            self._settle(self._standby)
        elif self._allowed():
            # Without an endpoint or a budget for it now, it is tried again: endpoints come back.
            self._waiting = not self._hedge()
            self._delay *= 2.0
            self._arm(owner.loop.time() + self._delay)
        else:
            self._arm(call.deadline)

    def _allowed(self) -> bool:
        """Say whether the call may be hedged (again) at all."""
        call, settings = self._call, self._owner.settings
        # A call under which a connection died may be what kills servers, and two have it already
        # (docs/milvus.md section 0).
        return settings.enabled and call.hedgeable and self._hedges < settings.max_hedges and not deaths(call)

    def _hedge(self) -> bool:
        """Start another attempt if that is allowed, paid for, and there is an endpoint for it."""
        owner, call = self._owner, self._call
        if not self._allowed():
            return False
        now = owner.loop.time()
        if not owner.budget.withdraw_hedge(now):
            if not self._waiting:
                owner.bus.emit(BudgetExhausted(at=now, method=call.method.name, wanted="hedge"))
            return False
        flight = owner.send(call, True, self._landed)
        if flight is None:
            owner.budget.refund()
            return False
        self._hedges += 1
        self._flights.append(flight)
        name, cluster, endpoint = call.method.name, flight.attempt.cluster, flight.attempt.endpoint
        owner.bus.emit(HedgeStarted(at=now, method=name, cluster=cluster, endpoint=endpoint, delay_s=self._delay))
        return True

    def _landed(self, attempt: Attempt) -> None:
        flights = self._flights
        for i, flight in enumerate(flights):
            if flight.attempt is attempt:
                del flights[i]
                break
        if self._decided:
            return
        if attempt.action is Action.OK:
            self._answered(attempt)
        elif not flights:
            self._settle(self._standby or attempt)
        elif attempt.action is Action.FAIL_FAST:
            # The request is at fault, most likely: the others get a little time to say otherwise, not all there is.
            self._stand_by(self._standby or attempt, self._owner.settings.max_delay_s)
        else:
            # One has failed while another is still out: do not wait for the timer to try a third.
            self._hedge()

    def _answered(self, attempt: Attempt) -> None:
        assert attempt.reply is not None
        first, digest = self._standby, self._digest
        empty = found_nothing(self._call.method, attempt.reply.message)
        if first is not None and first.action is Action.OK:
            if not empty:
                first.action = Action.FAILOVER_COLLECTION
                first.reason = "it found nothing, where another endpoint has found something"
                if self._owner.contradicted is not None:
                    self._owner.contradicted(self._call, first)
        elif empty and digest.emptiness < _SELDOM_EMPTY and (self._flights or self._hedge()):
            self._stand_by(attempt, 2.0 * self._delay)
            return
        digest.saw(empty)
        self._settle(attempt)

    def _stand_by(self, attempt: Attempt, wait_s: float) -> None:
        """Take an attempt for the result unless a better one comes within ``wait_s`` seconds."""
        self._standby = attempt
        if self._alarm is not None:
            self._alarm.cancel()
        self._arm(self._owner.loop.time() + wait_s)

    def _settle(self, attempt: Attempt) -> None:
        if attempt.action is Action.OK and self._call.method.kind is Kind.READ:
            assert attempt.ended is not None
            self._digest.observe(attempt.ended - attempt.started)
        self.close(attempt)
        self._done(attempt)

    def _expire(self) -> None:
        flights, self._flights = self._flights, []
        for flight in flights:
            flight.expire()
        self._settle(self._standby or flights[-1].attempt)
