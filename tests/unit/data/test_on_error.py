"""`data.on_error`: every broken sensor is an error with its path, or a counted event; never something in between."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.data.dataset import FrameDataset
from bevkd_deploy.data.events import DropLog, DroppedSensor
from bevkd_deploy.data.loader import frame_loader
from bevkd_deploy.data.mmdet3d_export import write_infos
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.sampling import EpochSampler
from bevkd_deploy.data.sensor_files import load_sample, without_broken_files
from bevkd_deploy.data.source import open_split

CAMERAS = {"FRONT": (48, 96), "REAR": (40, 80)}
VERSION = "v1.0-trainval"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, write_rig_world: Callable[..., Path]) -> Path:
    root = write_rig_world(tmp_path_factory.mktemp("clean") / "world", CAMERAS)
    for name in ("train", "val"):
        write_infos(NuScenesTables(root, VERSION), VERSION, {name}, root / f"{name}.pkl")
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "world"))


def config(source: str = "nuscenes", **changes: object) -> DataConfig:
    infos = {"train_infos": "train.pkl", "val_infos": "val.pkl"} if source == "mmdet3d_infos" else {}
    common = {"root": ".", "cameras": tuple(CAMERAS), "sweeps": 2, **changes}
    return DataConfig(source=source, **infos, **common)


def table(root: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / VERSION / f"{name}.json"
    rows = json.loads(path.read_text())
    for row in rows:
        change(row)
    path.write_text(json.dumps(rows))


def image(root: Path) -> Path:
    return root / "samples/REAR/log__REAR__train1.jpg"


def cloud(root: Path) -> Path:
    return root / "samples/LIDAR_TOP/log__LIDAR_TOP__train3.pcd.bin"


def sweep(root: Path) -> Path:
    return root / "sweeps/LIDAR_TOP/log__LIDAR_TOP__train2.pcd.bin"


def with_nan(path: Path) -> None:
    points = np.fromfile(path, np.float32)
    points[7] = np.nan
    points.tofile(path)


FILES: dict[str, tuple[str, Damage, str]] = {
    "truncated JPEG": ("camera", lambda r: image(r).write_bytes(image(r).read_bytes()[:-9]), "is truncated: "),
    "corrupt JPEG": ("camera", lambda r: image(r).write_bytes(b"\xff\xd8junk\xff\xd9"), "cannot be decoded (8 bytes)"),
    "wrong size": (
        "camera",
        lambda r: cv2.imwrite(str(image(r)), np.zeros((9, 16, 3), np.uint8)),
        "is (9, 16) (height",
    ),
    "empty points": ("lidar", lambda r: cloud(r).write_bytes(b""), "is empty or truncated: 0 bytes, expected"),
    "cut points": ("lidar", lambda r: cloud(r).write_bytes(cloud(r).read_bytes()[:-3]), "15997 bytes, expected"),
    "NaN points": ("lidar", lambda r: with_nan(cloud(r)), "1 of 800 points hold NaN or infinity"),
    "empty sweep": ("sweep", lambda r: sweep(r).write_bytes(b""), "is empty or truncated: 0 bytes, expected"),
}
PATHS = {"camera": image, "lidar": cloud, "sweep": sweep}


def frames(samples: list[Sample]) -> list[Any]:
    return [load_sample(sample, tuple(CAMERAS)) for sample in samples]


@pytest.mark.parametrize("source", ["nuscenes", "mmdet3d_infos"])
@pytest.mark.parametrize("damage", FILES)
def test_a_broken_file(root: Path, source: str, damage: str) -> None:
    kind, apply, problem = FILES[damage]
    apply(root)
    with pytest.raises(DataError) as error:
        frames(open_split(config(source), root, "train"))
    assert str(PATHS[kind](root)) in str(error.value) and problem in str(error.value)

    samples = open_split(config(source, on_error="drop_sensor"), root, "train")
    whole, lacking = frames(samples)
    assert whole.dropped == () and len(whole.points) > 1500 and all(image is not None for image in whole.images)
    (event,) = lacking.dropped
    assert (event.token, event.kind) == ("train1", kind)
    assert str(PATHS[kind](root)) in event.reason and problem in event.reason
    assert [image is None for image in lacking.images] == [False, kind == "camera"]
    # A sweep that is lost leaves the keyframe and the other sweep, which together are never all the points there are.
    least, most = {"camera": (2000, 2400), "lidar": (0, 0), "sweep": (1500, 1600)}[kind]
    assert least <= len(lacking.points) <= most


@pytest.mark.parametrize("source", ["nuscenes", "mmdet3d_infos"])
def test_a_missing_file(root: Path, source: str) -> None:
    image(root).unlink()
    with pytest.raises(DataError, match=r"log__REAR__train1\.jpg"):
        frames(open_split(config(source), root, "train"))
    _, lacking = frames(open_split(config(source, on_error="drop_sensor"), root, "train"))
    (event,) = lacking.dropped
    assert (event.kind, event.sensor) == ("camera", "REAR") and str(image(root)) in event.reason
    assert lacking.images[1] is None


TABLES: dict[str, tuple[str, str, Damage, str]] = {
    "no keyframe": (
        "camera", "REAR",
        lambda r: table(r, "sample_data", lambda row: row.update(is_key_frame=row["token"] != "train1-REAR")),
        "sample train1 of train has no keyframe of ['REAR']",
    ),
    "singular intrinsics": (
        "camera", "REAR",
        lambda r: table(r, "calibrated_sensor",
                        lambda row: row.update(camera_intrinsic=[[0] * 3] * 3) if row["token"] == "c-REAR" else 0),
        "calibration of REAR is not invertible in sample train",
    ),
    "no rotation": (
        "camera", "REAR",
        lambda r: table(r, "ego_pose",
                        lambda row: row.update(rotation=[0, 0, 0, 0]) if row["token"] == "p-train1-REAR" else 0),
        "ego2global rotation [0.0, 0.0, 0.0, 0.0]",
    ),
    "sweep without a pose": (
        "sweep", "LIDAR_TOP",
        lambda r: table(r, "ego_pose",
                        lambda row: row.update(rotation=[0] * 4) if row["token"] == "p-train1-LIDAR_TOP-0" else 0),
        "the pose of sweep ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", TABLES)
def test_a_sensor_that_the_tables_make_useless(root: Path, damage: str) -> None:
    kind, sensor, apply, problem = TABLES[damage]
    apply(root)
    with pytest.raises(DataError) as error:
        open_split(config(), root, "train")
    assert problem in str(error.value)
    samples = open_split(config(on_error="drop_sensor"), root, "train")
    last = samples[-1]
    (event,) = last.dropped
    assert (event.token, event.kind, event.sensor) == ("train1", kind, sensor) and problem in event.reason
    assert ("REAR" in last.image_paths, len(last.sweeps)) == ((False, 2) if kind == "camera" else (True, 1))
    assert last.calibration.cameras == tuple(last.image_paths)
    # A camera that nobody asks for is nobody's loss.
    if kind == "camera":
        assert load_sample(last, ("FRONT",)).dropped == ()
        alone = open_split(config(cameras=("FRONT",)), root, "train")
        assert all(sample.dropped == () for sample in alone)


def test_without_the_pose_of_its_lidar_no_frame_can_be_read(root: Path) -> None:
    table(root, "sample_data", lambda row: row.update(is_key_frame="train1-LIDAR" not in row["token"]))
    for on_error in ("fail", "drop_sensor"):
        with pytest.raises(DataError, match=r"sample train1 of train has no keyframe of \['LIDAR_TOP'\]"):
            open_split(config(on_error=on_error), root, "train")


def test_a_frame_without_objects_is_a_frame(root: Path) -> None:
    table(root, "sample_annotation", lambda row: row.update(instance_token="i0"))
    path = root / VERSION / "sample_annotation.json"
    path.write_text(json.dumps([row for row in json.loads(path.read_text()) if row["sample_token"] != "train0"]))
    first, second = open_split(config(), root, "train")
    assert first.boxes.shape == (0, 9) and len(first.annotations or ()) == 0 and len(second.boxes) == 3
    write_infos(NuScenesTables(root, VERSION), VERSION, {"train"}, root / "train.pkl")
    assert [len(sample.boxes) for sample in open_split(config("mmdet3d_infos"), root, "train")] == [0, 3]


INFOS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no token": (lambda i: i.pop("token"), "data_list[1] lacks 'token'; it has ["),
    "no dict": (lambda i: i.update(lidar_points=7), "lidar_points must be a dict, got int"),
    "no timestamp": (lambda i: i.pop("timestamp"), "(sample train1) lacks 'timestamp'"),
    "no images": (lambda i: i.pop("images"), "(sample train1) lacks 'images'"),
    "images no dict": (lambda i: i.update(images=[]), "images must be a dict of cameras, got list"),
    "pose": (lambda i: i.update(ego2global=[[1]]), "ego2global must be a matrix [4, 4], got [1, 1]"),
    "pose text": (lambda i: i.update(ego2global="here"), "ego2global must be a matrix [4, 4], got [0]: 'here'"),
    "box": (lambda i: i["instances"][0].update(bbox_3d=[1, 2]), "instances[0].bbox_3d must be 7 numbers, got [1, 2]"),
    "flat box": (lambda i: i["instances"][0]["bbox_3d"].__setitem__(3, 0.0), "bbox_3d must be finite with positive"),
    "no label": (lambda i: i["instances"][0].pop("bbox_label_3d"), "instances[0] lacks 'bbox_label_3d'"),
    "no count": (
        lambda i: [i["instances"][0].pop(name) for name in ("num_lidar_pts", "bbox_3d_isvalid")],
        "instances[0] has no num_lidar_pts, and lacks 'bbox_3d_isvalid'",
    ),
    "attribute": (lambda i: i["instances"][0].update(attr_label=99), "attr_label must be 0..8, got 99"),
    "instances": (lambda i: i.update(instances={}), "instances must be a list, got dict"),
    "sweeps": (lambda i: i.update(lidar_sweeps=5), "lidar_sweeps must be a list, got int"),
}  # fmt: skip
INFO_SENSORS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "no camera": ("camera", lambda i: i["images"].pop("REAR"), "lacks cameras ['REAR']; it has ['FRONT']"),
    "no path": ("camera", lambda i: i["images"]["REAR"].pop("img_path"), "images.REAR lacks 'img_path'"),
    "shape": ("camera", lambda i: i["images"]["REAR"].update(cam2img=[1.0]), "cam2img must be a matrix [3, 3] or"),
    "singular": ("camera", lambda i: i["images"]["REAR"].update(lidar2cam=np.zeros((4, 4))), "is not invertible"),
    "sweep": ("sweep", lambda i: i["lidar_sweeps"][0]["lidar_points"].pop("lidar2sensor"), "lacks 'lidar2sensor'"),
    "sweep file": ("sweep", lambda i: i["lidar_sweeps"][0]["lidar_points"].update(lidar_path="x"), "file not found"),
    "lidar file": ("lidar", lambda i: i["lidar_points"].update(lidar_path="nowhere.bin"), "file not found; tried"),
}  # fmt: skip


def break_info(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = pickle.loads((root / "train.pkl").read_bytes())
    change(content["data_list"][1])
    (root / "train.pkl").write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("damage", INFOS)
def test_a_malformed_info_is_an_error_whatever_the_policy(root: Path, damage: str) -> None:
    change, problem = INFOS[damage]
    break_info(root, change)
    for on_error in ("fail", "drop_sensor"):
        with pytest.raises(DataError) as error:
            open_split(config("mmdet3d_infos", on_error=on_error), root, "train")
        assert problem in str(error.value) and "train.pkl" in str(error.value)


@pytest.mark.parametrize("damage", INFO_SENSORS)
def test_a_sensor_that_an_info_makes_useless(root: Path, damage: str) -> None:
    kind, change, problem = INFO_SENSORS[damage]
    break_info(root, change)
    with pytest.raises(DataError) as error:
        open_split(config("mmdet3d_infos"), root, "train")
    assert problem in str(error.value)
    _, second = open_split(config("mmdet3d_infos", on_error="drop_sensor"), root, "train")
    (event,) = second.dropped
    assert event.kind == kind and problem in event.reason
    assert load_sample(second, tuple(CAMERAS)).dropped == (event,)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_every_event_reaches_the_batches(
    root: Path, tiny_model_config: Callable[..., ModelConfig], workers: int, cached: bool
) -> None:
    image(root).unlink()
    with_nan(root / "samples/LIDAR_TOP/log__LIDAR_TOP__train1.pcd.bin")
    spec: GraphSpec = tiny_model_config().graph_spec(tuple(CAMERAS))
    samples = open_split(config(on_error="drop_sensor"), root, "train")
    dataset = FrameDataset(samples, {"student": spec}, target_of="student", min_radius_cells=1, cache_sensors=cached)
    log, batches = DropLog(), []
    for _ in range(2):  # the second epoch meets the same sensors and adds nothing
        for batch in frame_loader(dataset, EpochSampler(2, 0), batch_size=1, workers=workers):
            log.add(batch["dropped"])
            batches.append(batch)
    summary = log.summary()
    # The turn with NaN is the keyframe's of one frame and a sweep of the next.
    assert summary["counts"] == {"camera": 1, "lidar": 1, "sweep": 1} and summary["frames"] == 2
    by_token = {batch["token"][0]: batch["inputs"]["student"] for batch in batches}
    assert by_token["train0"]["pillar_count"].sum() == 0
    assert by_token["train1"]["images"][0, 1].max() == 0 < by_token["train1"]["images"][0, 0].max()
    rear = by_token["train0"]["lut_pixel"] >= spec.feature_shape_hw[0] * spec.feature_shape_hw[1]
    dump = len(CAMERAS) * spec.feature_shape_hw[0] * spec.feature_shape_hw[1]
    assert (by_token["train0"]["lut_pixel"][rear] < dump).any()
    lost = by_token["train1"]["lut_pixel"]
    assert not ((lost >= dump // 2) & (lost < dump)).any()  # no cell reads the black image


def test_the_report_counts_by_kind_and_shows_the_first_paths() -> None:
    log = DropLog()
    assert log.lines("training") == []
    events = [DroppedSensor(f"t{n % 2}", "camera", "FRONT", f"image {n}.jpg is truncated") for n in range(5)]
    events.append(DroppedSensor("t0", "sweep", "LIDAR_TOP", "point cloud x.bin is empty"))
    assert log.add(events) == events and log.add(events) == []
    first, *rest = log.lines("training")
    assert first == (
        "dropped sensors in 2 frames while training: cameras 5, LiDAR sweeps 1 (data.on_error: drop_sensor)"
    )
    assert rest[0] == "  sample t0: FRONT: image 0.jpg is truncated"
    assert rest[-1] == "  and 3 more; bevkd data check lists every broken file"


def test_pictures_get_the_sensors_that_can_be_read(root: Path) -> None:
    image(root).unlink()
    cloud(root).write_bytes(b"")
    sample = open_split(config(on_error="drop_sensor"), root, "train")[1]
    usable = without_broken_files(sample, tuple(CAMERAS))
    assert list(usable.image_paths) == ["FRONT"] == list(usable.calibration.cameras)
    assert usable.points_path is None
