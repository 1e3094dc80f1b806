"""`bevkd data check`: a sound dataset gives nothing, a broken one everything at once."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bevkd_deploy.contracts.classes import CAMERA_NAMES
from bevkd_deploy.data.check import check_dataset as check
from bevkd_deploy.data.nuscenes_tables import NuScenesTables
from bevkd_deploy.data.samples import Sample


def first_samples(root: Path) -> list[Sample]:
    (version,) = (path.name for path in root.glob("v1.0-*"))
    tables = NuScenesTables(root, version)
    return tables.samples(set(tables.scene_names()), CAMERA_NAMES)


def check_dataset(root: Path, infos: Path | None) -> list[str]:
    return [finding.problem for finding in check(root, infos).findings]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_a_sound_dataset_has_no_findings(tiny_world: Path) -> None:
    assert check_dataset(tiny_world, None) == []


def test_every_broken_file_is_found_in_one_pass(tiny_world: Path, tmp_path: Path) -> None:
    root = tmp_path / "world"
    shutil.copytree(tiny_world, root)
    samples = first_samples(root)
    broken = [
        (samples[1], "", samples[1].points_path, "truncated"),
        (samples[2], "CAM_FRONT: ", samples[2].image_paths["CAM_FRONT"], "No such file"),
        (samples[2], "CAM_BACK: ", samples[2].image_paths["CAM_BACK"], "(height, width)"),
        (samples[7], "CAM_BACK_LEFT: ", samples[7].image_paths["CAM_BACK_LEFT"], "truncated"),
    ]
    truncate(broken[0][2])
    broken[1][2].unlink()
    cv2.imwrite(str(broken[2][2]), np.zeros((9, 16, 3), np.uint8))
    truncate(broken[3][2])
    findings = check_dataset(root, None)
    assert len(findings) == 4
    for sample, sensor, path, problem in broken:
        (finding,) = (finding for finding in findings if str(path) in finding)
        assert finding.startswith(f"sample {sample.token}: {sensor}")
        assert problem in finding


def test_broken_tables_and_folders_without_tables_are_findings(tiny_world: Path, tmp_path: Path) -> None:
    (finding,) = check_dataset(tmp_path, None)
    assert "is not a nuScenes root" in finding and "--infos" in finding
    (version,) = tiny_world.glob("v1.0-*")
    shutil.copytree(version, tmp_path / version.name)
    (tmp_path / version.name / "scene.json").unlink()
    # The sensor files are not there either; what leads to the lost table is not told again and again.
    tables = [finding for finding in check(tmp_path).findings if finding.kind != "points"]
    assert len(tables) == 1 and "scene.json cannot be read" in tables[0].problem
    for table in (tmp_path / version.name).glob("*.json"):
        table.write_text("[]")
    (tmp_path / version.name / "scene.json").write_text("[]")
    assert check_dataset(tmp_path, None) == [f"{tmp_path} holds no samples"]


@pytest.fixture
def infos(tmp_path: Path) -> Path:
    """An info file outside its dataset folder, of three frames with six cameras."""
    root = tmp_path / "sensors"
    root.mkdir()
    frames: list[dict[str, Any]] = []
    for token in ("a", "b", "c"):
        np.ones((4, 5), np.float32).tofile(root / f"{token}.bin")
        images = {}
        for camera in CAMERA_NAMES:
            cv2.imwrite(str(root / f"{token}_{camera}.jpg"), np.zeros((9, 16, 3), np.uint8))
            images[camera] = {"img_path": f"{token}_{camera}.jpg", "cam2img": np.eye(3), "lidar2cam": np.eye(4)}
        lidar = {"lidar_path": f"{token}.bin", "lidar2ego": np.eye(4)}
        frames.append(
            {"token": token, "timestamp": 0.0, "ego2global": np.eye(4), "images": images, "lidar_points": lidar}
        )
    path = tmp_path / "infos.pkl"
    metainfo = {"info_version": "1.1", "categories": {"car": 0}}
    path.write_bytes(pickle.dumps({"metainfo": metainfo, "data_list": frames}, protocol=2))
    return path


def test_info_files_are_checked_wherever_they_lie(infos: Path) -> None:
    assert check_dataset(infos.parent / "sensors", infos) == []


def test_every_broken_file_of_an_info_file_is_found(infos: Path) -> None:
    root = infos.parent / "sensors"
    truncate(root / "a_CAM_FRONT.jpg")
    (root / "a.bin").unlink()
    truncate(root / "b.bin")
    cv2.imwrite(str(root / "c_CAM_BACK.jpg"), np.zeros((16, 9, 3), np.uint8))
    findings = check_dataset(root, infos)
    expected = [("a", "a.bin", "not found"), ("a", "a_CAM_FRONT.jpg", "truncated"), ("b", "b.bin", "truncated"),
                ("c", "c_CAM_BACK.jpg", "(16, 9)")]  # fmt: skip
    assert len(findings) == len(expected)
    for token, name, problem in expected:
        (finding,) = (finding for finding in findings if str(root / name) in finding)
        assert f"sample {token}" in finding or problem == "truncated"
        assert problem in finding


def test_frames_that_lack_a_camera_are_a_finding(infos: Path) -> None:
    content = pickle.loads(infos.read_bytes())
    del content["data_list"][1]["images"]["CAM_BACK"]
    infos.write_bytes(pickle.dumps(content, protocol=2))
    (finding,) = check_dataset(infos.parent / "sensors", infos)
    assert "sample b lacks cameras ['CAM_BACK']" in finding


def test_a_file_that_is_no_info_file_is_a_finding(infos: Path) -> None:
    infos.write_bytes(b"junk")
    (finding,) = check_dataset(infos.parent / "sensors", infos)
    assert "infos.pkl is refused" in finding
