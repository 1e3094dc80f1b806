"""Sensor arrays in, boxes out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import ArtifactError, DataError, NonFiniteError, UsageError
from bevkd_deploy.runtime.detector import STAGES, Detector
from bevkd_deploy.runtime.stage_timer import StageTimer

onnx = pytest.importorskip("onnx")


def test_detects(tools, artefact: Path, images, points, calibration) -> None:
    with Detector.load(artefact, threads=1) as detector:
        detections = detector.detect(images, points, calibration)
        feed = detector.preprocess(images, points, calibration)
    np.testing.assert_allclose(detections.boxes, tools.expected_boxes(feed), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(detections.scores, tools.scores)
    assert detections.names() == ("car", "pedestrian", "car", "pedestrian", "pedestrian")


def test_loads_through_a_link_and_from_a_string(artefact: Path, images, points, calibration) -> None:
    link = artefact.with_name("student.onnx")
    link.symlink_to(artefact.name)
    with Detector.load(str(link)) as detector:
        assert len(detector.detect(images, points, calibration)) == 5


def test_the_threshold_leaves_boxes_out(artefact: Path, images, points, calibration) -> None:
    with Detector.load(artefact) as detector:
        assert detector.detect(images, points, calibration, score_threshold=0.5).scores.tolist() == pytest.approx(
            [0.9, 0.7, 0.5]
        )
        assert len(detector.detect(images, points, calibration, score_threshold=1.0)) == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_the_scores_is_refused(artefact: Path, images, points, calibration, threshold) -> None:
    with Detector.load(artefact) as detector, pytest.raises(UsageError, match=r"score_threshold must be in 0\.\.1"):
        detector.detect(images, points, calibration, score_threshold=threshold)


def test_a_frame_without_points_is_detected(artefact: Path, images, calibration) -> None:
    with Detector.load(artefact) as detector:
        assert len(detector.detect(images, np.zeros((0, 5), np.float32), calibration)) == 5


def test_bad_sensor_arrays_are_refused(artefact: Path, images, points, calibration) -> None:
    broken = points.copy()
    broken[3, 1] = np.nan
    with Detector.load(artefact) as detector:
        with pytest.raises(DataError, match="1 of 40 points hold NaN"):
            detector.detect(images, broken, calibration)
        with pytest.raises(DataError, match="expected a uint8"):
            detector.detect([image.astype(np.float32) for image in images], points, calibration)
        with pytest.raises(DataError, match="lacks cameras"):
            detector.detect(images, points, calibration.select(("CAM_FRONT",)))


def test_each_frame_stands_for_itself(artefact: Path, images, points, calibration) -> None:
    with Detector.load(artefact) as detector:
        first = detector.detect(images, points, calibration).boxes.copy()
        detector.detect([255 - image for image in images], points[:5], calibration)
        np.testing.assert_array_equal(detector.detect(images, points, calibration).boxes, first)


def test_non_finite_outputs_stop(tools, tmp_path: Path, images, points, calibration) -> None:
    base = np.zeros((5, 9), np.float32)
    base[2, 4] = np.nan
    path = tmp_path / "student.fp16.onnx"
    onnx.save(tools.make_graph(base), path)
    tools.make_sidecar(path, precision="fp16")
    with (
        Detector.load(path) as detector,
        pytest.raises(NonFiniteError, match="fp16 returned 1 NaN .* of 45 in 'boxes'"),
    ):
        detector.detect(images, points, calibration)


def test_the_timer_hears_of_each_stage(artefact: Path, images, points, calibration) -> None:
    timer = StageTimer()
    with Detector.load(artefact) as detector:
        detector.detect(images, points, calibration, timer=timer)
    assert tuple(timer.stages_ms) == STAGES


def test_an_artefact_without_a_sidecar_is_refused(artefact: Path) -> None:
    artefact.with_name("student.fp32.onnx.json").unlink()
    with pytest.raises(ArtifactError, match="has no sidecar"):
        Detector.load(artefact)


def test_no_such_file() -> None:
    with pytest.raises(ArtifactError, match=r"artefact not found: nowhere\.onnx"):
        Detector.load("nowhere.onnx")


def test_running_an_artefact_imports_neither_torch_nor_onnx(artefact: Path) -> None:
    code = (
        "import sys; from bevkd_deploy.runtime.detector import Detector; Detector.load(sys.argv[1]).close(); "
        "print([name for name in ('torch', 'onnx', 'matplotlib', 'tensorrt_rtx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artefact)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
