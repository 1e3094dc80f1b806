"""`bevkd train`: the teacher of a recipe, or its student without distillation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.step import TrainingStep
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.datasets import data_digest, prepare_data
from bevkd_deploy.pipelines.runs import Run
from bevkd_deploy.pipelines.teacher import train_teacher
from bevkd_deploy.pipelines.training import (
    TrainingJob,
    job_key,
    run_training,
    start_together,
    training_frames,
    validation_samples,
)


def train(
    recipe_path: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    resume: bool,
    student_only: bool,
    console: Console,
) -> Path:
    """Train one network of a recipe; returns the run directory."""
    loaded = load_recipe(recipe_path, overrides)
    with processes.joined():
        run, console = start_together(loaded, run_dir, resume, console)
        root = processes.from_main(lambda: prepare_data(loaded.recipe, console))
        start = time.monotonic()
        if student_only:
            _train_student(run, root, resume, console)
        else:
            train_teacher(loaded, root, run.path, console, resume)
        stage = "train-student" if student_only else "train-teacher"
        inputs = {"data": data_digest(loaded.recipe, root)}
        if processes.is_main():
            run.record_stage(stage, time.monotonic() - start, inputs, [run.student_weights])
        console.print(f"Next: {_next_command(run, student_only)}")
        return run.path


def _train_student(run: Run, root: Path, resume: bool, console: Console) -> None:
    recipe = run.loaded.recipe
    spec = recipe.student_spec()
    detector = build_detector(recipe.student.model, spec, recipe.seed)
    settings = recipe.student.train
    dataset = training_frames(recipe, root, settings, {"student": spec}, console)
    key = job_key(recipe=run.loaded.digest, data=data_digest(recipe, root), distill=False)
    job = TrainingJob(
        "training the student alone", run.path, key, "student", recipe.student.model, settings, recipe.seed
    )
    val = validation_samples(recipe, root, console)
    run_training(job, TrainingStep(detector, "student"), detector, dataset, val, resume=resume, console=console)


def _next_command(run: Run, student_only: bool) -> str:
    if student_only:
        return f"bevkd export --run {run.path} --trt fp16"
    return f"bevkd distill {run.loaded.path} teacher.checkpoint={run.student_weights.resolve()}"
