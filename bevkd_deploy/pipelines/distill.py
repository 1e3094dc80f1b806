"""`bevkd distill`: teacher to student."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.inheritance import InheritanceReport, inherit
from bevkd_deploy.distill.step import DistillationStep
from bevkd_deploy.distill.tap_report import TappedNetwork, TapReport, report_taps, tap_losses
from bevkd_deploy.models.detector import FusionDetector, parameter_count
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.pipelines.datasets import data_digest, prepare_data
from bevkd_deploy.pipelines.dry_run import print_plan
from bevkd_deploy.pipelines.runs import Run
from bevkd_deploy.pipelines.teacher import obtain_teacher
from bevkd_deploy.pipelines.teacher_cache import cached_teacher, frozen_teacher
from bevkd_deploy.pipelines.teacher_network import open_teacher
from bevkd_deploy.pipelines.training import (
    TrainingJob,
    headline,
    job_key,
    run_training,
    start_together,
    training_frames,
    validation_samples,
)
from bevkd_deploy.teachers.cache import CachedTeacher
from bevkd_deploy.teachers.frozen import FrozenTeacher


def distill(
    recipe_path: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    resume: bool,
    dry_run: bool,
    console: Console,
) -> Path | None:
    """Distil a recipe's teacher into its student; returns the run directory (None for a dry run)."""
    loaded = load_recipe(recipe_path, overrides)
    if dry_run:
        with processes.joined():
            if processes.is_main():
                print_plan(loaded, console)
        return None
    with processes.joined():
        run, console = start_together(loaded, run_dir, resume, console)
        distill_into(run, resume, console)
        console.print("Next: bevkd export --trt fp16")
        return run.path


def distill_into(run: Run, resume: bool, console: Console) -> None:
    """The distillation stage inside an existing run."""
    loaded, recipe = run.loaded, run.loaded.recipe
    root = processes.from_main(lambda: prepare_data(recipe, console))
    opened = open_teacher(loaded, console)
    specs = {"student": recipe.student_spec(), "teacher": opened.spec}
    dataset = training_frames(recipe, root, recipe.student.train, specs, console)
    # First of all: a wrong tap must not cost the training of a teacher.
    taps = tap_report(recipe, dataset, opened.network)
    teacher = obtain_teacher(loaded, root, console, opened)
    if processes.is_main():
        write_json(run.path / "eval" / "teacher.json", teacher.summary)
        if opened.report is not None:
            write_json(run.path / "teacher_checkpoint.json", opened.report)
    start = time.monotonic()
    student, inherited = start_student(recipe, teacher.detector)
    if inherited and processes.is_main():
        write_json(run.path / "inheritance.json", inherited.as_json())
        console.print(f"  {inherited.lines()[0]}; each tensor in {run.path / 'inheritance.json'}")
    size = parameter_count(teacher.detector)
    told = f"{size / 1e6:.2f} M" if size else "not here, its stored outputs are"
    console.print(f"  student {parameter_count(student) / 1e6:.2f} M parameters, teacher {told}")
    frozen = frozen_teacher(recipe, teacher.detector)
    key = job_key(recipe=loaded.digest, data=data_digest(recipe, root), teacher=teacher.sha256, distill=True)
    job = TrainingJob("distilling", run.path, key, "student", recipe.student.model, recipe.student.train, recipe.seed)
    val = validation_samples(recipe, root, console)
    with cached_teacher(recipe, root, teacher.key, frozen, dataset, console) as live_or_cached:
        step = distillation_step(recipe, student, live_or_cached, taps)
        summary = run_training(job, step, student, dataset, val, resume=resume, console=console)
    if not processes.is_main():
        return
    run.record_stage(
        "distill",
        time.monotonic() - start,
        {"data": data_digest(recipe, root), "teacher": teacher.sha256, "recipe": loaded.digest},
        [run.student_weights, run.path / "eval" / "student.json", run.path / "eval" / "teacher.json"],
        teacher=headline(teacher.summary),
        student=headline(summary),
    )


def start_student(recipe: Recipe, teacher: DetectionNetwork) -> tuple[FusionDetector, InheritanceReport | None]:
    """The student before its first step: from the seed, and from the teacher's weights where the recipe says so."""
    student = build_detector(recipe.student.model, recipe.student_spec(), recipe.seed)
    if recipe.distill.inherit is None:
        return student, None
    assert isinstance(teacher, FusionDetector)  # the recipe schema: only one of the student's family is inherited
    return student, inherit(student, teacher, recipe.distill.inherit.parts)


def tap_report(recipe: Recipe, dataset: FrameDataset, teacher: DetectionNetwork) -> TapReport:
    """What the taps give on the first training frame; shapes are the same whatever the weights are.

    Args:
        recipe: names the taps.
        dataset: has the inputs of both networks.
        teacher: the network, its weights loaded or not.

    Raises:
        UsageError: a tap does not fit (see `report_taps`).
    """
    if not tap_losses(recipe.distill):
        return TapReport({}, None)
    inputs = collate([dataset[0]])["inputs"]
    student = build_detector(recipe.student.model, recipe.student_spec(), recipe.seed)
    return report_taps(
        TappedNetwork.student(student, inputs["student"]),
        TappedNetwork.teacher(FrozenTeacher(teacher, teacher.spec), inputs["teacher"]),
        recipe.distill,
    )


def distillation_step(
    recipe: Recipe, student: FusionDetector, teacher: FrozenTeacher | CachedTeacher, taps: TapReport
) -> DistillationStep:
    """The step of a recipe; projectors and embeddings start from its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return DistillationStep(student, teacher, recipe.distill, taps, recipe.student.model.head.min_radius_cells)
