"""One to eight cameras of any name, size and order, and one that fails: from files to an exported student's boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from bevkd_deploy.contracts.recipe import DataConfig
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.contracts.target import load_target
from bevkd_deploy.data.dataset import FrameDataset, collate
from bevkd_deploy.data.events import DropLog
from bevkd_deploy.data.samples import Sample
from bevkd_deploy.data.source import open_split
from bevkd_deploy.exporting.export import ExportOptions, Provenance, export_student
from bevkd_deploy.models.detector import DeployedStudent
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.pipelines.accuracy import detect, feeds_of, sensors_of
from bevkd_deploy.pipelines.data_tools import check_data, export_infos
from bevkd_deploy.pipelines.frame_files import write_frame_files
from bevkd_deploy.pipelines.synthetic_frame import synthetic_feed
from bevkd_deploy.pipelines.torch_detector import TorchDetector
from bevkd_deploy.runtime.detector import Detector

QUIET = Console(quiet=True)

RIGS: dict[int, dict[str, tuple[int, int]]] = {
    1: {"dashcam": (60, 100)},
    4: {"FRONT": (48, 96), "left": (40, 80), "REAR": (96, 96), "right": (44, 77)},
    6: {"CAM_BACK": (45, 80), "CAM_FRONT": (90, 160), "CAM_FRONT_LEFT": (45, 80), "CAM_BACK_LEFT": (45, 80),
        "CAM_BACK_RIGHT": (45, 80), "CAM_FRONT_RIGHT": (64, 64)},
    8: {f"ring_{number}": (40 + 4 * number, 70 + 6 * number) for number in range(8)},
}  # fmt: skip


def split_of(root: Path, source: str, cameras: tuple[str, ...], **changes: object) -> list[Sample]:
    files = {f"{name}_infos": f"nuscenes_infos_{name}.pkl" for name in ("train", "val")}
    infos = files if source == "mmdet3d_infos" else {}
    return open_split(DataConfig(source=source, root=".", cameras=cameras, sweeps=1, **infos, **changes), root, "val")


@pytest.fixture(scope="module", params=RIGS)
def rig(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_rig_world: Callable[..., Path]
) -> tuple[Path, tuple[str, ...]]:
    """A dataset and its cameras, in another order than the tables have them."""
    cameras = RIGS[request.param]
    root = write_rig_world(tmp_path_factory.mktemp("rig") / "world", cameras)
    export_infos(root, "v1.0-trainval", root, sweeps=2, console=QUIET)
    return root, tuple(reversed(cameras))


def test_both_sources_have_the_cameras_in_the_recipes_order(rig: tuple[Path, tuple[str, ...]]) -> None:
    root, cameras = rig
    for infos in (None, root / "nuscenes_infos_val.pkl"):
        result = check_data(root, infos, workers=1, json=None, console=QUIET, results=QUIET)
        assert result.findings == [] and result.files > len(cameras)
    sizes = RIGS[len(cameras)]
    for ours, theirs in zip(split_of(root, "nuscenes", cameras), split_of(root, "mmdet3d_infos", cameras), strict=True):
        assert ours.calibration.cameras == tuple(ours.image_paths) == cameras
        assert ours.calibration.image_sizes_px == tuple(sizes[name] for name in cameras)
        assert ours.calibration.digest() == theirs.calibration.digest() and ours.image_paths == theirs.image_paths
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        for image, name in zip(sensors_of(ours, cameras, DropLog())[0], cameras, strict=True):
            assert image is not None and image.shape[:2] == sizes[name]


def test_from_files_to_the_boxes_of_an_exported_student(
    rig: tuple[Path, tuple[str, ...]], tiny_model_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    root, cameras = rig
    samples = split_of(root, "nuscenes", cameras)
    model = tiny_model_config()
    spec = model.graph_spec(cameras)
    detector = build_detector(model, spec, seed=0).eval()
    with torch.no_grad():
        detector.bbox_head.heatmap[-1].weight *= 1e4  # scores far apart, so that no near tie swaps boxes
    batch = collate([FrameDataset(samples, {"student": spec}, target_of="student", min_radius_cells=1)[0]])
    assert batch["inputs"]["student"]["images"].shape == (1, len(cameras), 32, 64, 3)
    assert batch["targets"]["heatmap"].max() == 1.0

    cells = spec.feature_shape_hw[0] * spec.feature_shape_hw[1]
    seen = torch.unique(batch["inputs"]["student"]["lut_pixel"] // cells)
    assert set(range(len(cameras))) <= set(seen.tolist())  # every camera is read by some cell

    found = detect(samples, {"torch": (spec, TorchDetector(detector).infer)}, QUIET, "detecting")["torch"]
    feeds = feeds_of(samples, spec, DropLog())
    assert synthetic_feed(spec, 0)["images"].shape == feeds[0]["images"].shape
    options = ExportOptions(precisions=("fp32",), plans=(), target=load_target("rtx4090"))
    export_student(DeployedStudent(detector), spec, tmp_path, options, Provenance("rig"), feeds)
    with Detector.load(tmp_path / "student.fp32.onnx", threads=1) as deployed:
        assert deployed.preprocess.spec.cameras == cameras
        for sample in samples:
            ours = deployed.detect(*sensors_of(sample, cameras, DropLog()), sample.calibration)
            np.testing.assert_allclose(ours.scores, found[sample.token].scores, atol=1e-4)
    pictures = write_frame_files(samples[:1], spec, {"teacher": found, "student": found}, tmp_path / "pictures")
    assert len(pictures) == 2 and all(path.stat().st_size > 1000 for path in pictures)


@pytest.mark.parametrize("source", ["nuscenes", "mmdet3d_infos"])
@pytest.mark.parametrize("count", [1, 8])
def test_a_camera_that_fails(
    source: str,
    count: int,
    tiny_model_config: Callable[..., ModelConfig],
    tmp_path: Path,
    write_rig_world: Callable[..., Path],
) -> None:
    root = write_rig_world(tmp_path / "world", RIGS[count])
    export_infos(root, "v1.0-trainval", root, sweeps=2, console=QUIET)
    cameras = tuple(RIGS[count])
    lost = cameras[-1]
    (root / f"samples/{lost}/log__{lost}__val1.jpg").unlink()
    samples = split_of(root, source, cameras, on_error="drop_sensor")
    model = tiny_model_config()
    spec = model.graph_spec(cameras)
    detector = build_detector(model, spec, seed=0).eval()
    drops = DropLog()
    _, lacking = feeds_of(samples, spec, drops)
    assert drops.summary()["counts"] == {"camera": 1}
    cells = spec.feature_shape_hw[0] * spec.feature_shape_hw[1]
    read = set(np.unique(lacking["lut_pixel"] // cells).tolist())
    assert lacking["images"][-1].max() == 0 and read == {*range(count - 1), count}  # count: the dump row
    found = detect(samples, {"torch": (spec, TorchDetector(detector).infer)}, QUIET, "detecting")["torch"]
    assert set(found) == {"val0", "val1"}
    pictures = write_frame_files(samples, spec, {"student": found}, tmp_path / "pictures")
    assert len(pictures) == (4 if count > 1 else 3)  # a frame without any camera has its bird's-eye view alone
