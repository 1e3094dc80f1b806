"""Each rule of the portable-op contract: a graph that breaks it, and the graph that does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevkd_deploy.contracts.errors import OpNotPortable
from bevkd_deploy.exporting.lint import ALLOWED_OPS, MAX_TOP_K, REPLACEMENTS, check_portable, lint
from bevkd_deploy.exporting.precision import to_fp16

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT64, INT32, INT8, UINT8 = TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8


def graph(nodes, inputs, outputs, constants=(), domains=()) -> onnx.ModelProto:
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side] for side in (inputs, outputs)
    ]
    body = helper.make_graph(nodes, "test", *values, list(constants))
    opsets = [helper.make_opsetid("", 22), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def constant(name: str, value, dtype) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def scatter(operator: str, reduction: str) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x", "i", "u"], ["y"], name="scatter", reduction=reduction)
    indices = ("i", INT64, [2, 1]) if operator == "ScatterND" else ("i", INT64, [2, 3])
    return graph([node], [("x", FLOAT, [4, 3]), indices, ("u", FLOAT, [2, 3])], [("y", FLOAT, [4, 3])])


def top_k(k: int, is_constant: bool = True) -> onnx.ModelProto:
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], name="pick")
    inputs, outputs = [("x", FLOAT, [5000])], [("v", FLOAT, [k]), ("i", INT64, [k])]
    if is_constant:
        return graph([node], inputs, outputs, [constant("k", [k], np.int64)])
    return graph([node], [*inputs, ("k", INT64, [1])], outputs)


def top_k_of_constant_node(k: int) -> onnx.ModelProto:
    model = top_k(k, is_constant=False)
    del model.graph.input[1]
    node = helper.make_node("Constant", [], ["k"], name="k", value=constant("k", [k], np.int64))
    model.graph.node.insert(0, node)
    return model


def grid_sample(dimensions: int) -> onnx.ModelProto:
    space = [4] * (dimensions - 2)
    node = helper.make_node("GridSample", ["x", "g"], ["y"], name="sample")
    sides = [("x", FLOAT, [1, 2, *space]), ("g", FLOAT, [1, *space, dimensions - 2])], [("y", FLOAT, [1, 2, *space])]
    return graph([node], *sides)


def images(first: str) -> onnx.ModelProto:
    cast = helper.make_node(
        "Cast", ["x" if first == "Cast" else "t"], ["f" if first == "Cast" else "y"], name="cast", to=FLOAT
    )
    move = helper.make_node(
        "Transpose", ["f" if first == "Cast" else "x"], ["y" if first == "Cast" else "t"], name="move"
    )
    nodes = [cast, move] if first == "Cast" else [move, cast]
    return graph(nodes, [("x", UINT8, [4, 3])], [("y", FLOAT, [3, 4])])


def compare(kind: int) -> onnx.ModelProto:
    node = helper.make_node("Equal", ["x", "z"], ["y"], name="same")
    return graph([node], [("x", kind, [4]), ("z", kind, [4])], [("y", TensorProto.BOOL, [4])])


def cast_to(kind: int) -> onnx.ModelProto:
    return graph(
        [helper.make_node("Cast", ["x"], ["y"], name="cast", to=kind)], [("x", FLOAT, [4])], [("y", kind, [4])]
    )


def upsample(kind: int) -> onnx.ModelProto:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")
    return graph([node], [("x", kind, [1, 1, 4, 4]), ("w", kind, [1, 1, 1, 1])], [("y", kind, [1, 1, 4, 4])])


def activation(operator: str, kind: int) -> onnx.ModelProto:
    return graph([helper.make_node(operator, ["x"], ["y"], name="act")], [("x", kind, [4])], [("y", kind, [4])])


def dequantize(kind: int, dtype) -> onnx.ModelProto:
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], name="dq")
    return graph([node], [("x", kind, [4])], [("y", FLOAT, [4])], [constant("s", 0.1, np.float32)])


def quantize(zero_point: int | None) -> onnx.ModelProto:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], name="q")
    constants = [constant("s", 0.1, np.float32)]
    inputs = [("x", FLOAT, [4])]
    if zero_point is None:
        inputs.append(("z", INT8, []))
    else:
        constants.append(constant("z", zero_point, np.int8))
    return graph([node], inputs, [("y", INT8, [4])], constants)


def reduced(dimension: int | str) -> onnx.ModelProto:
    """Whatever the input's shape, the output is a scalar."""
    node = helper.make_node("ReduceMax", ["x"], ["y"], name="largest", keepdims=0)
    return graph([node], [("x", FLOAT, [dimension])], [("y", FLOAT, [])])


def reshape(is_constant: bool) -> onnx.ModelProto:
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="shape")
    if is_constant:
        return graph([node], [("x", FLOAT, [4])], [("y", FLOAT, None)], [constant("s", [2, 2], np.int64)])
    return graph([node], [("x", FLOAT, [4]), ("s", INT64, [2])], [("y", FLOAT, None)])


def resize(antialias: int) -> onnx.ModelProto:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], name="up", mode="linear", antialias=antialias)
    sides = [("x", FLOAT, [1, 1, 4, 4])], [("y", FLOAT, [1, 1, 8, 8])]
    return graph([node], *sides, [constant("s", [1, 1, 2, 2], np.float32)])


