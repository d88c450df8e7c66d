"""``haclient failover`` and what ``haclient status`` says of another site, without servers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from haclient.cli import app
from haclient.cli.sites import placed
from haclient.config import Config
from haclient.errors import ConfigError
from haclient.fleet.model import ClusterView, FleetView
from haclient.replication.clusters import Member
from haclient.replication.engines import open_log
from haclient.replication.log import Mutation
from haclient.replication.position import POSITION, Position
from haclient.replication.roles import decided

FLEET = """
[[cluster]]
name = "a"
endpoints = ["http://127.0.0.1:1"]

[[cluster]]
name = "far"
endpoints = ["http://127.0.0.1:2"]
asynchronous = true

[replication]
mode = "mirror"
log = "mutations.log"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "haclient.toml"
    path.write_text(FLEET)
    return path


def command(*line: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["failover", *line])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout, done.stderr


async def lagging(file: Path) -> None:
    """A log of three entries, of which the far cluster has one."""
    log = open_log(Config.from_file(file).replication, lambda: 1_000.0)
    await log.open()
    try:
        await log.append([Mutation(bytes(15) + bytes([i]), "Upsert", ("", "docs"), b"row") for i in range(3)])
        await log.put({POSITION + "a": Position(low=3).encode(), POSITION + "far": Position(low=1, follows=0).encode()})
    finally:
        await log.aclose()


def test_roles_and_lags_are_listed(file: Path) -> None:
    asyncio.run(lagging(file))
    code, out, _ = command("--list", "--config", str(file), "--json")
    told = {one["name"]: one for one in json.loads(out)["clusters"]}
    assert code == 0
    assert (told["a"]["counts"], told["a"]["entries"], told["a"]["seconds"]) == (True, 0, 0.0)
    assert (told["far"]["counts"], told["far"]["entries"]) == (False, 2)
    assert told["far"]["seconds"] > 1_000
    code, out, _ = command("--list", "--config", str(file))
    assert "a: counts; in sync\n" in out
    assert "far: follows; in sync, 2 entries behind, the oldest " in out


def test_a_role_that_is_not_the_configured_one_is_shown(file: Path) -> None:
    async def decide() -> None:
        log = open_log(Config.from_file(file).replication, lambda: 1_000.0)
        await log.open()
        await log.put(decided([Member("a"), Member("far")], ["far"]))
        await log.aclose()

    asyncio.run(decide())
    out = command("--list", "--config", str(file))[1]
    assert "a: follows, which is not what it is configured as; new\n" in out
    assert "far: counts, which is not what it is configured as; new\n" in out


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ((), "name the clusters that are to count"),
        (("far", "--list"), "name the clusters that are to count"),
        (("far", "--yes"), "the mutation log is new"),
        (("far", "a", "--force", "--yes"), "a new log begins with one cluster"),
        (("nowhere", "--force", "--yes"), "there is no cluster 'nowhere'; write one of a, far"),
    ],
)
def test_wrong_input_changes_nothing(file: Path, line: tuple[str, ...], text: str) -> None:
    code, _, error = command(*line, "--config", str(file))
    assert code == 2
    assert text in error


def test_a_fleet_without_a_log_cannot_fail_over(tmp_path: Path) -> None:
    path = tmp_path / "plain.toml"
    path.write_text('[[cluster]]\nname = "a"\nendpoints = ["http://127.0.0.1:1"]\n')
    code, _, error = command("--list", "--config", str(path))
    assert (code, "replication.log is not set" in error) == (2, True)


async def test_status_shows_how_far_each_cluster_is(file: Path) -> None:
    await lagging(file)
    config = Config.from_file(file)
    view = FleetView(tuple(ClusterView(name, "", 0, 1.0, ()) for name in ("a", "far")), 0.0)
    main, far = (await placed(config, view)).clusters
    assert (main.standing, main.lag, main.asynchronous, main.lag_s) == ("in_sync", 0, False, None)
    assert (far.standing, far.lag, far.asynchronous) == ("in_sync", 2, True)
    assert far.lag_s is not None
    assert far.lag_s > 1_000


async def test_status_makes_no_log(file: Path) -> None:
    view = FleetView((ClusterView("a", "", 0, 1.0, ()),), 0.0)
    assert await placed(Config.from_file(file), view) == view
    assert not (file.parent / "mutations.log").exists()


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ('mode = "mirror"', 'mode = "none"', r"cluster\[1\].asynchronous: is given but nothing is mirrored"),
        ('name = "a"', 'name = "a"\nasynchronous = true', "are all asynchronous; at least one"),
    ],
)
def test_a_configuration_in_which_nobody_counts_is_refused(file: Path, before: str, after: str, text: str) -> None:
    file.write_text(FLEET.replace(before, after))
    with pytest.raises(ConfigError, match=text):
        Config.from_file(file)
