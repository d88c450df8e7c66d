"""What a correct configuration means, and where it comes from."""

import base64
import inspect
import pickle
from pathlib import Path

import pytest
import trustme

from haclient.config import (
    Breaker,
    ClusterConfig,
    Config,
    EndpointConfig,
    Health,
    Hedge,
    Proxy,
    ProxyLimits,
    ProxyTLS,
    Replication,
    Retry,
    Timeouts,
    Wire,
    redact,
)
from haclient.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("HACLIENT_URI", "HACLIENT_CONFIG", "MILVUS_URI"):
        monkeypatch.delenv(name, raising=False)


def written(tmp_path, text):
    path = tmp_path / "haclient.toml"
    path.write_text(text)
    return path


# --- the example --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "default"),
    [
        ("replication", Replication()),
        ("timeouts", Timeouts()),
        ("health", Health()),
        ("breaker", Breaker()),
        ("hedge", Hedge()),
        ("retry", Retry()),
        ("wire", Wire()),
        ("proxy", Proxy()),
    ],
)
def test_example_file_shows_the_defaults(section, default):
    """The example is the reference of every default."""
    assert getattr(Config.from_file(ROOT / "examples/haclient.toml"), section) == default


def test_example_file_means_what_its_comments_say():
    """Two clusters, one with a named endpoint."""
    config = Config.from_file(ROOT / "examples/haclient.toml")
    assert [(c.name, [e.name for e in c.endpoints]) for c in config.clusters] == [
        ("a", ["10.0.0.1:19530", "a-2"]),
        ("b", ["10.0.1.1:19530"]),
    ]
    plain = ClusterConfig(name="b", endpoints=(EndpointConfig(name="10.0.1.1:19530", host="10.0.1.1"),))
    assert config.clusters[1] == plain
    assert config.source == ROOT / "examples/haclient.toml"


@pytest.mark.parametrize(
    "model",
    [Config, ClusterConfig, Replication, Timeouts, Health, Breaker, Hedge, Retry, Wire, Proxy, ProxyTLS, ProxyLimits],
    ids=lambda m: m.__name__,
)
def test_every_field_is_in_the_example(model):
    """No key is left for the reader to find in the source."""
    text = (ROOT / "examples/haclient.toml").read_text()
    for name in set(model.model_fields) - {"source", "clusters"}:
        assert f"{name} =" in text or f"{name}]" in text, name


def test_every_field_of_every_table_has_a_doc_comment():
    """``#:`` lines above every field."""
    import haclient.config as module

    models = [m for m in vars(module).values() if isinstance(m, type) and hasattr(m, "model_fields")]
    for model in models:
        lines = inspect.getsource(model).splitlines()
        for field in model.model_fields:
            (at,) = (i for i, line in enumerate(lines) if line.startswith(f"    {field}: "))
            assert lines[at - 1].startswith("    #: "), (model, field)


# --- URIs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "address", "secure"),
    [
        ("http://10.0.0.1:19530", "10.0.0.1:19530", False),
        ("http://milvus", "milvus:19530", False),
        ("http://milvus/", "milvus:19530", False),
        ("https://milvus.example.com", "milvus.example.com:443", True),
        ("HTTPS://milvus.example.com:19530", "milvus.example.com:19530", True),
        ("tcp://milvus:1", "milvus:1", False),
        ("10.0.0.1:19530", "10.0.0.1:19530", False),
        ("http://[2001:db8::1]", "[2001:db8::1]:19530", False),
        ("http://[::1]:80", "[::1]:80", False),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80", False),
        ("unix:/run/milvus.sock", "unix:/run/milvus.sock", False),
        ("unix:///run/milvus.sock", "unix:/run/milvus.sock", False),
        ("./a.db", "./a.db", False),
    ],
)
def test_uri_forms(uri, address, secure):
    """Every form pymilvus takes, and host:port."""
    (cluster,) = Config.from_uri(uri).clusters
    (endpoint,) = cluster.endpoints
    assert (cluster.name, endpoint.name, endpoint.address, endpoint.secure) == (address, address, address, secure)


