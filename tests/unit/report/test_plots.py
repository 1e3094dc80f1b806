from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from bevkd_deploy.report import plots
from bevkd_deploy.report.bench_view import parse_bench
from bevkd_deploy.report.palette import ACTOR_COLORS
from bevkd_deploy.report.training_log import Curves

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bar_widths(svg: str, color: str) -> list[float]:
    """Widths of filled rectangles of a colour, legend keys left out."""
    widths = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"fill: {color}" in path.get("style", ""):
            xs = [float(x) for x, _ in re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path.get("d", ""))]
            widths.append(max(xs) - min(xs))
    return widths


def test_latency_plot_says_the_medians(bench: dict[str, Any]) -> None:
    view = parse_bench(bench)
    samples = {row.key: np.array([0.8, 1.0, 1.5]) * row.latency_ms.p50 for row in view.backends if row.latency_ms}
    svg = plots.latency_plot(view, samples)
    assert svg is not None
    assert {"200.0 ms", "60.00 ms", "12.50 ms", "tensorrt  fp16"} <= set(texts(svg))
    # From 10 to 300 ms: a logarithmic axis with plain numbers.
    assert {"10", "20", "50", "100", "200"} <= set(texts(svg))
    assert svg == plots.latency_plot(view, samples)
    assert "<metadata" not in svg and "<?xml" not in svg
    assert "currentColor" in svg and plots.INK not in svg
    ids = [element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")]
    assert ids and all(name.startswith("latency-") for name in ids)


def test_latency_plot_shows_only_rows_with_samples(bench: dict[str, Any]) -> None:
    view = parse_bench(bench)
    assert plots.latency_plot(view, {"other-fp32": np.ones(3)}) is None
    svg = plots.latency_plot(view, {"tensorrt-fp16": np.array([10.0, 11.0, 12.0])})
    assert svg is not None and "teacher  fp32" not in texts(svg)


def test_bars_are_as_long_as_the_precision(bench: dict[str, Any]) -> None:
    svg = plots.per_class_plot(parse_bench(bench))
    assert svg is not None
    teacher, engine = (bar_widths(svg, ACTOR_COLORS[name])[:2] for name in ("teacher", "engine"))
    # AP of car: teacher 0.72, engine 0.6831; of pedestrian: 0.52 and 0.4831.
    assert engine[0] / teacher[0] == pytest.approx(0.6831 / 0.72, rel=1e-4)
    assert teacher[1] / teacher[0] == pytest.approx(0.52 / 0.72, rel=1e-4)
    assert {"car", "pedestrian", "engine: tensorrt fp16"} <= set(texts(svg))


def test_classes_without_ground_truth_have_no_bar(bench: dict[str, Any]) -> None:
    for row in bench["backends"]:
        row["accuracy"]["per_class"]["bus"] = None
    svg = plots.per_class_plot(parse_bench(bench))
    assert svg is not None and "bus" not in texts(svg)
    for row in bench["backends"]:
        row["accuracy"]["per_class"] = {}
    assert plots.per_class_plot(parse_bench(bench)) is None


def test_training_plot() -> None:
    steps = np.arange(1, 101)
    curves = Curves("distill", {"heatmap": (steps, 1.0 / steps), "total": (steps, 2.0 / steps)})
    svg = plots.training_plot([curves, Curves("empty")])
    assert svg is not None and {"distill", "heatmap", "total", "step"} <= set(texts(svg))
    assert "empty" not in texts(svg)
    assert plots.training_plot([]) is None


def test_a_loss_that_reaches_zero_gets_a_linear_axis() -> None:
    steps = np.arange(1, 11)
    svg = plots.training_plot([Curves("t", {"a": (steps, np.linspace(1, 0, 10)), "total": (steps, np.ones(10))})])
    assert svg is not None and "0.0" in texts(svg)
