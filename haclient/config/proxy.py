"""What the standalone proxy needs to know: where it listens, whom it lets in, how much it takes on. ``[proxy]``."""

from __future__ import annotations

import ipaddress
from typing import Final, Literal, Self, final

from pydantic import Field, SecretStr, field_validator, model_validator

from haclient.config import pem, sources
from haclient.config.problems import Problem, fail, fail_all
from haclient.config.section import Count, Seconds, Section

_LISTEN_EXAMPLE: Final = "0.0.0.0:19530"


@final
class ProxyTLS(Section):
    """TLS towards the clients. In a file: ``[proxy.tls]``. Files are read again when they change."""

    #: PEM file of the proxy's certificate and chain; "" means no TLS.
    cert_file: str = ""
    #: PEM file of its private key, without a pass phrase; "" if it is in ``cert_file``.
    key_file: str = ""
    #: PEM file of the authorities whose clients are let in (mutual TLS); "" lets in clients without a certificate.
    client_ca_file: str = ""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.cert_file and (self.key_file or self.client_ca_file):
            raise fail_all([(("cert_file",), "is missing; write the PEM file of the proxy's certificate")])
        files = {key: getattr(self, key) for key in sources.PROXY_TLS_FILES}
        problems = pem.unreadable(files, "key_file")
        if self.cert_file and not problems:
            key = self.key_file or self.cert_file
            problems = pem.broken_pair("key_file" if self.key_file else "cert_file", self.cert_file, key)
            if self.client_ca_file:
                problems += pem.broken_authorities("client_ca_file", self.client_ca_file)
        if problems:
            raise fail_all(problems)
        return self


@final
class ProxyLimits(Section):
    """What all clients together, and each connection, may ask of one worker. In a file: ``[proxy.limits]``."""

    #: Connections of clients at once.
    connections: Count = 10_000
    #: Calls at once on one connection (HTTP/2 streams).
    streams: Count = 1_000
    #: Calls at once on all connections; more are refused with RESOURCE_EXHAUSTED.
    calls: Count = 10_000
    #: Requests and replies held at once, in bytes; more are refused with RESOURCE_EXHAUSTED.
    memory_bytes: int = Field(default=1 << 30, ge=1 << 20)
    #: How late the event loop may run, all the time, before calls are refused with RESOURCE_EXHAUSTED, in seconds.
    lag_s: Seconds = 0.1
    #: Largest list of headers, in bytes.
    header_bytes: int = Field(default=65_536, ge=1_024, le=1 << 24)
    #: Time for the first bytes, TLS included, and between two parts of a request (16 KiB, or its rest), in seconds.
    request_s: Seconds = 30.0
    #: Time in which a client must take a part (16 KiB, or the rest) of a reply that waits for it, in seconds.
    reply_s: Seconds = 30.0
    #: Time after which a connection without calls is closed, in seconds.
    idle_s: Seconds = 3_600.0
    #: Age at which a connection is closed after its last call, in seconds; absent means never.
    age_s: float | None = Field(default=None, gt=0, examples=[3_600.0])


@final
class Proxy(Section):
    """The standalone proxy. In a file: ``[proxy]``; clients in the application's process ignore it."""

    #: Where clients connect: host and port.
    listen: str = "127.0.0.1:19530"
    #: Where the admin API, the metrics and the dashboard are: host and port; "" means nowhere.
    admin: str = "127.0.0.1:9091"
    #: What the admin API asks for (``Authorization: Bearer``); needed unless it listens on loopback.
    admin_token: SecretStr = SecretStr("")
    #: Processes that serve clients.
    workers: int = Field(default=1, ge=1, le=256)
    #: What clients must present ("user:password" or an API key); none means that the proxy asks for nothing, and
    #: passes on what they present to clusters that have no credentials of their own here.
    tokens: tuple[SecretStr, ...] = Field(default=(), strict=False)
    #: TLS towards the clients.
    tls: ProxyTLS = ProxyTLS()
    #: What clients may ask.
    limits: ProxyLimits = ProxyLimits()
    #: Time for calls under way to finish when the proxy stops or a worker is replaced, in seconds.
    grace_s: Seconds = 30.0
    #: Share of calls that are to be answered; the dashboard shows how fast the rest, the error budget, is spent.
    objective: float = Field(default=0.999, gt=0, lt=1)
    #: What log records look like.
    log: Literal["text", "json"] = "text"
    #: Least important records written: "debug" has one for every call.
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        host_and_port(value)
        return value

    @field_validator("admin")
    @classmethod
    def _check_admin(cls, value: str) -> str:
        if value:
            host_and_port(value)
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems: list[Problem] = []
        if self.admin and not self.admin_token.get_secret_value() and not is_loopback(host_and_port(self.admin)[0]):
            what = f'"{self.admin}" can be reached by others, and there is no admin_token'
            problems.append((("admin",), f'{what}; write one, or admin = "127.0.0.1:9091"'))
        if not all(token.get_secret_value() for token in self.tokens):
            problems.append((("tokens",), "one of them is empty; write the token, or leave it out"))
        if problems:
            raise fail_all(problems)
        return self


def host_and_port(address: str) -> tuple[str, int]:
    """Split ``host:port``, IPv6 in brackets; port 0 takes any free one.

    Raises:
        ValueError: It is no such thing; reported as a problem of its key.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise fail(f'"{address}" is not host:port; write for example "{_LISTEN_EXAMPLE}"')
    return bare, int(port)


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
