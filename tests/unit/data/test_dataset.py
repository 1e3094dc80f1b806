"""Frames and batches: one augmentation for every network, drawn by position alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, ImageAugmentationConfig
from bevkd_deploy.data.augment import draw_frame_aug
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_points
from bevkd_deploy.data.source import open_split
from bevkd_deploy.geometry.boxes import points_in_boxes
from bevkd_deploy.geometry.camera_lut import fit_image
from bevkd_deploy.geometry.frames import invert, project, transform_points
from bevkd_deploy.geometry.grid import BevGrid
from bevkd_deploy.runtime.preprocess import Preprocessor

MakeConfig = Callable[..., ModelConfig]

AUGMENTATION = AugmentationConfig(
    flip_x=True, flip_y=True, rotation_rad=0.7, scale=(0.9, 1.1), translation_m=(0.6, 1.2, 0.1)
)
VIEWS = ImageAugmentationConfig(scale=(0.8, 1.3), bottom_crop=(0.0, 0.1), flip=True, rotation_rad=0.2)
WITH_VIEWS = AUGMENTATION.model_copy(update={"image": VIEWS})


@pytest.fixture(scope="module")
def samples(tiny_world: Path) -> list[Sample]:
    return open_split(DataConfig(source="nuscenes", root="unused", version="v1.0-trainval"), tiny_world, "train")


def dataset_of(samples: list[Sample], *specs: GraphSpec, **changes: Any) -> FrameDataset:
    named = dict(zip(("student", "teacher"), specs, strict=False))
    return FrameDataset(samples, named, target_of="student", min_radius_cells=1, **changes)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[key]) for key, value in first.items())


def real_points(inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The points inside the pillars, in one order whatever the pillars are."""
    slots = torch.arange(inputs["pillars"].shape[1]) < inputs["pillar_count"][:, None]
    points = inputs["pillars"][slots].numpy().astype(np.float64)
    return points[np.lexsort(points.T)]


def test_inputs_are_those_of_the_deployed_preprocessing(samples: list[Sample], tiny_spec: GraphSpec) -> None:
    from bevkd_deploy.data.sensor_files import load_image

    frame = dataset_of(samples, tiny_spec)[1]
    sample = samples[1]
    images = [load_image(sample.image_paths[camera]) for camera in tiny_spec.cameras]
    expected = Preprocessor(tiny_spec)(images, load_points(sample.points_path), sample.calibration)
    assert frame["token"] == sample.token
    assert list(frame["inputs"]["student"]) == [tensor.name for tensor in tiny_spec.inputs()]
    for tensor in tiny_spec.inputs():
        made = frame["inputs"]["student"][tensor.name]
        assert tuple(made.shape) == tensor.shape
        assert str(made.dtype) == f"torch.{tensor.dtype}"
        assert np.array_equal(made.numpy(), expected[tensor.name])


def test_networks_of_one_geometry_share_their_arrays(
    samples: list[Sample], tiny_spec: GraphSpec, tiny_model_config: MakeConfig
) -> None:
    longer = tiny_model_config(head={"top_k": 40}).graph_spec(tiny_spec.cameras)
    dataset = dataset_of(samples, tiny_spec, longer, augmentation=AUGMENTATION)
    frames = [dataset[0], dataset[1]]
    assert frames[0]["inputs"]["student"] is frames[0]["inputs"]["teacher"]
    batch = collate(frames)
    assert batch["inputs"]["student"] is batch["inputs"]["teacher"]
    other = tiny_model_config(camera={"depth_bins": 7}).graph_spec(tiny_spec.cameras)
    apart = dataset_of(samples, tiny_spec, other)[0]["inputs"]
    assert apart["student"] is not apart["teacher"]
    assert int(apart["teacher"]["lut_depth"].max()) == other.depth_dump_index


