"""Frozen and slow endpoints: found by silence, and by comparison."""

import asyncio

import pytest

from haclient.call import Action
from haclient.config import Health, Hedge
from haclient.events import EndpointChanged, HedgeStarted
from haclient.fleet.breaker import CLOSED, OPEN
from haclient.fleet.detector import Detector
from tests.unit.fleet.fleet_fakes import QUERY, Server, World, ask, query, search, until
from tests.virtual_time import run

QUIET = Health(interval_s=1000, deep_interval_s=1000, identity_interval_s=1000)


def fleet(count, **settings):
    """A core whose probes rest after the first look, and its nodes."""
    world = World(
        *(Server() for _ in range(count)), health=Health(**{**QUIET.model_dump(exclude={"canary"}), **settings})
    )
    core = world.core()
    return world, core, list(core.fleet.nodes())


def test_silence_opens_the_gate_and_sends_its_calls_on():
    async def scenario():
        world = World(Server(), Server(), health=QUIET, hedge=Hedge(enabled=False))
        async with world:
            core = world.core()
            await core.start()
            first, second = core.fleet.nodes()
            second.latency.observe(1.0, 0.0)  # so that the first is preferred
            world.by_address["s0:19530"].state = "hang"
            began = world.loop.time()
            assert (await ask(core)).code == 0
            assert world.loop.time() - began < 0.05 + 0.25 + 0.05
            assert first.gate.state == OPEN
            assert first.gate.reason == "stalled: no answer to a PING within 250 ms"
            assert not first.flights

    run(scenario())


def test_a_call_that_has_nowhere_else_to_go_is_left_where_it_is():
    """A server that was only paused answers it in the end."""

    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            await core.start()
            server = world.by_address["s0:19530"]
            server.pings, server.delay_s = False, 2.0
            task = asyncio.ensure_future(ask(core, timeout_s=5))
            await until(lambda: node.gate.state == OPEN)
            assert len(node.flights) == 1
            assert (await task).code == 0

    run(scenario())


def test_a_busy_server_that_answers_pings_is_left_alone():
    async def scenario():
        world, core, nodes = fleet(1)
        async with world:
            await core.start()
            server = world.by_address["s0:19530"]
            server.delay_s = 3.0
            reply = await ask(core, timeout_s=5)
            assert reply.code == 0
            assert server.ping_count >= 1
            assert nodes[0].gate.state == CLOSED

    run(scenario())


def test_a_reply_in_the_meantime_counts_as_a_sign_of_life():
    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            await core.start()
            world.by_address["s0:19530"].pings = False
            core.fleet.detector.suspect(node)
            assert node.pinging
            await asyncio.sleep(0.2)
            await ask(core)
            await asyncio.sleep(0.2)
            assert not node.pinging
            assert node.gate.state == CLOSED

    run(scenario())


def test_a_reply_before_the_ping_is_no_sign_of_life():
    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            await core.start()
            await ask(core)
            world.by_address["s0:19530"].pings = False
            await asyncio.sleep(0.01)
            core.fleet.detector.suspect(node)
            await asyncio.sleep(0.3)
            assert node.gate.state == OPEN

    run(scenario())


def test_one_ping_at_a_time():
    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            await core.start()
            server = world.by_address["s0:19530"]
            before = server.ping_count
            for _ in range(5):
                core.fleet.detector.suspect(node)
            assert server.ping_count == before + 1
            await asyncio.sleep(1.0)
            core.fleet.detector.suspect(node)
            assert server.ping_count == before + 2

    run(scenario())


def test_no_more_pings_between_two_replies_than_a_grpc_server_bears():
    """It answers the fourth with GOAWAY "too many pings", and every call on the connection fails."""

    async def scenario():
        world, core, (node,) = fleet(1, down_after=99)
        async with world:
            await core.start()
            server = world.by_address["s0:19530"]
            server.delay_s = 8.0
            before = server.ping_count
            calls = []
            for _ in range(100):
                calls.append(asyncio.ensure_future(ask(core, timeout_s=30)))
                await asyncio.sleep(0.05)
            assert server.ping_count - before == 3
            await asyncio.gather(*calls)
            assert node.pings == 0
            assert node.gate.state == CLOSED

    run(scenario())


def test_when_our_own_loop_was_blocked_the_server_gets_another_chance():
    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            await core.start()
            server = world.by_address["s0:19530"]
            server.pings = False
            await asyncio.sleep(0.01)
            core.fleet.detector.suspect(node)
            world.loop._clock += 2.0  # as if a callback had run for two seconds
            await asyncio.sleep(0.1)
            assert node.gate.state == CLOSED
            await asyncio.sleep(0.3)
            assert node.gate.state == OPEN

    run(scenario())


