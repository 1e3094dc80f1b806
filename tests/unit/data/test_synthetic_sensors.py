"""LiDAR and cameras see the same world: exact occlusion, and pixels that belong to the points."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.data.synthetic import PROFILES
from bevkd_deploy.data.synthetic.camera import CameraPainter, make_weather, owner_image
from bevkd_deploy.data.synthetic.dataset import SceneJob, _SceneWriter
from bevkd_deploy.data.synthetic.ground import Ground, paint_ground
from bevkd_deploy.data.synthetic.layout import Layout, Thing, make_layout
from bevkd_deploy.data.synthetic.lidar import GROUND, Lidar, Pairs, Scan, _intersect
from bevkd_deploy.data.synthetic.objects import build_shape, sample_size
from bevkd_deploy.data.synthetic.rig import Camera, Rig, make_rig
from bevkd_deploy.data.synthetic.scenery import building
from bevkd_deploy.data.synthetic.street import make_street
from bevkd_deploy.data.synthetic.world import Snapshot, World
from bevkd_deploy.geometry.frames import invert, transform_points

QUICK = PROFILES["quickstart"]


def make_rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return make_rig(QUICK, make_rng())


def obj(class_name: str, x: float, y: float, yaw: float = 0.3) -> Thing:
    rng = make_rng()
    size = sample_size(class_name, rng)
    return Thing("some", class_name, size, build_shape(class_name, size, rng), np.array([[x, y, yaw]]), "")


def wall(x: float, y: float, yaw: float) -> Thing:
    size = (12.0, 1.0, 6.0)
    return Thing("", "", size, building(size, make_rng()), np.array([[x, y, yaw]]), "")


def layout_of(*things: Thing) -> Layout:
    street = make_street((-120.0, 120.0), make_rng())
    return Layout(street, np.zeros(1), np.zeros((1, 3)), np.zeros(1), list(things))


def sense(rig: Rig, *things: Thing) -> tuple[Snapshot, Scan]:
    layout = layout_of(*things)
    snapshot = World(layout, QUICK.object_range_m).snapshot(0)
    ground = paint_ground(layout, make_rng())
    return snapshot, Lidar(QUICK, rig.lidar2ego).scan(snapshot, ground, np.zeros(3), make_rng())


def pixels_of(points_ego: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Rounded pixels [N, 2] and whether they are in front of the camera and 3 px inside the image."""
    cam = transform_points(invert(camera.cam2ego), points_ego)
    uvw = cam @ camera.cam2img.T
    front = cam[:, 2] > 0.5
    pixels = np.round(uvw[:, :2] / np.where(front, uvw[:, 2], 1.0)[:, None]).astype(np.int64)
    height, width = camera.size_hw_px
    return pixels, front & (pixels >= 3).all(axis=1) & (pixels < [width - 3, height - 3]).all(axis=1)


def uniform_neighbourhood(owners: np.ndarray) -> np.ndarray:
    """Pixels whose 5x5 neighbourhood shows one thing only."""
    values, kernel = owners.astype(np.float32), np.ones((5, 5), np.uint8)
    result: np.ndarray = cv2.erode(values, kernel) == cv2.dilate(values, kernel)
    return result


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_points_of_an_object_project_into_its_pixels(rig: Rig, class_name: str) -> None:
    # one object alone: nothing that one sensor sees around and the other does not
    snapshot, scan = sense(rig, obj(class_name, 9.0, 1.5))
    points = transform_points(rig.lidar2ego, scan.points[scan.owner == 0, :3].astype(np.float64))
    assert len(points) >= 5
    hits = total = 0
    for camera in rig.cameras:
        owners = owner_image(snapshot, camera, make_weather(make_rng()))
        grown = cv2.dilate((owners == 1).astype(np.uint8), np.ones((3, 3), np.uint8))
        pixels, inside = pixels_of(points, camera)
        hits += int(grown[pixels[inside, 1], pixels[inside, 0]].sum())
        total += int(inside.sum())
    assert total >= 5
    assert hits / total >= 0.95


