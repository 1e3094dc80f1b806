"""The teacher as a distillation asks it: live, or with its head maps kept in files between runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import Recipe
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.object_database import database_key
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.data.sensor_files import files_digest
from bevkd_deploy.models.center_head import BOX_MAPS
from bevkd_deploy.models.network import BOX_OUTPUTS, DetectionNetwork
from bevkd_deploy.pipelines.datasets import data_digest, reading_settings
from bevkd_deploy.pipelines.runs import RUNS
from bevkd_deploy.pipelines.training import job_key
from bevkd_deploy.teachers.cache import CachedTeacher
from bevkd_deploy.teachers.frozen import FrozenTeacher
from bevkd_deploy.teachers.map_store import MapStore

#: Rises when the same recipe and data would give other head maps.
CACHE_VERSION = 2

_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def frozen_teacher(recipe: Recipe, detector: DetectionNetwork) -> FrozenTeacher:
    """The live teacher, in the precision that the recipe asks for: the student's, or fp32 for a foreign network."""
    usual = recipe.student.train.precision if recipe.teacher.source == "native" else "fp32"
    return FrozenTeacher(detector, detector.spec, recipe.teacher.precision or usual)


@contextmanager
def cached_teacher(
    recipe: Recipe, root: Path, key: str, frozen: FrozenTeacher, frames: FrameDataset, console: Console
) -> Iterator[FrozenTeacher | CachedTeacher]:
    """The teacher with `teacher.cache` applied; what it has learned about itself is written when the block is left.

    Args:
        recipe: of the distillation.
        root: of its data.
        key: of the teacher, from `Teacher.key`.
        frozen: the live teacher; given back as it is where the recipe keeps nothing.
        frames: the training frames; told to leave out inputs that the teacher need not see.
        console: is told where the files are, and how large.
    """
    if recipe.teacher.cache is None:
        yield frozen
        return
    described = cache_description(recipe, root, key, frozen, frames)
    cache_key = job_key(**described)
    folder = RUNS / recipe.name / "teacher-cache" / cache_key[:16]
    write_json(folder / "key.json", {"key": cache_key, **described})
    sizes = stored_maps(recipe, frozen.spec)
    dtype = _DTYPES[recipe.teacher.cache]
    store = MapStore(folder, cache_key, sizes, dtype, exact=BOX_OUTPUTS)
    entries = len(cache_positions(recipe, frames))
    whole = entries * sum(size * (4 if name in BOX_OUTPUTS else dtype.itemsize) for name, size in sizes.items())
    console.print(f"  teacher cache {folder}: {_size(store)}; this run needs {entries} frames, {whole / 1e6:.1f} MB")
    frames.leave_out("teacher", store)
    try:
        yield CachedTeacher(frozen, store, frames)
    finally:
        store.flush()
        console.print(f"  teacher cache {folder}: {_size(store)}")


def cache_description(
    recipe: Recipe, root: Path, key: str, frozen: FrozenTeacher, frames: FrameDataset
) -> dict[str, Any]:
    """Everything that decides the teacher's maps of one entry, as JSON values.

    Epochs, resampling and batch size do not: they choose which entries are asked for. The seed does where something is
    drawn; the end of pasting does, since a draw may lie before or after it.
    """
    drawn = None
    if frames.is_random:
        drawn = {
            "seed": recipe.seed,
            "augmentation": recipe.student.train.augmentation.model_dump(mode="json"),
            # Views are drawn in the proportions of the student's image.
            "student_image_size_px": list(recipe.student.model.camera.image_size_px),
        }
    paster = frames.paster
    if drawn is not None and paster is not None:
        drawn["pasted"] = [database_key(frames.samples, paster.config), paster.until_position]
    return {
        "cache_version": CACHE_VERSION,
        "teacher": key,
        "model": recipe.teacher.identity(),
        "precision": frozen.precision,
        "stored": recipe.teacher.cache,
        "data": data_digest(recipe, root),
        "reading": reading_settings(recipe),
        "cameras": list(recipe.data.cameras),
        "files": files_digest(frames.samples, recipe.data.cameras),
        "drawn": drawn,
    }


def stored_maps(recipe: Recipe, spec: GraphSpec | SensorSpec) -> dict[str, int]:
    """What the terms read of a teacher's outputs, with the values of each in a frame."""
    cells = prod(spec.bev_shape_yx)
    dense = {"heatmap": len(spec.classes) * cells, **{name: count * cells for name, count in BOX_MAPS.items()}}
    if isinstance(spec, GraphSpec):
        return {name: dense[name] for name in recipe.distill.teacher_maps(dense)}
    # A foreign network decodes by itself, and may have no box maps: they are asked for where a loss compares them.
    kept = dense if "boxes" in recipe.distill.losses.enabled() else {"heatmap": dense["heatmap"]}
    boxes = {"boxes": 9 * spec.top_k, "scores": spec.top_k, "labels": spec.top_k}
    return {**kept, **(boxes if recipe.distill.labels else {})}


def cache_positions(recipe: Recipe, frames: FrameDataset) -> list[int]:
    """Positions whose frames are all that a whole run asks for, each frame once."""
    if not frames.is_random:
        return list(range(len(frames)))
    order = EpochSampler.of_training(frames.samples, recipe.student.train, recipe.seed)
    positions: list[int] = []
    for epoch in range(recipe.student.train.epochs):
        order.begin(epoch)
        positions += order
    return positions


def _size(store: MapStore) -> str:
    size = store.size()
    return f"holds {size.entries} frames, {size.bytes / 1e6:.1f} MB"
