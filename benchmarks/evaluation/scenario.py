"""Seeded frames for the speed of the evaluation: ground truth in nuScenes proportions and detections of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bevkd_deploy.contracts.classes import CLASS_NAMES, attribute_for
from bevkd_deploy.evaluation.config import detection_cvpr_2019

#: Share of each class among the annotations of nuScenes, and its usual size (w, l, h) in metres.
CLASSES = {
    "car": (0.42, (1.95, 4.6, 1.7)),
    "truck": (0.08, (2.5, 6.9, 2.8)),
    "construction_vehicle": (0.012, (2.8, 6.4, 3.2)),
    "bus": (0.014, (2.9, 11.2, 3.5)),
    "trailer": (0.022, (2.9, 12.3, 3.9)),
    "barrier": (0.14, (2.5, 0.5, 1.0)),
    "motorcycle": (0.012, (0.8, 2.1, 1.5)),
    "bicycle": (0.011, (0.6, 1.7, 1.3)),
    "pedestrian": (0.205, (0.7, 0.7, 1.8)),
    "traffic_cone": (0.084, (0.4, 0.4, 1.1)),
}
INSIDE = 0.97  # part of the class range that holds all boxes: nearly all of them count
FOUND = 0.85  # part of the truths that are detected
TWICE = 0.25  # part of the detected ones that are detected twice
EGO_M = np.array([600.0, 1600.0, 0.0])

Records = list[dict[str, Any]]


def frames(count: int, predicted: int, truths: int, seed: int = 0) -> Iterator[tuple[str, Records, Records]]:
    """Token, detections and ground truth of each frame, as submission records in plain floats."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        token = f"{index:032x}"
        truth = _boxes(rng, truths)
        velocity = np.where(rng.random((truths, 1)) < 0.03, np.nan, truth["velocity"])
        points = rng.integers(0, 60, truths)
        real = _records(token, {**truth, "velocity": velocity}, {"num_pts": points.tolist()})
        found = _detections(rng, truth, predicted)
        yield token, _records(token, found, {"detection_score": found["score"].tolist()}), real


def _boxes(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    shares = np.array([CLASSES[name][0] for name in CLASS_NAMES])
    label = rng.choice(len(CLASS_NAMES), count, p=shares / shares.sum())
    size = np.array([CLASSES[name][1] for name in CLASS_NAMES])[label]
    class_range = detection_cvpr_2019().class_range
    reach_m = INSIDE * np.array([class_range[name] for name in CLASS_NAMES])[label]
    radius_m, bearing = reach_m * np.sqrt(rng.random(count)), rng.uniform(-np.pi, np.pi, count)
    center = np.stack([radius_m * np.cos(bearing), radius_m * np.sin(bearing), rng.normal(1, 0.3, count)], axis=1)
    moving = rng.random((count, 1)) < 0.35
    return {
        "label": label,
        "center": center,
        "size": size * rng.uniform(0.85, 1.15, (count, 3)),
        "yaw": rng.uniform(-np.pi, np.pi, count),
        "velocity": moving * rng.normal(0, 4, (count, 2)),
    }


def _detections(rng: np.random.Generator, truth: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Noisy copies of most truths, second copies of some, and false ones up to `count`; clutter scores low."""
    found = np.flatnonzero(rng.random(len(truth["label"])) < FOUND)
    rows = np.concatenate([found, found[rng.random(len(found)) < TWICE]])[:count]
    clutter = _boxes(rng, count - len(rows))
    columns = {name: np.concatenate([truth[name][rows], clutter[name]]) for name in truth}
    columns["center"] = columns["center"] + rng.normal(0, 0.45, (count, 3)) * [1, 1, 0.3]
    columns["size"] = columns["size"] * rng.uniform(0.9, 1.1, (count, 3))
    columns["yaw"] = columns["yaw"] + rng.normal(0, 0.2, count)
    columns["velocity"] = columns["velocity"] + rng.normal(0, 0.4, (count, 2))
    columns["score"] = np.concatenate([rng.beta(4, 3, len(rows)), rng.beta(1.2, 9, count - len(rows))])
    shuffled = rng.permutation(count)
    return {name: column[shuffled] for name, column in columns.items()}


def _records(token: str, boxes: dict[str, np.ndarray], more: dict[str, list[Any]]) -> Records:
    half = boxes["yaw"] / 2
    rotation = np.stack([np.cos(half), 0 * half, 0 * half, np.sin(half)], axis=1)
    speed = np.hypot(*np.nan_to_num(boxes["velocity"]).T).tolist()
    columns = {
        "translation": (boxes["center"] + EGO_M).tolist(),
        "size": boxes["size"].tolist(),
        "rotation": rotation.tolist(),
        "velocity": boxes["velocity"].tolist(),
        "ego_translation": boxes["center"].tolist(),
        **more,
    }
    records = []
    for index, label in enumerate(boxes["label"].tolist()):
        name = CLASS_NAMES[label]
        fields = {key: column[index] for key, column in columns.items()}
        attribute = attribute_for(name, speed[index])
        records.append({"sample_token": token, **fields, "detection_name": name, "attribute_name": attribute})
    return records
