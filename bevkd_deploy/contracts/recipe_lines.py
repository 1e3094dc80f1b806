"""YAML text to plain values, with the line and column of every value and every problem of the text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

#: Keys and list indexes from the top of the document down to one value.
Location = tuple[str | int, ...]

_MERGE_TAG = "tag:yaml.org,2002:merge"
_TEXT_TAG = "tag:yaml.org,2002:str"
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}


class RecipeYaml(yaml.SafeLoader):
    """Safe YAML with two repairs of version 1.1: `1e-3` is a number, and a date stays text."""


RecipeYaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeYaml.add_implicit_resolver(
    _FLOAT_TAG, re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True, order=True)
class Mark:
    """A place in the text, both numbers counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing wrong in the text; printed as `line:column  dotted.path   message`."""

    mark: Mark
    location: Location
    message: str

    def __str__(self) -> str:
        return problem_line(self.mark, self.location, self.message)


@dataclass
class ParsedYaml:
    """What a YAML text says, where it says it, and what is wrong with it. A wrong value reads as None."""

    value: Any = None
    marks: dict[Location, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def dotted(location: Sequence[str | int]) -> str:
    """Location as the user writes it: `student.model.bev.stride`, list items by index."""
    return ".".join(str(part) for part in location)


def problem_line(place: object, location: Sequence[str | int], message: str) -> str:
    """One line of a recipe error: place, dotted path, message."""
    path = dotted(location)
    return f"{place}  {path}   {message}" if path else f"{place}  {message}"


def parse_scalar(text: str) -> Any:
    """Value of an override, read as YAML.

    Raises:
        ValueError: the text is not YAML, or holds something that JSON has no word for.
    """
    parsed = parse_yaml(text)
    if parsed.problems:
        raise ValueError(parsed.problems[0].message)
    return parsed.value


def parse_yaml(text: str) -> ParsedYaml:
    """Read one YAML document into dicts, lists, text, numbers, booleans and None.

    Duplicate keys, keys that are no text, non-finite numbers, tags and self-references are problems; reading
    goes on after each of them, so that one pass reports all. A syntax error ends the reading.
    """
    parsed = ParsedYaml()
    try:
        loader = RecipeYaml(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                parsed.value = _Reader(loader, parsed).read(node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = _mark_of(error.problem_mark or error.context_mark)
        parsed.problems.append(Problem(mark, (), f"not valid YAML: {_reason(error)}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        mark = Mark(line, error.position - text.rfind("\n", 0, error.position))
        parsed.problems.append(Problem(mark, (), f"not valid YAML: {error.reason}"))
    return parsed


class _Reader:
    """Walks a node tree once, building values and marks together."""

    def __init__(self, loader: RecipeYaml, parsed: ParsedYaml) -> None:
        self._loader = loader
        self._parsed = parsed
        self._open: set[int] = set()

    def read(self, node: yaml.Node, at: Location) -> Any:
        """Plain value of `node`; marks and problems go to the parsed document."""
        self._parsed.marks.setdefault(at, _mark_of(node.start_mark))
        if node.tag not in _PLAIN_TAGS:
            self._problem(node, at, f"tag '{node.tag.removeprefix('tag:yaml.org,2002:')}' is not allowed in a recipe")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        if id(node) in self._open:
            self._problem(node, at, f"alias refers to itself (anchor at line {node.start_mark.line + 1})")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*at, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, at)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, at: Location) -> Any:
        try:
            value = self._loader.construct_object(node)
        except (ValueError, KeyError):  # `!!int x` and `!!bool x`
            value = math.nan
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(node, at, f"must be a finite number, got {node.value}")
            return None
        return value

    def _mapping(self, node: yaml.Node, at: Location) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                values.update(self._merged(value_node, at))
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                continue
            if key_node.tag != _TEXT_TAG:
                self._problem(key_node, at, "keys must be text; put a number or a yes/no in quotes")
                continue
            key = key_node.value
            here = (*at, key)
            if key in first_line:
                self._problem(key_node, here, f"duplicate key, first given on line {first_line[key]}")
                continue
            first_line[key] = key_node.start_mark.line + 1
            self._parsed.marks[here] = _mark_of(key_node.start_mark)
            values[key] = self.read(value_node, here)
        return values

    def _merged(self, node: yaml.Node, at: Location) -> dict[str, Any]:
        """Values that `<<: *anchor` or `<<: [*a, *b]` brings in; the earlier of two wins."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                self._problem(source, at, "'<<' merges mappings only")
                continue
            merged.update(self.read(source, at))
        return merged

    def _problem(self, node: yaml.Node, at: Location, message: str) -> None:
        self._parsed.problems.append(Problem(_mark_of(node.start_mark), at, message))


def _mark_of(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1) if mark is not None else Mark(1, 1)


def _reason(error: yaml.MarkedYAMLError) -> str:
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{reason} (indent with spaces)" if "'\\t'" in reason else reason
