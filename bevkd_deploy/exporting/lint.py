"""The portable-op contract: what a graph may hold so that every TensorRT from 10 on, and TensorRT-RTX, builds it.

The rules are what their parsers and builders refuse or read differently, each with its replacement. A parser's own
"supported" answer is no gate: it accepts NonZero, which then cannot be built.
Source: onnx-tensorrt's operator table and builds with TensorRT-RTX 1.7, operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from bevkd_deploy.contracts.errors import OpNotPortable

#: Largest K of TensorRT's TopK layer.
MAX_TOP_K = 3840

#: Operators that build everywhere in FP32 and FP16 with static shapes.
ALLOWED_OPS = frozenset(
    {
        # elementwise
        "Abs", "Add", "And", "Atan", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
        "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log",
        "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round",
        "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where", "Xor",
        # weights
        "BatchNormalization", "Conv", "ConvTranspose", "Einsum", "Gemm", "GroupNormalization",
        "InstanceNormalization", "LayerNormalization", "MatMul",
        # reductions
        "ArgMax", "AveragePool", "CumSum", "GlobalAveragePool", "LogSoftmax", "MaxPool", "ReduceL2", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Softmax", "TopK",
        # layout
        "Cast", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "DequantizeLinear", "Expand", "Flatten",
        "Gather", "GatherElements", "GatherND", "GridSample", "Identity", "OneHot", "Pad", "QuantizeLinear",
        "Reshape", "Resize", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip

#: Well-known operators outside the contract, and what to write instead.
REPLACEMENTS = {
    "NonZero": "compute indices on the host and pass them in with a fixed size and a dump row",
    "NonMaxSuppression": "keep peaks with MaxPool == x and pick them with TopK",
    "Unique": "group on the host (voxelisation) and pass indices in",
    "DeformConv": "GridSample followed by a convolution",
    "BitwiseAnd": "integer Mod and Div",
    "BitShift": "integer Mul or Div by a power of two",
}

_BF16_UNSUPPORTED = {
    "ConvTranspose": "Resize followed by Conv, or keep it in FP16 or FP32",
    "HardSwish": "x * HardSigmoid(x)",
}


@dataclass(frozen=True)
class Finding:
    """One break of the contract."""

    node: str
    op: str
    reason: str
    replacement: str

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.op}): {self.reason}; instead: {self.replacement}"


def check_portable(model: onnx.ModelProto) -> None:
    """Refuse a graph outside the contract.

    Raises:
        OpNotPortable: with every finding.
    """
    findings = lint(model)
    if findings:
        noun = "node breaks" if len(findings) == 1 else "nodes break"
        lines = [f"{len(findings)} {noun} the portable-op contract", *(f"  {finding}" for finding in findings)]
        raise OpNotPortable("\n".join(lines))


def lint(model: onnx.ModelProto) -> list[Finding]:
    """Every break of the portable-op contract, in graph order; an empty list is a pass."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    facts = _Facts(inferred.graph)
    findings = list(_model_findings(inferred, facts))
    for node in inferred.graph.node:
        findings += [Finding(node.name, node.op_type, reason, fix) for reason, fix in _node_findings(node, facts)]
    return findings


