"""Read values from inside a graph: the head's maps, to compare them; magnitudes, to know whether they fit FP16.

The range check runs the FP32 graph, because ONNX Runtime would not show an overflow: on a CPU it computes most FP16
nodes in FP32 and may leave out the rounding between them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.exporting.islands import last_weighted
from bevkd_deploy.exporting.precision import FP16_MAX, value_types

Feed = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]


def head_maps(model: onnx.ModelProto, names: Collection[str], feeds: Sequence[Feed]) -> list[Outputs]:
    """Outputs of the last convolution of each head, one dictionary per feed.

    A convolution is recognised by the module it is named after: `bbox_head.heatmap.1/Conv` is map "heatmap".

    Args:
        model: a student graph of any precision.
        names: maps to find.
        feeds: graph inputs.

    Raises:
        ExportError: a map has no such convolution.
    """
    values: dict[str, str] = {}
    for node in last_weighted(model.graph):
        for part in node.name.rpartition("/")[0].split("."):
            if part in names:
                values[part] = node.output[0]
    missing = sorted(set(names) - set(values))
    if missing:
        found = [node.name for node in last_weighted(model.graph)]
        raise ExportError(f"no last convolution of head maps {missing} in the graph; it ends with {found}")
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    types = value_types(model)
    probe.graph.output.extend(helper.make_tensor_value_info(v, types[v], None) for v in values.values())
    session = _open(probe)
    order = sorted(values)
    runs = [session.run([values[name] for name in order], dict(feed)) for feed in feeds]
    return [dict(zip(order, arrays, strict=True)) for arrays in runs]


def check_fp16_ranges(fp32: onnx.ModelProto, fp16: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Run the FP32 graph and refuse values that are FP16 in its typed twin but do not fit.

    Args:
        fp32: the graph before `to_fp16`.
        fp16: the graph after it; values kept their names.
        feeds: graph inputs of real frames.

    Raises:
        ExportError: names each value that overflows, its node and the largest magnitude.
    """
    types = value_types(fp16)
    producers = {value: node for node in fp32.graph.node for value in node.output}
    low = [value for value in producers if types.get(value) == TensorProto.FLOAT16]
    if not low:
        return
    session = _open(_magnitudes(fp32, low))
    largest = np.max([np.array(session.run(None, dict(feed)), dtype=np.float64) for feed in feeds], axis=0)
    too_large = [
        f"'{value}' of node '{producers[value].name}' reaches {peak:g}"
        for value, peak in zip(low, largest, strict=True)
        if not peak <= FP16_MAX  # written so that NaN counts as too large
    ]
    if too_large:
        raise ExportError(
            f"{len(too_large)} values do not fit FP16 (limit {FP16_MAX:g}): {'; '.join(too_large[:10])}. Keep their "
            "nodes in FP32 with export.keep_fp32, or export fp32 only"
        )


def _magnitudes(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """The graph with one output per value, its largest magnitude: activations are reduced before they leave it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.output[:]
    for number, value in enumerate(values):
        magnitude, peak = f"probe/{number}/abs", f"probe/{number}/max"
        graph.node.append(helper.make_node("Abs", [value], [magnitude], name=magnitude))
        graph.node.append(helper.make_node("ReduceMax", [magnitude], [peak], name=peak, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
    return probe


def _open(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
