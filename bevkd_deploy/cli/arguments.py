"""Arguments that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.", show_default=False)
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Recipe values to change, such as student.train.epochs=2.", show_default=False
    ),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option("--run-dir", metavar="DIR", help="Run directory. Default: runs/<recipe>/<time>.", show_default=False),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where the run in --run-dir, or the latest, stopped.")
]
