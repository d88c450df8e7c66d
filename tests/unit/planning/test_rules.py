"""Prometheus' rules and Grafana's dashboard: right PromQL, over metrics and labels that haclient really has."""

import importlib.util
import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import promql_parser
import pytest
import yaml

from haclient.listeners.labels import outcome_label
from haclient.planning import rules, slo
from haclient.proxy import totals
from tests.unit.planning.exported import exported

ROOT = Path(__file__).parents[3]
PROMETHEUS, GRAFANA = ROOT / "examples" / "prometheus", ROOT / "examples" / "grafana"
#: Given by Prometheus to whatever it scrapes.
SCRAPED = {"job", "instance"}


EXPORTED = exported()


def documents() -> dict[str, dict]:
    return {path.name: yaml.safe_load(path.read_text()) for path in sorted(PROMETHEUS.glob("*.yaml"))}


def dashboard() -> dict:
    return json.loads((GRAFANA / "haclient.json").read_text())


def all_rules() -> list[dict]:
    return [rule for document in documents().values() for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Every expression, by what it is for; Grafana's variables with values that they may have."""
    found = [(rule.get("alert", rule.get("record")), rule["expr"]) for rule in all_rules()]
    values = {"$__rate_interval": "5m", "$__range": "6h", "$job": ".*", "$objective": "0.999"}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found.append((panel["title"], expression))
    return found


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Every selector's metric and labels, by walking what the parser made of the expression."""
    found, queue = [], [promql_parser.parse(expression)]
    while queue:
        one = queue.pop()
        if isinstance(one, promql_parser.VectorSelector):
            name = one.name or next(m.value for m in one.matchers.matchers if m.name == "__name__")
            found.append((name, {m.name for m in one.matchers.matchers} - {"__name__"}))
        for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
            if (child := getattr(one, part, None)) is not None:
                queue.append(child)
        queue.extend(getattr(one, "args", []))
    return found


def test_the_walk_finds_selectors():
    """Below every kind of node."""
    text = 'sum by (x) (rate(a_total{l="1"}[5m])) / max(b) > 2 * histogram_quantile(0.9, -c) or (d unless d offset 5m)'
    assert {name for name, _ in selectors(text)} == {"a_total", "b", "c", "d"}
    assert ("a_total", {"l"}) in selectors(text)
    assert selectors("max_over_time((max(e))[1h:1m])") == [("e", set())]


@pytest.mark.parametrize(("of", "expression"), expressions())
def test_metrics_exist(of, expression):
    """Every metric and label in a rule or a panel is one that haclient exports, or a rule records."""
    recorded = {rule["record"] for rule in all_rules() if "record" in rule}
    found = selectors(expression)
    for name, labels in found:
        if name in recorded or name == "up":
            continue
        assert name in EXPORTED, f"{of}: {name} is not exported"
        assert labels <= EXPORTED[name] | SCRAPED, f"{of}: {name} has no labels {labels - EXPORTED[name]}"
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", expression))))
    known = SCRAPED.union(*(EXPORTED.get(name, set()) for name, _ in found))
    assert grouped <= known, f"{of}: nothing has labels {grouped - known}"


def test_every_counter_is_shown():
    """Each metric that haclient exports is in a rule or on the dashboard, but for those that say nothing alone."""
    shown = {name for _, expression in expressions() for name, _ in selectors(expression)}
    silent = {"haclient_proxy_info", "haclient_cluster_asynchronous"}
    ends = ("_created", "_sum", "_count")
    assert {name for name in EXPORTED if not name.endswith(ends)} - shown <= silent


def test_shipped_rules_are_current():
    """The file for the objective is what the command writes."""
    wanted = rules.text(slo.Objective(target=0.9995, window_s=30 * 86_400.0))
    assert (PROMETHEUS / "slo.yaml").read_text() == wanted


@pytest.mark.parametrize(("target", "days"), [(0.9, 30), (0.999, 7), (0.9999, 28), (0.99999, 90)])
def test_rules_of_any_objective(target, days):
    """They are YAML and PromQL, with a record for each window that an alert looks at."""
    objective = slo.Objective(target=target, window_s=days * 86_400.0)
    written = [rule for group in yaml.safe_load(rules.text(objective))["groups"] for rule in group["rules"]]
    records = {rule["record"] for rule in written if "record" in rule}
    alerts = [rule for rule in written if "alert" in rule]
    assert len(alerts) == len(slo.alerts(objective)) > 0
    for rule in written:
        names = {name for name, _ in selectors(rule["expr"])}
        assert names <= ({"haclient_calls_total", "haclient_proxy_shed_total"} if "record" in rule else records)


def test_good_calls_are_those_of_the_proxy():
    """The rules count as answered what the proxy's own error budget does, and only outcomes that there are."""
    assert set(rules.GOOD) == {"ok"} | totals._REFUSED
    assert all(outcome_label(name) == name for name in rules.GOOD)


def test_alerts_say_how_urgent_they_are():
    """Each has a severity that is explained, and a summary."""
    alerts = [rule for rule in all_rules() if "alert" in rule]
    assert {rule["labels"]["severity"] for rule in alerts} == {"page", "ticket", "info"}
    assert all(rule["annotations"]["summary"] for rule in alerts)


def promtool(*arguments: str) -> str:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run(
        [tool, *arguments], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules():
    """Prometheus' own check, which parses the templates too."""
    promtool("check", "rules", *map(str, sorted(PROMETHEUS.glob("*.yaml"))))


def test_promtool_runs_the_alerts():
    """Alerts come when they should, and do not when they should not: see alerts.yaml."""
    promtool("test", "rules", "alerts.yaml")


# The dashboard.


def test_shipped_dashboard_is_current():
    """The file is what the script beside it writes."""
    spec = importlib.util.spec_from_file_location("grafana_dashboard", GRAFANA / "dashboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.dashboard() == dashboard()


def test_dashboard_is_whole():
    """Ids are unique, every panel has a title, targets and the chosen source, and its references are unique."""
    found = dashboard()
    ids = [panel["id"] for panel in found["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable for variable in found["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in panels():
        assert panel["title"]
        assert panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))
        assert "unit" in panel["fieldConfig"]["defaults"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels())))
    assert used - {"__range", "__rate_interval"} <= variables.keys()


def test_panels_do_not_overlap():
    """Each stands inside the grid of 24 columns, on a place of its own."""
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 and p["h"] > 0 for p in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, (a, b)
