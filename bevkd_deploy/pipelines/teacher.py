"""Obtaining the teacher of a recipe: loaded from a checkpoint, or trained once and kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import read_json, sha256_file, write_json
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, resolved_path
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.step import TrainingStep
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.detector import FusionDetector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.datasets import data_digest, read_split
from bevkd_deploy.pipelines.runs import RUNS
from bevkd_deploy.pipelines.training import (
    TrainingJob,
    evaluate_detector,
    headline,
    job_key,
    run_training,
    training_frames,
    validation_samples,
)


@dataclass(frozen=True)
class Teacher:
    """A trained teacher with its provenance."""

    detector: FusionDetector
    weights: Path
    sha256: str
    summary: dict[str, Any]


def teacher_weights(loaded: LoadedRecipe, root: Path) -> Path:
    """Where the teacher's weights are, or will be once it is trained."""
    teacher = loaded.recipe.teacher
    if teacher.checkpoint:
        return resolved_path(loaded, teacher.checkpoint)
    return _trained_folder(loaded, root) / "checkpoints" / "last.safetensors"


def obtain_teacher(loaded: LoadedRecipe, root: Path, console: Console) -> Teacher:
    """Load the recipe's checkpoint, or train the teacher (reusing an earlier training of the very same inputs).

    The teacher is measured on the validation split before anything is distilled from it: a silently weak teacher
    would waste the whole run.

    Raises:
        ArtifactError: the checkpoint does not fit, or scores below the recipe's `expected_map`.
    """
    recipe = loaded.recipe
    weights = teacher_weights(loaded, root)
    if recipe.teacher.checkpoint is None and not processes.from_main(lambda: _is_complete(weights)):
        train_teacher(loaded, root, weights.parent.parent, console)
    detector = build_detector(recipe.teacher.model, recipe.teacher_spec(), recipe.seed)
    digest = load_detector(weights, detector, recipe.teacher.model, recipe.teacher.sha256)
    summary = processes.from_main(lambda: _measured(loaded, root, detector, digest, console))
    expected = recipe.teacher.expected_map
    if expected is not None and summary["present"]["mean_ap"] < expected:
        raise ArtifactError(
            f"teacher {weights} scores mAP {summary['present']['mean_ap']:.3f} on the validation split, the recipe "
            f"expects at least {expected}: wrong checkpoint, data or preprocessing. Nothing was distilled"
        )
    console.print(f"  teacher {weights}: {headline(summary)}")
    return Teacher(detector, weights, digest, summary)


def train_teacher(loaded: LoadedRecipe, root: Path, folder: Path, console: Console, resume: bool = False) -> None:
    """Train the teacher into a folder; an interrupted training of the same inputs goes on where it stopped."""
    recipe = loaded.recipe
    train = recipe.teacher.train
    if train is None:
        raise ArtifactError(f"{loaded.path} has no teacher.train section: its teacher comes from a checkpoint")
    spec = recipe.teacher_spec()
    detector = build_detector(recipe.teacher.model, spec, recipe.seed)
    dataset = training_frames(recipe, root, train, {"teacher": spec}, console)
    job = TrainingJob(
        "training the teacher", folder, teacher_key(loaded, root), "teacher", recipe.teacher.model, train, recipe.seed
    )
    start = time.monotonic()
    summary = run_training(
        job,
        TrainingStep(detector, "teacher"),
        detector,
        dataset,
        validation_samples(recipe, root, console),
        resume=resume or processes.from_main((folder / "state" / "state.pt").is_file),
        console=console,
    )
    if not processes.is_main():
        processes.wait()  # for the record: the weights are complete with it
        return
    weights = folder / "checkpoints" / "last.safetensors"
    result = {
        "key": job.key,
        "recipe": recipe.name,
        "recipe_sha256": loaded.digest,
        "sha256": sha256_file(weights),
        "seconds": round(time.monotonic() - start, 1),
        "mAP": summary["present"]["mean_ap"],
        "NDS": summary["present"]["nd_score"],
    }
    write_json(weights.with_suffix(".json"), result)
    processes.wait()


def teacher_key(loaded: LoadedRecipe, root: Path) -> str:
    """Hash of what decides the trained teacher: its model, schedule, data and seed."""
    recipe = loaded.recipe
    teacher = recipe.teacher.model_dump(mode="json", include={"model", "train"})
    return job_key(teacher=teacher, data=data_digest(recipe, root), cameras=list(recipe.data.cameras), seed=recipe.seed)


def _trained_folder(loaded: LoadedRecipe, root: Path) -> Path:
    return RUNS / loaded.recipe.name / f"teacher-{teacher_key(loaded, root)[:12]}"


def _is_complete(weights: Path) -> bool:
    """Whether a training ended and its weights are still what it wrote."""
    record = weights.with_suffix(".json")
    if not (weights.is_file() and record.is_file()):
        return False
    return bool(read_json(record, "teacher record")["sha256"] == sha256_file(weights))


def _measured(
    loaded: LoadedRecipe, root: Path, detector: FusionDetector, digest: str, console: Console
) -> dict[str, Any]:
    """Validation metrics of the teacher, kept by weights, data and model."""
    recipe = loaded.recipe
    key = job_key(
        weights=digest, data=data_digest(recipe, root), model=recipe.teacher.model.model_dump(mode="json"),
        cameras=list(recipe.data.cameras),
    )  # fmt: skip
    kept = RUNS / recipe.name / "teacher-eval" / f"{key[:16]}.json"
    if kept.is_file():
        summary: dict[str, Any] = read_json(kept, "teacher evaluation")
        return summary
    summary = evaluate_detector(detector, read_split(recipe, root, "val", console), console, "evaluating the teacher")
    write_json(kept, summary)
    return summary