def nonzero() -> onnx.ModelProto:
    return graph(
        [helper.make_node("NonZero", ["x"], ["y"], name="find")], [("x", FLOAT, [4])], [("y", INT64, [1, "n"])]
    )


def unique() -> onnx.ModelProto:
    return graph([helper.make_node("Unique", ["x"], ["y"], name="group")], [("x", FLOAT, [4])], [("y", FLOAT, ["n"])])


def suppress() -> onnx.ModelProto:
    node = helper.make_node("NonMaxSuppression", ["b", "s"], ["y"], name="nms")
    return graph([node], [("b", FLOAT, [1, 4, 4]), ("s", FLOAT, [1, 1, 4])], [("y", INT64, ["n", 3])])


def peaks() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["m"], name="max", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Equal", ["x", "m"], ["y"], name="peak"),
    ]
    return graph(nodes, [("x", FLOAT, [1, 1, 4, 4])], [("y", TensorProto.BOOL, [1, 1, 4, 4])])


def custom(domain: str) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"], name="own", domain=domain)
    return graph([node], [("x", FLOAT, [4])], [("y", FLOAT, [4])], domains=[domain] if domain else [])


def function(is_local: bool) -> onnx.ModelProto:
    model = activation("Relu", FLOAT)
    if is_local:
        body = [helper.make_node("Relu", ["x"], ["y"], name="inner")]
        model.functions.append(helper.make_function("own", "Twice", ["x"], ["y"], body, model.opset_import))
    return model


#: name: (broken graph, reason, fixed graph)
RULES: dict[str, tuple[Callable[[], onnx.ModelProto], str, Callable[[], onnx.ModelProto]]] = {
    "scatter_nd": (lambda: scatter("ScatterND", "add"), "reduction 'add'", lambda: scatter("ScatterND", "none")),
    "scatter_elements": (
        lambda: scatter("ScatterElements", "max"), "reduction 'max'", lambda: scatter("ScatterElements", "none")
    ),
    "large_top_k": (lambda: top_k(MAX_TOP_K + 1), "K is 3841, the limit is 3840", lambda: top_k(MAX_TOP_K)),
    "computed_top_k": (lambda: top_k(5, is_constant=False), "K is not a constant", lambda: top_k_of_constant_node(5)),
    "grid_sample_5d": (lambda: grid_sample(5), "5-D", lambda: grid_sample(4)),
    "uint8_before_cast": (lambda: images("Transpose"), "uint8", lambda: images("Cast")),
    "uint8_in": (lambda: compare(UINT8), "uint8", lambda: compare(INT32)),
    "uint8_out": (lambda: cast_to(UINT8), "uint8", lambda: cast_to(INT32)),
    "conv_transpose_bf16": (lambda: upsample(BF16), "not built in bf16", lambda: upsample(HALF)),
    "hard_swish_bf16": (lambda: activation("HardSwish", BF16), "not built in bf16", lambda: activation("Relu", BF16)),
    "int32_bias": (lambda: dequantize(INT32, np.int32), "int32 bias", lambda: dequantize(INT8, np.int8)),
    "zero_point": (lambda: quantize(3), "zero point", lambda: quantize(0)),
    "computed_zero_point": (lambda: quantize(None), "zero point", lambda: quantize(0)),
    "dynamic_input": (lambda: reduced("n"), "'x' .input.: has a dynamic shape", lambda: reduced(4)),
    "dynamic_value": (lambda: reshape(False), "output 'y' has a dynamic shape", lambda: reshape(True)),
    "antialias": (lambda: resize(1), "antialias", lambda: resize(0)),
    "nonzero": (nonzero, "not built by TensorRT-RTX", peaks),
    "unique": (unique, "not built by TensorRT-RTX", peaks),
    "nms": (suppress, "not built by TensorRT-RTX", peaks),
    "unlisted": (lambda: activation("Sinh", FLOAT), "not on the list", lambda: activation("Sin", FLOAT)),
    "domain": (lambda: custom("com.microsoft"), "operator of domain 'com.microsoft'", lambda: custom("")),
    "function": (lambda: function(True), "local function", lambda: function(False)),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    broken, reason, fixed = RULES[rule]
    with pytest.raises(OpNotPortable, match=reason):
        check_portable(broken())
    assert lint(fixed()) == []


def test_finding_names_node_operator_and_replacement():
    (finding,) = lint(nonzero())
    assert (finding.node, finding.op, finding.replacement) == ("find", "NonZero", REPLACEMENTS["NonZero"])
    assert str(finding) == f"node 'find' (NonZero): {finding.reason}; instead: {finding.replacement}"


def test_every_finding_is_reported_at_once():
    model = graph(
        [*nonzero().graph.node, helper.make_node("Sinh", ["x"], ["z"], name="act")],
        [("x", FLOAT, [4])],
        [("y", INT64, [1, "n"]), ("z", FLOAT, [4])],
    )
    with pytest.raises(OpNotPortable, match="2 nodes break the portable-op contract\n.*'find'.*\n.*'act'"):
        check_portable(model)


def test_the_student_is_portable_in_every_precision(fp32_model):
    check_portable(fp32_model)
    check_portable(to_fp16(fp32_model))


def test_lists_do_not_overlap():
    assert ALLOWED_OPS.isdisjoint(REPLACEMENTS)
