"""What the benches share: records of requests, tables, processes and their CPU time."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BENCH = Path(__file__).parent
ROOT = BENCH.parent
sys.path.insert(0, str(ROOT))

from haclient.drill.measure import quantile  # noqa: E402 - found by the line above


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are ``time.monotonic()``, which all processes of a machine share."""

    start: float  # when it should have started
    late: float  # by how much our own timer was late
    latency: float  # from `start` to the answer
    outcome: str  # "ok", "wrong", "empty", or the error's class


def summary(samples: Iterable[Sample]) -> dict[str, Any]:
    """Share answered rightly, and the latencies of those in milliseconds."""
    every = list(samples)
    good = sorted(s.latency * 1e3 for s in every if s.outcome == "ok")
    row: dict[str, Any] = {"requests": len(every), "answered_pct": round(100 * len(good) / max(1, len(every)), 2)}
    for name, q in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999), ("max_ms", 1.0)):
        row[name] = round(quantile(good, q), 1) if good else None
    row["late_p99_ms"] = round(quantile(sorted(s.late * 1e3 for s in every), 0.99), 1) if every else None
    return row


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown; numbers to the right."""
    text = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(heading), *(len(row[i]) for row in text)) for i, heading in enumerate(headings)]
    right = [all(row[i][:1].isdigit() or row[i][:1] in "-~<>" for row in text) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True))
    return "\n".join([line(headings), f"|{rule}|", *map(line, text)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    return str(value)


def finish(bench: str, targets: dict[str, bool], **figures: Any) -> None:
    """Print which targets were met, and the JSON line every bench ends with."""
    print()
    for target, met in targets.items():
        print(f"- {'met' if met else 'MISSED'}: {target}")
    print(json.dumps({"bench": bench, **figures, "targets": targets}))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


class Child:
    """A Python process that takes commands as JSON lines and answers each with one; used for clients and servers."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.pid = self._process.pid

    @functools.cached_property
    def hello(self) -> Any:
        """What it says once it has started."""
        return self.answer()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with code {self._process.wait()}")
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        """Send a command and wait for its answer."""
        assert self.hello
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self.answer()

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


async def commands() -> asyncio.StreamReader:
    """The commands that a `Child` is sent."""
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def say(value: Any) -> None:
    """Answer a command."""
    print(json.dumps(value), flush=True)


def run(work: Awaitable[Any], loop: str = "asyncio") -> Any:
    """Run a coroutine on asyncio's own loop or on uvloop."""
    if loop == "uvloop":
        import uvloop

        return uvloop.run(work)
    return asyncio.run(work)
