"""What can be configured, where it comes from, and what is wrong with it.

Decision made here: everything is checked at once, before anything is sent. A mistake is a `ConfigError` with
one line per problem: where it was written, the key's path, what is wrong, and what to write instead.
Secrets are never shown: credentials are `SecretStr`, URIs appear redacted, and of the values given only
numbers outside secret keys are repeated.

Sources, strongest first: arguments, ``HACLIENT_CONFIG`` or ``HACLIENT_URI``, ``MILVUS_URI`` (what pymilvus
reads), ``http://localhost:19530``. In a file (or a dict, which has the same grammar) ``${NAME}`` in ``token``,
``user`` and ``password`` is replaced by the environment variable and ``$$`` is a dollar sign; arguments are
taken literally, as pymilvus takes them.
"""

from __future__ import annotations

import base64
import difflib
import itertools
import os
import re
import ssl
import string
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar, final, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from haclient.errors import ConfigError

DEFAULT_URI = "http://localhost:19530"
DEFAULT_PORT = 19530
EXAMPLE_URI = "http://10.0.0.1:19530"

_SECRET_KEYS = frozenset({"token", "user", "password"})
_TLS_FILES = ("ca_pem_path", "client_pem_path", "client_key_path", "server_pem_path")

Seconds: TypeAlias = Annotated[float, Field(gt=0)]
SecondsOrZero: TypeAlias = Annotated[float, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


# --- one problem, many problems -----------------------------------------------------------------------------


Loc: TypeAlias = tuple[str | int, ...]
Problem: TypeAlias = tuple[Loc, str]


def _fail(text: str) -> PydanticCustomError:
    return PydanticCustomError("haclient", "{text}", {"text": text})


def _fail_all(problems: Sequence[Problem]) -> PydanticCustomError:
    """Several problems of one table, each at its own key below that table."""
    return PydanticCustomError("haclient_many", "several problems", {"problems": tuple(problems)})


def key_path(loc: Iterable[str | int]) -> str:
    """Write a location as it is found in the file, for example ``cluster[1].endpoints[0]``."""
    text = ""
    for part in loc:
        if not text and part == "clusters":
            text = "cluster"
        elif isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class _Section(BaseModel):
    """A table of the configuration: immutable, keyword-only, strict, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True, validate_default=False
    )

    def __init__(self, /, **data: Any) -> None:
        details: list[ErrorDetails] = []
        try:
            super().__init__(**data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        if details:  # raised out here so that pydantic's error, which holds the values, is not chained
            raise _config_error(type(self).__name__, _problems(type(self), details))

    # Tells pydantic that nested tables need not go through this method.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


# --- addresses ----------------------------------------------------------------------------------------------


def redact(uri: str) -> str:
    """Return the URI without its credentials, query and fragment, for messages and logs."""
    head, at, tail = uri.rpartition("@")
    if at:
        scheme, found, _ = head.partition("://")
        uri = f"{scheme if found and scheme.isalnum() else '***'}://***@{tail}" if found else f"***@{tail}"
    return re.sub(r"[?#].*", "?***", uri, flags=re.DOTALL)


@final
@dataclass(frozen=True, slots=True)
class Address:
    """What one URI says.

    Attributes:
        scheme: How it is reached: ``tcp``, ``unix`` (a socket) or ``lite`` (a milvus-lite file).
        host: Name or address, IPv6 without brackets; "" unless ``tcp``.
        port: TCP port, 0 unless ``tcp``.
        path: The socket's or the file's path.
        secure: The scheme was ``https``.
        token: Credentials of the URI, ``user:password`` or a token.
        database: First segment of the URI's path.
    """

    scheme: Literal["tcp", "unix", "lite"]
    host: str = ""
    port: int = 0
    path: str = ""
    secure: bool = False
    token: str = field(default="", repr=False)
    database: str = ""


_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?")
_FORMS = f'"{EXAMPLE_URI}", "10.0.0.1:19530", "https://milvus.example.com", "unix:/run/milvus.sock" or "./milvus.db"'


def parse_uri(uri: str, *, shown: str | None = None) -> Address:
    """Read one URI as pymilvus' ``ConnectionConfig.from_uri`` does, but refuse what it would ignore.

    Args:
        uri: ``http://``, ``https://`` or ``tcp://`` URI, ``host:port``, ``unix:PATH``, or a path ending in ``.db``.
        shown: What to show in errors instead of the redacted URI.

    Raises:
        ValueError: With the URI redacted, what is wrong, and an example.
    """
    shown = redact(uri) if shown is None else shown

    def wrong(what: str, instead: str = f"write for example {_FORMS}") -> ValueError:
        return ValueError(f'"{shown}": {what}; {instead}')

    text = uri.strip()
    if not text:
        raise wrong("is empty")
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path[2:] if path.startswith("//") else path
        if not path:
            raise wrong("names no socket", 'write for example "unix:/run/milvus.sock"')
        return Address("unix", path=path)
    scheme, found, rest = text.partition("://")
    if not found:
        if text.endswith(".db"):
            if not Path(text).expanduser().parent.is_dir():
                raise wrong("the folder of this file does not exist", "create it, or write the path of another one")
            return Address("lite", path=text)
        scheme, rest = "", text
    scheme = scheme.lower()
    if scheme not in {"", "http", "https", "tcp"}:
        raise wrong("has a scheme that is not known")
    if re.search(r"[?#]", rest.rpartition("@")[2]):
        raise wrong("has a query or a fragment, which means nothing here")
    authority, _, path = rest.rpartition("@")[2].partition("/")
    userinfo = rest.rpartition("@")[0]
    if userinfo and not scheme:
        raise wrong("has credentials but no scheme", 'write for example "http://user:password@10.0.0.1:19530"')
    host, port_text = _split_host(authority, wrong)
    port = 443 if scheme == "https" else DEFAULT_PORT
    if port_text is None and not scheme:
        raise wrong("has neither a scheme nor a port")
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
            raise wrong("the port is not a number from 1 to 65535", f'write for example "{EXAMPLE_URI}"')
        port = int(port_text)
    user, colon, password = userinfo.partition(":")
    token = f"{user}:{password}" if colon and password else user
    database = path.strip("/").split("/")[0]
    return Address("tcp", host, port, secure=scheme == "https", token=token, database=database)


def _split_host(authority: str, wrong: Callable[..., ValueError]) -> tuple[str, str | None]:
    if authority.startswith("["):
        host, bracket, after = authority[1:].partition("]")
        if not bracket or not _IPV6.fullmatch(host) or (after and not after.startswith(":")):
            raise wrong("the IPv6 address is not right", 'write for example "http://[2001:db8::1]:19530"')
        return host, after[1:] if after else None
    if authority.count(":") > 1:
        raise wrong("has several colons", 'write an IPv6 address in brackets, for example "http://[2001:db8::1]:19530"')
    host, colon, port = authority.partition(":")
    if not _HOST.fullmatch(host):
        raise wrong("the host is missing or has characters that no host name has")
    return host, port if colon else None


# --- the tables ---------------------------------------------------------------------------------------------


def _name(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise _fail('must be a printable name; write for example "a"')
    return value


@final
class EndpointConfig(_Section):
    """One Milvus address. In a file: a string, or a table with ``name`` and ``uri``."""

    #: Name in events, metrics and errors; "host:port", or the path, unless given.
    name: str = ""
    #: How it is reached: TCP, a Unix socket, or an embedded milvus-lite file.
    scheme: Literal["tcp", "unix", "lite"] = "tcp"
    #: Host name or address, IPv6 without brackets; "" unless ``scheme`` is "tcp".
    host: str = ""
    #: TCP port.
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    #: Path of the Unix socket or of the ``.db`` file.
    path: str = ""
    #: Whether TLS is used.
    secure: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_uri(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"uri": data}
        if not isinstance(data, Mapping) or "uri" not in data:
            if isinstance(data, Mapping) and not ("host" in data or "path" in data):
                raise _fail(f'names no address; write uri = "{EXAMPLE_URI}"')
            return data
        uri = data["uri"]
        if not isinstance(uri, str):
            raise _fail(f'uri must be a string; write uri = "{EXAMPLE_URI}"')
        try:
            address = parse_uri(uri)
        except ValueError as error:
            raise _fail(str(error)) from None
        shown = redact(uri)
        if address.token:
            raise _fail(f'"{shown}": credentials belong in the [[cluster]]; write user and password, or token, there')
        if address.database:
            raise _fail(f'"{shown}": a database belongs at the top of the file; write database = "..." there')
        rest = {key: value for key, value in data.items() if key != "uri"}
        return _endpoint_fields(address) | rest

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.scheme == "tcp" and not (self.host and self.port):
            raise _fail(f'names no host and port; write uri = "{EXAMPLE_URI}"')
        if self.scheme != "tcp" and not self.path:
            raise _fail('names no path; write uri = "./milvus.db" or uri = "unix:/run/milvus.sock"')
        if not self.name:
            object.__setattr__(self, "name", self.address)
        _name(self.name)
        return self

    @property
    def address(self) -> str:
        """``host:port`` (IPv6 in brackets), ``unix:PATH`` or the file's path."""
        if self.scheme == "tcp":
            return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"unix:{self.path}" if self.scheme == "unix" else self.path

    @property
    def uri(self) -> str:
        """The URI that means this endpoint."""
        if self.scheme == "tcp":
            return f"{'https' if self.secure else 'http'}://{self.address}"
        return self.address


def _endpoint_fields(address: Address) -> dict[str, Any]:
    fields: dict[str, Any] = {"scheme": address.scheme}
    if address.scheme == "tcp":
        fields |= {"host": address.host, "port": address.port, "secure": address.secure}
    else:
        fields |= {"path": address.path, "port": 0}
    return fields


@final
class ClusterConfig(_Section):
    """The endpoints that share one Milvus storage, and how to reach them. In a file: ``[[cluster]]``."""

    #: Name in events, metrics and errors.
    name: str = Field(examples=["a"])
    #: Its addresses; they must all show the same collections.
    endpoints: tuple[EndpointConfig, ...] = Field(strict=False, min_length=1, examples=[[EXAMPLE_URI]])
    #: Where it is; clusters in the client's own zone are preferred.
    zone: str = ""
    #: Level of preference: 0 is used first, higher numbers when the lower ones have no capacity.
    priority: int = Field(default=0, ge=0)
    #: Share of traffic against the other clusters of the same zone and priority.
    weight: float = Field(default=1.0, gt=0)
    #: Token ("user:password" or an API key); instead of ``user`` and ``password``.
    token: SecretStr = SecretStr("")
    #: User name; together with ``password``.
    user: SecretStr = SecretStr("")
    #: Password; together with ``user``.
    password: SecretStr = SecretStr("")
    #: Use TLS for every TCP endpoint, also those written without https.
    secure: bool = False
    #: PEM file of the authorities that signed the servers' certificates; "" means the system's.
    ca_pem_path: str = ""
    #: PEM file of this client's certificate (mutual TLS); together with ``client_key_path``.
    client_pem_path: str = ""
    #: PEM file of this client's private key, without a pass phrase.
    client_key_path: str = ""
    #: PEM file of the server's own certificate (one-way TLS); instead of ``ca_pem_path``.
    server_pem_path: str = ""
    #: Name expected in the server's certificate; "" means the endpoint's host.
    server_name: str = ""
    #: "dns": every address of an endpoint's host name becomes an endpoint of its own.
    discovery: Literal["none", "dns"] = "none"
    #: HTTP probe beside the gRPC one, with {host} and {port} of the endpoint; "" means none.
    healthz_url: str = Field(default="", examples=["http://{host}:9091/healthz"])

    _check_name = field_validator("name")(_name)

    @field_validator("healthz_url")
    @classmethod
    def _check_healthz(cls, value: str) -> str:
        example = 'write for example "http://{host}:9091/healthz"'
        if not value:
            return value
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(value) if field is not None}
        except ValueError:
            raise _fail(f"has a brace that is not closed; {example}") from None
        if not fields <= {"host", "port"}:
            raise _fail(f"knows only {{host}} and {{port}} in braces; {example}")
        if not re.match(r"https?://[^/]", value):
            raise _fail(f"must be an http or https URL; {example}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems: list[Problem] = []
        token, user, password = (bool(getattr(self, key).get_secret_value()) for key in ("token", "user", "password"))
        if token and (user or password):
            problems.append((("token",), "is given together with user or password; write only one of the two forms"))
        elif user != password:
            missing, given = ("password", "user") if user else ("user", "password")
            problems.append(((missing,), f'is missing although {given} is given; write {missing} = "${{NAME}}"'))
        if self.secure:
            secured = tuple(e.model_copy(update={"secure": True}) if e.scheme == "tcp" else e for e in self.endpoints)
            object.__setattr__(self, "endpoints", secured)
        problems += self._tls_problems()
        if self.discovery == "dns" and any(e.scheme != "tcp" for e in self.endpoints):
            problems.append((("discovery",), 'needs host names, not files or sockets; write discovery = "none"'))
        problems += _duplicates(
            ((("endpoints", i), "two endpoints are named", e.name) for i, e in enumerate(self.endpoints)),
            "write another name, or leave one of them out",
        )
        if problems:
            raise _fail_all(problems)
        return self

    def _tls_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        given = [key for key in _TLS_FILES if getattr(self, key)]
        for key in given:
            try:
                text = Path(getattr(self, key)).read_bytes()
            except OSError as error:
                why = error.strerror or type(error).__name__
                problems.append(((key,), f'cannot read "{getattr(self, key)}" ({why}); write the path of a PEM file'))
                continue
            wanted = b"PRIVATE KEY-----" if key == "client_key_path" else b"-----BEGIN CERTIFICATE-----"
            if wanted not in text:
                kind = "private key" if key == "client_key_path" else "certificate"
                problems.append(((key,), f'"{getattr(self, key)}" holds no {kind} in PEM form; write the path of one'))
        if bool(self.client_pem_path) != bool(self.client_key_path):
            missing = "client_key_path" if self.client_pem_path else "client_pem_path"
            problems.append(((missing,), "is missing: mutual TLS needs a certificate and its key; write both paths"))
        if self.ca_pem_path and self.server_pem_path:
            problems.append(((("server_pem_path"),), "is given together with ca_pem_path; write only one of them"))
        if (given or self.server_name) and not any(e.secure for e in self.endpoints):
            key = given[0] if given else "server_name"
            problems.append(((key,), "is given but nothing uses TLS; write secure = true, or https:// endpoints"))
        return problems or self._try_tls_files()

    def _try_tls_files(self) -> list[Problem]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for key in ("ca_pem_path", "server_pem_path"):
            if path := getattr(self, key):
                try:
                    context.load_verify_locations(path)
                except (OSError, ValueError):
                    return [((key,), f'"{path}" holds no certificate that can be read; write the path of a PEM file')]
        if self.client_pem_path:
            try:
                # The empty pass phrase keeps OpenSSL from asking for one on the terminal.
                context.load_cert_chain(self.client_pem_path, self.client_key_path, password="")
            except (OSError, ValueError):
                what = f'"{self.client_key_path}" is not the key of "{self.client_pem_path}", or has a pass phrase'
                return [(("client_key_path",), f"{what}; write the paths of a matching pair without a pass phrase")]
        return []

    def authorization(self) -> str | None:
        """Return the value of gRPC's ``authorization`` metadata as pymilvus makes it, or None."""
        text = self.token.get_secret_value()
        if not text and self.user.get_secret_value() and self.password.get_secret_value():
            text = f"{self.user.get_secret_value()}:{self.password.get_secret_value()}"
        return base64.b64encode(text.encode()).decode("ascii") if text else None


@final
class Timeouts(_Section):
    """How long one call may take in all, unless the caller gives a timeout. In a file: ``[timeouts]``."""

    #: Time to make a connection, TLS included, in seconds.
    connect_s: Seconds = 2.0
    #: Time of a read with all its attempts, in seconds.
    read_s: Seconds = 10.0
    #: Time of a write with all its attempts, in seconds.
    write_s: Seconds = 30.0
    #: Time of a DDL or load call with all its attempts, in seconds.
    ddl_s: Seconds = 60.0


@final
class Canary(_Section):
    """One question whose answer is known, asked of every endpoint. In a file: ``[[health.canary]]``."""

    #: The collection asked.
    collection: str = Field(min_length=1, examples=["docs"])
    #: Its database; "" means the default one.
    database: str = ""
    #: Query expression whose first keys must be ``expect``; instead of ``vector``.
    filter: str = ""
    #: Query vector whose nearest keys must be ``expect``; instead of ``filter``.
    vector: tuple[float, ...] = Field(default=(), strict=False)
    #: Vector field searched; "" if the collection has only one.
    anns_field: str = ""
    #: How many hits are asked for.
    limit: Count = 3
    #: Primary keys that must be among the hits.
    expect: tuple[int | str, ...] = Field(strict=False, min_length=1, examples=[[1, 2, 3]])

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems: list[Problem] = []
        if bool(self.filter) == bool(self.vector):
            both = "and vector are both given" if self.filter else "and vector are both missing"
            problems.append((("filter",), f'{both}; write one of them, for example filter = "id in [1, 2, 3]"'))
        if self.anns_field and not self.vector:
            problems.append((("anns_field",), "is given without vector; write vector = [...], or leave it out"))
        if len(self.expect) > self.limit:
            least = f"write limit = {len(self.expect)} or more"
            problems.append((("limit",), f"{self.limit} hits cannot hold {len(self.expect)} expected keys; {least}"))
        if problems:
            raise _fail_all(problems)
        return self


@final
class Health(_Section):
    """How the state of the world is found out. In a file: ``[health]``."""

    #: Time between shallow probes of one endpoint, in seconds.
    interval_s: Seconds = 1.0
    #: Time within which a probe must answer, in seconds.
    timeout_s: Seconds = 1.0
    #: Time between deep probes (a real read of each collection in use) of one endpoint, in seconds.
    deep_interval_s: Seconds = 3.0
    #: Time within which an HTTP/2 PING on the data connection must answer, in seconds.
    ping_timeout_s: Seconds = 0.25
    #: Consecutive failed probes after which an endpoint is down.
    down_after: Count = 2
    #: An endpoint is slow if its latency is this many times the median of the others, and ...
    slow_ratio: float = Field(default=5.0, gt=1)
    #: ... also exceeds that median by this many seconds.
    slow_excess_s: SecondsOrZero = 0.05
    #: Time in which an endpoint that came back is given its full share again, in seconds.
    slow_start_s: SecondsOrZero = 10.0
    #: Time a preferred endpoint must have been well before traffic moves back to it, in seconds.
    failback_dwell_s: SecondsOrZero = 10.0
    #: Load a collection that is in use but released on one cluster.
    load_collections: bool = False
    #: Time between checks that the endpoints of a cluster show the same collections, in seconds.
    identity_interval_s: Seconds = 30.0
    #: Questions whose answers are known.
    canary: tuple[Canary, ...] = Field(default=(), strict=False)


@final
class Breaker(_Section):
    """When an endpoint is taken out because calls fail on it, and how it is tried again. ``[breaker]``."""

    #: Length of the window in which calls are counted, in seconds.
    window_s: Seconds = 10.0
    #: Calls in the window below which the ratio says nothing.
    min_calls: Count = 5
    #: Share of failed calls in the window that opens the breaker.
    failure_ratio: float = Field(default=0.5, gt=0, le=1)
    #: Consecutive failures that open it whatever the ratio.
    consecutive: Count = 3
    #: Time it stays open the first time, in seconds; doubled each time it reopens.
    open_s: Seconds = 0.5
    #: Longest time it stays open, in seconds.
    max_open_s: Seconds = 30.0
    #: Calls let through at once while half-open.
    trial_permits: Count = 1
    #: Successes in a row that close it.
    trial_successes: Count = 3

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ordered(self, "open_s", "max_open_s")
        return self


@final
class Hedge(_Section):
    """When a read is also sent to a second endpoint. In a file: ``[hedge]``."""

    #: Whether reads are hedged.
    enabled: bool = True
    #: Quantile of recent latencies after which a hedge starts.
    quantile: float = Field(default=0.95, gt=0, lt=1)
    #: Shortest hedging delay, in seconds.
    min_delay_s: SecondsOrZero = 0.005
    #: Hedging delay while too few latencies are known, in seconds.
    initial_delay_s: SecondsOrZero = 0.05
    #: Longest hedging delay, in seconds.
    max_delay_s: Seconds = 1.0
    #: Hedges of one try at most.
    max_hedges: Count = 2

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ordered(self, "min_delay_s", "initial_delay_s", "max_delay_s")
        return self


@final
class Retry(_Section):
    """How failed attempts are repeated, and how much extra load that may make. In a file: ``[retry]``."""

    #: Tries of one call at most, the first included.
    max_attempts: Count = 5
    #: Wait before the second try on the same state of the world, in seconds; doubled each time, with jitter.
    backoff_s: SecondsOrZero = 0.02
    #: Longest wait between tries, in seconds.
    max_backoff_s: SecondsOrZero = 1.0
    #: Extra attempts (retries and hedges) allowed per recent call.
    budget_ratio: float = Field(default=0.2, ge=0)
    #: Extra attempts per 10 s that are always allowed.
    budget_floor: int = Field(default=10, ge=0)
    #: Time for which a request seen to kill servers is refused, in seconds.
    quarantine_s: SecondsOrZero = 60.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        _ordered(self, "backoff_s", "max_backoff_s")
        return self


@final
class Wire(_Section):
    """Connections and messages. In a file: ``[wire]``."""

    #: Connections to each address of an endpoint.
    connections: Count = 1
    #: Age at which a connection is replaced, in seconds (load balancers pin connections); absent means never.
    max_connection_age_s: float | None = Field(default=None, gt=0, examples=[300.0])
    #: Largest message accepted, in bytes.
    max_message_bytes: int = Field(default=268435456, ge=1, le=2**31 - 1)


def _ordered(section: _Section, *keys: str) -> None:
    problems: list[Problem] = []
    for low, high in itertools.pairwise(keys):
        below, above = getattr(section, low), getattr(section, high)
        if below > above:
            problems.append(((low,), f"{below} is more than {high} ({above}); write at most {above}, or raise {high}"))
    if problems:
        raise _fail_all(problems)


def _duplicates(items: Iterable[tuple[Loc, str, str]], instead: str) -> list[Problem]:
    seen: dict[str, Loc] = {}
    problems: list[Problem] = []
    for loc, what, value in items:
        if value in seen:
            problems.append((loc, f'{what} "{value}" (the other is {key_path(seen[value])}); {instead}'))
        else:
            seen[value] = loc
    return problems


@final
class Config(_Section):
    """The whole configuration.

    Attributes:
        clusters: In a file each is a ``[[cluster]]``.
    """

    #: Everything that can be reached.
    clusters: tuple[ClusterConfig, ...] = Field(strict=False, min_length=1)
    #: Where this client is; clusters in the same zone are preferred. "" means nowhere in particular.
    zone: str = ""
    #: Database used unless a call names one; "" means the default one.
    database: str = ""
    #: How writes reach several clusters; "none" means they are refused if there are several.
    replication: Literal["none"] = "none"
    #: Times of whole calls.
    timeouts: Timeouts = Timeouts()
    #: Probes and detection.
    health: Health = Health()
    #: Taking failing endpoints out.
    breaker: Breaker = Breaker()
    #: Second attempts of reads.
    hedge: Hedge = Hedge()
    #: Repeated attempts and the budget.
    retry: Retry = Retry()
    #: Connections and messages.
    wire: Wire = Wire()
    #: The file it was read from; None if from arguments. Not a key of the file.
    source: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _singular(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "cluster" in data and "clusters" not in data:
            return {("clusters" if key == "cluster" else key): value for key, value in data.items()}
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = _duplicates(
            ((("clusters", i), "two clusters are named", c.name) for i, c in enumerate(self.clusters)),
            "write another name, or leave one of them out",
        )
        problems += _duplicates(
            (
                (("clusters", i, "endpoints", k), "two endpoints have the address", e.address)
                for i, c in enumerate(self.clusters)
                for k, e in enumerate(c.endpoints)
            ),
            "write it once",
        )
        if problems:
            raise _fail_all(problems)
        return self

    @classmethod
    def from_uri(
        cls,
        uri: str | Sequence[str],
        *,
        user: str = "",
        password: str = "",
        token: str = "",
        db_name: str = "",
        secure: bool = False,
        server_pem_path: str = "",
        client_pem_path: str = "",
        client_key_path: str = "",
        ca_pem_path: str = "",
        server_name: str = "",
        **sections: Any,
    ) -> Self:
        """Make a configuration of URIs and pymilvus' own arguments; every URI is a cluster of its own.

        As in pymilvus, ``token`` wins over ``user`` and ``password``, those win over the URI's credentials,
        which are taken literally (not percent-decoded), and ``db_name`` wins over the URI's path.

        Args:
            uri: One URI, several separated by commas, or a sequence of them.
            user: User name, for all clusters.
            password: Password, for all clusters.
            token: Token, for all clusters.
            db_name: Database used unless a call names one.
            secure: Use TLS for every URI, also those without https.
            server_pem_path: See `ClusterConfig`.
            client_pem_path: See `ClusterConfig`.
            client_key_path: See `ClusterConfig`.
            ca_pem_path: See `ClusterConfig`.
            server_name: See `ClusterConfig`.
            **sections: Other fields of `Config`: ``zone``, or sections as models or dicts.

        Raises:
            ConfigError: Naming every argument that is wrong.
        """
        return cls._from_uri(
            uri, "arguments", "uri", {"user": user, "password": password, "token": token, "db_name": db_name},
            {"secure": secure, "server_pem_path": server_pem_path, "client_pem_path": client_pem_path,
             "client_key_path": client_key_path, "ca_pem_path": ca_pem_path, "server_name": server_name},
            sections,
        )  # fmt: skip

    @classmethod
    def _from_uri(
        cls,
        uri: object,
        label: str,
        key: str,
        access: Mapping[str, object],
        tls: Mapping[str, object],
        sections: Mapping[str, Any],
    ) -> Self:
        texts, listed, problems = _uri_texts(uri, key)
        for name, value in access.items():
            if not isinstance(value, str | None):
                problems.append(((name,), f'must be a string, got {_kind(value)}; write {name}="..."'))
        common = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in tls.items() if v not in ("", None)}
        explicit = _explicit_token(access)
        clusters: list[dict[str, Any]] = []
        databases: dict[str, None] = {}
        seen: dict[str, int] = {}
        whole_has_credentials = any("@" in text for text in texts)
        for i, text in enumerate(texts):
            part_of_secret = whole_has_credentials and "@" not in text  # it may be what a comma in a password cut off
            try:
                address = parse_uri(text, shown=_hide(text) if part_of_secret else None)
            except ValueError as error:
                problems.append(((key, i) if listed else (key,), str(error)))
                continue
            endpoint = EndpointConfig(**_endpoint_fields(address))
            if endpoint.name in seen:
                other = key_path((key, seen[endpoint.name]))
                problems.append(((key, i), f'"{endpoint.name}" is also {other}; write it once'))
                continue
            seen[endpoint.name] = i
            databases |= {address.database: None} if address.database else {}
            clusters.append(
                {
                    "name": endpoint.name,
                    "endpoints": (endpoint,),
                    "token": explicit or SecretStr(address.token),
                    **common,
                }
            )
        database = access.get("db_name") or ""
        if not database and len(databases) > 1:
            problems.append(((key,), 'the URIs name several databases; write one, as db_name="..."'))
        data: dict[str, Any] = dict(sections)
        for taken in ("cluster", "clusters", "source", "database"):
            if taken in data:
                data.pop(taken)
                problems.append(((taken,), f"does not go together with {key}; write config={{...}} instead"))
        data["clusters"] = tuple(clusters)
        data["database"] = database if isinstance(database, str) and database else next(iter(databases), "")

        def moved(loc: Loc) -> Loc:
            if loc[:1] == ("clusters",) and len(loc) >= 2:
                if len(loc) == 2 or loc[2] in ("endpoints", "name"):
                    return (key, loc[1]) if listed else (key,)
                return loc[2:]
            return loc

        if problems and not clusters:
            data["clusters"] = (_PLACEHOLDER,)  # so that the other arguments are still checked
        return _validated(cls, label, data, problems, moved)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file; relative paths in it start at its folder.

        Raises:
            ConfigError: With one line per problem.
        """
        return cls._from_mapping(_read_toml(Path(path)), label=str(path), source=Path(path))

    @classmethod
    def _from_mapping(
        cls,
        data: Mapping[str, Any],
        *,
        label: str,
        source: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Self:
        problems: list[Problem] = []
        raw = dict(data)
        if source is not None and "clusters" in raw:
            raw["cluster"] = raw.get("cluster", raw["clusters"])
            del raw["clusters"]
            problems.append((("clusters",), "unknown key; did you mean cluster? Write [[cluster]]"))
        elif "cluster" in raw and "clusters" in raw:
            del raw["clusters"]
            problems.append((("clusters",), "is given together with cluster; write only cluster"))
        key = "clusters" if "clusters" in raw else "cluster"
        if "source" in raw:
            del raw["source"]
            problems.append((("source",), "is not a key to be set; leave it out"))
        clusters = raw.get(key)
        if isinstance(clusters, list | tuple):
            base = None if source is None else source.parent
            raw[key] = [_prepare_cluster(c, ("clusters", i), base, problems) for i, c in enumerate(clusters)]
        for name, value in (overrides or {}).items():
            raw[name] = _merged(raw.get(name), value)
        if source is not None:
            raw["source"] = source
        return _validated(cls, label, raw, problems)

    @classmethod
    def load(
        cls,
        uri: str | Sequence[str] | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
        **kw: Any,
    ) -> Config:
        """Find the configuration: arguments, then the environment, then pymilvus' default.

        ``uri`` and ``config`` exclude each other: a file says which servers there are, and so does a URI.
        Beside a ``config`` (given, or named by ``HACLIENT_CONFIG``) only ``db_name`` and sections are accepted
        in ``kw``, and they win over the file key by key; credentials and certificates belong to its clusters,
        for they would otherwise be sent to every one of them.

        Args:
            uri: See `from_uri`. None means not given.
            config: Path of a TOML file, a dict of the same grammar, or a ready `Config`.
            **kw: Arguments of `from_uri`.

        Raises:
            ConfigError: Naming everything that is wrong.
        """
        if uri is not None and config is not None:
            raise _config_error("arguments", [(("config",), "is given together with uri; write only one of them")])
        label = "arguments"
        if uri is None and config is None:
            file, text = os.environ.get("HACLIENT_CONFIG", ""), os.environ.get("HACLIENT_URI", "")
            if file and text:
                what = "is set together with HACLIENT_CONFIG; unset one of them"
                raise _config_error("environment", [(("HACLIENT_URI",), what)])
            if file:
                config, label = file, "environment: HACLIENT_CONFIG"
            else:
                name = "HACLIENT_URI" if text else "MILVUS_URI"
                return cls._from_kw(text or os.environ.get("MILVUS_URI", "") or DEFAULT_URI, name, kw)
        if config is None:
            return cls._from_kw(uri, "uri", kw)
        return cls._with_overrides(config, label, kw)

    @classmethod
    def _from_kw(cls, uri: object, key: str, kw: Mapping[str, Any]) -> Self:
        access = {name: kw.get(name, "") for name in _ACCESS}
        tls = {name: kw.get(name, "") for name in _TLS}
        rest = {name: value for name, value in kw.items() if name not in access and name not in tls}
        return cls._from_uri(uri, "arguments" if key == "uri" else "environment", key, access, tls, rest)

    @classmethod
    def _with_overrides(cls, config: object, label: str, kw: Mapping[str, Any]) -> Config:
        problems: list[Problem] = []
        overrides: dict[str, Any] = {}
        for name, value in kw.items():
            if name in _TLS or name in _ACCESS - {"db_name"}:
                if value:
                    instead = "write it in the [[cluster]] it is for"
                    problems.append(((name,), f"does not go together with a configuration file; {instead}"))
            elif name == "db_name":
                overrides |= {"database": value} if value else {}
            else:
                overrides[name] = value
        if problems:
            raise _config_error("arguments", problems)
        if isinstance(config, Config):
            if not overrides:
                return config
            data: dict[str, Any] = {name: getattr(config, name) for name in Config.model_fields}
            data |= {name: _merged(data.get(name), value) for name, value in overrides.items()}
            return _validated(cls, "arguments", data, [])
        if isinstance(config, Mapping):
            return cls._from_mapping(config, label="config", overrides=overrides)
        if not isinstance(config, str | os.PathLike):
            what = f'must be a path, a dict or a Config, got {_kind(config)}; write config="haclient.toml"'
            raise _config_error("arguments", [(("config",), what)])
        path = Path(config)
        return cls._from_mapping(_read_toml(path, label), label=str(path), source=path, overrides=overrides)


_ACCESS = frozenset({"user", "password", "token", "db_name"})
_TLS = frozenset({"secure", "server_name", *_TLS_FILES})
_PLACEHOLDER = ClusterConfig(name="placeholder", endpoints=(EndpointConfig(host="localhost"),))


# --- from what was written to what is validated -------------------------------------------------------------


def _uri_texts(uri: object, key: str) -> tuple[list[str], bool, list[Problem]]:
    """Split what was given as ``uri``; says also whether there are several, and what is wrong."""
    instead = f'write for example {key}="{EXAMPLE_URI}"'
    if isinstance(uri, str):
        texts = _split_uris(uri)
        return texts, len(texts) > 1, [] if texts else [((key,), f"names no endpoint; {instead}")]
    if not isinstance(uri, Sequence) or isinstance(uri, bytes | bytearray):
        return [], False, [((key,), f"must be a string or a list of strings, got {_kind(uri)}; {instead}")]
    problems: list[Problem] = []
    found: list[str] = []
    for i, item in enumerate(uri):
        if isinstance(item, str):
            found.append(item)
        else:
            problems.append(((key, i), f"must be a string, got {_kind(item)}; {instead}"))
    if not uri:
        problems.append(((key,), f"names no endpoint; {instead}"))
    return found, True, problems


def _split_uris(text: str) -> list[str]:
    """Split at commas, but not at one inside a password (``http://user:a,b@host``)."""
    pieces: list[str] = []
    for piece in text.split(","):
        if "@" in piece and "://" not in piece:
            start = next((i for i in reversed(range(len(pieces))) if "://" in pieces[i] and "@" not in pieces[i]), None)
            if start is not None:
                pieces[start:] = [",".join([*pieces[start:], piece])]
                continue
        pieces.append(piece)
    return [piece.strip() for piece in pieces if piece.strip()]


def _hide(text: str) -> str:
    scheme, found, _ = text.partition("://")
    return f"{scheme}://***" if found and scheme.lower() in {"http", "https", "tcp"} else "***"


def _explicit_token(access: Mapping[str, object]) -> SecretStr | None:
    token, user, password = (access.get(key) or "" for key in ("token", "user", "password"))
    if isinstance(token, str) and token:
        return SecretStr(token)
    if isinstance(user, str) and isinstance(password, str) and user and password:
        return SecretStr(f"{user}:{password}")
    return None


def _merged(old: object, new: object) -> object:
    """A section given as a dict wins key by key; anything else wins as a whole."""
    if isinstance(new, Mapping) and isinstance(old, Mapping | BaseModel):
        known = {name: getattr(old, name) for name in type(old).model_fields} if isinstance(old, BaseModel) else old
        return {**known, **new}
    return new


def _read_toml(path: Path, label: str = "") -> dict[str, Any]:
    where = f"{label}: " if label.startswith("environment") else ""
    example = "write the path of a TOML file, see examples/haclient.toml"
    text = what = ""
    try:
        text = path.expanduser().read_bytes().decode("utf-8")
    except OSError as error:
        what = f"cannot be read ({error.strerror or type(error).__name__}); {example}"
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    if not what:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            what = f"is not TOML: {str(error).splitlines()[0]}; correct that line"
    raise ConfigError(f"{where}{path}: {what}")


def _prepare_cluster(cluster: object, loc: Loc, base: Path | None, problems: list[Problem]) -> object:
    """Put environment variables into credentials and make the file's relative paths absolute."""
    if not isinstance(cluster, Mapping):
        return cluster
    ready = dict(cluster)
    for key in _SECRET_KEYS & ready.keys():
        if isinstance(ready[key], str):
            ready[key] = _expand(ready[key], (*loc, key), problems)
    if base is not None:
        for key in _TLS_FILES:
            if isinstance(ready.get(key), str) and ready[key]:
                ready[key] = str(base / Path(ready[key]).expanduser())
        if isinstance(ready.get("endpoints"), list):
            ready["endpoints"] = [_prepare_endpoint(endpoint, base) for endpoint in ready["endpoints"]]
    return ready


def _prepare_endpoint(endpoint: object, base: Path) -> object:
    uri = endpoint.get("uri") if isinstance(endpoint, Mapping) else endpoint
    if not isinstance(uri, str) or "://" in uri or uri.startswith("unix:") or not uri.endswith(".db"):
        return endpoint
    rest = endpoint if isinstance(endpoint, Mapping) else {}
    return {"name": uri, **rest, "uri": str(base / Path(uri).expanduser())}


_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|)")


def _expand(text: str, loc: Loc, problems: list[Problem]) -> SecretStr:
    def replaced(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name = match["name"]
        if name is None:
            problems.append((loc, "has a dollar sign that starts no ${NAME}; write $$ for the sign itself"))
        elif name not in os.environ:
            problems.append((loc, f"the environment variable {name} is not set; set it, or write $$ for a dollar sign"))
        elif not os.environ[name]:
            problems.append((loc, f"the environment variable {name} is empty; set it to a value"))
        else:
            return os.environ[name]
        return "?"  # so that nothing is reported as missing as well

    return SecretStr(_VARIABLE.sub(replaced, text))


_T = TypeVar("_T", bound=_Section)


def _validated(
    model: type[_T],
    label: str,
    data: Mapping[str, Any],
    problems: list[Problem],
    moved: Callable[[Loc], Loc] = lambda loc: loc,
) -> _T:
    """Make the model, or raise one `ConfigError` for the problems known already and pydantic's."""
    result = None
    try:
        result = model.model_validate(data)
    except ValidationError as error:
        problems = [*problems, *_problems(model, error.errors(include_url=False))]
    if problems or result is None:
        raise _config_error(label, [(moved(loc), text) for loc, text in problems])
    return result


# --- from pydantic's errors to lines ------------------------------------------------------------------------


def _config_error(label: str, problems: Sequence[Problem]) -> ConfigError:
    lines: dict[str, None] = {}
    for loc, text in problems:
        path = key_path(loc)
        lines[f"{label}: {path}: {text}" if path else f"{label}: {text}"] = None
    return ConfigError("\n".join(lines))


def _problems(model: type[BaseModel], details: Sequence[ErrorDetails]) -> list[Problem]:
    problems: list[Problem] = []
    locs = {tuple(detail["loc"]) for detail in details}
    for detail in details:
        loc: Loc = tuple(detail["loc"])
        if detail["type"] == "too_short" and any(other[: len(loc)] == loc != other for other in locs):
            continue  # not empty: what is in it is wrong, and said so
        context = detail.get("ctx", {})
        if detail["type"] == "haclient_many":
            problems += [((*loc, *below), text) for below, text in context["problems"]]
        elif detail["type"] == "haclient":
            problems.append((loc, context["text"]))
        elif len(loc) >= 2 and isinstance(loc[-2], int) and loc[-1] in {"int", "str"}:  # a branch of ``int | str``
            given = _kind(detail.get("input"))
            problems.append((loc[:-1], f"must be a whole number or a string, got {given}; write for example 1"))
        else:
            problems.append((loc, _explain(model, loc, detail)))
    return list(dict.fromkeys(problems))


_WANTED = {
    "string_type": "a string",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def _explain(model: type[BaseModel], loc: Loc, detail: ErrorDetails) -> str:
    """Say in one line what is wrong with one value, and what to write; shows no value but a number."""
    owner, field = _field_at(model, loc)
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    secret = bool(_SECRET_KEYS & {part for part in loc if isinstance(part, str)})
    instead = _example(loc, field)
    if kind == "extra_forbidden":
        return _unknown_key(owner, str(loc[-1]))
    if kind == "missing":
        return f"is missing; {instead}"
    if kind == "literal_error":
        choices = sorted(re.findall(r"'([^']*)'", str(context.get("expected", ""))))
        close = difflib.get_close_matches(given, choices, 1) if isinstance(given, str) else []
        return f"is not known; write {_toml(close[0]) if close else ' or '.join(map(_toml, choices))}"
    if kind in {"too_short", "string_too_short"}:
        return f"is empty; {instead}"
    if kind in _BOUNDS:
        bound, text = _BOUNDS[kind]
        return f"{text} {context[bound]:g}, got {_kind(given, show=not secret)}; {instead}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, got {_kind(given, show=not secret)}; {instead}"
    return f"is not right ({kind.replace('_', ' ')}); {instead}"


def _field_at(model: type[BaseModel], loc: Loc) -> tuple[type[BaseModel], FieldInfo | None]:
    """Find the table and the field of a location."""
    owner, field = model, None
    for i, part in enumerate(loc):
        if isinstance(part, int):
            continue
        field = owner.model_fields.get(part)
        if field is None or i == len(loc) - 1:
            break
        inner = _model_in(field.annotation)
        if inner is None:
            break
        owner = inner
    return owner, field


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _example(loc: Loc, field: FieldInfo | None) -> str:
    key = next((part for part in reversed(loc) if isinstance(part, str)), "")
    if field is None:
        return "see examples/haclient.toml"
    if key in _SECRET_KEYS:
        return f'write for example {key} = "${{MILVUS_{key.upper()}}}"'
    if (inner := _model_in(field.annotation)) and not field.examples:
        many = isinstance(field.default, tuple) or field.is_required()
        name = key_path(part for part in loc if isinstance(part, str))
        fields = [k for k, f in inner.model_fields.items() if f.is_required()]
        below = f" with {' and '.join(fields)}" if many and fields else ""
        return f"write {'[[' if many else '['}{name}{']]' if many else ']'}{below}"
    value = field.examples[0] if field.examples else field.default
    if value in ("", ()) or value is None:
        return f"write for example {key} = {_toml('...') if value == '' else '[]'}, or leave it out"
    return f"write for example {key} = {_toml(value)}"


def _unknown_key(owner: type[BaseModel], key: str) -> str:
    own = [("cluster" if name == "clusters" else name) for name in owner.model_fields if name != "source"]
    if owner is EndpointConfig:
        own = ["name", "uri"]
    if close := difflib.get_close_matches(key, own, 1, cutoff=0.6):
        return f"unknown key; did you mean {close[0]}?"
    for name, found in Config.model_fields.items():
        inner = _model_in(found.annotation)
        if inner is not None and inner is not owner and key in inner.model_fields:
            return f"unknown key here; write it in {'[[cluster]]' if name == 'clusters' else f'[{name}]'}"
    if owner is not Config and key in Config.model_fields:
        return "unknown key here; write it at the top of the file, before any [section]"
    return f"unknown key; the keys here are {', '.join(own)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _kind(value: object, *, show: bool = True) -> str:
    """Name what was given; only numbers are shown, for a string may be a secret in the wrong place."""
    if isinstance(value, bool | int | float) and show:
        return _toml(value)
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if value is None:
        return "nothing"
    if isinstance(value, str | SecretStr):
        return "a string"
    if isinstance(value, Mapping | BaseModel):
        return "a table"
    if isinstance(value, Sequence):
        return "a list"
    return f"a {type(value).__name__}"