def test_uri_forms_have_a_scheme():
    """The scheme says how an endpoint is reached."""
    config = Config.from_uri(["http://a:1", "unix:/x", "./a.db", "http://[::1]:2"])
    assert [(e.scheme, e.host, e.path) for c in config.clusters for e in c.endpoints] == [
        ("tcp", "a", ""), ("unix", "", "/x"), ("lite", "", "./a.db"), ("tcp", "::1", ""),
    ]  # fmt: skip


def test_endpoint_uri_round_trip():
    """An endpoint's URI means that endpoint again."""
    for uri in ("http://a:1", "https://a:443", "unix:/x", "./a.db", "http://[::1]:2"):
        (cluster,) = Config.from_uri(uri).clusters
        assert Config.from_uri(cluster.endpoints[0].uri).clusters[0] == cluster


@pytest.mark.parametrize("uri", ["http://a:1,http://b:2", "http://a:1, http://b:2,", ["http://a:1", "http://b:2"]])
def test_several_uris_are_several_clusters(uri):
    """A comma-separated string and a list mean the same."""
    assert [c.name for c in Config.from_uri(uri).clusters] == ["a:1", "b:2"]


def test_uri_carries_credentials_and_database():
    """As in pymilvus, literally, also with a comma or an at sign in the password."""
    config = Config.from_uri("http://root:a,b@c%40@h:1/books,http://tok@i:2")
    assert config.database == "books"
    assert [c.authorization() for c in config.clusters] == [
        base64.b64encode(b"root:a,b@c%40").decode(),
        base64.b64encode(b"tok").decode(),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"token": "t", "user": "u", "password": "p"}, b"t"),
        ({"user": "u", "password": "p"}, b"u:p"),
        ({"user": "u"}, b"uri:secret"),
        ({"token": None}, b"uri:secret"),
        ({"token": "${LITERAL}$"}, b"${LITERAL}$"),
    ],
)
def test_authorization_is_pymilvus(arguments, expected):
    """Token over user and password over the URI's; arguments are literal."""
    config = Config.from_uri("http://uri:secret@h", **arguments)
    assert config.clusters[0].authorization() == base64.b64encode(expected).decode()


def test_no_credentials_no_authorization():
    """Nothing is sent if nothing was given."""
    assert Config.from_uri("http://h").clusters[0].authorization() is None


def test_db_name_wins_over_the_uri():
    """As in pymilvus."""
    assert Config.from_uri("http://h/a,http://i/b", db_name="c").database == "c"


def test_secure_argument_secures_every_endpoint():
    """``secure=True`` is https on all."""
    config = Config.from_uri("http://a,b:1", secure=True)
    assert all(c.endpoints[0].secure for c in config.clusters)


def test_sections_as_models_and_dicts():
    """Arguments may set any section."""
    config = Config.from_uri("http://h", hedge={"enabled": False}, retry=Retry(max_attempts=2), zone="z")
    assert (config.hedge.enabled, config.retry.max_attempts, config.zone) == (False, 2, "z")


# --- files --------------------------------------------------------------------------------------------------

TWO = """
[[cluster]]
name = "a"
endpoints = ["a1:1", {name = "second", uri = "https://a2:2"}]
user = "${HA_USER}"
password = "$$${HA_PASSWORD}$$"

[[cluster]]
name = "b"
endpoints = ["b:1"]
token = "plain"
"""


def test_environment_variables_in_credentials(tmp_path, monkeypatch):
    """${NAME} is replaced, $$ is a dollar sign."""
    monkeypatch.setenv("HA_USER", "root")
    monkeypatch.setenv("HA_PASSWORD", "${x}$")
    config = Config.from_file(written(tmp_path, TWO))
    assert [c.authorization() for c in config.clusters] == [
        base64.b64encode(b"root:$${x}$$").decode(),
        base64.b64encode(b"plain").decode(),
    ]
    assert [(e.name, e.secure) for e in config.clusters[0].endpoints] == [("a1:1", False), ("second", True)]


