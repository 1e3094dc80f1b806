"""The view transform: points and pixels worked out by hand, and the whole against a loop over lifted entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.contracts.recipe_teacher import BevFusionGeometry
from bevkd_deploy.models.bevfusion.depth_lss import DepthLSSTransform, depth_map

CHANNELS, OUT_CHANNELS = 3, 2

#: Images of 16 by 24 pixels, features of 2 by 3, five depths, 32 by 16 cells of half a metre: nothing is square.
GEOMETRY = BevFusionGeometry(
    image_size_px=(16, 24),
    depth_m=(1.0, 6.0),
    depth_step_m=1.0,
    camera_cell_m=0.5,
    camera_z_m=(-2.0, 2.0),
    camera_downsample=1,
    range_m=(-8.0, -4.0, -5.0, 8.0, 4.0, 3.0),
    voxel_size_m=(0.25, 0.25, 0.2),
    bev_stride=2,
)

#: A camera at the origin of the lidar frame that looks along +x: its x is -y, its y is -z, its z is x.
CAM2LIDAR = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
CAM2IMG = np.array([[10, 0, 12, 0], [0, 10, 8, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
NOTHING = np.eye(4)


def calibration(
    cam2lidar: list[np.ndarray], img_aug: np.ndarray = NOTHING, lidar_aug: np.ndarray = NOTHING, samples: int = 1
) -> dict[str, Tensor]:
    """The matrices of `bevkd.sensors/1` for cameras of one make."""
    cameras = [np.stack(part) for part in ([CAM2IMG @ np.linalg.inv(m) for m in cam2lidar], cam2lidar)]
    per_camera = {
        "lidar2img": cameras[0],
        "cam2lidar": cameras[1],
        "cam2img": np.stack([CAM2IMG] * len(cam2lidar)),
        "img_aug": np.stack([img_aug] * len(cam2lidar)),
    }
    arrays = {**per_camera, "lidar_aug": lidar_aug}
    return {name: torch.from_numpy(np.stack([array] * samples)).float() for name, array in arrays.items()}


def depths_of(points: list[list[float]], count: int | None = None, **kwargs: Any) -> dict[tuple[int, ...], float]:
    """What one camera sees: {(row, column): metres}."""
    given = calibration([CAM2LIDAR], **kwargs)
    rows = torch.tensor([[*point, 9.0, 9.0] for point in points])[None]
    counts = torch.tensor([len(points) if count is None else count])
    depth = depth_map(rows, counts, given["lidar2img"], given["img_aug"], given["lidar_aug"], GEOMETRY.image_size_px)
    assert depth.shape == (1, 1, 16, 24)
    return {tuple(place.tolist()): float(depth[0, 0][tuple(place)]) for place in depth[0, 0].nonzero()}


def test_a_point_is_at_the_pixel_it_projects_to() -> None:
    # 4 m ahead, 2 m to the left, 1 m up: column 12 - 10 * 2 / 4 = 7, row 8 - 10 / 4 = 5.5.
    assert depths_of([[4.0, 2.0, 1.0]]) == {(5, 7): 4.0}


def test_image_and_lidar_augmentation_are_followed() -> None:
    img_aug = np.diag([0.5, 2.0, 1.0, 1.0])
    img_aug[:2, 3] = 3.0, -4.0
    assert depths_of([[4.0, 2.0, 1.0]], img_aug=img_aug) == {(7, 6): 4.0}  # column 3.5 + 3, row 11 - 4
    lidar_aug = np.array([[0, -2, 0, 10], [2, 0, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1]], dtype=np.float64)
    assert depths_of([[6.0, 28.0, 32.0]], lidar_aug=lidar_aug) == {(5, 7): 4.0}  # that point, turned, doubled, moved


def test_the_last_point_of_a_pixel_counts() -> None:
    near, far = [4.0, 2.0, 1.0], [6.0, 3.0, 1.5]
    assert depths_of([near, far]) == {(5, 7): 6.0}
    assert depths_of([far, near]) == {(5, 7): 4.0}


def test_only_real_points_in_front_and_inside_of_the_image_are_seen() -> None:
    behind, left, above = [-4.0, 2.0, 1.0], [1.0, 1.25, 0.0], [1.0, 0.0, 0.85]  # column -0.5, row -0.5
    right_edge = [1.0, -1.2, 0.0]  # column 24: the last one is 23
    assert depths_of([behind, left, above, right_edge]) == {}
    assert depths_of([[4.0, 2.0, 1.0], [6.0, 0.0, 0.0]], count=1) == {(5, 7): 4.0}


def transform_of(geometry: BevFusionGeometry = GEOMETRY) -> DepthLSSTransform:
    torch.manual_seed(0)
    transform = DepthLSSTransform(geometry, CHANNELS, OUT_CHANNELS).eval()
    for name, parameter in transform.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.4 / parameter[0].numel() ** 0.5)
        else:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
    return transform


def inputs_of(samples: int, cameras: list[np.ndarray], **kwargs: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(samples, 200, 5, generator=generator) * 12 - 6
    return {
        "features": torch.randn(samples, len(cameras), CHANNELS, 2, 3, generator=generator),
        "points": points,
        "point_count": torch.tensor([200, 150][:samples]),
        **calibration(cameras, samples=samples, **kwargs),
    }


def looking(degrees: float, x: float, y: float) -> np.ndarray:
    """The camera of `CAM2LIDAR`, turned to the left and moved."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:2, 3] = x, y
    return turn @ CAM2LIDAR


