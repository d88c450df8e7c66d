"""What is wrong with a configuration, said so that it can be mended without reading documentation.

Decision made here: a problem is a place and one line of text, and one `ConfigError` carries all of them. A
line never shows a value that was given, except a number outside a secret key: any string may be a secret in
the wrong place.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, get_args

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from haclient.errors import ConfigError

SECRET_KEYS = frozenset({"token", "user", "password", "admin_token", "tokens", "etcd_password"})

Loc: TypeAlias = tuple[str | int, ...]
Problem: TypeAlias = tuple[Loc, str]


def fail(text: str) -> PydanticCustomError:
    """One problem of the value or table being validated."""
    return PydanticCustomError("haclient", "{text}", {"text": text})


def fail_all(problems: Sequence[Problem]) -> PydanticCustomError:
    """Several problems of one table, each at its own key below that table."""
    return PydanticCustomError("haclient_many", "several problems", {"problems": tuple(problems)})


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def key_path(loc: Iterable[str | int]) -> str:
    """Write a location as it is found in the file, for example ``cluster[1].endpoints[0]``."""
    text = ""
    for part in loc:
        if not text and part == "clusters":
            text = "cluster"
        elif isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _BARE_KEY.fullmatch(part) else json.dumps(part)
            text += f".{shown}" if text else shown
    return text


def config_error(problems: Iterable[tuple[str, Loc, str]]) -> ConfigError:
    """Make one error of all problems, a line each: where it was written, the key, what is wrong."""
    lines: dict[str, None] = {}
    for label, loc, text in problems:
        path = key_path(loc)
        lines[" ".join((f"{label}: {path}: {text}" if path else f"{label}: {text}").splitlines())] = None
    return ConfigError("\n".join(lines))


def problems_of(model: type[BaseModel], details: Sequence[ErrorDetails]) -> list[Problem]:
    """Translate pydantic's errors about a model."""
    problems: list[Problem] = []
    locs = {tuple(detail["loc"]) for detail in details}
    for detail in details:
        loc: Loc = tuple(detail["loc"])
        if detail["type"] == "too_short" and any(other[: len(loc)] == loc != other for other in locs):
            continue  # not empty: what is in it is wrong, and said so
        context = detail.get("ctx", {})
        if detail["type"] == "haclient_many":
            problems += [((*loc, *below), text) for below, text in context["problems"]]
        elif detail["type"] == "haclient":
            problems.append((loc, context["text"]))
        elif len(loc) >= 2 and isinstance(loc[-2], int) and loc[-1] in {"int", "str"}:  # a branch of ``int | str``
            given = kind_of(detail.get("input"))
            problems.append((loc[:-1], f"must be a whole number or a string, got {given}; write for example 1"))
        else:
            problems.append((loc, _explain(model, loc, detail)))
    return list(dict.fromkeys(problems))


_WANTED = {
    "string_type": "a string",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def _explain(model: type[BaseModel], loc: Loc, detail: ErrorDetails) -> str:
    """Say in one line what is wrong with one value, and what to write; shows no value but a number."""
    owner, field = _field_at(model, loc)
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    secret = bool(SECRET_KEYS & {part for part in loc if isinstance(part, str)})
    instead = _example(loc, field)
    if kind == "extra_forbidden":
        return _unknown_key(model, owner, str(loc[-1]))
    if kind == "missing":
        return f"is missing; {instead}"
    if kind == "literal_error":
        choices = sorted(re.findall(r"'([^']*)'", str(context.get("expected", ""))))
        close = difflib.get_close_matches(given, choices, 1) if isinstance(given, str) else []
        return f"is not known; write {_toml(close[0]) if close else ' or '.join(map(_toml, choices))}"
    if kind in {"too_short", "string_too_short"}:
        return f"is empty; {instead}"
    if kind in _BOUNDS:
        bound, text = _BOUNDS[kind]
        return f"{text} {context[bound]:.15g}, got {kind_of(given, show=not secret)}; {instead}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, got {kind_of(given, show=not secret)}; {instead}"
    return f"is not right ({kind.replace('_', ' ')}); {instead}"


def _field_at(model: type[BaseModel], loc: Loc) -> tuple[type[BaseModel], FieldInfo | None]:
    """Find the table and the field of a location."""
    owner, field = model, None
    for i, part in enumerate(loc):
        if isinstance(part, int):
            continue
        field = owner.model_fields.get(part)
        if field is None or i == len(loc) - 1:
            break
        inner = _model_in(field.annotation)
        if inner is None:
            break
        owner = inner
    return owner, field


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)


def _example(loc: Loc, field: FieldInfo | None) -> str:
    key = next((part for part in reversed(loc) if isinstance(part, str)), "")
    if field is None:
        return "see examples/haclient.toml"
    if key in SECRET_KEYS:
        secret = f'"${{MILVUS_{key.upper()}}}"'
        return f"write for example {key} = {f'[{secret}]' if field.default == () else secret}"
    if (inner := _model_in(field.annotation)) and not field.examples:
        many = isinstance(field.default, tuple) or field.is_required()
        name = key_path(part for part in loc if isinstance(part, str))
        fields = [k for k, f in inner.model_fields.items() if f.is_required()]
        below = f" with {' and '.join(fields)}" if many and fields else ""
        return f"write {'[[' if many else '['}{name}{']]' if many else ']'}{below}"
    value = field.examples[0] if field.examples else field.default
    if value in ("", ()) or value is None:
        return f"write for example {key} = {_toml('...') if value == '' else '[]'}, or leave it out"
    return f"write for example {key} = {_toml(value)}"


def _unknown_key(root: type[BaseModel], owner: type[BaseModel], key: str) -> str:
    own = written_keys(owner)
    if close := difflib.get_close_matches(key, own, 1):
        return f"unknown key; did you mean {close[0]}?"
    for name, field in root.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and inner is not owner and key in written_keys(inner):
            return f"unknown key here; write it in {'[[cluster]]' if name == 'clusters' else f'[{name}]'}"
    if owner is not root and key in written_keys(root):
        return "unknown key here; write it at the top of the file, before any [section]"
    return f"unknown key; the keys here are {', '.join(own)}"


def written_keys(owner: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a table as they are written in a file."""
    return getattr(owner, "KEYS", ()) or tuple(owner.model_fields)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def kind_of(value: object, *, show: bool = True) -> str:
    """Name what was given; only numbers are shown, for a string may be a secret in the wrong place."""
    if isinstance(value, bool):
        return _toml(value) if show else "true or false"
    if isinstance(value, int | float):
        huge = isinstance(value, int) and value.bit_length() > 64
        return str(value) if show and not huge else "a number"
    if value is None:
        return "nothing"
    if isinstance(value, str | SecretStr):
        return "a string"
    if isinstance(value, Mapping | BaseModel):
        return "a table"
    if isinstance(value, Sequence):
        return "a list"
    return f"a {type(value).__name__}"
