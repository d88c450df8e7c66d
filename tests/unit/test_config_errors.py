"""Every mistake in a configuration has a text that says where it is, what is wrong and what to write."""

# ruff: noqa: E501, PT017
# A table with one mistake per line is read across; properties need the error and the value alike.

import re
import tomllib

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from haclient.config import ClusterConfig, Config, EndpointConfig, ProxyTLS, Replication
from haclient.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("HACLIENT_URI", "HACLIENT_CONFIG", "MILVUS_URI", "NOT_SET"):
        monkeypatch.delenv(name, raising=False)


def error_of(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None, "pydantic's error holds the values given"
    return str(error)


A = '[[cluster]]\nname = "a"\nendpoints = ["a:1"]\n'
FORMS = (
    'write for example "http://10.0.0.1:19530", "10.0.0.1:19530", "https://milvus.example.com", '
    '"unix:/run/milvus.sock" or "./milvus.db"'
)

FILES = [
    # unknown keys
    (A + "[health]\nintervall_s = 1.0", "health.intervall_s: unknown key; did you mean interval_s?"),
    (A + "[helth]\ninterval_s = 1.0", "helth: unknown key; did you mean health?"),
    ("[[clusters]]\n" + A.split("\n", 1)[1], "clusters: unknown key; did you mean cluster? Write [[cluster]]"),
    (A + "interval_s = 1.0", "cluster[0].interval_s: unknown key here; write it in [health]"),
    (
        A + "[health]\nreplication = 'none'",
        "health.replication: unknown key here; write it at the top of the file, before any [section]",
    ),
    ("max_attempts = 3\n" + A, "max_attempts: unknown key here; write it in [retry]"),
    ("source = 'x'\n" + A, "source: is not a key to be set; leave it out"),
    (
        A + "[wire]\nqqqq = 1",
        "wire.qqqq: unknown key; the keys here are connections, max_connection_age_s, max_message_bytes",
    ),
    (A + '[[cluster]]\nname = "b"\nendpoints = [{url = "b:1"}]', 'cluster[1].endpoints[0]: names no address; write uri = "http://10.0.0.1:19530"'),
    (A + '[[cluster]]\nname = "b"\nendpoints = [{uri = "b:1", nam = "x"}]', "cluster[1].endpoints[0].nam: unknown key; did you mean name?"),
    # wrong types
    (A + '[timeouts]\nread_s = "10"', "timeouts.read_s: must be a number, got a string; write for example read_s = 10.0"),
    (A + "[timeouts]\nread_s = true", "timeouts.read_s: must be a number, got true; write for example read_s = 10.0"),
    (A + "[breaker]\nmin_calls = 2.5", "breaker.min_calls: must be a whole number, got 2.5; write for example min_calls = 5"),
    (A + "[breaker]\nmin_calls = false", "breaker.min_calls: must be a whole number, got false; write for example min_calls = 5"),
    (A + "[hedge]\nenabled = 1", "hedge.enabled: must be true or false, got 1; write for example enabled = true"),
    (A + "[hedge]\nenabled = 2020-01-01", "hedge.enabled: must be true or false, got a date; write for example enabled = true"),
    ("hedge = 3\n" + A, "hedge: must be a table, got 3; write [hedge]"),
    ("cluster = 3", "cluster: must be a list, got 3; write [[cluster]] with name and endpoints"),
    ("cluster = [3]", "cluster[0]: must be a table, got 3; write [[cluster]] with name and endpoints"),
    (A.replace('["a:1"]', '"a:1"'), 'cluster[0].endpoints: must be a list, got a string; write for example endpoints = ["http://10.0.0.1:19530"]'),
    (A.replace('"a:1"', "3"), 'cluster[0].endpoints[0]: must be a table, got 3; write for example endpoints = ["http://10.0.0.1:19530"]'),
    (A.replace('"a:1"', "{uri = 3}"), 'cluster[0].endpoints[0]: uri must be a string; write uri = "http://10.0.0.1:19530"'),
    (A + "token = 12345", 'cluster[0].token: must be a string, got a number; write for example token = "${MILVUS_TOKEN}"'),
    ('replication = "none"\n' + A, "replication: must be a table, got a string; write [replication]"),
    (A + 'discovery = "dsn"', 'cluster[0].discovery: is not known; write "dns"'),
    (A + 'discovery = 3', 'cluster[0].discovery: is not known; write "dns" or "none"'),
    # numbers out of range
    (A + "[timeouts]\nread_s = -1", "timeouts.read_s: must be greater than 0, got -1; write for example read_s = 10.0"),
    (A + "[timeouts]\nread_s = 0.0", "timeouts.read_s: must be greater than 0, got 0.0; write for example read_s = 10.0"),
    (A + "[timeouts]\nread_s = nan", "timeouts.read_s: must be a finite number, got nan; write for example read_s = 10.0"),
    (A + "[timeouts]\nread_s = inf", "timeouts.read_s: must be a finite number, got inf; write for example read_s = 10.0"),
    (A + "[retry]\nbackoff_s = -0.1", "retry.backoff_s: must be at least 0, got -0.1; write for example backoff_s = 0.02"),
    (A + "[hedge]\nquantile = 1.0", "hedge.quantile: must be less than 1, got 1.0; write for example quantile = 0.95"),
    (A + "[breaker]\nfailure_ratio = 1.5", "breaker.failure_ratio: must be at most 1, got 1.5; write for example failure_ratio = 0.5"),
    (A + "weight = 0.0", "cluster[0].weight: must be greater than 0, got 0.0; write for example weight = 1.0"),
    (A + "priority = -1", "cluster[0].priority: must be at least 0, got -1; write for example priority = 0"),
    (A + "[retry]\nbackoff_s = 2.0", "retry.backoff_s: 2.0 is more than max_backoff_s (1.0); write at most 1.0, or raise max_backoff_s"),
    (A + "[breaker]\nopen_s = 60", "breaker.open_s: 60.0 is more than max_open_s (30.0); write at most 30.0, or raise max_open_s"),
    (A + "[hedge]\nmin_delay_s = 0.1", "hedge.min_delay_s: 0.1 is more than initial_delay_s (0.05); write at most 0.05, or raise initial_delay_s"),
    # clusters and endpoints
    ("", "cluster: is missing; write [[cluster]] with name and endpoints"),
    ("cluster = []", "cluster: is empty; write [[cluster]] with name and endpoints"),
    ('[[cluster]]\nendpoints = ["a:1"]', 'cluster[0].name: is missing; write for example name = "a"'),
    ('[[cluster]]\nname = ""\nendpoints = ["a:1"]', 'cluster[0].name: must be a printable name; write for example "a"'),
    ('[[cluster]]\nname = "a"', 'cluster[0].endpoints: is missing; write for example endpoints = ["http://10.0.0.1:19530"]'),
    ('[[cluster]]\nname = "a"\nendpoints = []', 'cluster[0].endpoints: is empty; write for example endpoints = ["http://10.0.0.1:19530"]'),
    (A + A.replace("a:1", "b:1"), 'cluster[1]: two clusters are named "a" (the other is cluster[0]); write another name, or leave one of them out'),
    (A + A.replace('"a"', '"b"'), 'cluster[1].endpoints[0]: two endpoints have the address "a:1" (the other is cluster[0].endpoints[0]); write it once'),
    (
        A.replace('["a:1"]', '[{name = "x", uri = "a:1"}, {name = "x", uri = "a:2"}]'),
        'cluster[0].endpoints[1]: two endpoints are named "x" (the other is endpoints[0]); write another name, or leave one of them out',
    ),
    (A.replace("a:1", "http://u:p@a:1"), 'cluster[0].endpoints[0]: "http://***@a:1": credentials belong in the [[cluster]]; write user and password, or token, there'),
    (A.replace("a:1", "http://a:1/books"), 'cluster[0].endpoints[0]: "http://a:1/books": a database belongs at the top of the file; write database = "..." there'),
    (A.replace("a:1", "ftp://a:1"), f'cluster[0].endpoints[0]: "ftp://a:1": has a scheme that is not known; {FORMS}'),
    (A.replace("a:1", "./no/such/x.db").replace("./no", "/no"), 'cluster[0].endpoints[0]: "/no/such/x.db": the folder of this file does not exist; create it, or write the path of another one'),
    (A.replace("a:1", "./x.db") + 'discovery = "dns"', 'cluster[0].discovery: needs host names, not files or sockets; write discovery = "none"'),
    # credentials
    (A + 'token = "${NOT_SET}"', "cluster[0].token: the environment variable NOT_SET is not set; set it, or write $$ for a dollar sign"),
    (A + 'token = "a$b"', "cluster[0].token: has a dollar sign that starts no ${NAME}; write $$ for the sign itself"),
    (A + 'user = "root"', 'cluster[0].password: is missing although user is given; write password = "${NAME}"'),
    (A + 'password = "x"', 'cluster[0].user: is missing although password is given; write user = "${NAME}"'),
    (A + 'token = "x"\nuser = "y"', "cluster[0].token: is given together with user or password; write only one of the two forms"),
    # TLS
    (A + 'ca_pem_path = "/no/such.pem"\nsecure = true', 'cluster[0].ca_pem_path: cannot read "/no/such.pem" (No such file or directory); write the path of a PEM file'),
    (A + 'server_pem_path = "/"\nsecure = true', 'cluster[0].server_pem_path: cannot read "/" (Is a directory); write the path of a PEM file'),
    (A + 'ca_pem_path = "/etc/hostname"\nsecure = true', 'cluster[0].ca_pem_path: "/etc/hostname" holds no certificate in PEM form; write the path of one'),
    (A + 'server_name = "x"', "cluster[0].server_name: is given but nothing uses TLS; write secure = true, or https:// endpoints"),
    # the proxy
    (A + '[proxy]\nadmin_token = "${NOT_SET}"', "proxy.admin_token: the environment variable NOT_SET is not set; set it, or write $$ for a dollar sign"),
    (A + '[proxy]\ntokens = ["x", "a$b"]', "proxy.tokens[1]: has a dollar sign that starts no ${NAME}; write $$ for the sign itself"),
    (A + "[proxy]\nadmin_token = 12345", 'proxy.admin_token: must be a string, got a number; write for example admin_token = "${MILVUS_ADMIN_TOKEN}"'),
    (A + '[proxy]\ntokens = "x"', 'proxy.tokens: must be a list, got a string; write for example tokens = ["${MILVUS_TOKENS}"]'),
    (A + "[proxy]\ntokens = [12345]", 'proxy.tokens[0]: must be a string, got a number; write for example tokens = ["${MILVUS_TOKENS}"]'),
    (A + '[proxy]\ntokens = [""]', "proxy.tokens: one of them is empty; write the token, or leave it out"),
    (A + '[proxy]\nlisten = "19530"', 'proxy.listen: "19530" is not host:port; write for example "0.0.0.0:19530"'),
    (A + '[proxy]\nadmin = "0.0.0.0:9091"', 'proxy.admin: "0.0.0.0:9091" can be reached by others, and there is no admin_token; write one, or admin = "127.0.0.1:9091"'),
    (A + '[proxy.tls]\nkey_file = "k.pem"', "proxy.tls.cert_file: is missing; write the PEM file of the proxy's certificate"),
    (A + '[proxy.tls]\ncert_file = "/no/such.pem"', 'proxy.tls.cert_file: cannot read "/no/such.pem" (No such file or directory); write the path of a PEM file'),
    (A + '[proxy.tls]\ncert_file = "/etc/hostname"', 'proxy.tls.cert_file: "/etc/hostname" holds no certificate in PEM form; write the path of one'),
    # replication
    (A + '[replication]\nmode = "mirrored"', 'replication.mode: is not known; write "mirror"'),
    (A + '[replication]\nack = 2', 'replication.ack: is not known; write "all" or "log" or "one" or "quorum"'),
    (A + "[replication]\nlease_s = 0", "replication.lease_s: must be greater than 0, got 0; write for example lease_s = 1.5"),
    (A + "[replication]\nmax_bytes = 1000", "replication.max_bytes: must be at least 1048576, got 1000; write for example max_bytes = 4294967296"),
    (A + '[replication]\nlog = "kafka://h:1"', "replication.log: is no kind of log that is known; write a path, or etcd://host:2379,host:2379"),
    (A + '[replication]\nlog = "etcd://"', "replication.log: does not list addresses; write etcd://host:2379,host:2379, and a user as etcd_user"),
    (A + '[replication]\nlog = "etcd://h1:2379,h2"', "replication.log: does not list addresses; write etcd://host:2379,host:2379, and a user as etcd_user"),
    (A + '[replication]\nlog = "etcd://root:s3cret@h1:2379"', "replication.log: does not list addresses; write etcd://host:2379,host:2379, and a user as etcd_user"),
    (A + '[replication]\nlog = "etcd://h:2379"\netcd_user = "u"', "replication.etcd_password: is missing although etcd_user is given; write both"),
    (A + '[replication]\nlog = "etcd://h:2379"\netcd_password = "p"', "replication.etcd_user: is missing although etcd_password is given; write both"),
    (A + '[replication]\nlog = "etcd://h:2379"\netcd_password = 12345', 'replication.etcd_password: must be a string, got a number; write for example etcd_password = "${MILVUS_ETCD_PASSWORD}"'),
    (A + '[replication]\nlog = "etcd://h:2379"\netcd_user = "u"\netcd_password = "${NOT_SET}"', "replication.etcd_password: the environment variable NOT_SET is not set; set it, or write $$ for a dollar sign"),
    (A + '[replication]\nlog = "etcd://h:2379"\netcd_ca_file = "/etc/hostname"', 'replication.etcd_ca_file: "/etc/hostname" holds no certificate in PEM form; write the path of one'),
    (A + '[replication]\nlog = "etcd://h:2379"\netcd_ca_file = "/no/such.pem"', 'replication.etcd_ca_file: cannot read "/no/such.pem" (No such file or directory); write the path of a PEM file'),
    # probes
    (A + 'healthz_url = "http://{hots}/"', 'cluster[0].healthz_url: knows only {host} and {port} in braces; write for example "http://{host}:9091/healthz"'),
    (A + 'healthz_url = "http://{host"', 'cluster[0].healthz_url: has a brace that is not closed; write for example "http://{host}:9091/healthz"'),
    (A + 'healthz_url = "{host}:9091"', 'cluster[0].healthz_url: must be an http or https URL; write for example "http://{host}:9091/healthz"'),
    (A + '[[health.canary]]\nexpect = [1]\nfilter = "x"', 'health.canary[0].collection: is missing; write for example collection = "docs"'),
    (A + '[[health.canary]]\ncollection = "c"\nexpect = [1.5]\nfilter = "x"', "health.canary[0].expect[0]: must be a whole number or a string, got 1.5; write for example 1"),
    (A + '[[health.canary]]\ncollection = "c"\nexpect = [1]', 'health.canary[0].filter: and vector are both missing; write one of them, for example filter = "id in [1, 2, 3]"'),
    (A + '[[health.canary]]\ncollection = "c"\nexpect = [1, 2]\nfilter = "x"\nlimit = 1', "health.canary[0].limit: 1 hits cannot hold 2 expected keys; write limit = 2 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), FILES)
def test_one_mistake_in_a_file(tmp_path, text, problem):
    """The file, the key, what is wrong, what to write."""
    path = tmp_path / "haclient.toml"
    path.write_text(text)
    assert error_of(Config.from_file, path) == f"{path}: {problem}"


def test_all_mistakes_are_told_at_once(tmp_path):
    """One line per problem, in one error."""
    path = tmp_path / "h.toml"
    path.write_text(
        'zone = 1\n[[cluster]]\nname = "a"\nendpoints = ["a:b", "http://"]\ntoken = "${NOT_SET}"\n'
        "[retry]\nmax_attempts = 0\nbackoff = 1\n[timeouts]\nread_s = -1\n"
    )
    assert error_of(Config.from_file, path).splitlines() == [
        f"{path}: cluster[0].token: the environment variable NOT_SET is not set; set it, or write $$ for a dollar sign",
        f'{path}: cluster[0].endpoints[0]: "a:b": the port is not a number from 1 to 65535; '
        'write for example "http://10.0.0.1:19530"',
        f'{path}: cluster[0].endpoints[1]: "http://": the host is missing or has characters that no host name has; '
        f"{FORMS}",
        f'{path}: zone: must be a string, got 1; write for example zone = "...", or leave it out',
        f"{path}: timeouts.read_s: must be greater than 0, got -1; write for example read_s = 10.0",
        f"{path}: retry.max_attempts: must be at least 1, got 0; write for example max_attempts = 5",
        f"{path}: retry.backoff: unknown key; did you mean backoff_s?",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a = \n", r"is not TOML: .*\(at line 1, column \d+\); correct that line"),
        (b"a = 1\na = 2\n", r"is not TOML: .*\(at line 2, column \d+\); correct that line"),
        (b"a = '\xff'\n", r"is not UTF-8 text \(byte 5\); save it as UTF-8"),
        (b"a = " + b"1" * 5000, "is not TOML: a number is too long or a table nested too deeply; see examples/haclient.toml"),
    ],
)  # fmt: skip
def test_files_that_are_no_toml(tmp_path, content, problem):
    """The line is named; the content is not shown."""
    path = tmp_path / "h.toml"
    path.write_bytes(content)
    assert re.fullmatch(f"{re.escape(str(path))}: {problem}", error_of(Config.from_file, path))


def test_files_that_cannot_be_read(tmp_path):
    """A missing file and a folder."""
    instead = "write the path of a TOML file, see examples/haclient.toml"
    missing = error_of(Config.from_file, tmp_path / "x.toml")
    assert missing == f"{tmp_path}/x.toml: cannot be read (No such file or directory); {instead}"
    assert error_of(Config.from_file, tmp_path) == f"{tmp_path}: cannot be read (Is a directory); {instead}"


URIS = [
    ("", "uri: names no endpoint; write for example uri=\"http://10.0.0.1:19530\""),
    ([], "uri: names no endpoint; write for example uri=\"http://10.0.0.1:19530\""),
    (" , ", "uri: names no endpoint; write for example uri=\"http://10.0.0.1:19530\""),
    (5, 'uri: must be a string or a list of strings, got 5; write for example uri="http://10.0.0.1:19530"'),
    (b"x", 'uri: must be a string or a list of strings, got a list; write for example uri="http://10.0.0.1:19530"'),
    (["http://a", 5], 'uri[1]: must be a string, got 5; write for example uri="http://10.0.0.1:19530"'),
    (["http://a", ""], f'uri[1]: "": is empty; {FORMS}'),
    ("milvus", f'uri: "milvus": has neither a scheme nor a port; {FORMS}'),
    ("htp://a:1", f'uri: "htp://a:1": has a scheme that is not known; {FORMS}'),
    ("http://a:99999", 'uri: "http://a:99999": the port is not a number from 1 to 65535; write for example "http://10.0.0.1:19530"'),
    ("http://a:", 'uri: "http://a:": the port is not a number from 1 to 65535; write for example "http://10.0.0.1:19530"'),
    ("http://a:0", 'uri: "http://a:0": the port is not a number from 1 to 65535; write for example "http://10.0.0.1:19530"'),
    ("http://user:pa:55@h:x", 'uri: "http://***@h:x": the port is not a number from 1 to 65535; write for example "http://10.0.0.1:19530"'),
    ("http://::1:19530", 'uri: "http://::1:19530": has several colons; write an IPv6 address in brackets, for example "http://[2001:db8::1]:19530"'),
    ("http://[::1:19530", 'uri: "http://[::1:19530": the IPv6 address is not right; write for example "http://[2001:db8::1]:19530"'),
    ("http://a b:1", f'uri: "http://a b:1": the host is missing or has characters that no host name has; {FORMS}'),
    ("http://a?x=1", f'uri: "http://a?***": has a query or a fragment, which means nothing here; {FORMS}'),
    ("u:p@h:1", 'uri: "***@h:1": has credentials but no scheme; write for example "http://user:password@10.0.0.1:19530"'),
    ("unix:", 'uri: "unix:": names no socket; write for example "unix:/run/milvus.sock"'),
    ("http://a:1,http://a:1", 'uri[1]: "a:1" is also uri[0]; write it once'),
    ("http://u:a/b@h:1", 'uri: "http://***@h:1": has an @ behind a slash, ? or #, so it is not clear which host is meant; write credentials with such characters as user and password, or as token'),
    ("http://h?token=x@y", 'uri: "http://***": has an @ behind a slash, ? or #, so it is not clear which host is meant; write credentials with such characters as user and password, or as token'),
    (["http://a:1", "https://a:1"], 'uri[1]: "a:1" is also uri[0]; write it once'),
    ("http://a/x,http://b/y", 'uri: the URIs name several databases; write one, as db_name="..."'),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "problem"), URIS)
def test_bad_uris(uri, problem):
    """Shown redacted, with an example."""
    assert error_of(Config.from_uri, uri) == f"arguments: {problem}"


ARGUMENTS = [
    ({"zone": 1}, 'zone: must be a string, got 1; write for example zone = "...", or leave it out'),
    ({"tokn": "x"}, "tokn: unknown key; the keys here are cluster, zone, database, replication, timeouts, health, breaker, hedge, retry, wire, proxy"),
    ({"helth": {}}, "helth: unknown key; did you mean health?"),
    ({"token": 5}, 'token: must be a string, got a number; write token="..."'),
    ({"secure": "yes"}, "secure: must be true or false, got a string; write for example secure = false"),
    ({"health": {"interval_s": "1"}}, "health.interval_s: must be a number, got a string; write for example interval_s = 1.0"),
    ({"database": "x"}, 'database: does not go together with uri; write db_name="..."'),
    ({"clusters": ()}, "clusters: does not go together with uri; write config={...} instead"),
    ({"ca_pem_path": "/no"}, 'ca_pem_path: cannot read "/no" (No such file or directory); write the path of a PEM file'),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "problem"), ARGUMENTS)
