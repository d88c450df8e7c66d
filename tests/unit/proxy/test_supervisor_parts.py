"""Small parts of the supervisor: sockets, settings on their way, one picture of many, drained names, systemd."""

import socket

import pytest

from haclient.config import Config
from haclient.errors import ConfigError
from haclient.proxy import listening, merge, settings, systemd
from haclient.proxy.report import ClusterReport, EndpointReport


def endpoint(name, state="up", *, latency_s=None, in_flight=0, ready=None, last_error=""):
    return EndpointReport(
        name=name, address=name, state=state, latency_s=latency_s, in_flight=in_flight, ready=ready or {},
        server_version="", last_error=last_error,
    )  # fmt: skip


def cluster(name, *endpoints):
    return ClusterReport(name=name, zone="", priority=0, weight=1.0, endpoints=list(endpoints))


# --- sockets ------------------------------------------------------------------------------------------------


def connect(address):
    with socket.create_connection(address, timeout=5):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_workers_sockets_share_one_port_and_do_not_listen_yet(host):
    try:
        sockets = listening.bind(f"{host}:0", 3)
    except ConfigError as error:
        pytest.skip(f"no such address here: {error}")
    try:
        addresses = {each.getsockname() for each in sockets}
        assert len(addresses) == 1
        with pytest.raises(ConnectionRefusedError):
            connect(addresses.pop()[:2])
        sockets[1].listen()
        connect(sockets[0].getsockname()[:2])
    finally:
        for each in sockets:
            each.close()


def test_a_second_proxy_may_listen_beside_the_first():
    first = listening.bind("127.0.0.1:0", 1)[0]
    first.listen()
    with first, listening.bind(f"127.0.0.1:{first.getsockname()[1]}", 1)[0] as second:
        assert second.getsockname() == first.getsockname()


@pytest.mark.parametrize("bound_to", ["127.0.0.1", "0.0.0.0"])
def test_a_stranger_keeps_the_port(bound_to):
    with socket.create_server((bound_to, 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        with pytest.raises(ConfigError) as caught:
            listening.bind(address, 2)
    assert str(caught.value) == (
        f'proxy.listen: "{address}" is taken by another program; end that, or write another address'
    )


def test_an_address_that_is_not_of_this_machine():
    with pytest.raises(ConfigError, match=r'^proxy.listen: "192.0.2.1:0" cannot be listened on \(Cannot assign.*write'):
        listening.bind("192.0.2.1:0", 1)


# --- the configuration on its way to a worker ----------------------------------------------------------------


def test_a_configuration_arrives_whole_with_its_secrets(tmp_path):
    """Whatever a file can say is the same on the other side."""
    file = tmp_path / "haclient.toml"
    file.write_text(
        'zone = "eu"\n[[cluster]]\nname = "a"\nendpoints = ["https://a:1", {name = "s", uri = "unix:/run/m.sock"}]\n'
        'user = "u"\npassword = "p$$w"\nweight = 2.0\n'
        '[[cluster]]\nname = "b"\nendpoints = ["b:1"]\ntoken = "t"\n'
        '[[health.canary]]\ncollection = "c"\nfilter = "id in [1]"\nexpect = [1, "x"]\n'
        '[proxy]\nadmin_token = "secret"\ntokens = ["one:1", "two"]\n[proxy.limits]\nage_s = 5.5\n'
    )
    config = Config.from_file(file)
    arrived = settings.read(settings.write(config))
    assert arrived == config
    assert arrived.clusters[0].authorization() == config.clusters[0].authorization()
    assert arrived.proxy.tokens[0].get_secret_value() == "one:1"


def test_a_configuration_that_has_become_wrong_says_so_without_secrets(tmp_path):
    text = settings.write(Config.from_uri("http://a", token="very-secret")).replace('"listen": "127', '"listen": "x:y')
    with pytest.raises(ConfigError) as caught:
        settings.read(text)
    assert str(caught.value).startswith("configuration: proxy.listen: ")
    assert "very-secret" not in str(caught.value)
    assert caught.value.__context__ is None


# --- one picture of many -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "seen"),
    [
        (["up", "up", "down"], "up"),
        (["up", "down", "down"], "down"),
        (["up", "down"], "down"),
        (["probation", "up"], "probation"),
        (["up", "draining", "drained"], "drained"),
    ],
)
def test_an_endpoint_is_as_most_workers_see_it_and_rather_worse_than_better(states, seen):
    (merged,) = merge.clusters([[cluster("a", endpoint("e", state, last_error=state))] for state in states])
    assert (merged.endpoints[0].state, merged.endpoints[0].last_error) == (seen, seen)


def test_what_workers_measure_is_put_together():
    (merged,) = merge.clusters(
        [
            [cluster("a", endpoint("e", latency_s=0.1, in_flight=2, ready={"c": True, "d": True}))],
            [cluster("a", endpoint("e", latency_s=0.3, in_flight=3, ready={"c": False}))],
            [cluster("a", endpoint("e", latency_s=None, ready={"c": False}))],
        ]
    )
    (one,) = merged.endpoints
    assert (one.latency_s, one.in_flight, one.ready) == (pytest.approx(0.2), 5, {"c": False, "d": True})


def test_what_only_one_worker_has_discovered_is_shown():
    first = [cluster("a", endpoint("e"))]
    second = [cluster("a", endpoint("e"), endpoint("f")), cluster("b", endpoint("g"))]
    merged = merge.clusters([first, second])
    assert [(c.name, [e.name for e in c.endpoints]) for c in merged] == [("a", ["e", "f"]), ("b", ["g"])]


# --- drained names -----------------------------------------------------------------------------------------

FLEET = [cluster("a", endpoint("a1"), endpoint("a2"), endpoint("a3")), cluster("b", endpoint("b1"))]


@pytest.mark.parametrize(
    ("before", "name", "out", "after"),
    [
        (set(), "a1", True, {"a1"}),
        ({"a1"}, "a", True, {"a", "a1"}),
        ({"a", "b1"}, "a", False, {"b1"}),
        ({"a1"}, "a1", False, set()),
        ({"b"}, "a1", False, {"b"}),
        ({"a", "b"}, "a2", False, {"a1", "a3", "b"}),
    ],
)
def test_taking_out_and_putting_back(before, name, out, after):
    """One endpoint of a drained cluster comes back alone."""
    assert merge.drained(frozenset(before), name, FLEET, out=out) == after


# --- systemd -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(monkeypatch, tmp_path, abstract):
    path = f"@haclient-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_end:
        systemd_end.bind("\0" + path[1:] if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        systemd.notify("READY=1")
        assert systemd_end.recv(100) == b"READY=1"


def test_without_systemd_nobody_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.notify("READY=1")
