"""The command line and a running proxy: ``status --admin``, ``drain``, ``undrain``, and ``haclient proxy`` itself."""

import contextlib
import json
import socket
import sys
import threading
import types

import anyio.from_thread
import pytest
from typer.testing import CliRunner

import haclient.proxy
from haclient import cli
from haclient.errors import ConfigError
from haclient.proxy.admin import create_app, serve
from tests.unit.proxy.admin_fakes import DOWN, UP, FakeBackend, cluster

TOKEN = "s3cret-t0ken"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("HACLIENT_URI", "HACLIENT_CONFIG", "MILVUS_URI", "HACLIENT_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def backend():
    return FakeBackend()


@contextlib.contextmanager
def serving(backend, token=""):
    """A real admin API in another thread."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(create_app(backend, token), "127.0.0.1", 0)) as port,
    ):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def admin(backend):
    with serving(backend) as address:
        yield address


def run(*args, **environment):
    result = CliRunner().invoke(cli.app, list(args), env=environment)
    assert "Traceback" not in result.output
    assert TOKEN not in result.output
    return result


# --- status -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "http://"])
def test_status(admin, prefix):
    """The same table as without a proxy."""
    result = run("status", "--admin", prefix + admin)
    assert (result.exit_code, result.stderr) == (0, "")
    for text in (
        "1 of 2 endpoints up, 1 cluster",
        "zone eu-1",
        "10.0.0.1:19530",
        "✗ books",
        "3.2 ms",
        "2.5.4",
        "refused",
    ):
        assert text in result.stdout
    assert "\x1b" not in result.stdout


def test_nothing_up(admin, backend):
    """Exit code 1."""
    backend.clusters = (cluster(DOWN),)
    assert run("status", "--admin", admin).exit_code == 1


def test_json(admin):
    """The same object as without a proxy."""
    result = run("status", "--admin", admin, "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert json.loads(line) == {
        "up": 1, "endpoints": 2,
        "clusters": [
            {
                "name": "a", "zone": "eu-1", "priority": 0, "weight": 1.0, "endpoints": [dict(UP), dict(DOWN)],
                "standing": "", "lag": 0, "parked": [], "asynchronous": False, "lag_s": None,
            }
        ],
    }  # fmt: skip


def test_watch(admin, backend):
    """A line per look, until the proxy fails."""
    looks = [(cluster(UP),), (cluster(DOWN),)]

    def fleet():
        backend.clusters = looks.pop(0)
        return FakeBackend.fleet(backend)

    backend.fleet = fleet
    result = run("status", "--admin", admin, "--json", "--watch", "--every", "0.1")
    assert [json.loads(line)["up"] for line in result.stdout.splitlines()] == [1, 0]
    assert result.exit_code == 1
    assert result.stderr.endswith(
        f"haclient: http://{admin}: answered 500 Internal Server Error; see the proxy's log\n"
    )


# --- drain --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e1", "a", DOWN.name])
def test_drain(admin, backend, name):
    """Whatever the name is made of."""
    result = run("drain", name, "--admin", admin)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{name}: out of rotation\n", "")
    assert backend.drained == [name]
    result = run("undrain", name, "--admin", admin)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{name}: in rotation\n", "")
    assert backend.drained == []


@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_unknown_name(admin, backend, command):
    """Exit code 2, one line with the names there are, and nothing a terminal would obey."""
    result = run(command, "e2", "--admin", admin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"haclient: http://{admin}: nothing has that name; there are a, e1, unix:/tmp/a b")
    assert len(result.stderr.splitlines()) == 1
    assert "\x1b" not in result.stderr
    assert backend.drained == []


# --- the token ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("status",), ("drain", "e1"), ("undrain", "e1")])
def test_token(backend, command):
    """As an option or from the environment; the option wins."""
    with serving(backend, TOKEN) as admin:
        arguments = (*command, "--admin", admin)
        assert run(*arguments, "--token", TOKEN).exit_code == 0
        assert run(*arguments, HACLIENT_ADMIN_TOKEN=TOKEN).exit_code == 0
        assert run(*arguments, "--token", TOKEN, HACLIENT_ADMIN_TOKEN="other").exit_code == 0
        for given, what in (((), "asks for a token"), (("--token", "guess"), "the token is wrong")):
            result = run(*arguments, *given)
            line = f"haclient: http://{admin}: {what}; write --token, or set HACLIENT_ADMIN_TOKEN\n"
            assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}é", f"{TOKEN}\x00"])
def test_what_is_no_token(admin, token):
    """Said so, without showing it: a file's last line break is a common one."""
    result = run("status", "--admin", admin, "--token", token)
    assert result.exit_code == 2
    assert result.stderr.startswith("haclient: arguments: token: has ")


def test_the_help_does_not_show_it():
    """Nor its default, which is the environment's."""
    result = run("drain", "--help", HACLIENT_ADMIN_TOKEN=TOKEN)
    assert (result.exit_code, "HACLIENT_ADMIN_TOKEN" in result.stdout) == (0, True)


def test_nobody_in_between_sees_it(backend, monkeypatch):
    """The environment's proxy for the web is not asked."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with serving(backend, TOKEN) as admin:
        assert run("status", "--admin", admin, "--token", TOKEN).exit_code == 0


# --- no proxy, or something else ----------------------------------------------------------------------------


@contextlib.contextmanager
def answering(data):
    """A server that sends these bytes to whoever asks, and no more; None: that does not even take connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(data)

        thread = threading.Thread(target=answer)
        if data is not None:
            thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            if data is not None:
                thread.join()


def reply(status, body, *headers):
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body)
    return "\r\n".join(lines).encode()