def test_student_and_teacher_see_the_same_augmented_world(samples: list[Sample], tiny_model_config: MakeConfig) -> None:
    roomy = {"max_pillars": 3000, "max_points": 1200}
    student = tiny_model_config(lidar=roomy).graph_spec(CAMERA_NAMES)
    finer = tiny_model_config(pillar_size_m=0.5, stride=4, lidar=roomy).graph_spec(CAMERA_NAMES)
    dataset = dataset_of(samples, student, finer, augmentation=AUGMENTATION)
    plain = dataset_of(samples, student)[2]["inputs"]["student"]
    inputs = dataset[2]["inputs"]
    points = real_points(inputs["student"])
    assert len(points) > 500
    assert not torch.equal(inputs["student"]["pillar_index"], inputs["teacher"]["pillar_index"])
    assert np.array_equal(points, real_points(inputs["teacher"]))
    for table in ("lut_pixel", "lut_depth"):  # one BEV grid, one augmentation: one table
        assert torch.equal(inputs["student"][table], inputs["teacher"][table])
        assert not torch.equal(inputs["student"][table], plain[table])
    assert torch.equal(inputs["student"]["images"], plain["images"])


@pytest.mark.parametrize("augmentation", [AUGMENTATION, WITH_VIEWS], ids=["BEV", "BEV and images"])
def test_an_augmented_box_keeps_its_points_and_its_pixels(
    samples: list[Sample], tiny_model_config: MakeConfig, augmentation: AugmentationConfig
) -> None:
    """Targets, pillars and camera tables must move together: each object is traced back through all three."""
    config = tiny_model_config(
        range_m=(-24.0, -20.0, -4.0, 24.0, 20.0, 4.0),
        pillar_size_m=0.5,
        stride=1,
        lidar={"max_pillars": 8000, "max_points": 300},
        camera={"image_size_px": (128, 256), "feature_stride": 4, "depth_bins": 48, "depth_m": (1.0, 25.0)},
    )
    config = config.model_copy(update={"bev": config.bev.model_copy(update={"heights_m": (-2.0, -1.0, 0.0, 1.0, 2.0)})})
    spec = config.graph_spec(CAMERA_NAMES)
    dataset = dataset_of(samples, spec, augmentation=augmentation, seed=5)
    with_points = traced = 0
    for position in (0, 5, 10):
        sample, frame = samples[position % 4], dataset[position]
        drawn = draw_frame_aug(augmentation, sample.calibration, spec.cameras, 0.5, [5, position])
        bev_aug = drawn.bev_aug
        boxes = boxes_of(frame["targets"], spec)
        centers = transform_points(invert(bev_aug), boxes[:, :3])
        scale = bev_aug[2, 2]

        before = points_in_boxes(load_points(sample.points_path), sample.boxes).sum(axis=0)
        after = points_in_boxes(real_points(frame["inputs"]["student"]), boxes).sum(axis=0)
        for center, box, count in zip(centers, boxes, after, strict=True):
            distance_m = np.linalg.norm(sample.boxes[:, :3] - center, axis=1)
            nearest = int(distance_m.argmin())
            assert distance_m[nearest] < 1e-4
            assert sample.boxes[nearest, 3:6] * scale == pytest.approx(box[3:6], rel=1e-5)
            if (np.abs(box[:2]) + np.hypot(*box[3:5]) / 2 < (24, 20)).all():  # the canvas does not cut it
                assert abs(before[nearest] - count) <= 2  # a point on a face
                with_points += count > 5
        traced += trace_into_cameras(sample, frame["inputs"]["student"], boxes, centers, spec, drawn.img_aug(spec))
    assert with_points > 10
    assert traced > 15


def boxes_of(targets: dict[str, torch.Tensor], spec: GraphSpec) -> np.ndarray:
    """Boxes [N, 9] that the targets describe, in the augmented frame."""
    grid = BevGrid.bev(spec)
    slots = targets["mask"][:, 0] > 0
    cell, values = targets["cell"][slots].numpy(), targets["values"][slots].numpy().astype(np.float64)
    column, row = cell % grid.shape_yx[1], cell // grid.shape_yx[1]
    x = grid.x_range_m[0] + (column + values[:, 0]) * grid.cell_m
    y = grid.y_range_m[0] + (row + values[:, 1]) * grid.cell_m
    yaw = np.arctan2(values[:, 6], values[:, 7])
    return np.column_stack([x, y, values[:, 2], np.exp(values[:, 3:6]), yaw, values[:, 8:]])


