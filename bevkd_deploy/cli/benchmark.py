"""`bevkd benchmark`: latency, accuracy, parity and gates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of
from bevkd_deploy.contracts.requests import BenchmarkRequest


def benchmark(
    context: typer.Context,
    engine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=".plan or .onnx; a name that is no file is looked up in the run. Default: the run's newest engine.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run to measure. Default: the latest.", show_default=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write bench.json here (- for stdout).", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the gates as JUnit here.", show_default=False)
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the Markdown report to this file.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the HTML report here.", show_default=False)
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier bench.json to compare with.", show_default=False)
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GATE", help="This gate must pass; skipped is not enough. Repeatable.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure teacher, student and engine side by side and decide the recipe's gates.

    Exit code 0: all required gates pass; 1: one failed; 3: one could not be decided; 4: no engine runs here.

    Example: bevkd benchmark --engine student.onnx --junit gates.xml
    """
    request = BenchmarkRequest(engine, run, json, junit, summary, html, baseline, tuple(require or ()))
    from bevkd_deploy.pipelines import benchmark as stage

    output = output_of(context)
    stage.benchmark(request, output.talk, output.results)
