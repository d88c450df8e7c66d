"""The last events, and those who follow them."""

import asyncio

from haclient.proxy.journal import Journal

EVENT = {"at": 5.0, "kind": "EndpointChanged", "level": "warning", "text": "down", "fields": {"endpoint": "a"}}


def made(count):
    journal = Journal(lambda: 7.0)
    for i in range(count):
        journal.note("Starting", "debug", f"event {i + 1}", number=i + 1)
    return journal


async def take(stream, count):
    return [(await anext(stream)).id for _ in range(count)]


async def test_events_are_numbered_whoever_saw_them():
    journal = made(1)
    journal.hear(3, EVENT)
    own, heard = journal.recent(0)
    assert (own.id, own.at, own.worker, own.fields) == (1, 7.0, None, {"number": 1})
    assert (heard.id, heard.at, heard.worker, heard.kind) == (2, 5.0, 3, "EndpointChanged")


async def test_only_the_last_thousand_are_kept():
    journal = made(1_500)
    assert [event.id for event in journal.recent(0)] == list(range(501, 1_501))
    assert [event.id for event in journal.recent(1_498)] == [1_499, 1_500]
    assert journal.recent(1_500) == journal.recent(9_999) == []


async def test_a_follower_gets_what_was_and_what_comes():
    journal = made(3)
    stream = journal.follow(1)
    assert await take(stream, 2) == [2, 3]
    coming = asyncio.create_task(take(stream, 1))
    await asyncio.sleep(0)
    journal.hear(0, EVENT)
    assert await coming == [4]


async def test_a_slow_follower_misses_what_has_left_and_holds_nobody_up():
    """It waits in the middle of the first thousand while two thousand more come."""
    journal = made(1_000)
    slow, quick = journal.follow(0), journal.follow(0)
    assert await take(slow, 10) == list(range(1, 11))
    for _ in range(2_000):
        journal.hear(0, EVENT)
    assert await take(quick, 1) == [2_001]
    rest = await take(slow, 990)
    assert rest == list(range(11, 1_001)), "what was handed out already is not taken back"
    assert await take(slow, 1) == [2_001]


async def test_a_number_of_an_earlier_supervisor_means_from_now_on():
    journal = made(2)
    stream = journal.follow(70_000)
    coming = asyncio.create_task(take(stream, 1))
    await asyncio.sleep(0)
    journal.hear(0, EVENT)
    assert await coming == [3]


async def test_followers_end_with_the_journal():
    journal = made(2)

    async def all_of():
        return [event.id async for event in journal.follow(0)]

    following = asyncio.create_task(all_of())
    await asyncio.sleep(0)
    journal.close()
    assert await following == [1, 2]
