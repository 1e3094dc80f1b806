"""`bevkd recipes`: list what ships, check what you wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bevkd_deploy.cli.console import output_of
from bevkd_deploy.contracts.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from bevkd_deploy.contracts.recipe import Recipe

recipes_app = typer.Typer(invoke_without_command=True)


@recipes_app.callback()
def list_recipes(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """List the shipped recipes with target and size, or check recipe files.

    Example: bevkd recipes
    """
    if context.invoked_subcommand is not None:
        return
    from bevkd_deploy.contracts.recipe_loader import load_recipe, shipped_recipes

    rows = [_row(path, load_recipe(path).recipe) for path in shipped_recipes().values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    output = output_of(context)
    output.results.print(_table(rows))
    output.talk.print(
        "Next: bevkd distill NAME, or copy a recipe, edit it and run: bevkd recipes check FILE", markup=False
    )


@recipes_app.command()
def check(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Recipe files or shipped names.", show_default=False)
    ],
) -> None:
    """Report every problem of every file at once: line, key, what is wrong, what was meant. Exit code 2 if any.

    Example: bevkd recipes check recipes/quickstart.yaml
    """
    from bevkd_deploy.contracts.recipe_loader import load_recipe

    failures: list[str] = []
    for path in paths:
        try:
            loaded = load_recipe(path)
            typer.echo(f"{loaded.path}: ok")
        except RecipeError as error:
            failures.append(str(error))
        except UsageError as error:
            failures.append(f"{path}: {error}")
    if failures:
        raise UsageError("\n".join(failures))
    output_of(context).talk.print(f"Next: bevkd distill {paths[0]}", markup=False)


def _row(path: Path, recipe: Recipe) -> dict[str, str]:
    spec, camera = recipe.student_spec(), recipe.student.model.camera
    rows, columns = spec.bev_shape_yx
    cell_m = spec.pillar_size_m * spec.bev_stride
    images = f"{len(spec.cameras)}x{spec.image_height_px}x{spec.image_width_px}"
    return {
        "name": recipe.name,
        "description": recipe.description.strip(),
        "data": recipe.data.source,
        "target": recipe.export.target,
        "student": f"{camera.backbone} {images}, BEV {rows}x{columns} of {cell_m:g} m",
        "path": str(path),
    }


def _table(rows: list[dict[str, str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "target", "data", "student", "description"):
        table.add_column(column, no_wrap=column in ("name", "target"))
    for row in rows:
        table.add_row(row["name"], row["target"], row["data"], row["student"], row["description"])
    return table