class _Facts:
    """Types, shapes and constants of a graph's values."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.shapes: dict[str, tuple[int, ...] | None] = {t.name: tuple(t.dims) for t in graph.initializer}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].type == onnx.AttributeProto.TENSOR:
                self.constants[node.output[0]] = node.attribute[0].t
        for value in [*graph.input, *graph.output, *graph.value_info]:
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            dims = tensor.shape.dim
            known = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
            self.shapes[value.name] = tuple(dim.dim_value for dim in dims) if known else None


def _model_findings(model: onnx.ModelProto, facts: _Facts) -> Iterator[Finding]:
    for imported in model.opset_import:
        if imported.domain not in ("", "ai.onnx"):
            yield Finding("", "", f"imports operator set '{imported.domain}'", "standard ONNX operators only")
    for function in model.functions:
        yield Finding(function.name, function.name, "is a local function", "inline it at export")
    for value in model.graph.input:
        if facts.shapes[value.name] is None:
            yield Finding(value.name, "input", "has a dynamic shape", "export with static shapes")


def _node_findings(node: onnx.NodeProto, facts: _Facts) -> Iterator[tuple[str, str]]:
    if node.domain not in ("", "ai.onnx"):
        yield f"operator of domain '{node.domain}'", "standard ONNX operators only"
        return
    if node.op_type in REPLACEMENTS:
        yield "is not built by TensorRT-RTX", REPLACEMENTS[node.op_type]
        return
    if node.op_type not in ALLOWED_OPS:
        yield "is not on the list of portable operators", "operators of that list, or extend it with proof (lint.py)"
        return
    yield from _shape_findings(node, facts)
    yield from _type_findings(node, facts)
    rule = _OP_RULES.get(node.op_type)
    if rule is not None:
        yield from rule(node, facts)


def _shape_findings(node: onnx.NodeProto, facts: _Facts) -> Iterator[tuple[str, str]]:
    unknown = [value for value in node.output if value and facts.shapes.get(value) is None]
    if unknown:
        yield f"output '{unknown[0]}' has a dynamic shape", "shapes that follow from constants alone"


def _type_findings(node: onnx.NodeProto, facts: _Facts) -> Iterator[tuple[str, str]]:
    reads = {facts.types.get(value) for value in node.input if value}
    writes = {facts.types.get(value) for value in node.output}
    if TensorProto.UINT8 in writes or (TensorProto.UINT8 in reads and node.op_type != "Cast"):
        yield "handles uint8, which TensorRT takes only into a first Cast", "Cast the input before anything else"
    if TensorProto.BFLOAT16 in reads and node.op_type in _BF16_UNSUPPORTED:
        yield "is not built in bf16", _BF16_UNSUPPORTED[node.op_type]


def _scatter(node: onnx.NodeProto, _: _Facts) -> Iterator[tuple[str, str]]:
    reduction = _attribute(node, "reduction", b"none").decode()
    if reduction != "none":
        yield (
            f"reduction '{reduction}' is refused, and ignored in silence by TensorRT 8",
            "unique indices with a dump row, or a sum over a fixed axis of gathered rows",
        )


def _top_k(node: onnx.NodeProto, facts: _Facts) -> Iterator[tuple[str, str]]:
    constant = facts.constants.get(node.input[1])
    if constant is None:
        yield "K is not a constant", "a constant K"
        return
    k = int(numpy_helper.to_array(constant).reshape(-1)[0])
    if k > MAX_TOP_K:
        yield f"K is {k}, the limit is {MAX_TOP_K}", f"K of {MAX_TOP_K} or less; peaks rarely need more than 500"


def _grid_sample(node: onnx.NodeProto, facts: _Facts) -> Iterator[tuple[str, str]]:
    shape = facts.shapes.get(node.input[0])
    if shape is not None and len(shape) == 5:
        yield "is a 5-D (volumetric) sample", "a 4-D GridSample per slice, or Gather with a precomputed table"


def _resize(node: onnx.NodeProto, _: _Facts) -> Iterator[tuple[str, str]]:
    if _attribute(node, "antialias", 0):
        yield "antialias is not supported", "Resize without antialias"


def _quantize(node: onnx.NodeProto, facts: _Facts) -> Iterator[tuple[str, str]]:
    if node.op_type == "DequantizeLinear" and facts.types.get(node.input[0]) == TensorProto.INT32:
        yield "dequantises an int32 bias", "a float bias (QuantizeBias=False)"
    if len(node.input) > 2 and node.input[2]:
        zero_point = facts.constants.get(node.input[2])
        if zero_point is None or numpy_helper.to_array(zero_point).any():
            yield "has a non-zero or computed zero point", "symmetric int8 quantisation, zero point 0"


def _attribute(node: onnx.NodeProto, name: str, default: bytes | int) -> Any:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


_OP_RULES: dict[str, Callable[[onnx.NodeProto, _Facts], Iterator[tuple[str, str]]]] = {
    "ScatterND": _scatter,
    "ScatterElements": _scatter,
    "TopK": _top_k,
    "GridSample": _grid_sample,
    "Resize": _resize,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _quantize,
}
