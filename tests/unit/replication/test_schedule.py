"""What may be begun when, and how far a cluster is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haclient.replication.log import BARRIER, Entry, Mutation, Stream
from haclient.replication.position import Parked, Position
from haclient.replication.schedule import Batch, Schedule

A: Stream = ("", "a")
B: Stream = ("", "b")
MB = 1 << 20


def entries(*streams: Stream, first: int = 1) -> list[Entry]:
    """Make consecutive entries of these streams."""
    return [
        Entry(first + i, 0.0, Mutation(bytes(16), "Upsert", stream, b"x" * 10), 10) for i, stream in enumerate(streams)
    ]


def together(taken: Sequence[Entry], entry: Entry, again: bool) -> bool:
    return True


def alone(taken: Sequence[Entry], entry: Entry, again: bool) -> bool:
    return False


def schedule(*streams: Stream, position: Position | None = None, fresh_after: int = 0) -> Schedule:
    made = Schedule(position or Position(), fresh_after)
    made.offer(entries(*streams))
    return made


def take(made: Schedule, joins: object = alone) -> Batch:
    batch = made.next(joins, MB)  # type: ignore[arg-type]
    assert batch is not None
    return batch


def seqs(batch: Batch) -> list[int]:
    return [entry.seq for entry in batch.entries]


def test_one_batch_of_a_stream_at_a_time() -> None:
    made = schedule(A, A, B)
    first, second = take(made), take(made)
    assert (seqs(first), seqs(second)) == ([1], [3])
    assert made.next(alone, MB) is None
    made.done(first)
    assert seqs(take(made)) == [2]


def test_low_stops_at_the_first_entry_that_is_not_done() -> None:
    made = schedule(A, B, B)
    first, other = take(made), take(made)
    made.done(other)
    assert (made.position.low, made.position.applied(B), made.position.applied(A)) == (0, 2, 0)
    made.done(first)
    assert (made.position.low, made.position.ahead) == (2, {})


def test_a_batch_ends_at_a_barrier_and_at_its_size() -> None:
    made = schedule(A, A, BARRIER, A)
    assert seqs(take(made, together)) == [1, 2]
    big = schedule(A, A, A)
    assert seqs(big.next(together, 25) or take(big)) == [1, 2]


def test_a_barrier_waits_for_all_and_all_wait_for_it() -> None:
    made = schedule(A, BARRIER, B, A)
    first = take(made)
    assert made.next(alone, MB) is None
    made.done(first)
    barrier = take(made)
    assert barrier.stream == BARRIER
    assert made.next(alone, MB) is None
    made.done(barrier)
    assert {take(made).stream, take(made).stream} == {A, B}


def test_a_barrier_put_back_still_is_one() -> None:
    made = schedule(BARRIER, A)
    made.again(take(made), doubtful=True)
    again = take(made)
    assert (again.stream, again.again) == (BARRIER, True)
    assert made.next(alone, MB) is None


def test_what_was_put_back_goes_first_and_may_have_been_begun() -> None:
    made = schedule(A, A)
    made.again(take(made), doubtful=True)
    batch = take(made, together)
    assert (seqs(batch), batch.again) == ([1], True), "what was never begun does not join what may have been"
    made.done(batch)
    assert take(made).again is False


def test_what_certainly_was_not_begun_is_as_fresh_as_before() -> None:
    made = schedule(A)
    made.again(take(made), doubtful=False)
    assert take(made).again is False


def test_entries_of_an_earlier_life_may_have_been_begun() -> None:
    made = schedule(A, A, fresh_after=1)
    batch = take(made, together)
    assert (seqs(batch), batch.again) == ([1], True)


def test_a_batch_that_failed_goes_out_entry_by_entry() -> None:
    made = schedule(A, A, A)
    batch = take(made, together)
    made.again(batch, doubtful=True, singly=True)
    for expected in (1, 2, 3):
        batch = take(made, together)
        assert seqs(batch) == [expected]
        assert made.is_alone(batch)
        made.done(batch)


def test_a_parked_stream_stops_nobody_else() -> None:
    made = schedule(A, B, BARRIER, A, B)
    made.park(take(made), "no")
    made.done(take(made))
    barrier = take(made)
    assert barrier.stream == BARRIER
    made.done(barrier)
    made.done(take(made))
    assert made.position.low == 5
    assert made.position.applied(A) == 0
    assert made.position.applied(B) == 5


def test_a_parked_stream_goes_on_where_it_stopped() -> None:
    log = entries(A, B, A, A)
    made = Schedule(Position(), 0)
    made.offer(log)
    made.park(take(made), "no")
    made.done(take(made))
    assert made.position.low == 4
    made.resume(A)
    made.offer(log[made.tail :])
    done = []
    while (batch := made.next(alone, MB)) is not None:
        done += seqs(batch)
        made.done(batch)
    assert done == [1, 3, 4]
    assert (made.position.parked, made.position.applied(A)) == ({}, 4)


def test_an_entry_may_be_skipped() -> None:
    log = entries(A, A)
    made = Schedule(Position(), 0)
    made.offer(log)
    made.park(take(made), "no")
    made.resume(A, skip=True)
    made.offer(log[made.tail :])
    assert seqs(take(made)) == [2]


def test_a_new_life_begins_where_the_old_one_stopped() -> None:
    position = Position(low=2, ahead={B: 4}, parked={A: Parked(1, "no")})
    made = Schedule(Position.decode(position.encode()), 4)
    assert made.tail == 2
    made.offer(entries(B, A, B, B)[2:] + entries(B, first=5))
    assert seqs(take(made)) == [5]


def test_a_resumed_stream_survives_a_new_life() -> None:
    position = Position(low=4, parked={A: Parked(2, "")})
    made = Schedule(Position.decode(position.encode()), 4)
    assert made.tail == 1
    made.offer(entries(A, B, B, first=2))
    batch = take(made)
    assert (seqs(batch), made.next(alone, MB)) == ([2], None)
    made.done(batch)
    assert (made.position.parked, made.position.applied(A)) == ({}, 4)


def test_what_is_no_position_is_said_to_be_none() -> None:
    with pytest.raises(ValueError, match="not a position"):
        Position.decode(b"{}")


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_order_holds_whatever_happens(data: st.DataObject) -> None:
    """Every stream is applied in order, barriers are, nothing is left out, and no position claims too much."""
    log = entries(*data.draw(st.lists(st.sampled_from((A, B, ("", "c"), BARRIER)), min_size=1, max_size=25)))
    position, made = Position(), Schedule(Position(), 0)
    position = made.position
    applied: list[int] = []
    under_way: list[Batch] = []
    offered = 0
    for _ in range(400):
        if position.low == len(log) and not position.parked:
            break
        for stream in [stream for stream, parked in position.parked.items() if parked.reason]:
            if data.draw(st.booleans()):
                made.resume(stream)
        step = data.draw(st.sampled_from(("offer", "next", "done", "again", "park", "restart")))
        if step == "offer":
            offered = min(made.tail + data.draw(st.integers(1, 5)), len(log))
            made.offer(log[made.tail : offered])
        elif step == "next":
            batch = made.next(together if data.draw(st.booleans()) else alone, MB)
            if batch is not None:
                under_way.append(batch)
                first = batch.entries[0].seq
                earlier = [one for one in log[: first - 1] if one.mutation.stream not in position.parked]
                waits_for = earlier if batch.stream == BARRIER else [o for o in earlier if o.mutation.stream == BARRIER]
                assert all(one.seq in applied for one in waits_for), "a barrier was passed"
        elif under_way and step != "restart":
            batch = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            if step == "done":
                applied += [entry.seq for entry in batch.entries if entry.seq not in applied]
                made.done(batch)
            elif step == "again":
                made.again(batch, doubtful=True, singly=data.draw(st.booleans()))
            elif batch.stream != BARRIER:
                made.park(batch, "no")
            else:
                made.again(batch, doubtful=False)
        elif step == "restart":
            under_way.clear()
            made = Schedule(Position.decode(position.encode()), len(log))
            position = made.position
        for entry in log:
            if entry.seq <= position.applied(entry.mutation.stream):
                assert entry.seq in applied, "claimed, and not applied"
    for stream in list(position.parked):
        if position.parked[stream].reason:
            made.resume(stream)
    for batch in under_way:
        made.again(batch, doubtful=True)
    while True:
        made.offer(log[made.tail :])
        batch = made.next(alone, MB)
        if batch is None:
            break
        applied += [entry.seq for entry in batch.entries if entry.seq not in applied]
        made.done(batch)
    assert position.low == len(log)
    assert position.parked == {}
    assert sorted(applied) == [entry.seq for entry in log]
    for stream in {entry.mutation.stream for entry in log}:
        mine = [seq for seq in applied if log[seq - 1].mutation.stream == stream]
        assert mine == sorted(mine), "out of order"
