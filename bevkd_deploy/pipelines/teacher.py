"""Obtaining the teacher of a recipe: loaded from a checkpoint, or trained once and kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bevkd_deploy.contracts.errors import ArtifactError, CannotRunHere
from bevkd_deploy.contracts.files import read_json, sha256_file, sha256_json, write_json
from bevkd_deploy.contracts.recipe_loader import LoadedRecipe, resolved_path
from bevkd_deploy.contracts.recipe_teacher import TeacherExpectation
from bevkd_deploy.distill import processes
from bevkd_deploy.distill.step import TrainingStep
from bevkd_deploy.models.checkpoint import load_detector
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.models.network import DetectionNetwork
from bevkd_deploy.pipelines.accuracy import spread
from bevkd_deploy.pipelines.datasets import data_digest, read_split, reading_settings
from bevkd_deploy.pipelines.runs import RUNS
from bevkd_deploy.pipelines.teacher_network import AbsentNetwork, TeacherNetwork, open_teacher, teacher_identity
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
    """A trained teacher with its provenance.

    Attributes:
        detector: the network, with its weights.
        weights: their file.
        sha256: of that file.
        key: hash of the weights and of everything else that decides what the network says of an input.
        summary: metrics on the validation split.
    """

    detector: DetectionNetwork
    weights: Path
    sha256: str
    key: str
    summary: dict[str, Any]


def teacher_weights(loaded: LoadedRecipe, root: Path) -> Path:
    """Where the teacher's weights are, or will be once it is trained."""
    teacher = loaded.recipe.teacher
    if teacher.checkpoint:
        return resolved_path(loaded, teacher.checkpoint)
    return _trained_folder(loaded, root) / "checkpoints" / "last.safetensors"


def obtain_teacher(loaded: LoadedRecipe, root: Path, console: Console, opened: TeacherNetwork | None = None) -> Teacher:
    """Load the recipe's checkpoint, or train the teacher (reusing an earlier training of the very same inputs).

    The teacher is measured on the validation split before anything is distilled from it: a silently weak teacher
    would waste the whole run.

    Args:
        loaded: the recipe.
        root: of its data.
        console: is told what happens.
        opened: from `open_teacher`, where the network is there already.

    Raises:
        ArtifactError: the checkpoint does not fit, or scores below the recipe's `teacher.expect`.
    """
    recipe = loaded.recipe
    opened = opened or open_teacher(loaded, console)
    weights, digest = opened.weights, opened.sha256
    if weights is None or digest is None:
        weights = teacher_weights(loaded, root)
        digest = _load_native(loaded, root, weights, opened.network, console)
    found = digest
    summary, kept = processes.from_main(lambda: _measured(loaded, root, opened.network, found, console))
    check_expected(recipe.teacher.expect, summary, weights, kept)
    console.print(f"  teacher {weights}: {headline(summary)}")
    return Teacher(opened.network, weights, digest, sha256_json([digest, teacher_identity(loaded)]), summary)


def _load_native(loaded: LoadedRecipe, root: Path, weights: Path, network: DetectionNetwork, console: Console) -> str:
    """Weights into a network of the student's family, trained first where there are none; returns their sha256."""
    teacher = loaded.recipe.teacher
    if teacher.checkpoint is None and not processes.from_main(lambda: _is_complete(weights)):
        train_teacher(loaded, root, weights.parent.parent, console)
    return load_detector(weights, network, teacher.native_model, teacher.sha256)


