"""The checker itself: every invariant is seen to fail, and to hold where it should."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from haclient.drill.checker import EVERYWHERE, Contents, Violation, judge, shown
from haclient.drill.history import SLACK_S, Operation, Recorder, Value, load, notices

BOUND_S = 5.0


def write(start: float, end: float | None, seq: int = 0, outcome: Any = "ok", **options: Any) -> Operation:
    """A write to register ``k``, of the value that is its start, unless said otherwise."""
    options = {"kind": "upsert", "client": "w", "sets": {"k": int(start)}} | options
    return Operation(start=start, end=end, seq=seq, outcome=outcome, **options)


def delete(start: float, end: float | None, seq: int = 0, **options: Any) -> Operation:
    return write(start, end, seq, kind="delete", sets={"k": None}, **options)


def read(start: float, value: Value, level: str = "Strong", client: str = "w") -> Operation:
    return Operation(client, "read", start, level=level, end=start + 0.1, outcome="ok", got={"k": value})


def broken(*history: Operation, **clusters: Value | Contents) -> set[str]:
    """The invariants that do not hold; clusters are given by what ``k`` is on them."""
    contents = {
        name: one if isinstance(one, Contents) else Contents({"k": one} if one is not None else {})
        for name, one in clusters.items()
    }
    return {one.invariant for one in judge(history, contents, bounded_s=BOUND_S)}


class TestEnd:
    """What is there once all is well again."""

    def test_the_last_acknowledged_write_is_there(self) -> None:
        assert not broken(write(1, 2), write(3, 4), a=3, b=3)
        assert not broken(write(1, 2), delete(3, 4), a=None, b=None)

    @pytest.mark.parametrize("value", [None, 1])
    def test_an_acknowledged_write_is_gone_or_overwritten_by_an_older_one(self, value: Value) -> None:
        assert broken(write(1, 2), write(3, 4), a=value, b=value) == {"lost"}

    def test_a_deleted_key_is_back(self) -> None:
        assert broken(write(1, 2), delete(3, 4), a=1, b=1) == {"resurrected"}

    def test_a_deleted_key_that_was_written_again_is_not_resurrected(self) -> None:
        assert broken(write(1, 2), delete(3, 4), write(5, 6), a=1, b=1) == {"lost"}

    def test_a_value_that_nobody_wrote(self) -> None:
        assert broken(write(1, 2), a=7, b=7) == {"phantom"}
        assert broken(a=7, b=7) == {"phantom"}

    def test_a_write_that_was_reported_as_failed(self) -> None:
        failed = write(3, 4, outcome="failed")
        assert not broken(write(1, 2), failed, a=1, b=1)
        assert broken(write(1, 2), failed, a=3, b=3) == {"phantom"}

    @pytest.mark.parametrize("value", [1, 3])
    def test_a_write_without_an_outcome_may_be_there_or_not(self, value: Value) -> None:
        assert not broken(write(1, 2), write(3, None, outcome="unknown"), a=value, b=value)

    def test_a_write_without_an_outcome_may_come_late(self) -> None:
        assert not broken(write(1, None, outcome="unknown"), write(3, 4), a=1, b=1)

    def test_a_write_without_an_outcome_is_the_same_everywhere(self) -> None:
        assert broken(write(1, 2), write(3, None, outcome="unknown"), a=1, b=3) == {"diverged"}

    def test_a_write_that_is_in_the_log_must_be_there(self) -> None:
        promised = write(3, 4, seq=9, outcome="unknown")
        assert not broken(write(1, 2, seq=8), promised, a=3)
        assert broken(write(1, 2, seq=8), promised, a=1) == {"lost"}

    def test_a_write_that_every_cluster_refuses_is_not_there_and_was_not_acknowledged(self) -> None:
        nowhere = {"a": Contents(), "b": Contents()}
        refused = write(3, 4, seq=9, outcome="unknown")
        assert not judge([refused], nowhere, bounded_s=BOUND_S, void={9})
        found = judge([write(3, 4, seq=9)], nowhere, bounded_s=BOUND_S, void={9})
        assert {one.invariant for one in found} == {"lost"}

    def test_writes_at_once_end_in_the_order_of_the_log(self) -> None:
        first, second = write(1, 9, seq=1), write(2, 8, seq=2)
        assert not broken(first, second, a=2)
        assert broken(first, second, a=1) == {"lost"}

    def test_writes_at_once_without_a_place_in_the_log_end_in_any_order(self) -> None:
        for value in (1, 2):
            assert not broken(write(1, 9), write(2, 8), a=value)

    def test_a_cluster_that_differs(self) -> None:
        assert broken(write(1, 2), a=1, b=None) == {"diverged", "lost"}

    def test_rows_twice_and_damaged(self) -> None:
        assert broken(write(1, 2), a=Contents({"k": 1}, duplicates=["k twice"])) == {"duplicate"}
        assert broken(write(1, 2), a=Contents({"k": 1}, damaged=["k's vector"])) == {"damaged"}


class TestKeys:
    """Keys that haclient makes."""

    def test_another_key_than_acknowledged(self) -> None:
        insert = write(1, 2, kind="insert", keys={"k": 500})
        assert not broken(insert, a=Contents({"k": 1}, keys={"k": 500}))
        assert broken(insert, a=Contents({"k": 1}, keys={"k": 501})) == {"keys"}

    def test_a_key_given_out_twice(self) -> None:
        one, other = (
            write(at, at + 1, kind="insert", sets={name: at}, keys={name: 500}) for at, name in ((1, "k"), (3, "l"))
        )
        assert broken(one, other, a=Contents({"k": 1, "l": 3})) == {"keys"}


class TestOrder:
    """Places in the log."""

    def test_one_place_for_two_writes(self) -> None:
        assert broken(write(1, 2, seq=7), write(1.5, 4, seq=7, sets={"l": 2}), a=Contents({"k": 1, "l": 2})) == {
            "order"
        }

    def test_a_later_write_with_a_lower_place(self) -> None:
        assert "order" in broken(write(1, 2, seq=8), write(3, 4, seq=7), a=1)
        assert not broken(write(1, 3.5, seq=8), write(3, 4, seq=7), a=1)


class TestReads:
    """What was read meanwhile."""

    def test_a_strong_read_sees_what_was_acknowledged_before(self) -> None:
        writes = write(1, 2, client="other"), write(3, 4, client="other")
        assert not broken(*writes, read(5, 3), a=3)
        assert not broken(*writes, read(3.5, 1), a=3), "the second was under way"
        assert broken(*writes, read(5, 1), a=3) == {"stale"}
        assert broken(*writes, read(5, None), a=3) == {"stale"}

    def test_a_bounded_read_sees_what_is_older_than_its_bound(self) -> None:
        writes = write(1, 2), write(3, 4)
        assert not broken(*writes, read(4 + BOUND_S - 0.5, 1, "Bounded"), a=3)
        assert broken(*writes, read(4 + BOUND_S + 0.5, 1, "Bounded"), a=3) == {"stale"}

    def test_an_eventual_read_may_be_as_old_as_it_likes(self) -> None:
        assert not broken(write(1, 2), write(3, 4), read(1e6, 1, "Eventually"), a=3)

    def test_a_session_reads_its_own_writes(self) -> None:
        assert broken(write(1, 2), read(3, None, "Session"), a=1) == {"session"}
        assert broken(write(1, 2), delete(3, 4), read(5, 1, "Session"), a=None) == {"session"}
        assert not broken(write(1, 2), read(3, None, "Session", client="other"), a=1)

    def test_a_session_may_read_what_others_wrote_later(self) -> None:
        other = write(2.5, None, outcome="unknown", client="other")
        assert not broken(write(1, 2), other, read(3, 2, "Session"), a=1)

    def test_a_session_does_not_go_back(self) -> None:
        writes = write(1, 2, client="other"), write(3, 4, client="other")
        assert not broken(*writes, read(5, 1, "Session"), read(6, 3, "Session"), a=3)
        assert broken(*writes, read(5, 3, "Session"), read(6, 1, "Session"), a=3) == {"session"}
        assert broken(*writes, read(5, 3, "Session"), read(6, None, "Session"), a=3) == {"session"}

    @pytest.mark.parametrize("level", ["Session", "Strong"])
    def test_servers_that_show_what_has_been_overwritten(self, level: str) -> None:
        """Milvus 2.3.5 does, without haclient: then only what is not shown is judged."""

        def invariants(value: Value) -> set[str]:
            history = [write(1, 2), write(3, 4), read(5, value, level)]
            found = judge(history, {"a": Contents({"k": 3})}, bounded_s=BOUND_S, old_rows=True)
            return {one.invariant for one in found}

        assert not invariants(1)
        assert invariants(None)
        assert invariants(7) == {"phantom"}

    def test_what_was_never_written_is_not_read(self) -> None:
        assert broken(write(1, 2), read(3, 9), a=1) == {"phantom"}
        assert broken(write(1, 2), read(0.5, 1), a=1) == {"phantom"}, "it was read before it was written"

    def test_a_read_of_a_failed_write(self) -> None:
        assert broken(write(1, 2, outcome="failed"), read(3, 1, "Eventually"), a=None) == {"phantom"}

    @pytest.mark.parametrize("level", ["Session", "Bounded", "Eventually"])
    def test_what_every_cluster_had_before_is_seen_by_every_read(self, level: str) -> None:
        first = write(1, 2, client=EVERYWHERE)
        assert broken(first, read(3, None, level, client="another"), a=1) <= {"session", "stale"} != set()
        assert not broken(first, delete(3, 4), read(5, None, level, client="another"), a=None)

    def test_an_answer_that_contradicts_itself(self) -> None:
        odd = read(3, 1)
        odd.wrong = "nothing was found"
        assert broken(write(1, 2), odd, a=1) == {"wrong"}


class TestCalls:
    """Deadlines."""

    def test_a_call_outlives_its_deadline(self) -> None:
        late = write(1, 1 + 2 + SLACK_S + 0.5, timeout_s=2)
        assert broken(late, a=1) == {"deadline"}

    def test_a_process_that_was_stopped_meanwhile_is_excused(self) -> None:
        assert not broken(write(1, 30, timeout_s=2, stalled_s=28), a=1)


class TestHistory:
    """What a process writes down, and what is read of it."""

    def recorded(self, path: Path) -> Mapping[str, Operation]:
        return {op.kind: op for op in load([path])}

    def test_an_operation_is_read_as_it_was_recorded(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path / "w", "w")
        recorder.ready()
        with recorder.record(Operation("w", "upsert", time.monotonic(), 8, sets={"k": 1, "l": None})) as record:
            recorder.stalled_s += 2
            record.operation.outcome, record.operation.seq = "ok", 17
        recorder.notice("EndpointChanged", ("a", "a:1"), "down")
        with recorder.record(Operation("w", "read", time.monotonic(), 8, level="Strong")) as record:
            record.operation.got = {"k": 1}
        recorder.close()
        upsert, read = self.recorded(tmp_path / "w").values()
        assert (upsert.client, upsert.sets, upsert.outcome, upsert.seq) == ("w", {"k": 1, "l": None}, "ok", 17)
        assert upsert.stalled_s == 2
        assert upsert.end is not None
        assert upsert.start <= upsert.end <= read.start
        assert (read.level, read.got, read.outcome) == ("Strong", {"k": 1}, "unknown")
        (notice,) = notices([tmp_path / "w"])
        assert (notice.client, notice.event, notice.about) == ("w", "EndpointChanged", ("a", "a:1"))
        assert upsert.end <= notice.at <= read.start

    def test_an_operation_whose_process_was_killed_has_no_outcome(self, tmp_path: Path) -> None:
        recorder = Recorder(tmp_path / "w", "w")
        recorder.record(Operation("w", "upsert", 1.0, 8, sets={"k": 1})).__enter__()
        recorder.close()
        (op,) = load([tmp_path / "w"])
        assert (op.end, op.outcome, op.sure) == (None, "unknown", False)

    def test_violations_are_shown_a_few_of_each(self) -> None:
        lines = shown(Violation("lost", f"row {n}") for n in range(100))
        assert lines[:2] == ["lost: 100", "    row 0"]
        assert len(lines) < 10
