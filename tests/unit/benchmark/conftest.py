"""A small artefact that follows the contract and answers with constants, and builders of benchmark results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bevkd_deploy.benchmark.latency import SensorFrame
from bevkd_deploy.contracts.files import sha256_file
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sidecar import Library, Sidecar, utc_now, write_sidecar
from bevkd_deploy.geometry.calibration import Calibration

SPEC = GraphSpec(
    cameras=("CAM_FRONT",),
    image_height_px=32,
    image_width_px=64,
    feature_stride=8,
    depth_min_m=1.0,
    depth_max_m=9.0,
    depth_bins=4,
    range_m=(-5.0, -3.0, -2.0, 5.0, 3.0, 2.0),
    pillar_size_m=0.5,
    bev_stride=2,
    heights_m=(0.0,),
    max_pillars=16,
    max_points=4,
    top_k=2,
    classes=("car",),
)


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """An ONNX file that ignores its six inputs, with its sidecar."""
    onnx = pytest.importorskip("onnx")
    types = {"uint8": onnx.TensorProto.UINT8, "int32": onnx.TensorProto.INT32, "float32": onnx.TensorProto.FLOAT}
    inputs, outputs = [
        [onnx.helper.make_tensor_value_info(spec.name, types[spec.dtype], spec.shape) for spec in specs]
        for specs in (SPEC.inputs(), SPEC.outputs())
    ]
    weights = [
        onnx.numpy_helper.from_array(np.zeros(spec.shape, spec.dtype), f"{spec.name}_value") for spec in SPEC.outputs()
    ]
    nodes = [onnx.helper.make_node("Identity", [f"{spec.name}_value"], [spec.name]) for spec in SPEC.outputs()]
    graph = onnx.helper.make_graph(nodes, "constant", inputs, outputs, weights)
    path = tmp_path / "student.fp32.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    sidecar = Sidecar(
        kind="onnx",
        file=path.name,
        sha256=sha256_file(path),
        onnx_sha256=sha256_file(path),
        recipe="test",
        precision="fp32",
        precision_table={},
        library=Library(name="onnx", version="17"),
        graph=SPEC,
        inputs=SPEC.inputs(),
        outputs=SPEC.outputs(),
        created=utc_now(),
    )
    write_sidecar(path, sidecar)
    return path


@pytest.fixture
def frame() -> SensorFrame:
    """One frame that fits the artefact."""
    lidar2cam = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    cam2img = np.array([[70.0, 0, 64], [0, 70, 60], [0, 0, 1]])
    calibration = Calibration(SPEC.cameras, cam2img[None], lidar2cam[None], ((100, 128),))
    return SensorFrame([np.zeros((100, 128, 3), np.uint8)], np.zeros((3, 5), np.float32), calibration)
