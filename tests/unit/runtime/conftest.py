"""A small but real artefact: an ONNX graph that follows the six-input contract, with its sidecar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sidecar import Library, Sidecar, utc_now, write_sidecar
from bevkd_deploy.geometry.calibration import Calibration

onnx = pytest.importorskip("onnx")

SPEC = GraphSpec(
    cameras=("CAM_FRONT", "CAM_BACK"),
    image_height_px=32,
    image_width_px=64,
    feature_stride=8,
    depth_min_m=1.0,
    depth_max_m=9.0,
    depth_bins=4,
    range_m=(-5.0, -3.0, -2.0, 5.0, 3.0, 2.0),
    pillar_size_m=0.5,
    bev_stride=2,
    heights_m=(-0.5, 0.3),
    max_pillars=16,
    max_points=4,
    top_k=5,
    classes=("car", "pedestrian"),
)
SCORES = np.array([0.9, 0.7, 0.5, 0.3, 0.1], np.float32)
LABELS = np.array([0, 1, 0, 1, 1], np.int32)
BASE_BOXES = np.arange(45, dtype=np.float32).reshape(5, 9)

_ELEMENT_TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT"}


def expected_boxes(feed: dict[str, np.ndarray]) -> np.ndarray:
    """What the graph computes, in NumPy: its base boxes plus a sum over each input, in x, y, z, l, w, h."""
    sums = [feed[spec.name].ravel().astype(np.float64) @ ramp(feed[spec.name].size) for spec in SPEC.inputs()]
    return BASE_BOXES + np.array([*sums, 0.0, 0.0, 0.0])


def ramp(size: int) -> np.ndarray:
    """Weights that tell every element of an input from every other."""
    return np.linspace(-1, 1, size, dtype=np.float32) / size


def make_graph(base_boxes: np.ndarray = BASE_BOXES, output_boxes: str = "boxes") -> Any:
    """The graph: boxes depend on all six inputs, scores and labels are constant."""
    helper, types = onnx.helper, onnx.TensorProto
    constants: dict[str, np.ndarray] = {}
    nodes, sums = [], []
    for spec in SPEC.inputs():
        name = spec.name
        constants[f"{name}_ramp"] = ramp(int(np.prod(spec.shape)))[:, None]
        nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=types.FLOAT))
        nodes.append(helper.make_node("Reshape", [f"{name}_float", "row"], [f"{name}_row"]))
        nodes.append(helper.make_node("MatMul", [f"{name}_row", f"{name}_ramp"], [f"{name}_product"]))
        nodes.append(helper.make_node("Reshape", [f"{name}_product", "one"], [f"{name}_sum"]))
        sums.append(f"{name}_sum")
    nodes.append(helper.make_node("Concat", [*sums, "zeros"], ["offset"], axis=0))
    nodes.append(helper.make_node("Add", ["base", "offset"], [output_boxes]))
    nodes.append(helper.make_node("Identity", ["score_values"], ["scores"]))
    nodes.append(helper.make_node("Identity", ["label_values"], ["labels"]))
    constants |= {
        "row": np.array([1, -1], np.int64),
        "one": np.array([1], np.int64),
        "zeros": np.zeros(3, np.float32),
        "base": base_boxes.astype(np.float32),
        "score_values": SCORES,
        "label_values": LABELS,
    }
    info = [
        [
            helper.make_tensor_value_info(
                output_boxes if spec.name == "boxes" else spec.name,
                getattr(types, _ELEMENT_TYPES[spec.dtype]),
                spec.shape,
            )
            for spec in specs
        ]
        for specs in (SPEC.inputs(), SPEC.outputs())
    ]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "student", info[0], info[1], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_sidecar(path: Path, **changes: Any) -> Sidecar:
    """A sidecar of the file at `path` (an ONNX file unless `changes` say otherwise), written beside it."""
    digest = sha256_file(path)
    fields: dict[str, Any] = {
        "kind": "onnx",
        "file": path.name,
        "sha256": digest,
        "onnx_sha256": digest,
        "recipe": "test",
        "precision": "fp32",
        "precision_table": {},
        "library": Library(name="onnx", version="17"),
        "graph": SPEC,
        "inputs": SPEC.inputs(),
        "outputs": SPEC.outputs(),
        "created": utc_now(),
    }
    sidecar = Sidecar(**{**fields, **changes})
    write_sidecar(path, sidecar)
    return sidecar


@dataclass(frozen=True)
class Toolbox:
    """The functions and constants above, for tests: test modules cannot import a conftest."""

    spec: GraphSpec
    scores: np.ndarray
    labels: np.ndarray
    expected_boxes: Callable[[dict[str, np.ndarray]], np.ndarray]
    make_graph: Callable[..., Any]
    make_sidecar: Callable[..., Sidecar]


@pytest.fixture(scope="session")
def tools() -> Toolbox:
    return Toolbox(SPEC, SCORES, LABELS, expected_boxes, make_graph, make_sidecar)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """student.fp32.onnx with its sidecar."""
    path = tmp_path / "student.fp32.onnx"
    onnx.save(make_graph(), path)
    make_sidecar(path)
    return path


@pytest.fixture
def feed() -> dict[str, np.ndarray]:
    """Random inputs of the graph."""
    rng = np.random.default_rng(0)
    return {spec.name: rng.integers(0, 200, spec.shape).astype(spec.dtype) for spec in SPEC.inputs()}


@pytest.fixture
def calibration() -> Calibration:
    """One camera ahead, one behind; raw images of 100 x 128 (h, w)."""
    ahead = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    behind = ahead @ np.diag([-1.0, -1.0, 1.0, 1.0])
    cam2img = np.array([[70.0, 0, 64], [0, 70, 60], [0, 0, 1]])
    return Calibration(SPEC.cameras, np.stack([cam2img, cam2img]), np.stack([ahead, behind]), ((100, 128),) * 2)


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (100, 128, 3), dtype=np.uint8) for _ in SPEC.cameras]


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(2).uniform(-2, 2, (40, 5)).astype(np.float32)


@dataclass(frozen=True)
class Keyframe:
    """Sensor arrays of one real nuScenes keyframe."""

    images: list[np.ndarray]
    points: np.ndarray
    calibration: Calibration


@pytest.fixture(scope="session")
def keyframe() -> Keyframe:
    from bevkd_deploy.contracts.classes import CAMERA_NAMES
    from bevkd_deploy.data.mmdet3d_infos import read_infos
    from bevkd_deploy.data.sensor_files import load_image, load_points

    root = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "nuscenes_keyframe"
    if not root.is_dir():
        pytest.skip("the real nuScenes keyframe is not on this machine")
    sample = read_infos(root, "*.pkl", CAMERA_NAMES)[0]
    images = [load_image(sample.image_paths[name]) for name in CAMERA_NAMES]
    return Keyframe(images, load_points(sample.points_path), sample.calibration)
