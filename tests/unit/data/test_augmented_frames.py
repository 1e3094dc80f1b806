"""Whole frames of the real dataset class: what the warped pixels, tables, points and targets show of marked objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, ImageAugmentationConfig, PasteConfig
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.augment import FrameAug, draw_frame_aug
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.object_database import build_database
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.geometry.boxes import augment_boxes, box_corners
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import fit_image
from bevkd_deploy.geometry.frames import project, transform_points, yaw_pose
from bevkd_deploy.geometry.grid import BevGrid

MakeConfig = Callable[..., ModelConfig]

CAMERAS = ("CAM_FRONT", "CAM_BACK")

#: Axes of a camera that looks along the lidar's +x: right is -y, down is -z.
LOOKING_AHEAD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0.2], [1, 0, 0, 0], [0, 0, 0, 1]])

#: Raw images of two sizes and two shapes.
CALIBRATION = Calibration(
    CAMERAS,
    np.array([[[210.0, 0, 155], [0, 210, 120], [0, 0, 1]], [[400.0, 0, 330], [0, 410, 215], [0, 0, 1]]]),
    np.stack([LOOKING_AHEAD, LOOKING_AHEAD @ yaw_pose(np.pi, [0.0, 0.0, 0.0])]),
    ((220, 320), (400, 640)),
)

#: One object ahead and one behind, off every axis and diagonal.
BOXES = np.array(
    [[9.0, 1.7, -0.4, 3.0, 1.6, 1.4, 0.7, 2.0, -1.0], [-11.0, 2.3, -0.6, 4.0, 1.8, 1.6, -2.1, np.nan, np.nan]]
)
LABELS = np.array([0, 7])

VIEWS = ImageAugmentationConfig(scale=(0.75, 1.2), bottom_crop=(0.0, 0.1), flip=True, rotation_rad=0.25)
BEV = AugmentationConfig(flip_x=True, flip_y=True, rotation_rad=0.6, scale=(0.9, 1.1), translation_m=(0.5, 0.5, 0.2))

AUGMENTATIONS = {
    "nothing": AugmentationConfig(),
    "scale": AugmentationConfig(image=ImageAugmentationConfig(scale=(0.75, 1.2))),
    "crop": AugmentationConfig(image=ImageAugmentationConfig(bottom_crop=(0.0, 0.12))),
    "flip": AugmentationConfig(image=ImageAugmentationConfig(flip=True)),
    "rotation": AugmentationConfig(image=ImageAugmentationConfig(rotation_rad=0.25)),
    "BEV": BEV,
    "all": BEV.model_copy(update={"image": VIEWS}),
}


def make_sample(folder: Path, marks: dict[str, np.ndarray]) -> Sample:
    """A frame whose images are black but for a smooth bright spot at a raw pixel of each camera."""
    paths = {}
    for camera, (height, width) in zip(CAMERAS, CALIBRATION.image_sizes_px, strict=True):
        rows, columns = np.indices((height, width)) + 0.5  # pixel i covers [i, i + 1)
        u, v = marks[camera]
        spot = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * (width / 100) ** 2))
        paths[camera] = folder / f"{camera}.png"
        cv2.imwrite(str(paths[camera]), np.repeat(spot.round().astype(np.uint8)[:, :, None], 3, axis=2))
    points = np.zeros((24, 5), dtype=np.float32)
    rng = np.random.default_rng(0)
    for row, box in enumerate(BOXES):
        points[12 * row : 12 * row + 12, :3] = box[:3] + rng.uniform(-0.5, 0.5, (12, 3))
    points.tofile(folder / "points.bin")
    return Sample(
        token="marked", scene="s", timestamp_s=0.0, image_paths=paths, points_path=folder / "points.bin",
        calibration=CALIBRATION, lidar2ego=np.eye(4), ego2global=np.eye(4), boxes=BOXES, labels=LABELS,
        num_points=np.array([12, 12]), attributes=("", ""),
    )  # fmt: skip


@pytest.fixture(scope="module")
def spec(tiny_model_config: MakeConfig) -> GraphSpec:
    """24 rows and 32 columns of 1 m, images of 96 x 160."""
    config = tiny_model_config(
        pillar_size_m=0.5, stride=2, camera={"image_size_px": (96, 160), "depth_bins": 24},
        lidar={"max_pillars": 60, "max_points": 12},
    )  # fmt: skip
    return config.graph_spec(CAMERAS)


def dataset_of(
    sample: Sample, specs: Mapping[str, GraphSpec | SensorSpec], augmentation: AugmentationConfig, **more: Any
) -> FrameDataset:
    return FrameDataset(
        [sample], specs, target_of=next(iter(specs)), min_radius_cells=1, augmentation=augmentation, seed=4, **more
    )


def drawn_for(augmentation: AugmentationConfig, spec: GraphSpec, position: int) -> FrameAug:
    aspect = spec.image_height_px / spec.image_width_px
    return draw_frame_aug(augmentation, CALIBRATION, CAMERAS, aspect, [4, position])


def lidar2augmented(drawn: FrameAug, spec: GraphSpec, camera: int) -> np.ndarray:
    raw_hw = CALIBRATION.image_sizes_px[camera]
    img_aug = drawn.img_aug(spec)
    matrix = fit_image(raw_hw, spec).matrix(raw_hw) @ CALIBRATION.lidar2img()[camera]
    return matrix if img_aug is None else img_aug[CAMERAS[camera]] @ matrix


def middle_of(image: np.ndarray) -> np.ndarray:
    brightness = image[:, :, 0].astype(float)
    rows, columns = np.indices(brightness.shape) + 0.5
    return np.array([(columns * brightness).sum(), (rows * brightness).sum()]) / brightness.sum()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_corners_land_where_the_warped_pixels_show_them(
    tmp_path: Path, spec: GraphSpec, augmentation: AugmentationConfig
) -> None:
    """A corner of each box is marked in the raw image, and found in the network's image at its projection."""
    checked = 0
    for corner in range(8):
        points = [box_corners(BOXES[row : row + 1])[0, corner] for row in range(2)]
        marks = [project(points[row][None], CALIBRATION.lidar2img()[row])[0][0] for row in range(2)]
        sample = make_sample(tmp_path, dict(zip(CAMERAS, marks, strict=True)))
        frame = dataset_of(sample, {"student": spec}, augmentation)[corner]
        drawn = drawn_for(augmentation, spec, corner)
        for camera in range(2):
            (expected,), (depth_m,) = project(points[camera][None], lidar2augmented(drawn, spec, camera))
            assert depth_m == pytest.approx(project(points[camera][None], CALIBRATION.lidar2img()[camera])[1][0])
            if (expected > 8).all() and expected[0] < 152 and expected[1] < 88:  # all of the spot is in the image
                found = middle_of(frame["inputs"]["student"]["images"][camera].numpy())
                assert found == pytest.approx(expected, abs=0.06)
                checked += 1
    assert checked > 6