def test_only_calls_that_may_be_repeated_are_taken_from_a_stalled_endpoint():
    async def scenario():
        from tests.unit.fleet.fleet_fakes import INSERT, cluster, insert

        world = World(
            Server(state="hang"),
            Server(),
            clusters=[cluster("c", "s0", "s1")],
            health=QUIET,
            hedge=Hedge(enabled=False),
        )
        async with world:
            core = world.core()
            world.by_address["s0:19530"].state = "up"
            await core.start()
            first, second = core.fleet.nodes()
            second.latency.observe(1.0, 0.0)
            world.by_address["s0:19530"].state = "hang"
            write = asyncio.ensure_future(ask(core, method=INSERT, message=insert(), timeout_s=3))
            read = asyncio.ensure_future(ask(core, method=QUERY, message=query(), timeout_s=3))
            await until(lambda: first.gate.state == OPEN)
            assert (await read).code == 0
            assert [f.call.method.name for f in first.flights] == ["Insert"]
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)

    run(scenario())


# Slowness by comparison.


@pytest.mark.parametrize(
    ("mine", "others", "slow"),
    [
        (0.30, [0.01, 0.01, 0.01], True),
        (0.049, [0.01, 0.01, 0.01], False),  # 4.9 times, not 5
        (0.050, [0.001, 0.001, 0.001], False),  # 50 times, but only 49 ms more
        (0.30, [0.01], True),  # two endpoints are enough
        (0.30, [0.1, 0.01, 0.01], True),
        (0.30, [0.1, 0.1, 0.01], False),
    ],
)
def test_slower_by_a_ratio_and_by_an_amount(mine, others, slow):
    async def scenario():
        world, core, nodes = fleet(1 + len(others))
        async with world:
            for node, latency in zip(nodes[1:], others, strict=True):
                node.latency.observe(latency, 0.0)
            assert bool(core.fleet.detector.lagging(nodes[0], mine, lambda n: n.latency)) is slow

    run(scenario())


def test_a_quick_endpoint_is_not_compared_with_a_thousand_others():
    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            detector = Detector(lambda: pytest.fail("it looked"), core.fleet.untried, QUIET, world.loop)
            assert detector.lagging(node, 0.049, lambda n: n.latency) == ""

    run(scenario())


def test_the_only_endpoint_is_never_slow():
    async def scenario():
        world, core, (node,) = fleet(1)
        async with world:
            assert core.fleet.detector.lagging(node, 100.0, lambda n: n.latency) == ""

    run(scenario())


def test_endpoints_of_which_nothing_is_known_are_no_measure():
    async def scenario():
        world, core, nodes = fleet(3)
        async with world:
            assert core.fleet.detector.lagging(nodes[0], 100.0, lambda n: n.latency) == ""

    run(scenario())


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 9])
def test_at_most_half_the_fleet_is_set_aside_for_slowness(count):
    """However many get slow one after the other, at least half of the endpoints stay in."""

    async def scenario():
        world, core, nodes = fleet(count)
        async with world:
            for node in nodes:
                node.latency.observe(0.01, 0.0)
            for node in nodes:
                node.losses = 3
                node.latency.observe(2.0, 0.0)
                core.fleet.detector.lost(node)
            closed = sum(n.gate.state == CLOSED for n in nodes)
            assert closed >= count / 2
            assert closed < count

    run(scenario())


def test_hedges_lost_in_a_row_lead_to_the_comparison_and_a_win_between_does_not():
    async def scenario():
        world, core, (node, other) = fleet(2)
        async with world:
            node.latency.observe(1.0, 0.0)
            other.latency.observe(0.01, 0.0)
            detector = Detector(core.fleet.nodes, core.fleet.untried, QUIET, world.loop)
            node.losses = 2
            detector.lost(node)
            assert node.gate.state == CLOSED
            node.losses = 3
            detector.lost(node)
            assert node.gate.state == OPEN
            assert node.gate.reason == "slow: 1000 ms where the others take 10 ms"

    run(scenario())


