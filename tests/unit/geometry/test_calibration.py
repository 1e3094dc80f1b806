"""Selecting, hashing and checking calibrations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.frames import project, yaw_pose


def make_calibration() -> Calibration:
    cam2img = np.tile(np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]), (2, 1, 1))
    cam2img[1, 0, 0] = 120.0
    lidar2cam = np.stack([np.eye(4), yaw_pose(0.5, [1.0, 2.0, 3.0])])
    return Calibration(("CAM_FRONT", "CAM_BACK"), cam2img, lidar2cam, ((80, 100), (90, 110)))


def test_lidar2img_projects_as_its_two_steps() -> None:
    calibration = make_calibration()
    point = np.array([0.4, -0.3, 5.0])
    pixels, depth_m = project(point[None], calibration.lidar2img()[1])
    in_camera = (calibration.lidar2cam[1] @ np.append(point, 1.0))[:3]
    expected = calibration.cam2img[1] @ in_camera
    np.testing.assert_allclose(pixels[0], expected[:2] / expected[2])
    assert depth_m[0] == pytest.approx(in_camera[2])


def test_select_reorders_every_field() -> None:
    calibration = make_calibration()
    swapped = calibration.select(("CAM_BACK", "CAM_FRONT"))
    assert swapped.cameras == ("CAM_BACK", "CAM_FRONT")
    assert swapped.image_sizes_px == ((90, 110), (80, 100))
    np.testing.assert_array_equal(swapped.cam2img, calibration.cam2img[::-1])
    np.testing.assert_array_equal(swapped.lidar2cam, calibration.lidar2cam[::-1])


def test_select_names_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"lacks cameras \['CAM_LEFT'\]; it has \['CAM_FRONT', 'CAM_BACK'\]"):
        make_calibration().select(("CAM_FRONT", "CAM_LEFT"))


def test_digest_changes_with_every_field() -> None:
    calibration = make_calibration()
    nudged_intrinsics, nudged_extrinsics = calibration.cam2img.copy(), calibration.lidar2cam.copy()
    nudged_intrinsics[0, 0, 0] += 1e-9
    nudged_extrinsics[1, 0, 3] += 1e-9
    others = [
        dataclasses.replace(calibration, cam2img=nudged_intrinsics),
        dataclasses.replace(calibration, lidar2cam=nudged_extrinsics),
        dataclasses.replace(calibration, image_sizes_px=((80, 100), (90, 111))),
        dataclasses.replace(calibration, cameras=("CAM_FRONT", "CAM_BACK_LEFT")),
    ]
    digests = {calibration.digest(), *(other.digest() for other in others)}
    assert len(digests) == 5
    assert make_calibration().digest() == calibration.digest()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"calibration of 1 cameras needs cam2img \[1, 3, 3\]"):
        Calibration(("CAM_FRONT",), np.eye(4)[None], np.eye(4)[None], ((80, 100),))


@pytest.mark.parametrize("broken", [np.zeros((1, 3, 3)), np.full((1, 3, 3), np.nan)])
def test_intrinsics_that_cannot_project_are_refused(broken: np.ndarray) -> None:
    with pytest.raises(DataError, match="calibration of CAM_FRONT is not invertible"):
        Calibration(("CAM_FRONT",), broken, np.eye(4)[None], ((80, 100),))
