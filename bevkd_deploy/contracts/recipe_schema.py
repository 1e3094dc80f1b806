"""Questions about the recipe schema: which keys a section has, and what a mistyped one may have meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_lines import Location, dotted
from bevkd_deploy.contracts.suggest import did_you_mean


def keys_at(location: Location) -> tuple[str, ...]:
    """Keys that the section at `location` may hold; empty where the schema has no section."""
    section: type[BaseModel] | None = Recipe
    for part in location:
        if section is None:
            return ()
        if isinstance(part, int):
            continue
        section = _children(section).get(part)
    return tuple(_children(section)) if section is not None else ()


def unknown_key(location: Location) -> str:
    """Message for a key that its section does not have: the closest sibling, the same key elsewhere, or all keys."""
    name, known = str(location[-1]), keys_at(location[:-1])
    hint = did_you_mean(name, known) or _elsewhere(location)
    if hint:
        return f"unknown key.{hint}"
    section = dotted(location[:-1])
    if not known:
        return f"unknown key. '{section}' is a value, not a section"
    return f"unknown key. {f'{section} has' if section else 'A recipe has'}: {', '.join(known)}"


def _elsewhere(location: Location) -> str:
    """Hint for a right key in the wrong section: the like-named one that shares most of the path."""
    name, path = str(location[-1]), dotted(location)
    same = [candidate for candidate in _all_paths(Recipe, "") if candidate.rsplit(".", 1)[-1] == name]
    shared = [(len(os.path.commonprefix([candidate, path])), candidate) for candidate in same]
    best = max(shared, default=(0, ""))
    unique = sum(length == best[0] for length, _ in shared) == 1
    return f" Did you mean '{best[1]}'?" if unique and best[1] else ""


def _all_paths(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, child in _children(section).items():
        yield prefix + name
        if child is not None:
            yield from _all_paths(child, f"{prefix}{name}.")


def _children(section: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Key to subsection (None for a plain value) of one section; keys as YAML writes them."""
    return {field.alias or name: _section_in(field.annotation) for name, field in section.model_fields.items()}


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section type inside an annotation such as `Section | None` or `tuple[Section, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)
