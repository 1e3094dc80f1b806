"""Camera tables against voxels projected by hand and against a brute-force loop, on a non-square grid."""

from __future__ import annotations

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.geometry.camera_lut import build_luts, fit_image, view2network
from bevkd_deploy.geometry.frames import yaw_pose

# 10 m along x and 6 m along y in cells of 1 m: 6 rows, 10 columns. Features: 4 rows, 8 columns per camera.
SPEC = GraphSpec(
    cameras=("CAM_FRONT", "CAM_FRONT_LEFT"),
    image_height_px=32,
    image_width_px=64,
    feature_stride=8,
    depth_min_m=1.0,
    depth_max_m=9.0,
    depth_bins=4,
    range_m=(0.0, -3.0, -2.0, 10.0, 3.0, 2.0),
    pillar_size_m=0.5,
    bev_stride=2,
    heights_m=(-0.5, 0.3),
    max_pillars=8,
    max_points=4,
    top_k=5,
)

#: Axes of a camera that looks along the lidar's +x: right is -y, down is -z.
LOOKING_AHEAD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def make_calibration() -> Calibration:
    """Two cameras that overlap: one ahead, one turned 35 degrees to the left; raw images of 100 x 128 (h, w)."""
    left = LOOKING_AHEAD @ yaw_pose(np.deg2rad(-35), [0.0, 0.0, 0.0])
    cam2img = np.array([[70.0, 0, 64], [0, 70, 60], [0, 0, 1]])
    return Calibration(SPEC.cameras, np.stack([cam2img, cam2img]), np.stack([LOOKING_AHEAD, left]), ((100, 128),) * 2)