def share_of_wrong_pixels(snapshot: Snapshot, camera: Camera, count: int) -> float:
    """Painted owners against exact rays through `count` pixels away from outlines."""
    owners = owner_image(snapshot, camera, make_weather(make_rng()))
    rows, columns = np.nonzero(uniform_neighbourhood(owners))
    chosen = make_rng().choice(len(rows), count)
    rows, columns = rows[chosen], columns[chosen]
    rays = np.column_stack([columns, rows, np.ones(count)]) @ np.linalg.inv(camera.cam2img).T
    rays = rays @ camera.cam2ego[:3, :3].T
    planes = snapshot.part_plane_counts
    parts = np.argsort(-planes)
    every = Pairs(parts, np.full(len(parts), count), planes[parts], np.tile(np.arange(count), len(parts)))
    distance, _ = _intersect(snapshot.part_planes, camera.cam2ego[:3, 3], rays.T, every)
    distance = distance.reshape(len(parts), count)
    down = rays[:, 2]
    ground = np.where(down < 0, -camera.cam2ego[2, 3] / np.minimum(down, -1e-9), np.inf)
    hit = distance.min(axis=0) < ground
    exact = np.where(hit, snapshot.part_owner[parts[distance.argmin(axis=0)]] + 1, 0)
    return float((exact != owners[rows, columns]).mean())


def test_cameras_hide_what_a_ray_would_not_reach() -> None:
    """The painter's order against exact rays through 150 pixels of each camera in two full scenes."""
    wrong = []
    for seed in (0, 1):
        writer = _SceneWriter(SceneJob(Path("unused"), QUICK, seed, 1, "train", "scene-0001"))
        snapshot = writer._world.snapshot(3)
        wrong += [share_of_wrong_pixels(snapshot, camera, 150) for camera in writer._rig.cameras]
    assert len(wrong) == 12
    assert np.mean(wrong) < 0.005


@pytest.mark.parametrize("wall_first", [False, True])
def test_an_object_behind_a_wall_has_no_point(rig: Rig, wall_first: bool) -> None:
    things = [obj("car", 20.0, 0.0), wall(12.0, 0.0, np.pi / 2)]
    _, alone = sense(rig, things[0])
    _, hidden = sense(rig, *(reversed(things) if wall_first else things))
    row = int(wall_first)
    assert alone.seen[0] > 20
    assert hidden.seen[row] == 0
    assert hidden.possible[row] == alone.possible[0]


def test_a_car_half_behind_a_wall_keeps_the_other_half(rig: Rig) -> None:
    car = obj("car", 20.0, 0.0, yaw=np.pi / 2)
    _, alone = sense(rig, car)
    # the wall's edge at y = 0 and the sensor at y = 0: the left half of the car is hidden
    _, half = sense(rig, car, wall(12.0, 6.0, np.pi / 2))
    assert 0.35 < half.seen[0] / alone.seen[0] < 0.65
    assert (transform_points(rig.lidar2ego, half.points[half.owner == 0, :3].astype(float))[:, 1] < 0.2).all()


def test_points_on_the_ground_and_on_a_wall_are_where_geometry_says(rig: Rig) -> None:
    _, scan = sense(rig, wall(12.0, 0.0, np.pi / 2))
    points = transform_points(rig.lidar2ego, scan.points[:, :3].astype(np.float64))
    ground = points[scan.owner == GROUND]
    assert np.abs(ground[:, 2]).max() < 0.03
    front = points[(scan.owner == 0) & (np.abs(points[:, 1]) < 5.5)]
    assert len(front) > 100
    assert abs(front[:, 0].mean() - 11.5) < 0.01  # the face of a 1 m thick wall centred at x = 12
    assert front[:, 0].std() < 0.03


def test_lidar_x_points_right_and_cameras_look_where_they_are_named(rig: Rig) -> None:
    assert np.allclose(rig.lidar2ego[:3, 0], [0, -1, 0], atol=0.05)
    assert np.allclose(rig.lidar2ego[:3, 1], [1, 0, 0], atol=0.05)
    expected = {"FRONT": 0, "FRONT_LEFT": 55, "FRONT_RIGHT": -55, "BACK": 180, "BACK_LEFT": 110, "BACK_RIGHT": -110}
    for camera in rig.cameras:
        forward, down = camera.cam2ego[:3, 2], camera.cam2ego[:3, 1]
        yaw = np.degrees(np.arctan2(forward[1], forward[0]))
        assert abs((yaw - expected[camera.name[4:]] + 180) % 360 - 180) < 3
        assert down[2] < -0.99
        assert camera.cam2img[0, 0] == pytest.approx(1260 * 0.44, rel=0.01) or camera.name == "CAM_BACK"


