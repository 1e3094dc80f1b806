"""What augmentation costs a training frame, on one real nuScenes keyframe at the size of recipes/orin_small.yaml.

python benchmarks/augmentation/measure.py path/to/nuscenes_keyframe

Times are the best of several rounds in one process with one OpenCV thread; all rows take turns. Writes results.json
beside this file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.benchmark.environment import collect_environment
from bevkd_deploy.contracts.files import write_json
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.recipe_training import PasteConfig
from bevkd_deploy.data.augment import augment_points, draw_frame_aug
from bevkd_deploy.data.mmdet3d_infos import read_infos
from bevkd_deploy.data.object_database import build_database
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.sensor_files import load_sample_images, load_sample_points
from bevkd_deploy.geometry.camera_lut import build_luts, fit_image
from bevkd_deploy.runtime.preprocess import Preprocessor

HERE = Path(__file__).resolve().parent
ROUNDS = 80


def measure(root: Path) -> dict[str, Any]:
    """Milliseconds of each step with and without augmentation, and what the warp does to sharpness."""
    cv2.setNumThreads(1)
    recipe = load_recipe("orin_small").recipe
    spec = recipe.student_spec()
    sample = read_infos(root, "*.pkl", spec.cameras)[0]
    calibration = sample.calibration.select(spec.cameras)
    aspect = spec.image_height_px / spec.image_width_px
    drawn = draw_frame_aug(recipe.student.train.augmentation, calibration, spec.cameras, aspect, [0, 1])
    img_aug, bev_aug = drawn.img_aug(spec), drawn.bev_aug
    assert img_aug is not None and bev_aug is not None
    images, points = load_sample_images(sample, spec.cameras), load_sample_points(sample)
    preprocessor = Preprocessor(spec)
    # One frame's own objects, pasted into the frame without its annotations: the cost of drawing and cutting.
    paster = Paster(build_database([sample], PasteConfig()), PasteConfig(), 1)
    nothing = sample.boxes[:0], sample.labels[:0]
    steps: dict[str, Callable[[], Any]] = {
        "decode_jpeg": lambda: load_sample_images(sample, spec.cameras),
        "images_deployed": lambda: preprocessor.images(images),
        "images_augmented": lambda: preprocessor.images(images, img_aug),
        "tables_deployed": lambda: build_luts(spec, calibration),
        "tables_bev": lambda: build_luts(spec, calibration, bev_aug),
        "tables_bev_and_images": lambda: build_luts(spec, calibration, bev_aug, img_aug),
        "points_bev": lambda: augment_points(points, bev_aug),
        "paste": lambda: paster(points, *nothing, np.random.default_rng(0)),
    }
    return {
        "recipe": "orin_small",
        "cameras": len(spec.cameras),
        "image_hw_px": [spec.image_height_px, spec.image_width_px],
        "voxels": [len(spec.heights_m), *spec.bev_shape_yx],
        "points": len(points),
        "environment": collect_environment(),
        "best_ms": _best_ms(steps),
        "sharpness": _sharpness(preprocessor, [image for image in images if image is not None], spec),
    }


def _best_ms(steps: dict[str, Callable[[], Any]]) -> dict[str, float]:
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(seconds * 1e3, 2) for name, seconds in best.items()}


def _sharpness(preprocessor: Preprocessor, images: list[NDArray[np.uint8]], spec: GraphSpec) -> dict[str, float]:
    """Variance of the Laplacian of the same view, made in one step from raw pixels and in two steps.

    The view is the deployed one moved by half a pixel, so all of the difference is interpolation.
    """
    half = np.eye(4)
    half[0, 2] = half[1, 2] = 0.5
    size = (spec.image_width_px, spec.image_height_px)
    moved = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    fits = [fit_image((image.shape[0], image.shape[1]), spec) for image in images]
    resized = [cv2.resize(image, fit.scaled_hw_px[::-1])[fit.top_px :] for image, fit in zip(images, fits, strict=True)]
    views = {
        "deployed": preprocessor.images(images),
        "one_step": preprocessor.images(images, dict.fromkeys(spec.cameras, half)),
        "two_steps": [cv2.warpAffine(image, moved, size, flags=cv2.INTER_LINEAR) for image in resized],
    }
    inner = (slice(4, -4), slice(4, -4))
    return {
        name: round(float(np.mean([_laplacian(image[inner]) for image in view])), 1) for name, view in views.items()
    }


def _laplacian(image: NDArray[np.uint8]) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    write_json(HERE / "results.json", measure(parser.parse_args().root))
