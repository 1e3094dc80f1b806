"""What a distillation would do: stages, inputs found or missing, sizes."""

from __future__ import annotations

from rich.console import Console

from bevkd_deploy.contracts.recipe_loader import LoadedRecipe


def print_plan(loaded: LoadedRecipe, console: Console) -> None:
    """Print the plan."""
