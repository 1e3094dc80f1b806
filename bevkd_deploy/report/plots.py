"""Plots of a benchmark as SVG text that sits inside a page and takes its text colour from it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.report.bench_view import Backend, Bench
from bevkd_deploy.report.palette import ACTOR_COLORS
from bevkd_deploy.report.tables import actors, class_names
from bevkd_deploy.report.text import milliseconds
from bevkd_deploy.report.training_log import TOTAL, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Drawn for text and axes, then replaced by the colour of the surrounding page.
INK = "#010203"

#: A logarithmic axis is used where times differ by more than this factor.
LOG_FACTOR = 8.0

#: More samples than this are thinned evenly for the plot; percentiles always use all of them.
MAX_DOTS = 400

FONT_SIZE = 10
INCHES_WIDE = 8.6


def latency_plot(bench: Bench, samples: Mapping[str, NDArray[np.float64]]) -> str | None:
    """One row per backend: every sample as a dot, a bar from p50 to p90, a mark at p99.

    Args:
        bench: the benchmark.
        samples: milliseconds of every sample, 1-D and positive, by `Backend.key` ("tensorrt-fp16").

    Returns:
        SVG, or None where no backend has samples.
    """
    rows = [(row, found) for row in bench.backends if (found := _samples_of(row, samples)) is not None]
    if not rows:
        return None
    figure, axes = _figure(0.9 + 0.46 * len(rows))
    everything = np.concatenate([values for _, values in rows])
    if everything.max() > LOG_FACTOR * everything.min():
        axes.set_xscale("log")
        low, high = float(everything.min()) / 1.35, float(everything.max()) * 1.2
        axes.set_xlim(low, high)
        _plain_log_ticks(axes.xaxis, low, high)
    for position, (row, values) in enumerate(rows):
        _latency_row(axes, len(rows) - 1 - position, row, values)
    axes.set_yticks(range(len(rows)), [f"{row.name}  {row.precision}" for row, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("latency of one frame (ms)")
    axes.grid(True, axis="x", color=INK, alpha=0.12, linewidth=0.7)
    return svg_text(figure, "latency")


def per_class_plot(bench: Bench) -> str | None:
    """AP of each class as bars for teacher, student and engine; None where no AP by class is known."""
    shown = actors(bench)
    names = [name for name in class_names(bench) if any(_ap(row, name) is not None for _, row in shown)]
    if not names:
        return None
    figure, axes = _figure(0.8 + 0.42 * len(names))
    height = 0.8 / len(shown)
    centers = np.arange(len(names))[::-1]
    for index, (name, row) in enumerate(shown):
        values = [_ap(row, class_name) or 0.0 for class_name in names]
        offset = (len(shown) - 1) / 2 - index
        label = f"{name}: {row.name} {row.precision}" if name == "engine" else f"{name} {row.precision}"
        axes.barh(centers + offset * height, values, height * 0.86, color=ACTOR_COLORS[name], label=label)
    axes.set_yticks(centers, [class_name.replace("_", " ") for class_name in names])
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision")
    axes.grid(True, axis="x", color=INK, alpha=0.12, linewidth=0.7)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(shown), frameon=False, fontsize=FONT_SIZE)
    return svg_text(figure, "classes")


def training_plot(curves: Sequence[Curves]) -> str | None:
    """Losses over steps, one panel for each stage that was trained; None where there is nothing to draw."""
    curves = [stage for stage in curves if stage.series]
    if not curves:
        return None
    figure, panels = _panels(len(curves))
    for axes, stage in zip(panels, curves, strict=True):
        for name, (steps, values) in stage.series.items():
            total = name == TOTAL
            axes.plot(steps, _smooth(values), linewidth=2.0 if total else 1.1, label=name,
                      color=INK if total else None, zorder=3 if total else 2)  # fmt: skip
        if all((values > 0).all() for _, values in stage.series.values()):
            axes.set_yscale("log")
            _plain_log_ticks(axes.yaxis, *axes.get_ylim())
        axes.set_title(stage.stage, fontsize=FONT_SIZE + 1, loc="left", color=INK)
        axes.set_xlabel("step")
        axes.grid(True, color=INK, alpha=0.12, linewidth=0.7)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=FONT_SIZE - 1)
    panels[0].set_ylabel("loss")
    return svg_text(figure, "training")


def _ap(row: Backend, class_name: str) -> float | None:
    return row.accuracy.per_class.get(class_name) if row.accuracy else None


def _latency_row(axes: Axes, y: int, row: Backend, values: NDArray[np.float64]) -> None:
    color = ACTOR_COLORS[row.role]
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    dots = values[:: max(1, len(values) // MAX_DOTS)]
    # A golden-ratio sequence spreads the dots evenly and is the same at every run.
    spread = (np.arange(len(dots)) * 0.618034) % 1.0 - 0.5
    axes.scatter(dots, y + 0.44 * spread, s=6, color=color, alpha=0.28, linewidths=0, zorder=2)
    axes.plot([p50, p90], [y, y], color=color, linewidth=7, solid_capstyle="butt", zorder=3)
    axes.plot([p50, p50], [y - 0.27, y + 0.27], color=INK, linewidth=1.8, zorder=4)
    axes.plot([p99], [y], marker="D", markersize=4.5, color=INK, zorder=4)
    axes.annotate(f"{milliseconds(float(p50))} ms", (p50, y + 0.27), xytext=(0, 1), textcoords="offset points",
                  ha="center", va="bottom", fontsize=FONT_SIZE - 1)  # fmt: skip


def _samples_of(row: Backend, samples: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    values = samples.get(row.key)
    return values if values is not None and values.size else None


def _plain_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 of each decade, written as plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of about a fiftieth of the curve, shorter at its ends."""
    window = max(1, len(values) // 50)
    kernel = np.ones(window)
    weights = np.convolve(np.ones(len(values)), kernel, mode="same")
    return np.asarray(np.convolve(values, kernel, mode="same") / weights)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = make_panels(1, (INCHES_WIDE, height))
    return figure, axes


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    return make_panels(count, (INCHES_WIDE, 2.9 * count))


def make_panels(count: int, inches: tuple[float, float], columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of that size without a ground of its own, and its panels row by row, with plain axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasSVG(figure)
    panels = [figure.add_subplot(-(-count // columns), columns, index + 1) for index in range(count)]
    figure.patch.set_alpha(0.0)
    for axes in panels:
        axes.patch.set_alpha(0.0)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=INK, labelsize=FONT_SIZE, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_edgecolor(INK)
            spine.set_alpha(0.4)
    return figure, panels


def svg_text(figure: Figure, name: str) -> str:
    """SVG text with ids of its own, free of metadata, text as text, ink as the page's colour."""
    import matplotlib

    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
            label.set_color(INK)
        legend = axes.get_legend()
        for entry in legend.get_texts() if legend else []:
            entry.set_color(INK)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    content = buffer.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    content = re.sub(r'\bid="', f'id="{name}-', content)
    content = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", content)
    return content.replace(INK, "currentColor").strip()
