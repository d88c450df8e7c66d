"""What must not be written into a pipeline's file.

Decision made here: a password or token comes in a Haystack ``Secret``, which is saved by the name of its environment
variable, or is part of a haclient configuration file. Anywhere else it is refused at once, not when it is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from haystack.utils import Secret

from haclient.config.address import redact
from haclient.errors import ConfigError

_INSTEAD: Final = 'write token=Secret.from_env_var("MILVUS_TOKEN")'
_SECRETS: Final = ("token", "password")


def check_address(arguments: Mapping[str, Any]) -> None:
    """Refuse secrets in plain text among the arguments of `haclient.MilvusClient`.

    Raises:
        ConfigError: There is one; it is not shown.
    """
    for name in _SECRETS:
        if arguments.get(name) and not isinstance(arguments[name], Secret):
            raise ConfigError(f"{name} must be a Secret, so that it is not saved with the pipeline; {_INSTEAD}")
    uris = arguments.get("uri") or ()
    for uri in [uris] if isinstance(uris, str) else uris:
        if "@" in str(uri):
            raise ConfigError(
                f"{redact(str(uri))} holds credentials, which would be saved with the pipeline; {_INSTEAD}"
            )
    if isinstance(arguments.get("config"), Mapping):
        raise ConfigError("config must be the path of a TOML file: it may hold secrets, and the path may be saved")


def resolved(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without those that are None, and with their secrets' values."""
    values = {name: each.resolve_value() if isinstance(each, Secret) else each for name, each in arguments.items()}
    return {name: value for name, value in values.items() if value is not None}