def trace_into_cameras(
    sample: Sample,
    inputs: dict[str, torch.Tensor],
    boxes: np.ndarray,
    centers: np.ndarray,
    spec: GraphSpec,
    img_aug: dict[str, np.ndarray] | None,
) -> int:
    """Compare the pixel and depth that a box's BEV cell reads with the projection of the box; returns how many."""
    index, _ = BevGrid.bev(spec).locate(boxes[:, :2])
    height, width = spec.feature_shape_hw
    traced = 0
    for box, center, cell in zip(boxes, centers, index, strict=True):
        level = int(np.abs(np.array(spec.heights_m) - box[2]).argmin())
        pixel, entry = int(inputs["lut_pixel"][level, cell]), int(inputs["lut_depth"][level, cell])
        if pixel == spec.pixel_dump_index or np.hypot(*center[:2]) < 6:
            continue
        camera, row, column = pixel // (height * width), pixel // width % height, pixel % width
        raw_hw = sample.calibration.image_sizes_px[camera]
        raw2network = fit_image(raw_hw, spec).matrix(raw_hw)
        if img_aug is not None:
            raw2network = img_aug[spec.cameras[camera]] @ raw2network
        network2raw = invert(raw2network)
        scaled = network2raw @ np.array([(column + 0.5) * 4, (row + 0.5) * 4, 1.0, 1.0])
        pixels, depth_m = project(center[None], sample.calibration.lidar2img()[camera])
        focal_px = sample.calibration.cam2img[camera, 0, 0]
        # Half a cell sideways or half a height step, and half a feature cell.
        zoom = np.sqrt(np.abs(np.linalg.det(raw2network[:2, :2]))) if img_aug else 256 / raw_hw[1]
        allowed_px = 0.6 * focal_px / depth_m[0] * 1.2 + 2.5 / zoom
        assert np.abs(pixels[0] - scaled[:2]).max() < allowed_px
        assert entry // spec.depth_bins == pixel
        assert abs(1.0 + (entry % spec.depth_bins + 0.5) * 0.5 - depth_m[0]) < 1.0
        traced += 1
    return traced


def test_a_draw_depends_on_seed_and_position_alone(samples: list[Sample], tiny_spec: GraphSpec) -> None:
    dataset = dataset_of(samples, tiny_spec, augmentation=WITH_VIEWS)
    first = dataset[1]
    dataset[0], dataset[7]
    again = dataset[1]
    fresh = dataset_of(samples, tiny_spec, augmentation=WITH_VIEWS, cache_sensors=True)
    cached = (fresh[1], fresh[1])
    for frame in (again, *cached):
        assert same(frame["inputs"]["student"], first["inputs"]["student"])
        assert same(frame["targets"], first["targets"])
    next_epoch = dataset[1 + len(samples)]
    assert next_epoch["token"] == first["token"] == samples[1].token
    assert not torch.equal(next_epoch["targets"]["values"], first["targets"]["values"])
    assert not torch.equal(next_epoch["inputs"]["student"]["images"], first["inputs"]["student"]["images"])
    other_seed = dataset_of(samples, tiny_spec, augmentation=WITH_VIEWS, seed=1)[1]
    assert not torch.equal(other_seed["targets"]["values"], first["targets"]["values"])


def test_without_augmentation_a_frame_is_always_the_same(samples: list[Sample], tiny_spec: GraphSpec) -> None:
    dataset = dataset_of(samples, tiny_spec, augmentation=AugmentationConfig())
    assert same(dataset[2]["inputs"]["student"], dataset[2 + len(samples)]["inputs"]["student"])
    assert same(dataset[2]["targets"], dataset_of(samples, tiny_spec)[2]["targets"])


def test_objects_without_points_are_not_taught(samples: list[Sample], tiny_spec: GraphSpec) -> None:
    taught = dataset_of(samples, tiny_spec)[0]["targets"]["mask"][:, 0].sum()
    assert taught > 3
    unseen = replace(samples[0], num_points=np.zeros_like(samples[0].num_points))
    assert not dataset_of([unseen], tiny_spec)[0]["targets"]["heatmap"].any()


def test_collate_stacks_in_order(samples: list[Sample], tiny_spec: GraphSpec) -> None:
    dataset = dataset_of(samples, tiny_spec)
    frames = [dataset[2], dataset[0], dataset[1]]
    batch = collate(frames)
    assert batch["token"] == [samples[2].token, samples[0].token, samples[1].token]
    for row, frame in enumerate(frames):
        assert same({k: v[row] for k, v in batch["inputs"]["student"].items()}, frame["inputs"]["student"])
        assert same({k: v[row] for k, v in batch["targets"].items()}, frame["targets"])


