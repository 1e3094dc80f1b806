"""Projectors: shapes, what they learn with, and that none of them is in what is deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bevkd_deploy.contracts.errors import UsageError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.recipe_distill import (
    ContrastLossConfig,
    DistillConfig,
    DistillLosses,
    FeatureLossConfig,
)
from bevkd_deploy.contracts.recipe_model import ModelConfig
from bevkd_deploy.distill.losses.contrast import DenseContrastLoss
from bevkd_deploy.distill.losses.feature import FeatureImitationLoss
from bevkd_deploy.distill.progress import Progress
from bevkd_deploy.distill.projectors import LinearEmbedding, MlpProjector, Projector, build_projector
from bevkd_deploy.distill.step import DistillationStep
from bevkd_deploy.distill.tap_report import TappedNetwork, report_taps
from bevkd_deploy.exporting.onnx_export import trace
from bevkd_deploy.models.checkpoint import load_detector, save_detector
from bevkd_deploy.models.detector import DeployedStudent
from bevkd_deploy.models.factory import build_detector
from bevkd_deploy.teachers.frozen import FrozenTeacher

KINDS = {"conv": Projector, "mlp": MlpProjector, "linear": LinearEmbedding}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_maps_keep_their_cells(kind: Any, batch: int) -> None:
    projector = build_projector(kind, 3, 7)
    assert type(projector) is KINDS[kind]
    features = torch.randn(batch, 3, 4, 5, requires_grad=True)
    out = projector(features)
    assert out.shape == (batch, 7, 4, 5)
    out.pow(2).sum().backward()
    assert features.grad is not None and all(p.grad is not None for p in projector.parameters())
    # A cell is projected by itself: in evaluation mode no other cell has a say in it.
    projector.eval()
    assert torch.allclose(projector(features)[:, :, 1:2, 2:3], projector(features[:, :, 1:2, 2:3]), atol=1e-6)


def test_numbers_by_hand() -> None:
    linear = build_projector("linear", 2, 1)
    conv = build_projector("conv", 2, 1).eval()
    mlp = build_projector("mlp", 2, 1).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, -1.0]]))
        linear.bias.fill_(0.5)
        conv.conv.weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        conv.norm.running_mean.fill_(1.0)
        conv.norm.running_var.fill_(4.0 - conv.norm.eps)
        mlp.hidden.weight.copy_(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1))
        mlp.norm.running_var.fill_(1.0 - mlp.norm.eps)
        mlp.out.weight.fill_(3.0)
        mlp.out.bias.fill_(-1.0)
    cell = torch.tensor([3.0, 1.0])  # 2 * 3 - 1 = 5; its negative is cut off by ReLU
    assert linear(cell[None]).item() == pytest.approx(5.5)
    assert linear(cell.view(1, 2, 1, 1)).item() == pytest.approx(5.5)
    assert conv(cell.view(1, 2, 1, 1)).item() == pytest.approx((5 - 1) / 2)
    assert mlp(torch.stack([cell, -cell])).flatten().tolist() == pytest.approx([14.0, -1.0], rel=1e-5)
    assert mlp(cell.view(1, 2, 1, 1)).item() == pytest.approx(14.0, rel=1e-5)


def test_an_embedding_of_one_vector_is_that_of_many() -> None:
    """No norm over the batch: at batch 1 in training mode it works, and it says the same."""
    embedding = build_projector("linear", 4, 3).train()
    vectors = torch.randn(5, 4)
    assert torch.allclose(embedding(vectors[:1]), embedding(vectors)[:1], atol=1e-6)
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in embedding.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_synchronised_by_torchs_own_function(kind: Any) -> None:
    loss = FeatureImitationLoss(3, 4, 0.1, projector=kind)
    norms = [module for module in loss.modules() if isinstance(module, nn.BatchNorm2d)]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    found = [module for module in converted.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(found) == len(norms) == {"conv": 1, "mlp": 1, "linear": 0}[kind]
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.Dropout)) for module in converted.modules())


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown projector 'cnn', expected one of conv, mlp, linear"):
        build_projector("cnn", 2, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_contrast_embeds_with_either(kind: Any) -> None:
    loss = DenseContrastLoss(3, 5, ContrastLossConfig(projector=kind, embedding_channels=4, queue_size=5))
    assert type(loss.embed) is KINDS[kind]
    assert loss.embed(torch.randn(6, 3)).shape == (6, 4)  # sampled cells are vectors


Step = tuple[DistillationStep, ModelConfig, GraphSpec]


@pytest.fixture
def trained(
    tiny_model_config: Callable[..., ModelConfig],
    tiny_spec: GraphSpec,
    teacher_config: ModelConfig,
    batch: dict[str, Any],
) -> Callable[..., Step]:
    """A step after one optimizer update, with projectors of the kinds asked for."""

    def make(feature: Any, contrast: Any) -> Step:
        config = tiny_model_config()
        student = build_detector(config, tiny_spec, 0)
        teacher = FrozenTeacher(build_detector(teacher_config, tiny_spec, 1), tiny_spec)
        losses = DistillLosses(
            feature=FeatureLossConfig(projector=feature),
            contrast=ContrastLossConfig(projector=contrast, embedding_channels=4, queue_size=8, cells_per_sample=16),
        )
        distill = DistillConfig(losses=losses, warmup_fraction=0.0)
        inputs = batch["inputs"]
        networks = (
            TappedNetwork.student(student, inputs["student"]),
            TappedNetwork.teacher(teacher, inputs["teacher"]),
        )
        step = DistillationStep(student, teacher, distill, report_taps(*networks, distill)).train()
        optimizer = torch.optim.SGD(step.parameters(), 0.1)
        before = {name: tensor.clone() for name, tensor in step.named_parameters() if name.startswith("terms")}
        sum(step(batch, Progress.at(1.0)).weighted.values()).backward()
        optimizer.step()
        moved = {name for name, tensor in step.named_parameters() if name in before and not same(tensor, before[name])}
        # They are in the optimizer. (The gain of a last norm has no gradient: the feature loss standardises it away.)
        assert moved >= {name for name, tensor in before.items() if tensor.dim() > 1}
        return step, config, tiny_spec

    return make


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.detach(), other)


@pytest.mark.parametrize(("feature", "contrast"), [("conv", "linear"), ("mlp", "mlp"), ("linear", "linear")])
def test_projectors_are_in_the_training_state_and_in_no_checkpoint(
    trained: Callable[..., Step], tmp_path: Path, feature: Any, contrast: Any
) -> None:
    step, config, spec = trained(feature, contrast)
    state = {key for key in step.state_dict() if key.startswith("terms.")}
    assert any(".projector." in key for key in state) and any(".embed." in key for key in state)
    path = tmp_path / "student.safetensors"
    save_detector(path, step.get_submodule("detector"), config, {})
    plain = build_detector(config, spec, 5)
    load_detector(path, plain, config, None)  # strict: no key more, none less
    of_detector = {key.removeprefix("detector.") for key in step.state_dict() if key.startswith("detector.")}
    assert set(plain.state_dict()) == of_detector


@pytest.mark.slow
def test_projectors_are_not_in_the_exported_graph(trained: Callable[..., Step]) -> None:
    step, config, spec = trained("mlp", "mlp")
    assert isinstance(step.detector, nn.Module)
    graph = trace(DeployedStudent(step.detector), spec).graph
    names = [initializer.name for initializer in graph.initializer] + [node.name for node in graph.node]
    assert len(names) > 50
    assert not [name for name in names if any(word in name for word in ("projector", "embed", "terms", "keys"))]
    # Every weight belongs to a part of the plain detector, by its canonical name.
    weights = {initializer.name.split(".")[0] for initializer in graph.initializer if "." in initializer.name}
    assert {"bbox_head", "pts_neck", "img_backbone"} <= weights
    assert weights <= {name for name, _ in build_detector(config, spec, 0).named_children()}
