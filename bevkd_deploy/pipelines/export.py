"""`bevkd export`: student to typed ONNX and a TensorRT plan."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.requests import ExportRequest
from bevkd_deploy.contracts.sidecar import UNTRAINED
from bevkd_deploy.contracts.target import load_target
from bevkd_deploy.data.events import DropLog
from bevkd_deploy.exporting.export import ExportOptions, ExportResult, Provenance, export_student
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.detector import DeployedStudent, parameter_count
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.accuracy import feeds_of, spread
from bevkd_deploy.pipelines.datasets import prepare_data, read_split
from bevkd_deploy.pipelines.progress import print_drops
from bevkd_deploy.pipelines.run_log import LoggedConsole
from bevkd_deploy.pipelines.runs import Run, create_run, latest_run, open_run
from bevkd_deploy.pipelines.synthetic_frame import synthetic_feed
from bevkd_deploy.runtime.preprocess import Feed


def export(request: ExportRequest, console: Console) -> Path:
    """Export the student of a run, or with `untrained` of a recipe; returns the export folder."""
    if request.untrained:
        assert request.recipe is not None  # checked by ExportRequest
        run = create_run(load_recipe(request.recipe), request.run_dir)
        console.print(f"run {run.path}: an untrained student, to check a budget; its boxes mean nothing")
    else:
        run = open_run(request.run) if request.run else latest_run()
        console.print(f"run {run.path}{'' if request.run else ' (the latest)'}")
    console = LoggedConsole(console, run.path / "log.txt")
    result = export_run(run, request, console)
    measured = next(iter(result.plans.values())).path if result.plans else run.export_dir / "student.onnx"
    if request.untrained:
        console.print(f"wrote {measured}")
    else:
        console.print("Next: bevkd benchmark; on the device: bevkd benchmark --engine student.plan")
    return run.export_dir


def export_run(run: Run, request: ExportRequest, console: Console) -> ExportResult:
    """Write ONNX files, plan and sidecars into the run's export folder."""
    recipe = run.loaded.recipe
    spec = recipe.student_spec()
    detector = build_detector(recipe.student.model, spec, recipe.seed)
    checkpoint = UNTRAINED
    if request.untrained:
        feeds = [synthetic_feed(spec, recipe.seed)]
    else:
        run.require_student()
        checkpoint = load_detector(run.student_weights, detector, recipe.student.model)
        feeds = _validation_feeds(recipe, spec, console)
    console.print(f"  student {parameter_count(detector) / 1e6:.2f} M parameters, {len(feeds)} frames for parity")
    start = time.monotonic()
    options = ExportOptions(
        recipe.export.precisions,
        () if request.onnx_only else (request.trt or recipe.export.precisions[-1],),
        load_target(request.target or recipe.export.target),
        recipe.export.keep_fp32,
    )
    provenance = Provenance(recipe.name, run.loaded.digest, checkpoint, run.manifest()["commit"])
    student = DeployedStudent(detector.eval())
    result = export_student(
        student, spec, run.export_dir, options, provenance, feeds, lambda line: console.print(f"  {line}")
    )
    written = [*result.onnx.values(), *(plan.path for plan in result.plans.values())]
    run.record_stage(
        "export", time.monotonic() - start, {"checkpoint": checkpoint, "recipe": run.loaded.digest}, written
    )
    return result


def _validation_feeds(recipe: Recipe, spec: GraphSpec, console: Console) -> list[Feed]:
    samples = read_split(recipe, prepare_data(recipe, console), "val", console)
    drops = DropLog()
    feeds = feeds_of(spread(samples, recipe.export.parity_frames), spec, drops)
    print_drops(drops, "reading frames for parity", console)
    return feeds
