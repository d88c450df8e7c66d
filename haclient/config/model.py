"""The whole configuration, and where it comes from.

Decision made here: sources never mix silently. A URI and a file together are an error; what may stand beside a file is
listed in `Config.load`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

from pydantic import Field, ValidationError, model_validator

from haclient.config import sources
from haclient.config.address import DEFAULT_URI
from haclient.config.cluster import ClusterConfig
from haclient.config.problems import Problem, config_error, fail_all, kind_of, problems_of
from haclient.config.proxy import Proxy
from haclient.config.replication import Replication
from haclient.config.section import Section, duplicates
from haclient.config.sections import Breaker, Health, Hedge, Retry, Timeouts, Wire


@final
class Config(Section):
    """The whole configuration.

    Attributes:
        clusters: In a file each is a ``[[cluster]]``.
    """

    KEYS: ClassVar = (
        "cluster", "zone", "database", "replication",
        "timeouts", "health", "breaker", "hedge", "retry", "wire", "proxy",
    )  # fmt: skip

    #: Everything that can be reached.
    clusters: tuple[ClusterConfig, ...] = Field(strict=False, min_length=1)
    #: Where this client is; clusters in the same zone are preferred. "" means nowhere in particular.
    zone: str = ""
    #: Database used unless a call names one; "" means the default one.
    database: str = ""
    #: How writes reach several clusters.
    replication: Replication = Replication()
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
    #: The standalone proxy.
    proxy: Proxy = Proxy()
    #: The file it was read from; None if from arguments. Not a key of the file.
    source: Path | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = duplicates(
            ((("clusters", i), "two clusters are named", c.name) for i, c in enumerate(self.clusters)),
            "write another name, or leave one of them out",
        )
        problems += duplicates(
            (
                (("clusters", i, "endpoints", k), "two endpoints have the address", e.address)
                for i, c in enumerate(self.clusters)
                for k, e in enumerate(c.endpoints)
            ),
            "write it once",
        )
        problems += self._site_problems()
        if problems:
            raise fail_all(problems)
        return self

    def _site_problems(self) -> list[Problem]:
        following = [i for i, cluster in enumerate(self.clusters) if cluster.asynchronous]
        if following and self.replication.mode != "mirror":
            what = 'is given but nothing is mirrored; write mode = "mirror" under [replication], or leave it out'
            return [(("clusters", i, "asynchronous"), what) for i in following]
        if len(following) == len(self.clusters):
            return [(("clusters",), "are all asynchronous; at least one has to take the writes that others follow")]
        return []

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
