"""What one process knows of the log: never fresher than it is."""

import asyncio
import math

from haclient.replication import progress as module
from haclient.replication.log import BARRIER, Entry, Mutation
from haclient.replication.position import Parked, Position, Standing
from haclient.replication.progress import Progress
from tests.virtual_time import run

DOCS, OTHER = ("", "docs"), ("", "other")


def entries(*seqs, stream=DOCS, method="Upsert"):
    return [Entry(seq, 0.0, Mutation(b"%d" % seq, method, stream, b""), 0) for seq in seqs]


def in_time(scenario):
    async def main():
        await scenario(Progress(asyncio.get_running_loop()))

    def test():
        run(main())

    test.__name__ = scenario.__name__
    test.__doc__ = scenario.__doc__
    return test


@in_time
async def test_the_end_of_each_stream(progress):
    progress.skip_to(10)
    assert (progress.head, progress.last(DOCS)) == (10, 10), "what was there before may be of any stream"
    progress.saw(entries(11) + entries(12, stream=OTHER, method="DropCollection"))
    progress.saw(entries(11))
    assert (progress.head, progress.last(DOCS), progress.last(OTHER)) == (12, 11, 12)
    assert (progress.changed(DOCS), progress.changed(OTHER)) == (0, 12)


@in_time
async def test_staleness_is_never_said_to_be_less_than_it_is(progress):
    """What a look at the log finds may have been there since right after the look before."""
    progress.moved("a", Position())
    progress.moved("b", Position())
    progress.heard()
    await asyncio.sleep(3)
    progress.saw(entries(1, 2))
    progress.heard()
    assert progress.stale_s("a", DOCS) == 3
    await asyncio.sleep(1)
    progress.saw(entries(3))
    progress.moved("a", Position(low=2))
    assert (progress.stale_s("a", DOCS), progress.stale_s("b", DOCS)) == (1, 4)
    progress.moved("a", Position(low=3))
    assert (progress.stale_s("a", DOCS), progress.lag("a", DOCS), progress.lag("b", DOCS)) == (0, 0, 3)


@in_time
async def test_what_was_there_before_is_of_unknown_age(progress):
    progress.skip_to(5)
    progress.saw(entries(6))
    progress.moved("a", Position(low=6))
    progress.moved("new", Position(low=5))
    progress.moved("stopped", Position(low=6, parked={DOCS: Parked(3, "")}))
    assert [progress.stale_s(name, DOCS) for name in ("a", "new", "stopped")] == [0, math.inf, math.inf]
    assert progress.stale_s("stopped", OTHER) == 0


@in_time
async def test_a_long_lag_costs_little_and_makes_nobody_fresher(progress):
    module_most = module._MOST_TIMES
    module._MOST_TIMES = 4
    try:
        progress.moved("a", Position())
        for seq in range(1, 11):
            progress.heard()
            progress.saw(entries(seq))
            await asyncio.sleep(1)
        assert len(progress._times[DOCS]) == 4
        assert [progress.stale_s("a", DOCS)] == [10]
        progress.moved("a", Position(low=8))
        assert progress.stale_s("a", DOCS) >= 2
    finally:
        module._MOST_TIMES = module_most


@in_time
async def test_what_was_in_the_log_at_a_moment(progress):
    progress.moved("a", Position())
    for seq in (1, 2, 3):
        progress.heard()
        progress.saw(entries(seq))
        await asyncio.sleep(1)
    progress.heard()
    assert [progress.by(DOCS, moment) for moment in (0.5, 1.5, 9.0)] == [1, 2, 3]
    assert progress.by(OTHER, 9.0) == 0
    progress.moved("a", Position(low=3))
    assert progress.by(DOCS, 9.0) == 3, "one that comes later may lack it"


@in_time
async def test_freshness_goes_back_to_when_the_log_was_asked(progress):
    await asyncio.sleep(5)
    progress.heard(2.0)
    assert progress.fresh_at == 2
    progress.heard(1.0)
    assert progress.fresh_at == 2
    progress.saw(entries(1))
    assert progress.fresh_at == 2, "more may be there"


@in_time
async def test_waiting(progress):
    loop = asyncio.get_running_loop()
    loop.call_later(2, lambda: progress.moved("a", Position(low=1)))
    assert await progress.until(lambda: progress.has("a", DOCS, 1), loop.time() + 3)
    assert loop.time() == 2
    assert not await progress.until(lambda: progress.has("a", DOCS, 2), loop.time() + 3)
    assert loop.time() == 5
    waiting = asyncio.ensure_future(progress.until(lambda: False, loop.time() + 9))
    await asyncio.sleep(1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not progress._waiting


@in_time
async def test_a_cluster_that_nothing_is_known_of(progress):
    assert progress.applied("x", DOCS) == progress.timestamp("x", DOCS) == 0
    assert progress.standing("x") is None
    assert progress.blocked("x") == ""
    position = Position(low=1, timestamps={DOCS: 7, BARRIER: 5}, blocked="disk", standing=Standing.AWAY)
    progress.moved("x", position)
    assert (progress.timestamp("x", DOCS), progress.timestamp("x", OTHER)) == (7, 5)
    assert (progress.standing("x"), progress.blocked("x")) == (Standing.AWAY, "disk")
