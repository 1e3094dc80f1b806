"""`bevkd show`: pictures of teacher, student and truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.pipelines.accuracy import detect
from bevkd_deploy.pipelines.backends import infers_of, torch_contenders
from bevkd_deploy.pipelines.datasets import prepare_data, read_split
from bevkd_deploy.pipelines.frame_files import write_frame_files
from bevkd_deploy.pipelines.runs import open_run
from bevkd_deploy.pipelines.teacher import obtain_teacher


def show(run_path: Path, *, console: Console) -> list[Path]:
    """Draw some validation frames of a run into its pictures folder; returns the pictures."""
    run = open_run(run_path)
    recipe = run.loaded.recipe
    root = prepare_data(recipe, console)
    teacher = obtain_teacher(run.loaded, root, console)
    contenders = torch_contenders(run, teacher, collect_environment())
    samples = picture_samples(read_split(recipe, root, "val", console), max(1, recipe.benchmark.pictures))
    found = detect(samples, infers_of(contenders), console, "detecting")
    names = {"teacher": "teacher-fp32", "student": "student-torch-fp32"}
    actors = {actor: found[name] for actor, name in names.items() if name in found}  # a teacher may not run here
    pictures = write_frame_files(samples, recipe.student_spec(), actors, run.path / "pictures")
    for picture in pictures:
        console.print(str(picture))
    return pictures


def picture_samples(samples: list[Sample], count: int) -> list[Sample]:
    """Frames spread over a split, the ends left out where there are enough."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples)) + 2)[1:-1]
    return [samples[index] for index in sorted({round(place) for place in places})]
