"""The way from threads into the loop: what is waited for, what is refused, what a fork and an interrupt do."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from haclient.errors import ConfigError
from haclient.portal import Pending, portal, wait


async def answer(value):
    await asyncio.sleep(0)
    return value


async def fail():
    raise KeyError("lost")


@pytest.fixture
def loop():
    """A loop that runs in a thread of its own until the test ends."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def on(loop, function):
    """Call a function on a loop's thread."""

    async def call():
        return function()

    return asyncio.run_coroutine_threadsafe(call(), loop).result()


# The portal.


def test_there_is_one_portal_whoever_asks():
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: portal(), range(50)))) == 1
    assert sum(thread.name == "haclient-portal" for thread in threading.enumerate()) == 1


def test_its_loop_runs_from_the_start():
    code = "from haclient.portal import portal; assert portal().loop.is_running()"
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True)


def test_it_runs_coroutines_and_hands_on_their_errors():
    assert portal().run(answer(3)) == 3
    with pytest.raises(KeyError, match="lost"):
        portal().run(fail())


def test_it_calls_functions_on_its_thread_also_from_there():
    names = portal().call(lambda: [threading.current_thread().name, portal().call(threading.current_thread).name])
    assert names == ["haclient-portal"] * 2
    with pytest.raises(ZeroDivisionError):
        portal().call(lambda: 1 / 0)


# Waiting.


def test_a_loop_does_not_wait_for_itself(loop):
    ran = []

    async def work():
        ran.append(1)

    def block():
        with pytest.raises(ConfigError, match="would wait for itself; await"):
            wait(work(), loop)

    on(loop, block)
    on(loop, lambda: None)
    assert ran == []


def test_a_closed_loop_is_said_to_be_closed():
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(ConfigError, match="closed"):
        wait(answer(1), loop)


def test_a_result_that_takes_too_long_can_be_asked_for_again(loop):
    go = asyncio.Event()

    async def work():
        await go.wait()
        return 5

    pending = Pending(work(), loop)
    for patience in (0.01, 0, -1):
        with pytest.raises(TimeoutError):
            pending.result(patience)
    assert not pending.done()
    loop.call_soon_threadsafe(go.set)
    assert pending.result() == pending.result(0) == 5
    assert pending.done()
    assert not pending.cancel()
    assert not pending.cancelled()


def test_many_threads_wait_for_one_result(loop):
    go = asyncio.Event()
    pending = Pending(go.wait(), loop)
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(pending.result) for _ in range(10)]
        loop.call_soon_threadsafe(go.set)
        assert [each.result() for each in waiting] == [True] * 10


def test_cancelled_work_stops_and_says_so(loop):
    stopped = threading.Event()

    async def work():
        try:
            await asyncio.sleep(1000)
        finally:
            stopped.set()

    pending = Pending(work(), loop)
    on(loop, lambda: None)  # it has begun
    assert pending.cancel()
    with pytest.raises(CancelledError):
        pending.result()
    assert stopped.is_set()
    assert pending.cancelled()


def test_work_cancelled_before_it_began_ends_too(loop):
    def start_and_cancel():
        pending = Pending(answer(1), loop)
        pending.cancel()
        return pending

    with pytest.raises(CancelledError):
        on(loop, start_and_cancel).result()


def test_callbacks_run_on_the_loop_before_and_after_the_end(loop):
    go = asyncio.Event()
    seen = []
    pending = Pending(go.wait(), loop)
    pending.add_done_callback(lambda: seen.append(asyncio.get_running_loop()))
    on(loop, lambda: None)
    assert seen == []
    loop.call_soon_threadsafe(go.set)
    pending.result()
    pending.add_done_callback(lambda: seen.append(asyncio.get_running_loop()))
    on(loop, lambda: None)
    assert seen == [loop, loop]


def test_an_error_that_nobody_asks_for_makes_no_noise(loop, caplog):
    pending = Pending(fail(), loop)
    while not pending.done():
        on(loop, lambda: None)
    del pending
    gc.collect()
    on(loop, gc.collect)
    assert caplog.records == []


# Processes.


def program(text):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.split(), done.stderr


def test_an_interrupt_cancels_what_is_waited_for():
    code, out, err = program(
        """
        import asyncio, signal, sys, threading
        from haclient.portal import portal

        cancelled = threading.Event()
        main = threading.main_thread().ident

        async def work():
            while sys._current_frames()[main].f_code.co_name != "_wait":
                await asyncio.sleep(0)
            try:
                while True:  # Python overlooks a signal that comes just before a lock begins to wait
                    signal.pthread_kill(main, signal.SIGINT)
                    await asyncio.sleep(1)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        try:
            portal().run(work())
        except KeyboardInterrupt:
            print("interrupted", cancelled.wait(10))
        """
    )
    assert (code, out) == (0, ["interrupted", "True"]), err
    assert not err, err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_has_a_portal_of_its_own():
    """Even if a thread that the child does not have was just making the parent's."""
    code, out, err = program(
        """
        import os, sys
        from haclient import portal as module

        async def pid():
            return os.getpid()

        parents = module.portal()
        module._lock.acquire()
        child = os.fork()
        if not child:
            own = module.portal()
            right = own is not parents and own.run(pid()) == os.getpid()
            os._exit(0 if right else 1)
        print(os.waitpid(child, 0)[1], module.portal() is parents, parents.run(pid()) == os.getpid())
        """
    )
    assert (code, out) == (0, ["0", "True", "True"]), err


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "pending.cancel()"])
def test_a_program_ends_while_work_goes_on(end):
    code, out, err = program(
        f"""
        import asyncio
        from haclient.portal import portal
        pending = portal().submit(asyncio.sleep(1000))
        print("ok")
        {end}
        """
    )
    assert (code, out, err) == (0, ["ok"], "")
