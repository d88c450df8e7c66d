"""Bugs planted on purpose: the simulation is worth what it finds of them.

Decision made here: a bug is a change of one behaviour of the real code, as small as it could be written by mistake, and
applied while a context is open. `Bug.killers` says which invariants may find it; another one does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final

from haclient.call import Action
from haclient.core import Core
from haclient.errors import AttemptTimeout
from haclient.exchange import Exchange
from haclient.fleet import breaker
from haclient.fleet.balancer import Balancer
from haclient.fleet.breaker import Gate
from haclient.fleet.fleet import Fleet
from haclient.fleet.flight import Flight
from haclient.fleet.homes import Homes
from haclient.fleet.keeper import Keeper
from haclient.fleet.look import Look
from haclient.fleet.probe import MilvusLook
from haclient.milvus.timestamps import Timestamps
from haclient.policy import hedge, retry
from haclient.policy.budget import Budget
from haclient.policy.quarantine import Quarantine
from haclient.policy.retry import Retrying

Patch = tuple[Any, str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug: what it does, what may find it, and the changes that make it."""

    name: str
    killers: frozenset[str]
    patches: Callable[[], list[Patch]]


BUGS: Final[dict[str, Bug]] = {}


def bug(*killers: str) -> Callable[[Callable[[], list[Patch]]], Callable[[], list[Patch]]]:
    def register(make: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
        name = make.__name__
        BUGS[name] = Bug(name, frozenset(killers), make)
        return make

    return register


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug for a while."""
    undo: list[Patch] = []
    try:
        for owner, attribute, value in BUGS[name].patches():
            undo.append((owner, attribute, owner.__dict__[attribute]))
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


# Writes.


@bug("hedged-write", "write")
def hedges_a_write() -> list[Patch]:
    real = Core._call

    def call(self, *arguments):
        made = real(self, *arguments)
        made.hedgeable = True
        return made

    return [(Core, "_call", call)]


@bug("write")
def repeats_a_write_whose_bytes_were_sent() -> list[Patch]:
    real = Retrying._may_repeat

    def may_repeat(self, call, attempt):
        return real(self, call, attempt) or attempt.action is Action.FAILOVER

    return [(Retrying, "_may_repeat", may_repeat)]


@bug("write")
def takes_a_time_out_for_not_sent() -> list[Patch]:
    real = Flight.expire

    def expire(self):
        real(self)
        self.attempt.error = AttemptTimeout("no answer in time", sent=False)

    return [(Flight, "expire", expire)]


@bug("write")
def thinks_every_upsert_repeatable() -> list[Patch]:
    real = Core._call

    def call(self, *arguments):
        made = real(self, *arguments)
        made.idempotent = made.idempotent or made.method.name == "Upsert"
        return made

    return [(Core, "_call", call)]


# The breaker.


@bug("leak")
def forgets_a_permit_on_cancel() -> list[Patch]:
    real = Flight.cancel

    def cancel(self):
        self._permit = breaker.REFUSED
        real(self)

    return [(Flight, "cancel", cancel)]


@bug("leak", "trial", "reopened", "cause")
def ignores_the_generation() -> list[Patch]:
    real = Gate.record

    def record(self, permit, ok):
        real(self, self.generation, ok)

    return [(Gate, "record", record)]


@bug("cause")
def counts_our_cancelling_as_failure() -> list[Patch]:
    real = Flight.cancel

    def cancel(self):
        self.node.gate.record(self._permit, False)
        real(self)

    return [(Flight, "cancel", cancel)]


@bug("cause")
def counts_the_users_mistakes() -> list[Patch]:
    real = Flight._score_reply

    def score(self, verdict, now):
        if verdict.action is Action.FAIL_FAST:
            self.node.gate.record(self._permit, False)
        else:
            real(self, verdict, now)

    return [(Flight, "_score_reply", score)]


@bug("trial")
def half_open_admits_everyone() -> list[Patch]:
    real = Gate.try_acquire

    def try_acquire(self):
        return self.generation if self.state == breaker.HALF_OPEN else real(self)

    return [(Gate, "try_acquire", try_acquire)]


@bug("reopened")
def a_shallow_probe_lets_calls_in_again() -> list[Patch]:
    async def deep(self):
        pass

    return [(MilvusLook, "_deep", deep)]


@bug("reopened")
def opens_up_when_the_wait_is_over() -> list[Patch]:
    real = Gate.try_acquire

    def try_acquire(self):
        self.try_half_open()
        return real(self)

    return [(Gate, "try_acquire", try_acquire)]


@bug("recovery")
def never_tries_again() -> list[Patch]:
    return [(Gate, "try_half_open", lambda self: self.state == breaker.HALF_OPEN)]


# The balancer.


@bug("shut")
def picks_endpoints_that_are_down() -> list[Patch]:
    real = Balancer._tier

    def tier(self, node, key, now):
        return 0 if node.gate.state == breaker.OPEN else real(self, node, key, now)[0], 0, False

    return [(Gate, "try_acquire", lambda self: self.generation), (Balancer, "_tier", tier)]


@bug("drained")
def picks_drained_endpoints() -> list[Patch]:
    def changed(self):
        pass

    return [(Balancer, "changed", changed)]


@bug("drained")
def picks_refused_endpoints() -> list[Patch]:
    real = Balancer._sort

    def sort(self, key, now):
        refused = [(node, node.refused) for node in self._nodes() if node.refused]
        for node, _ in refused:
            node.refused = ""
        try:
            return real(self, key, now)
        finally:
            for node, why in refused:
                node.refused = why

    return [(Balancer, "_sort", sort)]


@bug("shut", "wrong")
def ignores_that_a_collection_is_not_ready() -> list[Patch]:
    real = Balancer._tier

    def tier(self, node, key, now):
        return real(self, node, ("", "another"), now)

    return [(Balancer, "_tier", tier)]


@bug("same")
def goes_where_it_has_been() -> list[Patch]:
    real = Balancer.pick

    def pick(self, call, tried=()):
        return real(self, call)

    return [(Balancer, "pick", pick)]


@bug("read")
def has_no_panic_mode() -> list[Patch]:
    return [(Balancer, "_last_resort", lambda self, tiers, tried, now: None)]


@bug("pin")
def forgets_where_a_page_belongs() -> list[Patch]:
    return [(Homes, "of", lambda self, call, collection_id=0: None)]


@bug("timestamp")
def sends_timestamps_to_every_cluster() -> list[Patch]:
    def for_cluster(self, method, message, facts, cluster, **_):
        return message

    return [(Timestamps, "for_cluster", for_cluster)]


# Retries and hedges.


@bug("budget")
def retries_without_a_budget() -> list[Patch]:
    def withdraw(self, now):
        return True

    return [(Budget, "withdraw", withdraw)]


@bug("deadline")
def forgets_the_deadline_in_back_off() -> list[Patch]:
    return [(Retrying, "_stop", lambda self, call, state: False)]


@bug("deadline")
def does_not_enforce_the_deadline() -> list[Patch]:
    real = Flight.launch

    def arm(self, when):
        self._alarm = self._owner.alarms.set(min(when, self._call.deadline + 1.0), self._wake)

    return [(hedge.Race, "_arm", arm), (Flight, "launch", lambda self, message, timeout: real(self, message, 9.0))]


@bug("read", "success")
def a_fast_failure_beats_a_slow_success() -> list[Patch]:
    real = hedge.Race._landed

    def done(self, attempt):
        real(self, attempt)
        if not self._decided and attempt.action is not Action.OK:
            self._settle(attempt)

    return [(hedge.Race, "_landed", done), (retry, "MOST_DEATHS", 1)]


@bug("loser", "leak")
def leaves_the_losers_under_way() -> list[Patch]:
    def close(self, winner=None):
        self._decided = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._flights.clear()

    return [(hedge.Race, "close", close)]


@bug("leak")
def leaves_a_timer_behind() -> list[Patch]:
    real = hedge.Race.close

    def close(self, winner=None):
        self._alarm = None
        real(self, winner)

    return [(hedge.Race, "close", close)]


@bug("loser", "leak")
def a_cancelled_exchange_goes_on_racing() -> list[Patch]:
    def cancel(self):
        if self._task is not None:
            self._task.cancel()

    return [(Exchange, "cancel", cancel)]


@bug("read")
def never_hedges_and_never_looks() -> list[Patch]:
    def wake(self):
        owner = self._owner
        if owner.loop.time() >= self._call.deadline:
            self._expire()
        else:
            self._arm(self._call.deadline)

    return [(hedge.Race, "_wake", wake)]


@bug("attempts")
def an_error_hides_an_attempt() -> list[Patch]:
    from haclient.policy import outcome

    real = outcome.conclude

    def conclude(call, attempt, now):
        call.attempts = call.attempts[-1:]
        return real(call, attempt, now)

    return [(retry, "conclude", conclude)]


@bug("poison")
def has_no_quarantine() -> list[Patch]:
    async def attempt(self, call):
        return await self._try(call)

    return [(Quarantine, "__call__", attempt), (retry, "MOST_DEATHS", 99)]


@bug("poison")
def forgets_convicts_when_reconfigured() -> list[Patch]:
    real = Core.reconfigure

    def reconfigure(self, config):
        self._quarantine = Quarantine(self._hedging, config.retry.quarantine_s, self.loop, self.bus)
        real(self, config)

    return [(Core, "reconfigure", reconfigure)]


# Knowledge.


@bug("start", "deadline")
def waits_for_every_endpoint_to_start() -> list[Patch]:
    async def settle(self):
        await asyncio.wait(list(self._first.values()))

    return [(Keeper, "_settle", settle)]


@bug("wrong")
def never_asks_the_canary() -> list[Patch]:
    async def sings(self, canary, key_name):
        return True

    return [(MilvusLook, "_sings", sings)]


@bug("recovery", "read")
def a_collection_once_lost_stays_lost() -> list[Patch]:
    real = Fleet.mark

    def mark(self, node, key, ready, reason):
        if not (ready and node.ready.get(key) is False):
            real(self, node, key, ready, reason)

    return [(Fleet, "mark", mark)]


@bug("read", "recovery", "error")
def one_failed_probe_ends_probing() -> list[Patch]:
    real = Look.once

    async def once(self):
        await real(self)
        if self._node.probe_failures:
            await asyncio.sleep(1e6)

    return [(Look, "once", once)]


def hunt(name: str, most: int) -> tuple[int, str] | None:
    """Look for a planted bug: (seeds it took, the invariant that found it), or None."""
    from tests.simulation.run import run_seed

    with planted(name):
        for seed in range(most):
            for invariant, _ in run_seed(seed).violations:
                if invariant in BUGS[name].killers:
                    return seed + 1, invariant
    return None