def test_a_slow_server_is_avoided_after_a_few_calls():
    """One of three gets 400 times slower: of the next 300 calls it sees a few, and no call waits for it."""

    async def scenario():
        world, core, _nodes = fleet(3)
        async with world:
            await core.start()
            slow = world.by_address["s1:19530"]
            for _ in range(40):
                await ask(core)
            slow.delay_s = 0.4
            seen, worst = len(slow.calls()), 0.0
            for _ in range(300):
                began = world.loop.time()
                await ask(core)
                worst = max(worst, world.loop.time() - began)
                await asyncio.sleep(0.01)
            assert 0 < len(slow.calls()) - seen <= 6
            assert worst < 0.06

    run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_server_is_avoided_although_hedges_never_let_it_finish(seed):
    """Its attempts are given up after some milliseconds, so no answer tells how slow it is."""

    async def scenario():
        world = World(*(Server() for _ in range(3)), health=QUIET, seed=seed)
        async with world:
            core = world.core()
            await core.start()
            servers = list(world.by_address.values())

            async def load(count, slow=None):
                tasks = []
                for _ in range(count):
                    for server in servers:
                        server.delay_s = world.rng.expovariate(1 / (0.1 if server is slow else 0.005))
                    tasks.append(asyncio.ensure_future(ask(core)))
                    await asyncio.sleep(0.01)
                await asyncio.gather(*tasks)

            await load(500)
            slow, seen, hedged = servers[1], len(servers[1].calls()), len(world.of(HedgeStarted))
            await load(3000, slow)
            assert len(slow.calls()) - seen < 50
            assert len(world.of(HedgeStarted)) - hedged < 150
            assert world.of(EndpointChanged)[0].reason.startswith("slow: ")

    run(scenario())


def test_the_losers_of_hedges_count_as_no_failure():
    async def scenario():
        world = World(Server(), Server(), hedge=Hedge(initial_delay_s=0.05), health=QUIET)
        async with world:
            core = world.core()
            await core.start()
            world.by_address["s0:19530"].delay_s = 0.2
            for _ in range(2):
                await ask(core)
            finished = [e for e in world.events if type(e).__name__ == "AttemptFinished"]
            losers = [e for e in finished if e.action == Action.CANCELLED.value]
            assert losers
            assert all(n.gate.state == CLOSED for n in core.fleet.nodes())
            assert all(n.gate._window.totals(world.loop.time())[1] == 0 for n in core.fleet.nodes())

    run(scenario())


def test_hedging_while_all_are_slow_leaves_enough_to_survive_a_crash():
    async def scenario():
        world = World(Server(), Server(), health=QUIET)
        async with world:
            core = world.core()
            await core.start()
            servers = list(world.by_address.values())
            for _ in range(200):
                await ask(core)
            for server in servers:
                server.delay_s = 0.3
            slow = []
            for i in range(60):
                slow.append(asyncio.ensure_future(ask(core, message=search(dsl=f"slow {i}"))))
                await asyncio.sleep(0.005)
            servers[0].state, servers[0].delay_s = "reset", 0.001
            crash = []
            for i in range(20):
                crash.append(asyncio.ensure_future(ask(core, message=search(dsl=f"crash {i}"))))
                await asyncio.sleep(0.005)
            for reply in await asyncio.gather(*slow, *crash):
                assert reply.code == 0

    run(scenario())


def test_a_call_stuck_on_a_frozen_endpoint_goes_on_as_soon_as_another_is_back():
    async def scenario():
        world, core, (first, second) = fleet(2)
        async with world:
            await core.start()
            second.gate.open("refused")
            frozen = world.by_address["s0:19530"]
            frozen.state = "hang"
            task = asyncio.ensure_future(core._stack(core._call(QUERY, query(), (), 30.0)))
            await until(lambda: first.gate.state == OPEN)
            assert not task.done(), "there was nowhere to go"
            await until(second.gate.try_half_open)
            for _ in range(3):
                second.gate.record(second.gate.try_acquire(), True)
            assert second.gate.state == CLOSED
            began = world.loop.time()
            assert (await task).code == 0
            assert world.loop.time() - began < 0.1, "it did not wait for its deadline"
            assert frozen.cancelled == 1

    run(scenario())


def test_a_read_that_all_endpoints_sit_on_is_asked_again_after_a_second():
    """Two proxies can both wait for the same dead query node; asked again, one finds a living one."""

    async def scenario():
        world, core, nodes = fleet(2)
        async with world:
            await core.start()
            for server in world.by_address.values():
                server.delay_s = 60.0
            began = world.loop.time()
            task = asyncio.ensure_future(ask(core, timeout_s=20))
            await until(lambda: sum(len(s.calls()) for s in world.by_address.values()) == 2)
            for server in world.by_address.values():
                server.delay_s = 0.005
            assert (await task).code == 0
            took = world.loop.time() - began
            assert 1.0 <= took < 3.0
            assert all(node.gate.state == CLOSED for node in nodes), "their connections are alive"

    run(scenario())
