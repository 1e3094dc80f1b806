from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.exporting.islands import INPUT_REASON, OUTPUT_REASON, SUM_REASON, fp32_islands, last_weighted
from bevkd_deploy.exporting.precision import precision_table, to_fp16, to_fp16_with_islands, value_types

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def model_of(nodes, inputs, outputs, weights=None) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side] for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "test", *values, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def chain(operators: list[str]) -> onnx.ModelProto:
    """x -> operators in a row -> y; Conv is a 1x1 convolution of one channel with weight 1."""
    nodes, weights, value = [], {}, "x"
    for number, operator in enumerate(operators):
        inputs = [value]
        if operator == "Conv":
            weights[f"w{number}"] = np.ones((1, 1, 1, 1), np.float32)
            inputs.append(f"w{number}")
        value = "y" if number == len(operators) - 1 else f"v{number}"
        nodes.append(helper.make_node(operator, inputs, [value], name=f"{operator}_{number}"))
    shape = [1, 1, 4, 4]
    return model_of(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], weights)


def test_islands_of_a_chain():
    graph = chain(["Neg", "Conv", "Relu", "Softmax", "Conv", "Relu", "Conv", "Sigmoid", "Exp"]).graph
    islands = {island.reason: island.nodes for island in fp32_islands(graph)}
    assert islands == {
        INPUT_REASON: ("Neg_0",),
        OUTPUT_REASON: ("Conv_6", "Sigmoid_7", "Exp_8"),
        SUM_REASON: ("Softmax_3",),
    }
    assert [node.name for node in last_weighted(graph)] == ["Conv_6"]


def test_islands_of_a_pattern_and_a_pattern_that_matches_nothing():
    graph = chain(["Conv", "Relu", "Conv"]).graph
    assert fp32_islands(graph, ["Relu_*"])[-1].nodes == ("Relu_1",)
    with pytest.raises(ExportError, match=r"pattern 'relu\?' matches no node. Node names look like 'Relu_1'"):
        fp32_islands(graph, ["relu?"])


def test_student_islands(fp32_model):
    islands = {island.reason: set(island.nodes) for island in to_fp16_with_islands(fp32_model)[1]}
    assert {"input/Sub", "input/Div", "pts_voxel_encoder/Concat_1"} <= islands[INPUT_REASON]
    assert {"decode/Sigmoid", "decode/TopK", "decode/Exp", "bbox_head.reg/Conv"} <= islands[OUTPUT_REASON]
    assert islands[SUM_REASON] == {"view_transform/Softmax"}
    everything = set().union(*islands.values())
    # A node that only moves indices has no precision; the canvas and the trunk are not islands.
    for name in ("pts_middle_encoder/Cast", "pts_middle_encoder/ConstantOfShape", "pts_backbone.blocks.0.0.0/Conv"):
        assert name in {node.name for node in fp32_model.graph.node}
        assert name not in everything


def test_coordinates_are_not_rounded_before_the_first_convolution(fp32_model):
    """From `pillars` to the convolution every float is FP32, and the one Cast is right in front of it."""
    model = to_fp16(fp32_model)
    types = value_types(model)
    convolution = next(n for n in model.graph.node if n.name == "pts_voxel_encoder.pfn_layers.0.0/Conv")
    producer = {value: node for node in model.graph.node for value in node.output}
    door = producer[convolution.input[0]]
    assert (door.op_type, types[door.input[0]], types[door.output[0]]) == ("Cast", FLOAT, HALF)
    pending, visited = [door.input[0]], set()
    while pending:
        value = pending.pop()
        visited.add(value)
        assert types[value] != HALF, value
        if value in producer:
            pending += [v for v in producer[value].input if v]
    assert {"pillars", "pillar_index", "pillar_count"} <= visited


def test_fp16_graph_keeps_its_interface_and_runs(fp32_model, feeds):
    untouched = copy.deepcopy(fp32_model)
    model = to_fp16(fp32_model)
    assert fp32_model == untouched
    assert list(model.graph.input) == list(fp32_model.graph.input)
    assert list(model.graph.output) == list(fp32_model.graph.output)
    onnx.checker.check_model(model, full_check=True)
    half = ort.InferenceSession(model.SerializeToString()).run(None, feeds[0])
    full = ort.InferenceSession(fp32_model.SerializeToString()).run(None, feeds[0])
    np.testing.assert_allclose(half[1], full[1], atol=2e-4)
    assert len(model.SerializeToString()) < 0.6 * len(fp32_model.SerializeToString())


def test_most_convolutions_are_low_and_casts_are_few(fp32_model):
    table = precision_table(to_fp16(fp32_model))
    convolutions = sum(node.op_type == "Conv" for node in fp32_model.graph.node)
    assert table["Conv"] == {"fp16": convolutions - 6, "fp32": 6}  # one heatmap and five box maps
    assert table["Softmax"] == {"fp32": 1}
    assert table["ScatterND"] == {"fp16": 1}
    casts = [sum(n.op_type == "Cast" for n in m.graph.node) for m in (fp32_model, to_fp16(fp32_model))]
    assert casts[1] - casts[0] <= 8


