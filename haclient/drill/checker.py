"""Judges what the clients recorded, and what every cluster holds once all is well again.

    lost         an acknowledged write is gone, or an older one stands in its place
    resurrected  what was deleted, acknowledged, is there
    phantom      there is what nobody wrote, or what was reported as certainly not written
    diverged     clusters differ
    duplicate    a key twice, a row of the auto_id collection twice, or count(*) says so
    damaged      a row is not the one that was written
    keys         an auto_id key other than the one acknowledged, or given out twice
    order        two acknowledged writes have one place in the log, or a later one has a lower place
    session      a session does not read its own writes, or goes back
    wrong        an answer that contradicts itself: nothing where there are rows, a vector that is another row's
    stale        a Strong read lacks what was acknowledged before it; a Bounded one, before its bound
    deadline     a call outlived its deadline
    stuck        a cluster did not catch up
    epoch        the epoch of a cluster's applier went back

A write that nobody acknowledged may be there or not, but the same everywhere; one that raised `WriteNotConfirmed` with
its place in the log must be there in the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

from haclient.drill.history import SLACK_S, Operation, Value

#: Who wrote what every cluster has had since before the other clients began.
EVERYWHERE: Final = "setup"
#: Writes that add an entry of their own to the log, whatever is there.
ROWS_ADDED: Final = ("insert", "upsert")
#: How many violations of one invariant are worth reading.
_SHOWN: Final = 5
#: How many of the writes to a register are.
_TOLD: Final = 8


class Violation(NamedTuple):
    """One invariant that did not hold, how, and which call showed it, if one did."""

    invariant: str
    text: str
    op: Operation | None = None


class Write(NamedTuple):
    """What one operation made of one register."""

    op: Operation
    value: Value


@final
@dataclass(slots=True)
class Contents:
    """What one cluster holds, read from it directly.

    Attributes:
        registers: Every register that is there.
        keys: Key of each row of the auto_id collection, by its register.
        duplicates: What is there more than once, in words.
        damaged: Rows that are not what was written, in words.
    """

    registers: dict[str, Value] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def judge(
    history: Sequence[Operation],
    clusters: Mapping[str, Contents],
    *,
    bounded_s: float,
    void: Collection[int] = (),
    old_rows: bool = False,
) -> list[Violation]:
    """Judge one run.

    Args:
        history: What the clients did, in the order of its starts.
        clusters: What every cluster holds at the end, by name.
        bounded_s: How old a Bounded read may be.
        void: Entries of the log that every cluster has refused: nobody was told that they are done.
        old_rows: The servers by themselves show now and then, for a while, what has been overwritten or deleted, also
            to Strong reads: Milvus 2.3.5 does, alone and untouched. Then only a row that is not shown is judged.

    Returns:
        What is wrong; empty if nothing is.
    """
    found: list[Violation] = []
    writes: dict[str, list[Write]] = defaultdict(list)
    for op in history:
        if op.seq in void and op.outcome == "unknown":
            op.outcome = "failed"
        elif op.seq in void and op.kind in ROWS_ADDED:
            found.append(Violation("lost", f"acknowledged, and refused by every cluster: {op}", op))
        for name, value in op.sets.items():
            writes[name].append(Write(op, value))
    return [
        *found,
        *_ends(writes, clusters),
        *_rows(history, clusters),
        *_order(history, writes),
        *_answers(history),
        *_reads(history, writes, bounded_s, old_rows),
        *_sessions(history, writes, old_rows),
        *_deadlines(history),
    ]


def shown(found: Iterable[Violation]) -> list[str]:
    """What is wrong, for a person: how often, and some of each."""
    texts: dict[str, list[str]] = defaultdict(list)
    for one in found:
        texts[one.invariant].append(one.text)
    lines = []
    for invariant, mine in texts.items():
        lines += [f"{invariant}: {len(mine)}", *(f"    {text}" for text in mine[:_SHOWN])]
    return lines


# --- what is there at the end -----------------------------------------------------------------------------------------


def _ends(writes: Mapping[str, Sequence[Write]], clusters: Mapping[str, Contents]) -> Iterator[Violation]:
    for name in sorted({*writes, *(name for contents in clusters.values() for name in contents.registers)}):
        values = {cluster: contents.registers.get(name) for cluster, contents in clusters.items()}
        mine = writes.get(name, ())
        if len(set(values.values())) > 1:
            yield Violation("diverged", f"{name} is {values}; written: {_story(mine)}")
        for value in dict.fromkeys(values.values()):
            if (invariant := _wrong(value, mine)) is not None:
                where = ", ".join(cluster for cluster, found in values.items() if found == value)
                yield Violation(invariant, f"{name} is {value} on {where}; written: {_story(mine)}")


def _wrong(value: Value, writes: Sequence[Write]) -> str | None:
    """Name the invariant that a register's last value breaks, given every write to it."""
    sure = [write for write in writes if write.op.sure]
    makers = [write for write in writes if write.value == value and write.op.outcome != "failed"]
    if any(not _overwritten(maker, sure) for maker in makers) or (value is None and not sure):
        return None
    if value is not None and not makers:
        return "phantom"
    deleted = any(write.value is None and not _overwritten(write, sure) for write in sure)
    return "resurrected" if value is not None and deleted else "lost"


