"""Where a configuration comes from: URIs and pymilvus' arguments, a dict, or a TOML file.

Decision made here: a source only rewrites what was given into the grammar of `haclient.config.model` and
notes what is wrong on the way; the models then check the rest, so that all problems are told together.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from pydantic import BaseModel, SecretStr

from haclient.config.address import EXAMPLE_URI, Address, hide, parse_uri, split_uris
from haclient.config.problems import SECRET_KEYS, Loc, Problem, config_error, key_path, kind_of
from haclient.errors import ConfigError

TLS_FILES = ("ca_pem_path", "client_pem_path", "client_key_path", "server_pem_path")
PROXY_TLS_FILES = ("cert_file", "key_file", "client_ca_file")
ETCD_TLS_FILES = ("etcd_ca_file", "etcd_cert_file", "etcd_key_file")
TLS_ARGUMENTS = frozenset({"secure", "server_name", *TLS_FILES})
ACCESS_ARGUMENTS = frozenset({"user", "password", "token", "db_name"})


@final
@dataclass(slots=True)
class Draft:
    """What was given, rewritten but not yet validated.

    Attributes:
        label: Where it was written: a file, "arguments", or an environment variable.
        data: Fields of `haclient.config.Config`.
        problems: What is wrong already.
        uri_locs: Where each cluster's URI was written, if the clusters come from URIs.
        labels: Top-level keys that were written somewhere else than ``label`` says, and where.
    """

    label: str
    data: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    uri_locs: list[Loc] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """Make one error of problems whose places are those of ``data``."""
        written = [(self.written_at(loc), text) for loc, text in problems]
        return config_error(
            (self.labels.get(str(loc[0]), self.label) if loc else self.label, loc, text) for loc, text in written
        )

    def written_at(self, loc: Loc) -> Loc:
        """Translate a place in ``data`` into the place where the user wrote it."""
        if not self.uri_locs or loc[:1] != ("clusters",) or len(loc) < 2 or not isinstance(loc[1], int):
            return loc
        if len(loc) == 2 or loc[2] in ("endpoints", "name"):
            return self.uri_locs[loc[1]]
        return loc[2:]


# --- URIs and arguments -------------------------------------------------------------------------------------


def endpoint_fields(address: Address) -> dict[str, Any]:
    """Return the fields of an `EndpointConfig` for what a URI said."""
    if address.scheme == "tcp":
        return {"scheme": "tcp", "host": address.host, "port": address.port, "secure": address.secure}
    return {"scheme": address.scheme, "path": address.path}


def from_uri(uri: object, key: str, arguments: Mapping[str, Any]) -> Draft:
    """Rewrite URIs, each a cluster of its own, and pymilvus' arguments.

    Args:
        uri: What was given as URI: a string or a sequence of strings, or something wrong.
        key: What it was given as: ``uri`` or the name of an environment variable.
        arguments: The other arguments of `Config.from_uri`.
    """
    draft = Draft("arguments", {}, labels={} if key == "uri" else {key: "environment"})
    problems = draft.problems
    texts = _uri_texts(uri, key, problems)
    for name in sorted(ACCESS_ARGUMENTS & arguments.keys()):
        if not isinstance(arguments[name], str | None):
            problems.append(
                ((name,), f'must be a string, got {kind_of(arguments[name], show=False)}; write {name}="..."')
            )
    tls = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value
        for name, value in arguments.items()
        if name in TLS_ARGUMENTS and value not in ("", None)
    }
    token = _explicit_token(arguments)
    clusters: list[dict[str, Any]] = []
    databases: list[str] = []
    seen: dict[str, Loc] = {}
    # A comma may have cut through a password or a query: then no piece can be shown safely.
    unsafe = isinstance(uri, str) and len(texts) > 1 and any(sign in uri for sign in "@?#")
    for loc, text in texts:
        try:
            address = parse_uri(text, shown=hide(text) if unsafe else None)
        except ValueError as error:
            problems.append((loc, str(error)))
            continue
        fields = endpoint_fields(address)
        name = address.name
        if name in seen:
            problems.append((loc, f'"{name}" is also {key_path(seen[name])}; write it once'))
            continue
        seen[name] = loc
        if address.database:
            databases.append(address.database)
        clusters.append({"name": name, "endpoints": (fields,), "token": token or SecretStr(address.token), **tls})
        draft.uri_locs.append(loc)
    database = arguments.get("db_name") or ""
    if not database and len(set(databases)) > 1:
        problems.append(((key,), 'the URIs name several databases; write one, as db_name="..."'))
    taken = ACCESS_ARGUMENTS | TLS_ARGUMENTS
    draft.data = {name: value for name, value in arguments.items() if name not in taken}
    for name in ("cluster", "clusters", "database", "source"):
        if name in draft.data:
            del draft.data[name]
            instead = 'write db_name="..."' if name == "database" else "write config={...} instead"
            problems.append(((name,), f"does not go together with {key}; {instead}"))
    if problems and not clusters:  # so that the other arguments are still checked
        clusters.append({"name": "?", "endpoints": ({"host": "localhost"},)})
        draft.uri_locs.append((key,))
    draft.data["clusters"] = tuple(clusters)
    draft.data["database"] = database if isinstance(database, str) and database else next(iter(databases), "")
    return draft


def _uri_texts(uri: object, key: str, problems: list[Problem]) -> list[tuple[Loc, str]]:
    """Split what was given as ``uri``, with where each piece was written."""
    instead = f'write for example {key}="{EXAMPLE_URI}"'
    pieces: Sequence[object]
    if isinstance(uri, str):
        pieces = split_uris(uri)
        if len(pieces) == 1:
            return [((key,), str(pieces[0]))]
    elif isinstance(uri, Sequence) and not isinstance(uri, bytes | bytearray):
        pieces = uri
    else:
        problems.append(((key,), f"must be a string or a list of strings, got {kind_of(uri)}; {instead}"))
        return []
    if not pieces:
        problems.append(((key,), f"names no endpoint; {instead}"))
    found: list[tuple[Loc, str]] = []
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            found.append(((key, i), piece))
        else:
            problems.append(((key, i), f"must be a string, got {kind_of(piece)}; {instead}"))
    return found


def _explicit_token(arguments: Mapping[str, object]) -> SecretStr | None:
    token, user, password = (arguments.get(key) or "" for key in ("token", "user", "password"))
    if isinstance(token, str) and token:
        return SecretStr(token)
    if isinstance(user, str) and isinstance(password, str) and user and password:
        return SecretStr(f"{user}:{password}")
    return None


# --- files and dicts ----------------------------------------------------------------------------------------


def read_toml(path: Path, label: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: It cannot be read, or is not TOML.
    """
    what = ""
    data: dict[str, Any] = {}
    try:
        data = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        why = error.strerror or type(error).__name__
        what = f"cannot be read ({why}); write the path of a TOML file, see examples/haclient.toml"
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        what = f"is not TOML: {str(error).splitlines()[0]}; correct that line"
    except (ValueError, RecursionError):
        what = "is not TOML: a number is too long or a table nested too deeply; see examples/haclient.toml"
    if what:  # raised out here: the decoder's error holds the text, and the text may hold secrets
        raise ConfigError(f"{label}: {what}")
    return data


