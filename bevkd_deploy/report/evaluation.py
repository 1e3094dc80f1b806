"""The curves file of `bevkd evaluate` as one HTML page: per-class table, differences, precision and error curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import write_text
from bevkd_deploy.report import text
from bevkd_deploy.report.html import Card, page_template
from bevkd_deploy.report.plots import FONT_SIZE, INCHES_WIDE, INK, make_panels, svg_text
from bevkd_deploy.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = "bevkd.curves/1"

#: Error key of the summary -> its column, and the axis of its plot.
ERRORS = {
    "trans_err": ("ATE m", "translation (m)"),
    "scale_err": ("ASE", "size (1 - IoU)"),
    "orient_err": ("AOE rad", "heading (rad)"),
    "vel_err": ("AVE m/s", "velocity (m/s)"),
    "attr_err": ("AAE", "attribute (1 - accuracy)"),
}

#: Lines from the strictest distance to the widest, and lines of classes; told apart by colour-blind eyes too.
_DISTANCE_COLORS = ("#cc5f9b", "#e69f00", "#009e73", "#0a84d6")
_CLASS_STYLES = [(color, style) for style in ("-", "--") for color in (*_DISTANCE_COLORS, "#8d8d8d")]
_PRECISION_COLUMNS = 5
_ERROR_COLUMNS = 3


def write_evaluation_html(path: Path | str, curves: Mapping[str, Any]) -> Path:
    """Write `render_evaluation` to a file."""
    return write_text(path, render_evaluation(curves))


def render_evaluation(curves: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        curves: content of a curves file (`bevkd evaluate --curves`).

    Raises:
        ArtifactError: it has another schema.
    """
    if curves.get("schema") != SCHEMA:
        raise ArtifactError(f"a curves file has the schema {SCHEMA!r}, got {curves.get('schema')!r}")
    summary = curves["summary"]
    filters = [name.replace("_", " ") for name, on in summary["filters"].items() if on]
    return page_template("evaluation.html.j2").render(
        title=f"Evaluation of {curves['title']}",
        subtitle=f"{text.plural(curves['frames'], 'frame')} · filters on: {', '.join(filters) or 'none'}",
        cards=_cards(summary),
        classes=classes_table(curves),
        difference=difference_table(summary["difference"]) if "difference" in summary else None,
        notes=curves["notes"],
        precision_svg=precision_plot(curves),
        errors_svg=errors_plot(curves),
        threshold=f"{summary['cfg']['dist_th_tp']:g}",
    )


def classes_table(curves: Mapping[str, Any]) -> Table:
    """One row per class: boxes, AP at each distance, mean AP, errors; and the means."""
    summary = curves["summary"]
    distances = summary["cfg"]["dist_ths"]
    names = ["truths", "detections", "AP", *(f"AP {distance:g} m" for distance in distances)]
    names += [column for column, _ in ERRORS.values()]
    rows = []
    for name, average_precision in summary["mean_dist_aps"].items():
        counts, aps = curves["classes"][name], summary["label_aps"][name]
        by_distance = {float(distance): value for distance, value in aps.items()}
        values = [average_precision, *(by_distance[distance] for distance in distances)]
        values += [summary["label_tp_errors"][name][key] for key in ERRORS]
        cells = [str(counts["truths"]), str(counts["predictions"]), *map(text.metric, values)]
        rows.append((Cell(name.replace("_", " ")), *map(Cell, cells)))
    blank = [""] * len(distances)
    means = [text.metric(summary["tp_errors"][key]) for key in ERRORS]
    rows.append((Cell("mean"), *map(Cell, ["", "", text.metric(summary["mean_ap"]), *blank, *means])))
    columns = (Column("class"), *(Column(name, numeric=True) for name in names))
    return Table("Figures by class", columns, tuple(rows))


def difference_table(difference: Mapping[str, Any]) -> Table:
    """Each figure of two results, and the difference with its interval."""
    names = ("other", "results", "difference", f"{100 * difference['confidence']:g} % interval", "")
    columns = (Column("figure"), *(Column(name, numeric=True) for name in names))
    rows = []
    for name, row in difference["figures"].items():
        better, worse = row["low"] > 0, row["high"] < 0
        rows.append(
            (
                Cell(name.replace("_", " ")),
                Cell(text.metric(row["first"])),
                Cell(text.metric(row["second"])),
                Cell(text.delta(row["difference"])),
                Cell(f"{text.delta(row['low'])} to {text.delta(row['high'])}"),
                Cell("better", "good") if better else Cell("worse", "bad") if worse else Cell("open", "muted"),
            )
        )
    note = (
        f"Paired bootstrap over {text.plural(difference['units'], difference['unit'])}, "
        f"{difference['replicates']} draws, seed {difference['seed']}. Open: the interval holds zero."
    )
    return Table("Difference: results less other", columns, tuple(rows), (note,))


