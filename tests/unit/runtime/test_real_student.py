"""A real student, exported by the real exporter, behind the public detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.contracts.errors import CannotRunHere
from bevkd_deploy.contracts.recipe_loader import load_recipe
from bevkd_deploy.contracts.target import load_target
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.runtime import cuda_driver
from bevkd_deploy.runtime.detector import Detector

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

CAMERAS = ("CAM_FRONT", "CAM_BACK")
Sensors = tuple[list[np.ndarray], np.ndarray, Calibration]


def make_sensors(seed: int) -> Sensors:
    """Noise images of 120 x 160 (h, w), 900 points, one camera ahead and one behind."""
    rng = np.random.default_rng(seed)
    ahead = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    intrinsics = np.array([[90.0, 0, 80], [0, 90, 60], [0, 0, 1]])
    lidar2cam = np.stack([ahead, ahead @ np.diag([-1.0, -1.0, 1.0, 1.0])])
    calibration = Calibration(CAMERAS, np.stack([intrinsics] * 2), lidar2cam, ((120, 160),) * 2)
    images = [rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in CAMERAS]
    low, high = [-25, -25, -3, 0, 0], [25, 25, 3, 255, 0.5]
    return images, rng.uniform(low, high, (900, 5)).astype(np.float32), calibration


@pytest.fixture(scope="module")
def student():
    from bevkd_deploy.models.detector import DeployedStudent
    from bevkd_deploy.models.factory import build_detector

    model = load_recipe(Path(__file__).resolve().parents[2] / "fixtures" / "toy.yaml").recipe.student.model
    detector = build_detector(model, model.graph_spec(CAMERAS), seed=0)
    with torch.no_grad():
        # Untrained scores differ in the seventh digit: which of them make the top K would depend on the processor.
        detector.bbox_head.heatmap[-1].weight *= 1e4
    return DeployedStudent(detector).eval()


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder: student.fp32.onnx, student.fp16.onnx and, where TensorRT-RTX is installed, a plan."""
    from bevkd_deploy.exporting.export import ExportOptions, Provenance, export_student
    from bevkd_deploy.runtime.preprocess import Preprocessor

    spec = student.detector.spec
    folder = tmp_path_factory.mktemp("export")
    try:
        import tensorrt_rtx  # noqa: F401

        plans: tuple[str, ...] = ("fp16",)
    except ImportError:
        plans = ()
    options = ExportOptions(plans=plans, target=load_target("rtx4090"))
    export_student(student, spec, folder, options, Provenance("toy"), [Preprocessor(spec)(*make_sensors(1))])
    return folder


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.02)])
def test_detects_what_the_student_detects(student, exported: Path, precision: str, tolerance: float) -> None:
    images, points, calibration = make_sensors(2)
    with Detector.load(exported / f"student.{precision}.onnx", threads=1) as detector:
        got = detector.detect(images, points, calibration)
        feed = detector.preprocess(images, points, calibration)
        assert len(detector.detect(images, points[:0], calibration)) == len(got)  # no points: still a frame
    with torch.no_grad():
        boxes, scores, labels = (
            tensor.numpy() for tensor in student(**{name: torch.from_numpy(array) for name, array in feed.items()})
        )
    np.testing.assert_allclose(got.scores, scores, atol=tolerance)
    # Near ties swap rows, so each of the student's boxes is looked for among the detector's of its class.
    same_class = labels[:, None] == got.labels[None]
    distance = np.abs(boxes[:, None] - got.boxes[None]).max(axis=-1)
    found = np.where(same_class, distance, np.inf).min(axis=1) < 10 * tolerance
    assert found.mean() > (0.99 if precision == "fp32" else 0.9)


def test_its_plan_cannot_run_without_a_gpu(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = exported / "student.plan"
    if not plan.exists():
        pytest.skip("TensorRT-RTX is not installed")
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-that-is-not-here.so.1")
    with pytest.raises(
        CannotRunHere, match=r"built for SM 8\.9 \(rtx4090\) with tensorrt_rtx .*--engine student\.\S*onnx"
    ):
        Detector.load(plan)
