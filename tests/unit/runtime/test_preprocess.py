"""Sensor arrays to graph inputs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import build_luts, fit_image
from bevkd_deploy.geometry.frames import yaw_pose
from bevkd_deploy.runtime.preprocess import Preprocessor
from bevkd_deploy.runtime.stage_timer import StageTimer


def test_makes_exactly_the_graphs_inputs(tools, images, points, calibration) -> None:
    feed = Preprocessor(tools.spec)(images, points, calibration)
    assert [(name, array.dtype.name, array.shape) for name, array in feed.items()] == [
        (spec.name, spec.dtype, spec.shape) for spec in tools.spec.inputs()
    ]


@pytest.mark.parametrize("raw_hw", [(100, 128), (900, 1600), (33, 64), (32, 64), (24, 48), (30, 48), (97, 131)])
def test_images_are_resized_then_cropped_from_the_bottom(tools, raw_hw: tuple[int, int]) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (*raw_hw, 3), dtype=np.uint8)
    scaled_height = fit_image(raw_hw, tools.spec).scaled_hw_px[0]
    whole = cv2.resize(raw, (64, scaled_height), interpolation=cv2.INTER_LINEAR)
    got = Preprocessor(tools.spec).images([raw, raw])
    assert got.shape == (2, 32, 64, 3)
    difference = np.abs(got[0].astype(int) - whole[scaled_height - 32 :].astype(int))
    # Only the rows that are kept are resized: the same weights up to rounding, so the last bit at most.
    assert difference.max() <= 1
    np.testing.assert_array_equal(got[0], got[1])


def test_a_spot_lands_where_its_projection_says(tools) -> None:
    raw = np.zeros((900, 1600, 3), np.uint8)
    raw[600:640, 1000:1050] = 255
    spec = tools.spec.model_copy(update={"image_height_px": 256, "image_width_px": 704})
    got = Preprocessor(spec).images([raw, raw])[0, :, :, 0].astype(float)
    rows, columns = np.indices(got.shape) + 0.5  # pixel i covers [i, i + 1)
    centre = np.array([(columns * got).sum(), (rows * got).sum()]) / got.sum()
    expected = fit_image((900, 1600), spec).matrix((900, 1600)) @ [1025.0, 620.0, 1.0, 1.0]
    np.testing.assert_allclose(centre, expected[:2], atol=0.1)


@pytest.mark.parametrize("raw_hw", [(100, 128), (900, 1600), (97, 131), (32, 64), (24, 48)])
def test_a_warp_that_changes_nothing_is_the_deployed_image(tools, raw_hw: tuple[int, int]) -> None:
    raw = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (*raw_hw, 3), dtype=np.uint8), (0, 0), 2)
    preprocessor = Preprocessor(tools.spec)
    nothing = {name: np.eye(4) for name in tools.spec.cameras}
    warped = preprocessor.images([raw, None], nothing)
    deployed = preprocessor.images([raw, None])
    # Where the image is enlarged, its outermost pixels are blended with the black around it.
    inner = (slice(None), slice(1, -1), slice(1, -1)) if raw_hw[1] < 64 else slice(None)
    difference = np.abs(warped.astype(int) - deployed.astype(int))[inner]
    assert difference.max() <= 2 and difference.mean() < 0.3
    assert not warped[1].any()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle_rad", [0.0, 0.4])
@pytest.mark.parametrize("scale", [0.6, 1.0, 3.0])
def test_a_spot_lands_where_its_view_says(tools, scale: float, angle_rad: float, mirror: bool) -> None:
    rows, columns = np.indices((450, 800)) + 0.5  # pixel i covers [i, i + 1)
    # Smooth, so that shrinking keeps its middle exactly.
    spot = 255 * np.exp(-((columns - 510.0) ** 2 + (rows - 315.0) ** 2) / (2 * 8.0**2))
    raw = np.repeat(spot.round().astype(np.uint8)[:, :, None], 3, axis=2)
    spec = tools.spec.model_copy(update={"image_height_px": 256, "image_width_px": 704})
    turn = scale * np.array([[np.cos(angle_rad), -np.sin(angle_rad)], [np.sin(angle_rad), np.cos(angle_rad)]])
    fit = fit_image((450, 800), spec).matrix((450, 800))
    img_aug = np.eye(4)
    img_aug[:2, :2] = turn @ np.diag([-1.0 if mirror else 1.0, 1.0])
    # The middle of the spot, at a place with a fraction of a pixel.
    img_aug[:2, 2] = np.array([300.3, 120.7]) - img_aug[:2, :2] @ (fit @ [510.0, 315.0, 1.0, 1.0])[:2]
    warped = Preprocessor(spec).images([raw, raw], {"CAM_FRONT": img_aug, "CAM_BACK": np.eye(4)})
    got = warped[0, :, :, 0].astype(float)
    rows, columns = np.indices(got.shape) + 0.5
    centre = np.array([(columns * got).sum(), (rows * got).sum()]) / got.sum()
    np.testing.assert_allclose(centre, [300.3, 120.7], atol=0.03)
    assert got.sum() == pytest.approx(float(raw[..., 0].sum()) * (scale * 704 / 800) ** 2, rel=0.02)  # its size too


def test_what_an_image_does_not_show_is_black(tools) -> None:
    raw = np.full((100, 128, 3), 200, np.uint8)
    aside = np.eye(4)
    aside[0, 2] = 20
    warped = Preprocessor(tools.spec).images([raw, raw], {"CAM_FRONT": aside, "CAM_BACK": np.eye(4)})
    assert not warped[0, :, :20].any()
    assert (warped[0, :, 20:] == 200).all() and (warped[1] == 200).all()


def test_tables_are_kept_for_a_calibration_and_rebuilt_for_another(tools, calibration) -> None:
    preprocessor = Preprocessor(tools.spec)
    first = preprocessor.tables(calibration)
    assert preprocessor.tables(calibration)[0] is first[0]
    moved = Calibration(
        calibration.cameras,
        calibration.cam2img,
        calibration.lidar2cam @ yaw_pose(0.1, [0.0, 0.0, 0.0]),
        calibration.image_sizes_px,
    )
    second = preprocessor.tables(moved)
    assert not np.array_equal(second[0], first[0])
    for got, expected in zip(second, build_luts(tools.spec, moved), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_augmented_tables_leave_the_kept_ones_alone(tools, calibration) -> None:
    preprocessor = Preprocessor(tools.spec)
    plain = preprocessor.tables(calibration)
    turned = preprocessor.tables(calibration, yaw_pose(0.5, [0.0, 0.0, 0.0]))
    assert not np.array_equal(turned[0], plain[0])
    assert preprocessor.tables(calibration)[0] is plain[0]
    views = {name: np.diag([0.8, 0.8, 1.0, 1.0]) for name in tools.spec.cameras}
    seen = preprocessor.tables(calibration, None, views)
    np.testing.assert_array_equal(seen, build_luts(tools.spec, calibration, None, views))
    assert not np.array_equal(seen[0], plain[0])
    assert preprocessor.tables(calibration)[0] is plain[0]


def test_cameras_are_taken_by_name_and_others_ignored(tools, calibration) -> None:
    wider = Calibration(
        ("CAM_LEFT", "CAM_BACK", "CAM_FRONT"),
        np.concatenate([2 * calibration.cam2img[:1], calibration.cam2img[::-1]]),
        np.concatenate([calibration.lidar2cam[:1], calibration.lidar2cam[::-1]]),
        ((7, 7), (100, 128), (100, 128)),
    )
    for got, expected in zip(Preprocessor(tools.spec).tables(wider), build_luts(tools.spec, calibration), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_no_points_are_fine(tools, images, calibration) -> None:
    feed = Preprocessor(tools.spec)(images, np.zeros((0, 5), np.float32), calibration)
    assert not feed["pillar_count"].any()


def test_the_timer_hears_of_each_stage(tools, images, points, calibration) -> None:
    timer = StageTimer()
    Preprocessor(tools.spec)(images, points, calibration, timer=timer)
    assert list(timer.stages_ms) == ["resize", "pillars", "tables"]
    assert all(value > 0 for value in timer.stages_ms.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:1], r"expected 2 images \['CAM_FRONT', 'CAM_BACK'\], got 1"),
        (lambda images: [images[0], images[1].astype(np.float32)], "CAM_BACK: expected a uint8.*float32"),
        (lambda images: [images[0], images[1][:, :, :1]], r"CAM_BACK: .*uint8 \[100, 128, 1\]"),
        (lambda images: [images[0], "back.jpg"], "CAM_BACK: .*got str"),
        (
            lambda images: [images[0], images[1][:80]],
            r"CAM_BACK: the calibration is for .*\(100, 128\), got \(80, 128\)",
        ),
    ],
)
def test_wrong_images_are_refused(tools, images, points, calibration, change, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessor(tools.spec)(change(images), points, calibration)


def test_a_real_keyframe(tools, keyframe) -> None:
    spec = tools.spec.model_copy(
        update={
            "cameras": CAMERA_NAMES,
            "image_height_px": 256,
            "image_width_px": 704,
            "feature_stride": 16,
            "depth_max_m": 60.0,
            "depth_bins": 59,
            "range_m": (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
            "pillar_size_m": 0.2,
            "bev_stride": 4,
            "heights_m": (-1.5, -0.5, 0.5, 1.5),
            "max_pillars": 20000,
            "max_points": 10,
        }
    )
    preprocessor = Preprocessor(spec)
    feed = preprocessor(keyframe.images, keyframe.points, keyframe.calibration)
    pillars = preprocessor.pillars(keyframe.points)
    x, y, z = keyframe.points[:, :3].T
    in_range = (abs(x) < 51.2) & (abs(y) < 51.2) & (z >= -5) & (z < 3)
    assert pillars.pillar_count.sum() + pillars.dropped_points == in_range.sum()
    assert pillars.dropped_pillars == 0
    # Each kept point lies in the cell that its pillar names.
    rows = np.repeat(pillars.pillar_index, pillars.pillar_count)
    kept = pillars.pillars[np.arange(10) < pillars.pillar_count[:, None]]
    np.testing.assert_array_equal(rows // 512, np.floor((kept[:, 1] + np.float32(51.2)) / np.float32(0.2)))
    np.testing.assert_array_equal(rows % 512, np.floor((kept[:, 0] + np.float32(51.2)) / np.float32(0.2)))
    # The six cameras see nearly all of the ground around the car, and each of them sees a part.
    seen = feed["lut_pixel"] < spec.pixel_dump_index
    assert seen.mean() > 0.9
    assert np.bincount(feed["lut_pixel"][seen] // (16 * 44), minlength=6).min() > 5000
