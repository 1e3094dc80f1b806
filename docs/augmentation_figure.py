"""Draw docs/figures/augmentation.png from the synthetic world: python docs/augmentation_figure.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, ImageAugmentationConfig, PasteConfig
from bevkd_deploy.data.augment import FrameAug, augment_points, draw_frame_aug
from bevkd_deploy.data.object_database import build_database
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_sample_images, load_sample_points
from bevkd_deploy.data.source import open_split
from bevkd_deploy.data.synthetic import write_dataset
from bevkd_deploy.geometry.boxes import augment_boxes
from bevkd_deploy.geometry.camera_lut import fit_image
from bevkd_deploy.report import wireframe
from bevkd_deploy.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = Path(__file__).resolve().parent / "figures" / "augmentation.png"
CAMERA = "CAM_FRONT"
RANGE_M = 40.0
OWN, PASTED = "#009e73", "#d55e00"

CONFIG = AugmentationConfig(
    flip_y=True,
    rotation_rad=0.785,
    scale=(0.9, 1.1),
    translation_m=(0.5, 0.5, 0.5),
    image=ImageAugmentationConfig(scale=(0.864, 1.25), flip=True, rotation_rad=0.0942),
    paste=PasteConfig(min_points=8),
)
#: A draw that shows all of it: mirrored, turned, objects pasted in view.
FRAME, SEED = 3, [0, 28]


def draw(path: Path = FIGURE) -> None:
    """Two columns, as deployed and augmented; above the image of one camera, below the BEV map."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory() as folder:
        root = write_dataset(Path(folder) / "world", profile="quickstart", train_scenes=2, val_scenes=0, seed=0)
        samples = open_split(DataConfig(source="nuscenes", root="unused"), root, "train")
        spec = load_recipe("quickstart").recipe.student_spec()
        spec = spec.model_copy(update={"cameras": (CAMERA,), "image_height_px": 256, "image_width_px": 704})
        sample = samples[FRAME]
        other = [one for one in samples if one.scene != sample.scene]
        assert CONFIG.paste is not None
        paster = Paster(build_database(other, CONFIG.paste), CONFIG.paste, until_position=1)
        drawn = draw_frame_aug(CONFIG, sample.calibration, spec.cameras, 256 / 704, SEED)
        figure = Figure(figsize=(12, 8.4), dpi=72, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2, height_ratios=[256 / 704, 1])
        _column(axes[:, 0], sample, spec, FrameAug(), None, "as deployed")
        _column(axes[:, 1], sample, spec, drawn, paster, "augmented")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, format="png", metadata={"Software": None})


def _column(axes: Any, sample: Sample, spec: GraphSpec, drawn: FrameAug, paster: Paster | None, title: str) -> None:
    points, seen = load_sample_points(sample), sample.num_points > 0
    boxes, pasted = sample.boxes[seen], sample.boxes[:0]
    if paster is not None:
        points, pasted, _ = paster(points, sample.boxes, sample.labels, np.random.default_rng(SEED))
    _draw_image(axes[0], sample, spec, drawn, boxes, pasted)
    axes[0].set_title(f"{CAMERA}, {title}", fontsize=12)
    if drawn.bev_aug is not None:
        points = augment_points(points, drawn.bev_aug)
        boxes, pasted = augment_boxes(boxes, drawn.bev_aug), augment_boxes(pasted, drawn.bev_aug)
    _draw_bev(axes[1], points, boxes, pasted)
    axes[1].set_title(f"BEV, {title}", fontsize=12)


def _draw_image(
    axes: Axes,
    sample: Sample,
    spec: GraphSpec,
    drawn: FrameAug,
    boxes: NDArray[np.float64],
    pasted: NDArray[np.float64],
) -> None:
    from matplotlib.collections import LineCollection

    img_aug = drawn.img_aug(spec)
    image = Preprocessor(spec).images(load_sample_images(sample, spec.cameras), img_aug)[0]
    axes.imshow(image, extent=(0, spec.image_width_px, spec.image_height_px, 0))
    calibration = sample.calibration.select(spec.cameras)
    raw_hw = calibration.image_sizes_px[0]
    lidar2img = fit_image(raw_hw, spec).matrix(raw_hw) @ calibration.lidar2img()[0]
    if img_aug is not None:
        lidar2img = img_aug[CAMERA] @ lidar2img
    for some, color in ((boxes, OWN), (pasted, PASTED)):
        lines, visible = wireframe.project_segments(wireframe.segments(some), lidar2img, near_m=1.0)
        axes.add_collection(LineCollection(list(lines[visible]), colors=color, linewidths=1.2))
    axes.set(xlim=(0, spec.image_width_px), ylim=(spec.image_height_px, 0), xticks=[], yticks=[])


def _draw_bev(axes: Axes, points: NDArray[np.float32], boxes: NDArray[np.float64], pasted: NDArray[np.float64]) -> None:
    from matplotlib.collections import LineCollection

    axes.scatter(points[:, 0], points[:, 1], s=0.8, c="#48546b", alpha=0.5, linewidths=0)
    for some, color in ((boxes, OWN), (pasted, PASTED)):
        lines = [*wireframe.ground_outline(some), *wireframe.ground_heading(some, overhang_m=0.7)]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=1.8))
    axes.set(xlim=(-RANGE_M, RANGE_M), ylim=(-RANGE_M, RANGE_M), aspect="equal")
    axes.set_xlabel("x (m)")
    axes.set_ylabel("y (m)")


if __name__ == "__main__":
    draw()
