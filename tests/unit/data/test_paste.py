"""Ground-truth paste: what is collected, and what a frame looks like afterwards."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.errors import ArtifactError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, PasteConfig
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.object_database import ObjectDatabase, build_database, database_key
from bevkd_deploy.data.paste import Paster
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sensor_files import load_points
from bevkd_deploy.data.source import open_split
from bevkd_deploy.geometry.boxes import footprints_overlap, points_in_boxes

CAR, BUS = CLASS_NAMES.index("car"), CLASS_NAMES.index("bus")


@pytest.fixture(scope="module")
def samples(tiny_world: Path) -> list[Sample]:
    return open_split(DataConfig(source="nuscenes", root="unused"), tiny_world, "train")


def cloud_in(box: np.ndarray, count: int, intensity: float) -> np.ndarray:
    """Points inside an upright box, told apart by their intensity."""
    rng = np.random.default_rng(count)
    points = np.zeros((count, 5), dtype=np.float32)
    points[:, :3] = box[:3] + rng.uniform(-0.3, 0.3, (count, 3))
    points[:, 3] = intensity
    return points


def car_at(x: float, y: float) -> list[float]:
    return [x, y, 0.0, 4.0, 2.0, 1.5, 0.0, 3.0, 0.0]


@pytest.fixture
def database() -> ObjectDatabase:
    """Five cars in a row, 10 m apart, and a bus far away; object i has 6 + i points of intensity i."""
    boxes = np.array([*(car_at(10.0 * i, 5.0) for i in range(5)), [0.0, -40.0, 0.0, 12.0, 3.0, 3.0, 1.0, 0.0, 0.0]])
    clouds = [cloud_in(box, 6 + number, number) for number, box in enumerate(boxes)]
    starts = np.cumsum([0, *map(len, clouds)])
    return ObjectDatabase(boxes, np.array([CAR] * 5 + [BUS]), starts, np.concatenate(clouds))


def paste(
    database: ObjectDatabase, up_to: dict[str, int], boxes: list[list[float]], points: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    paster = Paster(database, PasteConfig(up_to=up_to), until_position=10)
    stacked = np.array(boxes, dtype=np.float64).reshape(-1, 9)
    return paster(points, stacked, np.full(len(boxes), CAR), np.random.default_rng(seed))


def test_a_frame_is_filled_up_to_a_number(database: ObjectDatabase) -> None:
    empty = np.zeros((0, 5), dtype=np.float32)
    points, boxes, labels = paste(database, {"car": 3, "bus": 4}, [car_at(60, 60)], empty)
    assert sorted(labels.tolist()) == [CAR, CAR, BUS]  # one car is there; of buses there is one alone
    assert len({tuple(box) for box in boxes[:, :2].tolist()}) == 3
    assert np.isnan(boxes[:, 7:9]).all()
    assert not np.isnan(database.boxes).any()  # the database keeps its own
    # Each object brings all of its points, with time lag 0, and nothing else comes.
    for box, label in zip(boxes, labels, strict=True):
        row = 5 if label == BUS else round(box[0] / 10)
        assert np.array_equal(points[points[:, 3] == row], database.points_of(row))
    assert len(points) == points_in_boxes(points, boxes).any(axis=1).sum()
    assert not points[:, 4].any()
    enough = [car_at(60, 60)] * 3
    assert len(paste(database, {"car": 3}, enough, empty)[1]) == 0
    assert len(paste(database, {"truck": 3}, [], empty)[1]) == 0


def test_what_collides_is_left_out(database: ObjectDatabase) -> None:
    empty = np.zeros((0, 5), dtype=np.float32)
    across = [10.0, 5.0, 0.0, 44.0, 1.0, 1.0, 0.0, 0.0, 0.0]  # over the first four places (x from -12 to 32)
    _, boxes, _ = paste(database, {"car": 6}, [across], empty)
    assert boxes[:, 0].tolist() == [40.0]
    # Beside one another they fit; two databases of the same places do not.
    twice = ObjectDatabase(
        np.tile(database.boxes[:5], (2, 1)), np.full(10, CAR), np.arange(0, 11), cloud_in(database.boxes[0], 10, 0)
    )
    _, boxes, _ = paste(twice, {"car": 10}, [], empty)
    assert sorted(boxes[:, 0].tolist()) == [0.0, 10.0, 20.0, 30.0, 40.0]


def test_the_scene_gives_way_to_what_is_pasted(database: ObjectDatabase) -> None:
    inside, beside, above = [20.5, 5.2, 0.3, 99, 0.2], [20.0, 6.5, 0.0, 98, 0.0], [20.0, 5.0, 1.0, 97, 0.0]
    scene = np.array([inside, beside, above], dtype=np.float32)
    before = scene.copy()
    points, boxes, _ = paste(database, {"car": 5}, [], scene)
    assert len(boxes) == 5
    assert points[points[:, 3] > 90, 3].tolist() == [98, 97]
    assert np.array_equal(scene, before)


def test_draws_depend_on_the_seed_alone(database: ObjectDatabase) -> None:
    empty = np.zeros((0, 5), dtype=np.float32)
    drawn = [tuple(paste(database, {"car": 2}, [], empty, seed)[1][:, 0]) for seed in range(30)]
    again = [tuple(paste(database, {"car": 2}, [], empty, seed)[1][:, 0]) for seed in range(30)]
    assert drawn == again
    assert len({frozenset(pair) for pair in drawn}) > 6  # of ten pairs


def test_a_database_holds_the_objects_of_its_frames(samples: list[Sample]) -> None:
    done: list[int] = []
    database = build_database(samples, PasteConfig(min_points=8), done.append)
    assert done == sorted(done) and 0 < done[-1] <= len(samples)
    expected: list[tuple[int, int, np.ndarray]] = []
    for sample in samples:
        cloud = load_points(sample.points_path)
        inside = points_in_boxes(cloud, sample.boxes)
        for row in range(len(sample.boxes)):
            if inside[:, row].sum() >= 8 and sample.num_points[row] >= 8:
                expected.append((int(sample.labels[row]), int(inside[:, row].sum()), cloud[inside[:, row]]))
    assert len(database) == len(expected) > 10
    got = sorted((int(database.labels[row]), len(database.points_of(row))) for row in range(len(database)))
    assert got == sorted((label, count) for label, count, _ in expected)
    for row in range(len(database)):
        cloud = database.points_of(row)
        assert points_in_boxes(cloud, database.boxes[row][None]).all()
        assert any(np.array_equal(cloud, other) for _, _, other in expected)


def test_points_of_other_sensors_do_not_count(samples: list[Sample]) -> None:
    """The annotation adds radar points; only those of the cloud can be pasted."""
    boasting = [replace(sample, num_points=sample.num_points + 100) for sample in samples]
    config = PasteConfig(min_points=8)
    found = build_database(boasting, config)
    assert np.diff(found.starts).min() >= 8
    assert len(found) == len(build_database(samples, config))


def test_only_the_wanted_classes_evenly_over_the_split(samples: list[Sample]) -> None:
    label = int(np.bincount(np.concatenate([s.labels[s.num_points >= 5] for s in samples])).argmax())
    everything = build_database(samples, PasteConfig(up_to={CLASS_NAMES[label]: 1}))
    assert set(everything.labels.tolist()) == {label}
    few = build_database(samples, PasteConfig(up_to={CLASS_NAMES[label]: 1}, objects_per_class=3))
    assert len(few) == 3
    assert np.array_equal(few.boxes[[0, -1]], everything.boxes[[0, -1]])  # from the first to the last


def test_a_frame_without_lidar_gives_nothing(samples: list[Sample]) -> None:
    blind = [replace(sample, points_path=None) for sample in samples]
    database = build_database(blind, PasteConfig())
    assert len(database) == 0
    assert len(paste(database, {"car": 3}, [], np.zeros((0, 5), np.float32))[1]) == 0


def test_saving_and_loading(database: ObjectDatabase, tmp_path: Path) -> None:
    path = tmp_path / "objects" / "a.npz"
    database.save(path)
    loaded = ObjectDatabase.load(path)
    for name in ("boxes", "labels", "starts", "points"):
        assert np.array_equal(getattr(loaded, name), getattr(database, name))
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_a_damaged_or_hostile_file_is_refused(database: ObjectDatabase, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    database.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"object database .*a\.npz cannot be read"):
        ObjectDatabase.load(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ArtifactError, match="cannot be read"):
        ObjectDatabase.load(path)
    np.savez(path, boxes=np.array([Hostile()]), labels=np.zeros(1), starts=np.zeros(2), points=np.zeros((0, 5)))
    with pytest.raises(ArtifactError, match="cannot be read"):
        ObjectDatabase.load(path)
    np.save(tmp_path / "one.npy", database.boxes)
    with pytest.raises(ArtifactError, match="cannot be read"):
        ObjectDatabase.load(tmp_path / "one.npy")
    replace(database, boxes=database.boxes[:2]).save(path)
    with pytest.raises(ArtifactError, match="is inconsistent"):
        ObjectDatabase.load(path)


def test_the_key_follows_what_decides_the_database(samples: list[Sample], tmp_path: Path) -> None:
    key = database_key(samples, PasteConfig())
    assert key == database_key(
        list(samples), PasteConfig(up_to={**dict(reversed(PasteConfig().up_to.items())), "car": 9})
    )
    assert key == database_key(samples, PasteConfig(until_fraction=0.5))
    copied = tmp_path / samples[0].points_path.name
    copied.write_bytes(samples[0].points_path.read_bytes()[:-20])
    others = [
        database_key(samples[1:], PasteConfig()),
        database_key(samples, PasteConfig(min_points=6)),
        database_key(samples, PasteConfig(objects_per_class=6)),
        database_key(samples, PasteConfig(up_to={"car": 2})),
        database_key([replace(samples[0], boxes=samples[0].boxes + 0.1), *samples[1:]], PasteConfig()),
        database_key([replace(samples[0], points_path=copied), *samples[1:]], PasteConfig()),
    ]
    assert len({key, *others}) == 7
    # What has no points gives nothing.
    assert database_key([replace(samples[0], points_path=None), *samples[1:]], PasteConfig()) == others[0]


def boxes_learned(frame: dict[str, Any]) -> int:
    return int(frame["targets"]["mask"][:, 0].sum())


def test_frames_of_a_dataset_are_filled_until_a_position(
    samples: list[Sample], tiny_model_config: Callable[..., ModelConfig]
) -> None:
    roomy = {"max_pillars": 9000, "max_points": 600}
    spec = tiny_model_config(range_m=(-60.0, -60.0, -5.0, 60.0, 60.0, 5.0), lidar=roomy).graph_spec(("CAM_FRONT",))
    database = build_database(samples[2:], PasteConfig())
    up_to = dict.fromkeys(CLASS_NAMES, 6)
    augmentation = AugmentationConfig(rotation_rad=0.5, flip_x=True, paste=PasteConfig(up_to=up_to))
    paster = Paster(database, PasteConfig(up_to=up_to), until_position=8)

    def make(**changes: Any) -> FrameDataset:
        return FrameDataset(
            samples, {"student": spec}, target_of="student", min_radius_cells=1, augmentation=augmentation, **changes
        )

    plain, filled, cached = make(), make(paster=paster), make(paster=paster, cache_sensors=True)
    more = 0
    for position in range(8):
        first, second = plain[position], filled[position]
        more += boxes_learned(second) - boxes_learned(first)
        for again in (filled[position], cached[position]):
            assert all((again["targets"][key] == value).all() for key, value in second["targets"].items())
            assert all(
                (again["inputs"]["student"][key] == value).all() for key, value in second["inputs"]["student"].items()
            )
        assert (first["inputs"]["student"]["images"] == second["inputs"]["student"]["images"]).all()
        assert (first["inputs"]["student"]["lut_pixel"] == second["inputs"]["student"]["lut_pixel"]).all()
    assert more > 8
    for position in range(8, 12):
        first, second = plain[position], filled[position]
        assert all((first["targets"][key] == value).all() for key, value in second["targets"].items())
        assert (first["inputs"]["student"]["pillars"] == second["inputs"]["student"]["pillars"]).all()


def test_pasted_objects_overlap_nothing_and_keep_their_points(samples: list[Sample], tiny_spec: GraphSpec) -> None:
    database = build_database(samples, PasteConfig())
    paster = Paster(database, PasteConfig(up_to=dict.fromkeys(CLASS_NAMES, 10)), until_position=99)
    sample = samples[0]
    cloud = load_points(sample.points_path)
    points, boxes, labels = paster(cloud, sample.boxes, sample.labels, np.random.default_rng(4))
    assert len(boxes) > 3
    assert not footprints_overlap(boxes, sample.boxes).any()
    among = footprints_overlap(boxes, boxes)
    assert np.array_equal(among, np.eye(len(boxes), dtype=bool))
    for box, label in zip(boxes, labels, strict=True):
        row = int(np.flatnonzero((database.boxes[:, :7] == box[:7]).all(axis=1) & (database.labels == label))[0])
        inside = points[points_in_boxes(points, box[None])[:, 0]]
        assert np.array_equal(inside, database.points_of(row))
    # The annotated objects lose nothing.
    before = points_in_boxes(cloud, sample.boxes).sum(axis=0)
    assert np.array_equal(points_in_boxes(points, sample.boxes).sum(axis=0), before)