def train_teacher(loaded: LoadedRecipe, root: Path, folder: Path, console: Console, resume: bool = False) -> None:
    """Train the teacher into a folder; an interrupted training of the same inputs goes on where it stopped."""
    recipe = loaded.recipe
    train = recipe.teacher.train
    if train is None:
        raise ArtifactError(f"{loaded.path} has no teacher.train section: its teacher comes from a checkpoint")
    spec, model = recipe.teacher_spec(), recipe.teacher.native_model
    detector = build_detector(model, spec, recipe.seed)
    dataset = training_frames(recipe, root, train, {"teacher": spec}, console)
    job = TrainingJob(
        "training the teacher",
        folder,
        teacher_key(loaded, root),
        "teacher",
        recipe.teacher.native_model,
        train,
        recipe.seed,
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
    return job_key(
        teacher=teacher, data=data_digest(recipe, root), cameras=list(recipe.data.cameras), seed=recipe.seed,
        **reading_settings(recipe),
    )  # fmt: skip


def _trained_folder(loaded: LoadedRecipe, root: Path) -> Path:
    return RUNS / loaded.recipe.name / f"teacher-{teacher_key(loaded, root)[:12]}"


def _is_complete(weights: Path) -> bool:
    """Whether a training ended and its weights are still what it wrote."""
    record = weights.with_suffix(".json")
    if not (weights.is_file() and record.is_file()):
        return False
    return bool(read_json(record, "teacher record")["sha256"] == sha256_file(weights))


def _measured(
    loaded: LoadedRecipe, root: Path, detector: DetectionNetwork, digest: str, console: Console
) -> tuple[dict[str, Any], Path]:
    """Validation metrics of the teacher and their file, kept by weights, data and model."""
    recipe = loaded.recipe
    frames = recipe.teacher.expect.frames if recipe.teacher.expect else None
    key = job_key(
        weights=digest, data=data_digest(recipe, root), model=teacher_identity(loaded),
        cameras=list(recipe.data.cameras), frames=frames, **reading_settings(recipe),
    )  # fmt: skip
    kept = RUNS / recipe.name / "teacher-eval" / f"{key[:16]}.json"
    if not kept.is_file():
        if isinstance(detector, AbsentNetwork):
            raise CannotRunHere(
                f"{detector.why}, and its evaluation {kept} is not there either: run bevkd teacher cache with this "
                "recipe where the teacher runs, and bring the runs folder here"
            )
        samples = read_split(recipe, root, "val", console)
        chosen = samples if frames is None else spread(samples, frames)
        measured = evaluate_detector(detector, chosen, console, "evaluating the teacher")
        write_json(kept, {**measured, "frames": {"evaluated": len(chosen), "of": len(samples)}})
    summary: dict[str, Any] = read_json(kept, "teacher evaluation")
    return summary, kept


def check_expected(expected: TeacherExpectation | None, summary: dict[str, Any], weights: Path, kept: Path) -> None:
    """Refuse a teacher that scores less than its recipe says: everything learned from it would be wasted.

    Args:
        expected: what is asked for; None asks for nothing.
        summary: metrics of the teacher, as `score` writes them, with the number of "frames".
        weights: its file, for the message.
        kept: where the metrics of each class stand, for the message.

    Raises:
        ArtifactError: a metric is lower than expected by more than the tolerance.
    """
    if expected is None:
        return
    present, frames = summary["present"], summary["frames"]
    got = {"mAP": present["mean_ap"], "NDS": present["nd_score"]}
    # A hair of slack: 0.6 - 0.05 is a little more than 0.55 in binary.
    short = [name for name, least in expected.metrics.items() if got[name] < least - expected.tolerance - 1e-9]
    if not short:
        return
    tolerance = f" (tolerance {expected.tolerance:g})" if expected.tolerance else ""
    figures = ", ".join(f"{name} {got[name]:.4f}, expected at least {expected.metrics[name]:g}" for name in short)
    raise ArtifactError(
        f"teacher {weights} is weaker than teacher.expect says: {figures}{tolerance}, on {frames['evaluated']} of "
        f"{frames['of']} validation frames. Nothing was distilled. Likely causes: another checkpoint than the recipe "
        "was written for (teacher.checkpoint, teacher.sha256); other data (data.root, data.version, data.val_split); "
        "other sensors (data.cameras, data.sensors, data.sweeps); coordinates, box or class conventions that differ "
        f"from those it was trained with. Metrics by class are in {kept}"
    )
