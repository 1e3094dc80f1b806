"""How numbers are written: one rule for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Written where nothing was measured.
ABSENT = "–"


def metric(value: float | None) -> str:
    """A quality between 0 and 1, four digits, so that differences of the table add up."""
    return ABSENT if value is None else f"{value:.4f}"


def delta(value: float | None) -> str:
    """A signed difference of two qualities."""
    return ABSENT if value is None else f"{value:+.4f}"


def milliseconds(value: float | None) -> str:
    """Four significant digits at most, microseconds at best."""
    if value is None:
        return ABSENT
    digits = 1 if value >= 100 else 2 if value >= 10 else 3
    return f"{value:.{digits}f}"


def megabytes(value: float | None) -> str:
    """A size in MB."""
    if value is None:
        return ABSENT
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return ABSENT if value is None else f"{100 * value:.{digits}f} %"


def general(value: float | None) -> str:
    """A number of unknown kind, four significant digits."""
    return ABSENT if value is None else f"{value:.4g}"


def interval(bounds: tuple[float, float] | None) -> str:
    """A confidence interval."""
    return ABSENT if bounds is None else f"[{general(bounds[0])}, {general(bounds[1])}]"


def shorten_hash(value: str | None) -> str:
    """First twelve digits of a hash."""
    return ABSENT if not value else value[:12]


def plural(count: int, noun: str) -> str:
    """`1 gate`, `2 gates`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def describe(value: Any) -> str:
    """A JSON value on one line."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return general(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {describe(item)}" for key, item in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(describe(item) for item in value) or ABSENT
    return str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested objects as (dotted key, leaf) pairs, in file order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
