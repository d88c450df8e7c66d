"""``haclient status``: the table, the JSON, the exit codes."""

import asyncio
import io
import json
import socket

import pytest
from rich.console import Console
from typer.testing import CliRunner

import haclient.client
from haclient import cli, status_table
from haclient.fleet.model import ClusterView, EndpointView, FleetView

GOOD = EndpointView("e1", "10.0.0.1:19530", "up", 0.0032, 2, {"docs": True, "books": False}, "2.5.4", "")
BAD = EndpointView("e2", "e2", "down", None, 0, {}, "", "Connect: [red]refused[/red]\x1b[2J\nagain")
FLEET = FleetView(
    (ClusterView("a", "eu-1", 0, 1.0, (GOOD, BAD)), ClusterView("b", "", 2, 0.5, (BAD,))),
    12.0,
)
DOWN = FleetView((ClusterView("b", "", 0, 1.0, (BAD,)),), 1.0)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("HACLIENT_URI", "HACLIENT_CONFIG", "MILVUS_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")


class FakeClient:
    """Answers with prepared views, one per look; an exception is raised, a number is waited for."""

    looks: list
    made: list

    def __init__(self, *, config):
        self.config = config
        self.fleet = DOWN
        self.closed = False
        self.made.append(self)

    async def refresh(self):
        look = self.looks.pop(0)
        if isinstance(look, BaseException):
            raise look
        if isinstance(look, float):
            await asyncio.sleep(look)
        return look

    async def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    client = type("Fake", (FakeClient,), {"looks": [FLEET], "made": []})
    monkeypatch.setattr(haclient.client, "AsyncMilvusClient", client)
    return client


def run(*args):
    return CliRunner().invoke(cli.app, list(args))


def drawn(view, width=160):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(status_table.table(view))
    return console.file.getvalue()


# --- rendering ----------------------------------------------------------------------------------------------


def test_table():
    """One row per endpoint, with everything known of it."""
    lines = [line.rstrip() for line in drawn(FLEET, 130).splitlines()]
    assert [" ".join(line.split()) for line in lines if line.strip("─ ")] == [
        "cluster endpoint state latency collections version last error",
        "a e1 up 3.2 ms ✗ books 2.5.4",
        "zone eu-1 10.0.0.1:19530 ✓ docs",
        "e2 down - - Connect: [red]refused[/red]�[2J again",
        "b e2 down - - Connect: [red]refused[/red]�[2J again",
        "priority 2, weight 0.5",
        "1 of 3 endpoints up, 2 clusters",
    ]


def test_servers_cannot_write_to_the_terminal():
    """Control characters and markup of a server's error are shown as text."""
    text = drawn(DOWN)
    assert "\x1b" not in text
    assert "[red]refused[/red]" in text


def test_narrow_terminal():
    """Nothing is lost at 80 columns."""
    text = drawn(DOWN, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "refused" in "".join(text.split())


def test_many_collections():
    """Those that are not ready are always named first."""
    ready = {f"c{i:03}": i != 77 for i in range(100)}
    lines = status_table.collections(ready).plain.splitlines()
    assert lines[0] == "✗ c077"
    assert lines[-1] == "and 88 more, all ready"
    none = status_table.collections(dict.fromkeys(ready, False)).plain
    assert none.endswith("and 88 more, 88 not ready")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0032, "3.2 ms"), (0.0996, "100 ms"), (0.25, "250 ms"), (1.26, "1.3 s"), (0.0, "0.0 ms")],
)
def test_latency(seconds, text):
    """Three digits at most."""
    assert status_table.latency(seconds) == text


def test_json_is_the_whole_view():
    """Nothing is cut off for a program."""
    data = json.loads(json.dumps(status_table.as_json(FLEET)))
    assert (data["up"], data["endpoints"]) == (1, 3)
    assert data["clusters"][0]["endpoints"][0] == {
        "name": "e1", "address": "10.0.0.1:19530", "state": "up", "latency_s": 0.0032, "in_flight": 2,
        "ready": {"docs": True, "books": False}, "server_version": "2.5.4", "last_error": "",
    }  # fmt: skip