def test_bad_arguments(arguments, problem):
    """Arguments are named as they were written, not as clusters they became."""
    lines = error_of(Config.from_uri, ["https://a", "https://b"], **arguments).splitlines()
    assert lines == [f"arguments: {problem}".replace("arguments: clusters:", "arguments: cluster:")]


def test_bad_arguments_beside_bad_uris():
    """One call tells both, at the right places."""
    assert error_of(Config.from_uri, ["http://a:x", "http://b"], secure=1, retry={"max_attempts": 0}).splitlines() == [
        'arguments: uri[0]: "http://a:x": the port is not a number from 1 to 65535; '
        'write for example "http://10.0.0.1:19530"',
        "arguments: secure: must be true or false, got 1; write for example secure = false",
        "arguments: retry.max_attempts: must be at least 1, got 0; write for example max_attempts = 5",
    ]


def test_sources_that_exclude_each_other(tmp_path, monkeypatch):
    """Two answers to the question which servers there are."""
    path = tmp_path / "h.toml"
    path.write_text(A)
    both = error_of(Config.load, "http://a", path)
    assert both == "arguments: config: is given together with uri; write only one of them"
    beside = error_of(Config.load, config=path, token="secret-value", secure=True, clusters=())
    assert beside.splitlines() == [
        "arguments: token: does not go together with a configuration; write it in the [[cluster]] it is for",
        "arguments: secure: does not go together with a configuration; write it in the [[cluster]] it is for",
        "arguments: cluster: does not go together with a configuration; write it there",
    ]
    assert error_of(Config.load, config=path, hedge={"enabled": 3}) == (
        "arguments: hedge.enabled: must be true or false, got 3; write for example enabled = true"
    )
    wrong = error_of(Config.load, config=3)
    assert (
        wrong
        == 'arguments: config: must be a path, a dict or a Config, got 3; write for example config="haclient.toml"'
    )
    monkeypatch.setenv("HACLIENT_CONFIG", str(path))
    monkeypatch.setenv("HACLIENT_URI", "http://a")
    env = error_of(Config.load)
    assert env == "environment: HACLIENT_URI: is set together with HACLIENT_CONFIG; unset one of them"