def bev_by_hand(transform: DepthLSSTransform, given: dict[str, Tensor]) -> np.ndarray:
    """Every lifted entry on its own, in double precision: back through the images, along the ray, into its cell."""
    matrices = {name: value.double().numpy() for name, value in given.items() if value.shape[-2:] == (4, 4)}
    depth = depth_map(*(given[key] for key in ("points", "point_count", "lidar2img", "img_aug", "lidar_aug")), (16, 24))
    samples, cameras = given["features"].shape[:2]
    bev = np.zeros((samples, OUT_CHANNELS, 32, 16))
    for sample in range(samples):
        for camera in range(cameras):
            read = torch.cat(
                [transform.dtransform(depth[sample, camera][None, None]), given["features"][sample, camera][None]], 1
            )
            lifted = transform.depthnet(read)[0].double()
            probability, context = lifted[:5].softmax(0).numpy(), lifted[5:].numpy()
            for d, row, column in np.ndindex(5, 2, 3):
                metres = 1.0 + d
                network_px = np.array([column * 23 / 2, row * 15, metres, 1.0])
                raw_px = np.linalg.inv(matrices["img_aug"][sample, camera]) @ network_px
                ray = np.linalg.inv(matrices["cam2img"][sample, camera]) @ [
                    raw_px[0] * metres,
                    raw_px[1] * metres,
                    metres,
                    1,
                ]
                place = matrices["lidar_aug"][sample] @ matrices["cam2lidar"][sample, camera] @ ray
                x, y, z = np.trunc((place[:3] - [-8.0, -4.0, -2.0]) / [0.5, 0.5, 4.0]).astype(int)
                if 0 <= x < 32 and 0 <= y < 16 and z == 0:
                    bev[sample, :, x, y] += probability[d, row, column] * context[:, row, column]
    return bev


def test_the_map_is_the_sum_of_what_is_lifted_into_each_cell() -> None:
    img_aug = np.diag([0.9, 1.1, 1.0, 1.0])
    img_aug[:2, 3] = 1.3, -2.1
    lidar_aug = looking(20.0, 0.3, -0.4) @ np.linalg.inv(CAM2LIDAR) @ np.diag([1.1, 1.1, 1.1, 1.0])
    cameras = [looking(3.0, 0.11, 0.07), looking(110.0, -0.52, 0.31), looking(200.0, 0.2, -0.13)]
    given = inputs_of(2, cameras, img_aug=img_aug, lidar_aug=lidar_aug)
    transform = transform_of()
    with torch.no_grad():
        ours = transform(**given)
        expected = bev_by_hand(transform, given)
    assert ours.shape == (2, OUT_CHANNELS, 32, 16)
    assert np.count_nonzero(expected.any(axis=1)) > 60
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_same_comes_out_each_time_on_two_threads() -> None:
    given, transform = inputs_of(2, [looking(3.0, 0.1, 0.1)] * 40), transform_of()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            first, second = transform(**given), transform(**given)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first, second)


