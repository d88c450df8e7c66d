"""TLS contexts for HTTP/2 (RFC 9113 section 9.2).

Decision made here: certificates are read once, when configured, and what cannot be read is a `ConfigError` that
names the file, not a failed call later.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from haclient.errors import ConfigError


def client_context(
    *,
    ca_file: str | Path | None = None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
    insecure: bool = False,
) -> ssl.SSLContext:
    """Build the context of a `Target`.

    Args:
        ca_file: PEM file of the authorities to trust; None: those of the system.
        cert_file: PEM file of our own certificate (and chain), for mutual TLS.
        key_file: PEM file of its key; None: it is in ``cert_file``.
        insecure: Accept any certificate. For tests: anyone on the path can read and change everything.

    Raises:
        ConfigError: If a file cannot be read, or the arguments contradict each other.
    """
    if insecure and ca_file is not None:
        raise ConfigError("insecure and ca_file exclude each other: an insecure connection trusts any certificate")
    if key_file is not None and cert_file is None:
        raise ConfigError(f"key_file {key_file} is given without cert_file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # TLS 1.2 has ciphers that HTTP/2 forbids; the default list of OpenSSL keeps to the others.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["h2"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, "ca_file", ca_file)
    if cert_file is not None:
        load_identity(context, cert_file, key_file)
    return context


def load_identity(context: ssl.SSLContext, cert_file: str | Path, key_file: str | Path | None) -> None:
    """Load our own certificate and key.

    Raises:
        ConfigError: If one cannot be read, or they do not belong together.
    """
    _readable("cert_file", cert_file)
    if key_file is not None:
        _readable("key_file", key_file)
    try:
        # An empty password, so that an encrypted key is an error and not a question on the terminal.
        context.load_cert_chain(str(cert_file), str(key_file) if key_file is not None else None, password="")
    except (OSError, ssl.SSLError, ValueError) as error:
        key = f" with key_file {key_file}" if key_file is not None else ""
        raise ConfigError(f"cert_file {cert_file}{key} cannot be used: {error}") from error


def _load_authorities(context: ssl.SSLContext, name: str, path: str | Path) -> None:
    _readable(name, path)
    try:
        context.load_verify_locations(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{name} {path} holds no PEM certificates: {error}") from error


def _readable(name: str, path: str | Path) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read: {error.strerror}") from error


def server_context(
    cert_file: str | Path, key_file: str | Path | None = None, client_ca_file: str | Path | None = None
) -> ssl.SSLContext:
    """Build the context of a server.

    Args:
        cert_file: PEM file of our certificate (and chain).
        key_file: PEM file of its key; None: it is in ``cert_file``.
        client_ca_file: PEM file of the authorities whose clients are let in; None: a client needs no certificate.

    Raises:
        ConfigError: If a file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2", "http/1.1"])
    load_identity(context, cert_file, key_file)
    if client_ca_file is not None:
        _load_authorities(context, "client_ca_file", client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
