"""Loading and preparing a real keyframe, and making pillars, against mmdet3d, on one core.

python benchmarks/data/against_mmdet3d.py KEYFRAME_ROOT --bevfusion mmdetection3d/projects/BEVFusion

Needs mmdet3d's environment (`make test-mmdet3d` makes one) and a checkout of mmdetection3d, whose BEVFusion project is
not part of its package. Both sides run in turn in this one process. Writes against_mmdet3d.json beside this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.recipe_training import AugmentationConfig
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.mmdet3d_infos import read_infos
from bevkd_deploy.data.safe_pickle import load_pickle
from bevkd_deploy.geometry.pillars import voxelize

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "orin_small.yaml"
CLOUD_POINTS = 270_000
#: The keyframe's cloud again and again, as a car at 10 m/s would see it at 20 Hz, makes one of `CLOUD_POINTS`.
STEP_M = 0.5
#: Capacities of the recipe and of mmdet3d's configs: centerpoint_pillar02 and pointpillars on nuScenes.
CAPACITIES: dict[str, dict[str, Any]] = {
    "orin_small": {},
    "centerpoint_pillar02": {"max_pillars": 40_000, "max_points": 20},
    "pointpillars": {
        "max_pillars": 40_000, "max_points": 64,
        "pillar_size_m": 0.25, "range_m": (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0),
    },
}  # fmt: skip


def in_turn(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each arm over interleaved rounds, the first round not counted."""
    times_ms: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            if turn:
                times_ms[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"min": min(values), "median": statistics.median(values), "max": max(values), "n": len(values)}
        for name, values in times_ms.items()
    }


def register_bevfusion(project: Path) -> None:
    """Make the transforms of mmdet3d's BEVFusion project known; its whole package would need compiled operators."""
    import mmdet3d.datasets.transforms  # noqa: F401  registers the transforms of mmdet3d itself

    for module in ("loading", "transforms_3d"):
        spec = importlib.util.spec_from_file_location(f"bevfusion_{module}", project / "bevfusion" / f"{module}.py")
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def their_transforms(augmented: bool) -> list[Any]:
    """The pipeline of mmdet3d's bevfusion_lidar-cam config, without earlier sweeps: the keyframe has none."""
    from mmdet3d.registry import TRANSFORMS

    range_m = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    images = {
        "type": "ImageAug3D", "final_dim": [256, 704], "bot_pct_lim": [0.0, 0.0], "is_train": augmented,
        "resize_lim": [0.38, 0.55] if augmented else [0.48, 0.48],
        "rot_lim": [-5.4, 5.4] if augmented else [0.0, 0.0], "rand_flip": augmented,
    }  # fmt: skip
    steps: list[dict[str, Any]] = [
        {"type": "BEVLoadMultiViewImageFromFiles", "to_float32": True, "color_type": "color"},
        {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 5, "use_dim": 5},
    ]
    if augmented:
        steps += [
            {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True, "with_attr_label": False},
            images,
            {
                "type": "BEVFusionGlobalRotScaleTrans", "scale_ratio_range": [0.9, 1.1],
                "rot_range": [-0.78539816, 0.78539816], "translation_std": 0.5,
            },
            {"type": "BEVFusionRandomFlip3D"},
            {"type": "PointsRangeFilter", "point_cloud_range": range_m},
            {"type": "ObjectRangeFilter", "point_cloud_range": range_m},
            {"type": "PointShuffle"},
        ]  # fmt: skip
    else:
        steps += [images, {"type": "PointsRangeFilter", "point_cloud_range": range_m}]
    steps.append(
        {"type": "Pack3DDetInputs", "keys": ["points", "img", *(["gt_bboxes_3d", "gt_labels_3d"] * augmented)]}
    )
    return [TRANSFORMS.build(step) for step in steps]


def their_frame(root: Path, infos: str) -> dict[str, Any]:
    """The keyframe as mmdet3d's NuScenesDataset hands it to its pipeline."""
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmdet3d.structures.bbox_3d import get_box_type

    (path,) = sorted(root.glob(infos))
    info = load_pickle(path)["data_list"][0]
    box_type_3d, box_mode_3d = get_box_type("LiDAR")
    boxes = np.array([item["bbox_3d"] for item in info["instances"]], dtype=np.float32)
    labels = np.array([item["bbox_label_3d"] for item in info["instances"]], dtype=np.int64)
    cameras = {
        name: {**info["images"][name], "img_path": str(root / info["images"][name]["img_path"])}
        for name in CAMERA_NAMES
    }
    return {
        "images": cameras,
        "lidar_points": {**info["lidar_points"], "lidar_path": str(root / info["lidar_points"]["lidar_path"])},
        "ann_info": {
            "gt_bboxes_3d": LiDARInstance3DBoxes(boxes, box_dim=7, origin=(0.5, 0.5, 0.5)), "gt_labels_3d": labels,
        },
        "box_type_3d": box_type_3d, "box_mode_3d": box_mode_3d, "bbox3d_fields": [], "sample_idx": 0,
    }  # fmt: skip


def frames(root: Path, infos: str, project: Path, rounds: int) -> dict[str, Any]:
    """Frames a second of both, with and without augmentation; ours make pillars, camera tables and targets too."""
    recipe = load_recipe(RECIPE, []).recipe
    frame = their_frame(root, infos)
    figures: dict[str, Any] = {}
    register_bevfusion(project)
    for name, augmented in (("plain", False), ("augmented", True)):
        settings = recipe.student.train.augmentation if augmented else AugmentationConfig()
        dataset = FrameDataset(
            read_infos(root, infos, CAMERA_NAMES), {"student": recipe.student_spec()}, target_of="student",
            min_radius_cells=recipe.student.model.head.min_radius_cells, augmentation=settings,
        )  # fmt: skip
        transforms = their_transforms(augmented)
        positions = iter(range(10**9))  # each position is another draw of the augmentation

        def theirs(transforms: list[Any] = transforms) -> Any:
            data: Any = {key: value.copy() if isinstance(value, dict) else value for key, value in frame.items()}
            for transform in transforms:
                data = transform(data)
            return data

        def ours(dataset: FrameDataset = dataset, positions: Any = positions) -> Any:
            return dataset[next(positions)]

        times_ms = in_turn({"bevkd": ours, "mmdet3d": theirs}, rounds)
        figures[name] = {
            "latency_ms": times_ms,
            "speed_up": times_ms["mmdet3d"]["median"] / times_ms["bevkd"]["median"],
        }
    return figures


def pillars(root: Path, infos: str, rounds: int) -> list[dict[str, Any]]:
    """Pillars of a cloud of ten sweeps' size by both, at several capacities, and whether they hold the same points."""
    from mmcv.ops import Voxelization

    cloud = dense_cloud(root, infos)
    tensor = torch.from_numpy(cloud)
    figures = []
    for name, changes in CAPACITIES.items():
        spec = load_recipe(RECIPE, []).recipe.student_spec().model_copy(update=changes)
        layer = Voxelization(
            voxel_size=[spec.pillar_size_m, spec.pillar_size_m, spec.range_m[5] - spec.range_m[2]],
            point_cloud_range=list(spec.range_m), max_num_points=spec.max_points, max_voxels=spec.max_pillars,
        )  # fmt: skip
        made = voxelize(cloud, spec)
        voxels, coordinates, counts = (value.numpy() for value in layer(tensor))
        index = coordinates[:, 1] * spec.pillar_shape_yx[1] + coordinates[:, 2]  # z, y, x
        same = (
            len(index) == made.kept_pillars
            and np.array_equal(index, made.pillar_index[: len(index)])
            and np.array_equal(counts, made.pillar_count[: len(index)])
            and np.array_equal(voxels, made.pillars[: len(index)])
        )
        times_ms = in_turn({"bevkd": partial(voxelize, cloud, spec), "mmcv": partial(layer, tensor)}, rounds)
        figures.append(
            {
                "name": name,
                "points": len(cloud),
                "max_pillars": spec.max_pillars,
                "max_points": spec.max_points,
                "pillar_size_m": spec.pillar_size_m,
                "pillars": made.kept_pillars,
                "same_pillars": bool(same),
                "latency_ms": times_ms,
                "speed_up": times_ms["mmcv"]["median"] / times_ms["bevkd"]["median"],
            }
        )
    return figures


def dense_cloud(root: Path, infos: str) -> np.ndarray:
    """The keyframe's cloud, moved on and shaken, until `CLOUD_POINTS` are together; float32 [N, 5]."""
    from bevkd_deploy.data.sensor_files import load_sample_points

    points = load_sample_points(read_infos(root, infos, CAMERA_NAMES)[0])
    rng = np.random.default_rng(0)
    clouds = []
    for turn in range(-(-CLOUD_POINTS // len(points))):
        moved = points.copy()
        moved[:, :3] += rng.normal(0, 0.02, (len(points), 3)) + [turn * STEP_M, 0, 0]
        moved[:, 4] = 0.05 * turn
        clouds.append(moved)
    return np.concatenate(clouds)[:CLOUD_POINTS]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the keyframe")
    parser.add_argument("--infos", default="*.pkl", help="its mmdet3d info file, under ROOT")
    parser.add_argument("--bevfusion", type=Path, required=True, help="projects/BEVFusion of a mmdetection3d checkout")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result = {
        "environment": collect_environment(),
        "peers": {name: importlib.metadata.version(name) for name in ("mmcv", "mmdet3d", "mmengine", "pillow")},
        "threads": 1,
        "recipe": RECIPE.name,
        "frame": frames(given.root, given.infos, given.bevfusion, given.rounds),
        "voxelization": pillars(given.root, given.infos, given.rounds),
    }
    print(write_json(HERE / "against_mmdet3d.json", result))  # noqa: T201  a script


if __name__ == "__main__":
    main()