def brute_force(
    spec: GraphSpec, calibration: Calibration, bev_aug: np.ndarray, img_aug: dict[str, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Each voxel by itself: undo the augmentation, try every camera, keep the one nearest to its middle column."""
    rows, columns = spec.bev_shape_yx
    cell_m = spec.pillar_size_m * spec.bev_stride
    height, width = spec.feature_shape_hw
    bin_m = (spec.depth_max_m - spec.depth_min_m) / spec.depth_bins
    pixel = np.full((len(spec.heights_m), rows * columns), spec.pixel_dump_index)
    depth = np.full((len(spec.heights_m), rows * columns), spec.depth_dump_index)
    for z, row, column in np.ndindex(len(spec.heights_m), rows, columns):
        x_m = spec.range_m[0] + (column + 0.5) * cell_m
        y_m = spec.range_m[1] + (row + 0.5) * cell_m
        voxel = np.linalg.inv(bev_aug) @ [x_m, y_m, spec.heights_m[z], 1.0]
        best = np.inf
        for camera in range(len(spec.cameras)):
            x_cam, y_cam, z_cam, _ = calibration.lidar2cam[camera] @ voxel
            if z_cam <= 0.1:
                continue
            u_raw, v_raw, _ = calibration.cam2img[camera] @ [x_cam / z_cam, y_cam / z_cam, 1.0]
            raw_height, raw_width = calibration.image_sizes_px[camera]
            scaled_height = round(raw_height * spec.image_width_px / raw_width)
            u = u_raw * spec.image_width_px / raw_width
            v = v_raw * scaled_height / raw_height - (scaled_height - spec.image_height_px)  # the top is cut off
            if img_aug is not None:
                if not (0 <= u_raw < raw_width and 0 <= v_raw < raw_height):
                    continue  # the augmented image is black there
                (a, b, c, *_), (d, e, f, *_) = img_aug[spec.cameras[camera]][:2]
                u, v = a * u + b * v + c, d * u + e * v + f
            u_cell, v_cell, bin_ = (
                int(np.floor(value)) for value in (u / 8, v / 8, (z_cam - spec.depth_min_m) / bin_m)
            )
            offset = abs(u - spec.image_width_px / 2)
            visible = 0 <= u_cell < width and 0 <= v_cell < height and 0 <= bin_ < spec.depth_bins
            if visible and offset < best:
                best = offset
                flat = (camera * height + v_cell) * width + u_cell
                pixel[z, row * columns + column] = flat
                depth[z, row * columns + column] = flat * spec.depth_bins + bin_
    return pixel, depth


def test_one_voxel_by_hand() -> None:
    lut_pixel, lut_depth = build_luts(SPEC, make_calibration())
    # Row 3, column 6, height -0.5: the centre is (6.5, 0.5, -0.5), 6.5 m ahead of CAM_FRONT.
    # Raw pixel: u = 64 - 70 * 0.5 / 6.5 = 58.615, v = 60 + 70 * 0.5 / 6.5 = 65.385.
    # Half size: u = 29.308, v = 32.692 - 18 = 14.692 (50 rows, 32 kept). Feature cell: column 3, row 1.
    # CAM_FRONT_LEFT sees it 30.6 degrees right of its axis: 5.6 m deep, u = 32 + 35 * tan(30.6 deg) = 52.7, farther
    # from its middle column, so CAM_FRONT wins. Depth bin: (6.5 - 1) / 2 = 2.75, bin 2.
    flat = (0 * 4 + 1) * 8 + 3
    assert lut_pixel[0, 3 * 10 + 6] == flat
    assert lut_depth[0, 3 * 10 + 6] == flat * 4 + 2


@pytest.mark.parametrize(
    "bev_aug",
    [
        np.eye(4),
        yaw_pose(0.4, [0.7, -0.3, 0.0]) @ np.diag([1.05, -1.05, 1.05, 1.0]),
        np.diag([-1.0, 1.0, 1.0, 1.0]),
    ],
    ids=["plain", "rotated, mirrored, scaled", "mirrored in x"],
)
def test_equals_brute_force(bev_aug: np.ndarray) -> None:
    calibration = make_calibration()
    expected_pixel, expected_depth = brute_force(SPEC, calibration, bev_aug)
    lut_pixel, lut_depth = build_luts(SPEC, calibration, bev_aug)
    np.testing.assert_array_equal(lut_pixel, expected_pixel)
    np.testing.assert_array_equal(lut_depth, expected_depth)
    if np.array_equal(bev_aug, np.eye(4)):
        cameras = set(np.unique(lut_pixel[lut_pixel < SPEC.pixel_dump_index] // 32))
        assert cameras == {0, 1}, "the case must use both cameras, or it tests nothing about the overlap"


def view(angle_rad: float, scale: float, shift_px: tuple[float, float], mirror: bool) -> np.ndarray:
    """Affine of network pixels, times depth."""
    matrix = np.eye(4)
    cosine, sine = scale * np.cos(angle_rad), scale * np.sin(angle_rad)
    matrix[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    matrix[:2, 2] = shift_px
    return matrix


def unlike_cameras() -> Calibration:
    """The same two cameras, the second one with a raw image of another size and shape."""
    same = make_calibration()
    cam2img = np.stack([same.cam2img[0], [[110.0, 0, 95], [0, 110, 80], [0, 0, 1]]])
    return Calibration(same.cameras, cam2img, same.lidar2cam, ((100, 128), (160, 200)))


@pytest.mark.parametrize("bev_aug", [None, yaw_pose(-0.3, [0.4, -0.6, 0.2]) @ np.diag([0.95, -0.95, 0.95, 1.0])])
@pytest.mark.parametrize(
    ("front", "left"),
    [
        (view(0, 1, (0, 0), False), view(0, 1, (64, 0), True)),
        (view(0.09, 1.25, (-9, -6), False), view(-0.2, 0.8, (5, 11), False)),
        (view(0, 0.7, (20, -3), False), view(0.3, 0.75, (55, 4), True)),
    ],
    ids=["one mirrored", "one zoomed in, one out", "both zoomed out, turned, mirrored"],
)
def test_augmented_images_equal_brute_force(bev_aug: np.ndarray | None, front: np.ndarray, left: np.ndarray) -> None:
    img_aug = dict(zip(SPEC.cameras, (front, left), strict=True))
    expected = brute_force(SPEC, unlike_cameras(), np.eye(4) if bev_aug is None else bev_aug, img_aug)
    got = build_luts(SPEC, unlike_cameras(), bev_aug, img_aug)
    np.testing.assert_array_equal(got, expected)
    seen = expected[0] < SPEC.pixel_dump_index
    assert set(expected[0][seen] // 32) == {0, 1}
    plain = build_luts(SPEC, unlike_cameras(), bev_aug)
    assert (got[0] != plain[0]).mean() > 0.05


def test_a_view_that_changes_nothing_reads_what_the_deployed_tables_read() -> None:
    nothing = {name: np.eye(4) for name in SPEC.cameras}
    np.testing.assert_array_equal(build_luts(SPEC, unlike_cameras(), None, nothing), build_luts(SPEC, unlike_cameras()))


def test_no_cell_reads_where_an_augmented_image_is_black() -> None:
    # Both images at half size in the top left corner: nothing beyond feature column 3 and row 1 shows anything.
    halved = {name: view(0, 0.5, (0, 0), False) for name in SPEC.cameras}
    lut_pixel, _ = build_luts(SPEC, make_calibration(), None, halved)
    seen = lut_pixel[lut_pixel < SPEC.pixel_dump_index]
    assert len(seen) > 20
    assert (seen % 8).max() <= 3
    # The raw image has 50 rows at this width, 18 above the crop: they appear above the top edge, and nothing below 16.
    assert (seen // 8 % 4).max() <= 1


def test_view_units_hold_the_bottom_left_corner_and_the_width() -> None:
    for spec in (SPEC, SPEC.model_copy(update={"image_height_px": 96, "image_width_px": 160})):
        corners = np.array([[0, 0, 1, 1], [1, 0, 1, 1], [0, -spec.image_height_px / spec.image_width_px, 1, 1]])
        expected = [[0, spec.image_height_px], [spec.image_width_px, spec.image_height_px], [0, 0]]
        np.testing.assert_allclose((corners @ view2network(spec).T)[:, :2], expected)
        at_5_m = view2network(spec) @ [5.0, 0.0, 5.0, 1.0]
        np.testing.assert_allclose(at_5_m[:2] / at_5_m[2], expected[1])


def test_an_augmented_cell_reads_what_its_voxel_reads_unaugmented() -> None:
    # A quarter turn moves whole cells to whole cells of a square grid: the table is turned with them.
    square = SPEC.model_copy(update={"range_m": (-5.0, -5.0, -2.0, 5.0, 5.0, 2.0)})
    calibration = make_calibration()
    plain, _ = build_luts(square, calibration)
    turned, _ = build_luts(square, calibration, yaw_pose(np.pi / 2, [0.0, 0.0, 0.0]))
    grid = plain.reshape(2, 10, 10)
    # x' = -y and y' = x: cell (row y, column x) goes to (row x, column 9 - y).
    np.testing.assert_array_equal(turned.reshape(2, 10, 10), grid[:, ::-1].transpose(0, 2, 1))
    assert not np.array_equal(turned, plain)


def test_what_no_camera_sees_points_to_the_dump_rows_alone() -> None:
    behind = SPEC.model_copy(update={"range_m": (-20.0, -3.0, -2.0, -10.0, 3.0, 2.0)})
    lut_pixel, lut_depth = build_luts(behind, make_calibration())
    assert set(lut_pixel.ravel()) == {2 * 4 * 8}
    assert set(lut_depth.ravel()) == {2 * 4 * 8 * 4}


def test_tables_are_the_graphs_inputs() -> None:
    expected = {spec.name: (spec.dtype, spec.shape) for spec in SPEC.inputs()}
    for name, table in zip(("lut_pixel", "lut_depth"), build_luts(SPEC, make_calibration()), strict=True):
        assert (table.dtype.name, table.shape) == expected[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"image_width_px": 62, "image_height_px": 31},
        {"heights_m": (-1.9, 0.3)},
        {"depth_min_m": 0.0, "range_m": (-0.5, -3.0, -2.0, 9.5, 3.0, 2.0)},
    ],
    ids=["a stride that does not divide the image", "ground below the image", "voxels in the camera's plane"],
)
def test_awkward_geometry_equals_brute_force(changes: dict[str, object]) -> None:
    spec = SPEC.model_copy(update=changes)
    lut_pixel, lut_depth = build_luts(spec, make_calibration())
    expected_pixel, expected_depth = brute_force(spec, make_calibration(), np.eye(4))
    np.testing.assert_array_equal(lut_pixel, expected_pixel)
    np.testing.assert_array_equal(lut_depth, expected_depth)


def test_cameras_in_another_order_are_refused() -> None:
    with pytest.raises(DataError, match="the graph takes .*CAM_FRONT_LEFT.*, the calibration has"):
        build_luts(SPEC, make_calibration().select(("CAM_FRONT_LEFT", "CAM_FRONT")))


def test_no_cell_reads_a_missing_camera_and_the_others_keep_their_rows() -> None:
    height, width = SPEC.feature_shape_hw
    both, _ = build_luts(SPEC, make_calibration())
    lut_pixel, lut_depth = build_luts(SPEC, make_calibration().select(("CAM_FRONT_LEFT",)))
    seen = lut_pixel < SPEC.pixel_dump_index
    assert seen.any() and (lut_pixel[seen] >= height * width).all()  # rows of the second camera alone
    np.testing.assert_array_equal(seen, lut_depth < SPEC.depth_dump_index)
    second = (both >= height * width) & (both < SPEC.pixel_dump_index)
    np.testing.assert_array_equal(lut_pixel[second], both[second])


def test_fit_of_a_nuscenes_image() -> None:
    spec = SPEC.model_copy(update={"image_height_px": 256, "image_width_px": 704})
    fit = fit_image((900, 1600), spec)
    assert (fit.scaled_hw_px, fit.top_px, fit.left_px) == ((396, 704), 140, 0)
    # The raw bottom right corner is the network's; the raw middle is 58 rows below the top edge.
    np.testing.assert_allclose(fit.matrix((900, 1600)) @ [1600, 900, 1, 1], [704, 256, 1, 1])
    np.testing.assert_allclose(fit.matrix((900, 1600)) @ [800, 450, 1, 1], [352, 58, 1, 1])


def test_fit_at_depth_scales_with_the_homogeneous_pixel() -> None:
    fit = fit_image((100, 128), SPEC)
    pixel_at_5_m = fit.matrix((100, 128)) @ np.array([64.0 * 5, 100.0 * 5, 5.0, 1.0])
    np.testing.assert_allclose(pixel_at_5_m[:2] / pixel_at_5_m[2], [32, 32])


def test_an_image_too_flat_for_the_network_is_refused() -> None:
    with pytest.raises(DataError, match="scaled to width 64 has 20 rows, the network needs 32"):
        fit_image((40, 128), SPEC)
