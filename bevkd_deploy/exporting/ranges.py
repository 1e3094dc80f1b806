"""Do the activations that become FP16 fit FP16? Measured on real inputs, because ONNX Runtime would not show it.

On a CPU, ONNX Runtime computes most FP16 nodes in FP32 and may leave out the rounding between them, so a value that
overflows in an engine can look fine there. Here the FP32 graph reports the largest magnitude of each such value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.exporting.precision import FP16_MAX, value_types

Feed = Mapping[str, NDArray[Any]]


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
    largest = np.max([_magnitudes(fp32, low, feed) for feed in feeds], axis=0)
    too_large = [
        f"'{value}' of node '{producers[value].name}' reaches {peak:g}"
        for value, peak in zip(low, largest, strict=True)
        if not peak <= FP16_MAX  # written so that NaN counts as too large
    ]
    if too_large:
        raise ExportError(
            f"{len(too_large)} values do not fit FP16 (limit {FP16_MAX:g}): {'; '.join(too_large[:10])}. Keep their nodes "
            "in FP32 with export.keep_fp32, or export fp32 only"
        )


def _magnitudes(model: onnx.ModelProto, values: Sequence[str], feed: Feed) -> NDArray[np.float64]:
    """Largest magnitude of each value, reduced inside the graph so that no activation leaves it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.output[:]
    names = []
    for number, value in enumerate(values):
        magnitude, peak = f"probe/{number}/abs", f"probe/{number}/max"
        graph.node.append(helper.make_node("Abs", [value], [magnitude], name=magnitude))
        graph.node.append(helper.make_node("ReduceMax", [magnitude], [peak], name=peak, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
        names.append(peak)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.array([float(peak) for peak in session.run(names, dict(feed))])