@pytest.mark.parametrize(("side", "bright_left"), [(4.0, True), (-4.0, False)])
def test_an_object_on_the_left_is_painted_on_the_left(rig: Rig, side: float, bright_left: bool) -> None:
    snapshot, _ = sense(rig, obj("car", 14.0, side))
    owners = owner_image(snapshot, rig.cameras[0], make_weather(make_rng()))
    columns = np.nonzero(owners)[1]
    assert len(columns) > 200
    assert (columns.mean() < owners.shape[1] / 2) == bright_left


def test_a_wall_beside_the_camera_is_clipped_not_folded(rig: Rig) -> None:
    # reaches from behind the camera, 2 m to its right, to the front left, crossing the near plane askew
    snapshot, _ = sense(rig, wall(2.0, -3.2, 0.4))
    owners = owner_image(snapshot, rig.cameras[0], make_weather(make_rng()))
    assert (owners[:, -1] == 1).mean() > 0.9
    assert not owners[:, 0].any()
    assert share_of_wrong_pixels(snapshot, rig.cameras[0], 2000) == 0.0


def test_ground_paint_lies_where_the_street_puts_it(rig: Rig) -> None:
    """A white square painted on the map shows up at its projection, in the camera and in the LiDAR's reflectivity."""
    picture = np.full((1200, 1200, 3), 60, dtype=np.uint8)
    ego_pose = np.array([100.0, 200.0, 2.0])
    target_ego = np.array([[12.0, 1.0, 0.0]])
    cos, sin = np.cos(2.0), np.sin(2.0)
    target_map = ego_pose[:2] + [12.0 * cos - 1.0 * sin, 12.0 * sin + 1.0 * cos]
    origin = (40.0, 140.0)
    column, row = np.round((target_map - origin) / 0.1).astype(int)
    picture[row - 3 : row + 4, column - 3 : column + 4] = 250
    ground = Ground(picture, origin, (60, 60, 60))
    # 0.9 times the square of the brightness
    assert ground.reflectivity(target_ego[:, :2], ego_pose)[0] == pytest.approx(0.9 * (250 / 255) ** 2)
    assert ground.reflectivity(target_ego[:, :2] + 1.0, ego_pose)[0] == pytest.approx(0.9 * (60 / 255) ** 2)

    empty = World(layout_of(wall(70.0, 0.0, 0.0)), 42.0).snapshot(0)
    camera = rig.cameras[0]
    painter = CameraPainter(ground, make_weather(make_rng()), camera.size_hw_px, make_rng())
    image = painter.picture(empty, camera, ego_pose, make_rng()).astype(int).sum(axis=2)
    pixels, inside = pixels_of(target_ego, camera)
    assert inside[0]
    horizon = camera.size_hw_px[0] * 6 // 10  # and the haze below it
    rows, columns = np.nonzero(image[horizon:] > 2 * np.median(image[horizon:]))
    assert 100 < len(rows) < 800  # 0.7 m at 10 m
    assert np.abs([columns.mean() - pixels[0, 0], rows.mean() + horizon - pixels[0, 1]]).max() < 2


def test_what_lies_behind_the_camera_is_not_painted(rig: Rig) -> None:
    # 2 m behind the lens, wide enough that its bounding sphere reaches into view
    snapshot, _ = sense(rig, wall(-0.8, 0.0, np.pi / 2))
    assert not owner_image(snapshot, rig.cameras[0], make_weather(make_rng())).any()


def test_returns_thin_out_with_range_and_stop_at_the_limit(rig: Rig) -> None:
    _, scan = sense(rig, wall(16.0, 0.0, np.pi / 2), wall(-38.0, 0.0, np.pi / 2), wall(0.0, 50.0, 0.0))
    share = scan.seen / np.maximum(scan.possible, 1)
    assert share[0] > 0.9
    assert 0.65 < share[1] < 0.9
    assert scan.seen[2] == 0


def test_layout_keeps_objects_of_every_class_around_the_whole_ego_path() -> None:
    counts: list[Counter[str]] = []
    for seed in range(4):
        layout = make_layout(QUICK, np.random.default_rng(seed))
        world = World(layout, QUICK.object_range_m)
        assert np.hypot(*(layout.ego[-1, :2] - layout.ego[0, :2])) > 20
        for index in range(0, QUICK.keyframes, 4):
            things = world.snapshot(index).things
            counts.append(Counter(layout.things[row].class_name for row in things if layout.things[row].category))
    assert min(sum(count.values()) for count in counts) > 30
    mean = {name: sum(count[name] for count in counts) / len(counts) for name in CLASS_NAMES}
    assert min(mean.values()) > 1.2
    assert min(mean["barrier"], mean["traffic_cone"], mean["car"], mean["pedestrian"]) > 6
