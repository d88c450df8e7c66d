"""Clusters and their endpoints: addresses, credentials, TLS."""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, final

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from haclient.config import pem, sources
from haclient.config.address import DEFAULT_PORT, EXAMPLE_URI, Address, parse_uri, redact
from haclient.config.problems import Problem, fail, fail_all
from haclient.config.section import Section, duplicates


def _name(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise fail('must be a printable name; write for example "a"')
    return value


@final
class EndpointConfig(Section):
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
class ClusterConfig(Section):
    """The endpoints that share one Milvus storage, and how to reach them. In a file: ``[[cluster]]``."""

    #: Name in events, metrics and errors.
    name: str = Field(examples=["a"])
    #: Its addresses; they must all show the same collections.
    endpoints: tuple[EndpointConfig, ...] = Field(strict=False, min_length=1, examples=[[EXAMPLE_URI]])
    #: Where it is; clusters in the client's own zone are preferred.
    zone: str = ""
    #: Level of preference: 0 is used first, higher numbers when the lower ones have no capacity.
    priority: int = Field(default=0, ge=0)
    #: It is at another site: it follows the others, counts in no ack level, and serves reads when no other one can.
    asynchronous: bool = False
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

    #: State of the TLS files when they were read: with other ones in their place it is another configuration.
    _stamps: tuple[object, ...] = PrivateAttr(default=())

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
        problems += duplicates(
            ((("endpoints", i), "two endpoints are named", e.name) for i, e in enumerate(self.endpoints)),
            "write another name, or leave one of them out",
        )
        if problems:
            raise fail_all(problems)
        self._stamps = tuple([sources.stamp(Path(path)) for path in self._tls_files().values() if path])
        return self

    def _tls_files(self) -> dict[str, str]:
        return {key: getattr(self, key) for key in sources.TLS_FILES}

    def _tls_problems(self) -> list[Problem]:
        files = self._tls_files()
        problems = pem.unreadable(files, "client_key_path")
        if bool(self.client_pem_path) != bool(self.client_key_path):
            missing = "client_key_path" if self.client_pem_path else "client_pem_path"
            problems.append(((missing,), "is missing: mutual TLS needs a certificate and its key; write both paths"))
        if self.ca_pem_path and self.server_pem_path:
            problems.append(((("server_pem_path"),), "is given together with ca_pem_path; write only one of them"))
        given = [key for key, path in files.items() if path]
        if (given or self.server_name) and not any(e.secure for e in self.endpoints):
            key = given[0] if given else "server_name"
            problems.append(((key,), "is given but nothing uses TLS; write secure = true, or https:// endpoints"))
        return problems or self._try_tls_files()

    def _try_tls_files(self) -> list[Problem]:
        for key in ("ca_pem_path", "server_pem_path"):
            path = getattr(self, key)
            if path and (problems := pem.broken_authorities(key, path)):
                return problems
        if self.client_pem_path:
            return pem.broken_pair("client_key_path", self.client_pem_path, self.client_key_path)
        return []

    def authorization(self) -> str | None:
        """Return the value of gRPC's ``authorization`` metadata as pymilvus makes it, or None."""
        text = self.token.get_secret_value()
        if not text and self.user.get_secret_value() and self.password.get_secret_value():
            text = f"{self.user.get_secret_value()}:{self.password.get_secret_value()}"
        return base64.b64encode(text.encode()).decode("ascii") if text else None
