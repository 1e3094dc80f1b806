"""Pictures are tested by their pixels, at places worked out by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import DataError, UsageError
from bevkd_deploy.report.frame_view import FrameBox, FrameView
from bevkd_deploy.report.palette import ACTOR_COLORS, PHOTO_COLORS, rgb
from bevkd_deploy.report.pictures import draw_bev, draw_cameras, draw_frame

KEYFRAME = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "nuscenes_keyframe"


def box(x: float, y: float, z: float, l: float, w: float, h: float, yaw: float, score: float | None = None) -> FrameBox:  # noqa: E741
    return FrameBox(box=(x, y, z, l, w, h, yaw, 0.0, 0.0), label="car", score=score)


def read(path: Path) -> NDArray[np.int64]:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(image[:, :, ::-1], dtype=np.int64)


def has_color(
    image: NDArray[np.int64], column: float, row: float, color: str, reach: int = 1, within: int = 40
) -> bool:
    """Whether a pixel within `reach` of a place is nearly of a colour."""
    x, y = round(column), round(row)
    patch = image[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].reshape(-1, 3)
    return bool((np.abs(patch - np.array(rgb(color))).max(axis=1) <= within).any())


def bev_place(x: float, y: float) -> tuple[float, float]:
    """Pixel of a lidar position in a map of +-20 m: 800 px for 40 m, margins 72 px left and 88 px on top."""
    return 72 + (x + 20) * 20, 88 + (20 - y) * 20


def test_bev_corners_and_heading(make_frame, tmp_path: Path) -> None:
    view = make_frame(student=[box(0, 10, 0, 4, 2, 1, 0.0, 0.9)], teacher=[box(-10, -5, 0, 4, 2, 1, np.pi / 2, 0.9)])
    image = read(draw_bev(view, tmp_path / "bev.png"))
    assert image.shape == (800 + 60 + 88, 800 + 72 + 20, 3)
    for corner in ((2, 11), (2, 9), (-2, 9), (-2, 11)):
        assert has_color(image, *bev_place(*corner), ACTOR_COLORS["student"]), corner
    # Yaw pi/2: the length lies along y.
    for corner in ((-9, -3), (-11, -3), (-9, -7), (-11, -7)):
        assert has_color(image, *bev_place(*corner), ACTOR_COLORS["teacher"]), corner
    # The tick goes from the centre to the front, not to the back.
    assert has_color(image, *bev_place(1, 10), ACTOR_COLORS["student"])
    assert not has_color(image, *bev_place(-1, 10), ACTOR_COLORS["student"])
    assert has_color(image, *bev_place(-10, -4), ACTOR_COLORS["teacher"])
    assert not has_color(image, *bev_place(-10, -6), ACTOR_COLORS["teacher"])


def test_bev_draws_points(make_frame, tmp_path: Path) -> None:
    view = make_frame()
    image = read(draw_bev(view, tmp_path / "bev.png"))
    column, row = (round(value) for value in bev_place(5, 5))
    background = read(draw_bev(make_frame(), tmp_path / "again.png"))
    assert (image == background).all(), "the same frame gives the same picture"
    np.array([[15, 5, -1, 10, 0]], np.float32).tofile(view.points_path)
    moved = read(draw_bev(view, tmp_path / "moved.png"))
    assert (
        image[row - 2 : row + 3, column - 2 : column + 3] != moved[row - 2 : row + 3, column - 2 : column + 3]
    ).any()


def test_bev_keeps_one_scale_on_a_range_that_is_not_square(make_frame, tmp_path: Path) -> None:
    view = make_frame(range_m=(-10, 0, -5, 10, 40, 3), truth=[box(5, 30, 0, 2, 2, 1, 0.0)])
    image = read(draw_bev(view, tmp_path / "bev.png"))
    assert image.shape == (800 + 60 + 88, 400 + 72 + 20, 3)
    # 20 px per metre: corner (6, 31) lies 16 m from the left edge and 9 m below the top. Truth is drawn at 55 %.
    place = 72 + 16 * 20, 88 + 9 * 20
    blended = "#" + "".join(f"{round(0.55 * c + 0.45 * 251):02x}" for c in rgb(ACTOR_COLORS["truth"]))
    assert has_color(image, *place, blended)


def test_low_scores_are_not_drawn(make_frame, tmp_path: Path) -> None:
    view = make_frame(student=[box(0, 10, 0, 4, 2, 1, 0.0, 0.2)])
    assert not has_color(read(draw_bev(view, tmp_path / "a.png", 0.25)), *bev_place(2, 11), ACTOR_COLORS["student"])
    assert has_color(read(draw_bev(view, tmp_path / "b.png", 0.1)), *bev_place(2, 11), ACTOR_COLORS["student"])


def tile_place(u: float, v: float) -> tuple[float, float]:
    """Pixel of an image position: the 160 px wide image is shown 480 px wide, under 26 px of caption."""
    return 3 * u, 26 + 3 * v


def test_camera_corner_by_hand(make_frame, tmp_path: Path) -> None:
    view = make_frame(student=[box(0, 10, 0, 2, 2, 2, 0.0, 0.9)])
    image = read(draw_cameras(view, tmp_path / "cameras.png"))
    assert image.shape == (26 + 270, 480, 3)
    # The face at 9 m: u = 80 +- 90 / 9, v = 45 -+ 90 / 9. The face at 11 m: 90 / 11.
    for u, v in ((90, 35), (70, 35), (90, 55), (70, 55), (80 + 90 / 11, 45 - 90 / 11)):
        assert has_color(image, *tile_place(u, v), PHOTO_COLORS["student"]), (u, v)
    # The heading tick lies on the bottom face and goes to +x: from (80, 54) to (89, 54).
    assert has_color(image, *tile_place(85, 54), PHOTO_COLORS["student"])
    assert not has_color(image, *tile_place(75, 54), PHOTO_COLORS["student"])
    assert not has_color(image, *tile_place(80, 45), PHOTO_COLORS["student"])


def test_cameras_show_the_actor_asked_for(make_frame, tmp_path: Path) -> None:
    view = make_frame(
        truth=[box(-3, 10, 0, 2, 2, 2, 0.0)],
        teacher=[box(0, 10, 0, 2, 2, 2, 0.0, 0.9)],
        student=[box(3, 10, 0, 2, 2, 2, 0.0, 0.9)],
    )
    corner = {"truth": (60, 35), "teacher": (90, 35), "student": (120, 35)}
    for who, shown in (("student", {"truth", "student"}), ("teacher", {"truth", "teacher"}), ("truth", {"truth"})):
        image = read(draw_cameras(view, tmp_path / f"{who}.png", who=who))
        found = {name for name, place in corner.items() if has_color(image, *tile_place(*place), PHOTO_COLORS[name])}
        assert found == shown
    with pytest.raises(UsageError, match="who must be one of"):
        draw_cameras(view, tmp_path / "x.png", who="engine")


def test_a_box_behind_the_camera_leaves_no_trace(make_frame, tmp_path: Path) -> None:
    # Divided by the near plane's depth of 0.1 m instead of being left out, the small one would land inside the image:
    # u = (90 * 9 - 80 * 10) / 0.1 = 100, v = (-45 * 10 + 90 * 5.05) / 0.1 = 45. The large one is mirrored if divided by
    # its own depth.
    behind = make_frame(truth=[box(9, -10, -5.05, 0.02, 0.02, 0.02, 0.0), box(0, -10, 0, 2, 2, 2, 0.0)])
    image = read(draw_cameras(behind, tmp_path / "a.png"))[26 + 60 :]
    assert image.max() == 0


def test_a_box_through_the_camera_plane_is_cut(make_frame, tmp_path: Path) -> None:
    """The edges beside the camera run out of the picture at its sides; nothing appears mirrored above or below."""
    view = make_frame(truth=[box(0, 3, 0, 10, 8, 2, np.pi / 2)])
    image = read(draw_cameras(view, tmp_path / "a.png"))
    # Sides at x = +-4, z = +-1, up to 8 m: u = 80 + 90 * 4 / 8 = 125 at the far end, v = 45 -+ 90 / 8.
    assert has_color(image, *tile_place(125, 45 - 90 / 8), PHOTO_COLORS["truth"])
    # Halfway along the upper right edge, at 6 m: u = 140, v = 30.
    assert has_color(image, *tile_place(140, 30), PHOTO_COLORS["truth"])
    # Without the cut, the part behind would cross the lower half from left to right.
    assert not has_color(image, *tile_place(20, 62), PHOTO_COLORS["truth"], reach=2)


def test_mosaic_follows_the_world(make_frame, tmp_path: Path) -> None:
    front = make_frame()
    names = ["CAM_BACK", "CAM_FRONT_RIGHT", "CAM_EXTRA", "CAM_FRONT_LEFT", "CAM_FRONT"]
    images = {}
    for number, name in enumerate(names):
        images[name] = tmp_path / f"{name}.png"
        cv2.imwrite(str(images[name]), np.full((90, 160, 3), 40 * (number + 1), np.uint8))
    view = FrameView(
        token="t",
        images=images,
        points_path=front.points_path,
        lidar2img=dict.fromkeys(names, front.lidar2img["CAM_FRONT"]),
        image_size_px=dict.fromkeys(names, (90, 160)),
        range_m=front.range_m,
        boxes={},
    )
    image = read(draw_cameras(view, tmp_path / "m.png"))
    assert image.shape == (26 + 270 + 4 + 270, 3 * 480 + 2 * 4, 3)
    centres = [int(image[26 + 135 + row * 274, 240 + column * 484, 0]) for row in (0, 1) for column in (0, 1, 2)]
    # FRONT_LEFT, FRONT, FRONT_RIGHT / BACK, EXTRA, nothing.
    assert centres == [160, 200, 80, 40, 120, 24]


def test_bad_sensor_files_are_named(make_frame, tmp_path: Path) -> None:
    view = make_frame()
    view.points_path.write_bytes(b"\0" * 21)
    with pytest.raises(DataError, match=r"points\.bin has 21 bytes, expected a multiple of 20"):
        draw_bev(view, tmp_path / "a.png")
    cv2.imwrite(str(view.images["CAM_FRONT"]), np.zeros((45, 80, 3), np.uint8))
    with pytest.raises(DataError, match=r"is 45 x 80 \(h x w\), expected 90 x 160"):
        draw_cameras(view, tmp_path / "a.png")
    view.images["CAM_FRONT"].write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be decoded"):
        draw_cameras(view, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_no_points_and_no_boxes(make_frame, tmp_path: Path) -> None:
    view = make_frame()
    view.points_path.write_bytes(b"")
    bev, cameras = draw_frame(view, tmp_path / "pictures")
    assert (bev.name, cameras.name) == ("frame0.bev.png", "frame0.cameras.png")


def keyframe() -> FrameView:
    from bevkd_deploy.data.safe_pickle import load_pickle

    sample = load_pickle(next(KEYFRAME.glob("*.pkl")))["data_list"][0]
    lidar2img = {}
    for name, camera in sample["images"].items():
        cam2img = np.eye(4)
        cam2img[:3, :3] = camera["cam2img"]
        lidar2img[name] = (cam2img @ np.array(camera["lidar2cam"])).tolist()
    truth = [
        FrameBox(box=(*map(float, item["bbox_3d"]), None, None), label=CLASS_NAMES[item["bbox_label_3d"]])
        for item in sample["instances"]
        if item["bbox_label_3d"] >= 0
    ]
    return FrameView(
        token=sample["token"],
        images={name: KEYFRAME / camera["img_path"] for name, camera in sample["images"].items()},
        points_path=KEYFRAME / sample["lidar_points"]["lidar_path"],
        lidar2img=lidar2img,
        image_size_px=dict.fromkeys(lidar2img, (900, 1600)),
        range_m=(-51.2, -51.2, -5, 51.2, 51.2, 3),
        boxes={"truth": tuple(truth)},
    )


@pytest.mark.skipif(not KEYFRAME.is_dir(), reason="the nuScenes keyframe is not beside the checkout")
def test_real_keyframe(tmp_path: Path) -> None:
    from bevkd_deploy.geometry.boxes import box_corners
    from bevkd_deploy.geometry.frames import project
    from bevkd_deploy.report.frame_view import box_array

    view = keyframe()
    bev, cameras = draw_frame(view, tmp_path)
    assert 50_000 < bev.stat().st_size < 1_000_000 and cameras.stat().st_size < 2_000_000
    image = read(cameras)
    boxes = box_array(view.shown("truth", 0))
    near = boxes[np.hypot(boxes[:, 0], boxes[:, 1]) < 30]
    pixels, depth_m = project(box_corners(near).reshape(-1, 3), np.array(view.lidar2img["CAM_FRONT"]))
    inside = (depth_m > 1) & (pixels > 20).all(axis=1) & (pixels < [1580, 880]).all(axis=1)
    assert inside.sum() > 50
    # CAM_FRONT is the second tile of the first row, 1600 px shown on 480.
    places = pixels[inside] * 0.3 + [484, 26]
    drawn = [has_color(image, *place, PHOTO_COLORS["truth"], within=60) for place in places]
    assert np.mean(drawn) > 0.95
