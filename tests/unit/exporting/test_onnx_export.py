from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.exporting.onnx_export import check_contract, export_fp32, save_model


def test_inputs_and_outputs_are_the_contract(fp32_model, spec):
    elem = {"uint8": onnx.TensorProto.UINT8, "int32": onnx.TensorProto.INT32, "float32": onnx.TensorProto.FLOAT}
    for values, tensors in ((fp32_model.graph.input, spec.inputs()), (fp32_model.graph.output, spec.outputs())):
        found = [
            (v.name, v.type.tensor_type.elem_type, tuple(d.dim_value for d in v.type.tensor_type.shape.dim))
            for v in values
        ]
        assert found == [(t.name, elem[t.dtype], t.shape) for t in tensors]


def test_same_weights_give_the_same_bytes_and_the_student_is_untouched(fp32_model, student, spec, tmp_path):
    first = save_model(fp32_model, tmp_path / "first.onnx")
    student.train()
    second = export_fp32(student, spec, tmp_path / "second.onnx")
    assert student.training
    assert all(module.training for module in student.modules())
    student.eval()
    assert first.read_bytes() == second.read_bytes()


def test_other_weights_give_other_bytes(fp32_model, tmp_path):
    first = save_model(fp32_model, tmp_path / "first.onnx").read_bytes()
    weight = next(t for t in fp32_model.graph.initializer if t.name == "bbox_head.reg.weight")
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.01).astype(np.float32).tobytes()
    assert save_model(fp32_model, tmp_path / "second.onnx").read_bytes() != first


def test_nothing_of_the_exporting_machine_is_in_the_file(fp32_model):
    data = fp32_model.SerializeToString()
    for trace_of_machine in (b".py", b"stack_trace", str(Path(__file__).parents[3]).encode(), b"pkg.torch"):
        assert trace_of_machine not in data
    assert not fp32_model.graph.value_info
    assert "+" not in fp32_model.producer_version


def test_properties_name_contract_classes_and_cameras(fp32_model, spec):
    properties = {entry.key: entry.value for entry in fp32_model.metadata_props}
    assert properties["contract"] == "bevkd.student/1"
    assert json.loads(properties["classes"]) == list(spec.classes)
    assert json.loads(properties["cameras"]) == list(spec.cameras)
    assert fp32_model.graph.name == "bevkd_student"


def test_nodes_are_named_after_their_modules(fp32_model):
    names = [node.name for node in fp32_model.graph.node]
    assert len(set(names)) == len(names)
    assert "img_backbone.layer1.0.conv1/Conv" in names
    assert "view_transform/Softmax" in names
    assert "pts_middle_encoder/ScatterND" in names
    assert "decode/TopK" in names
    weights = {tensor.name for tensor in fp32_model.graph.initializer}
    assert {"img_backbone.layer1.0.conv1.weight", "img_backbone.layer1.0.conv1.bias"} <= weights


def test_batch_norms_and_constants_are_folded(fp32_model):
    operators = {node.op_type for node in fp32_model.graph.node}
    assert operators.isdisjoint({"BatchNormalization", "Constant", "Shape", "Identity", "Dropout", "GatherND"})
    assert len(fp32_model.functions) == 0


def test_onnx_runtime_computes_what_torch_does(fp32_model, student, feeds):
    """The outputs of both frames; ties are far between here, so rows may be compared one by one."""
    session = ort.InferenceSession(fp32_model.SerializeToString())
    for feed in feeds:
        with torch.no_grad():
            boxes, scores, labels = student(*[torch.from_numpy(array) for array in feed.values()])
        found = dict(zip(("boxes", "scores", "labels"), session.run(["boxes", "scores", "labels"], feed), strict=True))
        np.testing.assert_allclose(found["scores"], scores.numpy(), rtol=1e-4)
        assert (np.diff(found["scores"]) <= 0).all()
        same = (np.abs(found["boxes"][:, :2] - boxes[:, :2].numpy()) < 0.01).all(axis=1)
        assert same.mean() > 0.9
        np.testing.assert_allclose(found["boxes"][same], boxes.numpy()[same], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found["labels"][same], labels.numpy()[same])


def test_another_contract_is_refused_with_every_difference(fp32_model, spec):
    other = spec.model_copy(update={"top_k": 20, "max_pillars": 300})
    with pytest.raises(ExportError, match=r"expected boxes FLOAT \[20, 9\], got boxes FLOAT \[50, 9\]") as caught:
        check_contract(fp32_model, other)
    assert "pillar_index INT32 [300]" in str(caught.value)


def test_a_student_of_another_recipe_is_refused(student, spec, tmp_path):
    with pytest.raises(ExportError, match="breaks contract"):
        export_fp32(student, spec.model_copy(update={"top_k": 20}), tmp_path / "student.onnx")
    assert not (tmp_path / "student.onnx").exists()


def test_invalid_graph_is_not_written(fp32_model, tmp_path):
    fp32_model.graph.node[0].input[0] = "nothing"
    with pytest.raises(ExportError, match="not valid ONNX"):
        save_model(fp32_model, tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []
