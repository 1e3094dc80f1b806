"""Annotated objects of a training split with their LiDAR points, for ground-truth paste."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.files import sha256_json, write_atomic
from bevkd_deploy.contracts.recipe_training import PasteConfig
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import POINT_COLUMNS, load_sample
from bevkd_deploy.geometry.boxes import rows_in_boxes

#: Rises when the same samples would give another database.
DATABASE_VERSION = 1


@dataclass(frozen=True, eq=False)
class ObjectDatabase:
    """Objects where they were seen: in the LiDAR frame of their own keyframe.

    Attributes:
        boxes: float64 [N, 9], velocity NaN where unknown.
        labels: int64 [N], index into CLASS_NAMES.
        starts: int64 [N + 1]; object i has the points `starts[i]` to `starts[i + 1]`.
        points: float32 [P, 5], time lag 0: of the keyframe's own sweep.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    points: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def points_of(self, row: int) -> NDArray[np.float32]:
        """Points [n, 5] of one object."""
        return self.points[self.starts[row] : self.starts[row + 1]]

    def save(self, path: Path) -> None:
        """Write atomically, as plain arrays."""
        write_atomic(path, self._write)

    def _write(self, temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez(handle, boxes=self.boxes, labels=self.labels, starts=self.starts, points=self.points)

    @classmethod
    def load(cls, path: Path) -> ObjectDatabase:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is damaged or no object database.
        """
        try:
            with path.open("rb") as handle:
                arrays = np.load(handle, allow_pickle=False)
                found = cls(*(arrays[name] for name in ("boxes", "labels", "starts", "points")))
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"object database {path} cannot be read ({error}); remove it") from error
        count = len(found.labels)
        if found.boxes.shape != (count, 9) or found.starts.shape != (count + 1,):
            raise ArtifactError(f"object database {path} is inconsistent; remove it")
        return found


def database_key(samples: Sequence[Sample], config: PasteConfig) -> str:
    """Hash of what decides a database: annotations, the size and time of every point file, and the settings.

    The clouds themselves are not read for it: a training split holds tens of gigabytes.
    """
    digest = hashlib.sha256()
    for sample in samples:
        if sample.points_path is None:
            continue
        digest.update(f"{sample.token} {sample.points_path.name} ".encode())
        if sample.points_path.is_file():
            stat = sample.points_path.stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        for array in (sample.boxes, sample.labels, sample.num_points):
            digest.update(np.ascontiguousarray(array).tobytes())
    settings = config.model_dump(mode="json", include={"up_to", "min_points", "objects_per_class"})
    settings["up_to"] = sorted(settings["up_to"])  # which classes, not how many
    return sha256_json({"version": DATABASE_VERSION, "samples": digest.hexdigest(), **settings})


def build_database(
    samples: Sequence[Sample], config: PasteConfig, on_frame: Callable[[int], None] | None = None
) -> ObjectDatabase:
    """Cut the objects out of their keyframes.

    Args:
        samples: the training split, and nothing else: objects of the validation split must not be learned.
        config: which classes, how many objects of each, how many points each has at least.
        on_frame: called with the number of frames that are done or have nothing to give.

    Raises:
        DataError: a point file is missing or damaged, and the samples' `on_error` is "fail".
    """
    chosen = _chosen_rows(samples, config)
    boxes: list[NDArray[np.float64]] = []
    labels: list[int] = []
    points: list[NDArray[np.float32]] = []
    for index, rows in sorted(chosen.items()):
        sample = samples[index]
        assert sample.points_path is not None  # those are not chosen
        # Under `on_error: drop_sensor` a broken turn has no points; training, which reads it too, reports it.
        cloud = load_sample(replace(sample, sweeps=()), ()).points
        for row, inside in zip(rows, rows_in_boxes(cloud, sample.boxes[rows]), strict=True):
            if len(inside) >= config.min_points:  # the annotation counts radar points too
                boxes.append(sample.boxes[row])
                labels.append(int(sample.labels[row]))
                points.append(cloud[inside])
        if on_frame is not None:
            on_frame(index + 1)
    return ObjectDatabase(
        np.array(boxes, dtype=np.float64).reshape(-1, 9),
        np.array(labels, dtype=np.int64),
        np.cumsum([0, *map(len, points)], dtype=np.int64),
        np.concatenate(points) if points else np.zeros((0, POINT_COLUMNS), dtype=np.float32),
    )


def _chosen_rows(samples: Sequence[Sample], config: PasteConfig) -> dict[int, list[int]]:
    """Frame number to rows of its boxes: of each class, at most `objects_per_class`, evenly over the split."""
    candidates: dict[int, list[tuple[int, int]]] = {CLASS_NAMES.index(name): [] for name in config.up_to}
    for index, sample in enumerate(samples):
        if sample.points_path is None:
            continue
        for row in np.flatnonzero(sample.num_points >= config.min_points):
            label = int(sample.labels[row])
            if label in candidates:
                candidates[label].append((index, int(row)))
    chosen: dict[int, list[int]] = {}
    for label in sorted(candidates):
        found = candidates[label]
        count = min(len(found), config.objects_per_class)
        for place in np.linspace(0, len(found) - 1, count).round().astype(int):
            index, row = found[place]
            chosen.setdefault(index, []).append(row)
    return chosen
