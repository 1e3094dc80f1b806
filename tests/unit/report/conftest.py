"""A small benchmark and a small frame, both made so that every expected value can be worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bevkd_deploy.report.frame_view import FrameBox, FrameView

ENGINE_SHA = "ab" * 32


def backend(name: str, precision: str, mean_ap: float, p50: float, **more: Any) -> dict[str, Any]:
    latency = {"n": 400, "mean": p50, "cv": 0.021, "min": p50 * 0.9, "p50": p50, "p90": p50 * 1.1, "p99": p50 * 1.2}
    per_class = {"car": mean_ap + 0.1, "pedestrian": mean_ap - 0.1}
    return {
        "name": name,
        "precision": precision,
        "device": "Orin",
        "latency_ms": {**latency, "max": p50 * 2},
        "accuracy": {"mAP": mean_ap, "NDS": mean_ap + 0.05, "per_class": per_class},
        **more,
    }


def gate(name: str, result: str, value: float | None, limit: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "interval": None, "limit": limit, "result": result, **more}


_BENCH: dict[str, Any] = {
    "schema": "bevkd.benchmark/1",
    "environment": {"device": "Orin", "date": "2026-01-02T03:04:05Z", "commit": "c" * 40, "gpu": {"sm": "8.7"}},
    "frames": 200,
    "boundary": "graph inputs to boxes",
    "backends": [
        backend("teacher", "fp32", 0.62, 200.0, size_mb=165.0),
        backend("student-torch", "fp32", 0.585, 60.0, size_mb=24.1),
        backend(
            "tensorrt",
            "fp16",
            0.5831,
            12.5,
            engine="student.fp16.orin.plan",
            engine_sha256=ENGINE_SHA,
            size_mb=13.07,
            memory_mb=512.0,
            stages_ms={"preprocess": 2.25, "engine": 10.0},
        ),
    ],
    "parity": [
        {
            "reference": "student-torch",
            "candidate": "tensorrt",
            "tier": "fp16",
            "output": "boxes",
            "max_abs": 0.0123,
            "rel_l2": 4.5e-4,
            "cosine": 0.999987,
            "nonfinite": 0,
            "unmatched": 2,
            "result": "pass",
        }
    ],
    "gates": [
        gate("export_map", "pass", 0.9968, ">= 0.99", interval=[0.991, 1.002]),
        gate("retention_map", "fail", 0.9405, ">= 0.95", reason="ratio to the teacher"),
        gate("p99_ms", "unstable", 15.0, "<= 15", interval=[14.8, 15.3]),
        gate("power_w", "skipped", None, "<= 30", reason="no power rail"),
    ],
}


@pytest.fixture
def bench() -> dict[str, Any]:
    """A benchmark with one gate of each result."""
    return copy.deepcopy(_BENCH)


@pytest.fixture
def passing_bench(bench: dict[str, Any]) -> dict[str, Any]:
    """The same with passing gates alone."""
    bench["gates"] = bench["gates"][:1]
    return bench


#: Looks along lidar +y from the origin: x_cam = x, y_cam = -z, z_cam = y; focal length 90, centre (80, 45).
LIDAR2IMG = np.array([[90.0, 80, 0, 0], [0, 45, -90, 0], [0, 1, 0, 0], [0, 0, 0, 1]])

MakeFrame = Callable[..., FrameView]


@pytest.fixture
def make_frame(tmp_path: Path) -> MakeFrame:
    """A black 160 x 90 image in front, one point, and the boxes given for each actor."""

    def make(range_m: tuple[float, ...] = (-20, -20, -5, 20, 20, 3), **boxes: list[FrameBox]) -> FrameView:
        image, points = tmp_path / "front.png", tmp_path / "points.bin"
        cv2.imwrite(str(image), np.zeros((90, 160, 3), np.uint8))
        np.array([[5, 5, -1, 10, 0]], np.float32).tofile(points)
        return FrameView(
            token="frame0",
            images={"CAM_FRONT": image},
            points_path=points,
            lidar2img={"CAM_FRONT": LIDAR2IMG.tolist()},
            image_size_px={"CAM_FRONT": (90, 160)},
            range_m=range_m,
            boxes={name: tuple(items) for name, items in boxes.items()},
        )

    return make
