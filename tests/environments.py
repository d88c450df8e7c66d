"""Python environments of their own, for packages that cannot live beside the others.

An environment is made once and kept in ``HACLIENT_COMPAT_DIR`` (default: a folder of the test run). Where it cannot
be made (no network), the test is skipped and says why.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where environments are kept."""
    return Path(os.environ.get("HACLIENT_COMPAT_DIR") or tmp_path_factory.getbasetemp() / "environments")


def environment(where: Path, wanted: Sequence[str], extras: str = "") -> Path:
    """Return the Python of an environment with haclient and these packages, making it if need be.

    Args:
        where: Its folder.
        wanted: What pip is told to install, beside haclient itself.
        extras: Those of haclient, separated by commas.
    """
    python = where / "bin" / "python"
    options = [*wanted, "-e", f"{ROOT}[{extras}]" if extras else str(ROOT)]
    whole, packages = where / "whole.json", json.dumps(options)
    if whole.exists() and whole.read_text() == packages:
        return python
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if Path(uv).exists():
        steps = [
            [uv, "venv", "-q", "--clear", "--python", sys.executable, str(where)],
            [uv, "pip", "install", "-q", "--python", str(python), *options],
        ]
    else:
        steps = [
            [sys.executable, "-m", "venv", "--clear", str(where)],
            [str(python), "-m", "pip", "install", "-q", *options],
        ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no environment with {' '.join(wanted)}: {done.stderr.strip()[-300:]}")
    whole.write_text(packages)
    return python
