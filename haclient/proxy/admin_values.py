"""The admin API's smaller answers; the larger ones are in `haclient.proxy.report`.

Decision made here: they are read on machines where the proxy's own packages are not installed, so they need none.
"""

from __future__ import annotations

from typing import Literal, final

from haclient.proxy.report import Value


@final
class Alive(Value):
    """The answer of ``GET /healthz``."""

    alive: Literal[True] = True


@final
class Readiness(Value):
    """The answer of ``GET /readyz``: whether a read can be served now, and if not, why."""

    ready: bool
    reason: str


@final
class Drained(Value):
    """The answer to a drain, or to its end."""

    name: str
    drained: bool


@final
class Problem(Value):
    """Why a request was refused."""

    detail: str
