"""`bevkd distill`: teacher to student."""

from __future__ import annotations

from typing import Annotated

import typer

from bevkd_deploy.cli.arguments import OverridesArgument, RecipeArgument, ResumeOption, RunDirOption
from bevkd_deploy.cli.console import output_of


def distill(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    run_dir: RunDirOption = None,
    resume: ResumeOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan, then stop.")
    ] = False,
) -> None:
    """Distil the teacher of a recipe into its student; a teacher without a checkpoint is trained first.

    Example: bevkd distill recipes/quickstart.yaml student.train.epochs=2
    """
    from bevkd_deploy.pipelines import distill as stage

    stage.distill(
        recipe, overrides or [], run_dir=run_dir, resume=resume, dry_run=dry_run, console=output_of(context).talk
    )
