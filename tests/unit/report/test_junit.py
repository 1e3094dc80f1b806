from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bevkd_deploy.report.junit import render_junit, write_junit


def suite_of(content: str) -> ElementTree.Element:
    suite = ElementTree.fromstring(content.encode()).find("testsuite")
    assert suite is not None
    return suite


def test_one_case_per_gate(bench: dict[str, Any], tmp_path: Path) -> None:
    suite = suite_of(write_junit(bench, tmp_path / "gates.xml").read_text(encoding="utf-8"))
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == ["export_map", "retention_map", "p99_ms", "power_w"]
    assert [child.tag for child in cases["export_map"]] == ["system-out"]
    for name, tag in (("retention_map", "failure"), ("p99_ms", "error"), ("power_w", "skipped")):
        (outcome,) = cases[name]
        assert outcome.tag == tag
        assert outcome.text == outcome.get("message")
    assert cases["retention_map"][0].text == ("retention_map: fail, value 0.9405, limit >= 0.95, ratio to the teacher")
    assert "interval [14.8, 15.3]" in (cases["p99_ms"][0].text or "")


def test_properties(bench: dict[str, Any]) -> None:
    suite = suite_of(render_junit(bench))
    properties = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert properties == {
        "device": "Orin",
        "date": "2026-01-02T03:04:05Z",
        "commit": "c" * 40,
        "engine": "student.fp16.orin.plan",
        "engine_sha256": "ab" * 32,
        "boundary": "graph inputs to boxes",
    }


def test_a_failure_that_is_not_required_agrees_with_the_exit_code(bench: dict[str, Any]) -> None:
    bench["gates"][1]["required"] = False
    suite = suite_of(render_junit(bench))
    assert (suite.get("failures"), suite.get("skipped")) == ("0", "2")
    line = suite.findall("testcase")[1][0].text or ""
    assert "fail" in line and "not required" in line


def test_any_text_is_valid_xml(bench: dict[str, Any]) -> None:
    bench["gates"][1]["reason"] = 'a < b & "c" \x00\x1b end'
    line = suite_of(render_junit(bench)).findall("testcase")[1][0].text or ""
    assert line.endswith('a < b & "c" ?? end')
