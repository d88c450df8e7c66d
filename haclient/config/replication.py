"""How writes reach several clusters: ``[replication]``."""

from __future__ import annotations

import re
from typing import Final, Literal, Self, final

from pydantic import Field, SecretStr, model_validator

from haclient.acknowledge import Ack
from haclient.config import pem, sources
from haclient.config.problems import Problem, fail_all
from haclient.config.section import Count, Seconds, Section

ETCD: Final = "etcd://"


@final
class Replication(Section):
    """How writes reach several clusters. In a file: ``[replication]``."""

    #: "none": with several clusters writes are refused. "mirror": every write goes into the log, and from there to all.
    #: "external": the clusters replicate among themselves (Milvus CDC), and writes go to the primary.
    mode: Literal["none", "mirror", "external"] = "none"
    #: The mutation log: path of an SQLite file on a local disk, or etcd://host:port,host:port (addresses of one etcd,
    #: not of a Milvus' own); "" is a process that only reads.
    log: str = ""
    #: What a write waits for: "log", or that "one", a "quorum" or "all" of the clusters have it.
    ack: Ack = "one"
    #: Staleness that a Bounded read accepts of a cluster, in seconds.
    bounded_s: Seconds = 5.0
    #: Time in which a cluster must answer one applied batch, in seconds; longer each time it does not.
    apply_timeout_s: Seconds = 5.0
    #: Time after which another process goes on applying if this one has gone silent, in seconds.
    lease_s: Seconds = 1.5
    #: Time a cluster is left alone after a request to it went unanswered and it answers again, in seconds.
    settle_s: Seconds = 1.0
    #: Most bytes of one batch sent to a cluster.
    batch_bytes: int = Field(default=8 << 20, ge=1 << 16)
    #: Most entries that the log holds before the slowest cluster is left behind, to be reseeded.
    max_entries: Count = 1_000_000
    #: Most bytes that the log holds before the slowest cluster is left behind, to be reseeded.
    max_bytes: int = Field(default=4 << 30, ge=1 << 20)
    #: Copy an empty or left-behind cluster anew from another one, without being told to.
    auto_reseed: bool = False
    #: Largest existing collection that is compared and adopted at its first write; larger ones need `haclient verify`.
    adopt_rows: Count = 10_000
    #: Time between two marks of how far it is, written into each cluster for processes without the log, in seconds.
    watermark_s: Seconds = 1.0
    #: An asynchronous cluster that lacks something older than this is reported, in seconds.
    max_lag_s: Seconds = 60.0
    #: User of etcd; together with ``etcd_password``.
    etcd_user: str = ""
    #: Password of etcd; together with ``etcd_user``.
    etcd_password: SecretStr = SecretStr("")
    #: PEM file of the authorities that sign etcd's certificates; "" means no TLS.
    etcd_ca_file: str = ""
    #: PEM file of the client's certificate for etcd.
    etcd_cert_file: str = ""
    #: PEM file of its private key, without a pass phrase.
    etcd_key_file: str = ""
    #: Where the log's keys begin in etcd.
    etcd_prefix: str = Field(default="/haclient/", min_length=1)
    #: Accept an etcd that keeps the metadata of a Milvus: losing it loses the log and that Milvus together.
    etcd_shared: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        problems = self._log_problems() + self._tls_problems()
        user, password = bool(self.etcd_user), bool(self.etcd_password.get_secret_value())
        if user != password:
            missing, given = ("etcd_password", "etcd_user") if user else ("etcd_user", "etcd_password")
            problems.append(((missing,), f"is missing although {given} is given; write both"))
        if not self.log.startswith(ETCD):
            only_etcd = ("etcd_user", *(("etcd_password",) if password else ()), *sources.ETCD_TLS_FILES)
            for key in [key for key in only_etcd if getattr(self, key)]:
                problems.append(
                    ((key,), 'is given but the log is no etcd; write log = "etcd://host:2379", or leave it out')
                )
        if problems:
            raise fail_all(problems)
        return self

    def _log_problems(self) -> list[Problem]:
        # What was written is not shown: it may be a URI with a password.
        if self.log.startswith(ETCD):
            if not all(_is_address(one) for one in self.log[len(ETCD) :].split(",")):
                return [
                    (("log",), "does not list addresses; write etcd://host:2379,host:2379, and a user as etcd_user")
                ]
        elif "://" in self.log:
            return [(("log",), "is no kind of log that is known; write a path, or etcd://host:2379,host:2379")]
        return []

    def _tls_problems(self) -> list[Problem]:
        problems = pem.unreadable({key: getattr(self, key) for key in sources.ETCD_TLS_FILES}, "etcd_key_file")
        if bool(self.etcd_cert_file) != bool(self.etcd_key_file):
            missing = "etcd_key_file" if self.etcd_cert_file else "etcd_cert_file"
            problems.append(((missing,), "is missing: mutual TLS needs a certificate and its key; write both paths"))
        if self.etcd_cert_file and not self.etcd_ca_file:
            problems.append((("etcd_ca_file",), "is missing: without it there is no TLS; write the path of a PEM file"))
        if problems:
            return problems
        if self.etcd_ca_file:
            problems += pem.broken_authorities("etcd_ca_file", self.etcd_ca_file)
        if self.etcd_cert_file:
            problems += pem.broken_pair("etcd_key_file", self.etcd_cert_file, self.etcd_key_file)
        return problems


_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(_HOST.fullmatch(host)) and port.isascii() and port.isdigit() and 0 < int(port) < 65_536