def test_dict_has_the_grammar_of_a_file(tmp_path, monkeypatch):
    """The same content gives the same configuration, but for its source."""
    import tomllib

    monkeypatch.setenv("HA_USER", "root")
    monkeypatch.setenv("HA_PASSWORD", "pw")
    from_file = Config.from_file(written(tmp_path, TWO))
    from_dict = Config.load(config=tomllib.loads(TWO))
    assert from_dict == from_file.model_copy(update={"source": None})
    assert Config.load(config=from_file) is from_file


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    """A configuration does not depend on where the process was started."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    path = written(
        tmp_path,
        '[[cluster]]\nname="a"\nendpoints=["https://a"]\nca_pem_path="ca.pem"\n'
        '[[cluster]]\nname="b"\nendpoints=["./b.db"]\n',
    )
    monkeypatch.chdir("/")
    config = Config.from_file(path)
    assert config.clusters[0].ca_pem_path == str(tmp_path / "ca.pem")
    assert config.clusters[1].endpoints[0].path == str(tmp_path / "b.db")
    assert config.clusters[1].endpoints[0].name == "./b.db"


def test_mutual_tls_files(tmp_path):
    """A matching pair and an authority are accepted as pymilvus names them."""
    ca = trustme.CA()
    pair = ca.issue_cert("client")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    config = Config.from_uri(
        "https://a",
        ca_pem_path=tmp_path / "ca.pem",
        client_pem_path=str(tmp_path / "cert.pem"),
        client_key_path=str(tmp_path / "key.pem"),
        server_name="x",
    )
    assert config.clusters[0].ca_pem_path == str(tmp_path / "ca.pem")


def test_the_proxys_secrets_and_files(tmp_path, monkeypatch):
    """Tokens come from the environment, paths start at the file, and a key may be in the certificate's file."""
    ca = trustme.CA()
    pair = ca.issue_cert("proxy.example")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    monkeypatch.setenv("HA_ADMIN", "adm$in")
    monkeypatch.setenv("HA_ONE", "one")
    path = written(
        tmp_path,
        '[[cluster]]\nname="a"\nendpoints=["a:1"]\n[proxy]\nadmin = "0.0.0.0:9091"\nadmin_token = "${HA_ADMIN}"\n'
        'tokens = ["${HA_ONE}", "user:$$"]\n[proxy.tls]\ncert_file = "both.pem"\nclient_ca_file = "ca.pem"\n',
    )
    monkeypatch.chdir("/")
    proxy = Config.from_file(path).proxy
    assert proxy.admin_token.get_secret_value() == "adm$in"
    assert [token.get_secret_value() for token in proxy.tokens] == ["one", "user:$"]
    assert proxy.tls.cert_file == str(tmp_path / "both.pem")
    assert proxy.tls.client_ca_file == str(tmp_path / "ca.pem")
    assert "adm$in" not in repr(proxy)


