"""The configuration on its way from the supervisor to a worker.

Decision made here: it travels over the control channel, with its secrets; a command line and an environment can be
read by others.
"""

from __future__ import annotations

import json
import os

from pydantic import SecretStr, ValidationError

from haclient.config import Config
from haclient.config.problems import config_error, problems_of


def write(config: Config) -> str:
    """Return a configuration as text that `read` understands; it holds secrets."""
    return json.dumps(config.model_dump(), default=_plain)


def read(text: str) -> Config:
    """Return the configuration that was written.

    Raises:
        ConfigError: It is not sound any more, for example because a file has gone.
    """
    details = []
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Raised out here so that pydantic's error, which holds the values, is not chained.
    raise config_error(("configuration", loc, what) for loc, what in problems_of(Config, details))


def _plain(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    raise TypeError(f"a {type(value).__name__} in the configuration cannot be written")
