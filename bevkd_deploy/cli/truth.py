"""`bevkd data truth`: ground truth of a split as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of


def truth(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A dataset folder in the nuScenes layout, or a recipe.", exists=True),
    ],
    dest: Annotated[Path, typer.Argument(metavar="GT.json", help="File to write.", show_default=False)],
    split: Annotated[str, typer.Option(help="Split; a recipe has train and val.")] = "val",
    version: Annotated[
        str | None,
        typer.Option("--table-version", metavar="NAME", help="Table folder of a dataset folder.  [v1.0-trainval]"),
    ] = None,
) -> None:
    """Write the ground truth of a split for `bevkd evaluate`: annotations, point counts, bike racks, scenes.

    Example: bevkd data truth /data/nuscenes truth.json --split val
    """
    from bevkd_deploy.pipelines.truth import write_truth

    written = write_truth(source, dest, split=split, version=version)
    racks = "with" if written.bike_racks else "without"
    talk = output_of(context).talk
    talk.print(
        f"{written.boxes} boxes in {written.frames} frames of {written.scenes} scenes, {racks} bike racks", markup=False
    )
    typer.echo(dest)
    talk.print(f"Next: bevkd evaluate RESULTS.json --ground-truth {dest}", markup=False)