@pytest.mark.parametrize("name", ["BEV", "all"])
def test_targets_peak_at_the_moved_centres(tmp_path: Path, spec: GraphSpec, name: str) -> None:
    sample = make_sample(tmp_path, {camera: np.array([10.0, 10.0]) for camera in CAMERAS})
    dataset = dataset_of(sample, {"student": spec}, AUGMENTATIONS[name])
    grid = BevGrid.bev(spec)
    cells = set()
    for position in range(12):
        bev_aug = drawn_for(AUGMENTATIONS[name], spec, position).bev_aug
        assert bev_aug is not None
        moved = augment_boxes(BOXES, bev_aug)
        index, inside = grid.locate(moved[:, :2])
        heatmap = dataset[position]["targets"]["heatmap"].numpy()
        peaks = {(int(label), int(y) * 32 + int(x)) for label, y, x in np.argwhere(heatmap == 1)}
        assert peaks == {
            (int(label), int(cell)) for label, cell, is_in in zip(LABELS, index, inside, strict=True) if is_in
        }
        cells |= peaks
    assert len(cells) > 15


def test_networks_of_two_sizes_see_one_view(tmp_path: Path, spec: GraphSpec, tiny_model_config: MakeConfig) -> None:
    """Twice the size: the picture is the same, and so are the tables where the feature maps are as large."""
    larger = tiny_model_config(
        pillar_size_m=0.25, stride=4, camera={"image_size_px": (192, 320), "feature_stride": 16, "depth_bins": 24},
        lidar={"max_pillars": 60, "max_points": 12},
    )  # fmt: skip
    teacher = larger.graph_spec(CAMERAS)
    marks = [project(BOXES[row : row + 1, :3], CALIBRATION.lidar2img()[row])[0][0] for row in range(2)]
    sample = make_sample(tmp_path, dict(zip(CAMERAS, marks, strict=True)))
    dataset = dataset_of(sample, {"student": spec, "teacher": teacher}, AUGMENTATIONS["all"])
    checked = 0
    for position in range(6):
        inputs = dataset[position]["inputs"]
        for table in ("lut_pixel", "lut_depth"):
            assert torch.equal(inputs["student"][table], inputs["teacher"][table])
        for camera in range(2):
            small, large = (middle_of(inputs[who]["images"][camera].numpy()) for who in ("student", "teacher"))
            if (small > 8).all() and small[0] < 152 and small[1] < 88:
                assert large / 2 == pytest.approx(small, abs=0.05)
                checked += 1
        points = [inputs[who]["pillars"][inputs[who]["pillar_count"] > 0].reshape(-1, 5) for who in inputs]
        real = [{tuple(point.tolist()) for point in cloud if point.any()} for cloud in points]
        assert real[0] == real[1] and len(real[0]) > 8
    assert checked > 4