OK = "200 OK"
STRANGERS = [
    (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
    (b"", "does not speak HTTP"),
    (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "does not speak HTTP"),
    (reply(OK, "<h1>hello</h1>"), "answered something else"),
    (reply(OK, '{"detail": "fine"}'), "answered something else"),
    (reply(OK, "this is no gzip", "Content-Encoding: gzip"), "does not speak HTTP"),
    (reply("302 Found", "", "Location: http://127.0.0.1:1/login"), "answered 302 Found"),
    (reply("404 Not Found", "<h1>nginx</h1>"), "answered 404 Not Found"),
    (reply("404 Not Found", '{"detail":"Not Found"}'), "answered 404 Not Found"),
    (reply("405 \x1b[2J", ""), "answered 405 [2J"),
]


@pytest.mark.parametrize("command", [("status",), ("drain", "e1")])
@pytest.mark.parametrize(("data", "what"), STRANGERS)
def test_something_else(command, data, what):
    """Exit code 2: the address is wrong."""
    with answering(data) as admin:
        result = run(*command, "--admin", admin)
    line = f"haclient: http://{admin}: is no haclient proxy's admin API, or one of another version ({what})\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)


@pytest.mark.parametrize("command", [("status",), ("drain", "e1")])
def test_nobody_listens(command):
    """Exit code 1: the proxy is not well."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = f"127.0.0.1:{free.getsockname()[1]}"
    result = run(*command, "--admin", admin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"haclient: http://{admin}: cannot be reached (")
    assert result.stderr.endswith("does haclient proxy run there?\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["a b", "no.such.host.invalid", "a" * 70])
def test_no_such_host(host):
    """Exit code 1, for a name may be known again in a minute."""
    result = run("status", "--admin", f"{host}:9091")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be reached (" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("status",), ("drain", "e1")])
def test_no_answer_in_time(command):
    """Exit code 1."""
    with answering(None) as admin:
        result = run(*command, "--admin", admin, "--timeout", "0.1")
    line = f"haclient: http://{admin}: no answer within 0.1 s; see --timeout\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_a_proxy_behind_something_that_fails():
    """A gateway's error is no wrong address."""
    with answering(reply("502 Bad Gateway", "<h1>502</h1>")) as admin:
        result = run("status", "--admin", admin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "answered 502 Bad Gateway" in result.stderr


@pytest.mark.parametrize("command", [("status",), ("drain", "e1"), ("undrain", "e1")])
@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("ftp://a:1", "is not an address"),
        ("http://", "is not an address"),
        ("http://a:port", "is not an address"),
        ("http://a:99999", "is not an address"),
        ("http://[::1", "is not an address"),
        ("a\n:1", "is not an address"),
        (f"http://admin:{TOKEN}@a:1", "has credentials, a query or a fragment"),
        (f"http://a:1/?token={TOKEN}", "has credentials, a query or a fragment"),
    ],
)
def test_bad_address(command, address, what):
    """Exit code 2 before anything is sent, without showing what may be a secret."""
    result = run(*command, "--admin", address)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"haclient: arguments: admin: {what}; write for example http://127.0.0.1:9091")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("other", [("--uri", "http://a:1"), ("--config", "x.toml")])
def test_admin_or_servers(other):
    """Not both."""
    result = run("status", "--admin", "127.0.0.1:9091", *other)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "given together with" in result.stderr


# --- haclient proxy -----------------------------------------------------------------------------------------


class FakeSupervisor(types.ModuleType):
    """Keeps what it was given; ends with a code."""

    def __init__(self):
        super().__init__("haclient.proxy.supervisor")
        self.code = 0
        self.config = self.reload = None

    def run(self, config, reload):
        self.config, self.reload = config, reload
        if isinstance(self.code, Exception):
            raise self.code
        return self.code


