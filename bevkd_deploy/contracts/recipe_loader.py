"""Read a recipe: YAML text and `KEY=VALUE` overrides to a `Recipe`, or all of its problems at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bevkd_deploy.contracts.errors import RecipeError, UsageError
from bevkd_deploy.contracts.files import sha256_json
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_lines import Location, Mark, ParsedYaml, Problem, parse_yaml, problem_line
from bevkd_deploy.contracts.recipe_overrides import Override, apply_overrides
from bevkd_deploy.contracts.recipe_schema import unknown_key
from bevkd_deploy.contracts.resources import resource_dir
from bevkd_deploy.contracts.suggest import did_you_mean

_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where it came from.

    `resolved` is the whole recipe as JSON values, defaults and overrides included; `digest` is its sha256, so
    comments and formatting do not change it. `text` is the file as it was read.
    """

    recipe: Recipe
    resolved: dict[str, Any]
    text: str
    path: Path
    digest: str
    overrides: tuple[str, ...] = ()


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        path: a file, or the name of a shipped recipe (see `find_recipe`).
        overrides: `dotted.key=value`, the value read as YAML, list items by index (`gates.0.min=0.4`).

    Raises:
        UsageError: there is no such recipe, or it is no text.
        RecipeError: every problem of the text, the overrides and the values, each with its line and column.
    """
    path = find_recipe(path)
    text = _read_text(path)
    parsed = parse_yaml(text)
    problems = list(parsed.problems)
    applied: list[Override] = []
    late: list[str] = []
    if not isinstance(parsed.value, dict):
        if not problems:
            problems.append(Problem(Mark(1, 1), (), "a recipe is a mapping of schema, name, data, teacher, ..."))
    else:
        values = parsed.value
        applied, late = apply_overrides(values, overrides)
        try:
            recipe = Recipe.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            reported = {problem.location for problem in parsed.problems}
            for details in error.errors(include_url=False):
                if details["loc"] not in reported:
                    _sort_in(details, parsed, applied, problems, late)
    if problems or late:
        ordered = sorted(problems, key=lambda problem: problem.mark)
        raise RecipeError(str(path), list(dict.fromkeys([*map(str, ordered), *late])))
    resolved = recipe.model_dump(mode="json", by_alias=True)
    return LoadedRecipe(recipe, resolved, text, path, sha256_json(resolved), tuple(overrides))


def find_recipe(name_or_path: Path | str) -> Path:
    """A recipe file as given, or the shipped recipe of that name.

    Raises:
        UsageError: neither exists; the message lists what ships and suggests the closest.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    reason = "is a folder, not a recipe" if path.is_dir() else "not found"
    hint = did_you_mean(path.stem, shipped)
    raise UsageError(f"recipe {name_or_path} {reason}.{hint} Shipped recipes: {', '.join(shipped) or 'none'}")


def shipped_recipes() -> dict[str, Path]:
    """Name to file of every recipe that ships with bevkd, sorted by name."""
    return {file.stem: file for file in sorted(resource_dir("recipes").glob("*.yaml"))}


def resolve_data_root(recipe: Recipe) -> Path:
    """Dataset folder with `$VAR`, `${VAR}` and `~` expanded; relative folders stay relative to the working directory.

    Raises:
        UsageError: the recipe names an environment variable that is not set.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        value = os.environ.get(name, "")
        if not value:
            raise UsageError(
                f"data.root is '{recipe.data.root}', but the environment variable {name} is not set; "
                f"set it (export {name}=/path/to/dataset) or override the recipe (data.root=/path/to/dataset)"
            )
        return value

    return Path(_VARIABLE.sub(value_of, recipe.data.root)).expanduser()


def resolved_path(loaded: LoadedRecipe, relative: Path | str) -> Path:
    """A path that a recipe gives relative to its own file, such as `teacher.checkpoint`."""
    return loaded.path.parent / Path(relative).expanduser()


def dump_resolved(loaded: LoadedRecipe) -> str:
    """The resolved recipe as YAML; loading it again gives the same digest."""
    return yaml.safe_dump(loaded.resolved, sort_keys=False, allow_unicode=True, width=120)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _sort_in(
    details: ErrorDetails,
    parsed: ParsedYaml,
    applied: Sequence[Override],
    problems: list[Problem],
    late: list[str],
) -> None:
    """Put one validation error where it belongs: at a line of the file, or at the override that caused it."""
    location = details["loc"]
    message = _message(details)
    owner = next((item for item in reversed(applied) if location[: len(item.location)] == item.location), None)
    if owner is not None:
        late.append(problem_line(f"override {owner.text}", location, message))
        return
    section = location[:-1] if details["type"] == "missing" else location
    touching = [item.text for item in applied if item.location[: len(section)] == section]
    if touching and details["type"] in ("missing", "value_error"):
        message += f" (with override {' '.join(touching)})"
    problems.append(Problem(_nearest_mark(parsed, location), location, message))


def _nearest_mark(parsed: ParsedYaml, location: Location) -> Mark:
    for length in range(len(location), -1, -1):
        if location[:length] in parsed.marks:
            return parsed.marks[location[:length]]
    return Mark(1, 1)


def _message(details: ErrorDetails) -> str:
    """Pydantic's finding in the words of a recipe author."""
    kind, got = details["type"], details.get("input")
    if kind == "extra_forbidden":
        return unknown_key(details["loc"])
    if kind == "missing":
        return "required key is missing" if isinstance(details["loc"][-1], str) else "required list item is missing"
    if kind == "value_error":
        return details["msg"].removeprefix("Value error, ")
    if kind in ("too_long", "too_short"):
        context = details["ctx"]
        bound = f"at most {context['max_length']}" if kind == "too_long" else f"at least {context['min_length']}"
        return f"must have {bound} items, got {context['actual_length']}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a section of 'key: value' lines, got {_short(got)}"
    if kind == "tuple_type":
        return f"must be a list, got {_short(got)}"
    hint = ""
    if kind == "literal_error" and isinstance(got, str):
        hint = did_you_mean(got, re.findall(r"'([^']*)'", details["ctx"]["expected"]))
    wanted = details["msg"].replace("Input should be", "must be", 1).replace("String should", "must", 1)
    return f"{wanted}, got {_short(got)}{'.' + hint if hint else ''}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
