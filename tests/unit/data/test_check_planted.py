"""One defect of each kind, all in one dataset: one run of `bevkd data check` finds every one of them, and only them."""

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
from typer.testing import CliRunner

from bevkd_deploy.cli.main import app
from bevkd_deploy.contracts.errors import FindingsError
from bevkd_deploy.data.check import MOST_OF_A_KIND, check_dataset
from bevkd_deploy.data.mmdet3d_export import write_infos
from bevkd_deploy.data.nuscenes_tables import NuScenesTables

CAMERAS = {"FRONT": (48, 96), "REAR": (40, 80), "LEFT": (40, 80)}
VERSION = "v1.0-trainval"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, write_rig_world: Callable[..., Path]) -> Path:
    return write_rig_world(tmp_path_factory.mktemp("clean") / "world", CAMERAS)


def edit(root: Path, name: str, change: Callable[[dict[str, dict[str, Any]], list[dict[str, Any]]], Any]) -> None:
    path = root / VERSION / f"{name}.json"
    rows = json.loads(path.read_text())
    change({row["token"]: row for row in rows}, rows)
    path.write_text(json.dumps(rows))


def plant(root: Path) -> dict[str, str]:
    """Break the dataset in every way; returns what each finding must say, by a name for it."""
    expected: dict[str, str] = {}

    def data(rows: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> None:
        rows["train0-FRONT"]["ego_pose_token"] = "gone-pose"
        rows["train1-REAR"]["is_key_frame"] = False
        rows["val1-LIDAR_TOP-0"]["prev"] = "gone-turn"
        rows["val0-LIDAR_TOP-1"]["prev"] = "val1-LIDAR_TOP-1"
        table.append(dict(rows["train0-LEFT"]))
        del rows["val0-LEFT"]["filename"]

    edit(root, "sample_data", data)
    expected["dangling pose"] = (
        "dangling token: ego_pose.json in {root} has no row 'gone-pose', named by sample_data of"
    )
    expected["dangling turn"] = (
        "sample_data.json in {root} has no row 'gone-turn', named by sample_data val1-LIDAR_TOP-0"
    )
    expected["turn from later"] = "val0-LIDAR_TOP-1 ({lidar}val1.pcd.bin): its prev val1-LIDAR_TOP-1 is not earlier"
    expected["repeated token"] = (
        "sample_data.json repeats tokens: 20 rows, 19 tokens; the first repeated ones: ['train0"
    )
    expected["missing field"] = "sample_data.json: row 14 ('val0-LEFT') lacks filename"
    expected["no keyframe"] = "sample train1 of train has no keyframe of ['REAR']"
    expected["no keyframe either"] = "sample val0 of val has no keyframe of ['LEFT']"  # of the row without a file name

    def boxes(rows: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> None:
        rows["train0-a0"]["size"] = [0, 4.5, 1.6]
        rows["train0-a1"]["translation"] = [float("nan")] * 3
        rows["train0-a2"]["instance_token"] = "gone-instance"
        rows["train1-a0"]["rotation"] = [1, 0, 0]
        rows["train1-a1"]["attribute_tokens"] = ["gone-attribute"]
        rows["train1-a2"]["sample_token"] = "gone-sample"
        rows["val0-a0"]["num_lidar_pts"] = "many"

    edit(root, "sample_annotation", boxes)
    expected["flat box"] = (
        "sample_annotation train0-a0 in {root}/v1.0-trainval: expected a finite translation, a positive"
    )
    expected["NaN box"] = "sample_annotation train0-a1 in {root}/v1.0-trainval: expected a finite translation"
    expected["dangling instance"] = "instance.json in {root} has no row 'gone-instance'"
    expected["short rotation"] = "sample_annotation.json: row train1-a0: rotation must be 4 numbers, got [1, 0, 0]"
    expected["dangling attribute"] = "attribute.json in {root} has no row 'gone-attribute'"
    expected["dangling sample"] = "sample.json in {root} has no row 'gone-sample'"
    expected["no number"] = "sample_annotation.json: row val0-a0: num_lidar_pts must be a number, got 'many'"

    edit(root, "calibrated_sensor", lambda rows, _: rows["c-LEFT"].update(camera_intrinsic=[[0] * 3] * 3))
    edit(root, "ego_pose", lambda rows, _: rows["p-train1-LIDAR_TOP-1"].update(rotation=[0, 0, 0, 0]))
    expected["calibration"] = "calibration of LEFT (of samples/LEFT/log__LEFT__train0.jpg) is not invertible"
    expected["pose"] = (
        "ego pose of {lidar}train3.pcd.bin is no rotation and finite translation: rotation [0.0, 0.0, 0.0"
    )

    def file(name: str) -> Path:
        return root / "samples" / name

    image = file("FRONT/log__FRONT__train1.jpg")
    image.write_bytes(image.read_bytes()[:-9])
    expected["truncated image"] = f"sample train1: FRONT: image {image} is truncated"
    cv2.imwrite(str(file("FRONT/log__FRONT__val0.jpg")), np.zeros((9, 16, 3), np.uint8))
    expected["size"] = (
        f"image {file('FRONT/log__FRONT__val0.jpg')} is (9, 16) (height, width), its calibration says (48,"
    )
    file("REAR/log__REAR__val1.jpg").write_bytes(b"not a photo")
    expected["no image"] = f"image {file('REAR/log__REAR__val1.jpg')} cannot be decoded (11 bytes)"
    file("REAR/log__REAR__val0.jpg").unlink()
    expected["missing image"] = f"image {file('REAR/log__REAR__val0.jpg')} cannot be read: No such file"
    cloud = file("LIDAR_TOP/log__LIDAR_TOP__train1.pcd.bin")
    cloud.write_bytes(cloud.read_bytes()[:-3])
    expected["cut points"] = f"sample train0: point cloud {cloud} is empty or truncated: 15997 bytes"
    cloud = file("LIDAR_TOP/log__LIDAR_TOP__val3.pcd.bin")
    np.full((3, 5), np.nan, np.float32).tofile(cloud)
    expected["NaN points"] = f"sample val1: point cloud {cloud}: 3 of 3 points hold NaN"
    sweep = root / "sweeps/LIDAR_TOP/log__LIDAR_TOP__train0.pcd.bin"
    sweep.write_bytes(b"")
    expected["empty sweep"] = f"sweep train0-LIDAR_TOP-0: point cloud {sweep} is empty or truncated: 0 bytes"
    lidar = "samples/LIDAR_TOP/log__LIDAR_TOP__"
    return {name: text.replace("{root}", str(root)).replace("{lidar}", lidar) for name, text in expected.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_all_of_them_are_found_in_one_run(clean: Path, tmp_path: Path, workers: int) -> None:
    root = Path(shutil.copytree(clean, tmp_path / "world"))
    expected = plant(root)
    report = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["data", "check", str(root), "--workers", str(workers), "--json", str(report)])
    assert isinstance(done.exception, FindingsError) and done.exception.exit_code == 1
    found = json.loads(report.read_text())
    problems = [finding["problem"] for finding in found["findings"]]
    assert done.stdout.splitlines() == [f"{finding['kind']}: {finding['problem']}" for finding in found["findings"]]
    unclaimed = list(problems)
    for name, text in expected.items():
        matching = [problem for problem in problems if text in problem]
        assert len(matching) == 1, f"{name}: {text!r} is said {len(matching)} times in\n" + "\n".join(problems)
        unclaimed.remove(matching[0])
    assert unclaimed == []
    kinds = {finding["kind"] for finding in found["findings"]}
    assert kinds == {"table", "token", "box", "pose", "calibration", "sample", "points", "image"}
    assert (found["samples"], f"{len(problems)} findings" in str(done.exception)) == (4, True)


def test_a_table_that_breaks_off_hides_nothing_else(clean: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(clean, tmp_path / "world"))
    path = root / VERSION / "instance.json"
    path.write_text(path.read_text()[:-5])
    (root / "samples/FRONT/log__FRONT__val0.jpg").unlink()
    first, second = (finding.problem for finding in check_dataset(root).findings)
    assert "instance.json is not valid JSON" in first and "log__FRONT__val0.jpg" in second


def test_everything_that_is_wrong_with_an_info_file_is_found_in_one_run(clean: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(clean, tmp_path / "world"))
    path = tmp_path / "infos.pkl"
    write_infos(NuScenesTables(root, VERSION), VERSION, {"train", "val"}, path)
    content = pickle.loads(path.read_bytes())
    a, b, c, d = content["data_list"]
    del a["images"]["LEFT"]
    a["images"]["REAR"]["cam2img"] = [[0.0] * 3] * 3
    b["instances"][0]["bbox_3d"][3] = -1
    c["lidar_sweeps"][0]["lidar_points"]["lidar2sensor"] = [1]
    c["images"]["FRONT"]["img_path"] = "gone.jpg"
    del d["token"]
    path.write_bytes(pickle.dumps(content, protocol=2))
    cloud = root / "samples/LIDAR_TOP/log__LIDAR_TOP__train1.pcd.bin"
    cloud.write_bytes(b"")
    problems = [finding.problem for finding in check_dataset(root, path).findings]
    for text in ("sample train0 lacks cameras ['LEFT']", "images.REAR: calibration is not invertible", str(cloud),
                 "instances[0]: bbox_3d must be finite", "lidar2sensor must be a matrix", "FRONT file not found",
                 "data_list[3] lacks 'token'"):  # fmt: skip
        assert sum(text in problem for problem in problems) == 1, (text, problems)
    assert len(problems) == 7


def test_a_hostile_pickle_is_a_finding_and_is_not_run(clean: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"metainfo": Hostile()}))
    (finding,) = check_dataset(clean, path).findings
    assert finding.kind == "info" and f"info file {path} is refused" in finding.problem
    assert not (tmp_path / "owned").exists()


def test_findings_of_one_kind_are_counted_beyond_a_thousand(clean: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(clean, tmp_path / "world"))

    def many(rows: dict[str, dict[str, Any]], table: list[dict[str, Any]]) -> None:
        table.extend({**rows["train0-a0"], "token": f"x{n}", "size": [0, 0, 0]} for n in range(MOST_OF_A_KIND + 5))

    edit(root, "sample_annotation", many)
    findings = check_dataset(root).findings
    assert len(findings) == MOST_OF_A_KIND + 1 and findings[-1].problem == "and 5 more findings of this kind"