def test_what_is_less_than_a_cell_before_the_grid_counts_as_its_first_row() -> None:
    """As in mmdet3d, which cuts a cell's coordinate towards zero. The camera looks along -y from near the border."""
    transform = transform_of()
    for y, rows in ((-2.4, {0, 1}), (-3.4, {0}), (-3.6, set())):  # the first entry is 1 m further on, the next 2 m
        with torch.no_grad():
            bev = transform(**inputs_of(1, [looking(-90.0, 0.1, y)]))
        assert set(bev[0].any(dim=0).nonzero()[:, 1].tolist()) == rows


@pytest.mark.parametrize("far_m", [1e4, 1e9, 1e30])
def test_a_far_away_camera_adds_nothing(far_m: float) -> None:
    transform = transform_of()
    alone = inputs_of(1, [looking(3.0, 0.1, 0.1)])
    both = inputs_of(1, [looking(3.0, 0.1, 0.1), looking(90.0, far_m, far_m)])
    both["features"] = torch.cat([alone["features"], torch.full_like(alone["features"], 1e3)], dim=1)
    both["points"] = alone["points"]
    with torch.no_grad():
        torch.testing.assert_close(transform(**both), transform(**alone), rtol=1e-6, atol=1e-6)


def test_the_map_is_coarsened_behind_the_sum() -> None:
    geometry = GEOMETRY.model_copy(update={"camera_downsample": 2})
    transform, given = transform_of(geometry), inputs_of(1, [looking(3.0, 0.1, 0.1)])
    with torch.no_grad():
        ours = transform(**given)
        assert ours.shape == (1, OUT_CHANNELS, 16, 8)
        downsample, transform.downsample = transform.downsample, nn.Identity()
        torch.testing.assert_close(ours, downsample(transform(**given)))


def test_geometry_stays_in_single_precision_under_autocast() -> None:
    transform, given = transform_of(), inputs_of(1, [looking(3.0, 0.1, 0.1)])
    with torch.no_grad():
        expected = transform(**given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = transform(**given)
    assert torch.equal(ours, expected)


def test_constants_are_those_of_mmdet3d() -> None:
    with torch.device("cpu"):
        state = DepthLSSTransform(BevFusionGeometry()).state_dict()
    assert state["dx"].tolist() == pytest.approx([0.3, 0.3, 20.0])
    assert state["bx"].tolist() == pytest.approx([-53.85, -53.85, 0.0])
    assert state["nx"].dtype == torch.int64
    assert state["nx"].tolist() == [360, 360, 1]
    frustum = state["frustum"]
    assert frustum.shape == (118, 32, 88, 3)
    assert frustum[0, 0, 0].tolist() == [0.0, 0.0, 1.0]
    assert frustum[117, 31, 87].tolist() == [703.0, 255.0, 59.5]
    assert frustum[1, 31, 1].tolist() == pytest.approx([703 / 87, 255.0, 1.5])


@pytest.mark.parametrize("name", ["cam2img", "img_aug"])
def test_a_camera_without_calibration_is_an_error(name: str) -> None:
    given = inputs_of(2, [looking(3.0, 0.1, 0.1), looking(90.0, 0.1, 0.1)])
    given[name][1, 0] = 0.0
    with pytest.raises(DataError, match=rf"{name} of sample 1, camera 0 cannot be inverted: \[\[0\.0"):
        transform_of()(**given)


def test_an_augmentation_that_is_no_map_is_an_error() -> None:
    given = inputs_of(2, [looking(3.0, 0.1, 0.1)])
    given["lidar_aug"][1, 0, 0] = torch.nan
    with pytest.raises(DataError, match="lidar_aug of sample 1 cannot be inverted"):
        transform_of()(**given)


def test_features_of_other_images_are_an_error() -> None:
    given = inputs_of(1, [looking(3.0, 0.1, 0.1)])
    given["features"] = torch.zeros(1, 1, CHANNELS, 3, 2)
    with pytest.raises(DataError, match=r"\(3, 2\), expected \(2, 3\).*\(16, 24\)"):
        transform_of()(**given)


def test_another_stride_is_an_error() -> None:
    with pytest.raises(UsageError, match="stride 8, got feature_stride 16"):
        DepthLSSTransform(BevFusionGeometry(feature_stride=16))
