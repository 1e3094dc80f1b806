"""Every number of a difficulty moves what it is named after, and the three difficulties are in order."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.data.synthetic import PROFILES, write_dataset
from bevkd_deploy.data.synthetic.camera import make_weather
from bevkd_deploy.data.synthetic.dataset import SceneJob, _SceneWriter
from bevkd_deploy.data.synthetic.ground import Ground
from bevkd_deploy.data.synthetic.layout import make_layout
from bevkd_deploy.data.synthetic.lidar import GROUND, Lidar, Scan
from bevkd_deploy.data.synthetic.profiles import DIFFICULTIES, EASY, HARD, NORMAL, Difficulty, get_profile
from bevkd_deploy.data.synthetic.rig import make_rig
from bevkd_deploy.data.synthetic.scenery import FURNITURE_SIZES_M, furniture
from bevkd_deploy.data.synthetic.world import Snapshot, World

#: The quickstart's world with smaller pictures.
QUICK = replace(PROFILES["quickstart"], image_hw_px=(198, 352), keyframes=6)
SEEDS = range(4)


def scene(seed: int, difficulty: Difficulty) -> _SceneWriter:
    return _SceneWriter(SceneJob(Path("unused"), replace(QUICK, difficulty=difficulty), seed, 1, "train", "scene"))


def sensed(seed: int, **changes: Any) -> tuple[_SceneWriter, Snapshot, Scan]:
    """A scene like the normal one but for some numbers, and one turn of its LiDAR."""
    writer = scene(seed, replace(NORMAL, **changes))
    snapshot = writer._world.snapshot(5)
    scan = writer._lidar.scan(snapshot, writer._ground, writer._layout.ego[5], np.random.default_rng(0))
    return writer, snapshot, scan


@dataclass(frozen=True)
class Survey:
    """What the LiDAR gets of the annotated objects of several scenes."""

    categories: list[str]
    seen: np.ndarray
    possible: np.ndarray
    frames: int

    def per_frame(self, category: str = "") -> float:
        return sum(category in name for name in self.categories) / self.frames

    def reached(self, category: str) -> float:
        """Share of the rays that reach the objects of a category."""
        rows = [category in name for name in self.categories]
        return float(self.seen[rows].sum() / self.possible[rows].sum())


def survey(difficulty: Difficulty, seeds: range = SEEDS) -> Survey:
    """Scenes on plain ground, without pictures: two instants of each."""
    profile = replace(QUICK, difficulty=difficulty)
    ground = Ground(np.full((2, 2, 3), 90, dtype=np.uint8), (0.0, 0.0), (90, 90, 90))
    names: list[str] = []
    seen, possible = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        layout = make_layout(profile, rng)
        world, lidar = World(layout, profile.reach_m), Lidar(profile, make_rig(profile, rng).lidar2ego)
        for index in (0, len(layout.ego) - 1):
            snapshot = world.snapshot(index, faces=False)
            scan = lidar.scan(snapshot, ground, layout.ego[index], rng)
            rows = np.flatnonzero(snapshot.annotated)
            names += [layout.things[snapshot.things[row]].category for row in rows]
            seen.append(scan.seen[rows])
            possible.append(scan.possible[rows])
    return Survey(names, np.concatenate(seen), np.concatenate(possible), 2 * len(seeds))


def test_traffic_and_walkers() -> None:
    dense = survey(replace(NORMAL, traffic_gap_m=(8.0, 9.0), walker_gap_m=(2.0, 3.0)))
    sparse = survey(replace(NORMAL, traffic_gap_m=(40.0, 41.0), walker_gap_m=(20.0, 30.0)))
    assert dense.per_frame("vehicle") > 1.2 * sparse.per_frame("vehicle")
    assert dense.per_frame("pedestrian") > 1.6 * sparse.per_frame("pedestrian")


def test_parked_vehicles_hide_pedestrians() -> None:
    close, open_ = (survey(replace(NORMAL, parked_gap_m=gap), range(8)) for gap in ((0.4, 1.0), (50.0, 60.0)))
    assert close.reached("pedestrian") < 0.8 * open_.reached("pedestrian")


def test_furniture() -> None:
    def pieces(gap_m: tuple[float, float]) -> int:
        difficulty = replace(NORMAL, furniture_gap_m=gap_m)
        things = make_layout(replace(QUICK, difficulty=difficulty), np.random.default_rng(0)).things
        return sum(not thing.category and thing.size[2] < 2.2 for thing in things)

    assert pieces((4.0, 5.0)) > 2 * pieces((30.0, 31.0)) > 0


@pytest.mark.parametrize("kind", FURNITURE_SIZES_M)
def test_furniture_has_the_size_it_says(kind: str) -> None:
    shape, size = furniture(kind, np.random.default_rng(0))
    low, high = shape.part_points.min(axis=(0, 1)), shape.part_points.max(axis=(0, 1))
    assert (high - low <= np.array(size) + 1e-9).all()
    assert high[2] == pytest.approx(size[2])


def test_object_range() -> None:
    for share in (0.5, 1.0):
        _, snapshot, _ = sensed(0, object_range=share)
        boxes = snapshot.boxes[snapshot.annotated]
        farthest = np.hypot(boxes[:, 0], boxes[:, 1]).max()
        assert 0.85 * share * QUICK.object_range_m < farthest < share * QUICK.object_range_m


@pytest.mark.parametrize("sigma", [0.005, 0.03])
def test_range_noise_is_the_standard_deviation_of_a_range(sigma: float) -> None:
    _, _, exact = sensed(0, lidar_noise_m=0.0)
    _, _, noisy = sensed(0, lidar_noise_m=sigma)
    ranges = [np.linalg.norm(scan.points[:, :3].astype(np.float64), axis=1) for scan in (exact, noisy)]
    residual = ranges[1] - ranges[0]
    for chosen, expected in ((noisy.owner != GROUND, sigma), (noisy.owner == GROUND, 0.4 * sigma)):
        assert residual[chosen].std() == pytest.approx(expected, rel=0.05)
        assert abs(residual[chosen].mean()) < 0.05 * sigma


@pytest.mark.parametrize("loss", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.6)])
def test_lost_returns(loss: tuple[float, float]) -> None:
    writer, snapshot, scan = sensed(0, lidar_loss=loss)
    whole = Lidar(replace(QUICK, difficulty=replace(NORMAL, lidar_loss=(0.0, 0.0))), writer._rig.lidar2ego)
    rng = np.random.default_rng(0)
    every = whole.scan(snapshot, writer._ground, writer._layout.ego[5], rng)
    fade = np.linalg.norm(every.points[:, :3], axis=1) / QUICK.lidar_range_m
    # dark surfaces lose some in both; what is lost beyond it is the difficulty's
    lost = 1 - len(scan.points) / len(every.points)
    assert lost == pytest.approx(float((loss[0] + loss[1] * fade**2).mean()), abs=0.01)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 8.0])
def test_image_noise_is_the_standard_deviation_of_a_pixel(sigma: float) -> None:
    writer = scene(0, replace(NORMAL, image_noise=sigma))
    noise = writer._painter._brighter.astype(int) - writer._painter._darker
    assert noise.std() == pytest.approx(sigma, rel=0.06)  # whole levels
    assert abs(noise.mean()) < 0.01 * sigma


def test_exposure_dusk_and_haze() -> None:
    def brightness(**changes: Any) -> float:
        writer, snapshot, _ = sensed(0, **changes)
        painted = [
            writer._painter.picture(snapshot, c, writer._layout.ego[5], writer._rng) for c in writer._rig.cameras
        ]
        return float(np.mean(painted))

    normal = brightness(exposure=(1.0, 1.0))
    assert brightness(exposure=(0.5, 0.5)) == pytest.approx(0.5 * normal, rel=0.02)
    assert 0.24 * normal < brightness(exposure=(1.0, 1.0), dusk=1.0) < 0.41 * normal
    dim = [make_weather(np.random.default_rng(n), replace(NORMAL, dusk=0.4)).exposure[1] < 0.5 for n in range(400)]
    assert np.mean(dim) == pytest.approx(0.4, abs=0.08)
    assert brightness(exposure=(1.0, 1.0), haze_m=30.0) > 1.1 * normal  # the haze is bright


def test_easy_normal_and_hard_are_in_order() -> None:
    easy, normal, hard = (survey(difficulty, range(8)) for difficulty in DIFFICULTIES.values())
    assert easy.per_frame() < 0.75 * normal.per_frame() and normal.per_frame() < 0.9 * hard.per_frame()
    hidden = [float((found.seen <= 0.4 * found.possible).mean()) for found in (easy, normal, hard)]
    assert hidden[0] < hidden[1] - 0.03 and hidden[1] < hidden[2] - 0.03
    points = [float(np.median(found.seen[found.seen > 0])) for found in (easy, normal, hard)]
    assert points[0] > points[1] > points[2]


def test_the_difficulty_is_recorded(tmp_path: Path) -> None:
    profile = replace(PROFILES["tiny"], keyframes=1)
    write_dataset(tmp_path / "w", profile=profile, difficulty="hard", train_scenes=1, val_scenes=0, seed=1)
    made = json.loads((tmp_path / "w" / "dataset.json").read_text())
    assert made["profile"]["difficulty"] == json.loads(json.dumps(asdict(HARD)))


def test_numbers_are_in_order() -> None:
    for name in ("lidar_noise_m", "image_noise", "dusk"):
        assert getattr(EASY, name) <= getattr(NORMAL, name) < getattr(HARD, name)


def test_an_unknown_difficulty_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown difficulty: got 'insane', expected one of easy, normal, hard"):
        get_profile("tiny", "insane")
    assert get_profile("tiny").difficulty is NORMAL
