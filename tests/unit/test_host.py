"""Where a core lives: which loop makes it, who may use it from where, and what is left of it afterwards."""

import asyncio
import threading

import pytest

from haclient import errors
from haclient.config import Config
from haclient.events import EventBus
from haclient.host import Host
from haclient.portal import portal


def host(**options):
    config = Config.from_uri("http://127.0.0.1:9")
    return Host(config, lambda: config, EventBus(), **options)


async def here():
    return asyncio.get_running_loop()


class Thread:
    """A loop running in a thread of its own."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        return self

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def __exit__(self, *_):
        if self.thread.is_alive():
            self.stop()
        self.loop.close()


async def test_the_first_call_makes_the_core_on_its_loop():
    made = host()
    assert made.core is None
    core = await made.enter()
    assert core.loop is asyncio.get_running_loop()
    assert await made.enter() is core is made.core
    await made.aclose()
    assert made.core is None


async def test_first_calls_at_once_make_one_core():
    made = host()
    assert len(set(await asyncio.gather(*(made.enter() for _ in range(10))))) == 1
    await made.aclose()


async def test_a_second_loop_is_refused_but_may_have_work_brought_there():
    made = host()
    with Thread() as other:
        core = other.run(made.enter())
        with pytest.raises(errors.ConfigError, match="another event loop"):
            await made.enter()
        assert await made.bring(here()) is core.loop is other.loop
        other.run(made.aclose())


async def test_without_a_core_work_stays_where_it_is():
    made = host()
    assert await made.bring(here()) is asyncio.get_running_loop()
    await made.enter()
    assert await made.bring(here()) is asyncio.get_running_loop()
    await made.aclose()


def test_a_loop_that_is_gone_is_replaced():
    made = host()

    async def use():
        core = await made.enter()
        assert core.loop is asyncio.get_running_loop()
        await core.aclose()
        return core

    assert asyncio.run(use()) is not asyncio.run(use())


def test_blocking_work_runs_on_the_cores_loop_and_on_the_portal_if_there_is_none():
    made = host()
    assert made.run(here()) is portal().loop
    with Thread() as other:
        other.run(made.enter())
        assert made.run(here()) is other.loop
        other.run(made.aclose())


def test_blocking_work_on_a_loop_that_stands_still_is_refused():
    made = host()
    with Thread() as other:
        other.run(made.enter())
        other.stop()
        with pytest.raises(errors.ConfigError, match="does not run any more"):
            made.run(here())
        other.loop.run_until_complete(made.aclose())


async def test_blocking_work_on_the_cores_own_loop_is_refused():
    made = host()
    await made.enter()
    with pytest.raises(errors.ConfigError, match="wait for itself"):
        made.run(here())
    await made.aclose()


async def test_a_core_of_the_portal_lives_there_only():
    made = host(on_portal=True)
    with pytest.raises(errors.ConfigError, match="lives on the portal's event loop"):
        await made.enter()
    core = await made.bring(made.enter())
    assert core.loop is portal().loop
    with pytest.raises(errors.ConfigError, match="another event loop"):
        await made.enter()
    await made.bring(made.aclose())


def test_closing_blocks_until_it_is_done_and_calls_are_refused_from_then_on():
    made = host(on_portal=True)
    made.run(made.enter())
    before = portal().call(asyncio.all_tasks)
    made.close()
    assert made.core is None
    assert not portal().call(asyncio.all_tasks) & before
    with pytest.raises(errors.ConfigError, match="this client is closed"):
        made.run(made.enter())
    made.close()


def test_closing_what_was_never_used_needs_no_loop():
    made = host()
    made.close()
    with pytest.raises(errors.ConfigError, match="this client is closed"):
        asyncio.run(made.enter())


def test_what_is_forgotten_is_closed_in_the_background():
    made = host(on_portal=True)
    core = made.run(made.enter())
    made.run(asyncio.sleep(0))
    closed = threading.Event()
    aclose = core.fleet.aclose

    async def seen():
        await aclose()
        closed.set()

    core.fleet.aclose = seen
    made.forget()
    assert closed.wait(10)
    made.forget()
    assert made.closed
