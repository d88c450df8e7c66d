"""A fleet that follows a script, for the policies above it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from haclient.call import Action, Attempt, Call, Reply
from haclient.errors import AttemptTimeout, ConnectFailed, ConnectionLost
from haclient.events import EventBus

#: What an attempt comes to, after how long: an action, or one of the words of `FakeFlight`.
Plan = tuple[float, Action | str]


class FakeFlight:
    def __init__(self, fleet: FakeFleet, call: Call, hedge: bool, plan: Plan, done: Callable[[Attempt], None]) -> None:
        self.fleet, self.done = fleet, done
        self.ending = ""
        delay_s, self.what = plan
        number = len(fleet.flights)
        self.attempt = Attempt(f"e{number}", f"c{number}", fleet.loop.time(), hedge=hedge)
        call.attempts.append(self.attempt)
        self.timer = fleet.loop.call_later(delay_s, self.land) if self.what != "hang" else None

    def land(self) -> None:
        a, what = self.attempt, self.what
        a.ended = self.fleet.loop.time()
        if what == "refused":
            a.error, a.action = ConnectFailed("refused"), Action.FAILOVER
        elif what == "died":
            a.error, a.action = ConnectionLost("reset", sent=True), Action.FAILOVER
        elif what == "lost-unsent":
            a.error, a.action = ConnectionLost("reset", sent=False), Action.FAILOVER
        elif what == "rejected":
            a.reply, a.action, a.rejected, a.code = Reply(b"no"), Action.FAILOVER, True, 1
        else:
            assert isinstance(what, Action)
            a.reply, a.action = Reply(a.endpoint.encode()), what
            a.code = 0 if what is Action.OK else 7
        a.reason = str(what)
        self._end("landed")
        self.done(a)

    def cancel(self) -> None:
        self._give_up("cancelled", Action.CANCELLED)

    def lose(self) -> None:
        self._give_up("lost", Action.CANCELLED)

    def suspect(self) -> None:
        self.fleet.suspected.append(self)

    def expire(self) -> None:
        self.attempt.error = AttemptTimeout("no answer in time", sent=True)
        self._give_up("expired", Action.FAILOVER)

    def _give_up(self, how: str, action: Action) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.attempt.ended = self.fleet.loop.time()
        self.attempt.action = action
        self._end(how)

    def _end(self, how: str) -> None:
        assert not self.ending, "an attempt ends once"
        self.ending = how
        self.fleet.under_way.discard(self)


class FakeFleet:
    """Sends each attempt by the next plan; None in the script means that there is nowhere to send it."""

    def __init__(self, *script: Plan | None, endless: Plan | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.script = list(script)
        self.endless = endless
        self.flights: list[FakeFlight] = []
        self.under_way: set[FakeFlight] = set()
        self.suspected: list[FakeFlight] = []
        self.events: list[Any] = []
        self.bus = EventBus()
        self.bus.subscribe(self.events.append)

    def send(self, call: Call, hedge: bool, done: Callable[[Attempt], None]) -> FakeFlight | None:
        plan = self.script.pop(0) if self.script else self.endless
        if plan is None:
            return None
        flight = FakeFlight(self, call, hedge, plan, done)
        self.flights.append(flight)
        self.under_way.add(flight)
        return flight

    def starts(self) -> list[float]:
        return [round(f.attempt.started, 6) for f in self.flights]

    def endings(self) -> list[str]:
        return [f.ending for f in self.flights]

    def of(self, name: str) -> list[Any]:
        return [e for e in self.events if type(e).__name__ == name]