@pytest.fixture
def supervisor(monkeypatch):
    fake = FakeSupervisor()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(haclient.proxy, "supervisor", fake, raising=False)
    return fake


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(
        f"""
        [[cluster]]
        name = "x"
        endpoints = ["a:1"]
        [proxy]
        listen = "127.0.0.1:1000"
        workers = 3
        grace_s = 7.0
        admin_token = "{TOKEN}"
        """
    )
    return path


def test_proxy_of_a_file(supervisor, file):
    """As it is written."""
    result = run("proxy", "--config", str(file))
    assert (result.exit_code, result.output) == (0, "")
    proxy = supervisor.config.proxy
    assert (proxy.listen, proxy.admin, proxy.workers, proxy.grace_s) == ("127.0.0.1:1000", "127.0.0.1:9091", 3, 7.0)
    assert supervisor.config.clusters[0].name == "x"


def test_options_win(supervisor, file):
    """The rest stays as it is in the file; also when it is read again."""
    arguments = ("--listen", "0.0.0.0:2000", "--admin", "0.0.0.0:2001", "--workers", "2")
    assert run("proxy", "--config", str(file), *arguments).exit_code == 0
    file.write_text(file.read_text().replace("7.0", "8.0").replace("a:1", "b:2"))
    for config, grace_s, server in ((supervisor.config, 7.0, "a:1"), (supervisor.reload(), 8.0, "b:2")):
        proxy = config.proxy
        assert (proxy.listen, proxy.admin, proxy.workers, proxy.grace_s) == ("0.0.0.0:2000", "0.0.0.0:2001", 2, grace_s)
        assert proxy.admin_token.get_secret_value() == TOKEN
        assert config.clusters[0].endpoints[0].address == server
    file.write_text("")
    with pytest.raises(ConfigError):
        supervisor.reload()


def test_proxy_of_uris(supervisor, monkeypatch):
    """Given, or the environment's."""
    assert run("proxy", "--uri", "http://a:1,http://b:2", "--admin", "").exit_code == 0
    assert [each.name for each in supervisor.config.clusters] == ["a:1", "b:2"]
    assert (supervisor.config.proxy.admin, supervisor.config.proxy.workers) == ("", 1)
    assert run("proxy", HACLIENT_URI="http://c:3").exit_code == 0
    assert supervisor.config.clusters[0].name == "c:3"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_code(supervisor, code):
    """The supervisor's."""
    supervisor.code = code
    assert run("proxy", "--uri", "http://a:1").exit_code == code


def test_what_the_supervisor_refuses(supervisor):
    """Told like any other mistake."""
    supervisor.code = ConfigError("proxy.listen: in use\nproxy.admin: in use")
    result = run("proxy", "--uri", "http://a:1")
    assert result.exit_code == 2
    assert result.stderr == "haclient: proxy.listen: in use\nhaclient: proxy.admin: in use\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--uri", "http://a:1", "--listen", "19530"), 'haclient: arguments: proxy.listen: "19530" is not host:port'),
        (("--uri", "http://a:1", "--workers", "0"), "haclient: arguments: proxy.workers: must be at least 1, got 0"),
        (("--uri", "http://a:1", "--workers", "many"), "Invalid value for '--workers'"),
        (("--uri", "http://a:1", "--admin", "0.0.0.0:1"), "haclient: arguments: proxy.admin:"),
        (("--uri", f"http://u:{TOKEN}@a:x"), "haclient: arguments: uri:"),
        (("--config", "/no/such.toml"), "haclient: /no/such.toml: cannot be read"),
        (("--config", "x.toml", "--uri", "http://a:1"), "haclient: arguments: config: is given together with uri"),
    ],
)
def test_bad_input(supervisor, arguments, message):
    """Exit code 2, the message on stderr, nothing started."""
    result = run("proxy", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert supervisor.config is None


def test_without_the_extra(monkeypatch):
    """One line that says what to install."""
    monkeypatch.delattr(haclient.proxy, "supervisor", raising=False)
    monkeypatch.delattr(haclient.proxy, "admin", raising=False)
    monkeypatch.delitem(sys.modules, "haclient.proxy.supervisor", raising=False)
    monkeypatch.delitem(sys.modules, "haclient.proxy.admin", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = run("proxy", "--uri", "http://a:1")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("haclient: haclient proxy needs more packages (")
    assert line.endswith('; install them: pip install "haclient[proxy]"')


def test_asking_needs_no_web_framework():
    """``status --admin`` and ``drain`` work where the extra is not installed."""
    import subprocess

    code = "import sys; sys.modules['fastapi'] = sys.modules['uvicorn'] = None; import haclient.proxy.admin_client"
    subprocess.run([sys.executable, "-c", code], check=True)
