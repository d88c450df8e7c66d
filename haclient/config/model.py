"""The tables of the configuration: their fields, defaults and checks.

Decision made here: every table is a frozen, strict pydantic model that refuses unknown keys, and constructing
one by hand raises the same `ConfigError` as a file does.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import ssl
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, final

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from haclient.config import sources
from haclient.config.address import DEFAULT_PORT, DEFAULT_URI, EXAMPLE_URI, Address, parse_uri, redact
from haclient.config.problems import Loc, Problem, config_error, fail, fail_all, key_path, kind_of, problems_of

Seconds: TypeAlias = Annotated[float, Field(gt=0)]
SecondsOrZero: TypeAlias = Annotated[float, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


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
            raise config_error((type(self).__name__, loc, text) for loc, text in problems_of(type(self), details))

    # Tells pydantic that nested tables need not go through this method.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _name(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise fail('must be a printable name; write for example "a"')
    return value


@final
class EndpointConfig(_Section):
    """One Milvus address. In a file: a string, or a table with ``name`` and ``uri``."""

    KEYS: ClassVar = ("name", "uri")

    #: Name in events, metrics and errors; "host:port", or the path, unless given.
    name: str = ""
    #: How it is reached: TCP, a Unix socket, or an embedded milvus-lite file.
    scheme: Literal["tcp", "unix", "lite"] = "tcp"
    #: Host name or address, IPv6 without brackets; "" unless ``scheme`` is "tcp".
    host: str = ""
    #: TCP port; means nothing unless ``scheme`` is "tcp".
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
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
                raise fail(f'names no address; write uri = "{EXAMPLE_URI}"')
            return data
        uri = data["uri"]
        if not isinstance(uri, str):
            raise fail(f'uri must be a string; write uri = "{EXAMPLE_URI}"')
        try:
            address = parse_uri(uri)
        except ValueError as error:
            raise fail(str(error)) from None
        shown = redact(uri)
        if address.token:
            raise fail(f'"{shown}": credentials belong in the [[cluster]]; write user and password, or token, there')
        if address.database:
            raise fail(f'"{shown}": a database belongs at the top of the file; write database = "..." there')
        rest = {key: value for key, value in data.items() if key != "uri"}
        return sources.endpoint_fields(address) | rest

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.scheme == "tcp" and not self.host:
            raise fail(f'names no host; write uri = "{EXAMPLE_URI}"')
        if self.scheme != "tcp" and not self.path:
            raise fail('names no path; write uri = "./milvus.db" or uri = "unix:/run/milvus.sock"')
        if not self.name:
            object.__setattr__(self, "name", self.address)
        _name(self.name)
        return self

    @property
    def address(self) -> str:
        """``host:port`` (IPv6 in brackets), ``unix:PATH`` or the file's path."""
        return Address(self.scheme, self.host, self.port, self.path).name

    @property
    def uri(self) -> str:
        """The URI that means this endpoint."""
        if self.scheme == "tcp":
            return f"{'https' if self.secure else 'http'}://{self.address}"
        return self.address


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
            raise fail(f"has a brace that is not closed; {example}") from None
        if not fields <= {"host", "port"}:
            raise fail(f"knows only {{host}} and {{port}} in braces; {example}")
        if not re.match(r"https?://[^/]", value):
            raise fail(f"must be an http or https URL; {example}")
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
            raise fail_all(problems)
        return self

    def _tls_problems(self) -> list[Problem]:
        problems: list[Problem] = []
        given = [key for key in sources.TLS_FILES if getattr(self, key)]
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
            raise fail_all(problems)
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
        raise fail_all(problems)


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

    KEYS: ClassVar = (
        "cluster", "zone", "database", "replication", "timeouts", "health", "breaker", "hedge", "retry", "wire",
    )  # fmt: skip

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
            raise fail_all(problems)
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
        given = {
            "user": user,
            "password": password,
            "token": token,
            "db_name": db_name,
            "secure": secure,
            "server_pem_path": server_pem_path,
            "client_pem_path": client_pem_path,
            "client_key_path": client_key_path,
            "ca_pem_path": ca_pem_path,
            "server_name": server_name,
        }
        return cls._checked(sources.from_uri(uri, "uri", given | sections))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Config:
        """Read a TOML file; relative paths in it start at its folder.

        Raises:
            ConfigError: With one line per problem.
        """
        return cls.load(config=os.fspath(path))

    @classmethod
    def load(
        cls,
        uri: str | Sequence[str] | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | Config | None = None,
        **arguments: Any,
    ) -> Config:
        """Find the configuration: arguments, then the environment, then pymilvus' default.

        ``uri`` and ``config`` exclude each other: a file says which servers there are, and so does a URI.
        Beside a ``config`` (given, or named by ``HACLIENT_CONFIG``) only ``db_name`` and fields of `Config`
        are accepted in ``arguments``, and they win over it key by key; credentials and certificates belong to
        its clusters, for they would otherwise be sent to every one of them.

        Args:
            uri: See `from_uri`. None means not given.
            config: Path of a TOML file, a dict of the same grammar, or a ready `Config`.
            **arguments: Other arguments of `from_uri`.

        Raises:
            ConfigError: Naming everything that is wrong.
        """
        if uri is not None and config is not None:
            raise config_error([("arguments", ("config",), "is given together with uri; write only one of them")])
        if uri is not None:
            return cls._checked(sources.from_uri(uri, "uri", arguments))
        if config is not None:
            return cls._beside(config, "", arguments)
        file, text = os.environ.get("HACLIENT_CONFIG", ""), os.environ.get("HACLIENT_URI", "")
        if file and text:
            what = "is set together with HACLIENT_CONFIG; unset one of them"
            raise config_error([("environment", ("HACLIENT_URI",), what)])
        if file:
            return cls._beside(file, "environment: HACLIENT_CONFIG: ", arguments)
        key = "HACLIENT_URI" if text else "MILVUS_URI"
        return cls._checked(sources.from_uri(os.environ.get(key) or DEFAULT_URI, key, arguments))

    @classmethod
    def _beside(cls, config: object, label: str, arguments: Mapping[str, Any]) -> Config:
        """Take a configuration and the arguments that may stand beside it."""
        problems: list[Problem] = []
        overrides: dict[str, Any] = {}
        for name, value in arguments.items():
            if name == "db_name":
                overrides |= {"database": value} if value else {}
            elif name in sources.ACCESS_ARGUMENTS | sources.TLS_ARGUMENTS:
                if value:
                    instead = "write it in the [[cluster]] it is for"
                    problems.append(((name,), f"does not go together with a configuration; {instead}"))
            elif name in ("cluster", "clusters", "source"):
                problems.append(((name,), "does not go together with a configuration; write it there"))
            else:
                overrides[name] = value
        if not isinstance(config, Config | Mapping | str | os.PathLike):
            what = f"must be a path, a dict or a Config, got {kind_of(config)}"
            problems.append((("config",), f'{what}; write for example config="haclient.toml"'))
        if problems:
            raise config_error(("arguments", loc, text) for loc, text in problems)
        if isinstance(config, Config):
            if not overrides:
                return config
            known = {name: getattr(config, name) for name in cls.model_fields}
            known |= {name: sources.merged(known.get(name), value) for name, value in overrides.items()}
            return cls._checked(sources.Draft("arguments", known))
        if isinstance(config, Mapping):
            return cls._checked(sources.from_mapping(config, "config", None, overrides))
        path = Path(config).expanduser().absolute()  # type: ignore[arg-type]
        label = f"{label}{os.fspath(config)}"  # type: ignore[call-overload]
        return cls._checked(sources.from_mapping(sources.read_toml(path, label), label, path, overrides))

    @classmethod
    def _checked(cls, draft: sources.Draft) -> Self:
        """Validate a draft; its problems and the models' are told together."""
        result = None
        problems = draft.problems
        try:
            result = cls.model_validate(draft.data)
        except ValidationError as error:
            problems = problems + problems_of(cls, error.errors(include_url=False))
        if problems or result is None:
            raise draft.error(problems)
        return result
