"""`KEY=VALUE` overrides of a recipe, put into its plain values before they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bevkd_deploy.contracts.recipe_lines import Location, dotted, parse_scalar, problem_line
from bevkd_deploy.contracts.recipe_schema import keys_at, unknown_key


@dataclass(frozen=True)
class Override:
    """One override as typed, split and read."""

    text: str
    location: Location
    value: Any


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Put each override into `values`, in order.

    Args:
        values: plain recipe values; changed in place.
        overrides: `dotted.key=value`; a section that the recipe leaves out is made on the way.

    Returns:
        The overrides that took effect, and one problem line for each that could not.
    """
    applied: list[Override] = []
    problems: list[str] = []
    for text in overrides:
        try:
            override = _parse(text)
            if any(override.location == earlier.location for earlier in applied):
                raise ValueError("given twice")
            _set(values, override)
            applied.append(override)
        except ValueError as error:
            problems.append(problem_line(f"override {text}", (), str(error)))
    return applied, problems


def _parse(text: str) -> Override:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError("not KEY=VALUE, such as student.train.epochs=2")
    if not value.strip():
        raise ValueError(f"has no value; write {key}=null to leave it out or {key}='' for empty text")
    location = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    for depth, part in enumerate(location, 1):
        if isinstance(part, str) and part not in keys_at(location[: depth - 1]):
            raise ValueError(unknown_key(location[:depth]))
    return Override(text, location, parse_scalar(value))


def _set(values: dict[str, Any], override: Override) -> None:
    """Write one value, making absent sections; a list must already hold the item."""
    holder: Any = values
    *parents, last = override.location
    for depth, part in enumerate(parents, 1):
        if isinstance(part, int):
            holder = _item(holder, override.location[:depth])
            continue
        wanted = list if isinstance(override.location[depth], int) else dict
        if holder.get(part) is None and wanted is dict:
            holder[part] = {}
        holder = holder.get(part)
        if not isinstance(holder, wanted):
            raise ValueError(_mismatch(override.location[: depth + 1]))
    if isinstance(last, int):
        _item(holder, override.location)
    elif not isinstance(holder, dict):
        raise ValueError(_mismatch(override.location))
    holder[last] = override.value


def _item(holder: Any, location: Location) -> Any:
    index = location[-1]
    count = len(holder) if isinstance(holder, list) else 0
    if not isinstance(index, int) or index >= count:
        raise ValueError(f"{dotted(location[:-1])} has {count} items in the recipe, so there is no item {index}")
    return holder[index]


def _mismatch(location: Location) -> str:
    owner, key = dotted(location[:-1]), location[-1]
    if isinstance(key, int):
        return f"{owner} is no list in the recipe, so it has no item {key}; give the whole list: {owner}=[...]"
    return f"{owner} is no section in the recipe, so it has no key '{key}'"