def stamp(path: os.PathLike[str]) -> object:
    """Return what changes when a file is written anew (or a link is turned, as Kubernetes does); None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def from_mapping(data: Mapping[str, Any], label: str, source: Path | None, overrides: Mapping[str, Any]) -> Draft:
    """Rewrite a file's content, or a dict of the same grammar.

    Args:
        data: The content.
        label: Where it was written.
        source: The file it was read from, if it was.
        overrides: Fields of `Config` that win over it, sections key by key.
    """
    draft = Draft(label, dict(data))
    raw, problems = draft.data, draft.problems
    if "cluster" in raw:
        if "clusters" in raw:
            problems.append((("clusters",), "is given together with cluster; write only cluster"))
        raw["clusters"] = raw.pop("cluster")
    elif "clusters" in raw and source is not None:
        problems.append(((), "clusters: unknown key; did you mean cluster? Write [[cluster]]"))
    if "source" in raw:
        del raw["source"]
        problems.append((("source",), "is not a key to be set; leave it out"))
    base = None if source is None else source.parent
    if "proxy" in raw:
        raw["proxy"] = _prepare_proxy(raw["proxy"], base, problems)
    if "replication" in raw:
        raw["replication"] = _prepare_replication(raw["replication"], base, problems)
    clusters = raw.get("clusters")
    if isinstance(clusters, list | tuple):
        raw["clusters"] = tuple(_prepare_cluster(c, ("clusters", i), base, problems) for i, c in enumerate(clusters))
    for name, value in overrides.items():
        raw[name] = merged(raw.get(name), value)
        draft.labels[name] = "arguments"
    if source is not None:
        raw["source"] = source
    return draft


def merged(old: object, new: object) -> object:
    """A section given as a dict wins key by key; anything else wins as a whole."""
    if isinstance(new, Mapping) and isinstance(old, Mapping | BaseModel):
        known = {name: getattr(old, name) for name in type(old).model_fields} if isinstance(old, BaseModel) else old
        return {**known, **new}
    return new


def _prepare_cluster(cluster: object, loc: Loc, base: Path | None, problems: list[Problem]) -> object:
    """Put environment variables into credentials and make the file's relative paths absolute."""
    if not isinstance(cluster, Mapping):
        return cluster
    ready = _expanded(cluster, loc, problems)
    if base is not None:
        make_absolute(ready, TLS_FILES, base)
        if isinstance(ready.get("endpoints"), list):
            ready["endpoints"] = [_prepare_endpoint(endpoint, base) for endpoint in ready["endpoints"]]
    return ready


def _prepare_proxy(proxy: object, base: Path | None, problems: list[Problem]) -> object:
    """Do the same for the proxy's own tokens and files."""
    if not isinstance(proxy, Mapping):
        return proxy
    ready = _expanded(proxy, ("proxy",), problems)
    if base is not None and isinstance(ready.get("tls"), Mapping):
        ready["tls"] = dict(ready["tls"])
        make_absolute(ready["tls"], PROXY_TLS_FILES, base)
    return ready


def _prepare_replication(replication: object, base: Path | None, problems: list[Problem]) -> object:
    """Do the same for etcd's password and files, and for a log that is a file."""
    if not isinstance(replication, Mapping):
        return replication
    ready = _expanded(replication, ("replication",), problems)
    if base is not None:
        make_absolute(ready, ETCD_TLS_FILES, base)
        if "://" not in str(ready.get("log")):
            make_absolute(ready, ("log",), base)
    return ready


def _expanded(table: Mapping[str, Any], loc: Loc, problems: list[Problem]) -> dict[str, Any]:
    ready = dict(table)
    for key in SECRET_KEYS & ready.keys():
        value = ready[key]
        if isinstance(value, str):
            ready[key] = _expand(value, (*loc, key), problems)
        elif isinstance(value, list | tuple):
            ready[key] = [
                _expand(each, (*loc, key, i), problems) if isinstance(each, str) else each
                for i, each in enumerate(value)
            ]
    return ready


def make_absolute(table: dict[str, Any], keys: Sequence[str], base: Path) -> None:
    """Have the relative paths under these keys start at a folder."""
    for key in keys:
        if isinstance(table.get(key), str) and table[key]:
            table[key] = str(base / Path(table[key]).expanduser())


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
