"""Requests that kill servers are found, tried alone, and refused; others are not."""

import asyncio

import pytest

from haclient.call import Action
from haclient.config import Hedge
from haclient.errors import DeadlineExceeded, PoisonedCall
from haclient.policy import quarantine as module
from haclient.policy.budget import Budget
from haclient.policy.hedge import Hedging
from haclient.policy.quarantine import Quarantine
from haclient.policy.retry import deaths
from tests.unit.fleet.fleet_fakes import read_call, search
from tests.unit.policy.policy_fakes import FakeFleet
from tests.virtual_time import run

OK = Action.OK
DIED = (0.01, "died")


def make(*script, for_s=60.0, endless=None):
    fleet = FakeFleet(*script, endless=endless)
    hedging = Hedging(fleet.send, Hedge(), Budget(1, 100), fleet.loop, fleet.bus)
    return fleet, Quarantine(hedging, for_s, fleet.loop, fleet.bus)


def call(name="killer", deadline=1e9):
    made = read_call(deadline)
    made.message = search(name)
    return made


def place_at(quarantine, fleet, *endpoints):
    """Let the next attempts go to these endpoints."""
    left, send = list(endpoints), fleet.send

    def elsewhere(one, hedge, done):
        flight = send(one, hedge, done)
        if left:
            flight.attempt.cluster = flight.attempt.endpoint = left.pop(0)
        return flight

    quarantine._try.send = elsewhere


async def convict(quarantine, name="killer"):
    one = call(name)
    await quarantine(one)
    with pytest.raises(PoisonedCall) as caught:
        await quarantine(one)
    return caught.value


def test_the_second_death_convicts_and_a_third_server_never_sees_it():
    async def scenario():
        fleet, quarantine = make(DIED, DIED)
        error = await convict(quarantine)
        assert len(error.attempts) == 2
        assert "2 connections died while servers worked on this request" in str(error)
        (event,) = fleet.of("CallQuarantined")
        assert (event.method, event.for_s) == ("Search", 60.0)
        with pytest.raises(PoisonedCall, match="has crashed servers, so it is refused for another 60 s"):
            await quarantine(call())
        assert len(fleet.flights) == 2

    run(scenario())


def test_a_suspect_is_known_again_when_another_call_brings_it():
    """The first call was not retried; the same request comes again and kills again."""

    async def scenario():
        fleet, quarantine = make(DIED, DIED)
        await quarantine(call())
        with pytest.raises(PoisonedCall):
            await quarantine(call())
        assert len(fleet.flights) == 2

    run(scenario())


def test_a_death_is_noted_even_if_another_attempt_decided_the_try():
    async def scenario():
        _, quarantine = make((0.06, "died"), (0.02, Action.FAILOVER), DIED)
        await quarantine(call())
        with pytest.raises(PoisonedCall):
            await quarantine(call())

    run(scenario())


def test_the_conviction_ends():
    async def scenario():
        fleet, quarantine = make(DIED, DIED, (0.01, OK), for_s=30.0)
        await convict(quarantine)
        await asyncio.sleep(29)
        with pytest.raises(PoisonedCall):
            await quarantine(call())
        await asyncio.sleep(1.1)
        assert (await quarantine(call())).action is OK
        assert not quarantine._convicts
        assert len(fleet.flights) == 3

    run(scenario())


def test_other_requests_pass_while_one_is_convicted():
    async def scenario():
        fleet, quarantine = make(DIED, DIED, endless=(0.01, OK))
        await convict(quarantine)
        assert (await quarantine(call("innocent"))).action is OK
        assert len(fleet.flights) == 3

    run(scenario())


def test_a_suspect_is_not_hedged_others_are():
    async def scenario():
        _fleet, quarantine = make(DIED, endless=(0.3, OK))
        one = call()
        await quarantine(one)
        await quarantine(one)
        assert len(one.attempts) == 2
        other = call("other")
        await quarantine(other)
        assert len(other.attempts) > 1

    run(scenario())


def test_a_success_clears_the_suspicion():
    async def scenario():
        _fleet, quarantine = make(DIED, (0.01, OK), endless=DIED)
        one = call()
        await quarantine(one)
        assert (await quarantine(one)).action is OK
        assert not quarantine._suspects
        await quarantine(call())  # its first death again, no conviction
        assert quarantine._suspects

    run(scenario())


@pytest.mark.parametrize("what", ["refused", "lost-unsent", Action.FAILOVER, Action.FAIL_FAST])
def test_what_is_no_death_makes_no_suspect(what):
    async def scenario():
        _, quarantine = make(endless=(0.01, what))
        for _ in range(3):
            await quarantine(call())
        assert not quarantine._suspects

    run(scenario())


def test_suspects_go_one_at_a_time_so_innocents_are_not_convicted():
    """One killer and twenty others were on a server that died; each is tried again, and only the killer is refused."""

    async def scenario():
        fleet, quarantine = make(*[DIED] * 21)
        calls = [call(f"q{i}") for i in range(20)] + [call("killer")]
        await asyncio.gather(*(quarantine(c) for c in calls))
        assert all(deaths(c) == 1 for c in calls)
        together = 0

        def send(one, hedge, done, original=fleet.send):
            nonlocal together
            fleet.script = [(0.01, "died" if one.message == search("killer") else OK)]
            flight = original(one, hedge, done)
            together = max(together, len(fleet.under_way))
            return flight

        quarantine._try.send = send
        results = await asyncio.gather(*(quarantine(c) for c in calls), return_exceptions=True)
        assert together == 1
        assert [type(r).__name__ for r in results] == ["Attempt"] * 20 + ["PoisonedCall"]

    for seed in range(10):
        run(scenario(), seed)


