"""`bevkd data`: write the synthetic dataset, check a real one, write mmdet3d info files of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bevkd_deploy.cli.console import output_of
from bevkd_deploy.cli.truth import truth

data_app = typer.Typer(
    help="Write the synthetic dataset, check a dataset, or write its mmdet3d info files or ground truth.",
    no_args_is_help=True,
)
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
        typer.Option(
            metavar="FILE", help="Check this mmdet3d info file (.pkl), not the tables.", exists=True, dir_okay=False
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that read sensor files.")] = 1,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all findings as JSON.")] = None,
) -> None:
    """Read all tables and sensor files, and list what is missing or broken. Exit code 1 if anything is.

    Example: bevkd data check data/synthetic --workers 8
    """
    from bevkd_deploy.pipelines.data_tools import check_data

    output = output_of(context)
    check_data(root, infos, workers=workers, json=json, console=output.talk, results=output.results)
    output.talk.print("Next: bevkd recipes")


@data_app.command()
def infos(
    context: typer.Context,
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Dataset folder.", exists=True, file_okay=False, show_default=False)
    ],
    out_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write into.", show_default=False)],
    version: Annotated[str, typer.Option(metavar="V", help="Folder of the tables.")] = "v1.0-trainval",
    sweeps: Annotated[int, typer.Option(min=0, help="Earlier LiDAR turns of each frame.")] = 10,
) -> None:
    """Write mmdet3d info files (version 1.1): nuscenes_infos_train.pkl and nuscenes_infos_val.pkl.

    Example: bevkd data infos data/synthetic --version v1.0-trainval --out-dir data/synthetic
    """
    from bevkd_deploy.pipelines.data_tools import export_infos

    talk = output_of(context).talk
    for path in export_infos(root, version, out_dir, sweeps=sweeps, console=talk):
        typer.echo(path)
    talk.print(f"Next: bevkd data check {root} --infos {out_dir}/nuscenes_infos_train.pkl", markup=False)
