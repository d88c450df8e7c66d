"""A server that dies with hundreds of calls in hand takes none of them along: to move them on draws on no budget.

They were more than a fifth of recent calls, so the retry budget was spent before all had gone to the next server.
"""

import asyncio

from haclient.config import Hedge, Retry
from tests.unit.fleet.fleet_fakes import REAL_ID, Server, World, ask
from tests.virtual_time import run


def test_two_hundred_calls_at_once_when_a_server_dies():
    async def scenario():
        servers = Server(), Server(catalogue={"docs": REAL_ID + 1})
        world = World(*servers, retry=Retry(budget_ratio=0.0, budget_floor=0), hedge=Hedge(enabled=False))
        async with world:
            core = world.core()
            await core.start()
            servers[0].state = "reset"
            replies = await asyncio.gather(*(ask(core) for _ in range(200)))
            assert all(reply.code == 0 for reply in replies)
            assert len(servers[0].calls()) > 20, "many were lost with the dead one"
            assert len(servers[1].calls()) == 200

    run(scenario())
