"""`bevkd teacher`: what a teacher says, stored for an environment in which it cannot run."""

from __future__ import annotations

import typer

from bevkd_deploy.cli.arguments import OverridesArgument, RecipeArgument
from bevkd_deploy.cli.console import output_of

teacher_app = typer.Typer(no_args_is_help=True, help="Store what a teacher says.")


@teacher_app.callback()
def teacher() -> None:
    """Store what a teacher says."""


@teacher_app.command()
def cache(context: typer.Context, recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Evaluate the recipe's teacher and store what its distillation needs of it.

    Distilling the recipe afterwards with the same runs folder needs neither the teacher's forward pass nor, for a
    teacher of mmdet3d, mmdet3d itself. What is stored already is kept; stop it and start it again as you like.

    Example: bevkd teacher cache recipes/mine.yaml teacher.cache=fp16
    """
    from bevkd_deploy.pipelines.teacher_store import fill_cache

    output = output_of(context)
    folder = fill_cache(recipe, overrides or [], console=output.talk)
    output.results.print(str(folder))