def test_without_views_images_are_the_deployed_ones(tmp_path: Path, spec: GraphSpec) -> None:
    sample = make_sample(tmp_path, {camera: np.array([120.3, 140.8]) for camera in CAMERAS})
    plain = dataset_of(sample, {"student": spec}, AUGMENTATIONS["nothing"])[0]["inputs"]["student"]
    moved = dataset_of(sample, {"student": spec}, BEV)[0]["inputs"]["student"]
    assert torch.equal(plain["images"], moved["images"])
    assert not torch.equal(plain["lut_pixel"], moved["lut_pixel"])
    nothing = BEV.model_copy(update={"image": ImageAugmentationConfig()})
    again = dataset_of(sample, {"student": spec}, nothing)[0]["inputs"]["student"]
    assert all(torch.equal(value, again[key]) for key, value in moved.items())


def test_a_missing_camera_is_black_unread_and_changes_no_other_draw(tmp_path: Path, spec: GraphSpec) -> None:
    sample = make_sample(tmp_path, {"CAM_FRONT": np.array([160.0, 110.0]), "CAM_BACK": np.array([320.0, 180.0])})
    blind = replace(
        sample, image_paths={"CAM_BACK": sample.image_paths["CAM_BACK"]}, calibration=CALIBRATION.select(("CAM_BACK",))
    )
    whole = dataset_of(sample, {"student": spec}, AUGMENTATIONS["all"])[3]["inputs"]["student"]
    without = dataset_of(blind, {"student": spec}, AUGMENTATIONS["all"])[3]["inputs"]["student"]
    assert not without["images"][0].any()
    assert torch.equal(without["images"][1], whole["images"][1])
    height, width = spec.feature_shape_hw
    seen = without["lut_pixel"][without["lut_pixel"] < spec.pixel_dump_index]
    assert len(seen) > 50 and (seen >= height * width).all()
    back = (whole["lut_pixel"] >= height * width) & (whole["lut_pixel"] < spec.pixel_dump_index)
    assert torch.equal(without["lut_pixel"][back], whole["lut_pixel"][back])


def test_a_frame_without_cameras(tmp_path: Path, spec: GraphSpec) -> None:
    sample = make_sample(tmp_path, {camera: np.array([10.0, 10.0]) for camera in CAMERAS})
    whole = dataset_of(sample, {"student": spec}, AUGMENTATIONS["all"])[3]
    blind = replace(sample, image_paths={}, calibration=CALIBRATION.select(()))
    frame = dataset_of(blind, {"student": spec}, AUGMENTATIONS["all"])[3]
    assert not frame["inputs"]["student"]["images"].any()
    assert (frame["inputs"]["student"]["lut_pixel"] == spec.pixel_dump_index).all()
    assert torch.equal(frame["inputs"]["student"]["pillars"], whole["inputs"]["student"]["pillars"])
    assert torch.equal(frame["targets"]["heatmap"], whole["targets"]["heatmap"])


