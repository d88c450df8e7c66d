"""Whether the PEM files that TLS needs can be used: asked at once, so that a wrong one is no failed call.

Decision made here: a pass phrase is never asked for, as nobody may be there to type it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from haclient.config.problems import Problem


def unreadable(files: Mapping[str, str], key_field: str) -> list[Problem]:
    """Say which files cannot be read or are not what they should be.

    Args:
        files: Path by the field that names it; "" is passed over.
        key_field: The field that names a private key; the others name certificates.
    """
    problems: list[Problem] = []
    for field, path in files.items():
        if not path:
            continue
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            why = error.strerror or type(error).__name__
            problems.append(((field,), f'cannot read "{path}" ({why}); write the path of a PEM file'))
            continue
        wanted = b"PRIVATE KEY-----" if field == key_field else b"-----BEGIN CERTIFICATE-----"
        if wanted not in text:
            kind = "private key" if field == key_field else "certificate"
            problems.append(((field,), f'"{path}" holds no {kind} in PEM form; write the path of one'))
    return problems


def broken_authorities(field: str, path: str) -> list[Problem]:
    """Say so if a file's certificates cannot be loaded.

    Args:
        field: The field that names it.
        path: The file.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        return [((field,), f'"{path}" holds no certificate that can be read; write the path of a PEM file')]
    return []


def broken_pair(field: str, cert: str, key: str) -> list[Problem]:
    """Say so if a certificate and a key do not belong together.

    Args:
        field: The field that is told of.
        cert: The certificate's file.
        key: The key's file; it may be the same.
    """
    try:
        # The empty pass phrase keeps OpenSSL from asking for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password="")
    except (OSError, ValueError):
        what = f'"{key}" is not the key of "{cert}", or has a pass phrase'
        return [((field,), f"{what}; write the paths of a matching pair without a pass phrase")]
    return []
