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
from bevkd_deploy.distill.step import DistillationStep
from bevkd_deploy.distill.tap_report import TappedNetwork, TapReport, report_taps
from bevkd_deploy.models.detector import FusionDetector, parameter_count
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.datasets import data_digest, prepare_data, read_split
from bevkd_deploy.pipelines.dry_run import print_plan
from bevkd_deploy.pipelines.run_log import LoggedConsole
from bevkd_deploy.pipelines.runs import Run, start_or_resume
from bevkd_deploy.pipelines.teacher import obtain_teacher
from bevkd_deploy.pipelines.training import TrainingJob, headline, job_key, run_training, training_frames
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
        print_plan(loaded, console)
        return None
    run = start_or_resume(loaded, run_dir, resume)
    console = LoggedConsole(console, run.path / "log.txt")
    console.print(f"run {run.path}")
    distill_into(run, resume, console)
    console.print("Next: bevkd export --trt fp16")
    return run.path


def distill_into(run: Run, resume: bool, console: Console) -> None:
    """The distillation stage inside an existing run."""
    loaded, recipe = run.loaded, run.loaded.recipe
    root = prepare_data(recipe, console)
    student = build_detector(recipe.student.model, recipe.student_spec(), recipe.seed)
    specs = {"student": recipe.student_spec(), "teacher": recipe.teacher_spec()}
    dataset = training_frames(recipe, root, recipe.student.train, specs, console)
    taps = _tap_report(recipe, student, dataset)  # first of all: a wrong tap must not cost the training of a teacher
    teacher = obtain_teacher(loaded, root, console)
    write_json(run.path / "eval" / "teacher.json", teacher.summary)
    start = time.monotonic()
    console.print(
        f"  student {parameter_count(student) / 1e6:.2f} M parameters, teacher "
        f"{parameter_count(teacher.detector) / 1e6:.2f} M"
    )
    frozen = FrozenTeacher(teacher.detector, recipe.teacher_spec())
    with torch.random.fork_rng(devices=[]):  # projectors and embeddings start from the recipe's seed too
        torch.manual_seed(recipe.seed)
        step = DistillationStep(student, frozen, recipe.distill, taps)
    key = job_key(recipe=loaded.digest, data=data_digest(recipe, root), teacher=teacher.sha256, distill=True)
    job = TrainingJob("distilling", run.path, key, "student", recipe.student.model, recipe.student.train, recipe.seed)
    val = read_split(recipe, root, "val", console)
    summary = run_training(job, step, student, dataset, val, resume=resume, console=console)
    run.record_stage(
        "distill",
        time.monotonic() - start,
        {"data": data_digest(recipe, root), "teacher": teacher.sha256, "recipe": loaded.digest},
        [run.student_weights, run.path / "eval" / "student.json", run.path / "eval" / "teacher.json"],
        teacher=headline(teacher.summary),
        student=headline(summary),
    )


def _tap_report(recipe: Recipe, student: FusionDetector, dataset: FrameDataset) -> TapReport:
    """What the taps give on the first training frame; shapes are the same whatever the teacher's weights are."""
    inputs = collate([dataset[0]])["inputs"]
    teacher = FrozenTeacher(
        build_detector(recipe.teacher.model, recipe.teacher_spec(), recipe.seed), recipe.teacher_spec()
    )
    return report_taps(
        TappedNetwork.student(student, inputs["student"]),
        TappedNetwork.teacher(teacher, inputs["teacher"]),
        recipe.distill,
    )
