"""Frame files: what the pictures of a run are drawn from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import without_broken_files
from bevkd_deploy.report.frame_view import FrameBox, FrameView, load_frame_view, write_frame_view
from bevkd_deploy.report.pictures import draw_frame
from bevkd_deploy.runtime.detections import Detections

_MIN_SCORE = 0.1  # boxes below are never drawn and would only swell the file


def write_frame_files(
    samples: list[Sample], spec: GraphSpec, detections: Mapping[str, Mapping[str, Detections]], folder: Path
) -> list[Path]:
    """Write `<token>.json` and both pictures of each sample.

    Args:
        samples: frames to draw.
        spec: gives the drawn range.
        detections: actor ("teacher", "student") -> token -> boxes in the LiDAR frame.
        folder: the run's pictures folder.

    Returns:
        The pictures.
    """
    pictures: list[Path] = []
    for sample in samples:
        if sample.on_error == "drop_sensor":  # the picture has no place for a sensor that cannot be read
            sample = without_broken_files(sample, spec.cameras)
        view = _view(sample, spec, {actor: frames[sample.token] for actor, frames in detections.items()}, folder)
        pictures += draw_frame(load_frame_view(write_frame_view(view, folder)), folder)
    return pictures


def _view(sample: Sample, spec: GraphSpec, detections: Mapping[str, Detections], folder: Path) -> FrameView:
    boxes = {
        "truth": tuple(
            FrameBox(box=_row(box), label=CLASS_NAMES[label])
            for box, label, points in zip(sample.boxes, sample.labels, sample.num_points, strict=True)
            if points > 0
        )
    }
    for actor, found in detections.items():
        shown = found.above(_MIN_SCORE)
        boxes[actor] = tuple(
            FrameBox(box=_row(box), label=name, score=float(score))
            for box, name, score in zip(shown.boxes, shown.names(), shown.scores, strict=True)
        )
    content: dict[str, Any] = {
        "token": sample.token,
        "images": {camera: _relative(path, folder) for camera, path in sample.image_paths.items()},
        "points_path": _relative(sample.points_path, folder) if sample.points_path else None,
        "lidar2img": {
            camera: matrix.tolist()
            for camera, matrix in zip(sample.calibration.cameras, sample.calibration.lidar2img(), strict=True)
        },
        "image_size_px": dict(zip(sample.calibration.cameras, sample.calibration.image_sizes_px, strict=True)),
        "range_m": spec.range_m,
        "boxes": boxes,
    }
    return FrameView.model_validate(content)


def _row(box: NDArray[Any]) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in box)


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.resolve(), folder.resolve())
