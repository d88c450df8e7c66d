"""Durations and shares as people write them.

Decision made here: a duration is written as Prometheus writes it (``30d``, ``1h30m``, ``250ms``), for it ends up in its
rules; ISO 8601 (``P30D``) is understood too. A share is a percentage (``99.95%``) or a number (``0.9995``).
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

from pydantic import TypeAdapter, ValidationError

#: Seconds of each unit, longest first; https://prometheus.io/docs/prometheus/latest/configuration/configuration/#duration.
UNITS: Final = {"y": 31_536_000.0, "w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PARTS: Final = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in UNITS))
_ISO: Final = TypeAdapter(timedelta)


def duration(text: str) -> float:
    """Read a duration.

    Args:
        text: For example ``30d``, ``1h30m``, ``1.5s`` or ``P30D``.

    Returns:
        Seconds, 0 or more.

    Raises:
        ValueError: It is no duration.
    """
    if match := _PARTS.fullmatch(text.strip()):
        found = [float(value) * UNITS[unit] for unit, value in match.groupdict().items() if value is not None]
        if found:
            return sum(found)
    try:
        if text.strip().startswith("P") and (value := _ISO.validate_python(text.strip()).total_seconds()) >= 0:
            return value
    except ValidationError:
        pass
    raise ValueError(f"{text!r} is no duration; write for example 30d, 1h30m or 250ms")


def share(text: str) -> float:
    """Read a share.

    Args:
        text: For example ``99.95%`` or ``0.9995``.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: It is no share.
    """
    number = text.strip()
    try:
        value = Decimal(number.removesuffix("%"))
    except InvalidOperation:
        value = Decimal("NaN")
    value = value / 100 if number.endswith("%") else value
    if not (value.is_finite() and 0 <= value <= 1):
        raise ValueError(f"{text!r} is no share; write for example 99.95% or 0.9995")
    return float(value)


def span(seconds: float) -> str:
    """Write a duration for a person: two or three digits and the unit that fits."""
    if seconds >= 2 * UNITS["y"]:
        return f"{seconds / UNITS['y']:.3g} years"
    for unit, text in (("d", "days"), ("h", "h"), ("m", "min"), ("s", "s")):
        if seconds >= (2 * UNITS[unit] if unit != "s" else 1.0):
            return f"{seconds / UNITS[unit]:.3g} {text}"
    return f"{seconds * 1000:.3g} ms" if seconds else "0"


def prometheus(seconds: float) -> str:
    """Write whole seconds as Prometheus' rules do, for example ``1h30m``."""
    left, parts = round(seconds), []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, round(UNITS[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
