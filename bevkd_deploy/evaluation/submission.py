"""nuScenes submission records: made from boxes, written to and read from files.

A file is `{"meta": {...}, "results": {sample_token: [record, ...]}}`. A record holds sample_token, translation (x, y, z
of the centre, global frame, metres), size (w, l, h, metres), rotation (w, x, y, z), velocity (vx, vy, global frame,
m/s), detection_name, attribute_name, for results detection_score, for ground truth optionally num_pts, and optionally
ego_translation (centre minus position of the ego vehicle, along the axes of the global frame, metres). Ground truth may
hold `bike_racks` beside `results`: {sample_token: [{translation, size, rotation}]}, in which cycles do not count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import attribute_for
from bevkd_deploy.contracts.errors import DataError, NonFiniteError
from bevkd_deploy.contracts.files import read_json, write_text
from bevkd_deploy.evaluation.box_table import Array
from bevkd_deploy.evaluation.racks import Racks
from bevkd_deploy.evaluation.records import Kind, Records, read_boxes
from bevkd_deploy.evaluation.submission_files import results_of
from bevkd_deploy.geometry.frames import matrix_to_quaternion, transform_points


def boxes_to_records(
    token: str,
    boxes: Array,
    scores: Array | None,
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    lidar2global: Array,
    ego_translation_m: Array | Sequence[float],
    num_points: NDArray[np.integer[Any]] | None = None,
    *,
    attributes: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Turn the boxes of one sample into submission records.

    The whole rotation of `lidar2global` is applied, tilt included, and attributes follow the speed in the ground plane
    of the global frame, as in mmdet3d's NuScenesMetric.

    Args:
        token: sample token.
        boxes: [n, 9] x, y, z, l, w, h, yaw, vx, vy, lidar frame, geometric centre; velocity may be NaN in ground truth.
        scores: [n] confidences, or None for ground truth.
        labels: [n] index into `classes`.
        classes: names of the nuScenes detection classes.
        lidar2global: [4, 4] rigid transform.
        ego_translation_m: [3] position of the ego vehicle, global frame.
        num_points: [n] points inside each box, for ground truth.
        attributes: [n] attribute names, for ground truth that knows them; by default from class and speed.

    Raises:
        DataError: lengths differ or a label is not in `classes`.
        NonFiniteError: a box or score is NaN or infinite.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    lidar2global = np.asarray(lidar2global, dtype=np.float64)
    columns = {"scores": scores, "labels": labels, "num_points": num_points, "attributes": attributes}
    _require_aligned(token, boxes, columns)
    _require_labels(token, labels, classes)
    _require_finite(token, boxes, scores)
    centers_m = transform_points(lidar2global, boxes[:, :3])
    offsets_m = centers_m - np.asarray(ego_translation_m, dtype=np.float64)
    rotations = _headings_to_quaternions(boxes[:, 6], lidar2global)
    velocities = boxes[:, 7:9] @ lidar2global[:2, :2].T
    records = []
    for index, label in enumerate(labels):
        name = classes[int(label)]
        speed_mps = math.hypot(*velocities[index])
        record: dict[str, Any] = {
            "sample_token": token,
            "translation": centers_m[index].tolist(),
            "size": boxes[index, [4, 3, 5]].tolist(),
            "rotation": rotations[index].tolist(),
            "velocity": velocities[index].tolist(),
            "ego_translation": offsets_m[index].tolist(),
            "detection_name": name,
            "attribute_name": attribute_for(name, speed_mps) if attributes is None else attributes[index],
        }
        if scores is not None:
            record["detection_score"] = float(scores[index])
        if num_points is not None:
            record["num_pts"] = int(num_points[index])
        records.append(record)
    return records


def load_submission(path: Path | str, *, ground_truth: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Read a submission file as plain records and check each; `submission_files.py` reads a large one as columns.

    Args:
        path: the JSON file.
        ground_truth: records need no score, and a velocity may be unknown (null or NaN).

    Returns:
        Sample token -> records, as in the file.

    Raises:
        ArtifactError: there is no such file, or it is not JSON.
        DataError: it is no submission, or a record is malformed; the message names sample token and record index.
    """
    kind = Kind.GROUND_TRUTH if ground_truth else Kind.RESULTS
    results = results_of(read_json(path, kind.value), kind, path)
    read_boxes(results, kind, origin=str(path))
    return results


def write_submission(
    path: Path | str, results: Records, meta: Mapping[str, Any], *, bike_racks: Racks | None = None
) -> Path:
    """Write a submission file, with `bike_racks` if they are known; unknown velocities become null."""
    content = {"meta": meta, "results": results}
    if bike_racks is not None:
        content["bike_racks"] = bike_racks
    # One line: indentation doubles such a file, and takes ten times as long to write.
    return write_text(path, json.dumps(nan_to_null(content), allow_nan=False) + "\n")


def nan_to_null(value: Any) -> Any:
    """A copy of a JSON value with null for each NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: nan_to_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _headings_to_quaternions(yaw_rad: Array, lidar2global: Array) -> Array:
    """Quaternions [n, 4] of boxes with a heading [n] in the lidar frame, as seen in the global frame."""
    w, x, y, z = matrix_to_quaternion(lidar2global[:3, :3])
    cosine, sine = np.cos(yaw_rad / 2), np.sin(yaw_rad / 2)
    # The product of the sensor's rotation with (cosine, 0, 0, sine).
    return np.stack(
        [w * cosine - z * sine, x * cosine + y * sine, y * cosine - x * sine, z * cosine + w * sine], axis=1
    )


def _require_aligned(token: str, boxes: Array, columns: Mapping[str, Any]) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 9:
        raise DataError(
            f"sample {token!r}: boxes must be [n, 9] (x, y, z, l, w, h, yaw, vx, vy), got {list(boxes.shape)}"
        )
    for name, column in columns.items():
        if column is not None and len(column) != len(boxes):
            raise DataError(f"sample {token!r}: {name} must have one entry per box, {len(boxes)}, got {len(column)}")


def _require_labels(token: str, labels: NDArray[np.integer[Any]], classes: Sequence[str]) -> None:
    for index, label in enumerate(labels):
        if not 0 <= int(label) < len(classes):
            raise DataError(f"sample {token!r}, box {index}: label {label} is no index into classes {list(classes)}")


def _require_finite(token: str, boxes: Array, scores: Array | None) -> None:
    bad = ~np.isfinite(boxes[:, :7]).all(axis=1)
    if scores is None:
        bad |= np.isinf(boxes[:, 7:9]).any(axis=1)
    else:
        bad |= ~np.isfinite(boxes[:, 7:9]).all(axis=1) | ~np.isfinite(scores)
    if bad.any():
        first = int(np.argmax(bad))
        raise NonFiniteError(
            f"sample {token!r}, box {first}: NaN or infinite: {boxes[first].tolist()}"
            + ("" if scores is None else f", score {scores[first]}")
        )