# --- the command --------------------------------------------------------------------------------------------


def test_status(fake):
    """The table on stdout, exit code 0, the client closed."""
    result = run("status", "--uri", "http://a:1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 of 3 endpoints up, 2 clusters" in result.stdout
    (client,) = fake.made
    assert client.closed
    assert client.config.clusters[0].name == "a:1"


def test_nothing_up(fake):
    """Exit code 1."""
    fake.looks = [DOWN]
    assert run("status", "--uri", "http://a:1").exit_code == 1


def test_json(fake):
    """One object on one line where it is not read by a person."""
    result = run("status", "--uri", "http://a:1", "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["up"] == 1


def test_watch(fake):
    """A line per look until interrupted."""
    fake.looks = [FLEET, DOWN, KeyboardInterrupt()]
    result = run("status", "--uri", "http://a:1", "--json", "--watch", "--every", "0.1")
    assert result.exit_code == 130
    assert [json.loads(line)["up"] for line in result.stdout.splitlines()] == [1, 0]
    assert fake.made[0].closed


def test_servers_that_do_not_answer_in_time(fake):
    """What is known by then is shown."""
    fake.looks = [60.0]
    result = run("status", "--uri", "http://a:1", "--timeout", "0.1")
    assert result.exit_code == 1
    assert "0 of 1 endpoint up, 1 cluster" in result.stdout


def test_config_file(fake, tmp_path):
    """``--config`` names the file."""
    path = tmp_path / "h.toml"
    path.write_text('[[cluster]]\nname = "x"\nendpoints = ["a:1"]\n')
    assert run("status", "--config", str(path)).exit_code == 0
    assert fake.made[0].config.clusters[0].name == "x"


def test_environment(fake, monkeypatch):
    """Without options the environment says which servers."""
    monkeypatch.setenv("HACLIENT_URI", "http://from-env:1")
    assert run("status").exit_code == 0
    assert fake.made[0].config.clusters[0].name == "from-env:1"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--uri", "htp://u:p@a"), 'haclient: arguments: uri: "***@a": has a scheme that is not known'),
        (("--config", "/no/such.toml"), "haclient: /no/such.toml: cannot be read (No such file or directory)"),
        (("--config", "x.toml", "--uri", "http://a"), "haclient: arguments: config: is given together with uri"),
        (("--timeout", "soon"), "Invalid value for '--timeout'"),
        (("--timeout", "-1"), "Invalid value for '--timeout'"),
        (("--nonsense",), "No such option: --nonsense"),
    ],
)
def test_bad_input(fake, args, message):
    """Exit code 2, the message on stderr, no traceback, nothing on stdout, nobody asked."""
    result = run("status", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert fake.made == []


def test_every_problem_of_a_file_is_a_line(fake, tmp_path):
    """Each marked as ours."""
    path = tmp_path / "h.toml"
    path.write_text("zone = 1\n[hedge]\nenabled = 3\n")
    result = run("status", "--config", str(path))
    assert result.exit_code == 2
    assert [line.split(": ")[:3] for line in result.stderr.splitlines()] == [
        ["haclient", str(path), "cluster"],
        ["haclient", str(path), "zone"],
        ["haclient", str(path), "hedge.enabled"],
    ]


def test_version():
    """Just that."""
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"haclient {haclient.__version__}\n")


def test_demo_refuses_bad_input():
    """The demo's own checks end as ours do."""
    result = run("demo", "--seconds", "1")
    assert result.exit_code == 2
    assert result.stderr.startswith("haclient: seconds must be")


def test_a_real_client_on_a_dead_port():
    """The whole way, without any fake: down, with the reason, exit code 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = run("status", "--uri", f"http://127.0.0.1:{port}", "--json")
    assert result.exit_code == 1, result.output
    (endpoint,) = json.loads(result.stdout)["clusters"][0]["endpoints"]
    assert endpoint["state"] == "down"
    assert "refused" in endpoint["last_error"]
