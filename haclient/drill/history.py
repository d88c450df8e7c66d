"""What was done to the fleet, as its clients saw it: a file for each process, a line at each start and at each end.

Decision made here: every write is a set of *registers* that get new values: a row of the collection with the users' own
keys, a row of the auto_id collection (named by its version, since its key is not known before), a collection, a
partition, an alias. None is "not there". So one rule judges rows and definitions, upserts and deletes alike.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, final

Value = int | str | None
#: ``failed``: certainly not done, and never will be. ``unknown``: nobody said.
Outcome = Literal["ok", "failed", "unknown"]
#: Clients' limits of time are kept but for what a busy machine adds, seconds.
SLACK_S: Final = 3.0


@final
@dataclass(slots=True)
class Operation:
    """One call of a client.

    Attributes:
        client: Which process made it; a session is all that one process does.
        kind: What it was.
        start: When it began, ``time.monotonic``, which all processes of a machine share.
        due: When it was to begin; later than that it begins if its process is busy.
        timeout_s: Its limit.
        sets: Of a write: the registers it gives new values.
        level: Of a read: the consistency level.
        end: When its outcome was known; None if it never was.
        outcome: What became of it.
        seq: Its number in the log, 0 if unknown.
        got: Of a read: the values found.
        keys: Of an insert with auto_id: the key that each register's row got.
        error: What was raised.
        wrong: What is wrong with the answer by itself, "" if nothing is.
        attempts: Requests that the client sent for it.
        stalled_s: How long its process did not run meanwhile.
    """

    client: str
    kind: str
    start: float
    timeout_s: float = 10.0
    due: float = 0.0
    sets: Mapping[str, Value] = field(default_factory=dict)
    level: str = ""
    end: float | None = None
    outcome: Outcome = "unknown"
    seq: int = 0
    got: Mapping[str, Value] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    error: str = ""
    wrong: str = ""
    attempts: int = 0
    stalled_s: float = 0.0

    @property
    def sure(self) -> bool:
        """Whether it was done, or is in the log and so will be."""
        return self.outcome == "ok" or (self.outcome == "unknown" and self.seq > 0)

    @property
    def late_s(self) -> float:
        """By how much it outlived its limit, seconds."""
        return 0.0 if self.end is None else self.end - self.start - self.timeout_s - self.stalled_s

    def before(self, other: Operation) -> bool:
        """Whether it surely took effect before the other: by the log's order, else by the clock."""
        if self.seq and other.seq and self.seq != other.seq:
            return self.seq < other.seq
        return self.outcome == "ok" and self.end is not None and self.end < other.start

    @property
    def brief(self) -> str:
        """All but the registers, for a person."""
        end = "never" if self.end is None else f"{self.end:.3f}"
        error = f" ({self.error.splitlines()[0]})" if self.error else ""
        return f"{self.kind} by {self.client} {self.start:.3f}..{end} {self.outcome} seq={self.seq}{error}"

    def __str__(self) -> str:
        what = " ".join(f"{name}={value}" for name, value in (self.sets or self.got).items())
        return f"{self.level} {self.brief} {what}".lstrip()


@final
@dataclass(frozen=True, slots=True)
class Notice:
    """What the client itself said that it had noticed: one of its events.

    Attributes:
        client: Which process said so.
        at: When, ``time.monotonic``.
        event: Its class (`haclient.events`).
        about: The names in it: cluster and endpoint, as far as it has them.
        text: All of it, for a person.
    """

    client: str
    at: float
    event: str
    about: tuple[str, ...]
    text: str


@final
class Recorder:
    """Writes one process' history; a line is written at once or not at all, whatever kills the process.

    Args:
        path: The file.
        client: The name of the session.
    """

    def __init__(self, path: Path, client: str) -> None:
        self.client = client
        #: How long this process has not run so far, seconds; its owner keeps it.
        self.stalled_s = 0.0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._count = 0

    def ready(self) -> None:
        """Note that the client has started."""
        self._write({"ready": self.client})

    def record(self, operation: Operation) -> Record:
        """Note the start of an operation; a context manager around it that notes the end."""
        self._count += 1
        return Record(self, self._count, operation)

    def notice(self, event: str, about: tuple[str, ...], text: str) -> None:
        """Note an event of the client."""
        self._write({"event": event, "at": time.monotonic(), "about": about, "text": text, "client": self.client})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: Mapping[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


@final
class Record:
    """One operation under way; what leaves the block without an outcome has none."""

    def __init__(self, recorder: Recorder, number: int, operation: Operation) -> None:
        self.operation = operation
        self._recorder = recorder
        self._number = number
        self._stalled_s = recorder.stalled_s

    def __enter__(self) -> Self:
        op = self.operation
        start = {name: getattr(op, name) for name in ("client", "kind", "start", "timeout_s", "due", "sets", "level")}
        self._recorder._write({"op": self._number, **start})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        op = self.operation
        op.end, op.stalled_s = time.monotonic(), self._recorder.stalled_s - self._stalled_s
        told = ("end", "outcome", "seq", "got", "keys", "error", "wrong", "attempts", "stalled_s")
        self._recorder._write({"op": self._number, **{name: getattr(op, name) for name in told}})


def load(paths: Iterable[Path]) -> list[Operation]:
    """Read the histories of several processes, in the order of their starts."""
    operations: list[Operation] = []
    for path in paths:
        known: dict[int, Operation] = {}
        for values in _lines(path):
            if (number := values.pop("op", None)) is None:
                continue
            if number not in known:
                known[number] = Operation(**values)
            else:
                for name, value in values.items():
                    setattr(known[number], name, value)
        operations += known.values()
    return sorted(operations, key=lambda op: op.start)


def notices(paths: Iterable[Path]) -> list[Notice]:
    """Read what the clients said that they had noticed, in the order of time."""
    found = [line for path in paths for line in _lines(path) if "event" in line]
    return sorted((Notice(**{**line, "about": tuple(line["about"])}) for line in found), key=lambda one: one.at)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, path.read_bytes().splitlines())
