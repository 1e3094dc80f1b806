"""A frozen teacher stays as it was loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher


@pytest.fixture
def teacher(tiny_model_config: Callable[..., ModelConfig], tiny_spec: GraphSpec) -> FrozenTeacher:
    return FrozenTeacher(build_detector(tiny_model_config(), tiny_spec, 0).train(), tiny_spec)


def zeros(spec: GraphSpec) -> dict[str, Tensor]:
    return {t.name: torch.zeros((1, *t.shape), dtype=getattr(torch, t.dtype)) for t in spec.inputs()}


class DropPath(nn.Module):
    """Drops whole samples in training mode, as Swin's does."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1) > 0.2) / 0.8


class Unsteady(nn.Module):
    """Everything that makes a network give another answer, or change, when it runs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Sequential(DropPath(), nn.Linear(8, 3))
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"heatmap": self.layers(x)}


class Student(nn.Module):
    """Learns from a teacher that it holds as an attribute."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.detector = Unsteady()
        self.teacher = teacher

    def forward(self, x: Tensor) -> Tensor:
        wanted = self.teacher({"x": x})["heatmap"]
        return ((self.detector(x)["heatmap"] - wanted) ** 2).mean() + wanted.sum() * 0


def test_training_leaves_no_trace_on_it(tiny_spec: GraphSpec) -> None:
    torch.manual_seed(0)
    model = Unsteady()
    model(torch.randn(16, 6))  # the batch norm has seen something
    teacher = FrozenTeacher(model.train(), tiny_spec)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert {"layers.1.running_mean", "layers.1.num_batches_tracked"} <= before.keys()
    x = torch.randn(16, 6)
    answer = teacher({"x": x})["heatmap"]
    student = Student(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), 0.01, weight_decay=0.1)
    for _ in range(5):
        student.train()
        optimizer.zero_grad()
        student(x).backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(teacher({"x": x})["heatmap"], answer)
    assert not any(name.startswith("teacher") for name in student.state_dict())
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize(("precision", "inside"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_its_precision_is_its_own(tiny_spec: GraphSpec, precision: str, inside: torch.dtype, outer: bool) -> None:
    """Whatever the student trains in; its maps are float32 either way."""
    model = Unsteady()
    seen: list[torch.dtype] = []
    model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    teacher = FrozenTeacher(model, tiny_spec, precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=outer):
        maps = teacher({"x": torch.randn(4, 6)})
        assert torch.is_autocast_enabled("cpu") is outer
    assert seen == [inside]
    assert maps["heatmap"].dtype == torch.float32


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
