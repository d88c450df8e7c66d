"""Which processes of this host are known to have died."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from haclient.replication import alive

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs locks of open files (Linux)")

_PROGRAM = "from haclient.replication.alive import signed; print(signed('process'), flush=True); input()"


@contextmanager
def _process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and its name."""
    command = [sys.executable, "-c", _PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(alive.tempfile, "tempdir", None)
    alive._sign.cache_clear()
    yield
    alive._sign.cache_clear()


def test_a_process_is_dead_once_it_is_killed_and_not_while_it_is_stopped() -> None:
    with _process() as (process, name):
        assert name.startswith("process@")
        assert not alive.is_dead(name)
        process.send_signal(signal.SIGSTOP)
        assert not alive.is_dead(name)
        process.kill()
        process.wait()
        assert alive.is_dead(name)


def test_nothing_is_known_of_a_process_whose_file_was_removed(tmp_path: Path) -> None:
    with _process() as (_, name):
        (file,) = tmp_path.glob("haclient-*.alive")
        file.unlink()
        assert not alive.is_dead(name), "there is no file"
        assert not alive.is_dead(alive.signed("other"))
        assert not alive.is_dead(name), "there is another file"


@pytest.mark.parametrize("name", ["process", "", "process@", "host/1/2@boot/1/2/3", "process@boot/1/2/x"])
def test_nothing_is_known_of_names_that_say_nothing(name: str) -> None:
    alive.signed("there is a file")
    assert not alive.is_dead(name)


def test_nothing_is_signed_where_no_file_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "_path", lambda: tmp_path / "no" / "folder")
    assert alive.signed("process") == "process"
