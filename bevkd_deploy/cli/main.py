"""The `bevkd` command: global options, one file per subcommand, and errors turned into exit codes."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Annotated

import typer

from bevkd_deploy import __version__
from bevkd_deploy.cli.benchmark import benchmark
from bevkd_deploy.cli.compare import compare
from bevkd_deploy.cli.console import Output
from bevkd_deploy.cli.data import data_app
from bevkd_deploy.cli.distill import distill
from bevkd_deploy.cli.doctor import doctor
from bevkd_deploy.cli.evaluate import evaluate
from bevkd_deploy.cli.export import export
from bevkd_deploy.cli.recipes import recipes_app
from bevkd_deploy.cli.run import run
from bevkd_deploy.cli.show import show
from bevkd_deploy.cli.teacher import teacher_app
from bevkd_deploy.cli.train import train
from bevkd_deploy.contracts.errors import BevkdError, CannotRunHere

app = typer.Typer(
    name="bevkd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130
_START, _STAGES, _RESULTS = "Start here", "Stages", "Results"

app.command(rich_help_panel=_START)(doctor)
app.add_typer(recipes_app, name="recipes", rich_help_panel=_START)
app.add_typer(data_app, name="data", rich_help_panel=_START)
app.command(rich_help_panel=_STAGES)(run)
app.command(rich_help_panel=_STAGES)(train)
app.add_typer(teacher_app, name="teacher", rich_help_panel=_STAGES)
app.command(rich_help_panel=_STAGES)(distill)
app.command(rich_help_panel=_STAGES)(export)
app.command(rich_help_panel=_STAGES)(benchmark)
app.command(rich_help_panel=_RESULTS)(evaluate)
app.command(rich_help_panel=_RESULTS)(compare)
app.command(rich_help_panel=_RESULTS)(show)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bevkd {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Show what the libraries log; -vv: all of it.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors and results only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Distil a camera+LiDAR BEVFusion teacher into a student that runs as one TensorRT engine.

    Example: bevkd distill recipes/quickstart.yaml, then bevkd export --trt fp16, then bevkd benchmark
    """
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True)
    context.obj = Output(quiet=quiet)


def main() -> None:
    """Entry point of `bevkd`: run a command and exit with its code.

    Exit codes: 0 done, 1 a gate failed, 2 usage or recipe error, 3 unstable measurement, 4 this machine cannot
    run it, 5 a stage failed, 130 interrupted.
    """
    try:
        app(prog_name="bevkd")
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:  # Typer turns Ctrl-C into a silent exit
            typer.echo("interrupted", err=True)
        raise
    except Exception as error:
        message, exit_code = _explain(error)
        if not message or "--debug" in sys.argv:
            traceback.print_exc()
        if message:
            typer.echo(f"error: {message}", err=True)
        # Python's own exit code for an exception is 1, which here means that a gate failed.
        raise SystemExit(exit_code) from error


def _explain(error: Exception) -> tuple[str, int]:
    """One line for the user and an exit code; no line for an error that only a traceback explains."""
    if isinstance(error, BevkdError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        if extra:
            return f"{error.name} is not installed; run: pip install 'bevkd-deploy[{extra}]'", CannotRunHere.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", BevkdError.exit_code
    return "", BevkdError.exit_code


#: Import name to the extra that brings it.
_EXTRA_OF_MODULE = {
    "torch": "train",
    "mmdet3d": "mmdet3d",
    "mmengine": "mmdet3d",
    "accelerate": "train",
    "safetensors": "train",
    "tensorboard": "train",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "polygraphy": "onnx",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
}


if __name__ == "__main__":
    main()
