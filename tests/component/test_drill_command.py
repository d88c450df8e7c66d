"""``haclient drill`` as it is run: on a fleet of its own, and on one that is there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from haclient import AsyncMilvusClient, CallError
from haclient.drill.rows import connect
from tests.servers.shared import LiteFactory, ToxicFactory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHORT = """
title = "short"
about = "Short."
[load]
seconds = 4
[[fault]]
at = [1, 2]
lasts = 1
"""


def scenario(folder: Path, name: str, kind: str) -> str:
    """A file with a short scenario of one fault."""
    file = folder / f"{name}.toml"
    file.write_text(f'{SHORT}kind = "{kind}"\n')
    return str(file)


def drill(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-P", "-c", "from haclient.cli import main; main()", "drill"]
    return subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, timeout=280)


def trial_of(result: dict[str, Any]) -> dict[str, Any]:
    (trial,) = result["trials"]
    assert not trial["error"]
    (fault,) = trial["faults"]
    assert 1 <= fault["began"] < fault["healed"] < trial["seconds"]
    return trial


def test_a_fleet_of_its_own(tmp_path: Path) -> None:
    """One crash: what is written down, and an exit code that says the same."""
    results, junit, keep = tmp_path / "results.json", tmp_path / "junit.xml", tmp_path / "keep"
    wanted = scenario(tmp_path, "short-crash", "crash")
    done = drill(wanted, "--json", str(results), "--junit", str(junit), "--keep", str(keep))
    found = json.loads(results.read_bytes())
    assert done.returncode == (0 if found["kept"] else 1), done.stderr
    trial = trial_of(found["results"][0])
    assert {op["kind"] for op in trial["operations"]} == {"search", "query", "upsert", "delete"}
    assert trial["faults"][0]["detected"] is not None
    assert trial["audit"]["acknowledged"] > 0
    assert (trial["audit"]["lost"], trial["audit"]["duplicates"], trial["audit"]["differing"]) == (0, 0, 0)
    assert "short-crash" in done.stdout
    assert ElementTree.parse(junit).getroot().iter("testcase")
    assert list(keep.glob("short-crash-1/*.history"))


async def test_a_fleet_that_is_there(tmp_path: Path, lite_server: LiteFactory) -> None:
    """Only what can be taken back is done, and nothing is left behind."""
    servers = [await lite_server(name=name) for name in "ab"]
    clusters = "".join(f'[[cluster]]\nname = "{one.name}"\nendpoints = ["{one.uri}"]\n' for one in servers)
    file, results = tmp_path / "haclient.toml", tmp_path / "results.json"
    file.write_text(f'{clusters}[replication]\nmode = "mirror"\nlog = "log.db"\n')
    wanted = [scenario(tmp_path, f"short-{kind}", kind) for kind in ("crash", "release")]
    done = drill(*wanted, "--config", str(file), "--yes-break-my-fleet", "--json", str(results))
    found = json.loads(results.read_bytes())
    assert done.returncode == (0 if found["kept"] else 1), done.stderr
    assert "short-crash: refused: crash needs a shell on the servers' hosts" in done.stderr
    (released,) = found["results"]
    trial = trial_of(released)
    assert trial["engine"] == "staging"
    assert (trial["audit"]["lost"], trial["audit"]["differing"]) == (0, 0)
    for server in servers:
        assert server.alive
        client = connect(server.uri)
        assert not [name for name in client.list_collections() if name.startswith("drill")]
        client.close()


async def test_a_request_that_trips(lite_server: LiteFactory, toxic: ToxicFactory) -> None:
    """Some words in a request, and it does not arrive, and somebody is told; until that is lifted."""
    server = await lite_server()
    link = await toxic(server.port)
    tripped: list[int] = []
    link.trip(b"some_words", lambda: tripped.append(link.reset_all()))
    async with AsyncMilvusClient(link.uri) as client:
        assert not await client.has_collection("others")
        assert not tripped
        with pytest.raises(CallError):
            await client.has_collection("some_words", timeout=1)
        assert tripped
        await link.heal()
        assert not await client.has_collection("some_words")