def precision_plot(curves: Mapping[str, Any]) -> str:
    """Precision over recall, one panel per class with ground truth, one line per distance. SVG."""
    config = curves["summary"]["cfg"]
    shown = _with_truth(curves)
    count = max(len(shown), 1)
    figure, panels = make_panels(count, (INCHES_WIDE, 2.05 * -(-count // _PRECISION_COLUMNS) + 0.4), _PRECISION_COLUMNS)
    for index, (name, found) in enumerate(shown.items()):
        axes = panels[index]
        for color, distance in zip(_cycle(_DISTANCE_COLORS, len(config["dist_ths"])), config["dist_ths"], strict=True):
            precision = np.array(found["precision"][f"{distance:g}"])
            axes.plot(found["recall"], _until_zero(precision), color=color, linewidth=1.6, label=f"{distance:g} m")
        axes.axvline(config["min_recall"], color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
        axes.axhline(config["min_precision"], color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        _dress(axes, f"{name.replace('_', ' ')}\nAP {curves['summary']['mean_dist_aps'][name]:.3f}")
        axes.set_yticks([0, 0.5, 1])
        if index % _PRECISION_COLUMNS == 0:
            axes.set_ylabel("precision")
        if index >= len(shown) - _PRECISION_COLUMNS:
            axes.set_xlabel("recall")
    if shown:
        handles, labels = panels[0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        _ink(legend)
    return svg_text(figure, "precision")


def errors_plot(curves: Mapping[str, Any]) -> str:
    """Mean true-positive errors over recall, one panel per error, one line per class. SVG."""
    config, summary = curves["summary"]["cfg"], curves["summary"]
    shown = _with_truth(curves)
    figure, panels = make_panels(len(ERRORS), (INCHES_WIDE, 5.4), _ERROR_COLUMNS)
    styles = dict(zip(curves["classes"], _cycle(_CLASS_STYLES, len(curves["classes"])), strict=True))
    for index, (axes, (key, (_, label))) in enumerate(zip(panels, ERRORS.items(), strict=True)):
        for name, found in shown.items():
            if summary["label_tp_errors"][name][key] is None:
                continue  # not defined for this class
            reached = np.array(found["confidence"][f"{config['dist_th_tp']:g}"]) > 0
            color, style = styles[name]
            axes.plot(np.array(found["recall"])[reached], np.array(found["tp_errors"][key])[reached], color=color,
                      linestyle=style, linewidth=1.4, label=name.replace("_", " "))  # fmt: skip
        axes.axvline(config["min_recall"], color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        _dress(axes, label)
        if index >= len(ERRORS) - _ERROR_COLUMNS:
            axes.set_xlabel("recall")
    handles, labels = panels[0].get_legend_handles_labels()
    if labels:
        _ink(
            figure.legend(
                handles, labels, loc="lower right", bbox_to_anchor=(0.99, 0.06), frameon=False, fontsize=FONT_SIZE
            )
        )
    return svg_text(figure, "errors")


def _with_truth(curves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in curves["classes"].items() if found["truths"]}


def _until_zero(precision: Any) -> Any:
    """The curve up to the highest recall reached; nothing is drawn where there is nothing."""
    reached = np.flatnonzero(precision)
    last = int(reached[-1]) + 1 if len(reached) else 0
    return np.where(np.arange(len(precision)) < last, precision, np.nan)


def _cycle(styles: Any, count: int) -> list[Any]:
    return [styles[index % len(styles)] for index in range(count)]


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=FONT_SIZE, loc="left", color=INK)
    axes.tick_params(labelsize=FONT_SIZE - 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.7)


def _ink(legend: Any) -> None:
    for entry in legend.get_texts():
        entry.set_color(INK)


def _cards(summary: Mapping[str, Any]) -> list[Card]:
    filters = summary["filters"]
    missing = [name.replace("_", " ") for name, on in filters.items() if not on]
    detail = f"without the filter {', '.join(missing)}" if missing else "all official filters on"
    return [
        Card(text.metric(summary["mean_ap"]), "mAP", f"over {len(summary['mean_dist_aps'])} classes"),
        Card(text.metric(summary["nd_score"]), "NDS", detail),
        *(Card(text.metric(summary["tp_errors"][key]), name, label) for key, (name, label) in ERRORS.items()),
    ]