def test_nothing_is_pasted_into_a_frame_without_lidar(tmp_path: Path, spec: GraphSpec) -> None:
    sample = make_sample(tmp_path, {camera: np.array([10.0, 10.0]) for camera in CAMERAS})
    other = replace(sample, boxes=BOXES + np.array([3.0, 3.0, 0, 0, 0, 0, 0, 0, 0]), token="other")
    points = np.fromfile(sample.points_path, np.float32).reshape(-1, 5)
    (points + np.array([3, 3, 0, 0, 0], np.float32)).tofile(tmp_path / "other.bin")
    other = replace(other, points_path=tmp_path / "other.bin")
    config = PasteConfig(up_to={"car": 3, "pedestrian": 3})
    paster = Paster(build_database([other], config), config, until_position=99)
    augmentation = AUGMENTATIONS["all"].model_copy(update={"paste": config})
    with_lidar = dataset_of(sample, {"student": spec}, augmentation, paster=paster)[3]
    without = dataset_of(replace(sample, points_path=None), {"student": spec}, augmentation, paster=paster)[3]
    assert int(with_lidar["targets"]["mask"][:, 0].sum()) > int(without["targets"]["mask"][:, 0].sum()) > 0
    assert not without["inputs"]["student"]["pillar_count"].any()
    assert torch.equal(with_lidar["inputs"]["student"]["images"], without["inputs"]["student"]["images"])


def test_a_teacher_on_raw_sensors_sees_the_same_frame(tmp_path: Path, spec: GraphSpec) -> None:
    """The matrices of its inputs lead from an augmented corner to the pixel that shows it; the points are the same."""
    sensors = SensorSpec(
        cameras=CAMERAS, image_height_px=96, image_width_px=144, image_scale=0.55, image_resize="opencv_bilinear",
        range_m=(-24.0, -24.0, -3.0, 24.0, 24.0, 3.0), bev_cell_m=1.0, classes=("car",), top_k=4,
    )  # fmt: skip
    checked = 0
    for augmentation in AUGMENTATIONS.values():
        for corner in range(4):
            points = [box_corners(BOXES[row : row + 1])[0, corner] for row in range(2)]
            marks = [project(points[row][None], CALIBRATION.lidar2img()[row])[0][0] for row in range(2)]
            sample = make_sample(tmp_path, dict(zip(CAMERAS, marks, strict=True)))
            frame = dataset_of(sample, {"student": spec, "teacher": sensors}, augmentation)[corner]
            inputs = {name: value.double().numpy() for name, value in frame["inputs"]["teacher"].items()}
            drawn = drawn_for(augmentation, spec, corner)
            lidar_aug = np.eye(4) if drawn.bev_aug is None else drawn.bev_aug
            np.testing.assert_allclose(inputs["lidar_aug"], lidar_aug, atol=1e-6)
            assert inputs["point_count"] == len(inputs["points"]) == 24
            raw = np.fromfile(tmp_path / "points.bin", np.float32).reshape(-1, 5)[:, :3]
            np.testing.assert_allclose(inputs["points"][:, :3], transform_points(lidar_aug, raw), atol=1e-4)
            for camera in range(2):
                augmented = transform_points(lidar_aug, points[camera][None])
                lidar = transform_points(np.linalg.inv(inputs["lidar_aug"]), augmented)
                np.testing.assert_allclose(
                    np.linalg.inv(inputs["cam2lidar"][camera]), CALIBRATION.lidar2cam[camera], atol=1e-5
                )
                np.testing.assert_allclose(inputs["cam2img"][camera, :3, :3], CALIBRATION.cam2img[camera], rtol=1e-6)
                (pixel,), _ = project(lidar, inputs["lidar2img"][camera])
                expected = (inputs["img_aug"][camera] @ [*pixel, 0.0, 1.0])[:2]
                if (expected > 8).all() and expected[0] < 136 and expected[1] < 88:
                    found = middle_of(inputs["images"][camera])
                    assert found == pytest.approx(expected, abs=0.1)
                    checked += 1
    assert checked > 15