def _overwritten(write: Write, by: Iterable[Write]) -> bool:
    return any(write.op.before(other.op) for other in by)


def _rows(history: Iterable[Operation], clusters: Mapping[str, Contents]) -> Iterator[Violation]:
    acknowledged: dict[str, int] = {}
    for op in history:
        acknowledged |= op.keys
    given: dict[int, str] = {}
    for name, key in acknowledged.items():
        if (other := given.setdefault(key, name)) != name:
            yield Violation("keys", f"key {key} was given to {other} and to {name}")
    for cluster, contents in clusters.items():
        for name, key in contents.keys.items():
            if acknowledged.get(name, key) != key:
                yield Violation("keys", f"{cluster}: {name} has key {key}, acknowledged was {acknowledged[name]}")
        yield from (Violation("duplicate", f"{cluster}: {text}") for text in contents.duplicates)
        yield from (Violation("damaged", f"{cluster}: {text}") for text in contents.damaged)


def _order(history: Iterable[Operation], writes: Mapping[str, Sequence[Write]]) -> Iterator[Violation]:
    places: dict[int, Operation] = {}
    for op in history:
        if op.outcome == "ok" and op.seq and op.kind in ROWS_ADDED and places.setdefault(op.seq, op) is not op:
            yield Violation("order", f"one place for two: {places[op.seq]}; {op}")
    for name, every in writes.items():
        latest: Operation | None = None
        for op in sorted((w.op for w in every if w.op.outcome == "ok" and w.op.seq), key=lambda op: op.seq):
            if latest is not None and op.end is not None and op.end < latest.start:
                yield Violation("order", f"{name}: the later one has a lower place: {op}; {latest}")
            elif latest is None or op.start > latest.start:
                latest = op


# --- what was read meanwhile ------------------------------------------------------------------------------------------


def _answers(history: Iterable[Operation]) -> Iterator[Violation]:
    yield from (Violation("wrong", f"{op.wrong}: {op}", op) for op in history if op.wrong)


def _reads(
    history: Iterable[Operation], writes: Mapping[str, Sequence[Write]], bounded_s: float, old_rows: bool
) -> Iterator[Violation]:
    for read in history:
        if read.outcome != "ok":
            continue
        for name, value in read.got.items():
            every = writes.get(name, ())
            makers = _makers(value, every, read)
            if not makers and value is not None:
                yield Violation("phantom", f"{name}={value} was read: {read}; written: {_story(every)}", read)
                continue
            owed = [write for write in every if write.op.outcome == "ok" and _owed(write.op, read, bounded_s)]
            if _excused(value, old_rows):
                continue
            if owed and all(_overwritten(maker, owed) for maker in makers):
                invariant = "session" if read.level == "Session" else "stale"
                yield Violation(invariant, f"{name}={value} was read: {read}; written: {_story(every)}", read)


def _makers(value: Value, writes: Iterable[Write], read: Operation) -> list[Write]:
    """Writes that a read may have seen."""
    assert read.end is not None
    return [w for w in writes if w.value == value and w.op.outcome != "failed" and w.op.start < read.end]


def _owed(write: Operation, read: Operation, bounded_s: float) -> bool:
    """Whether a read must see an acknowledged write."""
    assert write.end is not None
    if write.client == EVERYWHERE:
        return True
    if read.level == "Session":
        return write.client == read.client and write.end < read.start
    return write.end < read.start - {"Strong": 0.0, "Bounded": bounded_s}.get(read.level, float("inf"))


def _sessions(
    history: Iterable[Operation], writes: Mapping[str, Sequence[Write]], old_rows: bool
) -> Iterator[Violation]:
    last: dict[tuple[str, str], tuple[Operation, Write]] = {}
    for read in history:
        if read.outcome != "ok" or read.level != "Session":
            continue
        for name, value in read.got.items():
            makers = _makers(value, writes.get(name, ()), read)
            earlier, seen = last.get((read.client, name), (None, None))
            after = earlier is not None and earlier.end is not None and earlier.end < read.start
            after = after and not _excused(value, old_rows)
            if after and seen is not None and all(maker.op.before(seen.op) for maker in makers):
                yield Violation("session", f"{name} went back: {read}, after {earlier}", read)
            if value is not None and makers:
                last[read.client, name] = read, makers[0]


def _excused(value: Value, old_rows: bool) -> bool:
    return old_rows and value is not None


# --- calls ------------------------------------------------------------------------------------------------------------


def _deadlines(history: Iterable[Operation]) -> Iterator[Violation]:
    for op in history:
        if op.late_s > SLACK_S:
            yield Violation("deadline", f"{op.late_s:.1f} s late: {op}", op)


def _story(writes: Iterable[Write]) -> str:
    """Writes for a person."""
    told = [f"{write.value} by {write.op.brief}" for write in writes]
    return "; ".join([*(["..."] if len(told) > _TOLD else []), *told[-_TOLD:]]) or "never"
