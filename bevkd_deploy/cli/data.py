"""`bevkd data`: write the synthetic dataset, check a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of
from bevkd_deploy.cli.truth import truth

data_app = typer.Typer(help="Write the synthetic dataset, or check a dataset.", no_args_is_help=True)
data_app.command()(truth)


@data_app.command()
def synth(
    context: typer.Context,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write into.", show_default=False)],
    scenes: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 12,
    val_scenes: Annotated[int, typer.Option(min=1, help="Validation scenes.")] = 4,
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 0,
    profile: Annotated[str, typer.Option(help="quickstart, standard (nuScenes' sizes) or tiny.")] = "quickstart",
    difficulty: Annotated[str, typer.Option(help="easy, normal or hard: occlusion, density, range, noise.")] = "normal",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write a synthetic dataset in the layout of nuScenes: six cameras, LiDAR, tables and annotations.

    Example: bevkd data synth data/synthetic --scenes 12 --val-scenes 4
    """
    from bevkd_deploy.data.synthetic import write_dataset
    from bevkd_deploy.pipelines.progress import bar

    talk = output_of(context).talk
    with bar(talk, f"writing the synthetic world to {dest}", scenes + val_scenes) as progress:
        write_dataset(
            dest,
            train_scenes=scenes,
            val_scenes=val_scenes,
            seed=seed,
            profile=profile,
            difficulty=difficulty,
            workers=workers,
            on_scene=lambda done, _: progress.update(done),
        )
    typer.echo(dest)
    talk.print(f"Next: bevkd data check {dest}", markup=False)


@data_app.command()
def check(
    context: typer.Context,
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Dataset folder.", exists=True, file_okay=False, show_default=False)
    ],
    infos: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An mmdet3d info file (.pkl) to check too.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Say what a dataset holds and what is missing or broken. Exit code 5 if anything is.

    Example: bevkd data check data/synthetic
    """
    from bevkd_deploy.contracts.errors import DataError
    from bevkd_deploy.data.check import check_dataset

    findings = check_dataset(root, infos)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise DataError(f"{root}: {len(findings)} {'finding' if len(findings) == 1 else 'findings'}")
    output_of(context).talk.print(f"{root}: complete. Next: bevkd recipes", markup=False)
