"""Running the training loop inside a run directory: what `train` and `distill` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from bevkd_deploy.contracts.files import sha256_json, write_json
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import TrainConfig
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.events import DropLog
from bevkd_deploy.data.object_database import ObjectDatabase, build_database, database_key
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.loop import LoopHooks, fit
from bevkd_deploy.distill.progress import Plan
from bevkd_deploy.distill.training_state import TrainingState
from bevkd_deploy.models.checkpoint import read_notes, save_detector
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.pipelines.accuracy import detect, ground_truth, score, submission_of
from bevkd_deploy.pipelines.datasets import read_split
from bevkd_deploy.pipelines.progress import Bar, bar, reported_drops
from bevkd_deploy.pipelines.run_log import LoggedConsole
from bevkd_deploy.pipelines.runs import RUNS, Run, start_or_resume
from bevkd_deploy.pipelines.torch_detector import TorchDetector

#: Rises when a change of the code makes older training states or cached teachers wrong.
TRAINING_VERSION = 1


@dataclass(frozen=True)
class TrainingJob:
    """One network to train.

    Attributes:
        title: what the progress bar says.
        folder: gets checkpoints/, state/, events.jsonl, tb/ and eval/.
        key: hash of everything that decides the result; a state of another key is not resumed.
        role: "teacher" or "student"; names the evaluation file.
    """

    title: str
    folder: Path
    key: str
    role: str
    model: ModelConfig
    train: TrainConfig
    seed: int


def job_key(**inputs: Any) -> str:
    """Hash of what decides a training's result."""
    return sha256_json({"training_version": TRAINING_VERSION, **inputs})


def start_together(loaded: LoadedRecipe, run_dir: Path | None, resume: bool, console: Console) -> tuple[Run, Console]:
    """One run for all processes, and their console: the main one's talk is logged, the others are silent."""
    run = Run(processes.from_main(lambda: start_or_resume(loaded, run_dir, resume).path), loaded)
    if not processes.is_main():
        return run, Console(quiet=True, stderr=True)
    console = LoggedConsole(console, run.path / "log.txt")
    console.print(f"run {run.path}")
    return run, console


def training_frames(
    recipe: Recipe, root: Path, train: TrainConfig, specs: Mapping[str, GraphSpec | SensorSpec], console: Console
) -> FrameDataset:
    """The training split for some networks; the first one of `specs` is the one that is trained.

    Raises:
        DataError: the dataset is missing or damaged.
    """
    target_of = next(iter(specs))
    model = recipe.student.model if target_of == "student" else recipe.teacher.native_model
    with processes.main_first():  # it keeps an index that the others find
        samples = read_split(recipe, root, "train", console)
    return FrameDataset(
        samples,
        specs,
        target_of=target_of,
        min_radius_cells=model.head.min_radius_cells,
        augmentation=train.augmentation,
        paster=_paster(recipe, train, samples, console),
        seed=recipe.seed,
        cache_sensors=train.cache_sensors,
    )


def run_training(
    job: TrainingJob,
    step_module: nn.Module,
    detector: FusionDetector,
    dataset: FrameDataset,
    val_samples: list[Sample],
    *,
    resume: bool,
    console: Console,
) -> dict[str, Any]:
    """Train to the end, evaluate, and return the evaluation summary (in every process).

    Writes `checkpoints/last.safetensors`, `checkpoints/best.safetensors` (by mAP, equal to last where only the end is
    evaluated) and `eval/<role>.json`.
    """
    last = job.folder / "checkpoints" / "last.safetensors"
    best = job.folder / "checkpoints" / "best.safetensors"
    best_map = read_notes(best)["mAP"] if resume and best.is_file() else -1.0
    summary: dict[str, Any] = {}

    def save_weights(module: nn.Module) -> None:
        trained = module.get_submodule("detector")
        save_detector(last, trained, job.model, {"key": job.key, "role": job.role})

    def on_epoch(finished: int) -> dict[str, float] | None:
        nonlocal best_map, summary
        every = job.train.evaluate_every
        if finished != job.train.epochs and not (every and finished % every == 0):
            return None
        summary = evaluate_detector(detector, val_samples, console, f"evaluating the {job.role}")
        write_json(job.folder / "eval" / f"{job.role}.json", summary)
        console.print(f"  {job.role} after epoch {finished}: {headline(summary)}")
        if summary["present"]["mean_ap"] > best_map:
            best_map = summary["present"]["mean_ap"]
            save_detector(best, detector, job.model, {"key": job.key, "role": job.role, "mAP": best_map})
        return {"mAP": summary["present"]["mean_ap"], "NDS": summary["present"]["nd_score"]}

    drops = DropLog()
    with (
        reported_drops(drops, job.title, console),
        bar(console, job.title, _total_steps(dataset, job.train, job.seed)) as progress,
    ):
        hooks = LoopHooks(_step_reporter(progress), on_epoch, save_weights, drops.add)
        state = TrainingState(job.folder / "state" / "state.pt", job.key)
        fit(
            step_module,
            dataset,
            job.train,
            seed=job.seed,
            run_dir=job.folder,
            state=state,
            resume=resume,
            hooks=hooks,
        )
    return processes.from_main(lambda: summary)


def validation_samples(recipe: Recipe, root: Path, console: Console) -> list[Sample]:
    """The validation split, which the main process alone evaluates on; empty in the others."""
    return read_split(recipe, root, "val", console) if processes.is_main() else []


def evaluate_detector(
    detector: DetectionNetwork, samples: list[Sample], console: Console, title: str
) -> dict[str, Any]:
    """Metrics of a network in PyTorch on some samples."""
    found = detect(samples, {"network": (detector.spec, TorchDetector(detector).infer)}, console, title)
    return score(submission_of(samples, found["network"]), ground_truth(samples))


def headline(summary: dict[str, Any]) -> str:
    """mAP and NDS in words, and how many classes they are over."""
    present = summary["present"]
    return f"mAP {present['mean_ap']:.3f}, NDS {present['nd_score']:.3f} over {len(present['classes'])} classes"


def _paster(recipe: Recipe, train: TrainConfig, samples: list[Sample], console: Console) -> Paster | None:
    """What pastes objects, with the database of the split: made on first use, found by its key later."""
    config = train.augmentation.paste
    if config is None:
        return None
    path = RUNS / recipe.name / "objects" / f"{database_key(samples, config)[:16]}.npz"
    with processes.main_first():
        if not path.is_file():
            with bar(console, "collecting objects to paste", len(samples)) as progress:
                build_database(samples, config, progress.update).save(path)
    order = EpochSampler.of_training(samples, train, recipe.seed)
    return Paster(ObjectDatabase.load(path), config, order.first_position_after(config.until_fraction * train.epochs))


def _total_steps(dataset: FrameDataset, train: TrainConfig, seed: int) -> int:
    return Plan.of(train, len(EpochSampler.of_training(dataset.samples, train, seed))).total_steps


def _step_reporter(progress: Bar) -> Callable[[int, int, dict[str, float]], None]:
    start = time.monotonic()
    first: int | None = None

    def report(step: int, total: int, losses: dict[str, float]) -> None:
        nonlocal first
        first = step - 1 if first is None else first
        per_step = (time.monotonic() - start) / (step - first)
        left = per_step * (total - step)
        progress.update(step, f"loss {losses['loss']:.3f}, {per_step:.2f} s/step, {left:.0f} s left")

    return report
