"""FP32 ONNX to typed FP16 ONNX: precision lives in the file, so every strongly typed engine builds the same thing.

Each node is either low (FP16) or in an FP32 island (`islands.py`); one Cast is put where a value crosses. Graph
inputs and outputs keep their types. A value that stays in its island is never rounded on the way, which general
converters do not promise: they cast a graph input to FP16 at the door and back to FP32 in front of a kept node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.contracts.sidecar import Island
from bevkd_deploy.exporting.islands import fp32_islands

FP16_MAX = 65504.0

_FLOATS: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}

#: Inputs that the operator defines as FP32 whatever its data is: Resize's roi and scales.
_ALWAYS_FP32 = {"Resize": (1, 2)}

_SUFFIX: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


def to_fp16(model: onnx.ModelProto, keep_fp32: Sequence[str] = ()) -> onnx.ModelProto:
    """A typed FP16 copy of an FP32 model; inputs and outputs keep their dtypes.

    Args:
        model: FP32 graph without subgraphs, node names unique, in topological order.
        keep_fp32: shell patterns of node names that stay FP32, beyond the built-in islands.

    Raises:
        ExportError: a weight does not fit FP16 (the tensor is named), or a pattern matches nothing.
    """
    return to_fp16_with_islands(model, keep_fp32)[0]


def to_fp16_with_islands(
    model: onnx.ModelProto, keep_fp32: Sequence[str] = ()
) -> tuple[onnx.ModelProto, tuple[Island, ...]]:
    """`to_fp16`, and the islands it kept."""
    islands = fp32_islands(model.graph, keep_fp32)
    types = value_types(model)
    kept = {name for island in islands for name in island.nodes}
    lowered = _Typing(model, kept, types).run()
    # Integer nodes belong to an island by place, but have no precision: they are not worth a line in the sidecar.
    floats = {n.name for n in model.graph.node if any(types.get(v) in _FLOATS for v in [*n.input, *n.output])}
    shown = [Island(reason=i.reason, nodes=tuple(name for name in i.nodes if name in floats)) for i in islands]
    return lowered, tuple(island for island in shown if island.nodes)


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of a graph, by shape inference.

    Raises:
        ExportError: a node's types contradict each other.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the graph's types are inconsistent: {error}") from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        types[value.name] = value.type.tensor_type.elem_type
    return types


def precision_table(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """How many nodes of each operator compute in which float type; integer nodes are left out.

    A node counts under the type of its first float output, or of its first float input where it has none (Equal).
    """
    types = value_types(model)
    table: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        found = [_FLOATS[types[v]] for v in [*node.output, *node.input] if v and types.get(v) in _FLOATS]
        if found:
            table.setdefault(node.op_type, Counter())[found[0]] += 1
    return {op: dict(sorted(table[op].items())) for op in sorted(table)}


class _Typing:
    """One conversion: walks the graph once, in order, and writes a new node list and initializer list."""

    def __init__(self, model: onnx.ModelProto, kept: set[str], types: dict[str, int]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._kept = kept
        self._types = dict(types)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._used_weights: dict[str, TensorProto] = {}
        self._casts: dict[tuple[str, int], str] = {}

    def run(self) -> onnx.ModelProto:
        graph = self._model.graph
        for node in graph.node:
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise ExportError(f"node '{node.name}' ({node.op_type}) holds a subgraph; the student graph has none")
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            self._convert(copied, TensorProto.FLOAT if node.name in self._kept else TensorProto.FLOAT16)
        nodes = self._nodes
        self._restore_outputs(graph)
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.initializer[:]
        graph.initializer.extend(self._used_weights[name] for name in sorted(self._used_weights))
        del graph.value_info[:]
        return self._model

    def _convert(self, node: onnx.NodeProto, wanted: int) -> None:
        for position, value in enumerate(node.input):
            always = position in _ALWAYS_FP32.get(node.op_type, ())
            node.input[position] = self._as(value, TensorProto.FLOAT if always else wanted)
        if wanted == TensorProto.FLOAT16:
            _lower_attributes(node)
        self._nodes.append(node)
        for value in node.output:
            if self._types.get(value) == TensorProto.FLOAT:
                self._types[value] = wanted

    def _as(self, value: str, wanted: int) -> str:
        """Name under which `value` is available in type `wanted`; not a float value: its own name."""
        if value in self._weights:
            return self._weight(value, wanted)
        if not value or self._types[value] not in _SUFFIX or self._types[value] == wanted:
            return value
        key = (value, wanted)
        if key not in self._casts:
            name = f"{value}/to_{_SUFFIX[wanted]}"
            self._nodes.append(helper.make_node("Cast", [value], [name], name=name, to=wanted))
            self._casts[key] = name
        return self._casts[key]

    def _weight(self, name: str, wanted: int) -> str:
        tensor = self._weights[name]
        if tensor.data_type != TensorProto.FLOAT or wanted == TensorProto.FLOAT:
            self._used_weights[name] = tensor
            return name
        lowered = f"{name}/fp16"
        if lowered not in self._used_weights:
            self._used_weights[lowered] = _lower_tensor(tensor, lowered)
        return lowered

    def _restore_outputs(self, graph: onnx.GraphProto) -> None:
        """Cast graph outputs that became FP16 back to the type that the contract declares."""
        for output in graph.output:
            if self._types[output.name] == output.type.tensor_type.elem_type:
                continue
            inner = f"{output.name}/fp16"
            for node in self._nodes:
                node.input[:] = [inner if value == output.name else value for value in node.input]
                node.output[:] = [inner if value == output.name else value for value in node.output]
            cast = f"{output.name}/output_to_fp32"
            self._nodes.append(helper.make_node("Cast", [inner], [output.name], name=cast, to=TensorProto.FLOAT))


def _lower_attributes(node: onnx.NodeProto) -> None:
    """Change what a low node says about float types itself: Cast targets, constants."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_lower_tensor(attribute.t, attribute.t.name or node.name))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, dtype=np.float16), "value")
        node.attribute.append(helper.make_attribute("value", zero))


def _lower_tensor(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    finite = np.isfinite(values)
    largest = float(np.abs(values[finite]).max(initial=0.0))
    if not finite.all() or largest > FP16_MAX:
        bad = values.size - int(finite.sum())
        raise ExportError(
            f"tensor '{tensor.name or name}' does not fit FP16: largest magnitude {largest:g} (limit {FP16_MAX:g}), "
            f"{bad} non-finite values. Keep its node in FP32 (export.keep_fp32) or look for a diverged layer"
        )
    return numpy_helper.from_array(values.astype(np.float16), name)
