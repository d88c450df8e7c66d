"""What every table of the configuration is: frozen, strict, unknown keys refused.

Decision made here: constructing a table by hand raises the same `ConfigError` as a file does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from haclient.config.problems import Loc, Problem, config_error, key_path, problems_of

Seconds: TypeAlias = Annotated[float, Field(gt=0)]
SecondsOrZero: TypeAlias = Annotated[float, Field(ge=0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the configuration: immutable, keyword-only, strict, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True, validate_default=False
    )

    def __init__(self, /, **data: Any) -> None:
        details: list[ErrorDetails] = []
        try:
            super().__init__(**data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        if details:  # raised out here so that pydantic's error, which holds the values, is not chained
            raise config_error((type(self).__name__, loc, text) for loc, text in problems_of(type(self), details))

    # Tells pydantic that nested tables need not go through this method.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def duplicates(items: Iterable[tuple[Loc, str, str]], instead: str) -> list[Problem]:
    """Return a problem for each of (place, what, value) whose value came before."""
    seen: dict[str, Loc] = {}
    problems: list[Problem] = []
    for loc, what, value in items:
        if value in seen:
            problems.append((loc, f'{what} "{value}" (the other is {key_path(seen[value])}); {instead}'))
        else:
            seen[value] = loc
    return problems
