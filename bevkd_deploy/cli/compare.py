"""`bevkd compare`: two benchmark results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_BenchFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, show_default=False, help="A bench.json.")]


def compare(a: _BenchFile, b: _BenchFile) -> None:
    """Show what changed from A.json to B.json; results of different devices get no verdict.

    Example: bevkd compare before/bench.json after/bench.json
    """
    from bevkd_deploy.pipelines import compare as stage

    typer.echo(stage.compare(a, b))