def test_resize_scales_stay_fp32(fp32_model):
    model = to_fp16(fp32_model)
    types = value_types(model)
    resizes = [node for node in model.graph.node if node.op_type == "Resize"]
    assert resizes
    for node in resizes:
        assert (types[node.input[0]], types[node.input[2]]) == (HALF, FLOAT)


def test_keep_fp32_keeps_a_module(fp32_model):
    table = precision_table(to_fp16(fp32_model, ["pts_backbone.*/Conv"]))
    kept = sum(n.name.startswith("pts_backbone.") and n.op_type == "Conv" for n in fp32_model.graph.node)
    assert table["Conv"]["fp32"] == 6 + kept


def test_a_weight_that_does_not_fit_is_named(fp32_model):
    weight = next(t for t in fp32_model.graph.initializer if t.name == "img_neck.fpn_conv.0.weight")
    values = np.frombuffer(weight.raw_data, np.float32).copy()
    values[3] = 70000.0
    weight.raw_data = values.tobytes()
    with pytest.raises(ExportError, match=r"'img_neck.fpn_conv.0.weight' does not fit FP16: largest magnitude 70000"):
        to_fp16(fp32_model)
    to_fp16(fp32_model, ["img_neck.fpn_conv.0/Conv"])  # kept in FP32 it may be that large


def test_a_diverged_weight_is_named():
    model = chain(["Conv", "Conv"])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((1, 1, 1, 1), np.nan, np.float32), "w0"))
    with pytest.raises(ExportError, match="'w0' does not fit FP16.*1 non-finite"):
        to_fp16(model)


def test_a_low_output_is_cast_back_and_a_shared_weight_is_split():
    """Two Adds share weight w; the first is kept, the second is low and also the graph's output."""
    nodes = [
        helper.make_node("Add", ["x", "w"], ["v"], name="kept"),
        helper.make_node("Add", ["v", "w"], ["y"], name="low"),
        helper.make_node("Neg", ["y"], ["z"], name="kept_too"),
    ]
    sides = [("x", FLOAT, [2])], [("y", FLOAT, [2]), ("z", FLOAT, [2])]
    model = to_fp16(model_of(nodes, *sides, {"w": np.array([1.0, 0.1], np.float32)}), ["kept*"])
    onnx.checker.check_model(model, full_check=True)
    assert {t.name: t.data_type for t in model.graph.initializer} == {"w": FLOAT, "w/fp16": HALF}
    x = np.array([1000.0, 0.0], np.float32)
    # The reference evaluator rounds at every node; ONNX Runtime on a CPU leaves such roundings out.
    y, z = ReferenceEvaluator(model).run(["y", "z"], {"x": x})
    # Kept: 1001 and 0.1 exactly. Low: FP16(FP16(1001) + 1) = 1002 and FP16(0.1) + FP16(0.1).
    np.testing.assert_array_equal(y, np.array([1002.0, 2 * np.float32(np.float16(0.1))], np.float32))
    np.testing.assert_array_equal(z, -y)


def test_constants_inside_low_nodes_are_lowered():
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], name="zeros"),
        helper.make_node("Cast", ["i"], ["f"], name="cast", to=FLOAT),
        helper.make_node("Add", ["f", "zeros"], ["y"], name="add"),
    ]
    model = model_of(nodes, [("i", TensorProto.INT32, [3])], [("y", FLOAT, [3])], {"shape": np.array([3])})
    types = value_types(to_fp16(model))
    assert (types["zeros"], types["f"], types["y"]) == (HALF, HALF, FLOAT)
    y = ort.InferenceSession(to_fp16(model).SerializeToString()).run(None, {"i": np.array([1, 2, 3], np.int32)})[0]
    np.testing.assert_array_equal(y, [1.0, 2.0, 3.0])


def test_subgraphs_are_refused():
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["b"], name="n")], "b", [], [helper.make_tensor_value_info("b", FLOAT, [1])]
    )
    node = helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    model = model_of([node], [("c", TensorProto.BOOL, []), ("x", FLOAT, [1])], [("y", FLOAT, [1])])
    with pytest.raises(ExportError, match=r"'choose' \(If\) holds a subgraph"):
        to_fp16(model)


def test_contradicting_types_are_reported():
    model = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"], name="add")],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        {"w": np.zeros(2, np.float16)},
    )
    with pytest.raises(ExportError, match="types are inconsistent"):
        value_types(model)


def test_precision_table_counts_by_hand():
    model = to_fp16(chain(["Neg", "Conv", "Relu", "Relu", "Conv", "Exp"]))
    assert precision_table(model) == {
        "Cast": {"fp16": 1, "fp32": 1},
        "Conv": {"fp16": 1, "fp32": 1},
        "Exp": {"fp32": 1},
        "Neg": {"fp32": 1},
        "Relu": {"fp16": 2},
    }
