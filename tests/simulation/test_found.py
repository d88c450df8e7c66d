"""What the simulation has found, each as the smallest history that shows it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from haclient.call import Action, Reply
from haclient.core import Core
from haclient.errors import DeadlineExceeded
from haclient.events import EventBus
from haclient.fleet import breaker
from haclient.policy.quarantine import _Suspicion
from tests.simulation import replies, scenario, world
from tests.simulation.checker import KEY
from tests.simulation.replies import DESCRIBE, SEARCH
from tests.simulation.run import run_seed
from tests.simulation.world import Operation, Server, World
from tests.virtual_time import VirtualTimeLoop, run


def play(servers: int, story: Callable[[Core, World], Awaitable[None]], start: bool = True) -> None:
    """Run a story on clusters of one server each."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        here = World(loop, random.Random(1), False, False)
        here.servers = [Server(here, i, i) for i in range(servers)]
        shape = tuple((i,) for i in range(servers))
        config = scenario.configuration(shape, tuple(f"c{i}" for i in range(servers)), True, 1000, 1, False, 1.0)
        core = Core(config, here.connect, EventBus(), random.Random(2), loop)
        if start:
            await core.start()
        try:
            await story(core, here)
        finally:
            await core.aclose()
        assert not loop.timers()

    run(main())


async def search(core: Core, here: World, timeout: float = 3.0, **facts: Any) -> Reply:
    op = Operation(len(here.operations), SEARCH, b"", timeout)
    op.message = replies.request(SEARCH, op.id)
    for name, value in facts.items():
        setattr(op, name, value)
    here.operations.append(op)
    here.by_message[op.message] = op
    return await core.request(SEARCH, op.message, (), timeout)


def test_a_trial_under_way_does_not_hide_the_other_endpoints_of_its_rank() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        first, second = core.fleet.nodes()
        first.gate.open("test")
        await asyncio.sleep(0.4)
        assert first.gate.try_half_open()
        second.preferred_at = here.loop.time() + 60
        core.fleet.balancer.changed()
        call = core._call(SEARCH, replies.request(SEARCH, 1), (), 1.0)
        picked = [core.fleet.balancer.pick(call) for _ in range(20)]
        assert sum(p is not None and p[0] is first for p in picked) <= 1
        assert all(p is not None and p[1] != breaker.REFUSED for p in picked)

    play(2, story)


def test_the_time_of_a_call_includes_the_start_that_it_waits_for() -> None:
    async def story(core: Core, here: World) -> None:
        for server in here.servers:
            server.set(world.STOPPED)
        with pytest.raises(DeadlineExceeded):
            await search(core, here, 0.3)
        assert here.loop.time() == pytest.approx(0.3)

    play(2, story, start=False)


def test_a_changed_configuration_keeps_convicts_and_the_collections_in_use() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        core._quarantine._convicts[b"mark"] = 1e9
        core.reconfigure(scenario.configuration(((0,),), ("c0",), True, 1, 1, False, 1.0))
        assert b"mark" in core._quarantine._convicts
        assert core._budget.floor == 1
        assert KEY in core.fleet.in_use()

    play(2, story)


def test_not_found_is_not_believed_while_another_endpoint_may_have_it() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        nodes = list(core.fleet.nodes())
        core.fleet.mark(nodes[1], KEY, False, "not loaded a moment ago")
        here.servers[0].set(world.LOST)
        reply = await search(core, here)
        assert reply is replies.hit(1, False)

    play(2, story)


def test_not_found_everywhere_is_the_answer() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        for server in here.servers:
            server.set(world.LOST)
        assert await search(core, here) is replies.NOT_FOUND
        assert await search(core, here) is replies.NOT_FOUND

    play(3, story)


def test_metadata_does_not_make_a_collection_ready() -> None:
    async def story(core: Core, here: World) -> None:
        here.servers[0].set(world.UNLOADED)
        node = next(core.fleet.nodes())
        core.fleet.mark(node, KEY, False, "not loaded")
        op = Operation(0, DESCRIBE, replies.request(DESCRIBE, 0), None)
        here.operations.append(op)
        here.by_message[op.message] = op
        await core.request(DESCRIBE, op.message, (), None)
        assert node.ready[KEY] is False

    play(1, story)


def test_a_refused_request_does_not_wait_for_a_frozen_server_until_the_deadline() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        here.servers[0].set(world.STOPPED)
        for _ in range(5):
            begun = here.loop.time()
            reply = await search(core, here, 10.0, mistake=True)
            assert reply is replies.MISTAKE
            assert here.loop.time() - begun < 2.0

    play(2, story)


def test_a_second_try_that_reached_nobody_does_not_clear_a_suspect() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        call = core._call(SEARCH, replies.request(SEARCH, 5), (), 1.0)
        quarantine = core._quarantine
        from haclient.milvus.requests import fingerprint

        mark = fingerprint(call.method, call.message)
        suspicion = quarantine._suspects[mark] = _Suspicion()
        suspicion.until = 1e9
        here.operations.extend(Operation(i, SEARCH, b"", 1.0) for i in range(1, 6))
        for server in here.servers:
            server.set(world.REFUSING)
        attempt = await quarantine(call)
        assert attempt is not None
        assert attempt.action is Action.FAILOVER
        assert mark in quarantine._suspects

    play(2, story)


def test_a_call_on_a_frozen_server_is_hedged_once_another_endpoint_is_back() -> None:
    async def story(core: Core, here: World) -> None:
        await search(core, here)
        frozen, away = core.fleet.nodes()
        away.gate.open("test")
        here.servers[1].set(world.REFUSING)
        here.loop.call_later(0.5, here.servers[1].set, world.UP)
        here.servers[0].set(world.STOPPED)
        begun = here.loop.time()
        assert await search(core, here, 10.0) is replies.hit(1, False)
        assert here.loop.time() - begun < 5.0
        assert frozen.gate.state == breaker.OPEN

    play(2, story)


@pytest.mark.parametrize(
    "seed",
    [
        23434,  # an iterator page moved when its cluster was recognised as another
        66572,  # a read stayed on a frozen server although another one had come back
        62918,  # a request killed a third server, because a suspect elsewhere spoke for it
    ],
)
def test_histories_that_went_wrong_once(seed: int) -> None:
    assert not run_seed(seed).violations
