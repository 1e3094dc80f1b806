"""What a distillation step costs, beside the teacher's forward pass and the same student's plain training step.

python benchmarks/distill/measure.py FOLDER
python benchmarks/distill/measure.py FOLDER --sizes quickstart --rounds 30

Everything runs on one thread of a CPU, in turn within each round, in the recipe's precision, on the same batch. A step
is forward, backward, clipping and AdamW. Times are the process's CPU seconds, so that other work on the machine counts
less. Ratios are taken within a round; the middle one counts. Worlds and cached maps go into FOLDER. Writes results.json
beside this file; sizes that are not measured keep their figures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch
from rich.console import Console
from torch import nn

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import read_json, write_json
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.synthetic import write_dataset
from bevkd_deploy.distill.progress import Progress
from bevkd_deploy.distill.step import TrainingStep
from bevkd_deploy.models.center_head import BOX_MAPS
from bevkd_deploy.models.detector import parameter_count
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.distill import distillation_step, tap_report
from bevkd_deploy.pipelines.teacher_cache import frozen_teacher
from bevkd_deploy.pipelines.training import training_frames
from bevkd_deploy.teachers.cache import CachedTeacher
from bevkd_deploy.teachers.frozen import FrozenTeacher
from bevkd_deploy.teachers.map_store import MapStore

HERE = Path(__file__).resolve().parent
#: Recipe, profile of the synthetic world that its networks look at, frames in a batch.
SIZES = {"quickstart": ("quickstart", 4), "orin_small": ("standard", 1)}
#: After the ramp of the added terms and before their end.
_PROGRESS = 0.5

Run = Callable[[], object]


def measure_size(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """All figures of one recipe."""
    profile, batch_size = SIZES[name]
    root = folder / profile
    if not (root / "dataset.json").is_file():
        write_dataset(root, profile=profile, train_scenes=1, val_scenes=1, seed=0)
    data = ["data={source: nuscenes, root: " + str(root) + ", version: v1.0-trainval}"]
    full = load_recipe(name, data).recipe
    heads = load_recipe(name, [*data, *(f"distill.losses.{loss}=null" for loss in full.distill.feature_terms())]).recipe
    specs = {"student": full.student_spec(), "teacher": full.teacher_spec()}
    frames = training_frames(full, root, full.student.train, specs, Console(quiet=True))
    positions = list(range(batch_size))
    batch = collate([frames[position] for position in positions])
    live = frozen_teacher(full, build_detector(full.teacher.model, full.teacher_spec(), 0))
    cached = cached_teacher(live, folder / f"maps-{name}", heads.distill.teacher_maps(("heatmap", *BOX_MAPS)), frames)
    runs = {
        "teacher_forward": lambda: live(batch["inputs"]["teacher"], positions),
        "plain_step": training_step(full, batch),
        "distill_step": distilling(full, live, frames, batch),
        "distill_step_with_gradient_norms": distilling(log_every(full, 1), live, frames, batch),
        "distill_step_heads_only": distilling(heads, live, frames, batch),
        "distill_step_cached": distilling(heads, cached, frames, batch),
    }
    times = in_turn(runs, rounds)
    return {
        "recipe": name,
        "batch_size": batch_size,
        "precision": full.student.train.precision,
        "parameters": {
            "teacher": parameter_count(live.model),
            "student": parameter_count(build_detector(full.student.model, full.student_spec(), 0)),
        },
        "losses": {"full": list(full.distill.losses.enabled()), "cached": list(heads.distill.losses.enabled())},
        "seconds": {name: summary(values) for name, values in times.items()},
        "ratios": ratios(times, full.distill.log_gradients_every),
        "frame_ms": frame_times(frames, cached.store, rounds),
    }


def cached_teacher(live: FrozenTeacher, folder: Path, maps: tuple[str, ...], frames: FrameDataset) -> CachedTeacher:
    """The teacher with an empty cache of its own; it is full after a step."""
    shutil.rmtree(folder, ignore_errors=True)
    return CachedTeacher(live, MapStore(folder, "benchmark", maps, torch.float16, write_at_bytes=0), frames)


def log_every(recipe: Recipe, steps: int) -> Recipe:
    """The same recipe with gradient norms measured every few steps."""
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"log_gradients_every": steps})})


def distilling(
    recipe: Recipe, teacher: FrozenTeacher | CachedTeacher, frames: FrameDataset, batch: dict[str, Any]
) -> Run:
    """One optimisation step with the recipe's losses."""
    student = build_detector(recipe.student.model, recipe.student_spec(), 0)
    return optimisation(
        distillation_step(recipe, student, teacher, tap_report(recipe, frames, teacher.model)), recipe, batch
    )


