"""`bevkd run`: the whole chain of a recipe."""

from __future__ import annotations

import typer

from bevkd_deploy.cli.arguments import OverridesArgument, RecipeArgument, ResumeOption, RunDirOption
from bevkd_deploy.cli.console import output_of


def run(
    context: typer.Context,
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    run_dir: RunDirOption = None,
    resume: ResumeOption = False,
) -> None:
    """Run every stage of a recipe: data, teacher, distillation, export, benchmark. --resume reuses finished stages.

    Example: bevkd run recipes/quickstart.yaml
    """
    from bevkd_deploy.pipelines import run as stage

    output = output_of(context)
    stage.run(recipe, overrides or [], run_dir=run_dir, resume=resume, console=output.talk, results=output.results)
