"""The commands for replicated writes: what they print, what they hide, and their exit codes; without any server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pymilvus.grpc_gen import milvus_pb2
from rich.console import Console
from typer.testing import CliRunner

from haclient import replication_table
from haclient.cli import app
from haclient.config import Config
from haclient.replication.audit import Audited, Report
from haclient.replication.engines import open_log
from haclient.replication.log import BARRIER, Mutation, MutationLog
from haclient.replication.position import POSITION, Parked, Position, Standing
from haclient.replication.refusals import REFUSED, Refusal
from haclient.replication.repair import Repaired
from haclient.replication.reseed import Advance
from haclient.replication.verify import Differing, Verified
from tests.servers import memory_clusters as memory

SECRET = "hunter2-in-base64"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two clusters that nobody serves, and a log in which b has stopped at entry 2."""
    file = tmp_path / "haclient.toml"
    clusters = "".join(
        f'[[cluster]]\nname = "{name}"\nendpoints = ["http://127.0.0.1:{port}"]\n'
        for port, name in ((1, "a"), (2, "b"))
    )
    file.write_text(f'{clusters}[replication]\nmode = "mirror"\nlog = "{tmp_path / "mutations.log"}"\n')
    asyncio.run(_fill(file))
    return file


async def _fill(file: Path) -> None:
    log = await opened(file)
    user = milvus_pb2.CreateCredentialRequest(username="ann", password=SECRET).SerializeToString()
    docs = ("", "docs")
    await log.append(
        [
            Mutation(b"1" * 16, "Upsert", docs, memory.rows("docs", dict.fromkeys(range(30), SECRET))),
            Mutation(b"2" * 16, "Delete", docs, memory.delete("docs", [7])),
            Mutation(b"3" * 16, "CreateCredential", BARRIER, user),
        ]
    )
    here = Position(low=3, begun=3)
    stopped = Position(low=3, begun=3, parked={docs: Parked(2, "no such collection [docs]")})
    refused = Refusal({"b": "no such collection [docs]"}).encode()
    await log.put({f"{POSITION}a": here.encode(), f"{POSITION}b": stopped.encode(), f"{REFUSED}2": refused})
    await log.aclose()


async def opened(file: Path) -> MutationLog:
    log = open_log(Config.load(None, file).replication, lambda: 1_700_000_000.0)
    await log.open()
    return log


def run(file: Path, *line: str) -> tuple[int, Any, str]:
    done = CliRunner().invoke(app, [*line, "--config", str(file)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout) if "--json" in line else done.stdout, done.stderr


def facts(file: Path, prefix: str) -> dict[str, bytes]:
    async def read() -> dict[str, bytes]:
        log = await opened(file)
        found = {name: fact.value for name, fact in (await log.facts(prefix)).items()}
        await log.aclose()
        return found

    return asyncio.run(read())


def test_show_says_how_far_every_cluster_is_and_that_all_is_not_well(file: Path) -> None:
    code, view, _ = run(file, "log", "show", "--json")
    assert code == 1
    assert view["bounds"]["head"] == 3
    assert view["clusters"][0]["standing"] == Standing.IN_SYNC.value
    assert view["clusters"][1]["parked"] == {"default.docs": [2, "no such collection [docs]"]}
    code, text, _ = run(file, "log", "show")
    assert code == 1
    assert "default.docs at 2" in text
    assert "entries 1 to 3" in text


def test_inspect_shows_keys_and_names_and_no_secret(file: Path) -> None:
    shown = [run(file, "log", "inspect", str(seq), "--json")[1][0] for seq in (1, 2, 3)]
    assert shown[0]["rows"] == 30
    assert shown[0]["keys"] == list(range(20))
    assert shown[1]["keys"] == [7]
    assert shown[1]["refused"] == shown[1]["parked"] == {"b": "no such collection [docs]"}
    assert shown[2]["about"] == {"username": "ann"}
    assert shown[2]["stream"] == "all"
    printed = "".join(run(file, "log", "inspect", str(seq), *more)[1] for seq in (1, 2, 3) for more in ((),))
    assert SECRET not in printed + json.dumps(shown)
    assert "2023-11-14" in printed


def test_inspect_finds_what_has_stopped(file: Path) -> None:
    code, views, _ = run(file, "log", "inspect", "--parked", "--json")
    assert (code, [view["seq"] for view in views]) == (0, [2])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (("log", "inspect", "4"), "the log does not hold entry 4: it holds 1 to 3"),
        (("log", "inspect"), "give either the number of an entry or --parked"),
        (("log", "inspect", "1", "--parked"), "give either the number of an entry or --parked"),
        (
            ("log", "skip", "b", "3"),
            "no collection of cluster 'b' has stopped at entry 3; stopped are: default.docs at 2",
        ),
        (("log", "skip", "a", "2"), "nothing has stopped there"),
        (("log", "retry", "b", "notes"), "collection 'notes' of cluster 'b' has stopped"),
        (("verify", "--from", "a"), "give both"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file: Path, line: tuple[str, ...], error: str) -> None:
    code, _, stderr = run(file, *line)
    assert code == 2
    assert error in stderr
    assert "Traceback" not in stderr


def test_the_operators_decision_is_left_for_the_applier(file: Path) -> None:
    assert run(file, "log", "skip", "b", "2") == (0, "b: default.docs goes on behind entry 2\n", "")
    assert {name: json.loads(value) for name, value in facts(file, "operator/").items()} == {
        "operator/b/2": {"action": "skip"}
    }
    assert run(file, "log", "retry", "b", "docs") == (0, "b: default.docs is tried again\n", "")
    assert json.loads(facts(file, "operator/")["operator/b/2"]) == {"action": "retry"}


def test_without_a_log_there_is_nothing_to_show(tmp_path: Path) -> None:
    file = tmp_path / "haclient.toml"
    file.write_text('[[cluster]]\nname = "a"\nendpoints = ["http://127.0.0.1:1"]\n')
    code, _, error = run(file, "log", "show")
    assert code == 2
    assert "replication.log is not set" in error


def test_a_reseed_asks_before_it_drops_anything(file: Path) -> None:
    done = CliRunner().invoke(app, ["reseed", "b", "--config", str(file)], input="n\n")
    assert done.exit_code == 1
    assert "Everything in cluster b that its donor has not is dropped" in done.stdout
    assert facts(file, "operator/") == {}


def text_of(shown: Any) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_what_differs_is_shown_by_cluster_and_as_text_only() -> None:
    found = Verified(
        "", "docs", "a", {"a": 10, "b": 9}, 8, {"b": Differing(missing=1)}, left_out={"c": "it is [b]away"}
    )
    found.differing["b"].keys["missing"].append("[red]key\x1b")
    report = Report([Audited(found, Repaired({"b": 1}, {"b": 2}), failure="one cannot be told")], rows=19, seconds=2.0)
    text = text_of(replication_table.verified(report))
    assert "default.docs" in text
    assert "'[red]key\\x1b'" in text
    assert "left out: it is [b]away" in text
    assert "mended on b: 1 rows written, 2 deleted" in text
    assert "not the same; 19 rows read in 2.0 s" in text


def test_progress_tells_rate_and_time_left() -> None:
    now = Advance("a", collections=1, of=3, rows=600, expected=1_600, size=5_000_000, fresh=500, seconds=2.0)
    assert replication_table.advance(now) == "1 of 3 collections, 600 rows, 5.0 MB, 250 rows/s, 4 s left"
    assert Advance("a").left_s is None
    done = replication_table.reseeded("b", Advance("a", rows=5, notes=["user ann is missing"]))
    assert "note: user ann is missing" in text_of(done)