def training_step(recipe: Recipe, batch: dict[str, Any]) -> Run:
    """One optimisation step of the student alone."""
    student = build_detector(recipe.student.model, recipe.student_spec(), 0)
    return optimisation(TrainingStep(student, "student"), recipe, batch)


def optimisation(step: nn.Module, recipe: Recipe, batch: dict[str, Any]) -> Run:
    """Forward, backward, clipping and AdamW, as the training loop does them."""
    train = recipe.student.train
    step.train()
    optimizer = torch.optim.AdamW(step.parameters(), 1e-5, weight_decay=train.weight_decay)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
            losses = step(batch, Progress.at(_PROGRESS))
        torch.stack(list(losses.weighted.values())).sum().backward()
        nn.utils.clip_grad_norm_(step.parameters(), train.max_grad_norm)
        optimizer.step()

    return run


def in_turn(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each run in each round; two rounds before them do not count. Every second round runs backwards."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-2, rounds):
        for name in list(runs) if number % 2 else reversed(runs):
            start = time.process_time()
            runs[name]()
            if number >= 0:
                times[name].append(time.process_time() - start)
    return times


def ratios(times: dict[str, list[float]], log_gradients_every: int) -> dict[str, Any]:
    """Costs in relation: the middle of the rounds, and the smallest time over the smallest."""

    def ratio(of: str, *to: str) -> dict[str, float]:
        each = [own / sum(others) for own, *others in zip(times[of], *(times[name] for name in to), strict=True)]
        best = min(times[of]) / sum(min(times[name]) for name in to)
        return {"median": round(statistics.median(each), 3), "of_minima": round(best, 3)}

    live = ("teacher_forward", "plain_step")
    found = {
        "full_to_teacher_and_plain": ratio("distill_step", *live),
        "heads_only_to_teacher_and_plain": ratio("distill_step_heads_only", *live),
        "cached_to_plain": ratio("distill_step_cached", "plain_step"),
        "cached_to_heads_only": ratio("distill_step_cached", "distill_step_heads_only"),
        "gradient_norms_step_to_step": ratio("distill_step_with_gradient_norms", "distill_step"),
    }
    if log_gradients_every:
        extra = found["gradient_norms_step_to_step"]["median"] - 1
        whole = found["full_to_teacher_and_plain"]["median"] * (1 + extra / log_gradients_every)
        found["full_with_gradient_norms_logged"] = {"median": round(whole, 3), "every_steps": log_gradients_every}
    return found


def frame_times(frames: FrameDataset, store: MapStore, rounds: int) -> dict[str, Any]:
    """CPU milliseconds to prepare a frame for both networks, and where the teacher's maps are known."""
    known = frames.content_of(0)
    assert known in store
    times: dict[str, list[float]] = {"both_networks": [], "teacher_left_out": []}
    for number in range(-2, rounds):
        both = [("both_networks", ()), ("teacher_left_out", store)]
        for name, left_out in both if number % 2 else reversed(both):
            frames.leave_out("teacher", left_out)
            start = time.process_time()
            frames[0]
            if number >= 0:
                times[name].append(1000 * (time.process_time() - start))
    frames.leave_out("teacher", ())
    return {name: summary(values) for name, values in times.items()}


def summary(values: list[float]) -> dict[str, Any]:
    """Median, minimum and all values."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "all": [round(value, 4) for value in values],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results = HERE / "results.json"
    measured = read_json(results, "result")["sizes"] if results.is_file() else {}
    for name in given.sizes:
        environment = {**collect_environment(), "threads": 1, "load_average_at_start": list(os.getloadavg())}
        measured[name] = {"environment": environment, **measure_size(name, given.folder, given.rounds)}
        write_json(results, {"sizes": measured})
        Console().print(name, measured[name]["ratios"])


if __name__ == "__main__":
    main()
