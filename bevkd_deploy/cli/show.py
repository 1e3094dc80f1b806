"""`bevkd show`: pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of


def show(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", exists=True, file_okay=False)],
) -> None:
    """Draw BEV and camera pictures of teacher, student and ground truth into the run's pictures folder.

    Example: bevkd show runs/quickstart/latest
    """
    from bevkd_deploy.pipelines import show as stage

    stage.show(run, console=output_of(context).talk)
