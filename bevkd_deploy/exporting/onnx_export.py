"""Student to FP32 ONNX.

Shapes are static, names and dtypes are those of the graph contract, and the same weights give the same bytes.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.contracts.files import write_atomic
from bevkd_deploy.contracts.graph_spec import GraphSpec, TensorSpec
from bevkd_deploy.exporting.canonical import canonicalize
from bevkd_deploy.models.detector import DeployedStudent

#: What the exporter's own operator library is written in: no version conversion, read by TensorRT 10.0 and newer.
OPSET = 18

GRAPH_NAME = "bevkd_student"

_ELEM_TYPES = {
    "uint8": onnx.TensorProto.UINT8,
    "int32": onnx.TensorProto.INT32,
    "float32": onnx.TensorProto.FLOAT,
}
_TORCH_TYPES = {"uint8": torch.uint8, "int32": torch.int32, "float32": torch.float32}


def export_fp32(student: DeployedStudent, spec: GraphSpec, path: Path | str) -> Path:
    """Write the student as one FP32 ONNX file.

    The student itself is not touched: a copy on the CPU, in evaluation mode, is traced. Batch norms are folded into
    their convolutions.

    Args:
        student: the graph to export.
        spec: its contract; names, dtypes and shapes of inputs and outputs are taken from it.
        path: the .onnx file.

    Raises:
        ExportError: the student cannot be traced, or the graph does not have the contract's inputs and outputs.
    """
    model = trace(student, spec)
    return save_model(model, path)


def trace(student: DeployedStudent, spec: GraphSpec) -> onnx.ModelProto:
    """The student as an FP32 ONNX model in memory; `export_fp32` explains."""
    eager = reference_copy(student)
    arguments = tuple(torch.zeros(tensor.shape, dtype=_TORCH_TYPES[tensor.dtype]) for tensor in spec.inputs())
    with torch.no_grad(), _quiet_exporter():
        try:
            program = torch.onnx.export(
                eager,
                arguments,
                input_names=[tensor.name for tensor in spec.inputs()],
                output_names=[tensor.name for tensor in spec.outputs()],
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the student cannot be exported to ONNX: {error}") from error
    assert program is not None  # the dynamo exporter always returns one
    model = program.model_proto
    canonicalize(model, GRAPH_NAME, scope_prefix="detector.")
    properties = {"contract": spec.contract, "classes": json.dumps(spec.classes), "cameras": json.dumps(spec.cameras)}
    onnx.helper.set_model_props(model, properties)
    check_contract(model, spec)
    return model


def reference_copy(student: DeployedStudent) -> DeployedStudent:
    """The student on the CPU, in FP32 and evaluation mode; the original keeps its device, dtype and mode."""
    return copy.deepcopy(student).to("cpu", torch.float32).eval()


def save_model(model: onnx.ModelProto, path: Path | str) -> Path:
    """Check a model and write it atomically; equal models give equal bytes.

    Raises:
        ExportError: onnx.checker refuses the model.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    data = model.SerializeToString(deterministic=True)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    return write_atomic(path, write)


def check_contract(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Compare a graph's inputs and outputs with the contract.

    Raises:
        ExportError: a name, dtype or shape differs; every difference is listed.
    """
    problems = []
    for side, values, tensors in (
        ("input", model.graph.input, spec.inputs()),
        ("output", model.graph.output, spec.outputs()),
    ):
        found = [_describe(value) for value in values]
        wanted = [_wanted(tensor) for tensor in tensors]
        if found != wanted:
            problems += [f"{side}: expected {w}, got {f}" for f, w in zip(found, wanted, strict=False) if f != w]
            if len(found) != len(wanted):
                problems.append(f"{side}s: expected {len(wanted)}, got {len(found)}")
    if problems:
        raise ExportError(
            f"the exported graph breaks contract {spec.contract} (was the student built for this recipe?): "
            + "; ".join(problems)
        )


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type)} {dims}"


def _wanted(tensor: TensorSpec) -> str:
    return f"{tensor.name} {onnx.TensorProto.DataType.Name(_ELEM_TYPES[tensor.dtype])} {list(tensor.shape)}"


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hold back the exporter's remarks on packages that this graph does not need and on its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
