"""`bevkd evaluate`: score a submission file against a ground-truth file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_ERROR_COLUMNS = {
    "trans_err": "ATE m",
    "scale_err": "ASE",
    "orient_err": "AOE rad",
    "vel_err": "AVE m/s",
    "attr_err": "AAE",
}


def evaluate(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS.json", help="Detections in the nuScenes submission format.")
    ],
    ground_truth: Annotated[
        Path, typer.Option("--ground-truth", metavar="GT.json", help="Ground truth in the same format, without scores.")
    ],
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures, with the devkit's keys.")
    ] = None,
) -> None:
    """Score detections as the nuScenes devkit does: AP per class, mAP, true-positive errors, NDS.

    Example: bevkd evaluate results.json --ground-truth truth.json --json metrics.json
    """
    from rich.console import Console

    from bevkd_deploy.contracts.files import write_json
    from bevkd_deploy.evaluation.metrics import evaluate as score
    from bevkd_deploy.evaluation.submission import load_submission, nan_to_null

    truth = load_submission(ground_truth, ground_truth=True)
    summary = score(load_submission(results), truth)
    Console().print(_table(summary))
    notes = Console(stderr=True, soft_wrap=True, highlight=False)
    if not summary["filters"]["class_range"]:
        notes.print("note: boxes are not filtered by class range: not all records carry ego_translation")
    if not summary["filters"]["num_pts"]:
        notes.print("note: ground truth without points is not left out: its records carry no num_pts")
    if json_out is None:
        notes.print("next: add --json FILE to keep these figures")
    else:
        notes.print(f"wrote {write_json(json_out, nan_to_null(summary))}", markup=False)


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


def _figures(average_precision: float, errors: dict[str, float]) -> list[str]:
    """Cells of one row; a figure that the class does not have is a dash."""
    cells = [f"{average_precision:.4f}"]
    return cells + ["-" if errors[key] != errors[key] else f"{errors[key]:.4f}" for key in _ERROR_COLUMNS]
