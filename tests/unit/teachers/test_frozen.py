"""A frozen teacher stays as it was loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe import ModelConfig
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher


@pytest.fixture
def teacher(tiny_model_config: Callable[..., ModelConfig], tiny_spec: GraphSpec) -> FrozenTeacher:
    return FrozenTeacher(build_detector(tiny_model_config(), tiny_spec, 0).train(), tiny_spec)


def zeros(spec: GraphSpec) -> dict[str, Tensor]:
    return {t.name: torch.zeros((1, *t.shape), dtype=getattr(torch, t.dtype)) for t in spec.inputs()}


def test_it_is_in_evaluation_mode_and_stays_there(teacher: FrozenTeacher, tiny_spec: GraphSpec) -> None:
    def training() -> set[bool]:
        return {module.training for module in teacher.model.modules()}

    assert training() == {False}
    student = nn.Linear(1, 1)
    student.teacher = teacher  # no module: a student's train() cannot reach it
    student.train()
    assert training() == {False}
    assert [name for name, _ in student.named_parameters()] == ["weight", "bias"]
    teacher.model.train()  # somebody else holds the model
    before = [tensor.clone() for tensor in teacher.tensors()]
    teacher(zeros(tiny_spec))
    assert training() == {False}
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.tensors(), strict=True))


def test_nothing_in_it_takes_a_gradient(teacher: FrozenTeacher, tiny_spec: GraphSpec) -> None:
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    maps = teacher(zeros(tiny_spec))
    assert maps["heatmap"].shape == (1, 10, 12, 16)
    assert not any(value.requires_grad or value.is_inference() for value in maps.values())
    # Its maps can be saved for a student's backward pass.
    weight = torch.ones(1, requires_grad=True)
    (weight * maps["heatmap"]).sum().backward()
    assert weight.grad == pytest.approx(maps["heatmap"].sum().item(), rel=1e-4)


def test_its_tensors_are_parameters_and_buffers(teacher: FrozenTeacher) -> None:
    state = teacher.model.state_dict()
    assert [tensor.data_ptr() for tensor in teacher.tensors()] == [value.data_ptr() for value in state.values()]
    assert len(state) > len(list(teacher.model.parameters()))


def test_moving_it_returns_it(teacher: FrozenTeacher) -> None:
    assert teacher.to(torch.device("cpu")) is teacher
