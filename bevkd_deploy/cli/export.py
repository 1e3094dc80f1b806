"""`bevkd export`: student to ONNX and TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of
from bevkd_deploy.contracts.requests import ExportRequest


def export(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run to export. Default: the latest.", show_default=False)
    ] = None,
    trt: Annotated[
        str | None,
        typer.Option(metavar="fp32|fp16", help="Build a TensorRT plan of this precision.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device of export/targets. Default: the recipe's.", show_default=False),
    ] = None,
    onnx_only: Annotated[bool, typer.Option("--onnx-only", help="Write the ONNX files and stop.")] = False,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="With --untrained: its student.", show_default=False)
    ] = None,
    untrained: Annotated[
        bool,
        typer.Option("--untrained", help="Export a student with random weights, to check a budget before training."),
    ] = False,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --untrained: the run to create.", show_default=False)
    ] = None,
) -> None:
    """Export a trained student to typed ONNX files and a TensorRT plan.

    Example: bevkd export --trt fp16 --target rtx4090
    """
    request = ExportRequest(run, recipe, untrained, run_dir, trt, target, onnx_only)
    from bevkd_deploy.pipelines import export as stage

    stage.export(request, output_of(context).talk)
