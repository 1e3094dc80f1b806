"""Gates → JUnit XML, the format every CI system shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bevkd_deploy.contracts.files import write_text
from bevkd_deploy.report import text
from bevkd_deploy.report.bench_view import Bench, Gate, parse_bench
from bevkd_deploy.report.tables import gate_limit

#: Gate result → JUnit element. An unstable measurement is an error of the run, not a failure of the student.
OUTCOMES = {"fail": "failure", "unstable": "error", "skipped": "skipped"}

#: Characters that XML 1.0 cannot hold, not even escaped.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(bench: Mapping[str, Any]) -> str:
    """One suite, one testcase per gate; device, commit and engine hash as suite properties.

    The text stands in the body as well as in `message`, because some CI systems show only one of them. A failed
    gate that is not required is reported as skipped, so that the report agrees with the exit code.

    Raises:
        ArtifactError: `bench` does not follow the schema.
    """
    view = parse_bench(bench)
    outcomes = [_outcome(gate) for gate in view.gates]
    suite = ElementTree.Element(
        "testsuite",
        name="bevkd benchmark gates",
        tests=str(len(view.gates)),
        failures=str(outcomes.count("failure")),
        errors=str(outcomes.count("error")),
        skipped=str(outcomes.count("skipped")),
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(view):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    for gate, outcome in zip(view.gates, outcomes, strict=True):
        case = ElementTree.SubElement(suite, "testcase", classname="bevkd.gates", name=_clean(gate.name))
        line = _clean(gate_line(gate))
        if outcome:
            ElementTree.SubElement(case, outcome, message=line).text = line
        else:
            ElementTree.SubElement(case, "system-out").text = line
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def write_junit(bench: Mapping[str, Any], path: Path | str) -> Path:
    """Write `render_junit` to a file."""
    return write_text(path, render_junit(bench))


def gate_line(gate: Gate) -> str:
    """One gate in one sentence."""
    parts = [f"{gate.name}: {gate.result}", f"value {text.general(gate.value)}", f"limit {gate_limit(gate)}"]
    parts += [f"interval {text.interval(gate.interval)}"] if gate.interval else []
    parts += [] if gate.required else ["not required"]
    parts += [gate.reason] if gate.reason else []
    return ", ".join(parts)


def _outcome(gate: Gate) -> str | None:
    if gate.result != "pass" and not gate.required:
        return "skipped"
    return OUTCOMES.get(gate.result)


def _properties(view: Bench) -> list[tuple[str, str]]:
    engine = view.engine
    known = [
        ("device", view.device),
        ("date", view.date),
        ("commit", view.commit),
        ("engine", engine.engine if engine else None),
        ("engine_sha256", engine.engine_sha256 if engine else None),
        ("boundary", view.boundary),
    ]
    return [(name, value) for name, value in known if value]


def _clean(value: str) -> str:
    return NOT_XML.sub("?", value)
