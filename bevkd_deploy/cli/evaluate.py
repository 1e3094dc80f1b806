"""`bevkd evaluate`: score a submission file against a ground-truth file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bevkd_deploy.cli.console import output_of

if TYPE_CHECKING:
    from rich.table import Table

    from bevkd_deploy.pipelines.evaluate import Scored

_ERROR_COLUMNS = {
    "trans_err": "ATE m",
    "scale_err": "ASE",
    "orient_err": "AOE rad",
    "vel_err": "AVE m/s",
    "attr_err": "AAE",
}
_COMPARISON, _FILES = "Selection and comparison", "Files"


def evaluate(
    context: typer.Context,
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS.json", help="Detections in the nuScenes submission format.")
    ],
    ground_truth: Annotated[
        Path, typer.Option("--ground-truth", metavar="GT.json", help="Ground truth in the same format, without scores.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON with the devkit's DetectionConfig keys.", rich_help_panel=_COMPARISON),
    ] = None,
    scenes: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Score these scenes only.", rich_help_panel=_COMPARISON),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER.json",
            help="Second result: show RESULTS less OTHER, with a 95 % interval by a paired bootstrap over scenes.",
            rich_help_panel=_COMPARISON,
        ),
    ] = None,
    replicates: Annotated[int, typer.Option(min=1, help="Bootstrap draws.", rich_help_panel=_COMPARISON)] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.", rich_help_panel=_COMPARISON)] = 0,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Also write the figures, with the devkit's keys.", rich_help_panel=_FILES
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the curves behind the figures.", rich_help_panel=_FILES),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also write a page with tables and curves.", rich_help_panel=_FILES),
    ] = None,
) -> None:
    """Score detections as the nuScenes devkit does: AP per class, mAP, true-positive errors, NDS.

    Example: bevkd evaluate results.json --ground-truth truth.json --json metrics.json
    """
    from bevkd_deploy.contracts.files import write_json
    from bevkd_deploy.pipelines.evaluate import EvaluationRequest, evaluate_files, write_curves
    from bevkd_deploy.report.evaluation import write_evaluation_html

    names = tuple(name.strip() for name in scenes.split(",")) if scenes else ()
    request = EvaluationRequest(results, ground_truth, config, names, against, replicates, seed)
    scored = evaluate_files(request)
    output = output_of(context)
    output.results.print(_table(scored.summary))
    if scored.difference is not None:
        output.results.print()
        output.results.print(_difference_table(scored))
    for note in scored.notes:
        output.talk.print(f"note: {note}", markup=False)
    written = [] if json_out is None else [write_json(json_out, scored.summary)]
    written += [] if curves is None else [write_curves(curves, scored, results.name)]
    written += [] if report is None else [write_evaluation_html(report, scored.curves(results.name))]
    for path in written:
        output.talk.print(f"wrote {path}", markup=False)
    if not written:
        output.talk.print("next: add --json FILE to keep these figures, --report FILE.html for tables and curves")


def _table(summary: dict[str, Any]) -> Table:
    """Average precision and errors per class, and their means with mAP and NDS."""
    from rich import box
    from rich.table import Table

    caption = "AP is the mean over " + ", ".join(f"{distance:g}" for distance in summary["cfg"]["dist_ths"]) + " m"
    table = Table(
        title=f"mAP {summary['mean_ap']:.4f}   NDS {summary['nd_score']:.4f}",
        caption=caption,
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("class", no_wrap=True)
    for heading in ("AP", *_ERROR_COLUMNS.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, average_precision in summary["mean_dist_aps"].items():
        errors = summary["label_tp_errors"][name]
        table.add_row(name, *_figures(average_precision, errors))
    table.add_section()
    table.add_row("mean", *_figures(summary["mean_ap"], summary["tp_errors"]))
    return table


def _figures(average_precision: float, errors: dict[str, float | None]) -> list[str]:
    """Cells of one row; a figure that the class does not have is a dash."""
    values = [errors[key] for key in _ERROR_COLUMNS]
    return [f"{average_precision:.4f}", *("-" if value is None else f"{value:.4f}" for value in values)]


def _difference_table(scored: Scored) -> Table:
    """Each figure of both results, and the difference with its interval."""
    from rich import box
    from rich.table import Table

    found = scored.difference
    assert found is not None
    unit = "scenes" if scored.by_scene else "frames"
    caption = (
        f"paired bootstrap over {found.units} {unit}, {found.replicates} draws, seed {found.seed}; "
        "* marks an interval without zero"
    )
    table = Table(title="RESULTS less OTHER", caption=caption, box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("figure", no_wrap=True)
    for heading in ("OTHER", "RESULTS", "difference", f"{100 * found.confidence:g} % interval", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in found.figures.items():
        table.add_row(
            name,
            f"{row.first:.4f}",
            f"{row.second:.4f}",
            f"{row.difference:+.4f}",
            f"{row.low:+.4f} to {row.high:+.4f}",
            "*" if row.low > 0 or row.high < 0 else "",
        )
    return table
