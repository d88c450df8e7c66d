r"""Key literals in Milvus' boolean expressions, and lists of keys read back from them.

Decision made here: only what every server reads alike is written, and only that is understood. Written are
``\\``, ``\"``, ``\n`` and ``\r``, everything else as it is (measured with quotes, backslashes, ``\u0041`` as text, NUL,
tab and emoji on 2.3.5 and Lite: Lite knows no ``\x``, ``\u`` or octal escapes, and neither takes a raw line break).
Read are integers without leading zeros (``010`` is 8 on a real Milvus and 10 on Lite) and the escapes that mean the
same everywhere. Whatever else an expression says is for a server to resolve.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from haclient.milvus.requests import listed_keys_field

Key = int | str

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r"})
_TOKEN: Final = re.compile(r"""[+-]?\d+|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{\s*(?P<name>\w+)\s*\}""", re.DOTALL)
_NUMBER: Final = re.compile(r"[+-]?(?:0|[1-9]\d*)")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_MEANT: Final = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t"}


def literal(key: Key) -> str:
    """Write a key as a literal."""
    return str(key) if isinstance(key, int) else f'"{key.translate(_ESCAPES)}"'


def in_list(field: str, keys: Iterable[Key]) -> str:
    """Write the expression that is true of exactly these keys."""
    return f"{field} in [{', '.join(map(literal, keys))}]"


def listed(expression: str, field: str, values: Mapping[str, Any]) -> list[Key] | None:
    """Read the keys of an expression that is nothing but ``field in [..]`` or ``field == x``; None in any doubt.

    Args:
        expression: Of a DeleteRequest.
        field: Name of the primary key.
        values: Template values (``schema_pb2.TemplateValue``) by name.
    """
    if listed_keys_field(expression) != field:
        return None
    keys: list[Key] = []
    at = expression.index(field) + len(field)
    for token in _TOKEN.finditer(expression, at):
        found = _templated(values.get(token["name"])) if token["name"] else _read(token[0])
        if found is None:
            return None
        keys += found
    return keys


def _read(token: str) -> list[Key] | None:
    if token[0] in "\"'":
        text = token[1:-1]
        if any(escape not in _MEANT for escape in _ESCAPED.findall(text)):
            return None
        return [_ESCAPED.sub(lambda found: _MEANT[found[1]], text)]
    return [int(token)] if _NUMBER.fullmatch(token) else None


def _templated(value: Any) -> list[Key] | None:
    array = value.array_val if value is not None and value.WhichOneof("val") == "array_val" else None
    kind = array.WhichOneof("data") if array is not None else None
    return list(getattr(array, kind).data) if kind in ("long_data", "string_data") else None
