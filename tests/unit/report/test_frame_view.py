from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import DataError
from bevkd_deploy.contracts.files import read_json, write_json
from bevkd_deploy.report.frame_view import FrameBox, box_array, load_frame_view, write_frame_view

BOX = (1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.1, None, None)


def test_round_trip(make_frame, tmp_path: Path) -> None:
    view = make_frame(truth=[FrameBox(box=BOX, label="car")])
    path = write_frame_view(view, tmp_path)
    assert path.name == "frame0.json"
    assert read_json(path, "frame")["boxes"]["truth"][0] == {"box": list(BOX), "label": "car", "score": None}
    assert load_frame_view(path) == view


def test_relative_paths_start_at_the_frame_file(make_frame, tmp_path: Path) -> None:
    view = make_frame()
    content = view.model_dump(mode="json")
    content.update(points_path="points.bin", images={"CAM_FRONT": "front.png"})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("points.bin", "front.png"):
        shutil.copy(tmp_path / name, moved / name)
    loaded = load_frame_view(write_json(moved / "frame0.json", content))
    assert loaded.points_path == moved / "points.bin"
    assert loaded.images["CAM_FRONT"] == moved / "front.png"


def test_scores_below_the_limit_are_left_out(make_frame) -> None:
    boxes = [FrameBox(box=BOX, label="car", score=score) for score in (0.2, 0.3, 0.9)]
    view = make_frame(student=boxes, truth=[FrameBox(box=BOX, label="car")])
    assert [box.score for box in view.shown("student", 0.3)] == [0.3, 0.9]
    assert len(view.shown("truth", 0.99)) == 1
    assert view.shown("teacher", 0.0) == []


def test_array_of_boxes() -> None:
    array = box_array([FrameBox(box=BOX, label="car")])
    assert array.shape == (1, 9) and np.isnan(array[0, 7:]).all()
    assert box_array([]).shape == (0, 9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lidar2img": {}}, "lidar2img must name the cameras"),
        ({"range_m": (1, 0, 0, 0, 1, 1)}, "mins, maxs"),
        ({"boxes": {"someone": []}}, "boxes must belong to"),
        ({"boxes": {"truth": [{"box": [1] * 8, "label": "car"}]}}, "boxes.truth.0.box"),
        ({"boxes": {"truth": [{"box": [None] * 9, "label": "car"}]}}, "finite"),
        ({"extra": 1}, "extra"),
    ],
)
def test_problems_name_the_file_and_the_key(make_frame, tmp_path: Path, change: dict, said: str) -> None:
    content = {**make_frame().model_dump(mode="json"), **change}
    path = write_json(tmp_path / "bad.json", content)
    with pytest.raises(DataError, match="bad.json") as caught:
        load_frame_view(path)
    assert said in str(caught.value)


def test_missing_sensor_file_is_named(make_frame, tmp_path: Path) -> None:
    path = write_frame_view(make_frame(), tmp_path)
    (tmp_path / "front.png").unlink()
    with pytest.raises(DataError, match=r"names a CAM_FRONT file that is missing: .*front\.png"):
        load_frame_view(path)
