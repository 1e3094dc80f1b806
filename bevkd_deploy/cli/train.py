"""`bevkd train`: the teacher, or the student on its own."""

from __future__ import annotations

from typing import Annotated

import typer

from bevkd_deploy.cli.arguments import OverridesArgument, RecipeArgument, ResumeOption, RunDirOption
from bevkd_deploy.cli.console import output_of


def train(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    run_dir: RunDirOption = None,
    resume: ResumeOption = False,
    no_distill: Annotated[
        bool, typer.Option("--no-distill", help="Train the student without a teacher: the baseline of distillation.")
    ] = False,
) -> None:
    """Train the teacher of a recipe, or with --no-distill its student alone.

    Example: bevkd train recipes/quickstart.yaml teacher.train.epochs=2
    """
    from bevkd_deploy.pipelines import train as stage

    stage.train(
        recipe,
        overrides or [],
        run_dir=run_dir,
        resume=resume,
        student_only=no_distill,
        console=output_of(context).talk,
    )
