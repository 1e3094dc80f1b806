"""Inputs of a teacher that takes sensors as they are: the resize, the crop, missing cameras, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.sensor_spec import SensorSpec
from bevkd_deploy.data.dataset import batched
from bevkd_deploy.data.sensor_inputs import SensorPreprocessor, fit_sensor_image
from bevkd_deploy.geometry.calibration import Calibration

CAMERAS = ("CAM_FRONT", "CAM_BACK")
CALIBRATION = Calibration(
    CAMERAS,
    np.tile([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]], (2, 1, 1)),
    np.stack([np.array([[0.0, -1, 0, 0], [0, 0, -1, 0.2], [1, 0, 0, 0], [0, 0, 0, 1]])] * 2),
    ((900, 1600), (900, 1600)),
)


def bevfusion_spec(**changes: object) -> SensorSpec:
    """Images and range of mmdet3d's nuScenes configuration."""
    given = {
        "cameras": CAMERAS, "image_height_px": 256, "image_width_px": 704, "image_scale": 0.48,
        "range_m": (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), "bev_cell_m": 0.6, "axis_order": "xy", "classes": ("car",),
        "top_k": 200, **changes,
    }  # fmt: skip
    return SensorSpec.model_validate(given)


def picture(seed: int = 0, hw: tuple[int, int] = (900, 1600)) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((hw[1], hw[0]), Image.Resampling.BOX, reducing_gap=4.0))


def test_images_are_resized_and_cropped_as_bevfusions_test_pipeline_does() -> None:
    """Its ImageAug3D: Pillow's default resize by 0.48, then the columns 32 to 736 and the rows 176 to 432."""
    image = picture()
    made = SensorPreprocessor(bevfusion_spec()).images([image, image])
    expected = np.asarray(Image.fromarray(image).resize((768, 432)).crop((32, 176, 736, 432)))
    np.testing.assert_array_equal(made[0], expected)
    feed = SensorPreprocessor(bevfusion_spec())([image, image], np.zeros((1, 5), np.float32), CALIBRATION)
    np.testing.assert_allclose(
        feed["img_aug"][0], [[0.48, 0, 0, -32], [0, 0.48, 0, -176], [0, 0, 1, 0], [0, 0, 0, 1]], rtol=1e-6
    )


def test_only_points_inside_the_range_are_left() -> None:
    points = np.array(
        [[0.0, 0, 0, 9, 0], [54.0, 0, 0, 9, 0], [-53.99, 0, 2.99, 9, 0.1], [0, 0, 3.0, 9, 0], [0, 60, 0, 9, 0]],
        np.float32,
    )
    images = [picture(), picture(1)]
    feed = SensorPreprocessor(bevfusion_spec())(images, points, CALIBRATION)
    np.testing.assert_array_equal(feed["points"], points[[0, 2]])
    assert feed["point_count"] == 2
    whole = SensorPreprocessor(bevfusion_spec(drop_outside=False))(images, points, CALIBRATION)
    np.testing.assert_array_equal(whole["points"], points)


def test_a_missing_camera_is_black_and_looks_nowhere() -> None:
    feed = SensorPreprocessor(bevfusion_spec())(
        [None, picture()], np.zeros((0, 5), np.float32), CALIBRATION.select(["CAM_BACK"])
    )
    assert not feed["images"][0].any() and feed["images"][1].any()
    assert all(np.isfinite(value).all() for value in feed.values())
    points = np.array([[3.0, -2.0, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0]])
    projected = points @ feed["lidar2img"][0].T.astype(np.float64)
    assert (projected[:, :2] / projected[:, 2:3] < -1e5).all()
    assert np.abs(feed["cam2lidar"][0, :3, 3]).min() > 1e5
    assert all(np.linalg.det(feed[name][0]) == pytest.approx(1) for name in ("cam2img", "cam2lidar", "img_aug"))


def test_a_lidar_only_network_gets_points_alone() -> None:
    spec = bevfusion_spec(cameras=(), image_height_px=0, image_width_px=0, image_scale=None)
    feed = SensorPreprocessor(spec)([], np.zeros((3, 5), np.float32), CALIBRATION)
    assert set(feed) == {"points", "point_count"}


def test_a_batch_fills_short_clouds_up() -> None:
    preprocess = SensorPreprocessor(bevfusion_spec())
    images = [picture(), picture(1)]
    clouds = [np.full((count, 5), 1.0, np.float32) for count in (2, 5)]
    frames = [
        {key: torch.from_numpy(value) for key, value in preprocess(images, cloud, CALIBRATION).items()}
        for cloud in clouds
    ]
    frames[1] = {**frames[1], "points": frames[1]["points"][:0], "point_count": torch.tensor(0)}
    batch = batched(frames)
    assert batch["points"].shape == (2, 2, 5) and batch["point_count"].tolist() == [2, 0]
    assert not batch["points"][1].any()
    assert batch["images"].shape == (2, 2, 256, 704, 3) and batch["lidar_aug"].shape == (2, 4, 4)


@pytest.mark.parametrize("hw", [(450, 800), (400, 1600)])
def test_an_image_that_is_too_small_is_refused(hw: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=r"smaller than the crop of 704x256.*teacher.geometry.image_scale"):
        fit_sensor_image(hw, bevfusion_spec())


def test_the_number_of_images_and_their_kind_are_checked() -> None:
    preprocess = SensorPreprocessor(bevfusion_spec())
    with pytest.raises(DataError, match="expected 2 images"):
        preprocess.images([picture()])
    with pytest.raises(DataError, match="CAM_BACK: expected a uint8"):
        preprocess.images([picture(), picture().astype(np.float32)])


@pytest.mark.parametrize("scale", [None, 0.48, 0.7])
def test_views_are_drawn_in_units_of_the_raw_image(scale: float | None) -> None:
    """Whatever a network crops: 1 is the raw width, the origin its lower left corner; so all networks turn alike."""
    spec = bevfusion_spec(image_scale=scale)
    to_network = SensorPreprocessor(spec).view2network(CALIBRATION)["CAM_BACK"]
    raw2view = np.linalg.inv(to_network) @ fit_sensor_image((900, 1600), spec).matrix((900, 1600))
    for u, v in ((0.0, 900.0), (1600.0, 900.0), (320.0, 100.0)):
        view = raw2view @ [2 * u, 2 * v, 2.0, 1.0]
        np.testing.assert_allclose(view[:2] / view[2], [u / 1600, (v - 900) / 1600], atol=1e-9)
