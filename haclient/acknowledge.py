"""What must have happened before a write is answered: configured for a fleet, or named for some calls.

Decision made here: a call's own level travels as metadata, so it means the same in the application's process and
behind a proxy, and pymilvus' methods need no further argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, TypeAlias, get_args

from haclient.errors import ConfigError

#: "log": it is in the mutation log. "one", "quorum", "all": so many clusters have it, too.
Ack: TypeAlias = Literal["log", "one", "quorum", "all"]
ACKS: Final[tuple[Ack, ...]] = get_args(Ack)
#: Metadata of a call that names its own level.
METADATA: Final = "haclient-ack"

_level: ContextVar[Ack | None] = ContextVar("haclient-ack", default=None)


@contextmanager
def acknowledged(level: Ack) -> Iterator[None]:
    """Let the writes made inside a ``with`` block wait for this level, whatever is configured.

    Raises:
        ConfigError: There is no such level.
    """
    if level not in ACKS:
        raise ConfigError(f"{level!r} is no ack level; write one of {', '.join(ACKS)}")
    before = _level.set(level)
    try:
        yield
    finally:
        _level.reset(before)


def level() -> Ack | None:
    """Return the level of the calls made here, None if it is the configured one."""
    return _level.get()
