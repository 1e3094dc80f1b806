from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from bevkd_deploy.report.console import print_benchmark, print_comparison


def console(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width), out


@pytest.mark.parametrize("width", [80, 120, 160])
def test_numbers_stay_whole_at_any_width(bench: dict[str, Any], width: int) -> None:
    screen, out = console(width)
    print_benchmark(bench, screen)
    content = out.getvalue()
    assert max(len(line) for line in content.splitlines()) <= width
    row = next(line for line in content.splitlines() if line.startswith("tensorrt"))
    for number in ("0.5831", "0.6331", "-0.0369", "-0.0019", "12.50", "13.75", "15.00", "13.1"):
        assert number in row.split(), number
    for line in ("latency boundary: graph inputs to boxes", "gates failed: retention_map failed"):
        assert line in content
    assert "no power rail" in content


def test_markup_in_text_is_printed_as_it_is(bench: dict[str, Any]) -> None:
    bench["gates"][1]["reason"] = "[bold]x[/bold]"
    screen, out = console(160)
    print_benchmark(bench, screen)
    assert "[bold]x[/bold]" in out.getvalue()


def test_comparison(bench: dict[str, Any]) -> None:
    other = copy.deepcopy(bench)
    other["backends"][2]["latency_ms"]["p50"] = 10.0
    other["backends"][2]["accuracy"]["mAP"] = 0.5931
    screen, out = console(100)
    print_comparison(bench, other, screen, ("old.json", "new.json"))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["tensorrt", "fp16", "mAP", "0.5831", "0.5931", "+0.0100"] in lines
    assert ["p50", "ms", "12.50", "10.00", "-20.0", "%", "faster"] in lines


def test_comparison_of_nothing_in_common(bench: dict[str, Any]) -> None:
    other = copy.deepcopy(bench)
    other["backends"] = []
    screen, out = console(100)
    print_comparison(bench, other, screen)
    assert "no backend in common" in out.getvalue()
    assert "metric" not in out.getvalue()