def test_one_that_shared_a_server_with_a_slow_suspect_is_not_convicted():
    """The slow one was let out of the queue and kills late, while the next one is on the same server."""

    async def scenario():
        fleet, quarantine = make(DIED, DIED, (0.9, "died"), (0.4, "died"))
        slow, innocent = call("slow killer"), call("innocent")
        await asyncio.gather(quarantine(slow), quarantine(innocent))
        place_at(quarantine, fleet, "same", "same")
        results = await asyncio.gather(quarantine(slow), quarantine(innocent), return_exceptions=True)
        assert not any(isinstance(r, PoisonedCall) for r in results)
        assert len(quarantine._suspects) == 2

    run(scenario())


def test_a_slow_suspect_holds_the_others_up_for_half_a_second_only():
    async def scenario():
        fleet, quarantine = make(DIED, DIED, (5.0, OK), (0.01, OK))
        slow, quick = call("a"), call("b")
        await asyncio.gather(quarantine(slow), quarantine(quick))
        began = fleet.loop.time()
        first = asyncio.ensure_future(quarantine(slow))
        await asyncio.sleep(0.001)
        await quarantine(quick)
        assert fleet.loop.time() - began == pytest.approx(0.511, abs=0.01)
        await first
        assert not quarantine.lock.locked()
        assert not quarantine.under_way

    run(scenario())


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.3, 0.7])
def test_cancelling_a_suspect_lets_the_next_one_go(after_s):
    async def scenario():
        fleet, quarantine = make(DIED, DIED, (5.0, OK), endless=(0.01, OK))
        one, two = call("a"), call("b")
        await asyncio.gather(quarantine(one), quarantine(two))
        first = asyncio.ensure_future(quarantine(one))
        second = asyncio.ensure_future(quarantine(two))
        await asyncio.sleep(after_s)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await second).action is OK
        assert not quarantine.lock.locked()
        assert not quarantine.under_way
        assert not fleet.under_way

    run(scenario())


def test_cancelling_while_waiting_for_its_turn():
    async def scenario():
        _fleet, quarantine = make(DIED, DIED, (0.2, OK), endless=(0.01, OK))
        one, two = call("a"), call("b")
        await asyncio.gather(quarantine(one), quarantine(two))
        first = asyncio.ensure_future(quarantine(one))
        second = asyncio.ensure_future(quarantine(two))
        await asyncio.sleep(0.1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (await first).action is OK
        assert not quarantine.lock.locked()

    run(scenario())


def test_the_wait_for_its_turn_ends_at_the_deadline():
    async def scenario():
        fleet, quarantine = make(*[DIED] * 5, endless=(0.4, OK))
        calls = [call(f"q{i}", fleet.loop.time() + 1.0) for i in range(5)]
        await asyncio.gather(*(quarantine(c) for c in calls))
        results = await asyncio.gather(*(quarantine(c) for c in calls), return_exceptions=True)
        assert fleet.loop.time() <= 1.0 + 1e-9
        assert any(isinstance(r, DeadlineExceeded) and "its turn did not come" in str(r) for r in results)
        assert not quarantine.lock.locked()

    run(scenario())


def test_while_nobody_is_suspected_no_fingerprint_is_made(monkeypatch):
    def forbidden(*_):
        raise AssertionError("the hot path must not hash")

    async def scenario():
        _, quarantine = make(endless=(0.01, OK))
        monkeypatch.setattr(module, "fingerprint", forbidden)
        for _ in range(5):
            await quarantine(call())

    run(scenario())


def test_marks_are_bounded_and_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_MOST_MARKS", 10)

    async def scenario():
        _, quarantine = make(endless=DIED, for_s=5.0)
        for i in range(50):
            await quarantine(call(f"q{i}"))
        assert len(quarantine._suspects) == 10
        await asyncio.sleep(6)
        quarantine._try = _fine
        await quarantine(call("x"))
        assert not quarantine._suspects

    async def _fine(_):
        return None

    run(scenario())


def test_suspects_on_different_servers_convict_themselves():
    """Each is the only suspect on its server, however long the other one takes."""

    async def scenario():
        fleet, quarantine = make(DIED, DIED, (0.9, "died"), (0.4, "died"))
        slow, quick = call("slow killer"), call("quick killer")
        await asyncio.gather(quarantine(slow), quarantine(quick))
        place_at(quarantine, fleet, "a", "b")
        results = await asyncio.gather(quarantine(slow), quarantine(quick), return_exceptions=True)
        assert all(isinstance(r, PoisonedCall) for r in results)

    run(scenario())


def test_one_server_that_resets_its_connections_convicts_nobody_at_once():
    """Two calls with the same bytes (a popular question) were on a server that reset them, and again at the retry."""

    async def scenario():
        fleet, quarantine = make(DIED, DIED, DIED, DIED)
        place_at(quarantine, fleet, *["sick"] * 4)
        one, two = call("popular"), call("popular")
        await asyncio.gather(quarantine(one), quarantine(two))
        assert (await quarantine(call("another"))).error is not None
        assert not fleet.of("CallQuarantined")

    run(scenario())


def test_one_server_that_dies_every_time_convicts_in_the_end():
    async def scenario():
        fleet, quarantine = make(DIED, DIED, DIED)
        place_at(quarantine, fleet, *["only"] * 3)
        await quarantine(call())
        await quarantine(call())
        with pytest.raises(PoisonedCall, match="3 connections died"):
            await quarantine(call())

    run(scenario())
