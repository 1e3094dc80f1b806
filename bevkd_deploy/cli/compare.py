"""`bevkd compare`: two benchmark results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of

_BenchFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, show_default=False, help="A bench.json.")]


def compare(context: typer.Context, a: _BenchFile, b: _BenchFile) -> None:
    """Show what changed from A.json to B.json; results of different devices get no verdict.

    Example: bevkd compare before/bench.json after/bench.json
    """
    from bevkd_deploy.pipelines import compare as stage

    stage.compare(a, b, console=output_of(context).results)
