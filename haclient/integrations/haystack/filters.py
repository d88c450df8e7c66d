"""Haystack's filters as Milvus expressions.

Decision made here: the answer does not depend on the server. Milvus and milvus-lite disagree on a negated comparison of
a field that a row does not have, so a negation is pushed down to the comparisons, where both agree: a document
without the field is ``!=`` any value and ``not in`` any list, and no order (``>``, ``<=``) holds for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from haystack.errors import FilterError

_OPPOSITE: Final = {"==": "!=", "!=": "==", ">": "<=", "<=": ">", "<": ">=", ">=": "<", "in": "not in", "not in": "in"}
_GROUPS: Final = ("AND", "OR", "NOT")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expression(filters: Mapping[str, Any] | None, *, text_field: str = "text", key_field: str = "id") -> str:
    """Return the Milvus expression of a Haystack filter, "" for none.

    Args:
        filters: A comparison or a group of them; ``meta.`` before a name may be left out.
        text_field: What ``content`` is called in the collection.
        key_field: What ``id`` is called.

    Raises:
        FilterError: It is no filter, or one that Milvus cannot answer; says where.
    """
    return _condition(filters, False, {"content": text_field, "id": key_field}) if filters else ""


def _condition(filters: Any, negated: bool, names: Mapping[str, str]) -> str:
    if not isinstance(filters, Mapping):
        raise FilterError(f"a filter is a dictionary, got {filters!r}")
    return _comparison(filters, negated, names) if "field" in filters else _group(filters, negated, names)


def _group(filters: Mapping[str, Any], negated: bool, names: Mapping[str, str]) -> str:
    operator, conditions = (_part(filters, key) for key in ("operator", "conditions"))
    if operator not in _GROUPS:
        raise FilterError(f"the operator of {filters!r} must be one of {', '.join(_GROUPS)}")
    if not isinstance(conditions, list) or not conditions:
        raise FilterError(f"the conditions of {filters!r} must be a list with at least one filter")
    negated ^= operator == "NOT"
    joined = " or " if (operator == "OR") ^ negated else " and "
    return f"({joined.join(_condition(one, negated, names) for one in conditions)})"


def _comparison(filters: Mapping[str, Any], negated: bool, names: Mapping[str, str]) -> str:
    operator, value = (_part(filters, key) for key in ("operator", "value"))
    if operator not in _OPPOSITE:
        raise FilterError(f"the operator of {filters!r} must be one of {', '.join(_OPPOSITE)}")
    field = _field(filters["field"], names)
    if isinstance(value, list) != (operator in ("in", "not in")):
        raise FilterError(f"{filters!r}: in and not in take a list, and the others a single value")
    if operator not in ("==", "!=", "in", "not in"):
        _check_ordered(filters, value)
    sign = _OPPOSITE[operator] if negated else operator
    if value is None:
        # Milvus 2.3 takes what follows "exists" for a part of it, were it not for the brackets.
        return {"==": f"(not (exists {field}))", "!=": f"(exists {field})"}.get(sign, f"{field} in []")
    if sign == "!=":
        return f"{field} not in [{_literal(value)}]"
    return f"{field} {sign} {_literal(value)}"


def _part(filters: Mapping[str, Any], key: str) -> Any:
    if key not in filters:
        raise FilterError(f"{filters!r} has no {key!r}")
    return filters[key]


def _field(name: Any, names: Mapping[str, str]) -> str:
    field = names.get(name) or str(name).removeprefix("meta.")
    if not _NAME.fullmatch(field):
        raise FilterError(f"Milvus cannot filter by the field {name!r}: names are letters, digits and underscores")
    return field


def _check_ordered(filters: Mapping[str, Any], value: Any) -> None:
    """Refuse values without an order that Haystack and Milvus share: of texts only dates have one."""
    try:
        ordered = value is None or isinstance(value, int | float) or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise FilterError(f"{filters!r}: only numbers and ISO dates can be compared by order")


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, bool | str | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value, ensure_ascii=False)
    raise FilterError(f"Milvus cannot compare with {value!r}: write a text, a finite number or a truth value")
