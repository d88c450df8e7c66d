"""The clock that the other tests trust."""

from __future__ import annotations

import asyncio

import pytest

from tests.virtual_time import Deadlock, VirtualTimeLoop, run


def test_waiting_takes_no_time_and_the_clock_knows() -> None:
    async def scenario() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run(scenario()) == 3600
    assert run(scenario(), start=100.0) == 3700


def test_timers_fire_in_the_order_of_their_times_and_cancelled_ones_do_not() -> None:
    seen: list[int] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for delay in (3, 1, 2):
            loop.call_later(delay, seen.append, delay)
        loop.call_later(1.5, seen.append, 99).cancel()
        await asyncio.sleep(5)

    run(scenario())
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("seed", [None, 1])
def test_what_can_never_happen_is_a_deadlock(seed: int | None) -> None:
    async def scenario() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(scenario(), seed)


def test_the_seed_draws_the_order_of_simultaneous_callbacks_and_repeats_it() -> None:
    async def order() -> tuple[int, ...]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        for i in range(6):
            loop.call_soon(seen.append, i)
        await asyncio.sleep(1)
        return tuple(seen)

    assert run(order()) == (0, 1, 2, 3, 4, 5)
    assert run(order(), 7) == run(order(), 7)
    assert len({run(order(), seed) for seed in range(20)}) > 10


def test_a_task_left_behind_fails_the_test() -> None:
    async def scenario() -> None:
        scenario.task = asyncio.create_task(asyncio.sleep(100))  # type: ignore[attr-defined]

    with pytest.raises(AssertionError, match="left behind"):
        run(scenario())
    assert scenario.task.cancelled()  # type: ignore[attr-defined]


def test_an_exception_in_a_callback_fails_the_test() -> None:
    async def scenario() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run(scenario())


def test_timers_that_are_still_set_can_be_seen() -> None:
    loop = VirtualTimeLoop()
    late, soon = loop.call_later(2, print), loop.call_later(1, print)
    loop.call_later(1, print).cancel()
    assert loop.timers() == [soon, late]
    loop.close()


def test_asyncio_timeouts_locks_and_generators_work() -> None:
    async def ticks():
        while True:
            await asyncio.sleep(1)
            yield asyncio.get_running_loop().time()

    async def scenario() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        async for now in ticks():
            return now
        return 0.0

    assert run(scenario(), 3) == 6.0


def test_threads_are_refused() -> None:
    async def scenario() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="virtual time"):
        run(scenario())