@pytest.mark.parametrize("cache_sensors", [False, True])
def test_inputs_of_a_network_whose_output_is_known_are_left_out(
    samples: list[Sample], tiny_spec: GraphSpec, tiny_model_config: MakeConfig, cache_sensors: bool
) -> None:
    small = tiny_model_config(camera={"image_size_px": (64, 128)}).graph_spec(tiny_spec.cameras)
    whole = dataset_of(samples, tiny_spec, small, augmentation=AUGMENTATION)
    dataset = dataset_of(samples, tiny_spec, small, augmentation=AUGMENTATION, cache_sensors=cache_sensors)
    known = {1, 5}
    dataset.leave_out("teacher", known)
    for position in (1, 2, 5, 6):
        frame, full = dataset[position], whole[position]
        assert frame["position"] == position
        assert set(frame["inputs"]) == ({"student"} if position in known else {"student", "teacher"})
        for name, inputs in frame["inputs"].items():
            assert same(inputs, full["inputs"][name])
        assert same(frame["targets"], full["targets"])
        assert same(dataset.inputs_of(position, "teacher"), full["inputs"]["teacher"])
    known.clear()  # in the middle of a run: sensors that were kept do for the other network too
    assert same(dataset[1]["inputs"]["teacher"], whole[1]["inputs"]["teacher"])
    batch = collate([dataset[3], dataset[1]])
    assert batch["position"] == [3, 1]


def test_a_network_left_out_costs_no_preprocessing(
    samples: list[Sample], tiny_spec: GraphSpec, tiny_model_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tiny_model_config(camera={"image_size_px": (64, 128)}).graph_spec(tiny_spec.cameras)
    dataset = dataset_of(samples, tiny_spec, small)
    dataset.leave_out("teacher", {0})
    made: list[str] = []
    for step in ("images", "pillars", "tables"):
        done = getattr(Preprocessor, step)

        def note(self: Preprocessor, *args: Any, _step: str = step, _done: Any = done, **named: Any) -> Any:
            made.append(_step)
            return _done(self, *args, **named)

        monkeypatch.setattr(Preprocessor, step, note)
    dataset[0]
    assert sorted(made) == ["images", "pillars", "tables"]
    dataset[1]
    assert sorted(made) == ["images"] * 3 + ["pillars"] * 3 + ["tables"] * 3


@pytest.mark.parametrize(
    ("augmentation", "random"),
    [(None, False), (AUGMENTATION, True), (AugmentationConfig(image=VIEWS), True), (AugmentationConfig(), False)],
)
def test_positions_share_their_content_where_nothing_is_drawn(
    samples: list[Sample], tiny_spec: GraphSpec, augmentation: AugmentationConfig | None, random: bool
) -> None:
    dataset = dataset_of(samples, tiny_spec, augmentation=augmentation)
    assert dataset.is_random is random
    assert [dataset.content_of(position) for position in (3, 7)] == ([3, 7] if random else [3, 3])


def test_data_sets_of_the_same_frames_share_what_they_read(
    samples: list[Sample], tiny_spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = dataset_of(samples, tiny_spec, augmentation=AUGMENTATION, cache_sensors=True)
    again = dataset_of(samples, tiny_spec, augmentation=AUGMENTATION, cache_sensors=True, seed=5)
    fresh = dataset_of(samples, tiny_spec, augmentation=AUGMENTATION, seed=5)[1]
    assert len(first[1]["token"])
    again.share_sensors(first)
    monkeypatch.setattr("bevkd_deploy.data.dataset.load_sample", lambda *_: pytest.fail("read again"))
    assert same(again[1]["inputs"]["student"], fresh["inputs"]["student"])
    with pytest.raises(DataError, match="keep what they read"):
        dataset_of(samples, tiny_spec).share_sensors(first)
    others = (dataset_of(samples[1:], tiny_spec, cache_sensors=True),
              dataset_of(samples, tiny_spec, augmentation=WITH_VIEWS, cache_sensors=True))  # fmt: skip
    for other in others:
        with pytest.raises(DataError, match="same frames, cameras and kept images"):
            other.share_sensors(first)
