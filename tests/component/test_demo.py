"""`haclient demo` for real: three milvus-lite servers, every fault, nothing left behind."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from haclient.drill import demo
from haclient.drill.demo import DemoOptions, run
from haclient.drill.servers.lite import LiteServer, ServerNotStarted


def servers_in(folder: Path) -> list[int]:
    """Process ids of the servers whose data is below a folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process.info["pid"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_demo_answers_everything(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every question is answered rightly through every fault; exit code 0; no process and no folder is left."""
    if loop == "asyncio":
        monkeypatch.setattr(demo, "_loop_factory", lambda: None)
    else:
        pytest.importorskip("uvloop")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = io.StringIO()
    code = run(DemoOptions(seconds=15, json=True), Console(file=out, width=100))
    result = json.loads(capsys.readouterr().out)
    assert code == 0, out.getvalue()
    assert result["loop"] == loop
    assert result["asked"] == result["answered"] >= 300
    assert (result["failed"], result["wrong"], result["problems"]) == (0, 0, [])
    assert [fault["what"] for fault in result["faults"]] == ["kill", "freeze", "thaw", "restart", "release"]
    assert len(result["answers"]) >= 2
    assert f"{result['asked']} questions asked" in out.getvalue()
    assert not servers_in(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "after"),
    [(signal.SIGINT, "Three milvus-lite servers"), (signal.SIGTERM, r" *\d+\.\d s ! [abc] killed")],
)
def test_stopped(stop: signal.Signals, after: str, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM end it at once with code 130, without a traceback, a server or a folder left."""
    with subprocess.Popen(
        [sys.executable, "-m", "haclient.cli", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if re.match(after, line):
                    break
            assert len(servers_in(tmp_path)) >= 2
            process.send_signal(stop)
            rest, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert "all servers are gone" in rest
    assert not servers_in(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What went wrong is said, the exit code is 1, and the servers that did start are gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def refuse(self: LiteServer) -> None:
        await asyncio.sleep(0.5)
        raise ServerNotStarted(f"{self.name} will not [start]")

    monkeypatch.setattr(LiteServer, "wait_ready", refuse)
    out = io.StringIO()
    assert run(DemoOptions(), Console(file=out, width=100)) == 1
    assert re.search(r"The demo could not run: [abc] will not \[start\]", out.getvalue())
    assert not servers_in(tmp_path)


def test_keep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``keep`` the folder stays, and is named."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def refuse(self: LiteServer) -> None:
        raise ServerNotStarted("no")

    monkeypatch.setattr(LiteServer, "wait_ready", refuse)
    out = io.StringIO()
    assert run(DemoOptions(keep=True), Console(file=out, width=200)) == 1
    (folder,) = tmp_path.iterdir()
    assert str(folder) in out.getvalue()