def test_the_logs_files_and_etcds_secrets(tmp_path, monkeypatch):
    """A log that is a file, and etcd's certificates, start at the file's folder; etcd's password is hidden."""
    ca = trustme.CA()
    pair = ca.issue_cert("client")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    monkeypatch.setenv("ETCD_PASSWORD", "s3cret")
    monkeypatch.chdir("/")
    cluster = '[[cluster]]\nname="a"\nendpoints=["a:1"]\n[replication]\nmode = "mirror"\n'
    assert Config.from_file(written(tmp_path, cluster)).replication.log == ""
    embedded = Config.from_file(written(tmp_path, cluster + 'log = "log/writes.db"\n')).replication
    assert embedded.log == str(tmp_path / "log/writes.db")
    etcd = Config.from_file(
        written(
            tmp_path,
            cluster + 'log = "etcd://h1:2379,[::1]:2379"\netcd_user = "root"\netcd_password = "${ETCD_PASSWORD}"\n'
            'etcd_ca_file = "ca.pem"\netcd_cert_file = "cert.pem"\netcd_key_file = "key.pem"\n',
        )
    ).replication
    assert etcd.log == "etcd://h1:2379,[::1]:2379"
    assert etcd.etcd_password.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(etcd)
    files = [etcd.etcd_ca_file, etcd.etcd_cert_file, etcd.etcd_key_file]
    assert files == [str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")]


def test_canary(tmp_path):
    """Keys may be numbers or strings."""
    text = TWO.replace("${HA_USER}", "u").replace("${HA_PASSWORD}", "p")
    path = written(
        tmp_path,
        text + '[[health.canary]]\ncollection="docs"\nvector=[1, 0.5]\nlimit=4\nexpect=[1, "x"]\n',
    )
    (canary,) = Config.from_file(path).health.canary
    assert (canary.vector, canary.expect, canary.limit) == ((1.0, 0.5), (1, "x"), 4)


# --- where it comes from ------------------------------------------------------------------------------------


def test_default_is_pymilvus_default():
    """Nothing given, nothing set: localhost."""
    assert [c.name for c in Config.load().clusters] == ["localhost:19530"]


def test_order_of_sources(tmp_path, monkeypatch):
    """Arguments, HACLIENT_*, MILVUS_URI."""
    monkeypatch.setenv("MILVUS_URI", "http://milvus-uri:1")
    assert Config.load().clusters[0].name == "milvus-uri:1"
    monkeypatch.setenv("HACLIENT_URI", "http://ha-uri:1,http://ha-uri:2")
    assert [c.name for c in Config.load(token="t").clusters] == ["ha-uri:1", "ha-uri:2"]
    path = written(tmp_path, '[[cluster]]\nname="file"\nendpoints=["x:1"]\n')
    assert Config.load(config=path).clusters[0].name == "file"
    assert Config.load("http://argument:1").clusters[0].name == "argument:1"
    monkeypatch.delenv("HACLIENT_URI")
    monkeypatch.setenv("HACLIENT_CONFIG", str(path))
    assert Config.load().clusters[0].name == "file"
    monkeypatch.setenv("HACLIENT_URI", "")
    assert Config.load(uri="http://argument:1").clusters[0].name == "argument:1"


def test_arguments_win_over_a_file_key_by_key(tmp_path):
    """A dict changes the keys it names and no others."""
    path = written(tmp_path, 'database="d"\n[[cluster]]\nname="a"\nendpoints=["x:1"]\n[hedge]\nmax_hedges=1\n')
    config = Config.load(config=path, hedge={"enabled": False}, db_name="e", token="", secure=False)
    assert (config.hedge, config.database) == (Hedge(enabled=False, max_hedges=1), "e")
    again = Config.load(config=config, hedge={"max_hedges": 3}, zone="z")
    assert (again.hedge, again.zone) == (Hedge(enabled=False, max_hedges=3), "z")
    assert again.source == path


# --- values -------------------------------------------------------------------------------------------------


def test_configuration_is_a_value():
    """Equal, hashable, frozen, and it survives pickling."""
    one, two = Config.from_uri("http://u:p@a"), Config.from_uri("http://u:p@a")
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(ValueError, match="frozen"):
        one.zone = "x"


def test_models_made_by_hand_raise_config_errors():
    """Whoever builds a Config in Python gets the same texts as from a file."""
    with pytest.raises(ConfigError) as caught:
        Retry(max_attempts=0, backof_s=1)
    assert str(caught.value).splitlines() == [
        "Retry: max_attempts: must be at least 1, got 0; write for example max_attempts = 5",
        "Retry: backof_s: unknown key; did you mean backoff_s?",
    ]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://u:p@h:1/d", "http://***@h:1/d"),
        ("http://u:p/w@x@h:1", "http://***@h:1"),
        ("u:p@h", "***@h"),
        ("http://h?token=x", "http://h?***"),
        ("http://h:1", "http://h:1"),
    ],
)
def test_redact(uri, shown):
    """Credentials, query and fragment go; the rest stays."""
    assert redact(uri) == shown
