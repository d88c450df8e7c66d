"""The runbooks name only what there is: alerts, metrics, panels, events, texts, commands, settings, scenarios."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from haclient import errors, events
from haclient.cli import app
from haclient.config import Config
from haclient.drill.scenario import shipped
from tests.unit.planning.exported import exported

ROOT = Path(__file__).parents[3]
DOCS = {name: (ROOT / "docs" / name).read_text() for name in ("runbooks.md", "planning.md")}
RUNBOOKS = DOCS["runbooks.md"]
FENCED = re.compile(r"```.*?```", re.DOTALL)
SPANS = [span for text in DOCS.values() for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text))]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "haclient").rglob("*.py")))
ALERTS = {
    rule["alert"]: rule["annotations"]["runbook"]
    for path in (ROOT / "examples" / "prometheus").glob("*.yaml")
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def commands():
    """Every command in the text and in its blocks."""
    blocks = "\n".join(block for text in DOCS.values() for block in FENCED.findall(text)).splitlines()
    lines = [line.split(" #")[0].split(" >")[0] for line in blocks]
    return sorted({line.strip() for line in (*SPANS, *lines) if re.match(r"haclient [a-z-]", line)})


def anchors(text):
    headings = (line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#"))
    return {re.sub(r"[^a-z0-9 _-]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    """Each is parsed as the command line would, options, arguments and types included; nothing is run."""
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    while True:
        context = command.make_context(line, list(words))
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        if not rest:
            break
        _, command, words = command.resolve_command(context, rest)


def test_a_wrong_command_is_found():
    """What the test above relies on."""
    for line in (
        "haclient log nothing",
        "haclient reseed b --nothing",
        "haclient drain a",
        "haclient drill x --trials y",
    ):
        with pytest.raises(Exception, match=r"No such|Missing|valid integer"):
            test_commands_exist(line)


def test_scenarios():
    """Those named exist, and each that is shipped has its runbook."""
    named = {name for line in commands() if line.startswith("haclient drill ") for name in [line.split()[2]]}
    assert named - {"all"} == shipped().keys()


def test_metrics_exist():
    """With the labels that are named."""
    known = exported()
    found = [span for span in SPANS if span.startswith("haclient_")]
    assert found
    for span in found:
        name, _, labels = span.partition("{")
        assert name in known, name
        assert set(re.findall(r'(\w+)="', labels)) <= known[name], span


def test_alerts():
    """Those named exist; each leads to a section, which names it."""
    named = {span for span in SPANS if re.fullmatch(r"Haclient\w+", span)}
    assert named == ALERTS.keys()
    sections = {place: text for text in re.split(r"^(?=#)", RUNBOOKS, flags=re.MULTILINE) for place in anchors(text)}
    for alert, place in ALERTS.items():
        page, _, anchor = place.partition("#")
        assert page == "docs/runbooks.md"
        assert f"`{alert}`" in sections[anchor], f"{alert} is not explained in {place}"


def test_panels_exist():
    """By their titles, in italics."""
    dashboard = json.loads((ROOT / "examples" / "grafana" / "haclient.json").read_text())
    titles = {panel["title"] for panel in dashboard["panels"]}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", RUNBOOKS))
    assert len(named) > 10
    assert named <= titles, named - titles


def test_events_and_errors_exist():
    """With the fields that are named."""
    known = {name: value for name, value in vars(events).items() if isinstance(value, type)}
    for span in SPANS:
        name = span.split()[0]
        if not re.fullmatch(r"(?:[A-Z][a-z]+){2,}|Unavailable|Degraded", name) or name in ALERTS:
            continue
        assert name in known or hasattr(errors, name), span
        if name in known:
            fields = {field.name for field in dataclasses.fields(known[name])}
            assert set(re.findall(r"(\w+)=", re.sub(r'"[^"]*"', "", span))) <= fields, span


def test_texts_are_in_the_code():
    """What is quoted of a log line: the parts between numbers and what differs each time."""
    reasons = re.findall(r'reason="([^"]+)"', RUNBOOKS)
    assert len(reasons) > 8
    for reason in reasons:
        for part in re.split(r"\d+|…", reason):
            assert part.strip() in SOURCE, part


def test_settings_exist():
    """Sections and keys of the configuration file."""
    for span in SPANS:
        if match := re.fullmatch(r"(timeouts|health|breaker|hedge|retry|wire|replication|proxy)\.(\w+)", span):
            assert match[2] in Config.model_fields[match[1]].annotation.model_fields, span
        elif match := re.fullmatch(r"\[proxy\.(\w+)\]", span):
            assert match[1] in Config.model_fields["proxy"].annotation.model_fields, span


@pytest.mark.parametrize("page", DOCS)
def test_links_lead_somewhere(page):
    """Files exist, and sections in them."""
    for target in re.findall(r"\]\(([^)]+)\)", DOCS[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / "docs" / path) if path else ROOT / "docs" / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target
