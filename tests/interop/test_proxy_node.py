"""The Node SDK through the proxy and directly: the same program prints the same answers.

The SDK is installed once and kept with the Python environments of `tests.environments`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from haclient.drill.servers.milvus import StandaloneServer
from tests import environments
from tests.servers.proxy import behind, serving
from tests.servers.shared import LiteFactory

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

HERE = Path(__file__).with_name("node")
#: Ids and times, which differ from one collection to the next; Milvus puts some into texts.
_NUMBERS = re.compile(r"dml_\d+(?:_\d+)?|(?<![\d.])\d{9,}")


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the SDK is in."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm (apt-get install npm)")
    folder = environments.folder(tmp_path_factory) / "node"
    folder.mkdir(parents=True, exist_ok=True)
    wanted, whole = (HERE / "package.json").read_text(), folder / "whole.json"
    if not whole.exists() or whole.read_text() != wanted:
        shutil.copy(HERE / "package.json", folder)
        quietly = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]
        done = subprocess.run([npm, "install", *quietly], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install the SDK: {done.stderr.strip()[-300:]}")
        whole.write_text(wanted)
    return folder / "node_modules"


async def answers(sdk: Path, uri: str, name: str) -> dict[str, Any]:
    """What the program prints, with names for ids."""
    pipe, variables = asyncio.subprocess.PIPE, {**os.environ, "NODE_PATH": str(sdk)}
    command = ["node", str(HERE / "client.js"), uri, name]
    process = await asyncio.create_subprocess_exec(*command, env=variables, stdout=pipe, stderr=pipe)
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2_000:]
    return json.loads(_NUMBERS.sub("N", out.decode()))


async def test_on_lite(sdk: Path, lite_server: LiteFactory) -> None:
    """One after the other: milvus-lite trips over its own files when two change its catalogue."""
    server = await lite_server()
    async with serving(behind([server.uri])) as (_, proxied):
        told = await answers(sdk, proxied, "node_ours")
    assert told == await answers(sdk, server.uri, "node_theirs")
    assert told["count"]["data"] == 35
    assert told["bad filter"]["status"]["code"] == 6


@pytest.mark.live
async def test_on_milvus(sdk: Path, standalone: StandaloneServer) -> None:
    async with serving(behind([standalone.uri])) as (_, proxied):
        both = answers(sdk, proxied, "node_ours"), answers(sdk, standalone.uri, "node_theirs")
        told, direct = await asyncio.gather(*both)
    assert told == direct
    assert told["count"]["data"] == 35
    assert told["unknown collection described"]["status"]["code"] == 100