def test_mistakes_in_the_environment(tmp_path, monkeypatch):
    """The variable is named."""
    monkeypatch.setenv("HACLIENT_URI", "http://u:p@h:x")
    assert error_of(Config.load, zone=1).splitlines() == [
        'environment: HACLIENT_URI: "http://***@h:x": the port is not a number from 1 to 65535; '
        'write for example "http://10.0.0.1:19530"',
        'arguments: zone: must be a string, got 1; write for example zone = "...", or leave it out',
    ]
    monkeypatch.delenv("HACLIENT_URI")
    monkeypatch.setenv("HACLIENT_CONFIG", "/no/such.toml")
    assert error_of(Config.load) == (
        "environment: HACLIENT_CONFIG: /no/such.toml: cannot be read (No such file or directory); "
        "write the path of a TOML file, see examples/haclient.toml"
    )


def test_empty_environment_variable(tmp_path, monkeypatch):
    """An empty secret is a mistake, not an open door."""
    monkeypatch.setenv("NOT_SET", "")
    problem = error_of(Config.load, config=tomllib.loads(A + 'token = "${NOT_SET}"'))
    assert problem == "config: cluster[0].token: the environment variable NOT_SET is empty; set it to a value"


def test_what_only_etcd_needs(tmp_path):
    """Credentials and certificates that nothing would use, and halves of pairs, are told of."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "cert.pem")
    unused = 'is given but the log is no etcd; write log = "etcd://host:2379", or leave it out'
    assert error_of(Replication, log="log.db", etcd_user="u", etcd_password="p").splitlines() == [
        f"Replication: etcd_user: {unused}",
        f"Replication: etcd_password: {unused}",
    ]
    incomplete = error_of(Replication, log="etcd://h:2379", etcd_cert_file=str(tmp_path / "cert.pem"))
    assert incomplete.splitlines() == [
        "Replication: etcd_key_file: is missing: mutual TLS needs a certificate and its key; write both paths",
        "Replication: etcd_ca_file: is missing: without it there is no TLS; write the path of a PEM file",
    ]


def test_certificates_that_do_not_match(tmp_path):
    """Found at once and not at the first handshake."""
    ca = trustme.CA()
    one, two = ca.issue_cert("one"), ca.issue_cert("two")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    one.cert_chain_pems[0].write_to_path(cert)
    two.private_key_pem.write_to_path(key)
    assert error_of(Config.from_uri, "https://a", client_pem_path=cert, client_key_path=key) == (
        f'arguments: client_key_path: "{key}" is not the key of "{cert}", or has a pass phrase; '
        "write the paths of a matching pair without a pass phrase"
    )
    assert error_of(Config.from_uri, "https://a", client_pem_path=cert) == (
        "arguments: client_key_path: is missing: mutual TLS needs a certificate and its key; write both paths"
    )
    both = error_of(Config.from_uri, "https://a", ca_pem_path=cert, server_pem_path=cert)
    assert both == "arguments: server_pem_path: is given together with ca_pem_path; write only one of them"
    for files, field in (
        ({"cert_file": str(cert), "key_file": str(key)}, "key_file"),
        ({"cert_file": str(cert)}, "cert_file"),
    ):
        problem = error_of(ProxyTLS, **files)
        assert problem.startswith(f"ProxyTLS: {field}: ")
        assert problem.endswith("has a pass phrase; write the paths of a matching pair without a pass phrase")
    etcd = {"log": "etcd://h:2379", "etcd_ca_file": str(cert)}
    assert error_of(Replication, **etcd, etcd_cert_file=str(cert), etcd_key_file=str(key)) == (
        f'Replication: etcd_key_file: "{key}" is not the key of "{cert}", or has a pass phrase; '
        "write the paths of a matching pair without a pass phrase"
    )
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    assert error_of(Config.from_uri, "https://a", ca_pem_path=broken) == (
        f'arguments: ca_pem_path: "{broken}" holds no certificate that can be read; write the path of a PEM file'
    )


# --- secrets ------------------------------------------------------------------------------------------------

# The snowman keeps a secret from being part of an error's text by chance.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=20)
SECRETS = st.builds("{}\N{SNOWMAN}{}".format, TEXT, TEXT)


def forms(value):
    return f"{value!r} {value!s} {value.model_dump()!r} {value.model_dump_json()}"


def shown(function):
    try:
        value = function()
    except ConfigError as error:
        assert error.__context__ is None
        return f"{error!r} {error} {error.args}"
    return forms(value)


PAYLOADS = [
    lambda s: Config.from_uri("http://h", token=s),
    lambda s: Config.from_uri("http://h", user="user", password=s),
    lambda s: Config.from_uri("http://h:x", user="user", password=s, health=3, secure=1),
    lambda s: Config.from_uri(f"http://user:{s}@h"),
    lambda s: Config.from_uri(f"http://user:{s}@h:x"),
    lambda s: Config.from_uri(f"http://a,http://user:{s}@h,http://b:x"),
    lambda s: Config.from_uri([f"http://user:{s}@h", f"ftp://user:{s}@h"]),
    lambda s: Config.from_uri(f"http://h?token={s}"),
    lambda s: Config.load(config={"cluster": [{"name": "a", "endpoints": [f"http://u:{s}@a"], "token": s}]}),
    lambda s: Config.load(config={"cluster": [{"name": "a", "endpoints": ["a:1"], "token": [s], "user": {"x": s}}]}),
    lambda s: Config.load(config={"cluster": [{"name": "a", "endpoints": ["a:1"], "tokn": s, "weight": s}]}),
    lambda s: Config.load(config={"cluster": [{"name": "a", "endpoints": ["a:1"], "user": s}], "zone": 1}),
    lambda s: Config.load(config={"cluster": s, "hedge": s, "replication": s, "health": {"canary": [s]}}),
    lambda s: ClusterConfig(name="a", endpoints=(EndpointConfig(host="h"),), token=s, weight=s),
    lambda s: EndpointConfig(uri=f"http://u:{s}@h"),
]


@pytest.mark.parametrize("payload", PAYLOADS)
@given(secret=SECRETS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_secrets_are_never_shown(payload, secret):
    """Wherever a secret is put, rightly or wrongly, neither the value nor the error shows it."""
    text = shown(lambda: payload(secret))
    assert "\N{SNOWMAN}" not in text


@given(text=st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_uri_gives_a_configuration_or_a_config_error(text):
    """Never another exception, and always one line per problem."""
    try:
        Config.from_uri(text)
    except ConfigError as error:
        assert all(line.startswith("arguments: ") for line in str(error).split("\n"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["cluster", "name", "endpoints", "uri", "token", "health", "canary", "expect", "vector", "interval_s", "x"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    data=st.dictionaries(st.sampled_from(["cluster", "clusters", "health", "hedge", "zone", "source", "\n"]), VALUES)
)
@settings(max_examples=500, deadline=None)
def test_any_dict_gives_a_configuration_or_a_config_error(data):
    """Never another exception, and always one line per problem."""
    try:
        Config.load(config=data)
    except ConfigError as error:
        assert all(line.startswith("config: ") for line in str(error).split("\n")), str(error)
