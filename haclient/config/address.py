"""Addresses of servers: what a URI says, and how it is shown without its credentials.

Decision made here: a URI means what it means to pymilvus' ``ConnectionConfig.from_uri``, but what pymilvus
would silently ignore (a query, a fragment, a port that is none) is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

DEFAULT_URI = "http://localhost:19530"
DEFAULT_PORT = 19530
EXAMPLE_URI = "http://10.0.0.1:19530"


def redact(uri: str) -> str:
    """Return the URI without its credentials, query and fragment, for messages and logs."""
    head, at, tail = uri.rpartition("@")
    if at:
        if re.search(r"[?#]", head):  # the @ may be part of a secret in the query
            return hide(uri)
        uri = f"{hide(uri)}@{tail}"
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

    @property
    def name(self) -> str:
        """``host:port`` (IPv6 in brackets), ``unix:PATH`` or the file's path."""
        if self.scheme == "tcp":
            return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"unix:{self.path}" if self.scheme == "unix" else self.path


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
            return Address("lite", path=os.path.expanduser(text))
        scheme, rest = "", text
    scheme = scheme.lower()
    if scheme not in {"", "http", "https", "tcp"}:
        raise wrong("has a scheme that is not known")
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in rest:
        raise wrong(
            "has an @ behind a slash, ? or #, so it is not clear which host is meant",
            "write credentials with such characters as user and password, or as token",
        )
    if re.search(r"[?#]", rest):
        raise wrong("has a query or a fragment, which means nothing here")
    userinfo, _, authority = authority.rpartition("@")
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
    database = rest.strip("/").split("/")[0]
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


def split_uris(text: str) -> list[str]:
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


def hide(text: str) -> str:
    """Show nothing of a URI but its scheme."""
    scheme, found, _ = text.partition("://")
    return f"{scheme}://***" if found and scheme.lower() in {"http", "https", "tcp"} else "***"
