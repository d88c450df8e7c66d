"""haclient plan: what it prints, what it refuses, and its exit codes."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from haclient.cli import app
from haclient.drill.record import FaultMark, Operation, Trial
from haclient.drill.report.results import About, Result, Results, write_json
from haclient.drill.scenario import FaultPlan, Scenario

GIVEN = ("--mtbf", "30d", "--mttr", "5m")


def run(*line, code=0):
    done = CliRunner().invoke(app, ["plan", *map(str, line)], env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if "--json" in line else done.stdout + done.stderr


@pytest.fixture
def drill(tmp_path):
    """Three faults that last 4 s, led around at once, after 1 s, and not at all; 10 calls a second."""
    trials = [
        Trial(
            scenario="s", engine="lite", seed=seed, seconds=30.0, rate=10.0,
            faults=[FaultMark("crash", "a", 10.0, 14.0)],
            operations=[
                Operation("search" if i % 2 else "upsert", i / 10, i / 10, "failed" if 10 <= i / 10 < until else "ok")
                for i in range(300)
            ],
        )
        for seed, until in enumerate((0, 11, 15))
    ]  # fmt: skip
    scenario = Scenario(name="s", title="", about="", fault=(FaultPlan(kind="crash"),))
    path = tmp_path / "drill.json"
    about = About(engine="lite", started="", haclient="", python="", machine="")
    write_json(path, Results(about, [Result(scenario, trials)]))
    return path


def test_table():
    """A line for reads and writes of each number of copies, what was assumed, and what it means."""
    text = " ".join(run(*GIVEN, "--cost-per-copy", 400).split())
    assert "A copy works for 30 days between failures and is back after 5 min (given)." in text
    assert "1 reads 99.988 % 3.94 60.8 min 5.07 min too few" in text
    assert "2 reads 99.99927 % 5.14 3.82 min" in text
    assert "3 1,200 5.14 adds next to none" in text
    assert "copy number 3 buys next to nothing" in text
    assert "the reads' downtime is mostly that all copies fail at once" in text


def test_json():
    """Seconds and shares, and the parts of the downtime."""
    found = run(*GIVEN, "--copies", 2, "--ack", "all", "--log", "etcd", "--json")
    one, two = found["options"]
    assert found["setting"]["reads"]["mtbf_s"] == 2_592_000
    assert one["reads"]["availability"] == pytest.approx(1 - 300 / (2_592_000 + 300))
    assert sum(two["writes"]["because"].values()) == pytest.approx(1 - two["writes"]["availability"])
    assert two["writes"]["down_s_per_year"] > one["writes"]["down_s_per_year"], "all of two is worse than one"
    assert found["summary"].startswith("One copy: ")


def test_drill(drill):
    """It measures coverage and RTO; what is given wins."""
    measured = run(*GIVEN, "--drill", drill, "--json")["setting"]
    assert measured["reads"]["coverage"] == pytest.approx(2 / 3)
    assert measured["reads"]["rto_s"] == pytest.approx(0.5, abs=0.06)
    assert measured["write_rto_s"] == pytest.approx(0.5, abs=0.06)
    given = run(*GIVEN, "--drill", drill, "--rto", "3s", "--coverage", "100%", "--json")["setting"]
    assert (given["reads"]["rto_s"], given["reads"]["coverage"]) == (3.0, 1.0)
    assert "2 of 3 faults in the drill" in " ".join(run(*GIVEN, "--drill", drill).split())


def test_events(tmp_path):
    """They measure MTBF and MTTR."""
    log = tmp_path / "proxy.log"
    changed = {"event": "EndpointChanged", "endpoint": "e"}
    lines = [("00:00", "up"), ("10:00", "down"), ("11:00", "up")]
    log.write_text(
        "".join(json.dumps({"time": f"2026-11-01T{t}:00.000Z", **changed, "after": a}) + "\n" for t, a in lines)
    )
    found = run("--events", log, "--json")
    assert (found["setting"]["reads"]["mtbf_s"], found["setting"]["reads"]["mttr_s"]) == (36_000.0, 3_600.0)
    assert found["failures"]["failures"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((), "how a copy fails is not known; write for example --mtbf 30d --mttr 5m"),
        (("--mtbf", "30d"), "how a copy fails is not known"),
        (("--mtbf", "30x", "--mttr", "5m"), "'30x' is no duration; write for example 30d"),
        (("--mtbf", "0s", "--mttr", "5m"), "mtbf_s must be greater than 0"),
        ((*GIVEN, "--beta", "5"), "'5' is no share; write for example"),
        ((*GIVEN, "--ack", "two"), "'two'"),
        ((*GIVEN, "--copies", "0"), "--copies"),
        ((*GIVEN, "--drill", "/nowhere.json"), "/nowhere.json: No such file"),
        (("--events", "/nowhere.log"), "events /nowhere.log: No such file"),
        ((*GIVEN, "--events", "/x"), "leave nothing to measure"),
        (("--events", "/x", "--prometheus", "http://x"), "give one of them"),
        (("--prometheus", "x"), "prometheus: is not an address"),
        (("--beta", "3%", "slo", "--target", "99%"), "write the options behind slo"),
        (("slo", "--target", "100%"), "target must be"),
        (("slo", "--target", "99.95"), "'99.95' is no share"),
        (("slo", "--target", "99%", "--window", "5m"), "window must be 1h or more"),
        (("slo", "--target", "99%", "--total", "5"), "--total and --bad"),
        (("slo", "--target", "99%", "--total", "5", "--bad", "6"), "bad must be from 0 to total"),
        (("slo", "--target", "99%", "--total", "5", "--bad", "1", "--prometheus", "http://x"), "give only one of"),
    ],
)
def test_wrong_input(line, message):
    """One message that says what to write, no traceback, exit code 2."""
    text = re.sub(r"[│\s]+", " ", run(*line, code=2))
    assert message in text


def test_prometheus_that_gives_no_answer():
    """That is not the input's fault: exit code 1."""
    for line in ((), ("slo", "--target", "99%")):
        assert "cannot be asked" in run(*line, "--prometheus", "http://127.0.0.1:1", code=1)


def test_budget():
    """Minutes and calls, what is spent, and when somebody is told."""
    text = " ".join(run("slo", "--target", "99.95%", "--total", 1_000_000, "--bad", 120).split())
    assert "21.6 min without an answer, or one call of 2,000" in text
    assert "budget left 76.0%" in text
    assert "page 1h 5m 14.4 0.720% 2.0% 25.9 s" in text


def test_overdrawn_budget():
    """It is said, and the exit code is 1."""
    assert "overdrawn: 2 times" in run("slo", "--target", "99%", "--total", 1000, "--bad", 20, code=1)


def test_budget_of_a_drill(drill):
    """60 of 900 calls failed."""
    found = run("slo", "--target", "90%", "--drill", drill, "--json")
    assert found["calls"] == {"total": 900, "bad": 60, "allowed": pytest.approx(90)}
    assert found["burn"] == pytest.approx(60 / 90)


def test_rules():
    """Only the rules, so that they can be written to a file."""
    found = yaml.safe_load(run("slo", "--target", "99.9%", "--window", "7d", "--rules"))
    assert found["groups"][0]["name"] == "haclient-slo"
