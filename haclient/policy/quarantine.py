"""Requests that kill servers.

A single request can crash a Milvus process (docs/milvus.md section 0), and failing over would hand it to the next
one until none is left. Decision made here: a request whose connection died after bytes were sent is a
suspect. A suspect is tried once more at most, unhedged and alone among suspects, so that if that connection dies too
it is this request that is convicted and not one that happened to be on the same server. A convict is refused
with `PoisonedCall` for a while.

While nobody is suspected, this costs one comparison per call.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import final

from haclient.call import Action, Attempt, Call
from haclient.errors import DeadlineExceeded, PoisonedCall
from haclient.events import CallQuarantined, EventBus
from haclient.milvus.requests import fingerprint
from haclient.policy.retry import MOST_DEATHS, Try, deaths, died

#: A suspect holds the others up no longer than this, seconds; what is slow is not what kills.
_ALONE_S = 0.5
_MOST_MARKS = 4096


@final
class Quarantine:
    """Tries suspects one at a time and refuses convicts.

    Args:
        attempt: Makes one (hedged) try.
        for_s: How long a convict is refused, seconds.
        loop: Its time is the clock.
        bus: Takes events.
    """

    def __init__(self, attempt: Try, for_s: float, loop: asyncio.AbstractEventLoop, bus: EventBus) -> None:
        self._try = attempt
        self.for_s = for_s
        self._bus = bus
        self.loop = loop
        self.lock = asyncio.Lock()
        #: Suspects under way; more than one only if an earlier one is slow.
        self.under_way: set[_Alone] = set()
        self._suspects: dict[bytes, _Suspicion] = {}
        self._convicts: dict[bytes, float] = {}
        self._forget_at = 0.0

    async def __call__(self, call: Call) -> Attempt | None:
        """Make one try, with the care the call's past asks for.

        Raises:
            PoisonedCall: The request is known to kill servers, or has just been found to.
        """
        if self.idle and not call.attempts:
            attempt = await self._try(call)
            if attempt is not None and attempt.action is not Action.OK:
                self.note(call)
            return attempt
        return await self._careful(call)

    @property
    def idle(self) -> bool:
        """Nobody is suspected: a first try needs no care."""
        return not self._suspects and not self._convicts

    async def _careful(self, call: Call) -> Attempt | None:
        mark = fingerprint(call.method, call.message)
        now = self.loop.time()
        self._forget(now)
        if self._convicts.get(mark, now) > now:
            raise PoisonedCall(
                f"{call.method.name} {call.collection}: this very request has crashed servers, so it is refused for "
                f"another {self._convicts[mark] - now:.0f} s. Change the request (an ARRAY row without a type and "
                "field types that the server's version does not know are common causes), or upgrade the servers.",
                call.attempts,
            )
        before = deaths(call)
        if mark not in self._suspects and not before:
            attempt = await self._try(call)
            self.note(call)
            return attempt
        call.hedgeable = False
        async with _Alone(self, call) as alone:
            attempt = await self._try(call)
            guilty = deaths(call) > before and alone.on_its_server()
        if deaths(call) == before:
            # Only an answer clears it; what reached no server has shown nothing.
            if attempt is not None and attempt.reply is not None:
                self._suspects.pop(mark, None)
            return attempt
        self.note(call)
        if guilty and self._suspects[mark].enough():
            self._convict(call, mark, len(self._suspects.pop(mark).died))
        return attempt

    def note(self, call: Call) -> None:
        """Remember where a call's connections died, so that it goes alone if it comes again."""
        if not deaths(call):
            return
        mark = fingerprint(call.method, call.message)
        if mark not in self._suspects and len(self._suspects) >= _MOST_MARKS:
            del self._suspects[next(iter(self._suspects))]
        suspicion = self._suspects.setdefault(mark, _Suspicion())
        suspicion.until = self.loop.time() + self.for_s
        suspicion.died |= {(a.cluster, a.endpoint, a.life, a.started) for a in call.attempts if died(a)}

    def _convict(self, call: Call, mark: bytes, count: int) -> None:
        if len(self._convicts) < _MOST_MARKS:
            self._convicts[mark] = self.loop.time() + self.for_s
        self._bus.emit(
            CallQuarantined(
                at=self.loop.time(),
                method=call.method.name,
                collection=call.collection,
                fingerprint=mark.hex(),
                for_s=self.for_s,
            )
        )
        raise PoisonedCall(
            f"{call.method.name} {call.collection}: {count} connections died while servers worked on this request, so "
            f"it is not tried again and is refused for {self.for_s:g} s. It may have crashed the servers: check "
            "their logs, and change the request.",
            call.attempts,
        )

    def _forget(self, now: float) -> None:
        if now < self._forget_at:
            return
        self._forget_at = now + 1.0
        self._suspects = {mark: one for mark, one in self._suspects.items() if one.until > now}
        self._convicts = {mark: until for mark, until in self._convicts.items() if until > now}


@final
class _Suspicion:
    """Where and when connections died under one request."""

    __slots__ = ("died", "until")

    def __init__(self) -> None:
        #: (cluster, endpoint, the endpoint's life, loop time at which the attempt was sent)
        self.died: set[tuple[str, str, int, float]] = set()
        self.until = 0.0

    def enough(self) -> bool:
        """Say whether it is the request that kills: two processes, or one again and again.

        A server that resets its connections and lives on is rather in trouble itself, or behind something that is.
        """
        return len({death[:3] for death in self.died}) > 1 or len(self.died) > MOST_DEATHS


@final
class _Alone:
    """Holds the lock while a suspect is tried, but lets the next one go when that takes long.

    Raises:
        DeadlineExceeded: On entering, if the call's time ran out while others were tried.
    """

    def __init__(self, owner: Quarantine, call: Call) -> None:
        self._owner = owner
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self._accompanied = False

    def on_its_server(self) -> bool:
        """Say whether no other suspect was on the server that has just died under this one."""
        for other in self._owner.under_way:
            if other is not self and other._where() == self._where():
                # The other one has died with this one, and is told so before it asks.
                self._accompanied = other._accompanied = True
        return not self._accompanied

    def _where(self) -> tuple[str, str] | None:
        attempts = self._call.attempts
        return (attempts[-1].cluster, attempts[-1].endpoint) if attempts else None

    async def __aenter__(self) -> _Alone:
        owner, call = self._owner, self._call
        try:
            async with asyncio.timeout_at(call.deadline):
                await owner.lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"{call.method.name} {call.collection}: connections died while servers worked on this request and "
                "on others, which are now tried one at a time; its turn did not come before the deadline.",
                call.attempts,
            ) from None
        self._held = True
        owner.under_way.add(self)
        self._timer = owner.loop.call_later(_ALONE_S, self._let_go)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._owner.under_way.discard(self)
        if self._held:
            self._owner.lock.release()

    def _let_go(self) -> None:
        self._held = False
        self._owner.lock.release()
