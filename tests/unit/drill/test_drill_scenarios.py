"""The shipped scenarios and the faults they are made of; what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from haclient.cli import app
from haclient.drill import staging
from haclient.drill.faults import FAULTS, check
from haclient.drill.run import refuse
from haclient.drill.scenario import FaultPlan, Load, Scenario, Topology, load, shipped
from haclient.errors import ConfigError

#: What somebody who looks for one of these finds.
NAMES = {
    "all-down", "black-hole", "crash", "drained", "empty-disk", "flapping", "full-disk", "hang", "log-leader-killed",
    "one-way", "partition", "poisoned-request", "proxy-killed", "released", "reset", "rolling-upgrade", "site-loss",
    "slow", "write-blocked", "writer-killed", "wrong-data",
}  # fmt: skip


def scenario(*faults: FaultPlan, topology: Topology | None = None, **load: float) -> Scenario:
    topology = topology or Topology()
    return Scenario(name="mine", title="mine", about="mine", topology=topology, fault=faults, load=Load(**load))


class TestShipped:
    """All of them can be run, and every fault is in one."""

    def test_they_are_there(self) -> None:
        assert set(shipped()) == NAMES

    @pytest.mark.parametrize("name", sorted(NAMES))
    def test_it_can_be_run_with_the_servers_it_names(self, name: str) -> None:
        one = load(shipped()[name])
        assert one.fault
        assert one.title
        for engine in one.engines:
            assert not refuse(one, engine)

    def test_every_fault_is_in_one_of_them(self) -> None:
        used = {plan.kind for path in shipped().values() for plan in load(path).fault}
        assert used == set(FAULTS)

    @pytest.mark.parametrize("name", sorted(NAMES - {"wrong-data", "full-disk", "all-down"}))
    def test_a_single_fault_may_cost_no_read_and_two_seconds_of_writes(self, name: str) -> None:
        expect = load(shipped()[name]).expect
        assert (expect.failed_reads, expect.lost, expect.stale) == (0, 0, 0)
        assert expect.read_rto_s == 1.0
        assert expect.write_rto_s == 2.0

    @pytest.mark.parametrize("name", sorted(NAMES))
    def test_nothing_acknowledged_may_ever_be_lost(self, name: str) -> None:
        assert load(shipped()[name]).expect.lost == 0


class TestRefused:
    """What no scenario can be, told before anything is started."""

    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            (FaultPlan(kind="earthquake"), "not known; write one of crash"),
            (FaultPlan(kind="slow", target="client"), "write one of cluster"),
            (FaultPlan(kind="slow", settings={"late": 1}), "write one of latency_s"),
            (FaultPlan(kind="crash", settings={"late": 1}), "it has none"),
        ],
    )
    def test_a_fault_that_cannot_be_done(self, plan: FaultPlan, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            check(plan)

    def test_a_full_disk_needs_a_log_on_a_disk(self) -> None:
        with pytest.raises(ConfigError, match='needs log = "sqlite"'):
            refuse(scenario(FaultPlan(kind="full-disk", target="log"), topology=Topology(log="etcd3")), "lite")

    def test_writes_need_a_log(self) -> None:
        with pytest.raises(ConfigError, match="set upsert and delete to 0"):
            refuse(scenario(topology=Topology(log="")), "lite")
        assert not refuse(scenario(topology=Topology(log=""), upsert=0, delete=0), "lite")

    def test_a_server_that_cannot_have_it(self) -> None:
        assert "lite" in refuse(load(shipped()["write-blocked"]), "lite")
        assert not refuse(load(shipped()["write-blocked"]), "milvus")

    def test_a_file_that_is_no_scenario(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text('title = "mine"\nabout = "mine"\n[load]\nrate = -1\nspeed = 2\n')
        with pytest.raises(ConfigError) as caught:
            load(file)
        assert "load.rate" in str(caught.value)
        assert "load.speed" in str(caught.value)


class TestSomebodysFleet:
    """On a fleet that is there already only what can be taken back."""

    def test_what_is_done_to_it(self) -> None:
        done = {name for name, path in shipped().items() if not staging.refuse(load(path))}
        assert done == {"black-hole", "drained", "flapping", "one-way", "partition", "released", "reset", "slow"}

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("crash", "needs a shell"),
            ("full-disk", "needs a shell"),
            ("poisoned-request", "needs a shell"),
            ("wrong-data", "could not put right"),
        ],
    )
    def test_what_is_refused_and_why(self, name: str, words: str) -> None:
        assert words in staging.refuse(load(shipped()[name]))

    def test_the_log_is_not_touched(self) -> None:
        assert "nothing but the load's own way" in staging.refuse(scenario(FaultPlan(kind="slow", target="log")))

    def test_nobody_writes_where_nothing_is_mirrored(self, tmp_path: Path) -> None:
        file = tmp_path / "haclient.toml"
        clusters = '[[cluster]]\nname = "a"\nendpoints = ["http://h:1"]\n'
        file.write_text(clusters)
        reading = staging.fitted(scenario(), file).load
        assert (reading.upsert, reading.delete, reading.search) == (0, 0, Load().search)
        file.write_text(f'{clusters}[replication]\nmode = "mirror"\nlog = "log.db"\n')
        assert staging.fitted(scenario(), file).load == Load()

    def test_what_its_load_is_configured_with(self, tmp_path: Path) -> None:
        """Its own clusters, by their names; paths and names of variables as the file means them."""
        file = tmp_path / "haclient.toml"
        file.write_text(
            '[[cluster]]\nname = "a"\nendpoints = ["http://h:1"]\ntoken = "${DRILL_TOKEN}"\n'
            '[replication]\nmode = "mirror"\nlog = "log.db"\n[proxy]\nworkers = 2\n'
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DRILL_TOKEN", "root:secret")
            fleet = staging.StagingFleet(file, tmp_path / "work", Topology(clients=2))
        config = fleet.config(direct=True)
        assert config["replication"]["log"] == str(tmp_path / "log.db")
        assert config["cluster"][0]["token"] == "${DRILL_TOKEN}", "no secret is written to the load's files"
        assert "proxy" not in config
        assert (fleet.topology.clients, fleet.topology.clusters, fleet.topology.log) == (2, 1, "sqlite")


class TestCommand:
    """What the command says to wrong input."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["earthquake"], "is not known; write a file.toml, all, or one of all-down"),
            (["crash", "--config", "haclient.toml"], "--yes-break-my-fleet"),
            (["crash", "--yes-break-my-fleet"], "--config"),
            (["nowhere.toml"], "nowhere.toml"),
            (["write-blocked"], "write-blocked: refused"),
        ],
    )
    def test_wrong_input(self, arguments: list[str], words: str) -> None:
        done = CliRunner().invoke(app, ["drill", *arguments])
        assert done.exit_code == 2
        assert words in done.stderr

    def test_a_folder_that_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = CliRunner().invoke(app, ["drill", "crash", "--keep", str(tmp_path)])
        assert done.exit_code == 2
        assert "not empty" in done.stderr
        assert list(tmp_path.iterdir()) == [tmp_path / "file"]

    def test_a_list(self) -> None:
        done = CliRunner().invoke(app, ["drill", "--list"])
        assert done.exit_code == 0
        assert all(name in done.stdout for name in NAMES)
