"""The LlamaIndex adapter's tests, in an environment of their own: its Milvus store goes with pymilvus 2.6 only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import environments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("cluster")]

TOOLS = ("pytest>=8.3", "pytest-asyncio>=1.4", "pytest-timeout", "pytest-xdist", "hypothesis", "psutil")
FILES = ("test_llama_index_retriever.py", "test_llama_index_store.py")


def run_there(folder: Path, *options: str, **variables: str) -> None:
    """Run tests in that environment."""
    python = environments.environment(folder / "llama-index", TOOLS, "demo,llama-index")
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-n", "0", *(f"tests/component/{file}" for file in FILES), *options],
        cwd=environments.ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]


def test_in_an_environment_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    run_there(environments.folder(tmp_path_factory))
