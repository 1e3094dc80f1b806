from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.exporting.precision import to_fp16
from bevkd_deploy.exporting.probe import check_fp16_ranges, head_maps


def test_head_maps_are_those_of_the_student(fp32_model, student, feeds):
    with torch.no_grad():
        maps = student.detector(*[torch.from_numpy(array)[None] for array in feeds[1].values()])
    found = head_maps(fp32_model, maps.keys(), feeds)[1]
    assert set(found) == {"heatmap", "reg", "height", "dim", "rot", "vel"}
    for name, tensor in maps.items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-4, atol=1e-5)


def test_a_missing_head_is_named(fp32_model, feeds):
    with pytest.raises(ExportError, match=r"head maps \['speed'\].*'bbox_head.reg/Conv'"):
        head_maps(fp32_model, ["heatmap", "speed"], feeds)


def test_student_activations_fit_fp16(fp32_model, feeds):
    check_fp16_ranges(fp32_model, to_fp16(fp32_model), feeds)


def growing(weight: float) -> onnx.ModelProto:
    """x -> Conv (weight) -> Relu -> Conv (1 / weight) -> y: the middle is large, both ends are not."""
    nodes = [
        helper.make_node("Conv", ["x", "up"], ["large"], name="up"),
        helper.make_node("Relu", ["large"], ["kept"], name="act"),
        helper.make_node("Conv", ["kept", "down"], ["y"], name="down"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in ("x", "y")]
    weights = [
        numpy_helper.from_array(np.full((1, 1, 1, 1), value, np.float32), name)
        for name, value in (("up", weight), ("down", 1 / weight))
    ]
    body = helper.make_graph(nodes, "test", values[:1], values[1:], weights)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(("largest_input", "fits"), [(6.0, True), (7.0, False), (float("nan"), False)])
def test_activations_over_the_fp16_limit_are_named(largest_input, fits):
    """10000 * 6 fits FP16, 10000 * 7 does not; the smaller second frame does not hide it."""
    model = growing(10000.0)
    frames = [{"x": np.full((1, 1, 2, 2), value, np.float32)} for value in (largest_input, 1.0)]
    if fits:
        check_fp16_ranges(model, to_fp16(model), frames)
        return
    with pytest.raises(ExportError, match=r"2 values do not fit FP16.*'large' of node 'up' reaches (70000|nan)"):
        check_fp16_ranges(model, to_fp16(model), frames)


def test_values_kept_in_fp32_may_be_large():
    model = growing(10000.0)
    check_fp16_ranges(model, to_fp16(model, ["up", "act"]), [{"x": np.full((1, 1, 2, 2), 7.0, np.float32)}])
